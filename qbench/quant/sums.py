"""What is kept of a tensor and its quantized copies: sums that merge over batches."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields

from torch import Tensor

from qbench.quant.moments import Moments

SAMPLE = 2**16  # values of a tensor in which distinct codes are counted, in whole rows


@dataclass(frozen=True, slots=True, eq=False)
class ErrorSums:
    """What is needed of one or many tensors to say how far their quantized copies are from them.

    `signal_C` and `error_C` are sums of squares for each index of the channel axis, float64 on the CPU. `saturated`
    counts values beyond the outermost level by more than half a step, after rotation; `zeroed` counts non-zero values
    that became zero; `levels` is the largest number of distinct codes seen in the first rows of a tensor, 64 Ki values
    of them; `bits` is what would be stored. A scale for a whole tensor or channel is chosen anew for each tensor swept.
    """

    n: int
    signal_C: Tensor
    error_C: Tensor
    max_error: float
    saturated: int
    zeroed: int
    nonzero: int
    underflowed_scales: int
    scales: int
    levels: int
    bits: int

    @property
    def signal(self) -> float:
        """Sum of squares of the tensor."""
        return float(self.signal_C.sum())

    @property
    def error(self) -> float:
        """Sum of squares of the error."""
        return float(self.error_C.sum())

    @property
    def bits_per_value(self) -> float:
        return self.bits / self.n if self.n else 0.0

    def merge(self, other: "ErrorSums") -> "ErrorSums":
        """The sums over both; raises ValueError when they have different channels."""
        if self.signal_C.shape != other.signal_C.shape:
            raise ValueError(f"cannot merge {len(self.signal_C)} channels with {len(other.signal_C)}")
        pairs = {field.name: (getattr(self, field.name), getattr(other, field.name)) for field in fields(self)}
        return ErrorSums(**{name: max(a, b) if name in _LARGEST else a + b for name, (a, b) in pairs.items()})


_LARGEST = ("max_error", "levels")


@dataclass(frozen=True, slots=True, eq=False)
class Table(Mapping[str, ErrorSums]):
    """The sums of every quantizer, by canonical name.

    `plain` says which quantizers were measured one by one and not in the shared pass, and why. `columns` are the
    moments of each index of the last axis, where they were asked for and could be had in the shared pass.
    """

    sums: Mapping[str, ErrorSums]
    plain: Mapping[str, str]
    columns: Moments | None = None

    def __getitem__(self, name: str) -> ErrorSums:
        return self.sums[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.sums)

    def __len__(self) -> int:
        return len(self.sums)


@dataclass(frozen=True, slots=True, eq=False)
class Rows:
    """A run of rows of the last axis, the first of them row `start` of the tensor: moments and largest magnitude."""

    start: int
    moments: Moments
    peak: Tensor
