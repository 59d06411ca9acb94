"""A tensor seen as the groups of values that share a scale: views, and the range of each group.

Shapes: `values` is the tensor, or for block:n its axis moved to the end and cut into (blocks, n), or for tile:RxC its
last two axes cut into (tiles, R, tiles, C); every range keeps the axes it reduces at size 1, so that it broadcasts
against `values` without a transposition or a copy.
"""

from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from math import prod

import torch
from torch import Tensor
from torch.nn.functional import pad

from qbench.quant.group import group, place


class NonFinite(ValueError):
    """A tensor holds NaN or infinity, which no scale can follow."""


@contextmanager
def at(place: str) -> Generator[None, None, None]:
    """Inside, a tensor that is not finite is reported with its place.

    >>> with at("blocks.3.out"):
    ...     raise NonFinite("2 of 8 values are NaN or infinite")
    Traceback (most recent call last):
    qbench.quant.blocks.NonFinite: blocks.3.out: 2 of 8 values are NaN or infinite
    """
    try:
        yield
    except NonFinite as error:
        raise NonFinite(f"{place}: {error}") from error


@dataclass(frozen=True)
class Blocks:
    """`values` and the axes that share a scale; ranges are computed once, when first asked for.

    `count` is how many values of each group are no padding, in the shape of the ranges where groups differ.
    """

    values: Tensor
    dims: tuple[int, ...]
    count: int | Tensor

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
    def unit(self) -> Tensor:
        """The power of two at the largest magnitude, by which to divide where squares would overflow or underflow."""
        return torch.ldexp(torch.ones_like(self.peak), torch.frexp(self.peak).exponent.clamp(-120, 120))

    @cached_property
    def rms(self) -> Tensor:
        """Root mean square, padding not counted."""
        power = (self.values / self.unit).square_().sum(self.dims, keepdim=True)
        return power.div_(self.count).sqrt_().mul_(self.unit)

    @cached_property
    def mean_magnitude(self) -> Tensor:
        """Mean magnitude, padding not counted."""
        return (self.values / self.unit).abs_().sum(self.dims, keepdim=True).div_(self.count).mul_(self.unit)

    @cached_property
    def deviation(self) -> Tensor:
        """Standard deviation around the mean of the group (population), padding not counted."""
        mean = (self.values / self.unit).sum(self.dims, keepdim=True).div_(self.count)
        power = (self.values / self.unit).sub_(mean).square_().sum(self.dims, keepdim=True)
        padding = prod(self.values.shape[axis] for axis in self.dims) - self.count
        return power.sub_(mean.square() * padding).clamp_(min=0).div_(self.count).sqrt_().mul_(self.unit)

    def percentile(self, percent: float) -> Tensor:
        """The smallest magnitude that at least `percent` of a group's values do not exceed, padding not counted."""
        axes = [axis % self.values.ndim for axis in self.dims]
        order = [axis for axis in range(self.values.ndim) if axis not in axes] + axes
        rows = self.values.abs().permute(order).flatten(-len(axes)).sort(-1).values  # padding sorts to the front
        count = torch.as_tensor(self.count, device=rows.device).expand_as(self.peak)
        rank = (count.permute(order).flatten(-len(axes)).double() * percent / 100).ceil().long()
        missing = rows.shape[-1] - count.permute(order).flatten(-len(axes))
        return (
            rows.gather(-1, missing + rank.clamp_(min=1) - 1)
            .view(self.peak.permute(order).shape)
            .permute([order.index(axis) for axis in range(self.values.ndim)])
        )


def split(x: Tensor, granularity: str, channel_axis: int = -1) -> Blocks:
    """Groups of `tensor`, `token` (a row of the last axis), `channel` (an index of `channel_axis`), `block:n` or tiles.

    Blocks run along the last axis, or the one after `@`; `tile:RxC` cuts the last two. They never
    cross an end; a short last block or tile is padded with zeros. Raises NoSuchAxis.

    >>> split(torch.ones(2, 5), "block:4").values.shape  # each row of 5 needs two blocks
    torch.Size([2, 2, 4])
    """
    if granularity == "token":
        return Blocks(x, (-1,), x.shape[-1])
    if granularity == "tensor":
        return Blocks(x, tuple(range(x.ndim)), x.numel())
    if granularity == "channel":
        channel = place(channel_axis, x.ndim) - x.ndim
        x = x if x.ndim > 1 else x[None]  # amax over no axes at all would reduce every axis
        axes = tuple(axis for axis in range(x.ndim) if axis != channel + x.ndim)
        return Blocks(x, axes, prod(x.shape[axis] for axis in axes))
    how = group(granularity)
    if how.kind == "tile":
        return _tiles(x if x.ndim > 1 else x[None], *how.sizes)
    x = x if how.axis == -1 else x.movedim(place(how.axis, x.ndim), -1)
    padding = -x.shape[-1] % how.sizes[0]
    values = (pad(x, (0, padding)) if padding else x).unflatten(-1, (-1, how.sizes[0]))
    if not padding:
        return Blocks(values, (-1,), how.sizes[0])
    return Blocks(values, (-1,), _counts(x.shape[-1], how.sizes[0], x.device)[:, None])


def _tiles(x: Tensor, rows: int, columns: int) -> Blocks:
    below, right = -x.shape[-2] % rows, -x.shape[-1] % columns
    values = (pad(x, (0, right, 0, below)) if below or right else x).unflatten(-1, (-1, columns))
    values = values.unflatten(-3, (-1, rows))
    down, across = _counts(x.shape[-2], rows, x.device), _counts(x.shape[-1], columns, x.device)
    return Blocks(values, (-3, -1), down[:, None, None, None] * across[None, None, :, None])


def _counts(size: int, block: int, device: torch.device) -> Tensor:
    """How many values each block of an axis of `size` holds."""
    return (size - torch.arange(0, size, block, device=device)).clamp_(max=block)


def join(values: Tensor, shape: torch.Size, granularity: str = "block:1") -> Tensor:
    """Undo `split`, dropping the padding: `values` of a tensor of this shape."""
    kind = group(granularity)
    if kind.kind == "tile":
        rows, columns = (1, *shape)[-2:] if shape else (1, 1)
        return values.flatten(-4, -3).flatten(-2)[..., :rows, :columns].reshape(shape)
    if kind.kind == "block" and values.ndim > max(len(shape), 1):
        axis = place(kind.axis, max(len(shape), 1))
        values = values.flatten(-2)[..., : shape[axis] if shape else 1]
        values = values if kind.axis == -1 else values.movedim(-1, axis)
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
