"""What would be written to memory for one tensor, and its codes in and out of their bytes."""

from dataclasses import dataclass
from functools import lru_cache
from math import nan

import torch
from torch import Tensor

from qbench.quant.grid import Grid
from qbench.quant.pack import pack, pack_trits, unpack, unpack_trits
from qbench.quant.spec import QuantizerSpec


@dataclass(frozen=True, slots=True)
class Encoded:
    """The stored bytes of one tensor, and what is known of it anyway."""

    codes: Tensor  # bytes, flat, padding included: see quant.pack
    scales: Tensor  # in the dtype they are stored in, one for each group
    shape: torch.Size
    dtype: torch.dtype
    zeros: Tensor | None = None  # bytes of the zero points of an asymmetric grid
    outer: tuple[Tensor, ...] = ()  # the scales of the scales: fp32
    codebook: Tensor | None = None  # fitted levels, fp32, [2^bits]
    factors: Tensor | None = None  # of smoothing, fp32, [width], where they come from the tensor itself
    underflowed: int = 0  # groups whose scale became zero though they are not

    @property
    def bits(self) -> int:
        """Of everything stored."""
        stored = (self.codes, self.scales, self.zeros, *self.outer, self.codebook, self.factors)
        return 8 * sum(part.numel() * part.element_size() for part in stored if part is not None)

    @property
    def bits_per_value(self) -> float:
        return self.bits / self.shape.numel() if self.shape.numel() else 0.0


def packed(codes: Tensor, grid: Grid | None, spec: QuantizerSpec, levels: Tensor | None = None) -> Tensor:
    """Bytes of level numbers, as the patterns of `grid`; `levels` tell a negative zero where there is one."""
    if grid is not None and grid.patterns:
        codes = _patterns(grid, codes.device).index_select(0, codes.flatten()).view(codes.shape)
        if grid.negative_zero is not None and levels is not None:
            codes = codes.masked_fill_((levels == 0) & levels.signbit(), grid.negative_zero)
    codes = codes.to(torch.uint8)
    return pack_trits(codes) if spec.grid == "ternary" else pack(codes, spec.bits)


def unpacked(stored: Tensor, shape: torch.Size, grid: Grid | None, spec: QuantizerSpec, dtype: torch.dtype) -> Tensor:
    """The levels of `grid` that bytes stand for, or the bare codes without one."""
    count = shape.numel()
    codes = unpack_trits(stored, count) if spec.grid == "ternary" else unpack(stored, spec.bits, count)
    if grid is None:
        return codes.to(dtype).view(shape)
    return _worth(grid, dtype, codes.device).index_select(0, codes.int()).view(shape)


@lru_cache
def _patterns(grid: Grid, device: torch.device) -> Tensor:
    return torch.tensor(grid.patterns, dtype=torch.uint8, device=device)


@lru_cache
def _worth(grid: Grid, dtype: torch.dtype, device: torch.device) -> Tensor:
    """The level of every pattern, NaN where it has none, [2^bits]."""
    worth = [nan] * 2**grid.bits
    for pattern, level in zip(grid.patterns or range(len(grid.levels)), grid.levels, strict=True):
        worth[pattern] = level
    if grid.negative_zero is not None:
        worth[grid.negative_zero] = -0.0
    return torch.tensor(worth, dtype=dtype, device=device)
