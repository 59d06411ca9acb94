"""The block bootstrap of a mean: bias-corrected and accelerated bounds, and the p-values that they imply."""

from dataclasses import dataclass
from functools import lru_cache
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from qbench.stats.correlated import Array, Units

DRAWS = 2000
_NORMAL = NormalDist()


@dataclass(frozen=True, slots=True, eq=False)
class Resampled:
    """Means of resamples in order [draws], the bias z0 and the acceleration of B. Efron (1987).

    Better Bootstrap Confidence Intervals, Journal of the American Statistical Association 82.
    """

    means: Array
    bias: float
    acceleration: float

    def bound(self, level: float) -> float:
        """Where the true mean stays below with confidence `level`; the draws' own ends are the farthest there are."""
        z = self.bias + _NORMAL.inv_cdf(level)
        slack = 1 - self.acceleration * z
        place = _NORMAL.cdf(self.bias + z / slack) if slack > 0 else float(level > 0.5)
        return float(np.quantile(self.means, place))

    def below(self, value: float) -> float:
        """The confidence that the true mean is below `value`: the level whose bound it is, 0 or 1 beyond all draws."""
        rank = [float(np.searchsorted(self.means, value, side)) for side in ("left", "right")]
        place = sum(rank) / 2 / len(self.means)
        if not 0 < place < 1:
            return place
        w = _NORMAL.inv_cdf(place) - self.bias
        slack = 1 + self.acceleration * w
        return _NORMAL.cdf(w / slack - self.bias) if slack > 0 else float(w > 0)


def resampled(found: Units, seed: int) -> Resampled:
    """Resample blocks with replacement; the same seed draws the same blocks."""
    apart = found.parts - found.mean
    scale = float(np.abs(apart).max()) or 1.0
    # In units of the largest distance from the mean single precision is enough, and twice as fast.
    sums = np.sort(_counts(apart.size, seed) @ (apart / scale).astype(np.float32))
    less = (float((sums < 0).mean()) + float((sums <= 0).mean())) / 2
    spread = float((apart**2).sum())
    return Resampled(
        means=found.mean + sums.astype(np.float64) * (scale / apart.size),
        bias=_NORMAL.inv_cdf(min(max(less, 1 / DRAWS), 1 - 1 / DRAWS)),
        # The jackknife's influence of a mean is the distance from it, so this is a sixth of the mean's skewness.
        acceleration=float((apart**3).sum()) / (6 * spread**1.5) if spread > 0 else 0.0,
    )


@lru_cache(maxsize=16)
def _counts(units: int, seed: int) -> NDArray[np.float32]:
    """How often each resample holds each unit [draws, units], the same for every rule with as many units."""
    drawn = np.random.default_rng(seed).integers(units, size=(DRAWS, units), dtype=np.int32)
    rows = np.arange(DRAWS, dtype=np.int32)[:, None] * np.int32(units)
    return np.bincount((drawn + rows).ravel(), minlength=DRAWS * units).reshape(DRAWS, units).astype(np.float32)
