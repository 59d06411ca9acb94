"""Windows of one text are not independent: how far they remember each other, and blocks that stand for themselves."""

from collections.abc import Sequence
from math import ceil, log10, sqrt
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
HIDDEN = 2  # neighbours that stay together unless told otherwise: few values do not show that they are correlated
QUIET = 5  # so many lags without correlation in a row are its end
HUGE = 1e100  # beyond it, cubes overflow
MANY = 512  # units beyond which nothing is gained: neighbours are joined, the mean stays what it is


class Units(NamedTuple):
    """Sums [units] over blocks of neighbours and how many values each has [units]; sizes differ by at most one."""

    sums: Array
    sizes: Array
    block: int  # values that stay together for their correlation; a unit may hold several such blocks

    @property
    def independent(self) -> float:
        """How many blocks there are, however many of them are joined to a unit."""
        return float(self.sizes.sum()) / self.block

    @property
    def mean(self) -> float:
        return float(self.sums.sum() / self.sizes.sum())

    @property
    def parts(self) -> Array:
        """Independent values [units] whose mean is the mean, and whose spread is its spread times sqrt(units)."""
        return self.mean + (self.sums - self.mean * self.sizes) / self.sizes.mean()

    @property
    def standard_error(self) -> float:
        """Of the mean; 0 for a single unit, whose spread cannot be known."""
        return spread(self.parts) / sqrt(len(self.sums))


def numbers(values: Sequence[float] | Array) -> Array:
    """The values as float64 [N]; ValueError where there are none, or some are not finite or beyond 1e100."""
    found = np.asarray(values, dtype=np.float64)
    if found.ndim != 1 or not found.size:
        raise ValueError(f"needs at least one value in one row, found an array of shape {found.shape}")
    if broken := int((~(np.abs(found) < HUGE)).sum()):
        raise ValueError(f"{broken} of {found.size} values are NaN or infinite; nothing can be concluded from the rest")
    return found


def spread(values: Array) -> float:
    """The standard deviation; 0 for a single value, and where values differ by no more than rounding."""
    found = float(values.std(ddof=1)) if values.size > 1 else 0.0
    return found if found > 1e-12 * float(np.abs(values).max()) else 0.0


def units(values: Sequence[float] | Array, block: int | None = None) -> Units:
    """Blocks of `block` neighbours, by default as many as the values themselves call for; at most 512 of them."""
    found = numbers(values)
    length = max(HIDDEN, block_length(found)) if block is None else block
    if length < 1:
        raise ValueError(f"a block has at least one value, found {length}")
    count = max(1, min(MANY, found.size // length))
    edges = np.arange(count + 1) * found.size // count
    return Units(np.add.reduceat(found, edges[:-1]), np.diff(edges).astype(np.float64), length)


def block_length(values: Sequence[float] | Array) -> int:
    """The block length that suits the values' autocorrelation; 1 where none is seen.

    D. Politis, H. White, Automatic Block-Length Selection for the Dependent Bootstrap (2004), with the correction of
    A. Patton, D. Politis, H. White (2009), for the circular block bootstrap; rounded up.
    """
    found = numbers(values)
    n = found.size
    longest = min(ceil(sqrt(n)) + QUIET, n - 1)
    correlations = _correlations(found, longest)
    bound = 2 * sqrt(log10(n) / n) if n > 1 else 1.0
    last = next((k for k in range(longest) if (np.abs(correlations[k + 1 : k + 1 + QUIET]) < bound).all()), longest)
    if not last:
        return 1
    lag = np.arange(-min(2 * last, longest), min(2 * last, longest) + 1)
    window = np.minimum(1, 2 * (1 - np.abs(lag) / lag[-1])) if lag[-1] > 1 else np.ones(3)
    weighed = window * correlations[np.abs(lag)]
    slope, level = float((np.abs(lag) * weighed).sum()), float(weighed.sum())
    length = (2 * slope**2 / (4 / 3 * level**2)) ** (1 / 3) * n ** (1 / 3) if level > 0 else 1.0
    return max(1, min(ceil(length), ceil(min(3 * sqrt(n), n / 3))))


def design_effect(values: Sequence[float] | Array, block: int | None = None) -> float:
    """Variance of the mean by blocks over what independent values would give; 1 where there is no spread at all.

    n values of design effect d say as much as n / d independent ones (L. Kish, Survey Sampling, 1965).
    """
    found = numbers(values)
    alone, grouped = spread(found) / sqrt(found.size), units(found, block)
    return (grouped.standard_error / alone) ** 2 if alone > 0 and len(grouped.sums) > 1 else 1.0


def _correlations(values: Array, longest: int) -> Array:
    """Autocorrelation at lags 0 to `longest`; 0 where the values do not vary."""
    apart = values - values.mean()
    power = float(apart @ apart)
    if not spread(values):
        return np.zeros(longest + 1)
    return np.array([float(apart[: values.size - k] @ apart[k:]) / power for k in range(longest + 1)])
