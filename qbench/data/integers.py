"""Random whole numbers that are the same on every machine and in every release: no library's generator, no floats.

SplitMix64 (Steele, Lea, Flood 2014, "Fast splittable pseudorandom number generators"): output i of a seed is a mix of
`seed + (i + 1) * GAMMA` modulo 2^64, so that any part of the stream can be had without the rest.
"""

import numpy as np
from numpy.typing import NDArray

Words = NDArray[np.uint64]

GAMMA = np.uint64(0x9E3779B97F4A7C15)
_FIRST, _SECOND = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)


def stream(seed: int, start: int, count: int) -> Words:
    """Outputs `start` to before `start + count` of SplitMix64 seeded with `seed` (taken modulo 2^64).

    >>> [int(word) for word in stream(1234567, 0, 3)]
    [6457827717110365317, 3203168211198807973, 9817491932198370423]
    """
    places = np.arange(start + 1, start + 1 + count, dtype=np.uint64)
    return _mixed(places * GAMMA + np.uint64(seed % 2**64))


def below(bound: int, words: Words) -> Words:
    """Whole numbers from 0 to before `bound`, one for each word: its upper half times `bound`, without the remainder.

    Each has a share of 1 / bound to within 2^-32.
    """
    if not 1 <= bound <= 2**32:
        raise ValueError(f"a bound lies between 1 and 2^32, found {bound}")
    return ((words >> np.uint64(32)) * np.uint64(bound)) >> np.uint64(32)


def _mixed(words: Words) -> Words:
    words = (words ^ (words >> np.uint64(30))) * _FIRST
    words = (words ^ (words >> np.uint64(27))) * _SECOND
    return words ^ (words >> np.uint64(31))
