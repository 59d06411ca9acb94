"""How the error of a quantized model grows from block to block and through each matrix, in one pass over batches."""

from collections.abc import Generator, Iterable, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn

from qbench.capture.place import Matrix, Place
from qbench.capture.read import watching
from qbench.capture.write import quantized
from qbench.evaluate.units import Unit, blocks
from qbench.metrics.flow import Crossed, FlowSums, flow, linear_flow, spectral_ratio
from qbench.quant.quantizer import Quantizer

Places = Mapping[str, tuple[Place, Quantizer]]
Matrices = Mapping[str, tuple[Matrix, Quantizer]]
STREAM = "hidden_states"  # what a block's input is called where it is passed by name


@dataclass(slots=True)
class Propagation:
    """Sums by block, `blocks.3`, and by the name of each matrix whose input is a place; G1 of each matrix.

    `left_out` are quantized places and matrices outside the blocks: what they do is no part of this. `warnings` name
    places that nothing passed through or where a quantizer changed nothing.
    """

    blocks: dict[str, FlowSums] = field(default_factory=dict[str, FlowSums])
    matrices: dict[str, FlowSums] = field(default_factory=dict[str, FlowSums])
    spectral: dict[str, float] = field(default_factory=dict[str, float])
    left_out: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()

    def values(self) -> dict[str, dict[str, float]]:
        """Metrics of every block and every matrix, by name, in the order of the forward pass."""
        found = {name: sums.values() for name, sums in self.blocks.items()}
        return found | {name: sums.values(self.spectral[name]) for name, sums in self.matrices.items()}


@torch.no_grad()
def propagation(
    model: nn.Module, batches: Iterable[Any], units: Iterable[Unit], places: Places, matrices: Matrices
) -> Propagation:
    """Run `model(batch)` on each batch with the clean and the quantized stream side by side.

    Each block runs four times: as it is and quantized, on the clean input and on what the quantized blocks before it
    gave. Held are one more stream, the inputs of one block's matrices, and copies of its quantized matrices. `units`
    (`evaluate.units`) say which matrices read which place; the model should be in evaluation mode.

    Raises ValueError where a block gives no stream of the shape it was given, or keeps keys and values between passes.
    """
    within = _by_block(len(blocks(model)), units, places, matrices)
    known = {f"activation:{n}" for part in within for n in part.places}
    known |= {f"weight:{n}" for part in within for n in part.matrices}
    asked = [*(f"activation:{name}" for name in places), *(f"weight:{name}" for name in matrices)]
    found = Propagation(left_out=tuple(name for name in asked if name not in known))
    run = _Run(found)
    with ExitStack() as hooks:
        for part in within:
            hooks.enter_context(watching(part.inputs, run.keep))
        for block, part in zip(blocks(model), within, strict=True):
            hooks.enter_context(block.register_forward_pre_hook(run.enter, with_kwargs=True))
            hooks.enter_context(block.register_forward_hook(partial(run.step, part), with_kwargs=True))
        for batch in batches:
            run.stream = None
            model(batch)
    if not found.blocks:
        raise ValueError("no block ran: there is no batch, or the model has no blocks")
    return found


@dataclass(frozen=True, slots=True, eq=False)
class _Part:
    """One block: what of it is quantized, and its matrices that read a place."""

    name: str
    places: Places
    matrices: Matrices
    units: tuple[Unit, ...]

    @property
    def inputs(self) -> dict[str, Place]:
        return {name: place for unit in self.units for name, place in unit.places.items()}


def _by_block(count: int, units: Iterable[Unit], places: Places, matrices: Matrices) -> list[_Part]:
    given = tuple(units)
    parts: list[_Part] = []
    for i in range(count):
        prefix = f"blocks.{i}."
        mine = tuple(unit for unit in given if unit.block == i)
        named = {name for unit in mine for name in (*unit.places, *unit.matrices)}
        parts.append(
            _Part(
                prefix[:-1],
                {name: pair for name, pair in places.items() if name.startswith(prefix) or name in named},
                {name: pair for name, pair in matrices.items() if name.startswith(prefix) or name in named},
                mine,
            )
        )
    return parts


@dataclass(slots=True)
class _Run:
    """The state of one pass: what is in front of a block, clean (`h`) and quantized, and its matrices' clean inputs."""

    found: Propagation
    h: Tensor | None = None
    stream: Tensor | None = None
    busy: bool = False
    clean: dict[str, Tensor] = field(default_factory=dict[str, Tensor])

    def keep(self, name: str, x: Tensor) -> None:
        if not self.busy:
            self.clean[name] = x

    def enter(self, _block: nn.Module, given: tuple[Any, ...], named: dict[str, Any]) -> None:
        """Keep a copy of what a block is given: some blocks add to it in place."""
        if not self.busy:
            self.h = cast(Tensor, given[0] if given else named[STREAM]).clone()

    def step(self, part: _Part, block: nn.Module, given: tuple[Any, ...], named: dict[str, Any], output: Any) -> None:
        """After a block ran clean: run it three times more, and note what became of the error."""
        if self.busy or self.h is None:
            return
        if named.get("past_key_values") is not None:
            raise ValueError("the model keeps keys and values from pass to pass: call it with use_cache=False")
        h = self.h
        moved = h if self.stream is None else self.stream

        def again(x: Tensor) -> Tensor:
            copy = x.clone()
            inputs, others = ((copy, *given[1:]), named) if given else ((), {**named, STREAM: copy})
            return _stream(block(*inputs, **others), x).clone()

        clean = _stream(output, h).clone()
        with self._inside():
            moved_out = again(moved)
            matrices = [pair for unit in part.units for pair in unit.matrices.items()]
            originals = {name: m.read().clone() if name in part.matrices else m.read() for name, m in matrices}
            with quantized(part.places, part.matrices) as engagement:
                changed = again(h)
                with watching(part.inputs, partial(self._matrix, part, originals)):
                    both = again(moved)
        outputs = Crossed(clean, moved_out, changed, both)
        self.found.blocks[part.name] = self.found.blocks.get(part.name, FlowSums()) + flow(h, moved, outputs)
        self.found.warnings = tuple(dict.fromkeys((*self.found.warnings, *engagement.warnings())))
        self.stream = both
        self.clean.clear()

    def _matrix(self, part: _Part, originals: Mapping[str, Tensor], site: str, x: Tensor) -> None:
        """What the quantized block's matrices read at `site`, input quantizers included, beside the clean input."""
        for unit in part.units:
            if site not in unit.places:
                continue
            for name, matrix in unit.matrices.items():
                if len(unit.places) > 1 and not _owns(site, name):
                    continue
                before, after = originals[name], matrix.read()
                sums = linear_flow(self.clean[site], x, before, after)
                self.found.matrices[name] = self.found.matrices.get(name, FlowSums()) + sums
                if name not in self.found.spectral:
                    self.found.spectral[name] = spectral_ratio(before, after) if name in part.matrices else 1.0

    @contextmanager
    def _inside(self) -> Generator[None, None, None]:
        self.busy = True
        try:
            yield
        finally:
            self.busy = False


def _owns(site: str, matrix: str) -> bool:
    """Where each matrix of a unit has an input place of its own, both are named alike."""
    return site == matrix


def _stream(output: Any, like: Tensor) -> Tensor:
    first = cast(tuple[Any, ...], output)[0] if isinstance(output, tuple) else output
    if not isinstance(first, Tensor) or first.shape != like.shape:
        shape = tuple(first.shape) if isinstance(first, Tensor) else type(first).__name__
        raise ValueError(f"a block was given a stream {tuple(like.shape)} and gave {shape}; it cannot be followed")
    return first
