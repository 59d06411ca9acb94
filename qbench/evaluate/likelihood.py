"""How well a model predicts held-out text: cross-entropy and errors by window, so that differences are paired."""

from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from math import log

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from qbench.data.passages import Windows
from qbench.evaluate.pieces import MOST, divided, pieces, vocabulary
from qbench.models.headroom import free_memory, gigabytes

BATCH = 32  # windows a forward pass; per-tensor scales see batches of this shape
OTHER_BATCH = 7  # for the numerical floor: other matrix shapes, so other summation orders
POSITIONS = 4  # ranges of a window: does a cost grow with the context?


@dataclass(frozen=True, slots=True)
class Likelihood:
    """Mean cross-entropy (nats per token) and error rate of each window, in order.

    Of `Windows`, where not every prediction may count, also how many do, `counts` [N], and the cross-entropy of each
    prediction, `each` [N, T], NaN where it does not count.
    """

    losses: np.ndarray
    errors: np.ndarray
    counts: np.ndarray | None = None
    each: np.ndarray | None = None

    @property
    def loss(self) -> float:
        """The mean over predictions."""
        return self._mean(self.losses)

    @property
    def error_rate(self) -> float:
        return self._mean(self.errors)

    def by_position(self) -> np.ndarray:
        """Mean loss of each window in four ranges of its predictions, [N, 4]; NaN where none of a range counts."""
        if self.each is None:
            raise ValueError("losses by position are kept for Windows; a plain tensor of tokens was scored")
        parts = np.array_split(self.each, POSITIONS, axis=1)
        counts = np.stack([np.isfinite(part).sum(1) for part in parts], axis=1)
        sums = np.stack([np.nansum(part, axis=1) for part in parts], axis=1)
        return np.where(counts > 0, sums / np.maximum(counts, 1), np.nan)

    def _mean(self, of_windows: np.ndarray) -> float:
        return float(of_windows.mean() if self.counts is None else np.average(of_windows, weights=self.counts))


@torch.no_grad()
def likelihood(model: nn.Module, windows: Tensor | Windows, batch: int = BATCH) -> Likelihood:
    """Score windows [N, T + 1]: the first T tokens are read, the last T predicted. Sums are float64.

    Of `Windows` only what is to be scored counts. Where a model has states and a head, at most 2^24 logits are in
    memory at a time.
    """
    given = windows.tokens if isinstance(windows, Windows) else windows
    device = next(model.parameters()).device
    losses: list[Tensor] = []
    wrong: list[Tensor] = []
    for part in given.split(batch):
        each, failed = _scored(model, part.to(device))
        losses.append(each.cpu())
        wrong.append(failed.cpu())
    if isinstance(windows, Windows):
        return _of_scored(torch.cat(losses).double(), torch.cat(wrong).double(), windows)
    return Likelihood(*(torch.cat([part.double().mean(1) for part in parts]).numpy() for parts in (losses, wrong)))


def numerical_floor(model: nn.Module, windows: Tensor | Windows, reference: Likelihood) -> float:
    """The largest change of a window's loss when only the arithmetic changes: no effect below this is one.

    The windows are scored again with another batch size and, where `why_not_exact` has nothing against it, in float64.
    """
    return arithmetic_floor(model, lambda other, batch: likelihood(other, windows, batch).losses, reference.losses)


def arithmetic_floor(model: nn.Module, score: Callable[[nn.Module, int], np.ndarray], losses: np.ndarray) -> float:
    """The same of whatever `score(model, batch)` gives one loss of, [N]; `losses` are those of the model as it is."""
    others = [score(model, OTHER_BATCH)]
    if not why_not_exact(model):
        others.append(score(_exact(model), BATCH))
    return max(float(np.abs(other - losses).max()) for other in others)


def why_not_exact(model: nn.Module) -> str:
    """Why the model cannot be run in float64 here, or "": the floor is then that of another batch size alone."""
    parameters = list(model.parameters())
    if packed := sum(not parameter.is_floating_point() for parameter in parameters):
        return f"{packed} of its weights are packed codes, which have no float64"
    needed = 8 * sum(parameter.numel() for parameter in parameters)
    on_gpu = parameters[0].device.type == "cuda"
    free = torch.cuda.mem_get_info(parameters[0].device)[0] if on_gpu else free_memory()
    if free is not None and needed > free:
        return f"a float64 copy takes {gigabytes(needed)}, and {gigabytes(free)} are free"
    return ""


def _exact(model: nn.Module) -> nn.Module:
    """A float64 copy; experts run one by one in it, because torch's grouped product knows no float64."""
    copy = deepcopy(model).double()
    for module in copy.modules():
        if choose := getattr(module, "set_experts_implementation", None):
            choose("eager")
    return copy


def bits_per_byte(loss: float, bytes_per_token: float = 1.0) -> float:
    """Nats per token as bits per byte of text.

    >>> bits_per_byte(log(256))
    8.0
    """
    return loss / log(2) / bytes_per_token


def _scored(model: nn.Module, tokens: Tensor) -> tuple[Tensor, Tensor]:
    """Cross-entropy of each prediction, and whether another token was more likely; both [B, T]."""
    read, target = tokens[:, :-1], tokens[:, 1:]
    width = vocabulary(model)
    if width is None or target.numel() * width <= MOST:
        each, wrong = _of_logits(model(read).flatten(0, 1), target.flatten())
        return each.view(target.shape), wrong.view(target.shape)
    hidden, head = divided(model)
    states, goals = hidden(read).flatten(0, 1), target.flatten()
    found = [_of_logits(head(states[rows]), goals[rows]) for rows in pieces(len(goals), width, goals.device.type)]
    each, wrong = (torch.cat(parts).view(target.shape) for parts in zip(*found, strict=True))
    return each, wrong


def _of_logits(logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return cross_entropy(wide, target, reduction="none"), largest(logits) != target


def largest(logits: Tensor) -> Tensor:
    """The first largest of each row [R, V], as argmax, which takes ten times as long in torch on a CPU."""
    if logits.device.type != "cpu" or logits.dtype not in (torch.float32, torch.float64):
        return logits.argmax(-1)
    return torch.from_numpy(logits.numpy().argmax(-1))


def _of_scored(each: Tensor, wrong: Tensor, windows: Windows) -> Likelihood:
    counts, scored = windows.counts, windows.scored
    losses, errors = ((part * scored).sum(1).numpy() / counts for part in (each, wrong))
    return Likelihood(losses, errors, counts, each.masked_fill(~scored, torch.nan).numpy())
