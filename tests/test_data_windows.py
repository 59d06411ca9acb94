"""Windows: all of them inside the text, in an order that only the seed decides."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from qbench.data.text import BadData
from qbench.data.windows import evaluation_windows, training_batches, window_digest

COUNTING = np.arange(1000)


def test_training_windows_are_runs_of_the_text() -> None:
    batches = list(training_batches(COUNTING, context=16, batch=4, steps=5, seed=0))
    assert len(batches) == 5
    for batch in batches:
        assert (batch.shape, batch.dtype) == ((4, 17), torch.int64)
        assert batch.diff(dim=1).eq(1).all()


def test_training_starts_everywhere_with_equal_chance() -> None:
    batches = torch.cat(list(training_batches(np.arange(20), context=4, batch=1600, steps=10, seed=3)))
    counts = np.bincount(batches[:, 0].numpy(), minlength=16)
    assert len(counts) == 16  # places 0 to 15: a window of 5 tokens from 15 ends with the last, 19
    assert stats.chisquare(counts).pvalue > 1e-4


def test_training_order_follows_the_seed_alone() -> None:
    def order(steps: int, seed: int) -> list[list[list[int]]]:
        return [batch.tolist() for batch in training_batches(COUNTING, 8, 3, steps, seed)]

    state = torch.get_rng_state()
    first = order(6, seed=1)
    assert torch.equal(torch.get_rng_state(), state)
    torch.rand(1)
    assert order(6, seed=1) == first
    assert order(4, seed=1) == first[:4]  # a shorter run sees the same beginning
    assert order(6, seed=2) != first


@given(length=st.integers(2, 300), context=st.integers(1, 40), n=st.integers(1, 40))
def test_evaluation_windows_are_spaced_evenly_and_apart_where_they_fit(length: int, context: int, n: int) -> None:
    tokens = np.arange(length)
    if length - context < n:
        with pytest.raises(BadData, match="tokens"):
            evaluation_windows(tokens, context, n)
        return
    windows = evaluation_windows(tokens, context, n)
    assert (windows.shape, windows.dtype) == ((n, context + 1), torch.int64)
    assert windows.diff(dim=1).eq(1).all()
    gaps = windows[:, 0].diff()
    assert windows[0, 0] == 0
    if n > 1:
        assert windows[-1, -1] == length - 1
        assert gaps.max() - gaps.min() <= 1
        assert gaps.min() >= (context + 1 if length >= n * (context + 1) else 1)


def test_bytes_become_int64() -> None:
    windows = evaluation_windows(np.frombuffer(b"\xff" * 9, np.uint8), context=3, n=2)
    assert windows.tolist() == [[255] * 4] * 2


def test_a_split_too_short_says_how_much_is_needed() -> None:
    for take in (
        lambda: evaluation_windows(np.arange(16), context=16, n=1),
        lambda: training_batches(np.arange(16), context=16, batch=1, steps=1, seed=0),  # at once, not at the first step
    ):
        with pytest.raises(BadData, match="has 16 tokens; a window of context 16 needs 17"):
            take()
    with pytest.raises(BadData, match="between 1 and 4 windows of 16 from 20 tokens, found 5"):
        evaluation_windows(np.arange(20), context=16, n=5)
    with pytest.raises(ValueError, match="at least 1 token, found 0"):
        evaluation_windows(np.arange(20), context=0, n=5)


def test_window_digest_follows_the_tokens() -> None:
    windows = evaluation_windows(COUNTING, context=8, n=4)
    assert window_digest(windows) == window_digest(windows.clone())
    assert window_digest(windows) != window_digest(windows[:3])
    assert window_digest(windows) != window_digest(windows + 1)
    assert window_digest(torch.tensor([[1, 2]])) == (  # the same on every machine
        "bcd15eedd16e38852376f0823ebe152d7d955bdbc5eb4746dbad20cf32a8ed47"
    )
