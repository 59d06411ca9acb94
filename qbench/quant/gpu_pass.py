"""The shared pass for tensors on a GPU: what its kernels measure, and their results as sums, by one transfer."""

from collections.abc import Callable, Sequence
from math import sqrt

from torch import Tensor

from qbench.quant import gpu
from qbench.quant.blocks import NonFinite
from qbench.quant.fused import out_of_range, unfit
from qbench.quant.quantizer import Quantizer
from qbench.quant.spec import QuantizerSpec
from qbench.quant.sums import ErrorSums, Rows, Table

BLOCKS = (16, 32, 64, 128)


def obstacle(spec: QuantizerSpec) -> str | None:
    """Why the kernels do not measure a format; None where they do."""
    group = spec.group
    reasons = (
        (spec.static, "the scale was fixed before"),
        (spec.wrapped, "values are transformed first"),
        (spec.rounding != "nearest", f"rounding {spec.rounding}"),
        (spec.grid != "int", f"levels of {spec.grid}, on a GPU"),
        (spec.variant != "narrow", f"{spec.variant} integers, on a GPU"),
        (spec.rule != "absmax", f"scale rule {spec.rule}, on a GPU"),
        (spec.scale != "fp32", f"scale:{spec.scale}, on a GPU"),
        (group.kind not in ("tensor", "token", "block") or group.axis != -1, f"granularity {spec.granularity}"),
        (group.kind == "block" and group.sizes[0] not in BLOCKS, f"blocks are not of {BLOCKS} values"),
    )
    return next((reason for applies, reason in reasons if applies), None)


def measure(
    x: Tensor, channel_axis: int, quantizers: Sequence[Quantizer], see: Callable[[Rows], None] | None
) -> Table | str:
    """As `fused.measure`, of a CUDA tensor or, under Triton's interpreter, of any; `see` is shown all rows at once."""
    reason = unfit(x, channel_axis) or ("no Triton" if gpu.triton is None else None)
    if reason is not None:
        return reason
    job = gpu.Job(
        x.reshape(-1, (x.shape or (1,))[-1]),
        [q.spec for q in quantizers],
        channels_are_rows=x.ndim == 2 and channel_axis % 2 == 0,
        moments=see is not None,
    )
    out = job.buffers()
    job.launch(out)
    found = out.fetched()
    if found.bad:
        raise NonFinite(f"{int(found.bad)} of {x.numel()} values are NaN or infinite")
    reason = out_of_range(x.dtype, float(found.peak))
    if reason is not None:
        return reason
    rows, width = job.x.shape
    if see is not None:
        see(Rows(0, gpu.moments_of(found.row_powers, found.row_sum, width), found.row_peak.float()))
    columns = None if see is None else gpu.moments_of(found.column_powers, found.column_sum, rows)
    return Table({str(q.spec): _sums(q, k, x, found) for k, q in enumerate(quantizers)}, {}, columns)


def _sums(q: Quantizer, k: int, x: Tensor, found: gpu.Buffers) -> ErrorSums:
    nonzero = int(found.nonzero[0])
    return ErrorSums(
        n=x.numel(),
        signal_C=found.signal,
        error_C=found.error[k],
        max_error=sqrt(float(found.largest[k])),
        saturated=0,  # see `gpu`
        zeroed=nonzero - int(found.nonzero[1 + k]),
        nonzero=nonzero,
        underflowed_scales=int(found.underflowed[k]),
        scales=q.spec.group.counts(x.shape, q.channel_axis)[0],
        levels=int(found.seen[k].sum()),
        bits=round(q.bits_per_value(x.shape) * x.numel()),
    )
