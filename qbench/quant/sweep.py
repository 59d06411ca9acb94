"""Many quantizers over one tensor: what each loses, for little more than the price of reading it."""

from collections.abc import Callable, Iterable
from functools import cache

import torch
from torch import Tensor

from qbench.quant.fused import fused, obstacle, scan, unfit
from qbench.quant.native import kernel
from qbench.quant.plain import Source
from qbench.quant.quantizer import build
from qbench.quant.spec import QuantizerSpec
from qbench.quant.sums import ErrorSums, Rows, Table

__all__ = ["ErrorSums", "Rows", "Table", "sweep"]


def sweep(
    x: Tensor,
    quantizers: Iterable[str | QuantizerSpec],
    channel_axis: int = -1,
    see: Callable[[Rows], None] | None = None,
) -> Table:
    """The error sums of every quantizer on `x`, by canonical name, as roundtrip and naive sums would give them.

    One compiled pass measures all formats that have no `obstacle`; the rest go one by one, and the table says which
    and why. With `see`, the pass also measures the moments that shape metrics need: of the columns in the table, of
    the rows as they come, in runs that end where sequences (the last axis but one) do. Where the tensor is unfit for
    the pass, `see` is not called and the table has no `columns`.

    Raises QuantizerName, NonFinite, CannotRotate or NoSuchAxis.

    >>> sums = sweep(torch.tensor([[7.0, 0.4], [0.0, -14.0]]), ["int4/tensor", "int4/token"])
    >>> {name: (round(s.error, 2), s.zeroed) for name, s in sums.items()}
    {'int4/tensor': (1.16, 1), 'int4/token': (0.16, 1)}
    """
    _keep_freed_memory()
    x = x.detach()
    wanted = {str(q.spec): q for q in (build(name, channel_axis) for name in quantizers)}
    why = {name: obstacle(q.spec) for name, q in wanted.items()}
    together = [q for name, q in wanted.items() if why[name] is None]
    table = Table({}, {})
    if together or see:
        reason = unfit(x, channel_axis)
        library = None if reason else kernel()
        if library is not None:
            power = any(q.spec.rule == "rms" and q.spec.granularity == "tensor" for q in together)
            found = scan(x, channel_axis, library, power=power)
            reason = found.obstacle
            if reason is None:
                table = fused(found, together, x.shape[-2] if x.ndim > 1 else 1, see)
        for q in together:
            why[str(q.spec)] = reason if library or reason else "no compiled kernel"
    plain = {name: reason for name, reason in why.items() if reason is not None}
    source = Source(x, channel_axis)
    sums = {name: table[name] if name in table else source.sums(q) for name, q in wanted.items()}
    return Table(sums, plain, table.columns)


@cache
def _keep_freed_memory() -> None:
    """Stop glibc from returning freed buffers to the system, which costs more than the arithmetic (page faults).

    Its thresholds rise to the size of the largest mapped block freed so far, up to 32 MiB. The block is never touched.
    """
    torch.empty(31 * 2**20, dtype=torch.uint8)
