"""Scale rules: one positive number for each group of values, as it is stored and as it is used."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import frexp
from types import MappingProxyType

import torch
from torch import Tensor

from qbench.quant.blocks import Blocks
from qbench.quant.grid import Grid
from qbench.quant.spec import QuantizerSpec

STORAGE: Mapping[str, torch.dtype] = MappingProxyType(
    {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16, "e8m0": torch.float8_e8m0fnu}
)
_SMALLEST = 2.0**-127  # of which float32 can still hold the inverse


@dataclass(frozen=True, slots=True)
class Scaling:
    """`stored` is what would be written to memory; a level is worth level * `factor`, a value is value * `inverse`.

    Where a scale underflowed, or the group is all zero, both are 0. `zeros` are zero points, in units of the grid.
    """

    stored: Tensor
    factor: Tensor
    inverse: Tensor
    zeros: Tensor | None


def absmax(blocks: Blocks, grid: Grid) -> Tensor:
    """Map the largest magnitude of the group to the peak of the grid."""
    return blocks.peak / grid.peak


def rms(blocks: Blocks, grid: Grid) -> Tensor:
    """Give the group the power for which the grid suits a Gaussian best."""
    return blocks.rms * grid.unit()


def pow2(blocks: Blocks, grid: Grid) -> Tensor:
    """The OCP MX rule: 2^(floor(log2 max|x|) - floor(log2 peak)), as the exponent that is stored."""
    # frexp, not log2: in float32 log2(7.9999995) is exactly 3, which would double the scale. Setting the exponent's
    # bits, not exp2: that is not exact on every device. An all-zero group gets the smallest scale there is.
    exponent = torch.frexp(blocks.peak).exponent - frexp(grid.peak)[1]
    exponent = exponent.masked_fill(blocks.peak == 0, -127).clamp_(-127, 127)
    return (exponent + 127).to(torch.uint8).view(torch.float8_e8m0fnu)


RULES: Mapping[str, Callable[[Blocks, Grid], Tensor]] = MappingProxyType({"absmax": absmax, "rms": rms, "pow2": pow2})


def scaling(blocks: Blocks, spec: QuantizerSpec, grid: Grid) -> Scaling:
    """The scales of all groups, rounded to their storage and then used as stored."""
    if spec.variant == "asym":
        # Halved first, which is exact, so that the range of the largest floats does not overflow.
        stored = _store((blocks.high / 2 - blocks.low / 2) / (grid.levels[-1] / 2), spec.scale)
    else:
        stored = _store(RULES[spec.rule](blocks, grid), spec.scale)
    return _scaling(blocks, stored, grid if spec.variant == "asym" else None)


def factor_of(stored: Tensor, dtype: torch.dtype) -> Tensor:
    """A stored scale as decoding uses it: one whose inverse would overflow counts as 0."""
    factor = stored.to(dtype)
    return factor.masked_fill(factor < _SMALLEST, 0)


def underflowed(blocks: Blocks, used: Scaling) -> Tensor:
    """How many scales became zero though their group is not."""
    return ((used.factor == 0) & (blocks.peak > 0)).sum()


def _scaling(blocks: Blocks, stored: Tensor, shifted: Grid | None) -> Scaling:
    factor = factor_of(stored, blocks.values.dtype)
    inverse = factor.reciprocal().masked_fill_(factor == 0, 0)
    zeros = (-blocks.low * inverse).round_().clamp_(0, shifted.levels[-1]) if shifted else None
    return Scaling(stored, factor, inverse, zeros)


def _store(raw: Tensor, storage: str) -> Tensor:
    dtype = STORAGE[storage]
    # A scale beyond the largest number of its storage saturates the group; infinity would turn it into NaN.
    return raw if raw.dtype == dtype else raw.clamp(max=torch.finfo(dtype).max).to(dtype)
