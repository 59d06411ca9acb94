"""Quantizers inside a training step: what flows forward and backward, and the weights it is multiplied with.

The model and its optimizers hold float32; in a step the named activations and weights are replaced by their quantized
copies and the named gradients are quantized where they pass, all straight through (`quant.straight`).
"""

from collections.abc import Callable, Generator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor, nn

from qbench.capture.place import Place
from qbench.capture.places import matrices, places, select
from qbench.capture.write import Engagement
from qbench.quant.blocks import at
from qbench.quant.quantizer import Quantizer
from qbench.quant.quantizer import build as build_quantizer
from qbench.quant.straight import fake

CHANNEL_AXIS: Mapping[str, int] = {"weight": 0}
T = TypeVar("T")


class Inside:
    """The quantizers of `quantized` ("kind:scope or pattern" -> quantizer; what comes later holds) in `model`.

    `engagement` is the proof that they ran. Raises UnknownName where a pattern selects nothing.
    """

    def __init__(self, model: nn.Module, quantized: Mapping[str, str]) -> None:
        found: dict[str, dict[str, Quantizer]] = {"activation": {}, "gradient": {}, "weight": {}}
        for key, name in quantized.items():
            kind, _, pattern = key.partition(":")
            if kind in found:
                quantizer = build_quantizer(name, channel_axis=CHANNEL_AXIS.get(kind, -1))
                found[kind] |= dict.fromkeys(_select(model, kind, pattern), quantizer)
        self._forward, self._backward, weights = found["activation"], found["gradient"], found["weight"]
        here = places(model) if self._forward or self._backward else dict[str, Place]()
        self._places = {name: here[name] for name in dict.fromkeys((*self._forward, *self._backward))}
        self._weights = {name: _Weight(*_parameter(model, name), q) for name, q in weights.items()}
        self._runner = _Runner(model)
        self.engagement = Engagement(tuple(f"{kind}:{name}" for kind, names in found.items() for name in names))

    def run(self, work: Callable[[], T], draw: int) -> T:
        """`work()`, forward and backward, with every quantizer in its place; `draw` numbers the stochastic rounding."""
        with self._open(draw):
            copies = {
                f"model.{weight.parameter_name}": self._copy(name, weight, draw)
                for name, weight in self._weights.items()
            }
            if not copies:
                return work()
            # Recomputed activations must see the copies too: they stay in place through the backward pass.
            return torch.func.functional_call(self._runner, copies, (work,))

    @contextmanager
    def _open(self, draw: int) -> Generator[None, None, None]:
        with ExitStack() as undo:
            for name, place in self._places.items():
                forward = _drawn(self._forward.get(name), draw, f"activation:{name}")
                backward = _drawn(self._backward.get(name), draw, f"gradient:{name}")
                undo.enter_context(_attached(place, _Hook(name, forward, backward, self)))
            yield

    def _copy(self, name: str, weight: "_Weight", draw: int) -> Tensor:
        quantizer = _drawn(weight.quantizer, draw, f"weight:{name}")
        with at(f"weight:{name}"):
            copy = fake(weight.parameter, quantizer, trust=True)
        self.engagement.note(f"weight:{name}", weight.quantizer, weight.parameter, copy)
        return copy


@dataclass(frozen=True, slots=True)
class _Weight:
    parameter_name: str
    parameter: nn.Parameter
    quantizer: Quantizer


@dataclass(frozen=True, slots=True)
class _Hook:
    """Gives back the quantized copy of what flows through a place."""

    name: str
    forward: Quantizer | None
    backward: Quantizer | None
    inside: Inside

    def __call__(self, x: Tensor) -> Tensor:
        engagement = self.inside.engagement
        with at(f"activation:{self.name}"):
            y = fake(x, self.forward, self.backward)
        if self.forward is not None:
            engagement.note(f"activation:{self.name}", self.forward, x, y)
        if self.backward is not None and y.requires_grad and f"gradient:{self.name}" not in engagement.places:
            y.register_hook(self._see)
        return y

    def _see(self, gradient: Tensor) -> None:
        if self.backward is not None:
            copy = self.backward.roundtrip(gradient)
            self.inside.engagement.note(f"gradient:{self.name}", self.backward, gradient, copy)


class _Runner(nn.Module):
    """A module around a model, for `functional_call`: it runs what it is given while the weights are replaced."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, work: Callable[[], T]) -> T:
        return work()


@contextmanager
def _attached(place: Place, hook: _Hook) -> Generator[None, None, None]:
    handle = place.attach(hook)
    try:
        yield
    finally:
        handle.remove()


def _drawn(quantizer: Quantizer | None, draw: int, place: str) -> Quantizer | None:
    stochastic = quantizer is not None and quantizer.spec.rounding.startswith("sr:")
    return quantizer.drawn(draw, place) if quantizer is not None and stochastic else quantizer


def _select(model: nn.Module, kind: str, pattern: str) -> tuple[str, ...]:
    return select(
        model, "activation" if kind == "activation" else "gradient" if kind == "gradient" else "weight", pattern
    )


def _parameter(model: nn.Module, weight: str) -> tuple[str, nn.Parameter]:
    """The parameter behind the matrix `weight`, with its own name."""
    wanted = matrices(model)[weight].parameter
    return next((name, parameter) for name, parameter in model.named_parameters() if parameter is wanted)
