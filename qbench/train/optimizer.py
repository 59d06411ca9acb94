"""Which optimizer moves which parameter.

Matrices of the blocks follow the chosen optimizer at `lr`; embedding, head and gains follow AdamW at `aux_lr`.
Only the matrices of the blocks decay.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from qbench.models.transformer import Transformer
from qbench.names import pick
from qbench.train.muon import Muon
from qbench.train.spec import TrainingSpec

BETAS = (0.9, 0.95)
SOAP_BETAS = (0.95, 0.95)

Parameters = Sequence[nn.Parameter]
Builder = Callable[[Parameters, TrainingSpec], torch.optim.Optimizer]


def adamw(matrices: Parameters, training: TrainingSpec) -> torch.optim.Optimizer:
    """AdamW on the matrices as well, fused: one call for all of them."""
    return _adamw(matrices, training.lr, training.weight_decay)


def muon(matrices: Parameters, training: TrainingSpec) -> torch.optim.Optimizer:
    """Orthogonalized momentum."""
    return Muon(matrices, lr=training.lr, weight_decay=training.weight_decay)


def soap(matrices: Parameters, training: TrainingSpec) -> torch.optim.Optimizer:
    """Adam in the eigenbasis of Shampoo's preconditioner (arXiv 2409.11321); its first step only sets up that basis."""
    from pytorch_optimizer import SOAP  # takes seconds to import

    options: dict[str, Any] = {"betas": SOAP_BETAS, "precondition_frequency": 10}
    return SOAP(list(matrices), lr=training.lr, weight_decay=training.weight_decay, **options)


OPTIMIZERS: Mapping[str, Builder] = {"adamw": adamw, "muon": muon, "soap": soap}


def block_matrices(model: Transformer) -> dict[str, nn.Parameter]:
    """The weights inside the blocks, by name: everything but embedding and head."""
    return {name: weight for name, weight in model.weights().items() if name.startswith("blocks.")}


def build(model: Transformer, training: TrainingSpec) -> list[torch.optim.Optimizer]:
    """Optimizers that together own every parameter of `model` once."""
    matrices = block_matrices(model)
    rest = [parameter for name, parameter in model.named_parameters() if name not in matrices]
    return [
        pick(OPTIMIZERS, training.optimizer, "optimizer")(list(matrices.values()), training),
        _adamw(rest, training.aux_lr, weight_decay=0.0),
    ]


def _adamw(parameters: Parameters, lr: float, weight_decay: float) -> torch.optim.Optimizer:
    return torch.optim.AdamW(parameters, lr=lr, betas=BETAS, weight_decay=weight_decay, fused=True)
