"""Bounds of a mean whose values are skewed: the widest of several, wider still where few values hide their tail."""

from dataclasses import dataclass
from math import cbrt, sqrt
from statistics import NormalDist
from typing import Protocol

from qbench.stats.correlated import Units
from qbench.stats.interval import student_t_below, student_t_quantile

_NORMAL = NormalDist()
_SURE = 1e-12  # probabilities are kept so far from 0 and 1
HIDDEN = 1.75  # found by simulation on lognormal values from 16 units up: one-sided bounds then hold their level


class Bounds(Protocol):
    """Bounds at every level: `bound(0.95)` is above the true mean in 95 % of all samples."""

    def bound(self, level: float) -> float: ...

    def below(self, value: float) -> float:
        """The confidence that the true mean lies below `value`: the level whose bound it is."""
        ...


@dataclass(frozen=True, slots=True)
class Skewed:
    """Student's t, its variable t' = t + k t^2/3 + k^2 t^3/27 + k/6 where k is `skewness` / sqrt(units).

    P. Hall, On the Removal of Skewness by Transformation (1992). Without skewness it is the usual interval.
    """

    mean: float
    standard_error: float
    freedom: int
    k: float = 0.0

    @classmethod
    def of(cls, found: Units) -> "Skewed":
        """With the sample's own skewness; the mean of at least two units."""
        apart = found.parts - found.mean
        power = float((apart**2).mean())
        skewness = float((apart**3).mean()) / power**1.5 if power > 0 else 0.0
        return cls(found.mean, found.standard_error, len(apart) - 1, skewness / sqrt(len(apart)))

    def bound(self, level: float) -> float:
        x = student_t_quantile(1 - level, self.freedom)
        # t' is a cube: 1 + k (t' - k/6) = (1 + k t / 3)^3.
        t = 3 / self.k * (cbrt(1 + self.k * (x - self.k / 6)) - 1) if abs(self.k) > 1e-6 else x
        return self.mean - t * self.standard_error

    def below(self, value: float) -> float:
        if self.standard_error == 0:
            return 0.5 if value == self.mean else float(value > self.mean)
        t = (self.mean - value) / self.standard_error
        return 1 - student_t_below(t + self.k * t**2 / 3 + self.k**2 * t**3 / 27 + self.k / 6, self.freedom)


@dataclass(frozen=True, slots=True)
class Widest:
    """The most cautious of several bounds, each with its normal quantile stretched by 1 + 1.75 / sqrt(values).

    A small sample of skewed values seldom holds their tail, so its own skewness is too small to correct for it.
    `independent` is how many blocks of neighbours there are, `share` how much of the standard error is theirs.
    """

    of: tuple[Bounds, ...]
    independent: float
    share: float = 1.0

    @property
    def stretch(self) -> float:
        return 1 + HIDDEN * self.share / sqrt(self.independent)

    def low(self, level: float) -> float:
        """Below the true mean in all but `level` of all samples."""
        return min(one.bound(_NORMAL.cdf(_NORMAL.inv_cdf(level) * self.stretch)) for one in self.of)

    def high(self, level: float) -> float:
        """Above the true mean in all but `level` of all samples."""
        return max(one.bound(1 - _NORMAL.cdf(_NORMAL.inv_cdf(level) * self.stretch)) for one in self.of)

    def p_above(self, value: float) -> float:
        """The level whose `high` is `value`: the p-value of a true mean of `value` or more."""
        return self._relaxed(1 - min(one.below(value) for one in self.of))

    def p_below(self, value: float) -> float:
        """The level whose `low` is `value`: the p-value of a true mean of `value` or less."""
        return self._relaxed(max(one.below(value) for one in self.of))

    def _relaxed(self, level: float) -> float:
        return _NORMAL.cdf(_NORMAL.inv_cdf(min(max(level, _SURE), 1 - _SURE)) / self.stretch)
