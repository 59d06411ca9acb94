"""Grids: the values one stored code can stand for, before any scaling."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import pairwise
from types import MappingProxyType

from qbench.quant.spec import QuantizerSpec
from qbench.stats.gaussian import lloyd_max, optimal_uniform


@dataclass(frozen=True, slots=True)
class Grid:
    """A rising, finite set of levels that one code of `bits` bits selects from.

    `unit` is what the number 1 on the grid is worth for Gaussian data of unit power, where a scale follows the rms.
    """

    bits: int
    levels: tuple[float, ...]
    unit: Callable[[], float] = lambda: 1.0
    integer: bool = field(init=False)  # the levels are consecutive integers, so that rounding needs no table

    def __post_init__(self) -> None:
        consecutive = all(high - low == 1 for low, high in pairwise(self.levels))
        object.__setattr__(self, "integer", consecutive and self.levels[0] % 1 == 0)
        if not 2 <= len(self.levels) <= 2**self.bits:
            raise ValueError(f"{len(self.levels)} levels do not fit into {self.bits} bits")
        if any(low >= high for low, high in pairwise(self.levels)):
            raise ValueError("levels must rise strictly")

    @property
    def peak(self) -> float:
        """The largest magnitude a code can stand for."""
        return max(-self.levels[0], self.levels[-1])

    @property
    def limits(self) -> tuple[float, float]:
        """Half a step beyond the outermost levels: what lies further out is saturated."""
        (a, b), (c, d) = self.levels[:2], self.levels[-2:]
        return a - (b - a) / 2, d + (d - c) / 2


def integer(bits: int, variant: str) -> Grid:
    """`narrow` integers are symmetric so that Q(-x) = -Q(x), `full` have one more below, `asym` start at 0."""
    half = 2 ** (bits - 1)
    if variant == "asym":
        return Grid(bits, tuple(float(level) for level in range(2**bits)))
    first, kind = (1 - half, "narrow") if variant == "narrow" else (-half, "full")
    return Grid(bits, tuple(float(level) for level in range(first, half)), lambda: optimal_uniform(bits, kind))


def minifloat(exponent: int, mantissa: int) -> Grid:
    """A small float whose every code is finite, as in the OCP MX element formats.

    >>> minifloat(exponent=2, mantissa=1).levels[7:]
    (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
    """
    bias = 2 ** (exponent - 1) - 1
    positive: set[float] = set()
    for code in range(2**exponent):
        # Exponent code 0 is subnormal: no leading one, and the scale of code 1.
        lead, power = (1, code) if code else (0, 1)
        positive |= {(lead + m / 2**mantissa) * 2.0 ** (power - bias) for m in range(2**mantissa)}
    positive.discard(0.0)
    return Grid(1 + exponent + mantissa, tuple(sorted({0.0} | positive | {-level for level in positive})))


_GRIDS: Mapping[str, Callable[[int, str], Grid]] = MappingProxyType(
    {
        "int": integer,
        "e2m1": lambda _bits, _variant: minifloat(exponent=2, mantissa=1),
        "lloyd": lambda bits, _variant: Grid(bits, lloyd_max(bits)),
    }
)


def grid_of(spec: QuantizerSpec) -> Grid:
    """The grid that a spec names; equal specs share one."""
    return _grid(spec.grid, spec.bits, spec.variant)


@lru_cache
def _grid(family: str, bits: int, variant: str) -> Grid:
    return _GRIDS[family](bits, variant)
