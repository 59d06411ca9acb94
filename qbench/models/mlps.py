"""What happens between the two layers of an MLP, element by element."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from qbench.models.spec import MLP


@dataclass(frozen=True, slots=True)
class Activation:
    """`act` of the pre-activation; where `gated` its product with a second projection is what the last layer reads.

    `power` is E[hidden^2] for pre-activations from N(0, 1), by which the orthogonal recipe divides.
    """

    act: Callable[[Tensor], Tensor]
    power: float
    gated: bool = False


def squared_relu(x: Tensor) -> Tensor:
    """max(x, 0)^2 (So et al., arXiv 2109.08668)."""
    return F.relu(x).square()


MLPS: Mapping[MLP, Activation] = {
    "gelu": Activation(F.gelu, 0.425),
    "relu2": Activation(squared_relu, 1.5),
    "swiglu": Activation(F.silu, 0.356, gated=True),
}
