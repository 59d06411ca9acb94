"""What independent data loses when every group of n values has its own scale, by numerical integration."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from math import expm1, floor, log, log2, sqrt

import numpy as np

from qbench.stats.cells import cells, fixed
from qbench.stats.density import NORMAL, Array, Density
from qbench.stats.gaussian import entropy

_TAIL = 1e-8  # probability left out at each end of the distribution of a maximum


@dataclass(frozen=True, slots=True, eq=False)
class Loss:
    """Expected error power over signal power, and the shares of the codes, lowest level first."""

    error: float
    shares: Array

    @property
    def entropy(self) -> float:
        """Bits per code that a lossless coder would need."""
        return entropy(self.shares)


@dataclass(frozen=True, slots=True)
class Steps:
    """What a level of 1 is worth in a group whose largest magnitude is m, for levels up to `peak`.

    Without `cut` it is m / peak. With it, it jumps: 2^floor(log2(m / cut)) times `base`, as in OCP MX, whose scales
    are powers of two. `mantissa` rounds it to so many bits, as in NVFP4, whose scales are small floats.
    """

    peak: float
    cut: float = 0.0
    base: float = 1.0
    mantissa: int = 0

    def at(self, m: Array, phase: float = 1.0) -> Array:
        """The step for each m; `phase` is what the scale is divided by before it is rounded."""
        if self.cut:
            return self.base * 2.0 ** np.floor(np.log2(m / self.cut))
        step = m / self.peak / phase
        if not self.mantissa:
            return step
        quantum = 2.0 ** (np.floor(np.log2(step)) - self.mantissa)
        return np.round(step / quantum) * quantum * phase

    def cuts(self, low: float, high: float, phase: float = 1.0) -> list[float]:
        """Where it jumps between low and high."""
        unit = self.cut or self.peak * phase
        within = [0.0] if self.cut else [(k + 0.5) / 2**self.mantissa for k in range(2**self.mantissa)]
        found = [
            unit * 2.0**e * (1 + part)
            for e in range(floor(log2(low / unit)), floor(log2(high / unit)) + 1)
            for part in within
        ]
        return [cut for cut in found if low < cut < high]


@lru_cache(maxsize=1024)
def absmax_loss(
    levels: tuple[float, ...],
    block: int,
    p: Density = NORMAL,
    steps: Steps | None = None,
    rounding: str = "nearest",
) -> Loss:
    """The loss of groups of 1 to 10^9 values scaled by their largest magnitude M.

    Given M = m the other values have density `p` cut to (-m, m), where the integral is closed; M is integrated
    numerically. Where a scale is rounded after division by another one, it is averaged over that one.
    """
    steps = steps or Steps(max(-levels[0], levels[-1]))
    phases = [2.0 ** (k / 4) for k in range(4)] if steps.mantissa else [1.0]
    found = [_absmax(np.array(levels), block, p, Scaled(steps, phase), rounding) for phase in phases]
    return Loss(float(np.mean([one.error for one in found])), np.mean([one.shares for one in found], axis=0))


@dataclass(frozen=True, slots=True)
class Scaled:
    """Steps under a scale of their own, `phase`."""

    steps: Steps
    phase: float

    def nodes(self, block: int, p: Density, count: int) -> tuple[Array, Array, Array]:
        """Nodes of the largest of `block` magnitudes, weights (sum 1), and the steps there, [nodes, 1]."""
        cuts = self.steps.cuts if self.steps.cut or self.steps.mantissa else None
        m, weight = _maximum(block, p, count, None if cuts is None else lambda low, high: cuts(low, high, self.phase))
        return m, weight, self.steps.at(m, self.phase)[:, None]


def _absmax(levels: Array, block: int, p: Density, scaled: Scaled, rounding: str) -> Loss:
    jumps = bool(scaled.steps.cut)
    # What becomes of M itself jumps from level to level: many nodes, but they are cheap.
    m, weight, step = scaled.nodes(block, p, 20 if scaled.steps.mantissa else 256)
    ends = np.stack([m, -m], axis=1) * (1 + 1e-12)  # not below their own level by the step's rounding
    error, shares = cells(step * levels, rounding).at(ends)
    total, codes = weight @ error, weight @ shares
    if block > 1:
        nodes = 8 if scaled.steps.mantissa else 24 if jumps else 64
        m, weight, step = scaled.nodes(block, p, nodes if len(levels) < 64 else min(nodes, 16))
        error, shares = cells(step * levels, rounding).within(-m, m, p)
        total, codes = total + (block - 1) * (weight @ error), codes + (block - 1) * (weight @ shares)
    exact = total < 1e-14  # what is left are roundings of the closed integrals
    return Loss(0.0 if exact else float(total) / block, codes / block)


@lru_cache(maxsize=1024)
def rms_error(levels: tuple[float, ...], block: int) -> float:
    """Error over signal power of Gaussian groups divided by their own root mean square.

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


MANY = 512  # values from which a group's rms is taken for the density's


def rms_loss(levels: tuple[float, ...], block: int, p: Density = NORMAL, rounding: str = "nearest") -> Loss | None:
    """The loss of groups divided by their own rms; exact for the Gaussian, None for small groups of anything else."""
    error, shares = fixed(levels, p, rounding)
    if p is NORMAL and rounding == "nearest":
        return Loss(rms_error(levels, block), shares)
    return Loss(error, shares) if block >= MANY else None


@lru_cache(maxsize=1024)
def range_loss(count: int, block: int, p: Density = NORMAL, rounding: str = "nearest") -> Loss | None:
    """The loss of `count` even levels from the smallest to the largest value, moved so that 0 is one of them.

    Integrates over both ends, of opposite sign; None below 8 values, where one sign alone is too likely.
    """
    if block < 8:
        return None
    low, high, weight = _ends(block, p, 100)
    step = (low + high) / (count - 1)
    # The zero point is rounded, so that one end lies beyond the levels by a part of a step and the other one within.
    part = np.abs(low / step - np.round(low / step))
    within = {"nearest": part**2, "sr": part * (1 - part), "rtz": (1 - part) ** 2}[rounding]
    total = weight @ ((part**2 + within) * step**2)
    low, high, weight = _ends(block, p, 24 if count < 64 else 12)
    step = (low + high) / (count - 1)
    grid = step[:, None] * (np.arange(count) - np.round(low / step)[:, None])
    error, shares = cells(grid, rounding).within(-low, high, p)
    ends = np.zeros(count)
    ends[0] = ends[-1] = 1
    return Loss(float(total + (block - 2) * (weight @ error)) / block, (ends + (block - 2) * (weight @ shares)) / block)


@lru_cache(maxsize=4096)
def expected_crest_db(n: int) -> float:
    """Mean of 20 log10(largest magnitude over rms) of n Gaussian values.

    The ratio is independent of the rms, so it is E log M - E log rms, and rms^2 is chi-square over n.

    >>> round(expected_crest_db(2048 * 96), 1)
    13.4
    """
    if n == 1:
        return 0.0
    m, weight = _maximum(n, NORMAL, 64)
    return 20 * float(weight @ np.log10(m)) - 10 / log(10) * (_digamma(n / 2) - log(n / 2))


def _maximum(
    n: int, p: Density, nodes: int, cuts: Callable[[float, float], list[float]] | None = None
) -> tuple[Array, Array]:
    """Nodes and weights (sum 1) of the largest of n magnitudes; `cuts` stay between nodes."""
    low, high = _quantile(_TAIL if cuts is None else 1e-4, n, p), _quantile(1 - _TAIL, n, p)
    node, weight = _rule(nodes)
    edges = np.log([low, *(cuts(low, high) if cuts else []), high])  # heavy tails reach over many octaves
    half = np.diff(edges)[:, None] / 2
    m = np.exp((edges[1:, None] + edges[:-1, None]) / 2 + half * node).ravel()
    density = (half * weight).ravel() * m * np.exp((n - 1) * np.log1p(-p.beyond(m))) * p.density(m)
    return m, density / density.sum()


def _ends(n: int, p: Density, nodes: int) -> tuple[Array, Array, Array]:
    """Nodes of minus the smallest and of the largest of n values, both positive, and weights (sum 1)."""
    # The largest of n values exceeds m about as often as the largest of n/2 magnitudes does.
    first, last = (log(_quantile(v, n // 2, p)) for v in (_TAIL, 1 - _TAIL))
    # One axis is finer, because low = high is the worst case for a zero point and must not be met too often.
    (x, x_weight), (y, y_weight) = _rule(nodes + 5), _rule(nodes)
    low, high = (np.exp((first + last) / 2 + (last - first) / 2 * side) for side in (x, y))
    inside = np.log1p(-(p.beyond(low)[:, None] + p.beyond(high)) / 2)
    apart = [weight * m * p.density(m) for m, weight in ((low, x_weight), (high, y_weight))]
    density = np.outer(*apart) * np.exp((n - 2) * inside)
    return np.repeat(low, nodes), np.tile(high, nodes + 5), density.ravel() / density.sum()


def _quantile(v: float, n: int, p: Density) -> float:
    """Where the largest of n magnitudes stays below with probability v."""
    return p.reach(-expm1(log(v) / n))


def _digamma(x: float) -> float:
    """The derivative of log gamma: upward recurrence, then the asymptotic series."""
    shift = 0.0
    while x < 10:
        shift, x = shift - 1 / x, x + 1
    return shift + log(x) - 1 / (2 * x) - 1 / (12 * x**2) + 1 / (120 * x**4) - 1 / (252 * x**6)


@lru_cache
def _rule(nodes: int) -> tuple[Array, Array]:
    """Gauss-Legendre on (-1, 1), or midpoints where there are many nodes, because the integrand jumps."""
    if nodes >= 100:
        return (2 * np.arange(nodes) + 1) / nodes - 1, np.full(nodes, 2 / nodes)
    node, weight = np.polynomial.legendre.leggauss(nodes)
    return node, weight
