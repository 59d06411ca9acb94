"""What a real kernel costs: bytes, loss and time as measured, and how far they are from the simulation's."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import sqrt
from statistics import median
from time import perf_counter
from types import MappingProxyType
from typing import IO, cast

import numpy as np
import torch
from torch import Tensor, nn

from qbench.names import pick
from qbench.quant.held import stored_bytes, tensors
from qbench.quant.kernels import KERNELS, Kernel
from qbench.quant.twin import simulate
from qbench.quant.vendor import Applied, Select, apply, linearized
from qbench.suite.judge import Costs

GAPS: Mapping[str, str] = MappingProxyType({"loss": "simulation_gap", "kld": "simulation_gap/kld"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """What the kernel is tried on.

    Args:
        fresh: makes the unquantized model, another one at each call, on its device.
        select: which of its linear layers to quantize.
        measure: the costs of a model on fixed data: `loss`, `kld` and what else the caller wants recorded.
        inputs: what one timed forward pass reads, int64 [batch, length] for text.
        floor: the change of a window's loss that another order of summation makes.
        repeats: forward passes to take the median of.
    """

    fresh: Callable[[], nn.Module]
    select: Select
    measure: Callable[[nn.Module], Costs]
    inputs: Tensor
    floor: float
    repeats: int = 5


@dataclass(frozen=True, slots=True)
class Outcome:
    """Values for a record and what they are means of, what its reader has to know, and which layers were quantized."""

    values: Mapping[str, float]
    costs: Costs
    warnings: tuple[str, ...]
    applied: Applied


def kernel_values(kernel: str, trial: Trial) -> Outcome:
    """Quantize a fresh model with `kernel`, measure it, and measure the simulation of the same format beside it.

    The two and the unquantized model share their dtype: one that the kernel runs in, which is warned of where it is
    not the model's own. Raises what `vendor.apply` raises.
    """
    row = pick(KERNELS, kernel, "kernel")
    plain, real = (_cast(trial.fresh(), row) for _ in range(2))
    changed = _dtype(real) != _dtype(trial.fresh())
    applied = apply(kernel, real, trial.select)
    # Before the first forward pass: bitsandbytes on a CPU cannot save its 4-bit layers correctly after it.
    values: dict[str, float] = {"bytes/disk": disk_bytes(real), "bytes/disk/unquantized": disk_bytes(plain)}
    costs = trial.measure(real)
    values |= dict(costs.values)
    values |= {"bytes/memory": _memory(real), "bytes/memory/unquantized": _memory(plain)}
    values |= timed(real, plain, trial.inputs, trial.repeats)
    linearized(plain, lambda name, _layer: name in applied.converted)
    gaps, flags = _gaps(costs, trial.measure(simulate(kernel, plain, applied.layers)), trial.floor)
    values |= gaps | {"sites_touched": len(applied.layers), "layers_left": len(applied.left)}
    values["bits_per_value/quantized"] = applied.bits_per_weight
    said = [f"cast to {_dtype(real)}: {kernel} runs in nothing else"] if changed else []
    said += [f"{kernel} and the simulation of {row.weight} differ: {flag}{_because(row)}" for flag in flags]
    return Outcome(MappingProxyType(values), costs, tuple(said), applied)


def disk_bytes(model: nn.Module) -> int:
    """The size of the file that `torch.save` would write of the model's state; nothing is written."""
    counter = _Counter()
    torch.save(model.state_dict(), cast(IO[bytes], counter))
    return counter.written


@torch.no_grad()
def timed(real: nn.Module, plain: nn.Module, inputs: Tensor, repeats: int) -> dict[str, float]:
    """Median milliseconds of a forward pass of either model, taken in turns so that both meet the same machine."""
    models = {"latency_ms": real, "latency_ms/unquantized": plain}
    turns = [{name: _milliseconds(model, inputs) for name, model in models.items()} for _ in range(repeats + 1)]
    # The first turn allocates, packs and compiles.
    values = {name: median(turn[name] for turn in turns[1:]) for name in models}
    length = {"latency/length": inputs.shape[1]} if inputs.ndim == 2 else {}
    return values | {"latency/batch": len(inputs), "latency/threads": torch.get_num_threads()} | length


def _milliseconds(model: nn.Module, inputs: Tensor) -> float:
    start = perf_counter()
    model(inputs)
    if inputs.is_cuda:
        torch.cuda.synchronize(inputs.device)
    return 1000 * (perf_counter() - start)


def _gaps(real: Costs, simulated: Costs, floor: float) -> tuple[dict[str, float], Sequence[str]]:
    """Real minus simulated for each cost that both have, and what is above its noise floor, in words.

    The floor is the larger of the numerical one and of two standard errors of the difference over windows. The second
    is needed where activations are quantized: the last bit of a sum decides codes that lie on a boundary, and torchao
    puts the largest magnitude of every token on one.
    """
    gaps = {m: real.values[m] - simulated.values[m] for m in GAPS if m in real.values and m in simulated.values}
    floors = {m: max(floor, _two_errors(real.vectors[m] - simulated.vectors[m])) for m in gaps}
    # Not `gap > floor`: a gap that is no number is the worst of all.
    over = [metric for metric, gap in gaps.items() if not abs(gap) <= floors[metric]]
    flags = [f"{metric} by {gaps[metric]:+.2g}, the noise floor is {floors[metric]:.2g}" for metric in over]
    values = {GAPS[metric]: gap for metric, gap in gaps.items()}
    values |= {f"{GAPS[metric]}/floor": found for metric, found in floors.items()}
    return values | {"simulation_gap/flagged": float(bool(over))}, flags


def _two_errors(differences: np.ndarray) -> float:
    """[windows] -> twice the standard error of the mean; 0 for a single window."""
    n = len(differences)
    return 2 * float(differences.std(ddof=1)) / sqrt(n) if n > 1 else 0.0


def _because(row: Kernel) -> str:
    known = [f"its weights: {row.differs}"] * bool(row.differs) + [f"it computes {row.computes}"] * bool(row.computes)
    return f" (known: {'; '.join(known)})" if known else ""


def _cast(model: nn.Module, row: Kernel) -> nn.Module:
    """In evaluation, and in a dtype that the kernel can have."""
    return model.eval() if _dtype(model) in row.dtypes else model.eval().to(getattr(torch, row.dtypes[0]))


def _dtype(model: nn.Module) -> str:
    return str(next(model.parameters()).dtype).removeprefix("torch.")


def _memory(model: nn.Module) -> int:
    return stored_bytes(tensors(model))


class _Counter:
    """A file that keeps only its size."""

    def __init__(self) -> None:
        self.written = 0

    def write(self, data: bytes) -> int:
        self.written += len(data)
        return len(data)

    def flush(self) -> None: ...
