"""Rounding onto a grid: nearest level, ties to even."""

from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from qbench.quant.grid import Grid


def snap_(y: Tensor, grid: Grid) -> Tensor:
    """Replace each value of `y`, in units of the grid, by its nearest level; in place where that is possible.

    >>> from qbench.quant.grid import integer
    >>> snap_(torch.tensor([-2.5, -0.5, 0.5, 1.5, 9.0]), integer(4, "narrow")) + 0.0
    tensor([-2.,  0.,  0.,  2.,  7.])
    """
    if grid.integer:
        return y.round_().clamp_(grid.levels[0], grid.levels[-1])
    return _levels(grid, y.dtype, y.device).index_select(0, _search(y, grid).flatten()).view(y.shape)


def nearest(y: Tensor, grid: Grid) -> Tensor:
    """Code (int32) of the nearest level of each value of `y`, the lowest level being code 0.

    A tie goes to the code an even distance from the middle, which for integers and minifloats is IEEE ties-to-even.
    bfloat16 inputs make ties common, and always breaking them downwards would bias every mean we report.
    """
    if grid.integer:
        return (y.round().clamp_(grid.levels[0], grid.levels[-1]) - grid.levels[0]).int()
    return _search(y, grid)


def levels_of(codes: Tensor, grid: Grid, dtype: torch.dtype) -> Tensor:
    """The level that each code stands for."""
    if grid.integer:
        return codes.to(dtype).add_(grid.levels[0])
    return _levels(grid, dtype, codes.device).index_select(0, codes.flatten().int()).view(codes.shape)


class _Table(NamedTuple):
    """Bins so narrow that each holds at most one boundary between levels: a lookup and one comparison per value.

    torch.bucketize searches the boundaries for every value, which takes ten times as long.
    """

    base_N: Tensor  # boundaries in the bins before this one, which is the code below this bin's own boundary
    boundary_N: Tensor  # inf where the bin has none
    per_unit: float
    first: float

    def bins(self, y: Tensor) -> Tensor:
        return (y - self.first).mul_(self.per_unit).clamp_(0, len(self.base_N) - 1).int()


def _search(y: Tensor, grid: Grid) -> Tensor:
    # Rounding of the bin's arithmetic does no harm: it is monotone, and the table was filled by the same arithmetic.
    table = _table(grid, y.dtype, y.device)
    bins = table.bins(y).flatten()
    boundary = table.boundary_N.index_select(0, bins).view(y.shape)
    return table.base_N.index_select(0, bins).view(y.shape).add_(y > boundary)


@lru_cache
def _table(grid: Grid, dtype: torch.dtype, device: torch.device) -> _Table:
    boundaries = _boundaries(grid, dtype).to(device)
    per_unit = 2 / float(boundaries.diff().min()) if len(boundaries) > 1 else 1.0
    first = float(boundaries[0]) - 1 / per_unit
    count = int((float(boundaries[-1]) - first) * per_unit) + 2
    empty = _Table(torch.zeros(count, dtype=torch.int32, device=device), boundaries, per_unit, first)
    bins = empty.bins(boundaries)
    boundary_N = torch.full((count,), torch.inf, dtype=dtype, device=device).index_copy_(0, bins.long(), boundaries)
    base_N = torch.bucketize(torch.arange(count, device=device, dtype=torch.int32), bins, out_int32=True)
    return _Table(base_N, boundary_N, per_unit, first)


def _boundaries(grid: Grid, dtype: torch.dtype) -> Tensor:
    """The largest value of each level but the last: the midpoint, or the number before it where the tie goes up."""
    levels = torch.tensor(grid.levels, dtype=dtype)
    middle = (levels[1:] + levels[:-1]) / 2
    below_is_even = (torch.arange(len(middle)) - len(levels) // 2) % 2 == 0
    return torch.where(below_is_even, middle, torch.nextafter(middle, torch.tensor(-torch.inf, dtype=dtype)))


@lru_cache
def _levels(grid: Grid, dtype: torch.dtype, device: torch.device) -> Tensor:
    return torch.tensor(grid.levels, dtype=dtype, device=device)
