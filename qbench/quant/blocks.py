"""A tensor seen as the groups of values that share a scale: views, and the range of each group.

Shapes: `values` is the tensor, or for block:n its last axis cut into (blocks, n); every range keeps the axes it
reduces at size 1, so that it broadcasts against `values` without a transposition or a copy.
"""

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor
from torch.nn.functional import pad


class NonFinite(ValueError):
    """A tensor holds NaN or infinity, which no scale can follow."""


@dataclass(frozen=True)
class Blocks:
    """`values` and the axes that share a scale; ranges are computed once, when first asked for."""

    values: Tensor
    dims: tuple[int, ...]
    padding: int = 0  # zeros at the end of the last block of each row

    @cached_property
    def peak(self) -> Tensor:
        """Largest magnitude."""
        return self.values.abs().amax(self.dims, keepdim=True)

    @cached_property
    def low(self) -> Tensor:
        """Smallest value, at most 0."""
        return self.values.amin(self.dims, keepdim=True).clamp_(max=0)

    @cached_property
    def high(self) -> Tensor:
        """Largest value, at least 0."""
        return self.values.amax(self.dims, keepdim=True).clamp_(min=0)

    @cached_property
    def rms(self) -> Tensor:
        """Root mean square, padding not counted."""
        # Squares of small gradients underflow in float32; dividing by a power of two first is exact.
        unit = torch.ldexp(torch.ones_like(self.peak), torch.frexp(self.peak).exponent.clamp(-120, 120))
        power = (self.values / unit).square_().mean(self.dims, keepdim=True)
        if self.padding:
            block = self.values.shape[-1]
            power[..., -1, :] *= block / (block - self.padding)
        return power.sqrt_().mul_(unit)


def split(x: Tensor, granularity: str, channel_axis: int = -1) -> Blocks:
    """Groups of `tensor`, `token` (a row of the last axis), `channel` (an index of `channel_axis`) or `block:n`.

    Blocks run along the last axis and never cross a row; a short last block is padded with zeros.

    >>> split(torch.ones(2, 5), "block:4").values.shape  # each row of 5 needs two blocks
    torch.Size([2, 2, 4])
    """
    if granularity == "token":
        return Blocks(x, (-1,))
    if granularity == "tensor":
        return Blocks(x, tuple(range(x.ndim)))
    if granularity == "channel":
        x = x if x.ndim > 1 else x[None]  # amax over no axes at all would reduce every axis
        return Blocks(x, tuple(axis for axis in range(x.ndim) if axis != channel_axis % x.ndim))
    block = int(granularity.removeprefix("block:"))
    padding = -x.shape[-1] % block
    padded = pad(x, (0, padding)) if padding else x
    return Blocks(padded.unflatten(-1, (-1, block)), (-1,), padding)


def join(values: Tensor, shape: torch.Size) -> Tensor:
    """Undo `split`, dropping the padding: `values` of a tensor of this shape."""
    if values.ndim > max(len(shape), 1):
        values = values.flatten(-2)[..., : shape[-1] if shape else 1]
    return values.reshape(shape)


def working(x: Tensor) -> Tensor:
    """`x` at the precision of all arithmetic: float64 stays, every other float becomes float32, and 0-d becomes 1-d.

    Raises NonFinite, with the number of values that are.
    """
    if not x.is_floating_point():
        raise TypeError(f"only floating-point tensors can be quantized, found {x.dtype}")
    wide = x.detach().reshape(x.shape or (1,))
    wide = wide if wide.dtype == torch.float64 else wide.float()
    low, high = wide.aminmax() if wide.numel() else (wide, wide)
    if not (low.isfinite().all() and high.isfinite().all()):  # aminmax hands NaN on
        bad = wide.numel() - int(wide.isfinite().sum())
        raise NonFinite(f"{bad} of {wide.numel()} values are NaN or infinite")
    return wide
