"""Which formats the compiled kernel measures in one pass, how they are described to it, and the pass itself."""

import ctypes
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import frexp, inf, sqrt
from types import MappingProxyType

import torch
from torch import Tensor

from qbench.quant import native
from qbench.quant.blocks import NonFinite
from qbench.quant.grid import Grid, grid_of
from qbench.quant.group import place
from qbench.quant.moments import Moments
from qbench.quant.plain import sample_rows, squares_fit
from qbench.quant.quantizer import Quantizer
from qbench.quant.rounding import cell_ends
from qbench.quant.spec import QuantizerSpec, bits_per_value
from qbench.quant.sums import ErrorSums, Rows, Table

DTYPES: Mapping[torch.dtype, int] = MappingProxyType({torch.float32: 0, torch.bfloat16: 1, torch.float16: 2})
BLOCKS = (16, 32, 64, 128, 256)
MAX_WIDTH = 2**16  # channels: every format keeps a sum for each
RUN = 2**22  # values of a run of rows, whose token moments are kept at once
_GRANULARITY = {"tensor": 0, "token": 1, "channel": 2, "block": 3}
_RULES = {"absmax": 0, "rms": 1, "pow2": 2, "ceil": 3, "rceil": 4, "even": 5}
_STORAGE = {"fp32": 0, "bf16": 1, "fp16": 2, "e8m0": 3, "e4m3": 4, "e4m3.fp32": 5}
_INTEGER, _SHIFTED, _HALVES, _MINIFLOAT, _FEW, _MANY = range(6)


def obstacle(spec: QuantizerSpec) -> str | None:
    """Why the kernel does not measure a format; None where it does."""
    group = spec.group
    reasons = (
        (spec.static, "the scale was fixed before"),
        (spec.wrapped, "values are transformed first"),
        (spec.rounding != "nearest", f"rounding {spec.rounding}"),
        (spec.fitted, "levels are fitted to the tensor"),
        (spec.rule not in _RULES, f"scale rule {spec.rule}"),
        (spec.scale not in _STORAGE, f"scale:{spec.scale} has scales of its own"),
        (group.kind not in _GRANULARITY or group.axis != -1, f"granularity {spec.granularity}"),
        (group.kind == "block" and group.sizes[0] not in BLOCKS, f"blocks are not of {BLOCKS} values"),
        (group.kind == "channel" and spec.rule == "rms", "channels with scale rule rms"),
        (group.kind in ("tensor", "channel") and spec.scale == "e4m3.fp32", f"granularity {spec.granularity}"),
    )
    return next((reason for applies, reason in reasons if applies), None)


def unfit(x: Tensor, channel_axis: int) -> str | None:
    """Why no kernel measures a tensor at all; None where one may."""
    axis = place(channel_axis, max(x.ndim, 1))
    reasons = (
        (x.dtype not in DTYPES, str(x.dtype).removeprefix("torch.")),
        (not x.numel(), "empty"),
        (not x.is_contiguous(), "not contiguous"),
        (axis != x.ndim - 1 and (axis, x.ndim) != (0, 2), f"channels along axis {axis} of {x.ndim}"),
        (bool(x.numel()) and (x.shape or (1,))[-1] > MAX_WIDTH, f"more than {MAX_WIDTH} values in a row"),
        (axis == 0 and x.ndim == 2 and len(x) > MAX_WIDTH, f"more than {MAX_WIDTH} channels"),
    )
    return next((reason for applies, reason in reasons if applies), None)


def out_of_range(dtype: torch.dtype, peak: float) -> str | None:
    """Why float32 sums would not do for a tensor with this largest magnitude."""
    if not squares_fit(peak):
        return "squares leave the range of float32"
    return "levels may leave the range of float16" if dtype == torch.float16 and peak >= 2**14 else None


def measure(
    x: Tensor, channel_axis: int, quantizers: Sequence[Quantizer], see: Callable[[Rows], None] | None
) -> Table | str:
    """One pass over `x` for all `quantizers`, which have no `obstacle`; or why it cannot be had. Raises NonFinite."""
    reason = f"on {x.device.type}" if x.device.type != "cpu" else unfit(x, channel_axis)
    if reason is not None:
        return reason
    library = native.kernel()
    if library is None:
        return "no compiled kernel"
    power = any(q.spec.rule == "rms" and q.spec.granularity == "tensor" for q in quantizers)
    found = scan(x, channel_axis, library, power=power)
    reason = out_of_range(x.dtype, found.peak)
    return reason or fused(found, quantizers, x.shape[-2] if x.ndim > 1 else 1, see)


@dataclass(frozen=True)
class Pass:
    """One contiguous tensor as rows, and what was found of it as a whole. Raises NonFinite."""

    x: Tensor
    channels_are_rows: bool
    kernel: ctypes.CDLL
    low: float
    high: float
    power: float

    @property
    def peak(self) -> float:
        return max(-self.low, self.high)


def scan(x: Tensor, channel_axis: int, kernel: ctypes.CDLL, *, power: bool) -> Pass:
    """Look at every value of a tensor that is not `unfit`, and at its squares where a scale for all needs them."""
    rows = x.reshape(-1, (x.shape or (1,))[-1])
    found = native.Scan()
    kernel.qbench_scan(rows.data_ptr(), rows.numel(), DTYPES[x.dtype], power, ctypes.byref(found))
    if not found.finite:
        bad = x.numel() - int(x.isfinite().sum())
        raise NonFinite(f"{bad} of {x.numel()} values are NaN or infinite")
    by_row = x.ndim == 2 and channel_axis % 2 == 0
    return Pass(rows, by_row, kernel, found.low, found.high, found.power)


def fused(p: Pass, quantizers: Sequence[Quantizer], unit: int, see: Callable[[Rows], None] | None) -> Table:
    """Measure all `quantizers`, which have no `obstacle`, and the moments of columns and rows where `see` wants them.

    `see` is shown the rows in runs; none crosses a multiple of `unit` rows except to end on one.
    """
    rows, width = p.x.shape
    channels = rows if p.channels_are_rows else width
    padded = channels + -channels % 16  # the kernel adds sixteen at a time
    errors = torch.zeros(len(quantizers) + 1, padded, dtype=torch.float64)
    formats = (native.Format * len(quantizers))(*(_described(q.spec, p.channels_are_rows) for q in quantizers))
    for format_, sums in zip(formats, errors[1:], strict=True):
        format_.error = sums.data_ptr()
    columns = _nothing(width, p.x) if see else None
    limits = _column_ranges(p.x) if any(f.granularity == _GRANULARITY["channel"] for f in formats) else None
    nonzero = 0
    for start, stop in _runs(rows, max(1, RUN // width), unit if see else 1):
        tokens, peak = (_nothing(stop - start, p.x), torch.empty(stop - start)) if see else (None, None)
        job = native.Job(
            x=p.x[start:].data_ptr(),
            rows=stop - start,
            width=width,
            before=start,
            samples=min(rows, sample_rows(width)),
            count=rows,
            dtype=DTYPES[p.x.dtype],
            channels_are_rows=p.channels_are_rows,
            formats=len(quantizers),
            measures_moments=see is not None,
            low=p.low,
            high=p.high,
            power=p.power,
            format=ctypes.cast(formats, ctypes.POINTER(native.Format)),
            signal=errors.data_ptr(),
        )
        if limits is not None:
            job.column_low, job.column_high, job.column_peak = (limit.data_ptr() for limit in limits)
        if tokens is not None and columns is not None and peak is not None:
            job.channel, job.token, job.token_peak = _pointers(columns), _pointers(tokens), peak.data_ptr()
        p.kernel.qbench_run(ctypes.byref(job))
        nonzero += job.nonzero
        if see and tokens is not None and peak is not None:
            see(Rows(start, Moments(width, *tokens), peak))
    signal = errors[0, :channels]
    sums = {
        str(q.spec): _sums(q, f, p, (signal, error[:channels]), nonzero)
        for q, f, error in zip(quantizers, formats, errors[1:], strict=True)
    }
    return Table(sums, {}, None if columns is None else Moments(rows, *columns))


def _sums(q: Quantizer, f: native.Format, p: Pass, powers: tuple[Tensor, Tensor], nonzero: int) -> ErrorSums:
    shape = p.x.shape
    channel_axis = 0 if p.channels_are_rows else -1  # of the rows, whatever it was in the tensor that they were
    return ErrorSums(
        n=p.x.numel(),
        signal_C=powers[0],
        error_C=powers[1],
        max_error=sqrt(f.largest),
        saturated=f.saturated,
        zeroed=nonzero - f.nonzero if f.grid in (_INTEGER, _SHIFTED, _MINIFLOAT) else f.nonzero,
        nonzero=nonzero,
        underflowed_scales=f.underflowed,
        scales=q.spec.group.counts(shape, channel_axis)[0],
        levels=sum(word.bit_count() for word in f.seen),
        bits=round(bits_per_value(q.spec, shape, channel_axis) * p.x.numel()),
    )


def _described(spec: QuantizerSpec, channels_are_rows: bool) -> native.Format:
    """A fresh copy: the kernel adds to it."""
    described = native.Format.from_buffer_copy(_template(spec))
    if channels_are_rows and spec.group.kind == "channel":
        described.granularity = _GRANULARITY["token"]
    return described


@lru_cache(maxsize=1024)
def _template(spec: QuantizerSpec) -> native.Format:
    grid = grid_of(spec)
    mantissa, lowest = grid.floating or (0, 0)
    low_limit, high_limit = grid.limits
    tables = _tables(grid)
    return native.Format(
        granularity=_GRANULARITY[spec.group.kind],
        block=spec.block or 0,
        grid=_kind(spec, grid),
        rule=_RULES[spec.rule],
        storage=_STORAGE[spec.scale],
        clamps=(spec.rule, spec.scale, spec.variant) != ("absmax", "fp32", "narrow"),
        mantissa=mantissa,
        lowest=lowest,
        peak_exponent=frexp(grid.peak)[1],
        codes=len(grid.levels),
        peak=grid.peak,
        unit=1 - 2.0 ** -(mantissa + 2) if spec.rule == "even" else grid.unit() if spec.rule == "rms" else 1.0,
        low=grid.levels[0],
        high=grid.levels[-1],
        low_limit=low_limit,
        high_limit=high_limit,
        boundary=tables[0].data_ptr(),
        levels=tables[1].data_ptr(),
    )


@lru_cache(maxsize=256)
def _tables(grid: Grid) -> Tensor:
    """Boundaries and levels, [2, 256]: kept, because descriptions point into them."""
    tables = torch.full((2, 256), inf)
    tables[0, : len(grid.levels) - 1] = cell_ends(grid, torch.float32)
    tables[1, : len(grid.levels)] = torch.tensor(grid.levels)
    return tables


def _kind(spec: QuantizerSpec, grid: Grid) -> int:
    if spec.variant == "asym":
        return _SHIFTED
    if grid.offset is not None:
        return _HALVES if grid.offset else _INTEGER
    if grid.floating is not None:
        return _MINIFLOAT
    return _FEW if len(grid.levels) <= 16 else _MANY


def _runs(rows: int, limit: int, unit: int) -> Iterator[tuple[int, int]]:
    step = limit // unit * unit or limit
    start = 0
    while start < rows:
        end_of_unit = (start // unit + 1) * unit if unit > limit else rows
        stop = min(start + step, end_of_unit, rows)
        yield start, stop
        start = stop


def _nothing(entries: int, like: Tensor) -> Tensor:
    """Mean and three sums of powers for each entry, as the kernel writes them."""
    return torch.zeros(4, entries, dtype=torch.float64, device=like.device)


def _pointers(moments: Tensor) -> native.Moments:
    return native.Moments(*(part.data_ptr() for part in moments))


def _column_ranges(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    low, high = x.aminmax(dim=0)
    low, high = low.float().clamp_(max=0), high.float().clamp_(min=0)
    return low, high, torch.maximum(-low, high)
