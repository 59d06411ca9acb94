"""The simulation that a real kernel must equal: the same layers with qbench's quantizers on weights and inputs."""

from collections.abc import Iterable
from copy import deepcopy
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from qbench.names import pick
from qbench.quant.kernels import KERNELS, Kernel
from qbench.quant.quantizer import Quantizer, build


def simulate(name: str, model: nn.Module, layers: Iterable[str]) -> nn.Module:
    """Put the simulation of kernel `name` on the nn.Linear modules named `layers`, in place; gives `model` back.

    Raises UnknownName for the kernel, TypeError where a name is no nn.Linear.
    """
    row = pick(KERNELS, name, "kernel")
    for path in layers:
        layer = model.get_submodule(path)
        if not isinstance(layer, nn.Linear):
            raise TypeError(f"{path} is a {type(layer).__name__}, expected nn.Linear; see vendor.linearized")
        _simulate(row, layer)
    return model


def twin(row: Kernel, layer: nn.Linear) -> nn.Linear:
    """A copy of one layer that simulates the kernel of `row`."""
    return _simulate(row, deepcopy(layer))


@torch.no_grad()
def _simulate(row: Kernel, layer: nn.Linear) -> nn.Linear:
    layer.weight.copy_(build(row.weight, 0).roundtrip(layer.weight))
    if row.activation:
        layer.register_forward_pre_hook(_Inputs(build(row.activation)))
    return layer


@dataclass(frozen=True, slots=True)
class _Inputs:
    quantizer: Quantizer

    def __call__(self, _layer: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return (self.quantizer.roundtrip(inputs[0]), *inputs[1:])
