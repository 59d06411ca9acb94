"""What quantizers lose on a stored matrix, and its shape, from runs of its rows: the numbers of the whole matrix.

A format whose groups lie within rows needs one run at a time. One that needs a number of the whole matrix (its range,
its largest magnitudes by column, all of its scales) gets that from a pass over the file before. What is left, such as
levels fitted to all values, needs the matrix whole, and gets it where it fits in the memory allowed.
"""

import ctypes
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from qbench.capture.scales import calibrated, scaled
from qbench.capture.shards import RUN, Checkpoint, StoredMatrix
from qbench.metrics.shape import MEDIAN_SAMPLE, Mean, ShapeSums, measure, merge, swept
from qbench.quant import fused, native
from qbench.quant.blocks import NonFinite, at
from qbench.quant.group import place
from qbench.quant.moments import pool
from qbench.quant.plain import Source
from qbench.quant.quantizer import Quantizer, build
from qbench.quant.scale import EXPONENTS
from qbench.quant.spec import QuantizerSpec
from qbench.quant.sums import ErrorSums
from qbench.quant.sweep import sweep

AXIS = 0  # a channel of a matrix [out, in] is an output
SPARE = 100 * 10**6  # bytes of memory allowed beside twice the largest tensor of a checkpoint
WHOLE = 72  # bytes of memory for each value that is measured at once, in the most wasteful format: measured
_BASE = 20 * 10**6  # what the sums themselves and the allocator take
_TWO_LEVEL = ("double", "e4m3.fp32")


@dataclass(frozen=True, slots=True, eq=False)
class Streamed:
    """All that records are made of, for one matrix; `left_out` says which quantizers are missing and why."""

    shape: tuple[int, int]
    shapes: ShapeSums
    errors: Mapping[str, ErrorSums]
    left_out: Mapping[str, str]


def feed(
    found: Checkpoint,
    names: Iterable[str],
    quantizers: Sequence[str | QuantizerSpec | Quantizer],
    see: Callable[[str, Streamed], None],
    dtype: torch.dtype | None = None,
) -> None:
    """Show `see` what is measured of each matrix, in the order of the files.

    Memory beside the mapped files stays below twice the largest tensor and SPARE. Raises BadModel for an unknown name,
    and what `streamed` raises.
    """
    for matrix in found.pick(names):
        see(matrix.name, streamed(matrix, quantizers, allowance(found), dtype))


def allowance(found: Checkpoint) -> int:
    """Bytes of memory that measuring a matrix of this checkpoint may take."""
    return 2 * found.largest + SPARE


def streamed(
    matrix: StoredMatrix,
    quantizers: Iterable[str | QuantizerSpec | Quantizer],
    memory: int = SPARE,
    dtype: torch.dtype | None = None,
) -> Streamed:
    """`metrics.shape.swept(whole, quantizers, 0)`, whose numbers these are up to the order of float64 sums.

    Args:
        memory: bytes that may be taken, at least SPARE; more make room for formats that need the matrix whole.
        dtype: measure the matrix as a model loaded in this type has it; by default as stored, and float32 for fp8.

    Raises QuantizerName, NonFinite with the matrix's name, CannotRotate, NoSuchAxis or NotCalibrated.
    """
    asked = (q if isinstance(q, Quantizer) else build(q) for q in quantizers)
    wanted = {str(q.spec): replace(q, channel_axis=AXIS) for q in asked}
    with at(matrix.name):
        if matrix.values <= RUN:
            table, shapes = swept(next(matrix.runs(dtype)), wanted.values(), AXIS)
            return Streamed(matrix.shape, shapes, dict(table), {})
        job = _Job(matrix, dtype, memory - _BASE, _range(matrix, dtype, wanted.values()))
        ways = {name: job.way(q) for name, q in wanted.items()}
        errors, shapes = _by_run(job, *([q for n, q in wanted.items() if ways[n] == way] for way in ("run", "range")))
        errors |= {name: _ONE_BY_ONE[ways[name]](job, q) for name, q in wanted.items() if ways[name] in _ONE_BY_ONE}
    left_out = {name: job.refusal() for name, way in ways.items() if way == "none"}
    return Streamed(matrix.shape, shapes, _one_signal({n: errors[n] for n in wanted if n in errors}), left_out)


def _give_back() -> None:
    """Return freed memory to the system: glibc may keep it all, run after run, in holes that the next does not fit."""
    library = ctypes.CDLL(None) if os.name == "posix" else None
    if (trim := getattr(library, "malloc_trim", None)) is not None:
        trim(ctypes.c_size_t(0))


@dataclass(frozen=True, slots=True)
class _Range:
    """Of all values of a matrix, zero among them; `power` is the sum of their squares, where it was asked for."""

    low: float
    high: float
    power: float

    @property
    def peak(self) -> float:
        return max(-self.low, self.high)


@dataclass(frozen=True, slots=True)
class _Job:
    """One matrix of more than one run, and how each format is measured on it."""

    matrix: StoredMatrix
    dtype: torch.dtype | None
    room: int
    range: _Range

    def way(self, q: Quantizer) -> str:
        """`run`, `range`, `aligned`, `smooth`, `scales` or `whole`, as the module says; `none` where none is left."""
        spec, multiple = q.spec, row_multiple(q.spec)
        whole = "whole" if self._fits(self.matrix.values) else "none"
        # A draw depends on where in the whole tensor a value lies; fixed channels are those of all rows.
        if spec.seed is not None or spec.fitted or (spec.static and spec.group.kind == "channel"):
            return whole
        within = spec.static or (spec.group.kind != "tensor" and spec.scale not in _TWO_LEVEL)
        known = spec.smooth is None or q.calibration is not None
        reasons = (
            (within and multiple == 1 and known, "run"),
            (within and multiple == 1, "smooth"),
            (within and known and self._fits(multiple * self.matrix.shape[1]), "aligned"),
            (not within and multiple == 1 and self._fused(spec), "range"),
            (not within and multiple == 1 and _of_ranges(spec), "scales"),
        )
        return next((way for applies, way in reasons if applies), whole)

    def refusal(self) -> str:
        need = self.matrix.values * WHOLE
        return f"needs the matrix whole: about {need / 1e6:.0f} MB of memory, where {self.room / 1e6:.0f} are allowed"

    def runs(self, multiple: int = 1) -> Iterable[Tensor]:
        return self.matrix.runs(self.dtype, multiple)

    def lean(self, multiple: int = 1) -> Iterable[Tensor]:
        """The same for formats that take a dozen copies of a run: what one leaves is given back before the next."""
        for run in self.runs(multiple):
            yield run
            _give_back()

    def whole(self) -> Tensor:
        return self.matrix.view().to(self.matrix.read_as(self.dtype)).contiguous()

    def total(self, q: Quantizer, parts: Sequence[ErrorSums]) -> ErrorSums:
        """The sums over all runs of rows."""
        values, shape, group = self.matrix.values, self.matrix.shape, q.spec.group
        underflowed = [part.underflowed_scales for part in parts]
        return ErrorSums(
            n=values,
            signal_C=torch.cat([part.signal_C for part in parts]),
            error_C=torch.cat([part.error_C for part in parts]),
            max_error=max(part.max_error for part in parts),
            saturated=sum(part.saturated for part in parts),
            zeroed=sum(part.zeroed for part in parts),
            nonzero=sum(part.nonzero for part in parts),
            underflowed_scales=underflowed[0] if group.kind == "tensor" else sum(underflowed),
            scales=group.counts(shape, AXIS)[0],
            levels=parts[0].levels,  # counted in the first rows of a tensor
            bits=round(q.bits_per_value(shape) * values),
        )

    def _fits(self, values: int) -> bool:
        return values * WHOLE <= self.room

    def _fused(self, spec: QuantizerSpec) -> bool:
        """Whether the compiled kernel takes the range of the whole from us."""
        dtype, width = self.matrix.read_as(self.dtype), self.matrix.shape[1]
        able = dtype in fused.DTYPES and width <= fused.MAX_WIDTH and fused.obstacle(spec) is None
        return able and fused.out_of_range(dtype, self.range.peak) is None and native.kernel() is not None


def row_multiple(spec: QuantizerSpec) -> int:
    """How many rows of a matrix are cut together; 1 where groups lie within rows. Raises NoSuchAxis."""
    group = spec.group
    crosses = group.kind == "tile" or (group.kind == "block" and place(group.axis, 2) == 0)
    return group.sizes[0] if crosses else 1


def _of_ranges(spec: QuantizerSpec) -> bool:
    """Whether scales follow from the smallest and largest value of each group."""
    return spec.smooth is None and spec.rule in ("absmax", *EXPONENTS)


def _range(matrix: StoredMatrix, dtype: torch.dtype | None, quantizers: Iterable[Quantizer]) -> _Range:
    """Raises NonFinite, with how many values are."""
    powered = any(q.spec.rule == "rms" and q.spec.group.kind == "tensor" for q in quantizers)
    low = high = power = 0.0
    bad = 0
    for run in matrix.runs(dtype):
        least, most = (float(end) for end in run.aminmax())
        if not (abs(least) < torch.inf and abs(most) < torch.inf):  # aminmax hands NaN on
            bad += run.numel() - int(run.isfinite().sum())
            continue
        low, high = min(low, least), max(high, most)
        power += float(run.double().square_().sum()) if powered else 0.0
    if bad:
        raise NonFinite(f"{bad} of {matrix.values} values are NaN or infinite")
    return _Range(low, high, power)


def _by_run(
    job: _Job, within: Sequence[Quantizer], ranged: Sequence[Quantizer]
) -> tuple[dict[str, ErrorSums], ShapeSums]:
    """What needs one run at a time, `ranged` with the range of the whole; and the shape."""
    parts: dict[str, list[ErrorSums]] = {str(q.spec): [] for q in (*within, *ranged)}
    shapes: ShapeSums | None = None
    for run in job.runs():
        table, sums = swept(run, within, AXIS)
        shapes = sums if shapes is None else merge(shapes, sums)
        for name, one in {**table, **_with_range(job, run, ranged)}.items():
            parts[name].append(one)
    assert shapes is not None
    errors = {str(q.spec): job.total(q, parts[str(q.spec)]) for q in (*within, *ranged)}
    return errors, _of_the_whole(job, shapes)


def _one_signal(errors: Mapping[str, ErrorSums]) -> dict[str, ErrorSums]:
    """The same sums with one copy of the matrix's own, where they are equal: of hundreds of matrices that is half."""
    signal = next((sums.signal_C for sums in errors.values()), None)
    same = {name: signal is not None and torch.equal(sums.signal_C, signal) for name, sums in errors.items()}
    return {n: replace(sums, signal_C=signal) if same[n] and signal is not None else sums for n, sums in errors.items()}


def _with_range(job: _Job, run: Tensor, quantizers: Sequence[Quantizer]) -> Mapping[str, ErrorSums]:
    library = native.kernel()
    if not quantizers or library is None:
        return {}
    found, share = job.range, run.numel() / job.matrix.values
    return fused.fused(fused.Pass(run, True, library, found.low, found.high, found.power * share), quantizers, 1, None)


def _of_the_whole(job: _Job, runs: ShapeSums) -> ShapeSums:
    """The sums of runs with what is said of a batch or a sequence said of the matrix, which is one of each."""
    matrix = pool(runs.channels_C, 0)
    rms = float(matrix.power.sqrt())
    varies = bool(matrix.varies)
    kurtosis = float(matrix.m4 / matrix.n / ((matrix.m2 / (matrix.n - 1)).square() + 1e-6)) if varies else 0.0
    crest = Mean(float(20 * torch.tensor(job.range.peak / rms, dtype=torch.float64).log10()), 1) if rms else Mean()
    means = {
        **runs.means,
        "kurtosis/qualcomm": Mean(kurtosis, int(varies)),
        "crest_db": crest,
        "max_to_median": _max_to_median(job),
    }
    return ShapeSums(runs.channels_C, means, {job.matrix.values: 1} if crest.count else {})


def _max_to_median(job: _Job) -> Mean:
    """Of the rows that a sweep of the whole would take."""
    rows = job.matrix.view()[:: -(-job.matrix.values // MEDIAN_SAMPLE)]
    step = max(1, MEDIAN_SAMPLE // rows.shape[1])
    dtype = job.matrix.read_as(job.dtype)
    chosen = (rows[start : start + step].to(dtype).contiguous() for start in range(0, len(rows), step))
    return sum((measure(some).means["max_to_median"] for some in chosen), Mean())


def _aligned(job: _Job, q: Quantizer) -> ErrorSums:
    name = str(q.spec)
    return job.total(q, [sweep(run, [q], AXIS)[name] for run in job.lean(row_multiple(q.spec))])


def _smooth(job: _Job, q: Quantizer) -> ErrorSums:
    chosen = calibrated(q, job.lean())
    return job.total(q, [Source(run, AXIS).sums(chosen) for run in job.lean()])


def _scales(job: _Job, q: Quantizer) -> ErrorSums:
    chosen = scaled(q, job.lean())
    sums = job.total(q, [Source(run, AXIS).sums(part) for run, part in zip(job.lean(), chosen, strict=True)])
    return replace(sums, underflowed_scales=chosen.underflowed)


def _whole(job: _Job, q: Quantizer) -> ErrorSums:
    sums = Source(job.whole(), AXIS).sums(q)
    _give_back()
    return sums


_ONE_BY_ONE: Mapping[str, Callable[[_Job, Quantizer], ErrorSums]] = {
    "aligned": _aligned,
    "smooth": _smooth,
    "scales": _scales,
    "whole": _whole,
}
