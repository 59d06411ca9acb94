"""Quantizers: a tensor into what would be stored, and back."""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from qbench.quant.blocks import Blocks, join, split, working
from qbench.quant.catalog import quantizer_spec
from qbench.quant.grid import Grid, grid_of
from qbench.quant.rotate import rotate, rotation_size
from qbench.quant.rounding import levels_of, nearest, snap_
from qbench.quant.scale import Scaling, factor_of, scaling, underflowed
from qbench.quant.spec import SCALE_BITS, QuantizerSpec, bits_per_value


@dataclass(frozen=True, slots=True)
class Encoded:
    """What would be written to memory for one tensor."""

    codes: Tensor  # uint8, in the shape of the blocks, padding included
    scales: Tensor  # in the dtype they are stored in, one for each group
    zeros: Tensor | None  # uint8 zero points, one for each group of an asymmetric grid
    bits: int  # codes, scales and zero points together
    underflowed: int  # groups whose scale became zero though they are not
    shape: torch.Size
    dtype: torch.dtype

    @property
    def bits_per_value(self) -> float:
        return self.bits / self.shape.numel() if self.shape.numel() else 0.0


@dataclass(frozen=True, slots=True)
class Quantizer:
    """Grid, granularity, scale rule and rotation of a spec, applied to tensors of any shape.

    `channel_axis` is the axis whose every index has its own scale under `channel`: the last for activations and
    gradients, 0 for weights. Arithmetic is float64 for float64 tensors, else float32; results have the tensor's dtype.
    Raises NonFinite for NaN or infinity, CannotRotate where the last axis does not fit the rotation.
    """

    spec: QuantizerSpec
    channel_axis: int = -1

    def encode(self, x: Tensor) -> Encoded:
        if not x.numel():
            return self._nothing(x)
        grid, blocks = grid_of(self.spec), self.blocks(working(x))
        used = scaling(blocks, self.spec, grid)
        levels = snapped(blocks, used, grid)
        codes = nearest(levels, grid).to(torch.uint8)
        zeros = None if used.zeros is None else used.zeros.to(torch.uint8)
        bits = (codes.numel() + (0 if zeros is None else zeros.numel())) * self.spec.bits
        bits += used.stored.numel() * SCALE_BITS[self.spec.scale]
        return Encoded(codes, used.stored, zeros, bits, int(underflowed(blocks, used)), x.shape, x.dtype)

    def fake(self, x: Tensor, backward: "Quantizer | None" = None) -> Tensor:
        """`roundtrip` for training: the gradient passes straight through, quantized by `backward` where it is given."""
        from qbench.quant.straight import fake

        return fake(x, self, backward)

    def decode(self, e: Encoded) -> Tensor:
        if not e.shape.numel():
            return torch.empty(e.shape, dtype=e.dtype, device=e.codes.device)
        dtype = torch.float64 if e.dtype == torch.float64 else torch.float32
        levels = levels_of(e.codes, grid_of(self.spec), dtype)
        zeros = None if e.zeros is None else e.zeros.to(dtype)
        return self.restore(worth_(levels, factor_of(e.scales, dtype), zeros), e.shape).to(e.dtype)

    def roundtrip(self, x: Tensor) -> Tensor:
        """What the rest of the network would see: equal to decode(encode(x)), in fewer passes over memory."""
        if not x.numel():
            return x.detach().clone()
        grid, blocks = grid_of(self.spec), self.blocks(working(x))
        used = scaling(blocks, self.spec, grid)
        return self.restore(worth_(snapped(blocks, used, grid), used.factor, used.zeros), x.shape).to(x.dtype)

    def bits_per_value(self, shape: Iterable[int]) -> float:
        """Stored bits over values, for a tensor of this shape."""
        return bits_per_value(self.spec, shape, self.channel_axis)

    def blocks(self, x: Tensor) -> Blocks:
        """The groups of `x` (float32 or float64, at least 1-d) that share a scale, after rotation."""
        if self.spec.hadamard is not None:
            x = rotate(x, rotation_size(self.spec.hadamard, x.shape[-1]))
        return split(x, self.spec.granularity, self.channel_axis)

    def restore(self, values: Tensor, shape: torch.Size) -> Tensor:
        """Undo `blocks` for quantized values."""
        x = join(values, shape)
        if self.spec.hadamard is None:
            return x
        return rotate(x, rotation_size(self.spec.hadamard, shape[-1]))

    def _nothing(self, x: Tensor) -> Encoded:
        codes = torch.empty(x.shape, dtype=torch.uint8, device=x.device)
        return Encoded(codes, torch.empty(0, device=x.device), None, 0, 0, x.shape, x.dtype)


@lru_cache(maxsize=4096)
def build(spec: QuantizerSpec | str, channel_axis: int = -1) -> Quantizer:
    """The quantizer of a spec, of a row of the catalog, or of a spelled name; raises QuantizerName.

    >>> build("int4/token").roundtrip(torch.tensor([7.0, 2.4, -0.1])) + 0.0
    tensor([7., 2., 0.])
    """
    return Quantizer(quantizer_spec(spec) if isinstance(spec, str) else spec, channel_axis)


def snapped(blocks: Blocks, used: Scaling, grid: Grid) -> Tensor:
    """The level of each value, in units of the grid; a new tensor."""
    y = blocks.values * used.inverse
    return snap_(y if used.zeros is None else y.round_().add_(used.zeros), grid)


def worth_(levels: Tensor, factor: Tensor, zeros: Tensor | None) -> Tensor:
    """What the levels stand for; in place."""
    return (levels if zeros is None else levels.sub_(zeros)).mul_(factor)
