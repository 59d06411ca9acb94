"""The plain way to measure quantizers: encode, decode and sum, one by one; for whatever the shared pass cannot do."""

from dataclasses import dataclass
from functools import cached_property
from math import sqrt

import torch
from torch import Tensor

from qbench.quant.blocks import join, working
from qbench.quant.group import place
from qbench.quant.quantizer import Choice, Quantizer, saturating, snapped, worth_
from qbench.quant.rounding import nearest
from qbench.quant.scale import underflowed
from qbench.quant.sums import SAMPLE, ErrorSums


@dataclass(frozen=True)
class Source:
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
        return self.x if squares_fit(peak) else self.x.double()

    @cached_property
    def signal(self) -> Tensor:
        return self.power(self.wide.square())

    @cached_property
    def nonzero(self) -> int:
        return int(self.x.count_nonzero())

    def power(self, squares: Tensor) -> Tensor:
        """Sums over all axes but the channel's, [channels], float64 on the CPU."""
        axes = [axis for axis in range(squares.ndim) if axis != place(self.channel_axis, squares.ndim)]
        return (squares.sum(axes) if axes else squares).double().cpu()

    def sums(self, q: Quantizer) -> ErrorSums:
        """What `q` loses; raises NonFinite, CannotRotate or NoSuchAxis."""
        if not self.raw.numel():
            nothing = torch.zeros(self.raw.shape[self.channel_axis], dtype=torch.float64)
            return ErrorSums(0, nothing, nothing, 0.0, 0, 0, 0, 0, 0, 0, 0)
        choice = q.choose(self.x)
        levels = snapped(choice.blocks, choice.used, choice.grid, q.spec.rounding, q.stream)
        distinct = _distinct(levels, choice, self.x.shape, q.spec.granularity)
        y = q.restore(worth_(levels, choice.used.factor, choice.used.zeros), self.x.shape, choice.factors)
        y = saturating(y, self.raw.dtype).to(self.x.dtype)
        zeroed = self.zeroed(y, exact=not q.spec.wrapped and 0.0 in choice.grid.levels)
        squares = (y - self.wide).square_()
        return ErrorSums(
            n=self.x.numel(),
            signal_C=self.signal,
            error_C=self.power(squares),
            max_error=sqrt(float(squares.max())),
            saturated=_saturated(q, choice),
            zeroed=zeroed,
            nonzero=self.nonzero,
            underflowed_scales=int(underflowed(choice.blocks, choice.used)),
            scales=choice.used.stored.numel(),
            levels=distinct,
            bits=round(q.bits_per_value(self.x.shape) * self.x.numel()),
        )

    def zeroed(self, y: Tensor, *, exact: bool) -> int:
        if exact:  # zeros stay zero, so that counting is enough
            return self.nonzero - int(y.count_nonzero())
        return int(((y == 0) & (self.x != 0)).sum())


def squares_fit(peak: float) -> bool:
    """Whether squares of numbers and of their errors neither overflow nor underflow in float32."""
    return 1e-12 < peak < 1e12 or peak == 0


def sample_rows(width: int) -> int:
    """How many rows of the last axis are looked at for distinct codes."""
    return max(1, SAMPLE // max(width, 1))


def _distinct(levels: Tensor, choice: Choice, shape: torch.Size, granularity: str) -> int:
    rows = join(levels, shape, granularity).reshape(-1, shape[-1])[: sample_rows(shape[-1])]
    codes = nearest(rows, choice.grid)
    return int(torch.bincount(codes.flatten(), minlength=len(choice.grid.levels)).count_nonzero())


def _saturated(q: Quantizer, choice: Choice) -> int:
    low, high = choice.grid.limits
    blocks, used = choice.blocks, choice.used
    shift = 0 if used.zeros is None else used.zeros
    # Most scale rules never saturate: look at the ends of each group before looking at every value.
    ends = (blocks.peak, -blocks.peak) if used.zeros is None else (blocks.high, blocks.low)
    top, bottom = (end * used.inverse + shift for end in ends)
    return int((~q.trusted(choice)).sum()) if bool(((top > high) | (bottom < low)).any()) else 0
