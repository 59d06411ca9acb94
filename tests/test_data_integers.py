"""The generator behind procedural data, against the published algorithm in Python's own whole numbers."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from qbench.data.integers import below, stream


def splitmix64(seed: int, count: int) -> list[int]:
    """As Vigna's public-domain splitmix64.c has it."""
    state, found = seed % 2**64, []
    for _ in range(count):
        state = (state + 0x9E3779B97F4A7C15) % 2**64
        z = state
        z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
        z = (z ^ (z >> 27)) * 0x94D049BB133111EB % 2**64
        found.append(z ^ (z >> 31))
    return found


def test_the_published_outputs() -> None:
    published = [
        6457827717110365317,
        3203168211198807973,
        9817491932198370423,
        4593380528125082431,
        16408922859458223821,
    ]
    assert stream(1234567, 0, 5).tolist() == published == splitmix64(1234567, 5)


@given(seed=st.integers(0, 2**64 - 1), start=st.integers(0, 50), count=st.integers(0, 50))
def test_any_part_of_the_stream_without_the_rest(seed: int, start: int, count: int) -> None:
    assert stream(seed, start, count).tolist() == splitmix64(seed, start + count)[start:]


@given(word=st.integers(0, 2**64 - 1), bound=st.integers(1, 2**32))
def test_below_a_bound_is_exact(word: int, bound: int) -> None:
    assert below(bound, np.array([word], dtype=np.uint64)).tolist() == [(word >> 32) * bound >> 32]


@pytest.mark.parametrize("bound", [2, 3, 99, 100])
def test_every_number_is_equally_likely(bound: int) -> None:
    counts = np.bincount(below(bound, stream(7, 0, 200_000)).astype(np.int64), minlength=bound)
    assert len(counts) == bound
    assert stats.chisquare(counts).pvalue > 1e-4


def test_a_bound_out_of_reach_is_refused() -> None:
    for bound in (0, 2**32 + 1):
        with pytest.raises(ValueError, match="between 1 and 2"):
            below(bound, stream(0, 0, 1))
