"""Grids: the values one stored code can stand for, before any scaling."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import pairwise
from types import MappingProxyType

from qbench.quant.codebooks import BNB_FP4, NF4, dynamic_map
from qbench.quant.spec import QuantizerSpec
from qbench.stats.density import DENSITIES
from qbench.stats.gaussian import lloyd_max, optimal_unit


@dataclass(frozen=True, slots=True)
class Grid:
    """A rising, finite set of levels that one code of `bits` bits selects from.

    `patterns` are the stored codes of the levels, counted from the lowest level where there are none; `negative_zero`
    is a second code of level 0. `floating` holds the mantissa bits and the exponent of the smallest normal number of a
    float format; `offset` is where levels that are 1 apart start from a whole number. Both save looking up a table.
    `unit_power` levels suit data of unit power as they are.
    """

    bits: int
    levels: tuple[float, ...]
    patterns: tuple[int, ...] = ()
    negative_zero: int | None = None
    floating: tuple[int, int] | None = None
    unit_power: bool = False
    top: float = 0.0  # what the largest magnitude maps to, 0 for the outermost level
    offset: float | None = field(init=False)

    def __post_init__(self) -> None:
        consecutive = len(self.levels) > 1 and all(high - low == 1 for low, high in pairwise(self.levels))
        object.__setattr__(self, "offset", min(self.levels) % 1 if consecutive else None)
        if not 1 <= len(self.levels) <= 2**self.bits:
            raise ValueError(f"{len(self.levels)} levels do not fit into {self.bits} bits")
        if any(low >= high for low, high in pairwise(self.levels)):
            raise ValueError("levels must rise strictly")

    @property
    def integer(self) -> bool:
        """The levels are consecutive integers."""
        return self.offset == 0

    @property
    def peak(self) -> float:
        """The largest magnitude a code can stand for."""
        return self.top or max(-self.levels[0], self.levels[-1])

    @property
    def limits(self) -> tuple[float, float]:
        """Half a step beyond the outermost levels: what lies further out is saturated."""
        if len(self.levels) == 1:
            return self.levels[0], self.levels[0]
        (a, b), (c, d) = self.levels[:2], self.levels[-2:]
        return a - (b - a) / 2, d + (d - c) / 2

    def unit(self) -> float:
        """What the number 1 on the grid is worth for Gaussian data of unit power, where a scale follows the rms."""
        return 1.0 if self.unit_power else optimal_unit(self.levels)


def integer(bits: int, variant: str) -> Grid:
    """`narrow` integers are symmetric so that Q(-x) = -Q(x), `full` have one more below, `asym` start at 0.

    Stored as two's complement.
    """
    half = 2 ** (bits - 1)
    first, count = {"narrow": (1 - half, 2 * half - 1), "asym": (0, 2 * half)}.get(variant, (-half, 2 * half))
    levels = range(first, first + count)
    top = half - 0.5 if variant == "middle" else 0.0
    return Grid(bits, tuple(float(level) for level in levels), tuple(level % 2**bits for level in levels), top=top)


def uniform(bits: int, _variant: str) -> Grid:
    """2^bits odd multiples of a half: evenly spaced levels without a zero (mid-rise)."""
    return Grid(bits, tuple(i + 0.5 - 2 ** (bits - 1) for i in range(2**bits)))


def minifloat(exponent: int, mantissa: int, reserved: int = 0) -> Grid:
    """A small float with sign, subnormals and bias 2^(exponent-1) - 1; the `reserved` highest codes are not numbers.

    >>> minifloat(exponent=2, mantissa=1).levels[7:]
    (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
    """
    bias, sign = 2 ** (exponent - 1) - 1, 2 ** (exponent + mantissa)
    positive: list[float] = []
    for code in range(sign - reserved):
        power, fraction = divmod(code, 2**mantissa)
        # Exponent code 0 is subnormal: no leading one, and the scale of code 1.
        lead, power = (1, power) if power else (0, 1)
        positive.append((lead + fraction / 2**mantissa) * 2.0 ** (power - bias))
    levels = [-level for level in positive[:0:-1]] + positive
    patterns = [sign + code for code in range(len(positive) - 1, 0, -1)] + list(range(len(positive)))
    return Grid(1 + exponent + mantissa, tuple(levels), tuple(patterns), sign, (mantissa, 1 - bias))


def _ocp_int8(_bits: int, _variant: str) -> Grid:
    """OCP's 8-bit element: two's complement with six fractional bits, the most negative code left out."""
    levels = range(-127, 128)
    return Grid(8, tuple(level / 64 for level in levels), tuple(level % 256 for level in levels))


def _bnb_fp4(_bits: int, _variant: str) -> Grid:
    positive = {level / 12: code for code, level in enumerate(BNB_FP4)}
    stored = {-level: code + 8 for level, code in positive.items() if code} | positive
    return Grid(4, tuple(sorted(stored)), tuple(stored[level] for level in sorted(stored)))


def _float(exponent: int, mantissa: int, reserved: int = 0) -> Callable[[int, str], Grid]:
    return lambda _bits, _variant: minifloat(exponent, mantissa, reserved)


_GRIDS: Mapping[str, Callable[[int, str], Grid]] = MappingProxyType(
    {
        "int": integer,
        "uniform": uniform,
        "ternary": lambda bits, _: Grid(bits, (-1.0, 0.0, 1.0)),
        "binary": lambda bits, _: Grid(bits, (-1.0, 1.0)),
        "e4m3": _float(4, 3, reserved=1),  # NaN
        "e5m2": _float(5, 2, reserved=4),  # infinity and NaN
        "e2m3": _float(2, 3),
        "e3m2": _float(3, 2),
        "e2m1": _float(2, 1),
        "ocpint8": _ocp_int8,
        "nf4": lambda bits, _: Grid(bits, NF4),
        "bnbfp4": _bnb_fp4,
        "dynamic": lambda bits, variant: Grid(bits, dynamic_map(signed=variant == "signed")),
        "lloyd": lambda bits, variant: Grid(bits, lloyd_max(bits, DENSITIES[variant]), unit_power=True),
    }
)


def grid_of(spec: QuantizerSpec) -> Grid:
    """The grid that a spec names; equal specs share one. A fitted grid is another for each tensor: KeyError."""
    return _grid(spec.grid, spec.bits, spec.variant)


@lru_cache(maxsize=256)
def _grid(family: str, bits: int, variant: str) -> Grid:
    return _GRIDS[family](bits, variant)
