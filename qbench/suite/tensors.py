"""Cells about tensors: what shape they have, and what each quantizer does to them, in one pass."""

from collections.abc import Callable, Generator, Iterable, Sequence
from itertools import groupby
from time import perf_counter
from typing import Any

from torch import Tensor, nn

from qbench.capture import read
from qbench.capture.places import matrices, places
from qbench.data.synthetic import calibration
from qbench.suite.answer import Answer, Subject
from qbench.suite.cells import Cell, Measurement
from qbench.suite.tally import Tally
from qbench.train.trainer import Batch, loss_of, pair


def passes(cells: Iterable[Cell]) -> list[list[Cell]]:
    """Tensor cells that look at the same tensors, together."""

    def key(cell: Cell) -> str:
        return cell.measurement.shared

    wanted = [cell for cell in cells if cell.measurement.what in ("shape", "error", "outliers")]
    return [list(group) for _, group in groupby(sorted(wanted, key=key), key=key)]


def tensor_answers(feed: Callable[[Measurement, Tally], None], cells: Sequence[Cell]) -> Generator[Answer, None, None]:
    """Answer all shape and error cells that look at the same tensors in one pass over them."""
    start = perf_counter()
    first = cells[0].measurement
    quantizers = [cell.measurement.quantizer for cell in cells if cell.measurement.what == "error"]
    asked = {cell.measurement.what for cell in cells}
    tally = Tally(first.kind, quantizers, shape="shape" in asked, outliers="outliers" in asked)
    feed(first, tally)
    share = (perf_counter() - start) / len(cells)
    for cell in cells:
        records = tally.records(cell)
        zero = [r.site for r in records if r.quantizer and r.values.get("relative_error") == 0]
        warnings = (f"the error is exactly zero at {', '.join(zero)}",) if zero else ()
        yield Answer(cell, records, warnings=warnings, seconds=share, vectors=tally.vectors(cell))


def feeder(subject: Subject) -> Callable[[Measurement, Tally], None]:
    """Shows a tally the tensors of a model that a measurement asks for."""

    def feed(measurement: Measurement, tally: Tally) -> None:
        model, kind = subject.model, measurement.kind
        names = list(dict.fromkeys(s for pattern in measurement.sites for s in subject.resolve(pattern, kind)))
        if kind == "weight":
            there = matrices(model)
            read.weights({name: there[name] for name in names}, tally.visit)
            return
        sites = places(model)
        chosen = {name: sites[name] for name in names}
        batches = subject.batches(measurement.split, measurement.windows)
        if kind == "activation":
            read.activations(model, chosen, map(_inputs, batches), tally.visit)
        else:
            whole = len(_inputs(batches[0]))

            def loss(model: nn.Module, batch: Any) -> Tensor:
                # A mean over fewer windows gives each a larger gradient: a short last batch is put on the same scale.
                inputs, targets = pair(batch)
                return loss_of(model, inputs, targets) * (len(inputs) / whole)

            read.gradients(model, chosen, batches, loss, tally.visit)

    return feed


def _inputs(batch: Batch) -> Tensor:
    return pair(batch)[0]


def feed_calibration(cell: Cell) -> Callable[[Measurement, Tally], None]:
    """Shows a tally the tensors with known moments."""

    def feed(_measurement: Measurement, tally: Tally) -> None:
        for site, x in calibration(int(cell.model["rows"]), int(cell.model["width"]), cell.seed).items():
            tally.visit(site, x)

    return feed
