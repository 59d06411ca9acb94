"""Which number orders the costs best: Spearman's rank correlations with bootstrap intervals over groups."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from math import nan

import numpy as np
from numpy.typing import NDArray

from qbench.stats.interval import Interval

DRAWS = 2000
AT_ONCE = 4_000_000  # resampled observations held in memory
FEWEST = 3  # observations that can be in an order worth a number

Array = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Correlation:
    """Spearman's rho of one predictor with the outcome, and its 95 % percentile interval over resampled groups.

    `best` is the share of resamples in which no other predictor has a larger rho; shares of all predictors sum to 1.
    """

    rho: Interval
    best: float


@dataclass(frozen=True, slots=True)
class Comparison:
    """All predictors, the best first, on the `n` observations of `groups` groups that have every one of them.

    `differences` are rho of the first named minus rho of the second, in the same resamples, for each pair in order.
    """

    correlations: Mapping[str, Correlation]
    differences: Mapping[tuple[str, str], Interval]
    n: int
    groups: int


@dataclass(frozen=True, slots=True, eq=False)
class Table:
    """Observations in a row each: predictors by name, the outcome, and which group and which stratum it is of.

    Groups (runs) are resampled as a whole, because what is of one run goes together. Ranks are taken within each
    stratum (a quantizer, say): what only tells the strata apart predicts nothing. Arrays are [N]; labels any values.
    """

    predictors: Mapping[str, Array]
    outcome: Array
    groups: Sequence[object]
    strata: Sequence[object] = ()

    def __post_init__(self) -> None:
        sizes = {len(self.outcome), len(self.groups), *(len(x) for x in self.predictors.values())}
        if self.strata:
            sizes.add(len(self.strata))
        if len(sizes) != 1 or not self.predictors:
            raise ValueError(f"expected predictors, outcome, groups and strata of one length; found {sorted(sizes)}")


def spearman(a: Array, b: Array) -> float:
    """Rank correlation, ties sharing their mean rank; NaN for fewer than 3 pairs or where one side is constant.

    >>> spearman(np.array([1.0, 2.0, 9.0]), np.array([0.1, 0.2, 0.3]))
    1.0
    """
    counts = np.ones((1, len(a)))
    return float(_correlated(_ranks(np.asarray(a), counts), _ranks(np.asarray(b), counts), counts)[0])


def compare(table: Table, seed: int = 0, confidence: float = 0.95) -> Comparison:
    """Correlate every predictor with the outcome, on the observations for which all are finite.

    Groups are drawn with replacement, or observations where there is but one group; then rho is the mean over strata,
    each weighing as much as it has observations. Resamples in which a rho is undefined that is not so on
    the whole are left out. Intervals are
    percentiles: B. Efron, R. Tibshirani, An Introduction to the Bootstrap (1993), chapter 13.

    Raises ValueError where fewer than 3 observations have all numbers.
    """
    names = tuple(table.predictors)
    columns = np.stack([*table.predictors.values(), table.outcome]).astype(np.float64)
    keep = np.asarray(np.isfinite(columns).all(0))
    if keep.sum() < FEWEST:
        raise ValueError(f"{int(keep.sum())} observations have all of {', '.join(names)}; {FEWEST} are needed")
    groups = _codes([label for label, kept in zip(table.groups, keep, strict=True) if kept])
    strata = table.strata or [""] * len(keep)
    of_strata = _codes([label for label, kept in zip(strata, keep, strict=True) if kept])
    columns = columns[:, keep]
    estimate = _rhos(columns, of_strata, np.ones((1, columns.shape[1])))[:, 0]
    drawn = _resampled(columns, of_strata, groups, seed)
    drawn = drawn[:, np.isfinite(drawn[np.isfinite(estimate)]).all(0)]
    order = sorted(range(len(names)), key=lambda i: -np.nan_to_num(estimate[i], nan=-2.0))
    wins = _wins(drawn)
    ends = (1 - confidence) / 2, (1 + confidence) / 2
    return Comparison(
        {names[i]: Correlation(_interval(estimate[i], drawn[i], ends), wins[i]) for i in order},
        {
            (names[i], names[j]): _interval(estimate[i] - estimate[j], drawn[i] - drawn[j], ends)
            for i, j in combinations(order, 2)
        },
        n=columns.shape[1],
        groups=int(groups.max()) + 1,
    )


def _resampled(columns: Array, strata: NDArray[np.int64], groups: NDArray[np.int64], seed: int) -> Array:
    """Rho of every predictor in every resample, [predictors, draws]."""
    units = groups if groups.max() else np.arange(len(groups))
    count = int(units.max()) + 1
    random = np.random.default_rng(seed)
    rows = max(1, AT_ONCE // len(units))
    parts: list[Array] = []
    for done in range(0, DRAWS, rows):
        draws = min(rows, DRAWS - done)
        counts = np.stack([np.bincount(random.integers(count, size=count), minlength=count) for _ in range(draws)])
        parts.append(_rhos(columns, strata, counts[:, units].astype(np.float64)))
    return np.concatenate(parts, axis=1)


def _rhos(columns: Array, strata: NDArray[np.int64], counts: Array) -> Array:
    """The mean over strata of each predictor's rho with the outcome (the last column), each observation `counts` times.

    Strata in which a rho is undefined weigh nothing; NaN where that is all of them.
    """
    total, weight = np.zeros((len(columns) - 1, len(counts))), np.zeros((len(columns) - 1, len(counts)))
    for stratum in range(int(strata.max()) + 1):
        here = strata == stratum
        inside = counts[:, here]
        *ranks, outcome = (_ranks(column[here], inside) for column in columns)
        rhos = np.stack([_correlated(each, outcome, inside) for each in ranks])
        size = np.where(np.isfinite(rhos), inside.sum(1), 0.0)
        total += np.where(size > 0, rhos, 0.0) * size
        weight += size
    return np.where(weight > 0, total / np.maximum(weight, 1), nan)


def _ranks(values: Array, counts: Array) -> Array:
    """The mean rank of each value [N] in resamples that hold it `counts` [draws, N] times, [draws, N]."""
    _, place = np.unique(values, return_inverse=True)
    order = np.argsort(place, kind="stable")
    starts = np.flatnonzero(np.diff(place[order], prepend=-1))
    tied = np.add.reduceat(counts[:, order], starts, axis=1)
    return (np.cumsum(tied, axis=1) - tied / 2 - 0.5)[:, place]


def _correlated(a: Array, b: Array, counts: Array) -> Array:
    """Pearson's correlation of the rows of `a` and `b` with weights, [draws]; NaN where undefined."""
    n = counts.sum(1)
    middle = np.maximum(n, 1)[:, None]
    x, y = (each - (each * counts).sum(1, keepdims=True) / middle for each in (a, b))
    xy, xx, yy = ((counts * one * other).sum(1) for one, other in ((x, y), (x, x), (y, y)))
    # Ranks are multiples of a half: what does not vary at all leaves no more than rounding.
    defined = (n >= FEWEST) & (xx > 1e-6) & (yy > 1e-6)
    return np.where(defined, xy / np.sqrt(np.where(defined, xx * yy, 1.0)), nan)


def _wins(drawn: Array) -> list[float]:
    """The share of resamples in which each has the largest rho; ties share."""
    if not drawn.shape[1]:
        return [nan] * len(drawn)
    known = np.nan_to_num(drawn, nan=-2.0)
    first = known >= known.max(0) - 1e-12
    return [float(share) for share in (first / first.sum(0)).mean(1)]


def _interval(estimate: float, drawn: Array, ends: tuple[float, float]) -> Interval:
    low, high = np.quantile(drawn, ends) if len(drawn) and np.isfinite(estimate) else (nan, nan)
    return Interval(float(estimate), float(low), float(high))


def _codes(labels: Sequence[object]) -> NDArray[np.int64]:
    known: dict[object, int] = {}
    return np.array([known.setdefault(label, len(known)) for label in labels], dtype=np.int64)
