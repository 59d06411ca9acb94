"""Vectors behind the numbers, read and proven: they reproduce the record, and pairs are really pairs."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qbench.gate.cells import assigned, changed, title
from qbench.gate.items import WEIGHT, alike, close
from qbench.gate.looks import Problem
from qbench.gate.metrics import REFERENCES
from qbench.gate.policy import Rule
from qbench.gate.source import Source
from qbench.results.evidence import BadEvidence
from qbench.results.record import Attempt, Record
from qbench.results.run import arm, part

Floats = NDArray[np.float64]
TREATED = ("loss", "kernel")  # cells that stand beside the same model with nothing quantized


@dataclass(frozen=True, slots=True)
class Pairs:
    """One cost of a candidate and of what it is compared with, window by window; `slices` labels them, or is empty."""

    candidate: Floats
    reference: Floats
    slices: NDArray[np.str_]
    item: bool = False  # of a task, whose number of items nobody extends


class Reader:
    """Reads each evidence file of a run once."""

    def __init__(self, source: Source) -> None:
        self.source = source
        self._kept: dict[str, Mapping[str, Any]] = {}

    def vectors(self, cell: Attempt) -> tuple[Record, Mapping[str, Any]]:
        """The record of a whole cell with its vectors. Raises Problem."""
        name = title(cell.closing.spec)
        if part(cell.closing.spec, "measurement", "passage").get("stride"):
            raise Problem(f"{name}: its windows overlap and count unequally; measure it without evaluate.stride")
        whole = [record for record in cell.records if not record.slice and record.samples]
        if not whole:
            raise Problem(f"{name}: its record keeps no numbers by window, and so no evidence", missing=True)
        if len(whole) > 1:
            raise Problem(f"{name}: {len(whole)} records claim to be the whole; expected one")
        record = whole[0]
        if record.samples not in self._kept:
            try:
                self._kept[record.samples] = self.source.run.evidence(record.samples)
            except (BadEvidence, OSError) as error:
                raise Problem(f"{name}: {error}", missing=True) from error
        return record, self._kept[record.samples]

    def of(self, cell: Attempt, metric: str) -> Floats:
        """One finite number for each window, scaled where they count unequally so that the plain mean is the record's.

        Raises Problem where they do not reproduce it.
        """
        record, vectors = self.vectors(cell)
        name = title(cell.closing.spec)
        key = f"{record.site}/{metric}" if record.site else metric
        if key not in vectors:
            raise Problem(f"{name}: its evidence has no {metric} by window", missing=True)
        found = floats(vectors[key], f"{name}: {metric}")
        if f"{key}{WEIGHT}" in vectors:
            weights = floats(vectors[f"{key}{WEIGHT}"], f"{name}: weights of {metric}")
            if weights.shape != found.shape or weights.min() <= 0:
                raise Problem(f"{name}: the weights of {metric} are not one number above 0 for each window")
            found = found * weights / weights.mean()
        if len(found) != record.n:
            raise Problem(f"{name}: {len(found)} numbers of {metric} for {record.n} windows")
        said = _said(record, metric)
        if said is None:
            raise Problem(f"{name}: its record has no {metric}", missing=True)
        if not close(float(found.mean()), said):
            raise Problem(f"{name}: its evidence gives {metric} {found.mean():.6g}, its record says {said:.6g}")
        return found

    def unquantized(self, cell: Attempt) -> Attempt | None:
        """The cell of the same model and seed, measured alike with nothing quantized; None where there is none."""
        spec = cell.closing.spec
        digest = _judged_beside(spec)
        found = [
            other
            for other in self.source.run.cells.values()
            if other.closing.status == "measured"
            and _alike(other.closing.spec, spec)
            and not changed(other.closing.spec)
            and (part(other.closing.spec, "model").get("digest") == digest if digest else _same(other, cell))
        ]
        if len(found) > 1:
            raise Problem(f"{title(spec)}: {len(found)} cells claim to be its unquantized model; expected one")
        return found[0] if found else None

    def slices(self, cell: Attempt) -> list[str]:
        """Which slice of the data each window is of. Raises Problem where there are several and nothing says so."""
        record, vectors = self.vectors(cell)
        names = [one.slice for one in cell.records if one.slice and not one.slice.startswith("position:")]
        if "slice" in vectors:
            return [_named(names, label) for label in vectors["slice"].reshape(-1).tolist()]
        if len(names) > 1:
            text = (
                f"{title(cell.closing.spec)}: its evidence does not say which window is of which slice; measure again"
            )
            raise Problem(text, missing=True)
        return [_named(names, 0)] * int(record.n or 0)


def unquantized_pairs(rule: Rule, reader: Reader, cell: Attempt) -> Pairs:
    """A quantized model beside the same model unquantized. Raises Problem."""
    base = reader.unquantized(cell)
    prove(reader, cell, base)
    candidate, reference = _beside(rule.metric, reader, cell, base)
    return Pairs(candidate, reference, _labels(rule, reader, cell, len(candidate)))


def run_pairs(rule: Rule, reader: Reader, cell: Attempt, other: tuple[Reader, Attempt]) -> Pairs:
    """A candidate beside the cell of another run that answers the same question. Raises Problem."""
    sides: list[Floats] = []
    for one, its in ((reader, cell), other):
        base = one.unquantized(its) if changed(its.closing.spec) else None
        if changed(its.closing.spec) and part(its.closing.spec, "measurement").get("what") in TREATED:
            prove(one, its, base)
        if rule.metric == "loss_increase":
            sides.append(np.subtract(*_beside(rule.metric, one, its, base)))
        else:
            sides.append(one.of(its, rule.metric))
    if len(sides[0]) != len(sides[1]):
        raise Problem(f"{title(cell.closing.spec)}: {len(sides[0])} windows, {len(sides[1])} in {other[0].source.name}")
    _same_items((reader, cell), other)
    task = part(cell.closing.spec, "measurement").get("what") == "task"
    return Pairs(sides[0], sides[1], _labels(rule, reader, cell, len(sides[0])), item=task)


def prove(reader: Reader, cell: Attempt, base: Attempt | None) -> None:
    """That the windows of a cell are those of its unquantized model, in one order. Raises Problem."""
    record, vectors = reader.vectors(cell)
    name = title(cell.closing.spec)
    if base is None:
        _lone(cell.closing.spec, vectors, name)
        return
    _same_items((reader, cell), (reader, base))
    loss, plain = reader.of(cell, "loss"), reader.of(base, "loss")
    if len(loss) != len(plain):
        raise Problem(f"{name}: {len(loss)} windows, {len(plain)} of its unquantized model")
    kernel = part(cell.closing.spec, "measurement").get("what") == "kernel"
    if (kernel or assigned(cell.closing.spec)) and np.array_equal(loss, plain):
        raise Problem(f"{name}: equals the unquantized model in every window: the quantizer did not run")
    if "reference_loss" in vectors:
        kept = floats(vectors["reference_loss"], f"{name}: reference_loss")
        if kept.shape != plain.shape or not np.allclose(kept, plain, rtol=1e-5, atol=1e-7):
            raise Problem(
                f"{name}: it was compared with other windows, or another model, than its unquantized cell has"
            )
        increase = floats(vectors.get("loss_increase", loss - kept), f"{name}: loss_increase")
        if increase.shape != loss.shape or not np.allclose(increase, loss - kept, rtol=1e-5, atol=1e-7):
            raise Problem(f"{name}: the windows of its evidence are not in one order")
    _spread(record, loss - plain, name)


def _lone(spec: Mapping[str, Any], vectors: Mapping[str, Any], name: str) -> None:
    """A whole model may be judged beside another that the run knows by its digest, and by its losses, only."""
    if "reference_loss" not in vectors or not _judged_beside(spec):
        raise Problem(f"{name}: its unquantized model was not measured, or is another model", missing=True)
    if any(key.endswith(WEIGHT) for key in vectors):
        raise Problem(f"{name}: its windows have weights, and no unquantized cell says that they are right")


def floats(vector: Any, name: str) -> Floats:
    """As float64 [N]; Problem where it is something else, empty, or not finite."""
    try:
        found = np.asarray(vector, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise Problem(f"{name}: no numbers ({error})") from error
    if found.ndim != 1 or not found.size:
        raise Problem(f"{name}: expected one number for each window, found shape {found.shape}", missing=True)
    if not np.isfinite(found).all():
        raise Problem(f"{name}: {int((~np.isfinite(found)).sum())} of {found.size} windows are not finite")
    return found


def _said(record: Record, metric: str) -> float | None:
    """What a record says of a metric: its value, or where it has an interval only, the middle of that."""
    if metric in record.values:
        return record.values[metric]
    return sum(record.intervals[metric]) / 2 if metric in record.intervals else None


def _spread(record: Record, differences: Floats, name: str) -> None:
    """The record keeps the mean and standard error of the differences, which only the true pairs reproduce."""
    increase, floor = record.values.get("loss_increase"), record.values.get("floor/window")
    if increase is None or (floor is None and len(differences) > 1):
        raise Problem(f"{name}: its record lacks loss_increase or floor/window, which prove the pairs", missing=True)
    if not close(float(differences.mean()), increase):
        raise Problem(f"{name}: its evidence gives loss_increase {differences.mean():.6g}, its record {increase:.6g}")
    if floor is not None and len(differences) > 1:
        found = float(differences.std(ddof=1) / len(differences) ** 0.5)
        if abs(found - floor) > max(1e-8, 1e-5 * floor):
            raise Problem(
                f"{name}: windows are not paired as they were measured: spread {found:.6g}, recorded {floor:.6g}"
            )


def _beside(metric: str, reader: Reader, cell: Attempt, base: Attempt | None) -> tuple[Floats, Floats]:
    """A cost of a cell and of its unquantized model."""
    _, vectors = reader.vectors(cell)
    if metric in REFERENCES or (metric == "loss_increase" and metric not in vectors):
        level = metric if metric in REFERENCES else "loss"
        found = reader.of(cell, level)
        if base is not None:
            return found, reader.of(base, level)
        return found, floats(vectors.get(REFERENCES[level], ()), f"{title(cell.closing.spec)}: {REFERENCES[level]}")
    found = reader.of(cell, metric)
    return found, np.zeros_like(found)


def _named(names: Sequence[str], label: Any) -> str:
    whole = isinstance(label, int | float) and float(label).is_integer() and 0 <= label < len(names)
    return names[int(label)] if whole else str(label)


def _labels(rule: Rule, reader: Reader, cell: Attempt, n: int) -> NDArray[np.str_]:
    if not rule.worst_slice:
        return np.zeros(n, dtype=np.str_)
    labels = reader.slices(cell)
    if len(labels) != n:
        raise Problem(f"{title(cell.closing.spec)}: {len(labels)} labels of slices for {n} windows")
    return np.array(labels, dtype=np.str_)


def _same_items(ours: tuple[Reader, Attempt], theirs: tuple[Reader, Attempt]) -> None:
    """That two cells are of the same items, which count alike. Raises Problem."""
    (record, vectors), (other, its) = (reader.vectors(cell) for reader, cell in (ours, theirs))
    alike((vectors, record.site), (its, other.site), record.n or 0, title(ours[1].closing.spec))


def _judged_beside(spec: Mapping[str, Any]) -> str:
    """The digest of another model that a whole model was judged beside; empty where only a treatment differs."""
    return "" if assigned(spec) else str(part(spec, "model").get("reference_model_digest") or "")


def _alike(a: Mapping[str, Any], b: Mapping[str, Any]) -> bool:
    """Whether a loss cell and one that is compared with it, of a treatment or a kernel, saw the same windows."""
    whats = {"what": None, "treatment": None, "options": None}
    x, y = ({**part(one, "measurement"), **whats} for one in (a, b))
    names = ("data", "device", "seed", "torch")
    judged = part(a, "measurement").get("what") == "loss" and part(b, "measurement").get("what") in ("loss", "kernel")
    return judged and x == y and all(a.get(name) == b.get(name) for name in names)


def _same(a: Attempt, b: Attempt) -> bool:
    """Whether two cells are about one model of one arm."""
    x, y = a.closing.spec, b.closing.spec
    return arm(x) == arm(y) and x.get("model") == y.get("model") and x.get("training") == y.get("training")
