"""Confidence intervals for means, differences and ratios over a few seeds or many windows."""

from collections.abc import Sequence
from functools import lru_cache
from math import atan, cos, exp, inf, log, pi, sin, sqrt, tan
from statistics import NormalDist, fmean, stdev
from typing import NamedTuple


class Interval(NamedTuple):
    """An estimate with the ends of its confidence interval, which are infinite for a single value: it has no spread."""

    estimate: float
    low: float
    high: float


def mean_interval(values: Sequence[float], confidence: float = 0.95) -> Interval:
    """The mean of independent values with Student's t interval; raises ValueError when there are none.

    >>> [round(v, 4) for v in mean_interval([1.0, 2.0, 3.0])]
    [2.0, -0.4841, 4.4841]
    """
    if not values:
        raise ValueError("the mean of no values is undefined")
    mean = fmean(values)
    if len(values) == 1:
        return Interval(mean, -inf, inf)
    reach = student_t_quantile((1 + confidence) / 2, len(values) - 1) * stdev(values) / sqrt(len(values))
    return Interval(mean, mean - reach, mean + reach)


def difference_interval(a: Sequence[float], b: Sequence[float], confidence: float = 0.95) -> Interval:
    """Mean of a - b over pairs (the same seed, the same window), with its t interval."""
    return mean_interval([x - y for x, y in zip(a, b, strict=True)], confidence)


def ratio_interval(a: Sequence[float], b: Sequence[float], confidence: float = 0.95) -> Interval | None:
    """Geometric mean of a / b over pairs, with the t interval of its logarithm; None unless all values are positive.

    >>> ratio_interval([2.0, 8.0], [1.0, 0.0]) is None
    True
    """
    pairs = list(zip(a, b, strict=True))
    if any(min(pair) <= 0 for pair in pairs):
        return None
    mean, low, high = mean_interval([log(x / y) for x, y in pairs], confidence)
    return Interval(exp(mean), exp(low), exp(high) if high < 700 else inf)


@lru_cache
def student_t_quantile(p: float, freedom: int) -> float:
    """Where Student's t with `freedom` degrees stays below with probability p (0 < p < 1), good to 1e-9.

    >>> round(student_t_quantile(0.975, 2), 4)
    4.3027
    """
    if not 0 < p < 1 or freedom < 1:
        raise ValueError(f"needs 0 < p < 1 and at least one degree of freedom, found {p} and {freedom}")
    if p < 0.5:
        return -student_t_quantile(1 - p, freedom)
    if freedom > 200:
        return _large_sample(NormalDist().inv_cdf(p), freedom)
    low, high = 0.0, pi / 2
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if _within(middle, freedom) < 2 * p - 1 else (low, middle)
    return tan((low + high) / 2) * sqrt(freedom)


def student_t_below(t: float, freedom: int) -> float:
    """The chance that Student's t with `freedom` degrees stays below t, the inverse of the quantile.

    >>> round(student_t_below(4.3027, 2), 4)
    0.975
    """
    if freedom < 1:
        raise ValueError(f"needs at least one degree of freedom, found {freedom}")
    inside = _within(atan(abs(t) / sqrt(freedom)), freedom)
    return (1 + inside) / 2 if t > 0 else (1 - inside) / 2


def _within(angle: float, freedom: int) -> float:
    """P(|T| < sqrt(freedom) tan(angle)), a finite sum (Abramowitz and Stegun 26.7.3 and 26.7.4)."""
    odd = freedom % 2
    term = cos(angle) if odd else 1.0
    total = 0.0
    for k in range(freedom // 2):
        total += term
        term *= cos(angle) ** 2 * ((2 * k + 2) / (2 * k + 3) if odd else (2 * k + 1) / (2 * k + 2))
    return (angle + sin(angle) * total) * 2 / pi if odd else sin(angle) * total


def _large_sample(x: float, freedom: int) -> float:
    """The normal quantile x corrected in powers of 1/freedom (Abramowitz and Stegun 26.7.5)."""
    g1 = (x**3 + x) / 4
    g2 = (5 * x**5 + 16 * x**3 + 3 * x) / 96
    g3 = (3 * x**7 + 19 * x**5 + 17 * x**3 - 15 * x) / 384
    g4 = (79 * x**9 + 776 * x**7 + 1482 * x**5 - 1920 * x**3 - 945 * x) / 92160
    return x + g1 / freedom + g2 / freedom**2 + g3 / freedom**3 + g4 / freedom**4
