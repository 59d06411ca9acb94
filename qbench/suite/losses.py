"""Cells about quality: what a model loses when some of its tensors are quantized, piece by piece of its data."""

from collections.abc import Generator, Sequence
from math import isfinite, nan
from time import perf_counter
from typing import Any

import numpy as np

from qbench.capture.place import Matrix, Place
from qbench.capture.places import matrices, places
from qbench.capture.write import quantized
from qbench.quant.quantizer import Quantizer
from qbench.quant.quantizer import build as build_quantizer
from qbench.results.record import Record
from qbench.stats.interval import mean_interval
from qbench.suite.answer import CHANNEL_AXIS, Answer, Subject, attempt, single
from qbench.suite.cells import Cell
from qbench.suite.reader import Reader, Scored
from qbench.suite.specimen import Assignment

Values = dict[str, float]
Intervals = dict[str, tuple[float, float]]


def loss_answers(cells: Sequence[Cell], subject: Subject) -> Generator[Answer, None, None]:
    """Answer the loss cells that share their windows; all are paired with the unquantized model."""
    first = cells[0].measurement
    examples = subject.reader.examples(first.split, first.windows)
    start = perf_counter()
    reference = subject.reader.score(subject.model, examples)
    seconds = perf_counter() - start
    for cell in cells:
        yield from attempt([cell], lambda cell=cell: [_loss_answer(cell, subject, examples, (reference, seconds))])


def _loss_answer(cell: Cell, subject: Subject, examples: Any, unquantized: tuple[Scored, float]) -> Answer:
    start = perf_counter()
    reads, (reference, reference_seconds) = subject.reader, unquantized
    treatment = cell.measurement.treatment
    assert treatment is not None
    if not treatment.assign:
        floor = {"floor/numerical": reads.floor(subject.model, examples, reference)}
        values, intervals = _costs(reads, reference)
        seconds = reference_seconds + perf_counter() - start
        record = _record(cell, values | floor, intervals, n=len(reference.losses))
        return Answer(cell, (record,), seconds=seconds, vectors=reference.vectors)
    at_places, of_matrices = assignment(cell, subject)
    with quantized(at_places, of_matrices) as engagement:
        scored = reads.score(subject.model, examples)
    evidence: dict[str, float] = {
        "sites_touched": float(len(engagement.places)),
        "levels": float(engagement.levels),
    }
    warnings = engagement.warnings()
    if of_matrices:
        every = sum(parameter.numel() for parameter in subject.model.parameters())
        in_weights = engagement.values("weight")
        stored = engagement.bits("weight") + 32 * (every - in_weights)
        evidence["bits_per_value/model"] = stored / every
    values, intervals = _costs(reads, scored, reference)
    bits = engagement.bits() / engagement.values()
    record = _record(cell, values | evidence, intervals, bits_per_value=bits, n=len(scored.losses))
    seconds = perf_counter() - start
    return Answer(cell, (record,), warnings=warnings, seconds=seconds, vectors=scored.vectors)


def assignment(cell: Cell, subject: Subject) -> Assignment:
    """A treatment's patterns as modules and matrices of this model, each with its quantizer."""
    at_places: dict[str, tuple[Place, Quantizer]] = {}
    of_matrices: dict[str, tuple[Matrix, Quantizer]] = {}
    sites, weights = places(subject.model), matrices(subject.model)
    treatment = cell.measurement.treatment
    assert treatment is not None
    for key, name in treatment.assign.items():
        kind, _, pattern = key.partition(":")
        quantizer = build_quantizer(name, channel_axis=CHANNEL_AXIS.get(kind, -1))
        for site in subject.resolve(pattern, kind):
            if kind == "weight":
                of_matrices[site] = (weights[site], quantizer)
            else:
                at_places[site] = (sites[site], quantizer)
    return at_places, of_matrices


def _costs(reads: Reader, scored: Scored, reference: Scored | None = None) -> tuple[Values, Intervals]:
    """What the model costs and, where there is a `reference`, how much more than that, paired."""
    if not isfinite(scored.loss):
        raise ValueError(f"the loss is {scored.loss}")
    loss = mean_interval(scored.losses.tolist()).estimate
    others = {metric: scored.mean(metric) for metric in scored.vectors if metric != "loss"}
    values = {"loss": loss, **reads.derived(loss), **others, "floor/window": standard_error(scored.losses)}
    intervals: Intervals = {metric: mean_interval(scored.vectors[metric].tolist())[1:] for metric in reads.bounded}
    if reference is not None:
        paired = scored.losses - reference.losses
        increase, *bounds = mean_interval(paired.tolist())
        values["loss_increase"] = increase
        values["floor/window"] = standard_error(paired)
        intervals["loss_increase"] = (bounds[0], bounds[1])
    return values, intervals


def _record(cell: Cell, values: Values, intervals: Intervals, **measured: Any) -> Record:
    treatment = cell.measurement.treatment
    assert treatment is not None
    kind, quantizer = single(treatment.assign)
    named: dict[str, Any] = {"kind": kind, "scope": treatment.scope, "quantizer": quantizer}
    return Record(cell=cell.id, **named, values=values, intervals=intervals, **measured)


def standard_error(each: np.ndarray) -> float:
    """Of the mean; NaN for a single value: it has no spread."""
    return float(each.std(ddof=1) / len(each) ** 0.5) if len(each) > 1 else nan
