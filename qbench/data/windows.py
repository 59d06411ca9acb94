"""Windows of tokens, in an order that only the seed decides: what a model is trained and judged on."""

from collections.abc import Iterator
from hashlib import sha256
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from qbench.data.text import BadData

Tokens = NDArray[np.integer[Any]]  # 1-D


def training_batches(tokens: Tokens, context: int, batch: int, steps: int, seed: int) -> Iterator[Tensor]:
    """`steps` batches, int64 [batch, context + 1], of windows that start anywhere with equal chance.

    The last token of a window is only ever predicted. The order depends on the seed alone: fewer steps are the
    first of more, and the global random state is neither read nor moved.

    Raises:
        BadData: `tokens` is shorter than one window.
    """
    starts = _starts(tokens, context)
    generator = torch.Generator().manual_seed(seed)
    return (
        _windows(tokens, torch.randint(starts, (batch,), generator=generator).numpy(), context) for _ in range(steps)
    )


def evaluation_windows(tokens: Tokens, context: int, n: int) -> Tensor:
    """`n` windows, int64 [n, context + 1], evenly spaced from the first token to the last; apart where they fit.

    Raises:
        BadData: `tokens` has fewer than `n` different windows.
    """
    starts = _starts(tokens, context)
    if not 1 <= n <= starts:
        raise BadData(f"expected between 1 and {starts} windows of {context} from {len(tokens)} tokens, found {n}")
    return _windows(tokens, np.arange(n) * (starts - 1) // max(n - 1, 1), context)


def window_digest(windows: Tensor) -> str:
    """The hash of the windows' shape and tokens: equal digests were judged on the same text.

    >>> window_digest(torch.zeros(1, 2, dtype=torch.int64)) == window_digest(torch.zeros(2, 1, dtype=torch.int64))
    False
    """
    tokens = windows.numpy().astype("<i8")
    return sha256(repr(tokens.shape).encode() + tokens.tobytes()).hexdigest()


def _starts(tokens: Tokens, context: int) -> int:
    """How many places a window can start at."""
    if context < 1:
        raise ValueError(f"a window needs a context of at least 1 token, found {context}")
    if len(tokens) <= context:
        raise BadData(
            f"this split has {len(tokens)} tokens; a window of context {context} needs {context + 1}: "
            "give more text or a shorter context"
        )
    return len(tokens) - context


def _windows(tokens: Tokens, starts: NDArray[np.int64], context: int) -> Tensor:
    return torch.from_numpy(tokens[starts[:, None] + np.arange(context + 1)].astype(np.int64))
