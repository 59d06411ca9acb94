"""How well a model solves procedural problems: its loss, and how many of the answers that are exact are right."""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from qbench.data.exact import IGNORED, graded, targets
from qbench.data.procedural import Task
from qbench.evaluate.likelihood import BATCH, largest
from qbench.evaluate.sensitivity import Judge, Scores

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False)
class Solved:
    """Of each problem, float64 [N].

    `losses` nats and `errors` share of wrong guesses over the predictions that are learned; `wrong` the share of those
    with one right answer that are not right, `unsolved` 1 where any of these is not.
    """

    losses: Floats
    errors: Floats
    wrong: Floats
    unsolved: Floats


@torch.no_grad()
def solve(model: nn.Module, windows: Tensor, task: Task, batch: int = BATCH) -> Solved:
    """Score problems int64 [N, T + 1]: the first T tokens are read, those that the task asks for predicted."""
    device = next(model.parameters()).device
    losses: list[Tensor] = []
    errors: list[Tensor] = []
    guesses: list[Tensor] = []
    for part in windows.split(batch):
        asked = targets(task, part)
        logits = model(part[:, :-1].to(device))
        each, counts = _each(logits, asked.to(device))
        guesses.append(largest(logits.flatten(0, 1)).view(asked.shape).cpu())
        losses.append(each.cpu() / counts.cpu())
        errors.append(((guesses[-1] != asked) & (asked != IGNORED)).double().sum(1) / counts.cpu())
    found = graded(task, windows, torch.cat(guesses))
    return Solved(torch.cat(losses).numpy(), torch.cat(errors).numpy(), 1 - found.tokens, 1 - found.whole)


def _each(logits: Tensor, asked: Tensor) -> tuple[Tensor, Tensor]:
    """Summed loss of each problem, float64 [B], and of how many predictions."""
    wide = logits.flatten(0, 1).to(torch.promote_types(logits.dtype, torch.float32))
    each = cross_entropy(wide, asked.flatten(), reduction="none", ignore_index=IGNORED)
    return each.view(asked.shape).double().sum(1), (asked != IGNORED).sum(1)


def _losses(logits: Tensor, _clean: Tensor, batch: tuple[Tensor, Tensor]) -> Scores:
    total, counts = _each(logits, batch[1])
    return {"loss": total / counts}


PROBLEMS = Judge(lambda model, batch: model(batch[0]), _losses)  # of tokens [B, T] and what to predict, or IGNORED
