"""Cells about tensors: what shape they have, and what each quantizer does to them, in one pass."""

from collections.abc import Callable, Generator, Iterable, Sequence
from itertools import groupby
from time import perf_counter
from typing import Any

from torch import Tensor, nn

from qbench.capture import read
from qbench.capture.places import matrices, places
from qbench.data.synthetic import calibration
from qbench.evaluate.likelihood import next_token_loss
from qbench.metrics.error import error_values
from qbench.metrics.shape import ShapeSums, merge, swept
from qbench.quant.blocks import at
from qbench.quant.catalog import quantizer_spec
from qbench.quant.expect import expected_error_db
from qbench.quant.spec import bits_per_value
from qbench.quant.sweep import ErrorSums, sweep
from qbench.results.record import Record
from qbench.suite.answer import CHANNEL_AXIS, Answer, Subject
from qbench.suite.cells import Cell, Measurement

CAPTURE_BATCH = 16  # windows recorded at once: the shape that per-tensor scales and crests belong to


def passes(cells: Iterable[Cell]) -> list[list[Cell]]:
    """Tensor cells that look at the same tensors, together."""

    def key(cell: Cell) -> tuple[Any, ...]:
        m = cell.measurement
        return (m.kind, m.sites, m.windows, m.split)

    wanted = [cell for cell in cells if cell.measurement.what in ("shape", "error")]
    return [list(group) for _, group in groupby(sorted(wanted, key=key), key=key)]


class Tally:
    """Shape and error sums of every site, fed one tensor at a time."""

    def __init__(self, kind: str, quantizers: Sequence[str], *, shape: bool) -> None:
        self.axis = CHANNEL_AXIS.get(kind, -1)
        self.quantizers = tuple(quantizers)
        self.measure_shape = shape
        self.shapes: dict[str, ShapeSums] = {}
        self.errors: dict[str, dict[str, ErrorSums]] = {}
        self.tensor_shape: dict[str, tuple[int, ...]] = {}

    def visit(self, site: str, x: Tensor) -> None:
        x = x.detach()
        self.tensor_shape.setdefault(site, tuple(x.shape))
        with at(site):
            if self.measure_shape:
                table, sums = swept(x, self.quantizers, self.axis)
                self.shapes[site] = merge(self.shapes[site], sums) if site in self.shapes else sums
            else:
                table = sweep(x, self.quantizers, self.axis)
        before = self.errors.get(site)
        self.errors[site] = {q: before[q].merge(e) for q, e in table.items()} if before else dict(table)

    def shape_records(self, cell: Cell) -> tuple[Record, ...]:
        kind = cell.measurement.kind
        return tuple(
            Record(cell=cell.id, kind=kind, site=site, values=sums.values(), n=sums.channels_C.n)
            for site, sums in self.shapes.items()
        )

    def error_records(self, cell: Cell) -> tuple[Record, ...]:
        name = cell.measurement.quantizer
        spec = quantizer_spec(name)
        records: list[Record] = []
        for site, table in self.errors.items():
            shape = self.tensor_shape[site]
            bits = bits_per_value(spec, shape, self.axis)
            expected = expected_error_db(spec, shape, self.axis)
            values = error_values(table[name], bits, spec.bits, expected)
            records.append(
                Record(
                    cell=cell.id,
                    kind=cell.measurement.kind,
                    site=site,
                    quantizer=name,
                    bits_per_value=bits,
                    values=values,
                    n=table[name].n,
                )
            )
        return tuple(records)


def tensor_answers(feed: Callable[[Measurement, Tally], None], cells: Sequence[Cell]) -> Generator[Answer, None, None]:
    """Answer all shape and error cells that look at the same tensors in one pass over them."""
    start = perf_counter()
    first = cells[0].measurement
    quantizers = [cell.measurement.quantizer for cell in cells if cell.measurement.what == "error"]
    tally = Tally(first.kind, quantizers, shape=any(cell.measurement.what == "shape" for cell in cells))
    feed(first, tally)
    share = (perf_counter() - start) / len(cells)
    for cell in cells:
        records = tally.shape_records(cell) if cell.measurement.what == "shape" else tally.error_records(cell)
        zero = [r.site for r in records if r.quantizer and r.values.get("relative_error") == 0]
        warnings = (f"the error is exactly zero at {', '.join(zero)}",) if zero else ()
        yield Answer(cell, records, warnings=warnings, seconds=share)


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
        windows = subject.windows(measurement.split, measurement.windows)
        batches = [part.to(subject.device) for part in windows.split(CAPTURE_BATCH)]
        if kind == "activation":
            read.activations(model, chosen, [part[:, :-1] for part in batches], tally.visit)
        else:
            whole = len(batches[0])

            def loss(model: nn.Module, part: Tensor) -> Tensor:
                # A mean over fewer windows gives each a larger gradient: a short last batch is put on the same scale.
                return next_token_loss(model, part) * (len(part) / whole)

            read.gradients(model, chosen, batches, loss, tally.visit)

    return feed


def feed_calibration(cell: Cell) -> Callable[[Measurement, Tally], None]:
    """Shows a tally the tensors with known moments."""

    def feed(_measurement: Measurement, tally: Tally) -> None:
        for site, x in calibration(int(cell.model["rows"]), int(cell.model["width"]), cell.seed).items():
            tally.visit(site, x)

    return feed
