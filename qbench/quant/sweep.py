"""Many quantizers over one tensor: what each loses, for little more than the price of reading it."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import cache
from typing import Protocol

import torch
from torch import Tensor

from qbench.quant import fused
from qbench.quant.plain import Source
from qbench.quant.quantizer import Quantizer, build
from qbench.quant.spec import QuantizerSpec
from qbench.quant.sums import ErrorSums, Rows, Table

__all__ = ["ErrorSums", "Rows", "Table", "sweep"]


class OnePass(Protocol):
    """A way to measure many formats together; a module of two functions."""

    def obstacle(self, spec: QuantizerSpec) -> str | None:
        """Why it does not measure a format; None where it does."""
        ...

    def measure(
        self, x: Tensor, channel_axis: int, quantizers: Sequence[Quantizer], see: Callable[[Rows], None] | None
    ) -> Table | str:
        """The sums, or why this tensor cannot have them in this way. Raises NonFinite."""
        ...


def sweep(
    x: Tensor,
    quantizers: Iterable[str | QuantizerSpec | Quantizer],
    channel_axis: int = -1,
    see: Callable[[Rows], None] | None = None,
) -> Table:
    """The error sums of every quantizer on `x`, by canonical name, as roundtrip and naive sums would give them.

    One compiled pass, of the CPU or of the GPU, measures all formats that have no `obstacle`; the rest go one by one,
    and the table says which and why. With `see`, the pass also measures the moments that shape metrics need: of the
    columns in the table, of the rows as they come, in runs that end where sequences (the last axis but one) do. Where
    the tensor is unfit for the pass, `see` is not called and the table has no `columns`. Results are on the CPU.

    Quantizers that need a calibration are given as they were built with it. Raises QuantizerName, NonFinite,
    CannotRotate, NoSuchAxis, or NotCalibrated.

    >>> sums = sweep(torch.tensor([[7.0, 0.4], [0.0, -14.0]]), ["int4/tensor", "int4/token"])
    >>> {name: (round(s.error, 2), s.zeroed) for name, s in sums.items()}
    {'int4/tensor': (1.16, 1), 'int4/token': (0.16, 1)}
    """
    return swept_by(_one_pass(x.device), x, quantizers, channel_axis, see)


def swept_by(
    shared: OnePass,
    x: Tensor,
    quantizers: Iterable[str | QuantizerSpec | Quantizer],
    channel_axis: int = -1,
    see: Callable[[Rows], None] | None = None,
) -> Table:
    """`sweep` with a given shared pass."""
    _keep_freed_memory()
    x = x.detach()
    asked = (q if isinstance(q, Quantizer) else build(q, channel_axis) for q in quantizers)
    wanted = {str(q.spec): replace(q, channel_axis=channel_axis) for q in asked}
    why = {name: shared.obstacle(q.spec) for name, q in wanted.items()}
    together = [q for name, q in wanted.items() if why[name] is None]
    found = shared.measure(x, channel_axis, together, see) if together or see else ""
    table = Table({}, {}) if isinstance(found, str) else found
    if isinstance(found, str):
        why |= {str(q.spec): found for q in together}
    plain = {name: reason for name, reason in why.items() if reason is not None}
    source = Source(x, channel_axis)
    sums = {name: table[name] if name in table else source.sums(q) for name, q in wanted.items()}
    return Table(sums, plain, table.columns)


def _one_pass(device: torch.device) -> OnePass:
    if device.type != "cuda":
        return fused
    from qbench.quant import gpu_pass  # and with it Triton

    return gpu_pass


@cache
def _keep_freed_memory() -> None:
    """Stop glibc from returning freed buffers to the system, which costs more than the arithmetic (page faults).

    Its thresholds rise to the size of the largest mapped block freed so far, up to 32 MiB. The block is never touched.
    """
    torch.empty(31 * 2**20, dtype=torch.uint8)
