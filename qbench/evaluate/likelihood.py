"""How well a model predicts held-out text: cross-entropy and errors by window, so that differences are paired."""

from copy import deepcopy
from dataclasses import dataclass
from math import log

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

BATCH = 32  # windows a forward pass; per-tensor scales see batches of this shape
OTHER_BATCH = 7  # for the numerical floor: other matrix shapes, so other summation orders


@dataclass(frozen=True, slots=True)
class Likelihood:
    """Mean cross-entropy (nats per token) and error rate of each window, in order."""

    losses: np.ndarray
    errors: np.ndarray

    @property
    def loss(self) -> float:
        return float(self.losses.mean())

    @property
    def error_rate(self) -> float:
        return float(self.errors.mean())


@torch.no_grad()
def likelihood(model: nn.Module, windows: Tensor, batch: int = BATCH) -> Likelihood:
    """Score `windows` [N, T + 1]: the first T tokens are read, the last T predicted. Sums are float64."""
    device = next(model.parameters()).device
    losses: list[Tensor] = []
    errors: list[Tensor] = []
    for part in windows.split(batch):
        tokens = part.to(device)
        logits = model(tokens[:, :-1])
        target = tokens[:, 1:]
        wide = logits.flatten(0, 1).to(torch.promote_types(logits.dtype, torch.float32))
        each = cross_entropy(wide, target.flatten(), reduction="none").view(target.shape)
        losses.append(each.double().mean(1))
        errors.append((logits.argmax(-1) != target).double().mean(1))
    return Likelihood(torch.cat(losses).cpu().numpy(), torch.cat(errors).cpu().numpy())


def numerical_floor(model: nn.Module, windows: Tensor, reference: Likelihood) -> float:
    """The largest change of a window's loss when only the arithmetic changes: no effect below this is one.

    The windows are scored again with another batch size, and in float64.
    """
    others = (likelihood(model, windows, OTHER_BATCH), likelihood(deepcopy(model).double(), windows))
    return max(float(np.abs(other.losses - reference.losses).max()) for other in others)


def bits_per_byte(loss: float, bytes_per_token: float = 1.0) -> float:
    """Nats per token as bits per byte of text.

    >>> bits_per_byte(log(256))
    8.0
    """
    return loss / log(2) / bytes_per_token


def next_token_loss(model: nn.Module, windows: Tensor) -> Tensor:
    """Mean cross-entropy of `windows` [N, T + 1], with its graph."""
    logits = model(windows[:, :-1])
    return cross_entropy(logits.flatten(0, 1).float(), windows[:, 1:].flatten())
