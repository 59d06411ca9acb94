"""What a quantizer should lose on independent data of a given shape and density."""

from collections.abc import Callable, Iterable, Mapping
from math import log10, prod, sqrt
from types import MappingProxyType

import numpy as np

from qbench.quant.family import STORAGES
from qbench.quant.grid import Grid, grid_of
from qbench.quant.spec import QuantizerSpec
from qbench.stats.blocks import MANY, Loss, Steps, absmax_loss, range_loss, rms_loss
from qbench.stats.cells import fixed
from qbench.stats.density import NORMAL, Density
from qbench.stats.gaussian import lloyd_max


def expected_error_db(spec: QuantizerSpec, shape: Iterable[int], channel_axis: int = -1) -> float | None:
    """Expected error power over signal power, in decibels, for independent Gaussian values; None as `expected_loss`.

    >>> from qbench.quant.spelling import parse
    >>> round(expected_error_db(parse("int4/token"), (2048, 96)), 1)
    -18.9
    """
    loss = expected_loss(spec, shape, channel_axis)
    return 10 * log10(loss.error) if loss is not None and loss.error else None


def expected_loss(
    spec: QuantizerSpec, shape: Iterable[int], channel_axis: int = -1, p: Density = NORMAL
) -> Loss | None:
    """Expected error and shares of the codes for independent values of density `p`.

    The rounding of stored scales to 7 bits and more is left out (below 0.05 dB), and so is double quantization.
    None where nothing exact is known: an empty tensor, a zero point for fewer than 8 values, a scale other than the
    largest magnitude over few values, fitted levels in blocks, smoothing, a rotation of few values not Gaussian, a
    scale fixed before.
    """
    sizes = tuple(shape) or (1,)
    mixed = _mixed(spec, sizes[-1], p)
    if not prod(sizes) or mixed is None or spec.smooth is not None or spec.static:
        return None
    parts = [(_group_loss(spec, n, mixed), share) for n, share in spec.group.populations(sizes, channel_axis)]
    known = [(loss, share) for loss, share in parts if loss is not None]
    if len(known) < len(parts):
        return None
    shares = np.sum([loss.shares * share for loss, share in known], axis=0)
    return Loss(sum(loss.error * share for loss, share in known), shares)


def _mixed(spec: QuantizerSpec, width: int, p: Density) -> Density | None:
    """The density after a rotation: Gaussian stays Gaussian, and everything becomes it when enough values are mixed."""
    if (spec.hadamard is None and spec.rht is None) or p is NORMAL:
        return p
    size = width if spec.rht is not None else spec.hadamard or width & -width
    return NORMAL if size >= MANY else None


def _group_loss(spec: QuantizerSpec, n: int, p: Density) -> Loss | None:
    if spec.fitted:
        return _FITTED[spec.grid](spec, p) if spec.rule == "none" and n >= 64 * MANY else None
    grid = grid_of(spec)
    if spec.variant == "asym":
        return range_loss(len(grid.levels), n, p, _rounding(spec))
    return _RULES[spec.rule_word](spec, grid, n, p)


def _rounding(spec: QuantizerSpec) -> str:
    return spec.rounding.partition(":")[0]


def _absmax(spec: QuantizerSpec, grid: Grid, n: int, p: Density) -> Loss | None:
    steps = Steps(grid.peak, mantissa=STORAGES[spec.scale].mantissa)
    return absmax_loss(grid.levels, n, p, steps, _rounding(spec))


def _exponent(spec: QuantizerSpec, grid: Grid, n: int, p: Density) -> Loss | None:
    unit = 2.0 ** -np.floor(np.log2(grid.peak))
    mantissa = grid.floating[0] if grid.floating else 0
    cut, base = {
        "pow2": (1.0, unit),
        "ceil": (1.0, 2 * unit),
        "rceil": (grid.peak, 2.0),
        "even": (1 - 2.0 ** -(mantissa + 2), unit),
    }[spec.rule]
    return absmax_loss(grid.levels, n, p, Steps(grid.peak, cut, float(base)), _rounding(spec))


def _unit(spec: QuantizerSpec, grid: Grid, n: int, p: Density, unit: float) -> Loss | None:
    """Groups whose scale is `unit` times their rms, or the like that settles as quickly."""
    return rms_loss(tuple(level * unit for level in grid.levels), n, p, _rounding(spec))


def _rms(spec: QuantizerSpec, grid: Grid, n: int, p: Density) -> Loss | None:
    return _unit(spec, grid, n, p, grid.unit())


def _l2(spec: QuantizerSpec, grid: Grid, n: int, p: Density) -> Loss | None:
    return _unit(spec, grid, n, p, sqrt(n) / grid.peak)


def _settled(at: Callable[[QuantizerSpec, Grid, int, Density], float | None]) -> "Expectation":
    """Rules whose scale settles at a multiple of the deviation when there are many values."""

    def loss(spec: QuantizerSpec, grid: Grid, n: int, p: Density) -> Loss | None:
        top = at(spec, grid, n, p) if n >= MANY else None
        if top is None:
            return None
        return Loss(*fixed(tuple(level * top for level in grid.levels), p, _rounding(spec)))

    return loss


def _percentile(spec: QuantizerSpec, grid: Grid, n: int, p: Density) -> float | None:
    beyond = 1 - spec.rule_argument / 100
    return p.reach(beyond) / grid.peak if beyond * n >= 8 else None


def _clip(spec: QuantizerSpec, grid: Grid, n: int, p: Density) -> float | None:
    return spec.rule_argument / grid.peak if p.reach(4 / n) > spec.rule_argument else None


Expectation = Callable[[QuantizerSpec, Grid, int, Density], Loss | None]
_RULES: Mapping[str, Expectation] = MappingProxyType(
    {
        "absmax": _absmax,
        "rms": _rms,
        "l2": _l2,
        "meanabs": _settled(lambda spec, grid, n, p: p.mean_magnitude()),
        "percentile": _settled(_percentile),
        "clip": _settled(_clip),
        "mse": lambda spec, grid, n, p: None,  # it follows each group, and beats what is best on average
        "pow2": _exponent,
        "rceil": _exponent,
        "ceil": _exponent,
        "even": _exponent,
    }
)


def _kmeans(spec: QuantizerSpec, p: Density) -> Loss:
    return Loss(*fixed(lloyd_max(spec.bits, p), p, _rounding(spec)))


def _quantile(spec: QuantizerSpec, p: Density) -> Loss:
    count = 2**spec.bits
    upper = [p.reach(1 - (2 * i + 1) / count) for i in range(count // 2)]  # middles of equal masses
    levels = (*(-level for level in reversed(upper)), *upper) if count > 2 else (-p.reach(0.5), p.reach(0.5))
    return Loss(*fixed(levels, p, _rounding(spec)))


_FITTED: Mapping[str, Callable[[QuantizerSpec, Density], Loss]] = MappingProxyType(
    {"kmeans": _kmeans, "quantile": _quantile}
)
