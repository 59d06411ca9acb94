"""Rounding onto a grid: to the nearest level with ties to even, toward zero, or up and down at random."""

from collections.abc import Callable
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from qbench.quant.grid import Grid

Whole = Callable[[Tensor], Tensor]  # to a neighbouring whole number, in place


def snap_(y: Tensor, grid: Grid, rounding: str = "nearest", stream: int = 0) -> Tensor:
    """Replace each value of `y`, in units of the grid, by a level; in place where that is possible.

    Beyond the outermost level there is only that one. `stream` makes another draw of stochastic rounding.

    >>> from qbench.quant.grid import integer
    >>> snap_(torch.tensor([-2.5, -0.5, 0.5, 1.5, 9.0]), integer(4, "narrow")) + 0.0
    tensor([-2.,  0.,  0.,  2.,  7.])
    """
    if grid.offset is None and grid.floating is None:
        codes = nearest(y, grid) if rounding == "nearest" else _neighbour(y, grid, rounding, stream)
        return levels_of(codes, grid, y.dtype)
    whole_ = whole(rounding, stream)
    if grid.floating is not None:
        step = _step(y, *grid.floating)
        return whole_(y.div_(step)).mul_(step).clamp_(-grid.peak, grid.peak)
    if grid.offset:
        return whole_(y.sub_(grid.offset)).add_(grid.offset).clamp_(grid.levels[0], grid.levels[-1])
    return whole_(y).clamp_(grid.levels[0], grid.levels[-1])


def whole(rounding: str, stream: int = 0) -> Whole:
    """How a rounding makes whole numbers."""
    if rounding.startswith("sr:"):
        seed = int(rounding.removeprefix("sr:"))
        return lambda y: _up_or_down(y, uniform(y, seed, stream))
    return _WHOLE[rounding]


_WHOLE: dict[str, Whole] = {"nearest": torch.round_, "rtz": torch.trunc_}


def _up_or_down(y: Tensor, chance: Tensor) -> Tensor:
    low = y.floor()  # adding the chance to y itself would carry whole numbers up now and then
    return low.add_(chance < y - low)


def uniform(like: Tensor, seed: int, stream: int = 0) -> Tensor:
    """A number in [0, 1) for each position of a tensor, the same on every device: a hash of seed, stream and position.

    Position is where a value lies in the row-major order of `like`; 24 bits each (murmur3's finalizer, twice). Any
    number of values: positions are 64-bit. A seed gives independent draws for each stream, as for the steps of a
    training run.
    """
    counter = torch.arange(like.numel(), device=like.device).view(like.shape)
    key = _mix(torch.tensor([seed + 1, stream + 0x9E3779B9], device=like.device))
    h = _mix((counter & _MASK) ^ key[0]).add_(counter >> 32)
    return (_mix((h & _MASK) ^ key[1]) >> 8).to(like.dtype).mul_(2.0**-24)


_MASK = 0xFFFFFFFF


def _mix(h: Tensor) -> Tensor:
    """murmur3's 32-bit finalizer in 64-bit integers, whose low half wraps as 32 bits would."""
    h = (h ^ (h >> 16)).mul_(0x85EBCA6B).bitwise_and_(_MASK)
    h = (h ^ (h >> 13)).mul_(0xC2B2AE35).bitwise_and_(_MASK)
    return h ^ (h >> 16)


def nearest(y: Tensor, grid: Grid) -> Tensor:
    """Code (int32) of the nearest level of each value of `y`, the lowest level being code 0.

    A tie goes to the code an even distance from the middle, which for integers and minifloats is IEEE ties-to-even.
    bfloat16 inputs make ties common, and always breaking them downwards would bias every mean we report.
    """
    if grid.integer:
        return (y.round().clamp_(grid.levels[0], grid.levels[-1]) - grid.levels[0]).int()
    if len(grid.levels) == 1:
        return torch.zeros_like(y, dtype=torch.int32)
    return _search(y, grid)


def levels_of(codes: Tensor, grid: Grid, dtype: torch.dtype) -> Tensor:
    """The level that each code stands for."""
    if grid.integer:
        return codes.to(dtype).add_(grid.levels[0])
    return _levels(grid, dtype, codes.device).index_select(0, codes.flatten().int()).view(codes.shape)


def _step(y: Tensor, mantissa: int, smallest: int) -> Tensor:
    """The distance between neighbouring numbers of a float format around each value: a power of two."""
    # The exponent's bits alone are the power of two below a number, exactly; frexp takes twice as long.
    if y.dtype == torch.float64:
        power = (y.view(torch.int64) & 0x7FF0000000000000).view(torch.float64)
    else:
        power = (y.view(torch.int32) & 0x7F800000).view(torch.float32)
    return power.clamp_(min=2.0**smallest).mul_(2.0**-mantissa)


def _neighbour(y: Tensor, grid: Grid, rounding: str, stream: int) -> Tensor:
    """Code of the level on one side of each value: nearer to zero, or either with the odds that keep the mean."""
    levels = _levels(grid, y.dtype, y.device)
    lower = (torch.bucketize(y.contiguous(), levels, out_int32=True, right=True) - 1).clamp_(0, max(len(levels) - 2, 0))
    upper = (lower + 1).clamp_(max=len(levels) - 1)
    if rounding == "rtz":
        return torch.where((y >= levels[upper]) | ((y < 0) & (y > levels[lower])), upper, lower)
    gap = (levels[upper] - levels[lower]).clamp_(min=torch.finfo(y.dtype).tiny)
    up = uniform(y, int(rounding.removeprefix("sr:")), stream) < (y - levels[lower]) / gap
    return torch.where(up, upper, lower)


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


_BINS = 2**14  # more do not stay in the cache


def _search(y: Tensor, grid: Grid) -> Tensor:
    # Rounding of the bin's arithmetic does no harm: it is monotone, and the table was filled by the same arithmetic.
    table = _table(grid, y.dtype, y.device)
    if isinstance(table, Tensor):
        return torch.bucketize(y.contiguous(), table, out_int32=True)
    bins = table.bins(y).flatten()
    boundary = table.boundary_N.index_select(0, bins).view(y.shape)
    return table.base_N.index_select(0, bins).view(y.shape).add_(y > boundary)


@lru_cache
def _table(grid: Grid, dtype: torch.dtype, device: torch.device) -> _Table | Tensor:
    """Bins, or the bare boundaries of a grid so uneven that there would be too many bins."""
    boundaries = cell_ends(grid, dtype).to(device)
    narrowest = float(boundaries.diff().min()) if len(boundaries) > 1 else 2.0
    if float(boundaries[-1] - boundaries[0]) > _BINS / 2 * narrowest:
        return boundaries
    per_unit = 2 / narrowest
    first = float(boundaries[0]) - 1 / per_unit
    count = int((float(boundaries[-1]) - first) * per_unit) + 2
    empty = _Table(torch.zeros(count, dtype=torch.int32, device=device), boundaries, per_unit, first)
    bins = empty.bins(boundaries)
    boundary_N = torch.full((count,), torch.inf, dtype=dtype, device=device).index_copy_(0, bins.long(), boundaries)
    base_N = torch.bucketize(torch.arange(count, device=device, dtype=torch.int32), bins, out_int32=True)
    return _Table(base_N, boundary_N, per_unit, first)


def cell_ends(grid: Grid, dtype: torch.dtype) -> Tensor:
    """The largest value of each level but the last: the midpoint, or the number before it where the tie goes up."""
    levels = torch.tensor(grid.levels, dtype=torch.float64).to(dtype).double()
    middle = ((levels[1:] + levels[:-1]) / 2).to(dtype)  # in float64 first: the sum of two large levels is infinite
    below_is_even = (torch.arange(len(middle)) - len(levels) // 2) % 2 == 0
    return torch.where(below_is_even, middle, torch.nextafter(middle, torch.tensor(-torch.inf, dtype=dtype)))


@lru_cache
def _levels(grid: Grid, dtype: torch.dtype, device: torch.device) -> Tensor:
    return torch.tensor(grid.levels, dtype=dtype, device=device)
