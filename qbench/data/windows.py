"""Windows of tokens, in an order that only the seed decides: what a model is trained and judged on."""

from collections.abc import Iterator
from hashlib import sha256

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from qbench.data.text import BadData, Tokens, available


def training_batches(tokens: Tokens, context: int, batch: int, steps: int, seed: int) -> Iterator[Tensor]:
    """`steps` batches, int64 [batch, context + 1], of windows that start anywhere with equal chance, or of whole rows.

    The last token of a window is only ever predicted. The order depends on the seed alone: fewer steps are the
    first of more, and the global random state is neither read nor moved.

    Raises:
        BadData: `tokens` is shorter than one window, or its rows are no windows of this context.
    """
    starts = available(tokens, context)
    generator = torch.Generator().manual_seed(seed)
    return (
        _windows(tokens, torch.randint(starts, (batch,), generator=generator).numpy(), context) for _ in range(steps)
    )


def evaluation_windows(tokens: Tokens, context: int, n: int) -> Tensor:
    """`n` windows, int64 [n, context + 1], evenly spaced from the first token to the last; apart where they fit.

    Raises:
        BadData: `tokens` has fewer than `n` different windows, or its rows are no windows of this context.
    """
    starts = available(tokens, context)
    if not 1 <= n <= starts:
        raise BadData(f"expected between 1 and {starts} windows of {context} from {tokens.size} tokens, found {n}")
    return _windows(tokens, np.arange(n) * (starts - 1) // max(n - 1, 1), context)


def window_digest(windows: Tensor) -> str:
    """The hash of the windows' shape and tokens: equal digests were judged on the same text.

    >>> window_digest(torch.zeros(1, 2, dtype=torch.int64)) == window_digest(torch.zeros(2, 1, dtype=torch.int64))
    False
    """
    tokens = windows.numpy().astype("<i8")
    return sha256(repr(tokens.shape).encode() + tokens.tobytes()).hexdigest()


def _windows(tokens: Tokens, starts: NDArray[np.int64], context: int) -> Tensor:
    if tokens.ndim == 2:
        return torch.from_numpy(tokens[starts].astype(np.int64))
    return torch.from_numpy(tokens[starts[:, None] + np.arange(context + 1)].astype(np.int64))
