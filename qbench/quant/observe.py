"""What a static quantizer has to know of a calibration set, gathered tensor by tensor in bounded memory."""

from collections.abc import Callable, Mapping
from functools import partial
from types import MappingProxyType
from typing import Protocol

import torch
from torch import Tensor

from qbench.quant.blocks import Blocks, working
from qbench.quant.family import EXPONENT_RULES
from qbench.quant.grid import grid_of
from qbench.quant.quantizer import Quantizer
from qbench.quant.scale import scaling
from qbench.quant.smooth import Calibration
from qbench.quant.spec import QuantizerSpec
from qbench.quant.static import Fixed

SAMPLE = 2**18  # values that rules which need values look at, in whole rows,
ROWS = 2**10  # but at least so many rows
_DROPPED = 13  # low bits of a float32 magnitude that the histogram ignores: 10 of mantissa stay, bins 0.1 % wide


class Summary(Protocol):
    """What one rule needs of the rows [n, channels] of a place."""

    def see(self, rows: Tensor) -> None: ...
    def representatives(self) -> Tensor:
        """A few values [m, groups] from which the rule chooses the scale that it would choose from all."""
        ...


class Observer:
    """Sees the tensors of one place and then gives the fixed scale of `spec`; the last axis are channels.

    Exact for rules of the range (absmax, asymmetric, powers of two), of rms and mean magnitude. A percentile of the
    tensor is read from a histogram of 0.1 % wide bins, at the upper end of its bin. A percentile of channels, mse and
    clip look at all rows up to 2^18 values or 1024 rows, and of more at an even share, whatever the batches.
    `smoothing` gives the factors of a spec that smooths; without it each tensor would have its own.
    """

    def __init__(self, spec: QuantizerSpec, smoothing: Calibration | None = None) -> None:
        self.quantizer = Quantizer(spec, calibration=smoothing)
        self.summary = _summary(spec)

    def see(self, x: Tensor) -> None:
        """Take in a tensor [..., channels]; raises NonFinite, CannotRotate."""
        if x.numel():
            smoothed, _ = self.quantizer.smoothed(working(x))
            rows = self.quantizer.blocks(smoothed).values
            self.summary.see(rows.reshape(-1, rows.shape[-1]))

    def fixed(self) -> Fixed:
        """The scale of everything seen; ValueError where that is nothing."""
        spec = self.quantizer.spec
        few = self.summary.representatives()
        used = scaling(Blocks(few, (0,), len(few)), spec, grid_of(spec))
        return Fixed(spec, used.stored.flatten(), None if used.zeros is None else used.zeros.flatten())


class _Extremes:
    """Smallest and largest value of each group: all that absmax, zero points and powers of two depend on."""

    def __init__(self, spec: QuantizerSpec) -> None:
        self.by_channel = spec.granularity == "channel"
        self.ends: Tensor | None = None

    def see(self, rows: Tensor) -> None:
        now = torch.stack(rows.aminmax(dim=0)) if self.by_channel else torch.stack(rows.aminmax())[:, None]
        both = now if self.ends is None else torch.cat([self.ends, now])
        self.ends = torch.stack(both.aminmax(dim=0))

    def representatives(self) -> Tensor:
        return _seen(self.ends)


class _PowerMean:
    """The mean of |x|^power of each group, to its root: a single value with this is as good as all."""

    def __init__(self, power: int, spec: QuantizerSpec) -> None:
        self.power, self.by_channel = power, spec.granularity == "channel"
        self.total: Tensor | None = None
        self.count = 0
        self.dtype = torch.float32

    def see(self, rows: Tensor) -> None:
        powers = rows.double().abs().pow_(self.power)
        now = powers.sum(0) if self.by_channel else powers.sum()[None]
        self.total = now if self.total is None else self.total + now
        self.count += len(rows) if self.by_channel else rows.numel()
        self.dtype = rows.dtype

    def representatives(self) -> Tensor:
        return _seen(self.total).div(self.count).pow(1 / self.power).to(self.dtype)[None]


class _Magnitudes:
    """A histogram of all magnitudes by the leading bits of float32: no range has to be known before."""

    def __init__(self, spec: QuantizerSpec) -> None:
        self.percent = spec.rule_argument
        self.counts: Tensor | None = None
        self.peak = 0.0

    def see(self, rows: Tensor) -> None:
        magnitudes = rows.float().abs().flatten()
        bins = magnitudes.view(torch.int32) >> _DROPPED
        now = torch.bincount(bins, minlength=2 ** (31 - _DROPPED))
        self.counts = now if self.counts is None else self.counts + now
        self.peak = max(self.peak, float(magnitudes.max()))

    def representatives(self) -> Tensor:
        below = _seen(self.counts).cumsum(0)
        rank = (below[-1].double() * self.percent / 100).ceil().clamp(min=1).long()
        bin_ = torch.searchsorted(below, rank)
        end = (((bin_ + 1) << _DROPPED) - 1).int().view(torch.float32)
        return end.clamp(max=self.peak).reshape(1, 1)


class _Sample:
    """Whole rows, all of them while they are few, then an even share that depends on their number alone."""

    def __init__(self, spec: QuantizerSpec) -> None:
        self.by_channel = spec.granularity == "channel"
        self.rows: Tensor | None = None
        self.marks: Tensor | None = None
        self.limit = 2**32
        self.before = 0

    def see(self, rows: Tensor) -> None:
        index = torch.arange(self.before, self.before + len(rows), device=rows.device)
        self.before += len(rows)
        # Multiples of the golden ratio: an even share of the rows that never falls in step with their period, where
        # every n-th row could be the first token of each window.
        marks = (index * 0x9E3779B1) & 0xFFFFFFFF
        kept = marks < self.limit
        rows, marks = rows[kept].clone(), marks[kept]
        self.rows = rows if self.rows is None else torch.cat([self.rows, rows])
        self.marks = marks if self.marks is None else torch.cat([self.marks, marks])
        while len(self.rows) > max(ROWS, SAMPLE // rows.shape[-1]):
            self.limit //= 2
            fewer = self.marks < self.limit
            self.rows, self.marks = self.rows[fewer], self.marks[fewer]

    def representatives(self) -> Tensor:
        rows = _seen(self.rows)
        return rows if self.by_channel else rows.reshape(-1, 1)


_SUMMARIES: Mapping[str, Callable[[QuantizerSpec], Summary]] = MappingProxyType(
    {
        **dict.fromkeys(("absmax", *EXPONENT_RULES), _Extremes),
        "rms": partial(_PowerMean, 2),
        "meanabs": partial(_PowerMean, 1),
        **dict.fromkeys(("percentile", "mse", "clip"), _Sample),
    }
)


def _summary(spec: QuantizerSpec) -> Summary:
    if spec.rule_word == "percentile" and spec.granularity == "tensor":
        return _Magnitudes(spec)
    return _SUMMARIES[spec.rule_word](spec)


def _seen(found: Tensor | None) -> Tensor:
    if found is None:
        raise ValueError("nothing was seen of this place: a calibration needs at least one value")
    return found
