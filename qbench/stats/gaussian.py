"""What fixed levels lose on data of a known density, the best levels there are, and other facts about Gaussian data."""

from collections.abc import Callable, Sequence
from functools import lru_cache
from itertools import pairwise
from math import inf, log10, sqrt
from typing import Literal

import numpy as np

from qbench.stats.density import NORMAL, Array, Density


def distortion(levels: Sequence[float], p: Density = NORMAL) -> float:
    """E (X - Q(X))^2 for X of density `p`, Q rounding to the nearest of the rising `levels`.

    Where c is nearest, on (a, b), it is the partial second moment - 2 c first + c^2 mass.

    >>> round(distortion([-0.79788, 0.79788]), 4)  # one bit, at sqrt(2 / pi): 1 - 2 / pi
    0.3634
    """
    mass, first, second = _moments(levels, p)
    c = np.array(levels)
    return float((second - 2 * c * first + c * c * mass).sum())


def index_entropy(levels: Sequence[float], p: Density = NORMAL) -> float:
    """Bits per code that a lossless coder would need for the indices of the nearest level.

    >>> round(index_entropy(lloyd_max(2)), 2)
    1.91
    """
    mass, _, _ = _moments(levels, p)
    return entropy(mass)


def entropy(mass: Array) -> float:
    """Of a distribution, in bits."""
    seen = mass[mass > 0]
    return float(-(seen * np.log2(seen)).sum())


@lru_cache
def lloyd_max(bits: int, p: Density = NORMAL) -> tuple[float, ...]:
    """The 2^bits levels with the least distortion: each is the mean of its own cell (Max 1960, Lloyd 1982).

    Thirty of Lloyd's own sweeps, then Newton's method on that condition, whose Jacobian is tridiagonal:
    the sweeps alone would need thousands at 8 bits, and Newton alone runs away from the first guess.
    """
    n = 2**bits
    levels = _companded(n, p)
    for sweep in range(60):
        mass, first, _ = _moments(levels.tolist(), p)
        residual = first - levels * mass
        # How much of its neighbour's move a level follows.
        pull = np.diff(levels) / 4 * p.density((levels[1:] + levels[:-1]) / 2)
        diagonal = mass - np.append(pull, 0) - np.append(0, pull)
        step = residual / mass if sweep < 30 else _solve(diagonal, -pull, residual)
        levels = levels + step
        if np.abs(step).max() < 1e-9:
            break
    return tuple(float(level) for level in (levels - levels[::-1]) / 2)  # exactly symmetric


def _solve(diagonal: Array, beside: Array, right: Array) -> Array:
    """Solve a symmetric tridiagonal system (Thomas's algorithm)."""
    ratio, found = np.zeros_like(beside), np.zeros_like(right)
    pivot = diagonal[0]
    found[0] = right[0] / pivot
    for i, off in enumerate(beside.tolist()):
        ratio[i] = off / pivot
        pivot = diagonal[i + 1] - off * ratio[i]
        found[i + 1] = (right[i + 1] - off * found[i]) / pivot
    for i in range(len(beside) - 1, -1, -1):
        found[i] -= ratio[i] * found[i + 1]
    return found


def _companded(n: int, p: Density) -> Array:
    """Levels as dense as p^(1/3), which is best where there are many (Panter and Dite 1951)."""
    t = np.linspace(-40, 40, 80_001)
    share = np.cumsum(np.cbrt(p.density(t)))
    return np.interp((np.arange(n) + 0.5) / n, share / share[-1], t)


@lru_cache
def optimal_uniform(bits: int, kind: Literal["narrow", "full", "mid-rise"] = "narrow") -> float:
    """The step with the least distortion for evenly spaced levels.

    `narrow` has the 2^bits - 1 integers -q..q, `full` one more below, `mid-rise` the 2^bits odd multiples of step/2.

    >>> round(optimal_uniform(4), 4), round(optimal_uniform(1, "mid-rise"), 4)
    (0.3534, 1.5958)
    """
    half = 2 ** (bits - 1)
    first = {"narrow": 1.0 - half, "full": -float(half), "mid-rise": 0.5 - half}[kind]
    levels = [first + i for i in range(2**bits - (kind == "narrow"))]
    return _minimum(lambda step: distortion([step * level for level in levels]), 1e-3, 2.0)


@lru_cache
def optimal_unit(levels: tuple[float, ...], p: Density = NORMAL) -> float:
    """The factor by which levels suit data of density `p` best, of several valleys the deepest.

    >>> round(optimal_unit((-1.0, 0.0, 1.0)), 4)
    1.224
    """
    peak = max(-levels[0], levels[-1])

    def cost(unit: float) -> float:
        return distortion([unit * level for level in levels], p)

    scan = np.geomspace(0.5, 12, 64) / peak
    best = int(np.argmin([cost(unit) for unit in scan]))
    return _minimum(cost, float(scan[max(best - 1, 0)]), float(scan[min(best + 1, 63)]))


def rate_distortion_db(bits: float) -> float:
    """Least error of a unit Gaussian at this rate: the distortion 2^(-2 bits), in decibels (Shannon 1959)."""
    return -20 * log10(2) * bits


def central_kurtosis(n: int) -> tuple[float, float]:
    """Mean and standard deviation of the central excess kurtosis m4/m2^2 - 3 of n Gaussian values (Fisher 1930).

    >>> central_kurtosis(256)[0] == -6 / 257
    True
    """
    if n < 4:  # one value has no kurtosis and counts as 0; two always show 1 - 3, three always 1.5 - 3
        return {1: 0.0, 2: -2.0, 3: -1.5}[n], 0.0
    variance = 24 * n * (n - 2) * (n - 3) / ((n + 1) ** 2 * (n + 3) * (n + 5))
    return -6 / (n + 1), sqrt(variance)


def _minimum(cost: Callable[[float], float], low: float, high: float) -> float:
    """Golden-section search, for a cost with one valley."""
    ratio = (sqrt(5) - 1) / 2
    for _ in range(40):
        a, b = high - ratio * (high - low), low + ratio * (high - low)
        low, high = (low, b) if cost(a) < cost(b) else (a, high)
    return (low + high) / 2


def _moments(levels: Sequence[float], p: Density) -> tuple[Array, Array, Array]:
    """Mass, first and second moment of the cell of each level."""
    edges = np.array([-inf, *((a + b) / 2 for a, b in pairwise(levels)), inf])
    mass, first, second = (np.diff(part) for part in p.partial(edges))
    return mass, first, second
