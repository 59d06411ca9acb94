"""Ranks that say what they do not know: rows whose intervals overlap share their places."""

from bisect import bisect_left, bisect_right
from collections.abc import Sequence

Ends = tuple[float, float]


def ranks(intervals: Sequence[Ends]) -> list[tuple[int, int]]:
    """Best and worst place of each row, lower is better: no worse than 1 + the rows that lie wholly below it.

    >>> ranks([(1, 2), (1.5, 3), (4, 5)])
    [(1, 2), (1, 2), (3, 3)]
    """
    lows, highs = sorted(low for low, _ in intervals), sorted(high for _, high in intervals)
    return [(1 + bisect_left(highs, low), bisect_right(lows, high)) for low, high in intervals]


def spoken(rank: tuple[int, int]) -> str:
    """
    >>> spoken((2, 2)), spoken((1, 3))
    ('2', '1–3')
    """
    return str(rank[0]) if rank[0] == rank[1] else f"{rank[0]}–{rank[1]}"
