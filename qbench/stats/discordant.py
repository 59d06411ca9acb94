"""Exact tests and score intervals for pairs of right and wrong answers: only the pairs that differ say anything."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import copysign, lgamma, log, sqrt
from statistics import NormalDist
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from qbench.stats.correlated import Array, numbers
from qbench.stats.interval import Interval

Flags = Sequence[bool] | Sequence[int] | Sequence[float] | NDArray[Any]


class Exact(NamedTuple):
    """`p` is two-sided, `p_worse` the chance of so many worse pairs if neither side were worse."""

    p: float
    p_worse: float
    worse: int
    better: int
    n: int


def mcnemar(wrong_a: Flags, wrong_b: Flags) -> Exact:
    """Exact McNemar test: is b wrong where a was right more often than the reverse? Values are 0 or 1, in pairs.

    Q. McNemar (1947), exact in its binomial form. Raises ValueError where lengths differ or a value is neither.
    """
    worse, better, n = discordant(wrong_a, wrong_b)
    return _signs(worse, better, n)


def sign_test(differences: Sequence[float] | Array) -> Exact:
    """Exact test of as many differences above 0 (worse) as below; ties are left out (W. Dixon, A. Mood 1946)."""
    found = numbers(differences)
    return _signs(int((found > 0).sum()), int((found < 0).sum()), found.size)


def discordant(wrong_a: Flags, wrong_b: Flags) -> tuple[int, int, int]:
    """Pairs where only b is wrong, where only a is, and all."""
    a, b = _flags(wrong_a), _flags(wrong_b)
    if a.size != b.size:
        raise ValueError(f"items come in pairs, found {a.size} of a and {b.size} of b")
    return int((b & ~a).sum()), int((a & ~b).sum()), int(a.size)


@dataclass(frozen=True, slots=True)
class Score:
    """Score tests and intervals of the difference of two error rates over the same n items.

    T. Tango, Equivalence Test and Confidence Interval for the Difference in Proportions for the Paired-Sample Design
    (1998): the variance is the one most likely if the tested difference were true, so that it is never 0 by chance.
    The observed difference is moved half an item towards the tested one; without that the test exceeds its level.
    """

    worse: int
    better: int
    n: int

    @classmethod
    def of(cls, wrong_a: Flags, wrong_b: Flags) -> "Score":
        """Of b's error rate minus a's; ValueError as `mcnemar`."""
        return cls(*discordant(wrong_a, wrong_b))

    @property
    def standard_error(self) -> float:
        """Of the observed difference."""
        gap = self.worse - self.better
        return sqrt(max(self.worse + self.better - gap**2 / self.n, 0.0)) / self.n

    def z(self, difference: float) -> float:
        """How many standard errors the observation lies above `difference`."""
        if not -1 < difference < 1:
            raise ValueError(f"error rates differ by less than 1, found {difference}")
        gap = self.worse - self.better - self.n * difference
        apart = max(abs(gap) - 0.5, 0.0)
        variance = self.n * (2 * self._only_a_wrong(difference) + difference * (1 - difference))
        return copysign(apart / sqrt(variance), gap) if apart and variance > 0 else 0.0

    def interval(self, level: float) -> Interval:
        """The differences that tests at one-sided `level` do not reject, by bisection."""
        z, middle = NormalDist().inv_cdf(1 - level), (self.worse - self.better) / self.n
        return Interval(middle, self._crossing(-1.0, middle, z), self._crossing(middle, 1.0, -z))

    def p_above(self, difference: float) -> float:
        """The p-value of a true difference of `difference` or more."""
        return NormalDist().cdf(self.z(difference))

    def p_below(self, difference: float) -> float:
        """The p-value of a true difference of `difference` or less."""
        return NormalDist().cdf(-self.z(difference))

    def _only_a_wrong(self, difference: float) -> float:
        """The chance of it that makes the counts most likely, if b is wrong `difference` more often."""
        b = -self.worse - self.better + (2 * self.n - self.worse + self.better) * difference
        c = -self.better * difference * (1 - difference)
        return max((sqrt(max(b * b - 8 * self.n * c, 0.0)) - b) / (4 * self.n), 0.0, -difference)

    def _crossing(self, low: float, high: float, z: float) -> float:
        for _ in range(60):
            middle = (low + high) / 2
            low, high = (middle, high) if self.z(middle) > z else (low, middle)
        return (low + high) / 2


def _signs(worse: int, better: int, n: int) -> Exact:
    tail = _at_least(worse, worse + better)
    other = _at_least(better, worse + better)
    return Exact(min(1.0, 2 * min(tail, other)), tail, worse, better, n)


def _at_least(k: int, n: int) -> float:
    """P(X >= k) of n fair coins."""
    if k <= 0:
        return 1.0
    logs = [lgamma(n + 1) - lgamma(j + 1) - lgamma(n - j + 1) - n * log(2) for j in range(k, n + 1)]
    return min(1.0, float(np.exp(logs).sum()))


def _flags(values: Flags) -> NDArray[np.bool_]:
    found = numbers(np.asarray(values, dtype=np.float64))
    if odd := int(((found != 0) & (found != 1)).sum()):
        raise ValueError(f"right and wrong are 0 and 1, found {odd} other values")
    return found == 1
