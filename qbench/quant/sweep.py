"""Many quantizers over one tensor: what each loses, with everything that can be shared computed once."""

from collections.abc import Iterable
from dataclasses import dataclass, fields
from functools import cache, cached_property
from math import sqrt

import torch
from torch import Tensor

from qbench.quant.blocks import Blocks, split, working
from qbench.quant.grid import Grid, grid_of
from qbench.quant.quantizer import Quantizer, build, snapped, worth_
from qbench.quant.rotate import rotate, rotation_size
from qbench.quant.rounding import nearest
from qbench.quant.scale import Scaling, scaling, underflowed
from qbench.quant.spec import QuantizerSpec

SAMPLE = 2**16  # values of a tensor in which distinct codes are counted


@dataclass(frozen=True, slots=True, eq=False)
class ErrorSums:
    """What is needed of one or many tensors to say how far their quantized copies are from them.

    `signal_C` and `error_C` are sums of squares for each index of the channel axis, float64 on the CPU. `saturated`
    counts values beyond the outermost level by more than half a step, after rotation; `zeroed` counts non-zero values
    that became zero; `levels` is the largest number of distinct codes seen in the first 64 Ki values of a tensor;
    `bits` is what would be stored. A scale for a whole tensor or channel is chosen anew for each tensor swept.
    """

    n: int
    signal_C: Tensor
    error_C: Tensor
    max_error: float
    saturated: int
    zeroed: int
    nonzero: int
    underflowed_scales: int
    scales: int
    levels: int
    bits: int

    @property
    def signal(self) -> float:
        """Sum of squares of the tensor."""
        return float(self.signal_C.sum())

    @property
    def error(self) -> float:
        """Sum of squares of the error."""
        return float(self.error_C.sum())

    @property
    def bits_per_value(self) -> float:
        return self.bits / self.n if self.n else 0.0

    def merge(self, other: "ErrorSums") -> "ErrorSums":
        """The sums over both; raises ValueError when they have different channels."""
        if self.signal_C.shape != other.signal_C.shape:
            raise ValueError(f"cannot merge {len(self.signal_C)} channels with {len(other.signal_C)}")
        pairs = {field.name: (getattr(self, field.name), getattr(other, field.name)) for field in fields(self)}
        return ErrorSums(**{name: max(a, b) if name in _LARGEST else a + b for name, (a, b) in pairs.items()})


_LARGEST = ("max_error", "levels")


def sweep(x: Tensor, quantizers: Iterable[str | QuantizerSpec], channel_axis: int = -1) -> dict[str, ErrorSums]:
    """The error sums of every quantizer on `x`, by canonical name, as roundtrip and naive sums would give them.

    Raises QuantizerName, NonFinite or CannotRotate.

    >>> sums = sweep(torch.tensor([[7.0, 0.4], [0.0, -14.0]]), ["int4/tensor", "int4/token"])
    >>> {name: (round(s.error, 2), s.zeroed) for name, s in sums.items()}
    {'int4/tensor': (1.16, 1), 'int4/token': (0.16, 1)}
    """
    _keep_freed_memory()
    source = _Source(x.detach(), channel_axis)
    return {str(q.spec): source.sums(q) for q in (build(name, channel_axis) for name in quantizers)}


@dataclass(frozen=True)
class _Source:
    """One tensor and what several quantizers want to know of it."""

    raw: Tensor
    channel_axis: int

    @cached_property
    def x(self) -> Tensor:
        return working(self.raw)

    @cached_property
    def wide(self) -> Tensor:
        """`x` in a dtype in which its squares neither overflow nor underflow."""
        peak = float(self.x.abs().max())
        return self.x if 1e-12 < peak < 1e12 or peak == 0 else self.x.double()

    @cached_property
    def signal(self) -> Tensor:
        return self.power(self.wide.square())

    @cached_property
    def nonzero(self) -> int:
        return int(self.x.count_nonzero())

    @cached_property
    def rotations(self) -> dict[int, Tensor]:
        return {}

    @cached_property
    def seen(self) -> dict[tuple[int, str], Blocks]:
        return {}

    def blocks(self, spec: QuantizerSpec) -> Blocks:
        size = 0 if spec.hadamard is None else rotation_size(spec.hadamard, self.x.shape[-1])
        if (size, spec.granularity) not in self.seen:
            self.seen[size, spec.granularity] = split(self.rotated(size), spec.granularity, self.channel_axis)
        return self.seen[size, spec.granularity]

    def rotated(self, size: int) -> Tensor:
        if size not in self.rotations:
            self.rotations[size] = rotate(self.x, size) if size else self.x
        return self.rotations[size]

    def power(self, squares: Tensor) -> Tensor:
        """Sums over all axes but the channel's, [channels], float64 on the CPU."""
        axes = [axis for axis in range(squares.ndim) if axis != self.channel_axis % squares.ndim]
        return (squares.sum(axes) if axes else squares).double().cpu()

    def sums(self, q: Quantizer) -> ErrorSums:
        if not self.raw.numel():
            nothing = torch.zeros(self.raw.shape[self.channel_axis], dtype=torch.float64)
            return ErrorSums(0, nothing, nothing, 0.0, 0, 0, 0, 0, 0, 0, 0)
        grid, blocks = grid_of(q.spec), self.blocks(q.spec)
        used = scaling(blocks, q.spec, grid)
        levels = snapped(blocks, used, grid)
        distinct = _distinct(levels, grid)
        y = q.restore(worth_(levels, used.factor, used.zeros), self.x.shape)
        y = y.to(self.raw.dtype).to(self.x.dtype)
        zeroed = self.zeroed(y, exact=q.spec.hadamard is None and 0.0 in grid.levels)
        squares = (y - self.wide).square_()
        return ErrorSums(
            n=self.x.numel(),
            signal_C=self.signal,
            error_C=self.power(squares),
            max_error=sqrt(float(squares.max())),
            saturated=_saturated(blocks, used, grid),
            zeroed=zeroed,
            nonzero=self.nonzero,
            underflowed_scales=int(underflowed(blocks, used)),
            scales=used.stored.numel(),
            levels=distinct,
            bits=round(q.bits_per_value(self.x.shape) * self.x.numel()),
        )

    def zeroed(self, y: Tensor, *, exact: bool) -> int:
        if exact:  # zeros stay zero, so that counting is enough
            return self.nonzero - int(y.count_nonzero())
        return int(((y == 0) & (self.x != 0)).sum())


def _distinct(levels: Tensor, grid: Grid) -> int:
    codes = nearest(levels.flatten()[:SAMPLE], grid)
    return int(torch.bincount(codes, minlength=len(grid.levels)).count_nonzero())


def _saturated(blocks: Blocks, used: Scaling, grid: Grid) -> int:
    low, high = grid.limits
    shift = 0 if used.zeros is None else used.zeros
    # Most scale rules never saturate: look at the ends of each group before looking at every value.
    ends = (blocks.peak, -blocks.peak) if used.zeros is None else (blocks.high, blocks.low)
    top, bottom = (end * used.inverse + shift for end in ends)
    if not ((top > high) | (bottom < low)).any():
        return 0
    y = blocks.values * used.inverse + shift
    return int((y > high).sum() + (y < low).sum())


@cache
def _keep_freed_memory() -> None:
    """Stop glibc from returning freed buffers to the system, which costs more than the arithmetic (page faults).

    Its thresholds rise to the size of the largest mapped block freed so far, up to 32 MiB. The block is never touched.
    """
    torch.empty(31 * 2**20, dtype=torch.uint8)
