"""What Gaussian data loses when every block of n values is scaled by its own range, by numerical integration."""

from collections.abc import Callable
from functools import lru_cache
from math import erf, erfc, expm1, floor, log, log2, sqrt
from statistics import NormalDist
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Rule = Literal["absmax", "pow2", "rms", "range"]

_TAIL = 1e-8  # probability left out at each end of the distribution of a maximum


def gaussian_error(levels: tuple[float, ...], rule: Rule, block: int) -> float | None:
    """Expected error power over signal power of Gaussian blocks of `block` values on the scaled `levels`.

    Rules: `absmax` and `pow2` see `absmax_error`, `rms` sees `rms_error`, `range` sees `range_error`.
    """
    if rule == "range":
        return range_error(len(levels), block)
    return rms_error(levels, block) if rule == "rms" else absmax_error(levels, block, rule)


@lru_cache(maxsize=4096)
def absmax_error(levels: tuple[float, ...], block: int, scale: Literal["absmax", "pow2"] = "absmax") -> float:
    """E (x - Q(x))^2 over E x^2 for blocks of 1 to 10^9 Gaussian values scaled by their largest magnitude M.

    `absmax` maps M to the largest level, `pow2` (OCP MX) maps the power of two below M to the one below that level.
    Given M = m the other values are Gaussian on (-m, m), where the integral is closed; M is integrated numerically.
    """
    peak = max(-levels[0], levels[-1])
    unit = 2.0 ** floor(log2(peak))
    jumps = scale == "pow2"
    # What becomes of M itself jumps from level to level: many nodes, but they are cheap.
    m, weight = _maximum(block, 200, jumps=jumps)
    step = 2.0 ** np.floor(np.log2(m)) / unit if jumps else m / peak
    reach = (m / step if jumps else np.full_like(m, peak))[:, None]
    ends = np.abs(reach - levels).min(1) ** 2 + np.abs(reach + levels).min(1) ** 2
    total = weight @ (step**2 * ends / 2)
    if block > 1:
        m, weight = _maximum(block, 24 if jumps else 64, jumps=jumps)
        step = 2.0 ** np.floor(np.log2(m)) / unit if jumps else m / peak
        total += (block - 1) * (weight @ _truncated(np.outer(step, levels), -m, m))
    return float(total) / block


@lru_cache(maxsize=4096)
def rms_error(levels: tuple[float, ...], block: int) -> float:
    """The same for blocks divided by their own root mean square.

    Such a value is a coordinate of a uniform point on the sphere of radius sqrt(n): sqrt(n) sin(t), with density
    proportional to cos(t)^(n-2). It does not depend on the rms, so the errors relative to E x^2 just average.
    """
    if block == 1:
        return sum(min((side - c) ** 2 for c in levels) for side in (-1.0, 1.0)) / 2
    reach = min(sqrt(block), 12.0)
    cuts = np.clip(np.convolve(levels, (0.5, 0.5), "valid"), -reach, reach)
    angle = np.arcsin(np.concatenate([[-reach], cuts, [reach]]) / sqrt(block))
    node, weight = _rule(64)
    t = (angle[1:, None] + angle[:-1, None]) / 2 + np.diff(angle)[:, None] / 2 * node
    u = sqrt(block) * np.sin(t)
    mass = np.diff(angle)[:, None] / 2 * weight * np.cos(t) ** (block - 2)
    return float((mass * (u - np.array(levels)[:, None]) ** 2).sum() / mass.sum())


@lru_cache(maxsize=4096)
def range_error(count: int, block: int) -> float | None:
    """The same for `count` even levels from the smallest to the largest value, moved so that 0 is one of them.

    Integrates over both ends, of opposite sign; None below 8 values, where one sign alone is too likely.
    """
    if block < 8:
        return None
    low, high, weight = _ends(block, 200)
    step = (low + high) / (count - 1)
    total = weight @ (2 * (low - np.round(low / step) * step) ** 2)
    low, high, weight = _ends(block, 24)
    step = (low + high) / (count - 1)
    grid = step[:, None] * (np.arange(count) - np.round(low / step)[:, None])
    return float(total + (block - 2) * (weight @ _truncated(grid, -low, high))) / block


@lru_cache(maxsize=4096)
def expected_crest_db(n: int) -> float:
    """Mean of 20 log10(largest magnitude over rms) of n Gaussian values.

    The ratio is independent of the rms, so it is E log M - E log rms, and rms^2 is chi-square over n.

    >>> round(expected_crest_db(2048 * 96), 1)
    13.4
    """
    if n == 1:
        return 0.0
    m, weight = _maximum(n, 64)
    return 20 * float(weight @ np.log10(m)) - 10 / log(10) * (_digamma(n / 2) - log(n / 2))


def _truncated(grid: Array, low: Array, high: Array) -> Array:
    """E (X - Q(X))^2 for X Gaussian on (low, high), one row of levels each: the integral in `gaussian.distortion`."""
    inner = np.clip((grid[:, 1:] + grid[:, :-1]) / 2, low[:, None], high[:, None])
    edges = np.concatenate([low[:, None], inner, high[:, None]], axis=1)
    below, p = _each(erf, edges / sqrt(2)) / 2, np.exp(-(edges**2) / 2) / sqrt(2 * np.pi)
    cells = (1 + grid**2) * np.diff(below) - np.diff(edges * p) + 2 * grid * np.diff(p)
    return cells.sum(1) / (below[:, -1] - below[:, 0])


def _maximum(n: int, nodes: int, *, jumps: bool = False) -> tuple[Array, Array]:
    """Nodes and weights (sum 1) of the largest of n Gaussian magnitudes; `jumps` keeps powers of two between nodes."""
    low, high = _quantile(1e-4 if jumps else _TAIL, n), _quantile(1 - _TAIL, n)
    cuts = [2.0**e for e in range(floor(log2(low)) + 1, floor(log2(high)) + 1)] if jumps else []
    node, weight = _rule(nodes)
    edges = np.array([low, *cuts, high])
    half = np.diff(edges)[:, None] / 2
    m = ((edges[1:, None] + edges[:-1, None]) / 2 + half * node).ravel()
    density = (half * weight).ravel() * np.exp((n - 1) * np.log1p(-_beyond(m)) - m**2 / 2)
    return m, density / density.sum()


def _ends(n: int, nodes: int) -> tuple[Array, Array, Array]:
    """Nodes of minus the smallest and of the largest of n Gaussian values, both positive, and weights (sum 1)."""
    # The largest of n values exceeds m about as often as the largest of n/2 magnitudes does.
    first, last = (_quantile(v, n // 2) for v in (_TAIL, 1 - _TAIL))
    # One axis is finer, because low = high is the worst case for a zero point and must not be met too often.
    (x, x_weight), (y, y_weight) = _rule(nodes + 5), _rule(nodes)
    low, high = ((first + last) / 2 + (last - first) / 2 * side for side in (x, y))
    inside = np.log1p(-(_beyond(low)[:, None] + _beyond(high)) / 2)
    density = np.outer(x_weight, y_weight) * np.exp((n - 2) * inside - (low[:, None] ** 2 + high**2) / 2)
    return np.repeat(low, nodes), np.tile(high, nodes + 5), density.ravel() / density.sum()


def _quantile(v: float, n: int) -> float:
    """Where the largest of n Gaussian magnitudes stays below with probability v."""
    return -NormalDist().inv_cdf(-expm1(log(v) / n) / 2)


def _beyond(m: Array) -> Array:
    """P(|X| > m)."""
    return _each(erfc, m / sqrt(2))


def _each(f: Callable[[float], float], x: Array) -> Array:
    return np.array([f(v) for v in x.ravel().tolist()]).reshape(x.shape)


def _digamma(x: float) -> float:
    """The derivative of log gamma: upward recurrence, then the asymptotic series."""
    shift = 0.0
    while x < 10:
        shift, x = shift - 1 / x, x + 1
    return shift + log(x) - 1 / (2 * x) - 1 / (12 * x**2) + 1 / (120 * x**4) - 1 / (252 * x**6)


@lru_cache
def _rule(nodes: int) -> tuple[Array, Array]:
    """Gauss-Legendre on (-1, 1)."""
    node, weight = np.polynomial.legendre.leggauss(nodes)
    return node, weight
