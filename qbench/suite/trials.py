"""What is tried on a model from elsewhere beside treatments: kernels, one layer at a time, tasks, optimizers."""

from collections.abc import Callable, Mapping
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
from torch import Tensor, nn

from qbench.evaluate.harness import Ask, evaluate
from qbench.evaluate.ranking import rank
from qbench.evaluate.sensitivity import Sweep, Treatment
from qbench.evaluate.units import left_out, linears, units
from qbench.models.inputs import tokenizer
from qbench.quant.vendor import CannotRun
from qbench.results.record import Record
from qbench.suite.answer import Answer
from qbench.suite.cells import Cell
from qbench.suite.kernels import Trial, kernel_values
from qbench.suite.specimen import Specimen
from qbench.suite.subject import Subject
from qbench.train.lowbit import SMALLEST, compare

TIMED = 4  # windows or images of a timed forward pass
STEPS, RATE = 12, 1e-4  # of training with a low-bit optimizer


def kernel(cell: Cell, subject: Subject) -> Answer:
    """A real kernel beside its simulation and the unquantized model."""
    start = perf_counter()
    name = str(cell.measurement.options["name"])
    judge = subject.judge(cell.measurement)
    reference = subject.reference(judge)
    plain = judge.plain(subject.model)
    chosen = _linears(subject)
    outcome = kernel_values(
        name,
        Trial(
            fresh=subject.fresh,
            select=lambda layer, _module: layer in chosen,
            measure=lambda model: judge.against(model, reference),
            inputs=judge.inputs(TIMED)[0][:TIMED].to(subject.machine.device),
            floor=judge.floor(subject.model, plain),
        ),
    )
    bits, costs = outcome.values.get("bits_per_value/quantized"), outcome.costs
    values = {**outcome.values, "loss/unquantized": plain.values["loss"], "floor/window": costs.window_floor}
    record = Record(
        cell=cell.id, quantizer=name, bits_per_value=bits, values=values, intervals=costs.intervals, n=costs.n
    )
    parts = [Record(cell=cell.id, quantizer=name, slice=part, values=found) for part, found in costs.slices.items()]
    took = perf_counter() - start
    return Answer(cell, (record, *parts), warnings=outcome.warnings, seconds=took, vectors=dict(costs.vectors))


def _linears(subject: Subject) -> set[str]:
    """Names of the layers inside blocks: what the scope `weights` is."""
    kept = {id(subject.matrices[site].parameter) for site in subject.resolve("weights", "weight")}
    return {name for name, module in subject.model.named_modules() if id(getattr(module, "weight", None)) in kept}


def sensitivity(cell: Cell, subject: Subject) -> Answer:
    """Each layer quantized alone: all ranked by gradients, the first of them measured exactly."""
    start = perf_counter()
    asked = cell.measurement.options
    judge = subject.judge(cell.measurement)
    batches = [_on(batch, subject.machine.device) for batch in judge.batches(cell.measurement.windows)]
    every = units(subject.model, judge.inputs(1)[0].to(subject.machine.device))
    treatment = Treatment(str(asked.get("weights", "")), str(asked.get("inputs", "")))
    found = rank(Sweep(subject.model, every, treatment, judge.scoring), batches, asked.get("top") or None)
    exact = {cost.unit: cost for cost in found.exact.costs()}
    modules = {unit.name: unit.modules for unit in every}
    records: list[Record] = []
    for name, estimate in found.estimates.items():
        values = {"loss_increase/first_order": estimate.first, "loss_increase/fisher": estimate.fisher}
        if name in exact:
            values |= {"loss_increase": exact[name].mean, "floor/window": exact[name].standard_error}
        scope = " ".join(modules[name])
        records.append(Record(cell=cell.id, site=name, scope=scope, quantizer=str(asked["name"]), values=values))
    names = {"first": "first_order", "fisher": "fisher"}
    summary = {f"rank_correlation/{names[by]}": value for by, value in found.correlation.items()}
    summary |= {"block_forwards": found.exact.forwards / max(found.exact.full, 1)}
    layers = linears(subject.model)
    same: dict[str, Any] = {"cell": cell.id, "quantizer": str(asked["name"])}
    # The scope names modules: those of no block, which no unit has, and those that some tools do not take for linear.
    records.append(Record(**same, scope=" ".join(layers.outside), values=summary, n=cell.measurement.windows))
    turned = {"layers_left": float(len(layers.transposed))}
    records += [Record(**same, site="transposed", scope=" ".join(layers.transposed), values=turned)] * bool(
        layers.transposed
    )
    aside = left_out(subject.model, every)
    warnings = found.exact.warnings + ((f"in no unit: {', '.join(aside)}",) if aside else ())
    return Answer(cell, tuple(records), warnings=warnings, seconds=perf_counter() - start, vectors=_increases(found))


def _increases(found: Any) -> dict[str, np.ndarray]:
    clean = found.exact.clean["loss"]
    return {f"{unit}/loss_increase": scores["loss"] - clean for unit, scores in found.exact.units.items()}


def _on(batch: Any, device: str) -> Any:
    if isinstance(batch, tuple):
        return tuple(part.to(device) for part in batch)
    return batch.to(device) if isinstance(batch, Tensor) else batch


def specimen(cell: Cell, subject: Subject) -> Specimen:
    """The model with the windows or images that a cell about flow asks for."""
    judge, n, device = subject.judge(cell.measurement), cell.measurement.windows, subject.machine.device
    return Specimen(
        model=subject.model,
        scoring=judge.scoring,
        batches=[_on(batch, device) for batch in judge.batches(n)],
        inputs=[part.to(device) for part in judge.inputs(n)],
        assignment=lambda: subject.assignment(cell.measurement),
    )


def task(cell: Cell, subject: Subject) -> Answer:
    """A task of the lm-evaluation-harness."""
    start = perf_counter()
    asked, include = cell.measurement.options, cell.sources.get("tasks")
    ask = Ask((str(asked["name"]),), Path(include) if include else None, asked.get("limit"))
    done = evaluate(subject.model, tokenizer(cell.sources["model"]), ask)
    records = tuple(
        Record(cell=cell.id, site=one.task, values=one.values, intervals=one.intervals, n=one.n) for one in done.tasks
    )
    vectors = {f"{one.task}/{name}": np.asarray(v) for one in done.tasks for name, v in one.vectors.items()}
    said = tuple(
        f"{one.task}: {', '.join(one.left_out)} are no means over documents" for one in done.tasks if one.left_out
    )
    return Answer(cell, records, warnings=said, seconds=perf_counter() - start, vectors=vectors)


def optimizer(cell: Cell, subject: Subject) -> Answer:
    """A few steps of training with low-bit optimizer state beside the same rule with state in full precision."""
    start = perf_counter()
    name = str(cell.measurement.options["name"])
    judge = subject.judge(cell.measurement)
    batches = [_on(batch, subject.machine.device) for batch in judge.batches(cell.measurement.windows)]
    scoring = judge.scoring

    def loss(model: nn.Module, step: int) -> Tensor:
        batch = batches[step % len(batches)]
        output = scoring.run(model, batch)
        return scoring.score(output, output.detach(), batch)["loss"].mean()

    largest = max(parameter.numel() for parameter in subject.model.parameters())
    if largest < SMALLEST:
        raise CannotRun(f"{name} keeps the state of tensors below {SMALLEST} values in full; the largest has {largest}")
    done = compare(name, subject.fresh, loss, STEPS, RATE)
    stored = sum(state.bytes for state in done.states)
    low = sum(state.values for state in done.states if state.limit)
    values = {
        "loss": done.losses[-1],
        "loss_increase": done.losses[-1] - done.reference[-1],
        "bits_per_value/state": done.bits_per_value,
        "low_bit_share": low / sum(state.values for state in done.states),
        "bytes/state": float(stored),
    }
    record = Record(
        cell=cell.id, kind="optimizer", quantizer=name, bits_per_value=done.bits_per_value, values=values, n=STEPS
    )
    return Answer(cell, (record,), seconds=perf_counter() - start)


TRIALS: Mapping[str, Callable[[Cell, Subject], Answer]] = {
    "kernel": kernel,
    "sensitivity": sensitivity,
    "task": task,
    "optimizer": optimizer,
}
