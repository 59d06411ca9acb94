"""What a quantizer loses where no integral is known: a seeded simulation in numpy, for tables that must not load torch.

A second, slower implementation of the formats over rows of equal groups, which the tests hold equal to the first.
"""

from collections.abc import Callable, Mapping
from math import frexp, log10
from types import MappingProxyType

import numpy as np

from qbench.quant.family import EXPONENT_RULES, STORAGES
from qbench.quant.grid import Grid, grid_of
from qbench.quant.spec import QuantizerSpec
from qbench.stats.density import LAPLACE, NORMAL, STUDENT, Array, Density

_ROWS = {"channel": (1024, 64)}  # groups of 1024, as in a matrix of 1024 x 1024
_DRAW: Mapping[str, Callable[[np.random.Generator, tuple[int, int]], Array]] = MappingProxyType(
    {
        NORMAL.name: lambda rng, shape: rng.standard_normal(shape),
        LAPLACE.name: lambda rng, shape: rng.laplace(scale=2**-0.5, size=shape),
        STUDENT.name: lambda rng, shape: rng.standard_t(5, shape) * 0.6**0.5,
    }
)


def draw(p: Density, shape: tuple[int, int], seed: int = 0) -> Array:
    """Independent values of a density that has a generator here, [rows, width]."""
    return _DRAW[p.name](np.random.default_rng(seed), shape)


def simulated_error_db(spec: QuantizerSpec, p: Density = NORMAL) -> float:
    """Error power over signal power on one draw, in decibels: good to 0.1."""
    x = draw(p, (1024, 1024) if spec.smooth else _ROWS.get(spec.granularity, (64, 1024)))
    return 10 * log10(float(((roundtrip(spec, x) - x) ** 2).sum() / (x**2).sum()))


def roundtrip(spec: QuantizerSpec, x: Array) -> Array:
    """A quantized copy of x [rows, width]; for channel, token, and blocks of the last axis that divide it."""
    factors = np.abs(x).max(0) ** spec.smooth if spec.smooth else np.ones(x.shape[1])
    mixed = _rotate(x / factors, spec.hadamard)
    rows = mixed.T if spec.granularity == "channel" else mixed
    groups = rows.reshape(-1, spec.block or (rows.size if spec.granularity == "tensor" else rows.shape[1]))
    back = _quantize(spec, groups).reshape(rows.shape)
    return _rotate(back.T if spec.granularity == "channel" else back, spec.hadamard) * factors


def _quantize(spec: QuantizerSpec, x: Array) -> Array:
    if spec.fitted:
        scale = np.abs(x).max(1, keepdims=True)
        return _nearest(x / scale, _kmeans((x / scale).ravel(), 2**spec.bits)) * scale
    grid = grid_of(spec)
    scale = _stored(_scale(spec, grid, x), spec.scale)
    if spec.seed is not None:
        return _at_random(x / scale, np.array(grid.levels), spec.seed) * scale
    return _onto(x / scale, grid) * scale


def _scale(spec: QuantizerSpec, grid: Grid, x: Array) -> Array:
    peak = np.abs(x).max(1, keepdims=True)
    if spec.rule in EXPONENT_RULES:
        return 2.0 ** (np.frexp(peak)[1] - frexp(grid.peak)[1])
    if spec.rule == "rms":
        return np.sqrt((x**2).mean(1, keepdims=True)) * grid.unit()
    if spec.rule == "mse":
        tries = [peak / grid.peak * (1 - i / 100) for i in range(80)]
        errors = [((_onto(x / s, grid) * s - x) ** 2).sum(1) for s in tries]
        return np.take_along_axis(np.concatenate(tries, 1), np.argmin(errors, 0)[:, None], 1)
    return peak / grid.peak


def _stored(scale: Array, storage: str) -> Array:
    mantissa = STORAGES[storage].mantissa
    if not mantissa:
        return scale
    outer = scale.max() / 448 if STORAGES[storage].tensor else 1.0
    quantum = 2.0 ** (np.maximum(np.floor(np.log2(scale / outer)), -6) - mantissa)
    return np.round(scale / outer / quantum) * quantum * outer


def _onto(y: Array, grid: Grid) -> Array:
    if grid.integer:
        return np.clip(np.round(y), grid.levels[0], grid.levels[-1])
    return _nearest(y, np.array(grid.levels))


def _nearest(y: Array, levels: Array) -> Array:
    return levels[np.searchsorted((levels[1:] + levels[:-1]) / 2, y)]


def _at_random(y: Array, levels: Array, seed: int) -> Array:
    lower = np.clip(np.searchsorted(levels, y, side="right") - 1, 0, len(levels) - 2)
    odds = (y - levels[lower]) / (levels[lower + 1] - levels[lower])
    return levels[lower + (np.random.default_rng(seed).random(y.shape) < odds)]


def _kmeans(x: Array, count: int) -> Array:
    ordered = np.sort(x)
    sums = np.concatenate([[0.0], np.cumsum(ordered)])
    levels = np.quantile(ordered, (np.arange(count) + 0.5) / count)
    for _ in range(100):
        edges = np.concatenate([[0], np.searchsorted(ordered, (levels[1:] + levels[:-1]) / 2), [len(x)]])
        levels = np.diff(sums[edges]) / np.maximum(np.diff(edges), 1)
    return levels


def _rotate(x: Array, size: int | None) -> Array:
    if size is None:
        return x
    mixed = size or x.shape[1] & -x.shape[1]
    h = np.ones((1, 1))
    while len(h) < mixed:
        h = np.block([[h, h], [h, -h]])
    return (x.reshape(-1, mixed) @ h / mixed**0.5).reshape(x.shape)
