"""Cells about models from elsewhere: what their files hold, what flows through them, and what quantizing them costs."""

from collections.abc import Callable, Collection, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from math import isfinite
from time import perf_counter
from typing import Any

from torch import Tensor, nn

from qbench.capture import read
from qbench.capture.experts import counting, unreached
from qbench.capture.place import Matrix, Place
from qbench.capture.shards import checkpoint
from qbench.capture.streamed import feed
from qbench.capture.write import Engagement, quantized
from qbench.evaluate.divergence import head_parts
from qbench.quant.quantizer import Quantizer
from qbench.results.record import Record
from qbench.suite.answer import FAULTS, Answer, attempt, failed, single, together
from qbench.suite.cells import Cell, Measurement
from qbench.suite.contents import model_answer, treated_bytes
from qbench.suite.expand import needs_data
from qbench.suite.follow import followed
from qbench.suite.judge import Costs
from qbench.suite.judges import Texts
from qbench.suite.subject import Machine, Subject
from qbench.suite.tally import Tally
from qbench.suite.tensors import passes, tensor_answers
from qbench.suite.trials import TRIALS, specimen

Answers = Iterator[Answer]
TOGETHER = 4  # treatments whose states are kept to be compared at once: as much as a batch inside an MLP


def pretrained_answers(cells: Sequence[Cell], machine: Machine) -> Answers:
    """Answer cells of one model; it is loaded only where a cell asks for more than its files say."""
    files = [cell for cell in cells if cell.measurement.what == "model"]
    for cell in files:
        yield from attempt([cell], lambda cell=cell: [model_answer(cell)])
    weights = [cell for cell in cells if cell.measurement.kind == "weight"]
    for part in passes(weights):
        yield from together(part, partial(tensor_answers, partial(_streamed, part[0].sources["model"])))
    rest = [cell for cell in cells if cell not in files and cell not in weights]
    if rest:
        yield from _of_loaded(rest, Subject(rest[0], machine))


def _of_loaded(cells: Sequence[Cell], subject: Subject) -> Answers:
    losses = [cell for cell in cells if cell.measurement.what == "loss"]
    try:
        answer = _Costs(subject, losses[0].measurement) if losses else None
        warnings = subject.warnings
    except FAULTS as error:  # without a model, or without data, no cell can be answered
        yield from (failed(cell, error) for cell in cells)
        return
    with subject.as_shipped():
        for part in passes(cells):
            yield from together(part, lambda some: tensor_answers(partial(_feed, subject, some), some))
        for part in _runs(losses):
            assert answer is not None
            yield from together(part, partial(answer, warnings=warnings))
        for cell in cells:
            if trial := TRIALS.get(cell.measurement.what):
                yield from attempt([cell], lambda cell=cell, trial=trial: [trial(cell, subject)])
        yield from followed(cells, partial(specimen, subject=subject))


def _runs(losses: Sequence[Cell]) -> Iterator[Sequence[Cell]]:
    """The unquantized model alone, then treatments in runs."""
    treated = [cell for cell in losses if cell.measurement.treatment and cell.measurement.treatment.assign]
    yield from ([cell] for cell in losses if cell not in treated)
    yield from (treated[start : start + TOGETHER] for start in range(0, len(treated), TOGETHER))


def _streamed(source: str, measurement: Measurement, tally: Tally) -> None:
    """Shows a tally matrices of the files, each in pieces and never whole."""

    def see(site: str, seen: Any) -> None:
        tally.take(site, seen.shape, seen.errors, seen.shapes)
        if seen.left_out:
            raise ValueError("; ".join(f"{name} {why}" for name, why in seen.left_out.items()))

    feed(checkpoint(source), measurement.sites, tally.quantizers, see)


def _feed(subject: Subject, cells: Sequence[Cell], measurement: Measurement, tally: Tally) -> None:
    """Shows a tally the tensors of a loaded model that a measurement asks for."""
    judge, kind, n = subject.judge(measurement), measurement.kind, measurement.windows
    sites = list(dict.fromkeys(s for pattern in measurement.sites for s in subject.resolve(pattern, kind)))
    chosen = {site: subject.places[site] for site in sites}
    asked = {cell.measurement.quantizer: cell.measurement for cell in cells}
    fitted = {name: subject.fitted(asked[name], sites, name) for name in tally.quantizers if needs_data(name)}
    tally.fitted = {site: {name: found[site] for name, found in fitted.items() if site in found} for site in sites}
    if kind == "activation":
        inputs = [part.to(subject.machine.device) for part in judge.inputs(n)]
        read.activations(_run(subject.model, "logits" in chosen), chosen, inputs, tally.visit)
        return
    scoring = judge.scoring

    def loss(model: nn.Module, batch: Any) -> Tensor:
        output = scoring.run(model, batch)
        return scoring.score(output, output.detach(), batch)["loss"].sum()

    read.gradients(subject.model, chosen, judge.batches(n), loss, tally.visit)


def _run(model: nn.Module, logits: bool) -> Callable[[Tensor], object]:
    """A forward pass, without logits that nobody looks at."""
    return model if logits else getattr(model, "hidden", model)


class _Costs:
    """Answers loss cells that share their data; all are compared with the same reference."""

    def __init__(self, subject: Subject, measurement: Measurement) -> None:
        self.subject = subject
        self.judge = subject.judge(measurement)
        self.paired = "reference" in subject.cell.sources
        with nullcontext() if self.paired else subject.as_shipped():
            self.reference = subject.reference(self.judge)

    def __call__(self, cells: Sequence[Cell], warnings: tuple[str, ...]) -> Answers:
        model, judge = self.subject.model, self.judge
        treated: list[_Treated] = []
        for cell in cells:
            if cell.measurement.treatment and cell.measurement.treatment.assign:
                treated.append(_Treated(cell, *self.subject.assignment(cell.measurement)))
            else:
                yield self._unquantized(cell, warnings)
        shared = [one for one in treated if isinstance(judge, Texts) and one.spares(head_parts(model))]
        for one in treated:
            if one not in shared or len(shared) == 1:
                start = perf_counter()
                with one():
                    costs = judge.against(model, self.reference)
                yield one.answer(costs, perf_counter() - start)
        if isinstance(judge, Texts) and len(shared) > 1:
            start = perf_counter()
            every = judge.together(model, shared, self.reference)
            seconds = (perf_counter() - start) / len(shared)
            yield from (one.answer(costs, seconds) for one, costs in zip(shared, every, strict=True))

    def _unquantized(self, cell: Cell, warnings: tuple[str, ...]) -> Answer:
        start = perf_counter()
        model, judge = self.subject.model, self.judge
        with counting(model) as counts:
            costs = judge.against(model, self.reference) if self.paired else judge.plain(model)
        missed = [f"{block}: {', '.join(map(str, found))}" for block, found in unreached(counts).items()]
        warnings += (f"no token of these windows reaches experts of {'; '.join(missed)}",) if missed else ()
        floor = {"floor/numerical": judge.floor(model, costs)}
        return _answer(cell, costs, floor, warnings=warnings, seconds=perf_counter() - start)


class _Treated:
    """A cell's treatment of a model, to be entered as often as need be; the first time is the evidence."""

    def __init__(
        self,
        cell: Cell,
        places: Mapping[str, tuple[Place, Quantizer]],
        matrices: Mapping[str, tuple[Matrix, Quantizer]],
    ) -> None:
        self.cell, self.places, self.matrices = cell, places, matrices
        self.engagement = Engagement()

    @contextmanager
    def __call__(self) -> Generator[None]:
        with quantized(self.places, self.matrices) as engagement:
            yield
        # What no tensor passed before may be passed now: an expert that only later windows reach.
        places = {**engagement.places, **self.engagement.places}
        self.engagement = Engagement(engagement.asked, places)

    def spares(self, head: Collection[object]) -> bool:
        """Whether the head, of these modules and parameters, is left alone; False where nothing is known of it."""
        touched = [place.module for place, _ in self.places.values()]
        touched += [matrix.parameter for matrix, _ in self.matrices.values()]
        return bool(head) and not any(one is part for one in touched for part in head)

    def answer(self, costs: Costs, seconds: float) -> Answer:
        seen = self.engagement
        evidence = {"sites_touched": float(len(seen.places)), "levels": float(seen.levels)}
        if self.matrices:
            stored = treated_bytes(self.cell.sources["model"], self.matrices)
            evidence |= {"bytes/model": stored.after, "bits_per_value/model": stored.bits_per_parameter}
        bits = seen.bits() / seen.values()
        return _answer(self.cell, costs, evidence, bits, warnings=seen.warnings(), seconds=seconds)


def _answer(cell: Cell, costs: Costs, evidence: dict[str, float], bits: float | None = None, **ended: Any) -> Answer:
    """The record of a treatment, and one for each slice of the data."""
    if not isfinite(costs.values["loss"]):
        raise ValueError(f"the loss is {costs.values['loss']}")
    treatment = cell.measurement.treatment
    assert treatment is not None
    kind, quantizer = single(treatment.assign)
    same: dict[str, Any] = {"cell": cell.id, "kind": kind, "scope": treatment.scope, "quantizer": quantizer}
    whole = Record(
        **same,
        bits_per_value=bits,
        values={**costs.values, "floor/window": costs.window_floor, **evidence},
        intervals=costs.intervals,
        n=costs.n,
    )
    parts = [Record(**same, slice=name, values=values) for name, values in costs.slices.items()]
    return Answer(cell, (whole, *parts), vectors=dict(costs.vectors), **ended)
