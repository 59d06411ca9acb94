"""Cells about models from elsewhere: what their files hold, what flows through them, and what quantizing them costs."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from math import isfinite
from time import perf_counter
from typing import Any

from torch import Tensor, nn

from qbench.capture import read
from qbench.capture.shards import checkpoint
from qbench.capture.streamed import feed
from qbench.capture.write import quantized
from qbench.results.record import Record
from qbench.suite.answer import FAULTS, Answer, attempt, failed, single, together
from qbench.suite.cells import Cell, Measurement
from qbench.suite.contents import model_answer, treated_bytes
from qbench.suite.expand import needs_data
from qbench.suite.judge import Costs
from qbench.suite.subject import Machine, Subject
from qbench.suite.tally import Tally
from qbench.suite.tensors import passes, tensor_answers
from qbench.suite.trials import TRIALS

Answers = Iterator[Answer]


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
    for part in passes(cells):
        yield from together(part, lambda some: tensor_answers(partial(_feed, subject, some), some))
    for cell in losses:
        assert answer is not None
        yield from attempt([cell], partial(_one, answer, cell, warnings))
    for cell in cells:
        if trial := TRIALS.get(cell.measurement.what):
            yield from attempt([cell], lambda cell=cell, trial=trial: [trial(cell, subject)])


def _one(answer: "_Costs", cell: Cell, warnings: tuple[str, ...]) -> list[Answer]:
    return [answer(cell, warnings)]


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
        self.reference = subject.reference(self.judge)
        self.paired = "reference" in subject.cell.sources

    def __call__(self, cell: Cell, warnings: tuple[str, ...]) -> Answer:
        start = perf_counter()
        subject, judge = self.subject, self.judge
        assert cell.measurement.treatment is not None
        if not cell.measurement.treatment.assign:
            costs = judge.against(subject.model, self.reference) if self.paired else judge.plain(subject.model)
            floor = {"floor/numerical": judge.floor(subject.model)}
            return _answer(cell, costs, floor, warnings=warnings, seconds=perf_counter() - start)
        places, matrices = subject.assignment(cell.measurement)
        with quantized(places, matrices) as engagement:
            costs = judge.against(subject.model, self.reference)
        evidence = {"sites_touched": float(len(engagement.places)), "levels": float(engagement.levels)}
        if matrices:
            stored = treated_bytes(cell.sources["model"], matrices)
            evidence |= {"bytes/model": stored.after, "bits_per_value/model": stored.bits_per_parameter}
        bits = engagement.bits() / engagement.values()
        said = engagement.warnings()
        return _answer(cell, costs, evidence, bits, warnings=said, seconds=perf_counter() - start)


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
