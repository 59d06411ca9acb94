"""Optimizers of torchao and bitsandbytes that keep their state in 8 or 4 bits, and proof that they do."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from qbench.names import pick
from qbench.quant.held import plain, stored_bytes
from qbench.quant.libraries import load
from qbench.train.catalog import OPTIMIZERS, Row

SMALLEST = 4096  # values in a tensor: both libraries keep the state of smaller ones in full precision


@dataclass(frozen=True, slots=True)
class State:
    """What an optimizer keeps of one kind for one tensor of parameters.

    `bytes` with scales and code books, each counted where it first occurs. `levels` are the distinct codes seen (of
    numbers kept in full precision: the distinct numbers), `limit` how many a code has, 0 where there is no code, and
    then `why` says so.
    """

    shape: tuple[int, ...]
    name: str
    bytes: int
    values: int
    levels: int
    limit: int
    why: str

    @property
    def bits_per_value(self) -> float:
        return 8 * self.bytes / self.values


@dataclass(frozen=True, slots=True)
class Comparison:
    """Training loss of each step with low-bit state and with float32 state, on the same batches."""

    losses: tuple[float, ...]
    reference: tuple[float, ...]
    states: tuple[State, ...]

    @property
    def bits_per_value(self) -> float:
        """Of all state, with what was kept in full precision."""
        return 8 * sum(s.bytes for s in self.states) / sum(s.values for s in self.states)


class NotLowBit(RuntimeError):
    """An optimizer that is named for its few bits keeps more of them."""


_MODULES: Mapping[str, str] = MappingProxyType(
    {"torch": "torch.optim", "torchao": "torchao.optim", "bitsandbytes": "bitsandbytes.optim"}
)


def build(name: str, parameters: Iterable[nn.Parameter], lr: float) -> torch.optim.Optimizer:
    """The optimizer called `name` in OPTIMIZERS, with the library's own defaults besides `lr`.

    torchao compiles at its first step: seconds to a minute, once for each shape. Raises UnknownName, MissingLibrary,
    and ValueError where the parameters are on a device on which it would be another optimizer.
    """
    row, parameters = pick(OPTIMIZERS, name, "optimizer"), list(parameters)
    if row.cuda_only and any(parameter.device.type != "cuda" for parameter in parameters):
        raise ValueError(f"{name} {row.cuda_only}, the parameters are on {parameters[0].device}")
    return _make(name, parameters, lr, row.options)


def state_report(optimizer: torch.optim.Optimizer, name: str) -> tuple[State, ...]:
    """What `optimizer`, built as `name`, keeps after its first step, tensor by tensor; step counters are left out.

    Raises NotLowBit when a tensor of parameters that is large enough has state in full precision, when more codes
    occur than there are bits for, or when nothing at all is kept in few bits.
    """
    row, seen = pick(OPTIMIZERS, name, "optimizer"), set[int]()
    states = tuple(
        _state(parameter, key, kept, row, seen)
        for parameter, keeps in optimizer.state.items()
        for key, kept in _moments(keeps, parameter.numel()).items()
    )
    for state in states:
        where = f"{name}: {state.name} of {state.shape}"
        if not state.limit and not state.why:
            raise NotLowBit(f"{where} has {state.bits_per_value:.3g} bits a value in full precision, not {row.bits}")
        if state.limit and state.levels > state.limit:
            raise NotLowBit(f"{where} shows {state.levels} codes, {row.bits} bits have {state.limit}")
    if not any(state.limit for state in states):
        raise NotLowBit(f"{name}: no state is in {row.bits} bits; a step must come first, and {SMALLEST} values")
    return states


def compare(
    name: str, fresh: Callable[[], nn.Module], loss: Callable[[nn.Module, int], Tensor], steps: int, lr: float
) -> Comparison:
    """Train `fresh()` twice for `steps` steps: with `name`, and with the same rule and float32 state.

    `fresh` must make equal models and `loss(model, step)` read the same batch whenever it is asked for a step; then
    whatever differs is the state's doing.
    """
    row = pick(OPTIMIZERS, name, "optimizer")
    model, other = fresh(), fresh()
    optimizer = build(name, model.parameters(), lr)
    twin = _make(row.twin, list(other.parameters()), lr, row.options)
    losses = _train(model, optimizer, loss, steps)
    return Comparison(losses, _train(other, twin, loss, steps), state_report(optimizer, name))


def _train(
    model: nn.Module, optimizer: torch.optim.Optimizer, loss: Callable[[nn.Module, int], Tensor], steps: int
) -> tuple[float, ...]:
    losses: list[float] = []
    for step in range(steps):
        optimizer.zero_grad()
        value = loss(model, step)
        value.backward()
        optimizer.step()
        losses.append(float(value.detach()))
    return tuple(losses)


def _make(
    name: str, parameters: Sequence[nn.Parameter], lr: float, options: Mapping[str, float]
) -> torch.optim.Optimizer:
    library, _, rule = name.partition("/")
    return getattr(load(_MODULES[library]), rule)(parameters, lr=lr, **options)


def _moments(keeps: Mapping[str, Any], values: int) -> dict[str, tuple[Tensor, ...]]:
    """The tensors behind each moment: the moment itself first, then what bitsandbytes files beside it by number.

    A moment has a number for each of the parameter's `values`, or several; norms and counters have not.
    """
    names = [key for key, kept in keeps.items() if _is_moment(key, kept, values)]
    beside = {key: [keeps.get(f"{part}{key[-1]}") for part in ("absmax", "qmap")] for key in names}
    return {key: (keeps[key], *(x for x in beside[key] if isinstance(x, Tensor))) for key in names}


def _is_moment(key: str, kept: object, values: int) -> bool:
    beside = key == "step" or key.startswith(("absmax", "qmap"))
    return isinstance(kept, Tensor) and not beside and kept.numel() >= values


def _state(parameter: Tensor, name: str, kept: tuple[Tensor, ...], row: Row, seen: set[int]) -> State:
    """One row of the report; memory in `seen` was counted before."""
    parts = [part for tensor in kept for part in plain(tensor)]
    new = [part for part in parts if part.untyped_storage().data_ptr() not in seen]
    seen.update(part.untyped_storage().data_ptr() for part in new)
    codes, values = parts[0], kept[0].numel()
    coded = codes.element_size() == 1
    # Two to a byte where there are half as many of them as values.
    digits = codes.view(torch.uint8) if coded else codes
    digits = torch.stack([digits & 15, digits >> 4]) if coded and 2 * codes.numel() == values else digits
    small = "" if coded else _why_full(parameter, row)
    levels = int(digits.unique().numel())
    return State(tuple(parameter.shape), name, stored_bytes(new), values, levels, 2**row.bits * coded, small)


def _why_full(parameter: Tensor, row: Row) -> str:
    """Why a library keeps the state of such a parameter in full precision, empty where it should not."""
    if parameter.numel() < SMALLEST:
        return f"fewer than {SMALLEST} values: kept in full precision"
    return f"no multiple of {row.multiple} values: kept in full precision" if parameter.numel() % row.multiple else ""
