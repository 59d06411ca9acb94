"""The same places run with quantized copies, then restored."""

from collections.abc import Callable, Generator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from io import FileIO
from os import SEEK_END
from tempfile import TemporaryFile

import torch
from torch import Tensor

from qbench.capture.place import Matrix, Place
from qbench.quant.blocks import at
from qbench.quant.quantizer import Quantizer
from qbench.quant.straight import fake

IN_MEMORY = 2**26  # bytes of a model's own weights that stay in memory while quantized ones are in their place
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
        self.places[place] = Seen(
            levels=int(quantizer.codes(_sample(x.detach(), quantizer)).unique().numel()),
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


def _sample(x: Tensor, quantizer: Quantizer) -> Tensor:
    """The first rows of a tensor; whole slices of it where blocks run along another axis than the last."""
    width = x.shape[-1] if x.ndim else 1
    if quantizer.spec.group.axis == -1:
        return x.reshape(-1, width)[: max(1, SAMPLE // width)]
    return x[: max(1, SAMPLE * len(x) // x.numel())]


@contextmanager
def quantized(
    places: Mapping[str, tuple[Place, Quantizer]],
    matrices: Mapping[str, tuple[Matrix, Quantizer]],
    gradients: Mapping[str, tuple[Place, Quantizer]] | None = None,
) -> Generator[Engagement, None, None]:
    """While open, activations, weights and gradients of the named places are their quantized copies.

    Activations and gradients pass straight through (`quant.straight`), so the model still trains; weights are
    replaced in place and put back to the bit on the way out, also after an error; in the meantime all but 64 MB of
    them wait in a temporary file, so that there is no second model in memory. A place that gives anything but
    one floating-point tensor raises TypeError when it is reached.
    """
    backward = gradients or {}
    kinds = {"weight": matrices, "activation": places, "gradient": backward}
    engagement = Engagement(tuple(f"{kind}:{name}" for kind, names in kinds.items() for name in names))
    with ExitStack() as undo:
        originals = _Originals(undo)
        for name, (matrix, quantizer) in matrices.items():
            back = originals.keep(matrix.read())
            undo.enter_context(_replaced(f"weight:{name}", matrix, quantizer, engagement, back))
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


class _Originals:
    """Matrices as they were: the first ones in memory, the others in a file that has no name and goes with `undo`."""

    def __init__(self, undo: ExitStack) -> None:
        self.undo = undo
        self.room = IN_MEMORY
        self.file: FileIO | None = None

    def keep(self, x: Tensor) -> Callable[[], Tensor]:
        """What gives `x` back, whatever is written over it."""
        if x.device.type == "cpu" and x.nbytes > self.room:
            with suppress(OSError):  # a disk without room: memory may have some
                return self._stored(x)
        self.room -= x.nbytes
        copy = x.clone()
        return lambda: copy

    def _stored(self, x: Tensor) -> Callable[[], Tensor]:
        if self.file is None:
            temporary = TemporaryFile(prefix="qbench-", buffering=0)  # noqa: SIM115  (`undo` closes it)
            self.file = self.undo.enter_context(temporary)
        file, shape, dtype, size = self.file, x.shape, x.dtype, x.nbytes
        start = file.seek(0, SEEK_END)
        left = x.contiguous().reshape(-1).view(torch.uint8).numpy().data
        while left:  # the system takes 2 GiB at most in one go
            left = left[file.write(left) :]

        def back() -> Tensor:
            file.seek(start)
            values = bytearray(size)
            missing = memoryview(values)
            while missing and (count := file.readinto(missing)):
                missing = missing[count:]
            if missing:
                raise OSError(f"the file with the model's own weights lost the last {len(missing)} bytes of {size}")
            return torch.frombuffer(values, dtype=dtype).view(shape)

        return back


@contextmanager
def _replaced(
    name: str, matrix: Matrix, quantizer: Quantizer, engagement: Engagement, back: Callable[[], Tensor]
) -> Generator[None, None, None]:
    with torch.no_grad(), at(name):
        original = matrix.read()
        copy = quantizer.roundtrip(original)
        engagement.note(name, quantizer, original, copy)
        matrix.write(copy)
    del original, copy
    try:
        yield
    finally:
        matrix.write(back())
