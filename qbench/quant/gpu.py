"""The sweep on a GPU: two Triton kernels, one read of the tensor each, and nothing sent back to the host between them.

`ranges` finds what scales and centres need: the largest magnitude of the tensor and of each row, the sums of rows and
columns. `losses` reads every tile once more and measures all formats and the fourth moments from registers. Both run a
fixed number of programs, each over many tiles, and write into buffers given to them: a CUDA graph can hold them.
Only integer formats with absmax scales are measured here; `gpu_pass.obstacle` says which. Such a format never
saturates: the largest magnitude of a group, divided by its scale, is its outermost level but for three roundings of
2^-23 at most, and half a step beyond it is 2^-8 away.
"""
# Triton's language is known to its compiler only, and a kernel takes every buffer as an argument.
# pyright: basic, reportInvalidTypeForm=false, reportIndexIssue=false, reportGeneralTypeIssues=false
# ruff: noqa: C901, PLR0913, PLR0915, PLR0917

from collections.abc import Sequence
from dataclasses import dataclass, fields
from importlib import import_module
from importlib.util import find_spec
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from qbench.quant.grid import grid_of
from qbench.quant.moments import Moments
from qbench.quant.plain import sample_rows
from qbench.quant.spec import QuantizerSpec

# It comes with the torch of a GPU; without it, nobody calls `launch`.
triton: Any = import_module("triton") if find_spec("triton") else None
tl: Any = import_module("triton.language") if triton else SimpleNamespace(constexpr=None)
jit: Any = triton.jit if triton else lambda kernel: kernel

ROWS, COLUMNS = 32, 128  # of a tile: one warp reads 512 bytes of a row with 16-byte loads
CODES = 256  # that a format may have
# A product that is not rounded before something is added to it would move values at ties, as on the CPU.
OPTIONS = {"enable_fp_fusion": False}
PROGRAMS = 8  # for each multiprocessor, and so enough loads in flight


@jit
def ranges(
    x, peak, row_peak, row_sum, column_sum, rows, width, bad,
    MOMENTS: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    across = tl.cdiv(width, COLUMNS)
    for tile in range(tl.program_id(0), tl.cdiv(rows, ROWS) * across, tl.num_programs(0)):
        r = (tile // across) * ROWS + tl.arange(0, ROWS)
        c = (tile % across) * COLUMNS + tl.arange(0, COLUMNS)
        inside = (r < rows)[:, None] & (c < width)[None, :]
        v = tl.load(x + r.to(tl.int64)[:, None] * width + c[None, :], mask=inside, other=0.0).to(tl.float32)
        finite = tl.abs(v) <= 3.4028234663852886e38  # which NaN is not either
        tl.atomic_add(bad, tl.sum((~finite).to(tl.int32)).to(tl.int64))
        largest = tl.max(tl.abs(v), axis=1)
        tl.atomic_max(row_peak + r, largest, mask=r < rows)
        tl.atomic_max(peak, tl.max(largest, axis=0))
        if MOMENTS:
            tl.atomic_add(row_sum + r, tl.sum(v, axis=1).to(tl.float64), mask=r < rows)
            tl.atomic_add(column_sum + c, tl.sum(v, axis=0).to(tl.float64), mask=c < width)


@jit
def _powers(d, axis: tl.constexpr, out, at, inside, stride):
    """Add the sums of the powers 1 to 4 of deviations along an axis."""
    square = d * d
    tl.atomic_add(out + at, tl.sum(d, axis=axis).to(tl.float64), mask=inside)
    tl.atomic_add(out + stride + at, tl.sum(square, axis=axis).to(tl.float64), mask=inside)
    tl.atomic_add(out + 2 * stride + at, tl.sum(square * d, axis=axis).to(tl.float64), mask=inside)
    tl.atomic_add(out + 3 * stride + at, tl.sum(square * square, axis=axis).to(tl.float64), mask=inside)


@jit
def _even(u):
    """Round to the nearest whole number, ties to even; magnitudes stay below 2^22."""
    return (u + 12582912.0) - 12582912.0


@jit
def _scales(peak, top):
    """Factor and inverse for each group, rounded as in scale.py."""
    factor = tl.div_rn(peak, tl.zeros_like(peak) + top)
    factor = tl.where(factor < 5.877471754111438e-39, 0.0, factor)  # 2^-127
    return factor, tl.where(factor == 0, 0.0, tl.div_rn(tl.zeros_like(factor) + 1.0, factor))


@jit
def _spread(scale, ROWS: tl.constexpr, COLUMNS: tl.constexpr, BLOCK: tl.constexpr):
    """One number for each block, repeated for each of its values."""
    return tl.reshape(tl.broadcast_to(scale[:, :, None], (ROWS, COLUMNS // BLOCK, BLOCK)), (ROWS, COLUMNS))


@jit
def _add_power(square, out, r, c, rows, width, BY_ROW: tl.constexpr):
    """Add squares to the sums of their channels."""
    if BY_ROW:
        tl.atomic_add(out + r, tl.sum(square, axis=1).to(tl.float64), mask=r < rows)
    else:
        tl.atomic_add(out + c, tl.sum(square, axis=0).to(tl.float64), mask=c < width)


@jit
def _underflows(factor, peak):
    return tl.sum(((factor == 0) & (peak > 0)).to(tl.int32)).to(tl.int64)


@jit
def _mark(code, out, inside, CODES: tl.constexpr):
    """Leave a mark for each code. NaN and infinity have none, and must not be written elsewhere."""
    code = code.to(tl.int32)
    tl.store(out + code, tl.full(code.shape, 1, tl.uint8), mask=inside & (code >= 0) & (code < CODES))


@jit
def losses(
    x, peak, row_peak, row_sum, column_sum, rows, width,
    signal, error, largest, nonzero, underflowed, seen, samples, row_powers, column_powers,
    BLOCKS: tl.constexpr, TOPS: tl.constexpr, BY_ROW: tl.constexpr, MOMENTS: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, CODES: tl.constexpr,
):  # fmt: skip
    """BLOCKS: values that share a scale in each format, 0 for a row and -1 for the tensor; TOPS: its largest level.

    Channels are columns, or rows where BY_ROW. Codes of the first `samples` rows leave a mark in `seen`.
    """
    channels = rows if BY_ROW else width
    across = tl.cdiv(width, COLUMNS)
    of_tensor = tl.load(peak)
    for tile in range(tl.program_id(0), tl.cdiv(rows, ROWS) * across, tl.num_programs(0)):
        r = (tile // across) * ROWS + tl.arange(0, ROWS)
        c = (tile % across) * COLUMNS + tl.arange(0, COLUMNS)
        inside = (r < rows)[:, None] & (c < width)[None, :]
        raw = tl.load(x + r.to(tl.int64)[:, None] * width + c[None, :], mask=inside, other=0.0)
        v = raw.to(tl.float32)
        _add_power(v * v, signal, r, c, rows, width, BY_ROW)
        tl.atomic_add(nonzero, tl.sum((v != 0).to(tl.int32)).to(tl.int64))
        if MOMENTS:
            row_mean = (tl.load(row_sum + r, mask=r < rows, other=0.0) / width).to(tl.float32)
            column_mean = (tl.load(column_sum + c, mask=c < width, other=0.0) / rows).to(tl.float32)
            _powers(tl.where(inside, v - row_mean[:, None], 0.0), 1, row_powers, r, r < rows, rows)
            _powers(tl.where(inside, v - column_mean[None, :], 0.0), 0, column_powers, c, c < width, width)
        of_row = tl.load(row_peak + r, mask=r < rows, other=0.0)
        for k in tl.static_range(len(TOPS)):
            # A division for each group, not for each value.
            if BLOCKS[k] > 0:
                cut = tl.reshape(v, (ROWS, COLUMNS // BLOCKS[k], BLOCKS[k]))
                of_block = tl.max(tl.abs(cut), axis=2)
                factor, inverse = _scales(of_block, TOPS[k])
                tl.atomic_add(underflowed + k, _underflows(factor, of_block))
                factor = _spread(factor, ROWS, COLUMNS, BLOCKS[k])
                inverse = _spread(inverse, ROWS, COLUMNS, BLOCKS[k])
            elif BLOCKS[k] == 0:
                factor, inverse = _scales(of_row, TOPS[k])
                if tile % across == 0:
                    tl.atomic_add(underflowed + k, _underflows(factor, of_row))
                factor, inverse = factor[:, None], inverse[:, None]
            else:
                factor, inverse = _scales(of_tensor, TOPS[k])
                if tile == 0:
                    tl.atomic_add(underflowed + k, ((factor == 0) & (of_tensor > 0)).to(tl.int64))
            level = _even(v * inverse)
            if (tile // across) * ROWS < samples:
                _mark(level + TOPS[k], seen + k * CODES, inside & (r < samples)[:, None], CODES)
            y = (level * factor).to(raw.dtype).to(tl.float32)
            e = y - v
            square = e * e
            _add_power(square, error + k * channels, r, c, rows, width, BY_ROW)
            tl.atomic_max(largest + k, tl.max(tl.max(square, axis=1), axis=0))
            tl.atomic_add(nonzero + 1 + k, tl.sum((y != 0).to(tl.int32)).to(tl.int64))


@dataclass(frozen=True, slots=True, eq=False)
class Buffers:
    """Everything the kernels write, on the tensor's device; `zero_` before each run, also inside a graph."""

    peak: Tensor
    bad: Tensor  # values that are NaN or infinite
    row_peak: Tensor
    row_sum: Tensor  # empty, as the three others of moments are, where those are not measured
    column_sum: Tensor
    signal: Tensor  # [channels]
    error: Tensor  # [formats, channels]
    largest: Tensor  # squared error, [formats]
    nonzero: Tensor  # of the tensor, then of each format
    underflowed: Tensor  # scales, [formats]
    seen: Tensor  # [formats, CODES], 1 for each code of the sampled rows
    row_powers: Tensor  # [4, rows]
    column_powers: Tensor  # [4, width]

    def zero_(self) -> None:
        for part in self._parts():
            part.zero_()

    def fetched(self) -> "Buffers":
        """A copy on the CPU in float64, which holds all of it exactly, by one transfer."""
        parts = self._parts()
        flat = torch.cat([part.double().flatten() for part in parts]).cpu()
        pieces = flat.split([part.numel() for part in parts])
        return Buffers(*(piece.view(part.shape) for piece, part in zip(pieces, parts, strict=True)))

    def _parts(self) -> list[Tensor]:
        return [getattr(self, field.name) for field in fields(self)]


@dataclass(frozen=True, slots=True, eq=False)
class Job:
    """A contiguous matrix and what is asked of it: formats without an obstacle, channels as rows or columns."""

    x: Tensor
    specs: Sequence[QuantizerSpec]
    channels_are_rows: bool = False
    moments: bool = True

    def buffers(self) -> Buffers:
        """Zeros, ready for a run."""
        (rows, width), formats = self.x.shape, len(self.specs)

        def make(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
            return torch.zeros(shape, dtype=dtype, device=self.x.device)

        channels = rows if self.channels_are_rows else width
        long, wide = (rows, width) if self.moments else (0, 0)
        return Buffers(
            peak=make(1, dtype=torch.float32),
            bad=make(1, dtype=torch.int64),
            row_peak=make(rows, dtype=torch.float32),
            row_sum=make(long),
            column_sum=make(wide),
            signal=make(channels),
            error=make(formats, channels),
            largest=make(formats, dtype=torch.float32),
            nonzero=make(formats + 1, dtype=torch.int64),
            underflowed=make(formats, dtype=torch.int64),
            seen=make(formats, CODES, dtype=torch.uint8),
            row_powers=make(4, long),
            column_powers=make(4, wide),
        )

    def launch(self, out: Buffers) -> None:
        """Measure into `out`; asynchronous, without a look at any value."""
        x, (rows, width) = self.x, self.x.shape
        size = {"tensor": -1, "token": 0}
        blocks = tuple(size.get(spec.granularity, spec.block or 0) for spec in self.specs)
        tops = tuple(grid_of(spec).peak for spec in self.specs)
        tiles = triton.cdiv(rows, ROWS) * triton.cdiv(width, COLUMNS)
        many = torch.cuda.get_device_properties(x.device).multi_processor_count if x.is_cuda else 1
        grid = (min(tiles, PROGRAMS * many),)
        found = (out.peak, out.row_peak, out.row_sum, out.column_sum, rows, width)
        samples = min(rows, sample_rows(width))
        with torch.cuda.device_of(x):
            ranges[grid](x, *found, out.bad, self.moments, ROWS, COLUMNS, **OPTIONS)
            losses[grid](
                x, *found, out.signal, out.error, out.largest, out.nonzero, out.underflowed, out.seen, samples,
                out.row_powers, out.column_powers,
                blocks, tops, self.channels_are_rows, self.moments, ROWS, COLUMNS, CODES, **OPTIONS,
            )  # fmt: skip


def moments_of(powers: Tensor, total: Tensor, n: int) -> Moments:
    """Central moments from sums of powers about the float32 mean."""
    shift = powers[0] / n
    s2, s3, s4 = powers[1], powers[2], powers[3]
    m3 = s3 - 3 * shift * s2 + 2 * n * shift**3
    m4 = s4 - 4 * shift * s3 + 6 * shift**2 * s2 - 3 * n * shift**4
    return Moments(n, (total / n).float().double() + shift, s2 - n * shift**2, m3, m4)
