"""Factors on the attention logits, on top of 1 / sqrt(head size): below 1 a layer attends more evenly.

Shape suffixes: B windows, H heads, T queries, D head size. Layers l = 0, 1, ..., L - 1.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import log, sqrt

import torch
from torch import Tensor, nn

from qbench.models.spec import ModelSpec, Temperature


class Learned(nn.Module):
    """A factor for each head, 1 at first."""

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(spec.heads))

    def forward(self, q_BHTD: Tensor) -> Tensor:
        return q_BHTD * self.gain[:, None, None]


class LogKeys(nn.Module):
    """s log n for a query that sees n keys, s learned for each head (SSMax: Nakanishi, arXiv 2501.19399).

    s is 1 / log(context) at first, which is ours: the factor grows from 0 to 1 along the window.
    """

    logs: Tensor

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__()
        self.causal = spec.task == "language"
        self.gain = nn.Parameter(torch.full((spec.heads,), 1 / log(max(2, spec.length))))

    def forward(self, q_BHTD: Tensor) -> Tensor:
        length = q_BHTD.shape[-2]
        keys_T = torch.arange(1, length + 1, device=q_BHTD.device) if self.causal else length
        logs_T = torch.as_tensor(keys_T, device=q_BHTD.device, dtype=self.gain.dtype).log().expand(length)
        return q_BHTD * (self.gain[:, None] * logs_T)[..., None]


class Fixed(nn.Module):
    """One factor, found when the model is built and kept with its weights."""

    value: Tensor

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__()
        self.register_buffer("value", torch.ones(()))

    def forward(self, q_BHTD: Tensor) -> Tensor:
        return q_BHTD * self.value


@dataclass(frozen=True, slots=True)
class Heat:
    """`factor(spec, layer)` is known from the start; `module` is what is learned or found beyond it."""

    factor: Callable[[ModelSpec, int], float]
    module: Callable[[ModelSpec], nn.Module] | None = None


def _one(spec: ModelSpec, layer: int) -> float:
    return 1.0


def _linear(spec: ModelSpec, layer: int) -> float:
    """1 + gamma l / (L - 1)."""
    return 1 + spec.temperature_strength * layer / max(1, spec.layers - 1)


# The direction: "inv" is flatter with depth; "sqrt-layer", and "linear" with a positive strength, are sharper.
TEMPERATURES: Mapping[Temperature, Heat] = {
    "const": Heat(_one),
    "inv-sqrt-layer": Heat(lambda spec, layer: 1 / sqrt(1 + layer)),
    "inv-layer": Heat(lambda spec, layer: 1 / (1 + layer)),
    "sqrt-layer": Heat(lambda spec, layer: sqrt(1 + layer)),
    "linear": Heat(_linear),
    "logn": Heat(_one, LogKeys),
    "learned": Heat(_one, Learned),
    "target": Heat(_one, Fixed),
}
