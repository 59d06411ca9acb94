"""The same places run with quantized copies, then restored."""

from collections.abc import Generator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor

from qbench.capture.place import Matrix, Place
from qbench.quant.blocks import at
from qbench.quant.quantizer import Quantizer
from qbench.quant.straight import fake

SAMPLE = 16_384  # values in which distinct codes are counted: a full count would cost more than the forward pass


@dataclass(frozen=True, slots=True)
class Seen:
    """What a quantizer did to the first tensor that passed a place."""

    levels: int
    limit: int
    changed: bool
    values: int
    bits: float


@dataclass(slots=True)
class Engagement:
    """Proof that quantizers ran: which of the places asked for (`kind:site`) they touched, and what they did there."""

    asked: tuple[str, ...] = ()
    places: dict[str, Seen] = field(default_factory=dict[str, Seen])

    def note(self, place: str, quantizer: Quantizer, x: Tensor, y: Tensor) -> None:
        """Look at the first tensor with any values that passes `place`; later ones cost nothing."""
        if place in self.places or not x.numel():
            return
        width = x.shape[-1] if x.ndim else 1
        rows = x.detach().reshape(-1, width)[: max(1, SAMPLE // width)]
        self.places[place] = Seen(
            levels=int(quantizer.codes(rows).unique().numel()),
            limit=2**quantizer.spec.bits,
            changed=not torch.equal(x.detach(), y.detach()),
            values=x.numel(),
            bits=quantizer.bits_per_value(x.shape) * x.numel(),
        )

    @property
    def levels(self) -> int:
        return max((seen.levels for seen in self.places.values()), default=0)

    def bits(self, kind: str = "") -> float:
        return sum(seen.bits for place, seen in self.places.items() if place.startswith(kind))

    def values(self, kind: str = "") -> int:
        return sum(seen.values for place, seen in self.places.items() if place.startswith(kind))

    def warnings(self) -> tuple[str, ...]:
        """What a reader must know before trusting the number; an overfull code book is an error, not a warning."""
        for place, seen in self.places.items():
            if seen.levels > seen.limit:
                raise RuntimeError(f"{place} shows {seen.levels} levels, its code has {seen.limit}")
        missed = [place for place in self.asked if place not in self.places]
        same = sorted(place for place, seen in self.places.items() if not seen.changed)
        found = {"nothing passed through": missed, "the error is exactly zero at": same}
        return tuple(f"{what} {', '.join(where)}" for what, where in found.items() if where)


@contextmanager
def quantized(
    places: Mapping[str, tuple[Place, Quantizer]],
    matrices: Mapping[str, tuple[Matrix, Quantizer]],
    gradients: Mapping[str, tuple[Place, Quantizer]] | None = None,
) -> Generator[Engagement, None, None]:
    """While open, activations, weights and gradients of the named places are their quantized copies.

    Activations and gradients pass straight through (`quant.straight`), so the model still trains; weights are
    replaced in place and put back to the bit on the way out, also after an error. A place that gives anything but
    one floating-point tensor raises TypeError when it is reached.
    """
    backward = gradients or {}
    kinds = {"weight": matrices, "activation": places, "gradient": backward}
    engagement = Engagement(tuple(f"{kind}:{name}" for kind, names in kinds.items() for name in names))
    with ExitStack() as undo:
        for name, (matrix, quantizer) in matrices.items():
            undo.enter_context(_replaced(f"weight:{name}", matrix, quantizer, engagement))
        for name in dict.fromkeys((*places, *backward)):
            place = (places.get(name) or backward[name])[0]
            hook = _Hook(name, _second(places.get(name)), _second(backward.get(name)), engagement)
            undo.enter_context(place.attach(hook))
        yield engagement


def _second(pair: tuple[Place, Quantizer] | None) -> Quantizer | None:
    return None if pair is None else pair[1]


@dataclass(frozen=True, slots=True)
class _Hook:
    """Gives back the quantized copy of what flows through a place."""

    name: str
    forward: Quantizer | None
    backward: Quantizer | None
    engagement: Engagement

    def __call__(self, x: object) -> Tensor:
        if not isinstance(x, Tensor) or not x.is_floating_point():
            raise TypeError(f"{self.name} gives a {type(x).__name__}, not one floating-point tensor")
        with at(f"activation:{self.name}"):
            y = fake(x, self.forward, self.backward)
        if self.forward is not None:
            self.engagement.note(f"activation:{self.name}", self.forward, x, y)
        if self.backward is not None and y.requires_grad:
            y.register_hook(self._see)
        # Autograd forbids writing into a view that a Function made; the next module may work in place.
        return y.clone() if y.requires_grad else y

    def _see(self, gradient: Tensor) -> None:
        place = f"gradient:{self.name}"
        if self.backward is not None and place not in self.engagement.places:
            self.engagement.note(place, self.backward, gradient, self.backward.roundtrip(gradient))


@contextmanager
def _replaced(name: str, matrix: Matrix, quantizer: Quantizer, engagement: Engagement) -> Generator[None, None, None]:
    original = matrix.read().clone()
    with torch.no_grad(), at(name):
        copy = quantizer.roundtrip(original)
        engagement.note(name, quantizer, original, copy)
        matrix.write(copy)
    try:
        yield
    finally:
        matrix.write(original)
