"""The last layer of a model as a value of its own, which no treatment of the model can reach."""

from copy import deepcopy
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from qbench.evaluate.pieces import Step, divided, same
from qbench.models.hub import AFTER_HEAD, HubModel
from qbench.models.transformer import Transformer


@dataclass(frozen=True, slots=True, eq=False)
class Head:
    """Logits [..., V] of states [..., D]: W x + b, then what `after` says, settings of `transformers` and amounts."""

    weight: Tensor  # [V, D]
    bias: Tensor | None = None
    after: tuple[tuple[str, float], ...] = ()

    def __call__(self, states: Tensor) -> Tensor:
        logits = linear(states, self.weight, self.bias)
        for name, amount in self.after:
            logits = AFTER_HEAD[name](logits, amount)
        return logits

    def on(self, device: torch.device) -> "Head":
        return replace(self, weight=self.weight.to(device), bias=None if self.bias is None else self.bias.to(device))


def plain_head(model: nn.Module, states: Tensor) -> Head | None:
    """A copy of the model's head where it is a linear layer; None where it does anything else to `states` [..., D]."""
    found = _found(model)
    if found is None or found.weight.shape[-1] != states.shape[-1] or found.weight.dtype != states.dtype:
        return None
    return found if torch.equal(found(states), divided(model)[1](states)) else None


def own_head(model: nn.Module, states: Tensor) -> Step:
    """The model's head as a step of its own: a copy of its weights, or of the whole model where that is not enough."""
    logits = divided(model)[1](states)
    if logits is states:
        return same
    return plain_head(model, states) or divided(deepcopy(model))[1]


def _found(model: nn.Module) -> Head | None:
    if isinstance(model, Transformer):
        return Head(model.logits.detach().clone())
    if not isinstance(model, HubModel) or model.undivided:
        return None
    module = model.hf.get_output_embeddings()
    if not isinstance(module, nn.Linear) or not module.weight.is_floating_point():
        return None
    held = {name: value.detach().clone() for name, value in module.named_parameters(recurse=False)}
    return Head(held["weight"], held.get("bias"), model.after)
