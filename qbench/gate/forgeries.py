"""Ways to forge a run, each of which has fooled a gate somewhere."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from qbench.gate.cells import changed
from qbench.gate.draft import Cell, Draft, Vectors
from qbench.gate.items import WEIGHT
from qbench.gate.metrics import EXACT
from qbench.results.record import Record

Forge = Callable[[Cell], None]


@dataclass(frozen=True, slots=True)
class Room:
    """How far a number that a rule reads is from its margin: of which cell and metric."""

    cell: str
    metric: str
    margin: float
    effect: float

    def shift(self, times: int) -> float:
        return times * self.margin - self.effect


def forgeries(good: Draft, rooms: Sequence[Room]) -> Iterator[tuple[str, Draft]]:
    """Each forgery by its name. What has no samples, such as bits, is not forged window by window."""
    sampled = any(room.metric not in EXACT for room in rooms) or not rooms
    for name, forge in _CELLS.items():
        yield name, _forged(good, forge)
    if sampled:
        for name, forge in _VECTORS.items():
            yield name, _forged(good, forge)
        for name, forge in _EVERYWHERE.items():
            yield name, _forged(good, forge, everywhere=True)
        yield "cost inflated to the margin", _inflated(good, rooms, 1)
    yield "cost inflated to twice the margin", _inflated(good, rooms, 2)
    yield "all cells dropped", Draft([], good.session)
    yield "quantized cells dropped", _without(good, changed)
    yield "failed cells left out of what was asked for", _unasked(good)
    if sampled:
        yield "unquantized cells dropped", _without(good, lambda spec: not changed(spec))
        yield "one seed of a trained model", _one_seed(good)
    yield "every cell twice", _twice(good)
    session = {**good.session, "asked": [*(cell.closing.cell for cell in good.cells), "0" * 16]}
    yield "a cell that was asked for is not there", Draft(good.cells, session)


def _forged(good: Draft, forge: Forge, everywhere: bool = False) -> Draft:
    """A copy of the run with every quantized cell forged, or all of them."""
    cells = [Cell(one.closing, list(one.records), {k: dict(v) for k, v in one.vectors.items()}) for one in good.cells]
    for cell in cells:
        if everywhere or changed(cell.closing.spec):
            forge(cell)
    return Draft(cells, dict(good.session))


def _wrong_model(cell: Cell) -> None:
    cell.respec(
        model={**cell.closing.spec["model"], "digest": "f" * 64, "width": -1, "reference_model_digest": "e" * 64}
    )


def _other_suite(cell: Cell) -> None:
    cell.respec(version=int(cell.closing.spec["version"]) + 1)


def _other_device(cell: Cell) -> None:
    cell.respec(device="abacus")


def _other_data(cell: Cell) -> None:
    cell.respec(data={"name": "other", "digest": "d" * 64})


def _failed(cell: Cell) -> None:
    cell.closing = replace(cell.closing, status="failed", error="forged")


def _not_a_number(cell: Cell) -> None:
    def forge(vectors: Vectors) -> Vectors:
        return {name: np.where(np.arange(len(v)) == len(v) // 2, np.nan, v) for name, v in vectors.items()}

    cell.reseal(forge)


def _shuffled(cell: Cell) -> None:
    """Candidate and reference no longer stand beside each other; every mean stays what it was."""

    def forge(vectors: Vectors) -> Vectors:
        order = np.random.default_rng(0).permutation(len(next(iter(vectors.values()))))
        return {name: v if name.startswith("reference") else v[order] for name, v in vectors.items()}

    cell.reseal(forge)


def _reordered(cell: Cell) -> None:
    """All vectors of a quantized cell in another order than those of the unquantized one."""

    def forge(vectors: Vectors) -> Vectors:
        return {name: v[::-1].copy() for name, v in vectors.items()}

    cell.reseal(forge)


def _few(cell: Cell) -> None:
    cell.reseal(lambda vectors: {name: v[:16] for name, v in vectors.items()})


def _one_less(cell: Cell) -> None:
    cell.reseal(lambda vectors: {name: v[:-1] for name, v in vectors.items()})


def _empty(cell: Cell) -> None:
    cell.reseal(lambda vectors: {name: v[:0] for name, v in vectors.items()} | {"": np.zeros(0)})


def _never_ran(cell: Cell) -> None:
    """The unquantized model's numbers stand for the quantized one's."""

    def forge(vectors: Vectors) -> Vectors:
        plain = {"loss": "reference_loss", "error_rate": "reference_wrong"}
        same = {name: vectors[plain[name]] for name in plain if plain[name] in vectors}
        return {name: same.get(name, v if name in plain.values() else 0 * v) for name, v in vectors.items()}

    cell.reseal(forge)


def _tampered(cell: Cell) -> None:
    """Better numbers in the evidence than in the record."""
    cell.vectors = {name: {k: v * 0.5 for k, v in found.items()} for name, found in cell.vectors.items()}


def _contradicted(cell: Cell) -> None:
    """Other numbers in the record than in its evidence, which only its intervals still agree with."""

    def forge(record: Record) -> Record:
        sampled = {metric: value for metric, value in record.values.items() if metric not in EXACT}
        around = {metric: (value - 1e-3, value + 1e-3) for metric, value in sampled.items()}
        return replace(record, values={**record.values, **{m: 2 * v + 1 for m, v in sampled.items()}}, intervals=around)

    cell.records = [forge(record) for record in cell.records]


def _weighted(cell: Cell) -> None:
    """The dearer half of the windows counts for next to nothing."""

    def forge(vectors: Vectors) -> Vectors:
        dear = {name: v > np.median(v) for name, v in vectors.items() if not name.startswith("reference")}
        return vectors | {f"{name}{WEIGHT}": np.where(one, 1e-6, 1.0) for name, one in dear.items()}

    cell.reseal(forge)


def _other_items(cell: Cell) -> None:
    """Items by digests that the unquantized model's cell does not have."""

    def forge(vectors: Vectors) -> Vectors:
        n = len(next(iter(vectors.values())))
        return vectors | {"doc_hash": np.full((n, 32), 255, dtype=np.uint8)}

    cell.reseal(forge)


_CELLS: Mapping[str, Forge] = {
    "another model": _wrong_model,
    "another version of the suite": _other_suite,
    "cells that failed": _failed,
}
_VECTORS: Mapping[str, Forge] = {
    "other data than the unquantized model's": _other_data,
    "another device than the unquantized model's": _other_device,
    "NaN in one window": _not_a_number,
    "pairs shuffled": _shuffled,
    "windows in another order than the unquantized model's": _reordered,
    "evidence without windows": _empty,
    "a quantizer that never ran": _never_ran,
    "evidence that the record does not know": _tampered,
    "a record that contradicts its evidence": _contradicted,
    "windows with weights of their own": _weighted,
    "items that the unquantized model did not see": _other_items,
}


_EVERYWHERE: Mapping[str, Forge] = {
    "fewer windows than the minimum": _few,
    "a number of windows that no look was planned for": _one_less,
}


def _inflated(good: Draft, rooms: Sequence[Room], times: int) -> Draft:
    """Every cost a rule reads, moved to its margin or to twice that, in each window alike."""

    def forge(cell: Cell) -> None:
        grown: dict[str, float] = {}
        for room in rooms:
            if room.cell == cell.closing.cell:
                metric = "loss" if room.metric == "loss_increase" else room.metric
                grown[metric] = max(grown.get(metric, -np.inf), room.shift(times))
        if "loss" in grown:
            grown["loss_increase"] = grown["loss"]
        cell.vectors = {
            name: {key: v + grown.get(key, 0.0) for key, v in vectors.items()} for name, vectors in cell.vectors.items()
        }
        cell.records = [_raised(record, grown) for record in cell.records]

    return _forged(good, forge)


def _raised(record: Record, grown: Mapping[str, float]) -> Record:
    values = {metric: value + grown.get(metric, 0.0) for metric, value in record.values.items()}
    bits = record.bits_per_value
    if bits is not None:
        bits += grown.get("bits_per_value", 0.0)
    return replace(record, values=values, intervals={}, bits_per_value=bits)


def _without(good: Draft, dropped: Callable[[Mapping[str, Any]], bool]) -> Draft:
    kept = [cell for cell in good.cells if not dropped(cell.closing.spec)]
    return Draft(kept, {**good.session, "asked": [cell.closing.cell for cell in kept]})


def _unasked(good: Draft) -> Draft:
    """What failed is neither judged nor missed, if the manifest is believed."""
    forged = _forged(good, _failed)
    forged.session["asked"] = [cell.closing.cell for cell in forged.cells if cell.closing.status == "measured"]
    return forged


def _one_seed(good: Draft) -> Draft:
    """The first seed of a model that the suite trained, as if there were no others."""
    forged = _forged(good, lambda cell: cell.respec(training={"lr": 1e-3}), everywhere=True)
    forged.cells = [
        cell for cell in forged.cells if cell.closing.spec.get("seed") == good.cells[0].closing.spec.get("seed")
    ]
    forged.session["asked"] = [cell.closing.cell for cell in forged.cells]
    return forged


def _twice(good: Draft) -> Draft:
    copies = [
        Cell(replace(one.closing, cell=name), [replace(record, cell=name) for record in one.records], one.vectors)
        for one in good.cells
        for name in [one.closing.cell[::-1]]
    ]
    cells = [*good.cells, *copies]
    return Draft(cells, {**good.session, "asked": [cell.closing.cell for cell in cells]})
