"""A seeded bootstrap of a weighted mean: an interval for a score that a whole task gives, from its documents."""

from math import inf

import numpy as np
from numpy.typing import NDArray

from qbench.stats.interval import Interval

DRAWS = 2000
AT_ONCE = 4_000_000  # resampled documents held in memory


def weighted_mean_interval(
    values: NDArray[np.float64], weights: NDArray[np.float64], seed: int, confidence: float = 0.95
) -> Interval:
    """sum(w v) / sum(w) with its percentile interval over documents drawn anew together with their weights.

    `values` and `weights` are [N], one for each document. The ends are infinite for one document: it has no spread.
    B. Efron, R. Tibshirani, An Introduction to the Bootstrap (1993), chapter 13.

    Raises ValueError where there are no documents, or their weights do not match.
    """
    n = len(values)
    if not n or weights.shape != values.shape:
        raise ValueError(f"expected one weight for each of at least one value; found {weights.shape}, {values.shape}")
    weighed = values * weights
    mean = float(weighed.sum() / weights.sum())
    if n == 1:
        return Interval(mean, -inf, inf)
    random = np.random.default_rng(seed)
    rows = max(1, AT_ONCE // n)
    means = [_resampled(random, weighed, weights, min(rows, DRAWS - done)) for done in range(0, DRAWS, rows)]
    low, high = np.quantile(np.concatenate(means), [(1 - confidence) / 2, (1 + confidence) / 2])
    return Interval(mean, float(low), float(high))


def _resampled(
    random: np.random.Generator, weighed: NDArray[np.float64], weights: NDArray[np.float64], rows: int
) -> NDArray[np.float64]:
    chosen = random.integers(len(weights), size=(rows, len(weights)))
    return weighed[chosen].sum(1) / weights[chosen].sum(1)
