"""Scales of a matrix that is never there as a whole: chosen for all of its groups, then used on one run of rows."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from qbench.quant.blocks import Blocks, working
from qbench.quant.grid import grid_of
from qbench.quant.quantizer import Choice, Quantizer
from qbench.quant.scale import Scaling, scaling, underflowed
from qbench.quant.smooth import Calibration


@dataclass(frozen=True, slots=True)
class _Fixed(Quantizer):
    """A quantizer whose scales were chosen before."""

    used: Scaling | None = None

    def choose(self, x: Tensor) -> Choice:
        assert self.used is not None
        return Choice(grid_of(self.spec), self.blocks(working(x)), self.used, None)


@dataclass(frozen=True, slots=True, eq=False)
class Scaled:
    """One quantizer for each run of rows, all with the scales that the whole matrix gets."""

    quantizer: Quantizer
    used: Scaling
    groups: tuple[int, ...]  # rows of scales of each run; none where one scale is for all
    runs: int
    underflowed: int

    def __iter__(self) -> Iterator[Quantizer]:
        q, start = self.quantizer, 0
        for run in range(self.runs):
            rows = slice(start, start + self.groups[run]) if self.groups else slice(None)
            start = rows.stop or 0
            yield _Fixed(q.spec, q.channel_axis, q.stream, None, _rows(self.used, rows))


def scaled(q: Quantizer, runs: Iterable[Tensor]) -> Scaled:
    """The scales of a matrix [out, in] that comes in runs of rows.

    Groups lie within rows, or one group is all of them; the rule looks at the smallest and the largest value of each.
    """
    ends: list[Tensor] = []
    for run in runs:
        blocks = q.blocks(working(run))
        ends.append(torch.stack((blocks.values.amin(blocks.dims, True), blocks.values.amax(blocks.dims, True)), -1))
    tensor = q.spec.group.kind == "tensor"
    # Two values stand for each group: what a rule asks of them is what it would ask of the group.
    groups = Blocks(
        torch.cat([e.flatten(end_dim=-1) for e in ends])[None, None] if tensor else torch.cat(ends), (-1,), 2
    )
    used = scaling(groups, q.spec, grid_of(q.spec))
    count = () if tensor else tuple(len(e) for e in ends)
    squeezed = replace(used, **{f.name: _narrow(getattr(used, f.name)) for f in fields(used) if f.name != "outer"})
    return Scaled(q, squeezed, count, len(ends), int(underflowed(groups, used)))


def calibrated(q: Quantizer, runs: Iterable[Tensor]) -> Quantizer:
    """A quantizer that divides columns by what the whole matrix would be divided by."""
    largest: Tensor | None = None
    for run in runs:
        peak = working(run).abs().amax(0)
        largest = peak if largest is None else torch.maximum(largest, peak)
    assert largest is not None
    return replace(q, calibration=Calibration(largest))


def _narrow(part: Tensor | None) -> Tensor | None:
    return None if part is None else part.squeeze(-1)


def _rows(used: Scaling, rows: slice) -> Scaling:
    """The scales of some rows of groups; the scales of scales are for all of them."""
    zeros = None if used.zeros is None else used.zeros[rows]
    return Scaling(used.stored[rows], used.factor[rows], used.inverse[rows], zeros, used.outer)
