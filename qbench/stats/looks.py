"""Planned looks at growing data: which windows each one adds, so that what was measured is never measured again."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Places = NDArray[np.int64]


def spread(n: int, total: int) -> Places:
    """`n` of `total` places, evenly spaced from the first to the last.

    >>> spread(3, 9).tolist(), spread(1, 5).tolist()
    ([0, 4, 8], [0])
    """
    return np.arange(n) * (total - 1) // max(n - 1, 1)


def added(looks: Sequence[int], look: int) -> Places:
    """The places, among the windows of the last look, of those that `look` (from 1) is the first to measure; ascending.

    Every look sees windows that lie evenly over the text, those of the one before among them. Raises ValueError for
    looks that do not grow, and for one that is not planned.

    >>> added((2, 3, 5), 1).tolist(), added((2, 3, 5), 2).tolist(), added((2, 3, 5), 3).tolist()
    ([0, 4], [2], [1, 3])
    """
    if list(looks) != sorted(set(looks)) or not 1 <= look <= len(looks) or looks[0] < 1:
        raise ValueError(f"look {look} is none of the planned ones, at {tuple(looks)} windows")
    return np.setdiff1d(_seen(looks, look), _seen(looks, look - 1)) if look > 1 else _seen(looks, 1)


def _seen(looks: Sequence[int], look: int) -> Places:
    """All that was measured once `look` is."""
    places = np.arange(looks[-1])
    for n in reversed(looks[look - 1 : -1]):
        places = places[spread(n, len(places))]
    return places
