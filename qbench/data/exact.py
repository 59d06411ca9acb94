"""Procedural tasks as a model meets them: what a loss is about, and how many of its answers are right."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from qbench.data.procedural import Rows, Task

IGNORED = -100  # what cross_entropy takes for "no target here"


@dataclass(frozen=True, slots=True)
class Graded:
    """Of each row, float64 [N]: the share of exact predictions that are right, and 1 where all of them are.

    For `set` all are right if and only if the model, left to write the answer by itself one likeliest token at a time,
    writes the right one.
    """

    tokens: NDArray[np.float64]
    whole: NDArray[np.float64]


def targets(made: Task, windows: Tensor) -> Tensor:
    """What is to be predicted of windows int64 [N, T + 1]: int64 [N, T], -100 where a loss is not about it."""
    mask = torch.from_numpy(made.learned(_rows(made, windows))).to(windows.device)
    return windows[:, 1:].where(mask, torch.full_like(windows[:, 1:], IGNORED))


def with_targets(made: Task, batches: Iterable[Tensor]) -> Iterator[tuple[Tensor, Tensor]]:
    """Batches of windows [B, T + 1] as what is read and what is to be predicted, both int64 [B, T]."""
    return ((windows[:, :-1], targets(made, windows)) for windows in batches)


def graded(made: Task, windows: Tensor, guesses: Tensor) -> Graded:
    """How right `guesses` int64 [N, T] are, the likeliest tokens after each prefix of windows int64 [N, T + 1]."""
    rows = _rows(made, windows)
    if guesses.shape != windows[:, 1:].shape:
        raise ValueError(f"expected a guess for each of {tuple(windows[:, 1:].shape)}, found {tuple(guesses.shape)}")
    exact = made.exact(rows)
    right = exact & (guesses.cpu().numpy() == rows[:, 1:])
    found, asked = right.sum(axis=1), exact.sum(axis=1)
    return Graded(found / asked, (found == asked).astype(np.float64))


def _rows(made: Task, windows: Tensor) -> Rows:
    if windows.ndim != 2 or windows.shape[1] != made.context + 1:
        raise ValueError(f"expected windows [N, {made.context + 1}] of {made}, found {tuple(windows.shape)}")
    return windows.cpu().numpy().astype(np.uint8)
