"""The sweep on a GPU: two Triton kernels, one read of the tensor each, and nothing sent back to the host between them.

`ranges` finds what scales and centres need: the largest magnitude of the tensor and of each row, the sums of rows and
columns. `losses` reads every tile once more and measures all formats and the fourth moments from registers. Both run a
fixed number of programs, each over many tiles, and write into buffers given to them: a CUDA graph can hold them.
Only integer formats with absmax scales are measured here; `fits` says which.
"""
# Triton's language is known to its compiler only, and a kernel takes every buffer as an argument.
# pyright: basic, reportInvalidTypeForm=false, reportIndexIssue=false, reportGeneralTypeIssues=false
# ruff: noqa: PLR0913, PLR0915, PLR0917

from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from qbench.quant.grid import grid_of
from qbench.quant.moments import Moments
from qbench.quant.spec import QuantizerSpec

# It comes with the torch of a GPU; without it, nobody calls `launch`.
triton: Any = import_module("triton") if find_spec("triton") else None
tl: Any = import_module("triton.language") if triton else SimpleNamespace(constexpr=None)
jit: Any = triton.jit if triton else lambda kernel: kernel

ROWS, COLUMNS = 32, 128  # of a tile: one warp reads 512 bytes of a row with 16-byte loads
PROGRAMS = 8  # for each multiprocessor, and so enough loads in flight


def fits(spec: QuantizerSpec) -> bool:
    """Whether the kernels measure a format."""
    plain = QuantizerSpec(grid="int", bits=spec.bits, granularity=spec.granularity) if spec.grid == "int" else None
    return spec == plain and (spec.granularity in ("tensor", "token") or (spec.block or 0) in (16, 32, 64, 128))


@jit
def ranges(x, peak, row_peak, row_sum, column_sum, rows, width, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    across = tl.cdiv(width, COLUMNS)
    for tile in range(tl.program_id(0), tl.cdiv(rows, ROWS) * across, tl.num_programs(0)):
        r = (tile // across) * ROWS + tl.arange(0, ROWS)
        c = (tile % across) * COLUMNS + tl.arange(0, COLUMNS)
        inside = (r < rows)[:, None] & (c < width)[None, :]
        v = tl.load(x + r.to(tl.int64)[:, None] * width + c[None, :], mask=inside, other=0.0).to(tl.float32)
        largest = tl.max(tl.abs(v), axis=1)
        tl.atomic_max(row_peak + r, largest, mask=r < rows)
        tl.atomic_max(peak, tl.max(largest, axis=0))
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
def losses(
    x, peak, row_peak, row_sum, column_sum, rows, width,
    signal, error, largest, nonzero, row_powers, column_powers,
    BLOCKS: tl.constexpr, TOPS: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """BLOCKS: values that share a scale in each format, 0 for a row and -1 for the tensor; TOPS: its largest level."""
    across = tl.cdiv(width, COLUMNS)
    of_tensor = tl.load(peak)
    for tile in range(tl.program_id(0), tl.cdiv(rows, ROWS) * across, tl.num_programs(0)):
        r = (tile // across) * ROWS + tl.arange(0, ROWS)
        c = (tile % across) * COLUMNS + tl.arange(0, COLUMNS)
        inside = (r < rows)[:, None] & (c < width)[None, :]
        raw = tl.load(x + r.to(tl.int64)[:, None] * width + c[None, :], mask=inside, other=0.0)
        v = raw.to(tl.float32)
        tl.atomic_add(signal + c, tl.sum(v * v, axis=0).to(tl.float64), mask=c < width)
        tl.atomic_add(nonzero, tl.sum((v != 0).to(tl.int32)).to(tl.int64))
        row_mean = (tl.load(row_sum + r, mask=r < rows, other=0.0) / width).to(tl.float32)
        column_mean = (tl.load(column_sum + c, mask=c < width, other=0.0) / rows).to(tl.float32)
        _powers(tl.where(inside, v - row_mean[:, None], 0.0), 1, row_powers, r, r < rows, rows)
        _powers(tl.where(inside, v - column_mean[None, :], 0.0), 0, column_powers, c, c < width, width)
        of_row = tl.load(row_peak + r, mask=r < rows, other=0.0)
        for k in tl.static_range(len(TOPS)):
            # A division for each group, not for each value.
            if BLOCKS[k] > 0:
                cut = tl.reshape(v, (ROWS, COLUMNS // BLOCKS[k], BLOCKS[k]))
                factor, inverse = _scales(tl.max(tl.abs(cut), axis=2), TOPS[k])
                factor = _spread(factor, ROWS, COLUMNS, BLOCKS[k])
                inverse = _spread(inverse, ROWS, COLUMNS, BLOCKS[k])
            elif BLOCKS[k] == 0:
                factor, inverse = _scales(of_row, TOPS[k])
                factor, inverse = factor[:, None], inverse[:, None]
            else:
                factor, inverse = _scales(of_tensor, TOPS[k])
            y = (_even(v * inverse) * factor).to(raw.dtype).to(tl.float32)
            e = y - v
            square = e * e
            tl.atomic_add(error + k * width + c, tl.sum(square, axis=0).to(tl.float64), mask=c < width)
            tl.atomic_max(largest + k, tl.max(tl.max(square, axis=1), axis=0))
            tl.atomic_add(nonzero + 1 + k, tl.sum((y != 0).to(tl.int32)).to(tl.int64))


@dataclass(frozen=True, slots=True, eq=False)
class Buffers:
    """Everything the kernels write, on the tensor's device; `zero_` before each run, also inside a graph."""

    peak: Tensor
    row_peak: Tensor
    row_sum: Tensor
    column_sum: Tensor
    signal: Tensor
    error: Tensor  # [formats, width]
    largest: Tensor  # squared error, [formats]
    nonzero: Tensor  # of the tensor, then of each format
    row_powers: Tensor  # [4, rows]
    column_powers: Tensor  # [4, width]

    def zero_(self) -> None:
        for name in self.__slots__:
            getattr(self, name).zero_()


def buffers(rows: int, width: int, formats: int, device: torch.device) -> Buffers:
    def make(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
        return torch.zeros(shape, dtype=dtype, device=device)

    return Buffers(
        make(1, dtype=torch.float32),
        make(rows, dtype=torch.float32),
        make(rows),
        make(width),
        make(width),
        make(formats, width),
        make(formats, dtype=torch.float32),
        make(formats + 1, dtype=torch.int64),
        make(4, rows),
        make(4, width),
    )


def launch(x: Tensor, specs: Sequence[QuantizerSpec], out: Buffers) -> None:
    """Measure the contiguous matrix `x` into `out`; asynchronous, without a look at any value.

    NaN and infinity are not looked for: they show in the sums.
    """
    rows, width = x.shape
    size = {"tensor": -1, "token": 0}
    blocks = tuple(size.get(spec.granularity, spec.block or 0) for spec in specs)
    tops = tuple(grid_of(spec).peak for spec in specs)
    tiles = triton.cdiv(rows, ROWS) * triton.cdiv(width, COLUMNS)
    many = torch.cuda.get_device_properties(x.device).multi_processor_count if x.is_cuda else 1
    grid = (min(tiles, PROGRAMS * many),)
    found = (out.peak, out.row_peak, out.row_sum, out.column_sum, rows, width)
    ranges[grid](x, *found, ROWS, COLUMNS)
    losses[grid](
        x, *found, out.signal, out.error, out.largest, out.nonzero, out.row_powers, out.column_powers,
        blocks, tops, ROWS, COLUMNS,
    )  # fmt: skip


def moments_of(powers: Tensor, total: Tensor, n: int) -> Moments:
    """Central moments from sums of powers about the float32 mean."""
    shift = powers[0] / n
    s2, s3, s4 = powers[1], powers[2], powers[3]
    m3 = s3 - 3 * shift * s2 + 2 * n * shift**3
    m4 = s4 - 4 * shift * s3 + 6 * shift**2 * s2 - 3 * n * shift**4
    return Moments(n, (total / n).float().double() + shift, s2 - n * shift**2, m3, m4)
