"""Which points no other point beats in both bits and cost."""

from collections.abc import Sequence


def front(points: Sequence[tuple[float, float]]) -> list[int]:
    """Indices of the points (bits, cost) that no other dominates, by rising bits; lower is better in both.

    A point is dominated when another is no worse in both and better in one; equal points stand together.

    >>> front([(4.0, 0.3), (8.0, 0.1), (8.0, 0.2), (3.0, 0.9), (6.0, 0.3)])
    [3, 0, 1]
    """
    best = float("inf")
    bits_of_best = float("inf")
    chosen: list[int] = []
    for index in sorted(range(len(points)), key=lambda i: (*points[i], i)):
        bits, cost = points[index]
        if cost < best or (cost == best and bits == bits_of_best):
            chosen.append(index)
            best, bits_of_best = cost, bits
    return chosen
