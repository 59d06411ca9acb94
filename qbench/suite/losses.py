"""Cells about quality: what a model loses when some of its tensors are quantized, window by window."""

from collections.abc import Generator, Mapping, Sequence
from math import isfinite, nan
from time import perf_counter

import numpy as np
from torch import Tensor

from qbench.capture.place import Matrix, Place
from qbench.capture.places import matrices, places
from qbench.capture.write import quantized
from qbench.evaluate.likelihood import Likelihood, bits_per_byte, likelihood, numerical_floor
from qbench.quant.quantizer import Quantizer
from qbench.quant.quantizer import build as build_quantizer
from qbench.results.record import Record
from qbench.stats.interval import mean_interval
from qbench.suite.answer import CHANNEL_AXIS, Answer, Subject, attempt, single
from qbench.suite.cells import Cell


def loss_answers(cells: Sequence[Cell], subject: Subject) -> Generator[Answer, None, None]:
    """Answer the loss cells that share their windows; all are paired with the unquantized model."""
    first = cells[0].measurement
    windows = subject.windows(first.split, first.windows)
    start = perf_counter()
    reference = likelihood(subject.model, windows)
    seconds = perf_counter() - start
    for cell in cells:
        yield from attempt([cell], lambda cell=cell: [_loss_answer(cell, subject, windows, (reference, seconds))])


def _loss_answer(cell: Cell, subject: Subject, windows: Tensor, unquantized: tuple[Likelihood, float]) -> Answer:
    start = perf_counter()
    reference, reference_seconds = unquantized
    treatment = cell.measurement.treatment
    assert treatment is not None
    if not treatment.assign:
        floor = {"floor/numerical": numerical_floor(subject.model, windows, reference)}
        seconds = reference_seconds + perf_counter() - start
        return Answer(cell, (_loss_record(cell, reference, None, floor),), seconds=seconds, vectors=_vectors(reference))
    at_places, of_matrices = _assignment(cell, subject)
    with quantized(at_places, of_matrices) as engagement:
        scored = likelihood(subject.model, windows)
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
    record = _loss_record(cell, scored, reference, evidence, engagement.bits() / engagement.values())
    return Answer(cell, (record,), warnings=warnings, seconds=perf_counter() - start, vectors=_vectors(scored))


def _assignment(
    cell: Cell, subject: Subject
) -> tuple[dict[str, tuple[Place, Quantizer]], dict[str, tuple[Matrix, Quantizer]]]:
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


def _vectors(scored: Likelihood) -> dict[str, np.ndarray]:
    return {"loss": scored.losses, "error_rate": scored.errors}


def _loss_record(
    cell: Cell,
    scored: Likelihood,
    reference: Likelihood | None,
    evidence: Mapping[str, float],
    bits_per_value: float | None = None,
) -> Record:
    if not isfinite(scored.loss):
        raise ValueError(f"the loss is {scored.loss}")
    treatment = cell.measurement.treatment
    assert treatment is not None
    mean, low, high = mean_interval(scored.losses.tolist())
    values: dict[str, float] = {
        "loss": mean,
        "bits_per_byte": bits_per_byte(mean),
        "error_rate": scored.error_rate,
        "floor/window": _standard_error(scored.losses),
        **evidence,
    }
    intervals = {"loss": (low, high)}
    if reference is not None:
        paired = scored.losses - reference.losses
        increase, *bounds = mean_interval(paired.tolist())
        values["loss_increase"] = increase
        values["floor/window"] = _standard_error(paired)
        intervals["loss_increase"] = (bounds[0], bounds[1])
    kind, quantizer = single(treatment.assign)
    return Record(
        cell=cell.id,
        kind=kind,
        scope=treatment.scope,
        quantizer=quantizer,
        bits_per_value=bits_per_value,
        values=values,
        intervals=intervals,
        n=len(scored.losses),
    )


def _standard_error(each: np.ndarray) -> float:
    """Of the mean; NaN for a single value: it has no spread."""
    return float(each.std(ddof=1) / len(each) ** 0.5) if len(each) > 1 else nan
