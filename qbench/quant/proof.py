"""Proof that a library really quantized a layer: what it changed, against what its format has to change.

Three failures of released libraries made no noise: weights that were never rounded, a subclass that nn.Linear ignored,
and scales of the wrong blocks. All of them would pass a test that only asks whether the model still runs.
"""

import torch
from torch import Tensor, nn

from qbench.quant.held import dequantized
from qbench.quant.kernels import Kernel
from qbench.quant.twin import twin

ROWS = 16  # of random inputs, and of groups in which levels are counted


class NotQuantized(RuntimeError):
    """A layer was handed to a library and did not come back quantized as its format demands."""


@torch.no_grad()
def prove(row: Kernel, before: nn.Linear, after: nn.Module, probe: nn.Module) -> float:
    """The relative error of the weights of `after`, once it is certain that they are in the format of `row`.

    `probe` is a copy of `after` that may be run: running a layer changes how some libraries keep it. Compares with the
    simulation of the same format on the same weights. Raises NotQuantized when

    - the weights moved less than half or more than twice as far as the simulation's,
    - a group that shares a scale shows more levels than its code has,
    - outputs for random inputs moved less than half as far as the simulation's, or are nowhere near them.
    """
    model = twin(row, before)
    weights, found = before.weight.float(), dequantized(after).float()
    error, expected = _distance(found, weights), _distance(model.weight.float(), weights)
    if not expected / 2 <= error <= 2 * expected + 2.0**-row.bits:
        raise NotQuantized(f"its weights moved by {error:.2g} of their norm, {row.weight} moves them by {expected:.2g}")
    levels = _levels(found, row.group or found.shape[1])
    if levels > 2**row.bits:
        raise NotQuantized(f"{levels} distinct weights share a scale, a code of {row.bits} bits has {2**row.bits}")
    x = torch.randn(ROWS, before.in_features, generator=torch.Generator().manual_seed(0))
    x = x.to(before.weight.device, before.weight.dtype)
    plain, simulated, real = before(x).float(), model(x).float(), probe(x).float()
    moved, distance = _distance(simulated, plain), _distance(real, plain)
    if not moved / 2 <= distance <= 2 * moved + 0.02:
        raise NotQuantized(f"its outputs moved by {distance:.2g} of their norm, the simulation's by {moved:.2g}")
    return error


def _distance(x: Tensor, origin: Tensor) -> float:
    return float((x - origin).norm() / origin.norm())


def _levels(weights: Tensor, group: int) -> int:
    """The most distinct values that share a scale, in some groups."""
    rows = weights[:ROWS].unflatten(1, (-1, group)).flatten(0, 1)
    return max(int(values.unique().numel()) for values in rows)
