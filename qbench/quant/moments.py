"""Central moments up to the fourth, measured in two passes and merged exactly."""

from dataclasses import dataclass

import torch
from torch import Tensor

# A row whose spread is this small beside its mean is constant up to float64 rounding: it has no kurtosis.
CONSTANT = 1e-12


@dataclass(frozen=True, slots=True)
class Moments:
    """`n` values for each entry: their mean, and the sums of the powers 2, 3, 4 of their deviations from it.

    All four tensors are float64 and of one shape, the shape of what was measured without the axis measured along.
    """

    n: int
    mean: Tensor
    m2: Tensor
    m3: Tensor
    m4: Tensor

    def viewed(self, *shape: int) -> "Moments":
        """The same entries in another shape."""
        return Moments(self.n, *(part.view(shape) for part in (self.mean, self.m2, self.m3, self.m4)))

    def cpu(self) -> "Moments":
        return Moments(self.n, *(part.cpu() for part in (self.mean, self.m2, self.m3, self.m4)))

    @property
    def varies(self) -> Tensor:
        """Where there is any spread, and so a kurtosis; boolean."""
        return self.m2 > self.n * (CONSTANT * self.mean).square()

    @property
    def power(self) -> Tensor:
        """The mean square, not centred."""
        return self.m2 / self.n + self.mean.square()

    @property
    def excess_kurtosis(self) -> Tensor:
        """m4 / m2^2 - 3 with the biased moments of the textbook; NaN where nothing varies."""
        return torch.where(self.varies, self.n * self.m4 / self.m2.square() - 3, torch.nan)


def moments(x: Tensor, dim: int) -> Moments:
    """The moments of float64 `x` along `dim`, around the mean: raw moments would lose them to a large mean."""
    mean = x.mean(dim, keepdim=True)
    deviation = x - mean
    squared = deviation.square()
    m2, m3 = squared.sum(dim), deviation.mul_(squared).sum(dim)
    return Moments(x.shape[dim], mean.squeeze(dim), m2, m3, squared.square_().sum(dim))


def merge(a: Moments, b: Moments) -> Moments:
    """The moments of the values of both, entry by entry."""
    n = a.n + b.n
    mean = (a.n * a.mean + b.n * b.mean) / n
    sums = [p + q for p, q in zip(_about(a, mean), _about(b, mean), strict=True)]
    return Moments(n, mean, *sums)


def pool(groups: Moments, dim: int) -> Moments:
    """The moments of all values of the groups along `dim` together."""
    mean = groups.mean.mean(dim, keepdim=True)
    sums = [p.sum(dim) for p in _about(groups, mean)]
    return Moments(groups.n * groups.mean.shape[dim], mean.squeeze(dim), *sums)


def _about(group: Moments, centre: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The sums of powers around another centre (P. Pebay, Sandia report SAND2008-6212, 2008): nothing cancels."""
    n, d = group.n, group.mean - centre
    m2 = group.m2 + n * d**2
    m3 = group.m3 + 3 * group.m2 * d + n * d**3
    m4 = group.m4 + 4 * group.m3 * d + 6 * group.m2 * d**2 + n * d**4
    return m2, m3, m4
