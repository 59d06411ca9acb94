"""Which optimizer moves which parameter.

Matrices of the blocks follow the chosen optimizer at `lr`; embedding, head and vectors follow AdamW at rates of their
own. Only the matrices decay.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from qbench.names import pick
from qbench.train.muon import Muon, rms_matched
from qbench.train.shampoo import Shampoo
from qbench.train.spec import Role, TrainingSpec

BETAS = (0.9, 0.95)
SOAP_BETAS = (0.95, 0.95)
SGD_MOMENTUM = 0.9

Parameters = Sequence[nn.Parameter]
Builder = Callable[[Parameters, TrainingSpec], torch.optim.Optimizer]


def adamw(matrices: Parameters, training: TrainingSpec) -> torch.optim.Optimizer:
    """AdamW on the matrices as well, fused: one call for all of them."""
    return torch.optim.AdamW(matrices, lr=training.lr, betas=BETAS, weight_decay=training.weight_decay, fused=True)


def muon(matrices: Parameters, training: TrainingSpec) -> torch.optim.Optimizer:
    """Orthogonalized momentum."""
    return Muon(matrices, lr=training.lr, weight_decay=training.weight_decay)


def muon_rms(matrices: Parameters, training: TrainingSpec) -> torch.optim.Optimizer:
    """Orthogonalized momentum with the rms of AdamW's updates, so that it takes AdamW's learning rates."""
    return Muon(matrices, lr=training.lr, weight_decay=training.weight_decay, scale=rms_matched)


def soap(matrices: Parameters, training: TrainingSpec) -> torch.optim.Optimizer:
    """Adam in the eigenbasis of Shampoo's preconditioner (arXiv 2409.11321); its first step only sets up that basis."""
    from pytorch_optimizer import SOAP  # takes seconds to import

    options: dict[str, Any] = {"betas": SOAP_BETAS, "precondition_frequency": 10}
    return SOAP(list(matrices), lr=training.lr, weight_decay=training.weight_decay, **options)


def shampoo(matrices: Parameters, training: TrainingSpec) -> torch.optim.Optimizer:
    """Adam's step length in Shampoo's direction, so that it takes AdamW's learning rates."""
    return Shampoo(matrices, lr=training.lr, weight_decay=training.weight_decay, betas=BETAS)


def sgd(matrices: Parameters, training: TrainingSpec) -> torch.optim.Optimizer:
    """Gradient descent with heavy-ball momentum; its decay is part of the gradient."""
    decay = training.weight_decay
    return torch.optim.SGD(matrices, lr=training.lr, momentum=SGD_MOMENTUM, weight_decay=decay, fused=True)


OPTIMIZERS: Mapping[str, Builder] = {
    "adamw": adamw,
    "muon": muon,
    "muon-rms": muon_rms,
    "soap": soap,
    "shampoo": shampoo,
    "sgd": sgd,
}

HEADS = ("logits",)
TABLES = ("embed", "positions")  # rows that are looked up, or made from pixels


def role(name: str, parameter: nn.Parameter) -> Role:
    """What the parameter `name` is for.

    >>> tensor = nn.Parameter(torch.empty(2, 2))
    >>> [role(name, tensor) for name in ("blocks.0.attn.q", "embed", "logits", "embed_projection")]
    ['matrix', 'embedding', 'head', 'matrix']
    """
    if parameter.ndim < 2:
        return "vector"
    if name in HEADS:
        return "head"
    return "embedding" if name in TABLES else "matrix"


def build(model: nn.Module, training: TrainingSpec) -> list[torch.optim.Optimizer]:
    """Optimizers that together own every parameter of `model` once: of its matrices first, then of the rest."""
    found: list[tuple[Role, nn.Parameter]] = [
        (role(name, parameter), parameter) for name, parameter in model.named_parameters()
    ]
    by_rate: dict[float, list[nn.Parameter]] = {}
    for what, parameter in found:
        if what != "matrix":
            by_rate.setdefault(training.rate(what), []).append(parameter)
    matrices = [parameter for what, parameter in found if what == "matrix"]
    groups = [{"params": those, "lr": rate} for rate, those in by_rate.items()]
    rest = torch.optim.AdamW(groups, betas=BETAS, weight_decay=0.0, fused=True)
    return [pick(OPTIMIZERS, training.optimizer, "optimizer")(matrices, training), rest]
