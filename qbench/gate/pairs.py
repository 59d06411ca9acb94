"""Two answers to one question, number by number and window by window: what there is to compare."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qbench.gate.items import WEIGHT, close, hashes
from qbench.results.match import Pair
from qbench.results.record import Attempt, Record
from qbench.results.run import Run, arm, part

Vector = NDArray[np.float64]
Place = tuple[str, str, str, str]  # kind, site, scope, quantizer
NUMERICAL = "floor/numerical"
NONE_KEPT = "no number for each window is kept"


@dataclass(frozen=True, slots=True, kw_only=True)
class Numbers:
    """One metric at one place with one seed, in both runs.

    `differences` [N] are b minus a by window or item, None where only the two numbers are known, and then `missing`
    says why; `binary` pairs of 0 and 1 [2, N] where items are right or wrong. `places` are averaged into the numbers.
    """

    place: Place
    metric: str
    a: float
    b: float
    differences: Vector | None = None
    binary: Vector | None = None
    places: int = 1
    missing: str = ""


class Evidence:
    """The vectors of a run, each file read once, and its unquantized cells, by what they share with others."""

    def __init__(self, run: Run) -> None:
        self._run = run
        self._read: dict[str, Mapping[str, Any]] = {}
        self._plain = {_kin(one): one for one in run.cells.values() if _is_plain(one)}

    def of(self, record: Record, metric: str) -> Vector | str:
        """The number of each window or item behind a metric, float64 [N], or why there is none to compare.

        Items that count unequally are scaled so that their plain mean is the metric.
        """
        kept = self._vectors(record)
        key = next((name for name in (metric, f"{record.site}/{metric}") if name in kept), None)
        if "perplexity" in metric:
            return "a perplexity is no mean over windows"
        if key is None:
            return NONE_KEPT
        values, weights = (np.asarray(one, dtype=np.float64) for one in (kept[key], kept.get(f"{key}{WEIGHT}", 1.0)))
        if values.ndim != 1 or not values.size or weights.shape not in ((), values.shape):
            return "its evidence has another form than a number for each window"
        return _reproduced(values * weights / np.mean(weights), record, metric)

    def increase(self, cell: Attempt, record: Record) -> Vector | str:
        """What a treatment costs in each window: its loss minus the unquantized model's of the same run."""
        plain = self._plain.get(_kin(cell))
        if plain is None or plain is cell or not plain.records:
            return NONE_KEPT
        x, y = self.of(record, "loss"), self.of(plain.records[0], "loss")
        if isinstance(x, str) or isinstance(y, str):
            return x if isinstance(x, str) else str(y)
        return _reproduced(x - y, record, "loss_increase") if x.shape == y.shape else NONE_KEPT

    def items(self, record: Record) -> NDArray[Any] | None:
        """What the numbers are of, a digest for each item [N, bytes]; None for windows, which the data digest names."""
        found = list(hashes(self._vectors(record), record.site).values())
        return np.concatenate(found, axis=1) if found else None

    def floor(self, cell: Attempt) -> float:
        """How far a loss moves in this run when nothing but the batch size changes, nats/token; 0 where unknown."""
        plain = self._plain.get(_kin(cell))
        return plain.records[0].values.get(NUMERICAL, 0.0) if plain is not None and plain.records else 0.0

    def _vectors(self, record: Record) -> Mapping[str, Any]:
        if not record.samples:
            return {}
        if record.samples not in self._read:
            self._read[record.samples] = self._run.evidence(record.samples)
        return self._read[record.samples]


def _reproduced(vector: Vector, record: Record, metric: str) -> Vector | str:
    """The vector where it is what its record says, else how it is not."""
    if not np.isfinite(vector).all():
        return f"{int((~np.isfinite(vector)).sum())} of {len(vector)} windows are not finite"
    if metric in record.values and not close(float(vector.mean()), record.values[metric]):
        return f"the evidence gives {vector.mean():.6g}, its record says {record.values[metric]:.6g}"
    return vector


def numbers(pair: Pair, sides: tuple[Evidence, Evidence], metrics: Sequence[str]) -> Iterator[Numbers]:
    """Every metric that both answers have, at every place; tensors are averaged over the places of their cell."""
    ours, theirs = _whole(pair.a), _whole(pair.b)
    shared = [place for place in ours if place in theirs]
    for metric in metrics:
        at = [place for place in shared if all(metric in side[place].values for side in (ours, theirs))]
        if len(at) > 1 and not _is_task(pair.a):
            yield _averaged(at, metric, (ours, theirs))
        else:
            yield from (_paired(pair, (ours[place], theirs[place]), sides, (place, metric)) for place in at)


def _paired(
    pair: Pair, records: tuple[Record, Record], sides: tuple[Evidence, Evidence], about: tuple[Place, str]
) -> Numbers:
    place, metric = about
    a, b = (record.values[metric] for record in records)
    vectors = [side.of(record, metric) for side, record in zip(sides, records, strict=True)]
    if metric == "loss_increase" and any(isinstance(one, str) for one in vectors):
        cells = (pair.a, pair.b)
        vectors = [side.increase(cell, one) for side, cell, one in zip(sides, cells, records, strict=True)]
    x, y = vectors
    if isinstance(x, str) or isinstance(y, str):
        return Numbers(place=place, metric=metric, a=a, b=b, missing=x if isinstance(x, str) else str(y))
    order = _aligned(sides[0].items(records[0]), sides[1].items(records[1]))
    if isinstance(order, str) or x.shape != y.shape:
        reason = order if isinstance(order, str) else f"{len(x)} windows in one run and {len(y)} in the other"
        return Numbers(place=place, metric=metric, a=a, b=b, missing=reason)
    y = y if order is None else y[order]
    both = np.stack([x, y])
    binary = both if bool(np.isin(both, (0.0, 1.0)).all()) else None
    return Numbers(place=place, metric=metric, a=a, b=b, differences=y - x, binary=binary)


def _averaged(
    at: Sequence[Place], metric: str, sides: tuple[Mapping[Place, Record], Mapping[Place, Record]]
) -> Numbers:
    kind, _, scope, quantizer = at[0]
    a, b = (float(np.mean([side[place].values[metric] for place in at])) for side in sides)
    why = "a tensor has one number"
    return Numbers(place=(kind, "", scope, quantizer), metric=metric, a=a, b=b, places=len(at), missing=why)


def _aligned(ours: NDArray[Any] | None, theirs: NDArray[Any] | None) -> NDArray[np.int64] | str | None:
    """The order of theirs that pairs them with ours; None where they are in order, a reason where they do not pair."""
    if ours is None and theirs is None:
        return None
    if ours is None or theirs is None:
        return "only one run says what its items are"
    if ours.shape == theirs.shape and bool((ours == theirs).all()):
        return None
    names = [[row.tobytes() for row in side] for side in (ours, theirs)]
    where = {name: i for i, name in enumerate(names[1])}
    shared = sum(name in where for name in names[0])
    if shared < len(names[0]) or len(where) < len(names[1]) or len(names[0]) != len(names[1]):
        return f"the items differ: {shared} of {len(names[0])} and {len(names[1])} are the same"
    return np.array([where[name] for name in names[0]])


def _whole(cell: Attempt) -> dict[Place, Record]:
    """Its records of the whole data, the last step of a training only."""
    whole = [record for record in cell.records if not record.slice]
    last = max((record.step for record in whole if record.step is not None), default=None)
    return {(one.kind, one.site, one.scope, one.quantizer): one for one in whole if one.step in (None, last)}


def _is_task(cell: Attempt) -> bool:
    return part(cell.closing.spec, "measurement").get("what") == "task"


def _is_plain(cell: Attempt) -> bool:
    measurement = part(cell.closing.spec, "measurement")
    unquantized = measurement.get("what") == "loss" and not part(measurement, "treatment", "assign")
    return unquantized and cell.closing.status == "measured"


def _kin(cell: Attempt) -> tuple[object, ...]:
    """The same for cells of one model that are measured on the same windows."""
    spec = cell.closing.spec
    measurement = part(spec, "measurement")
    windows = (measurement.get("windows"), measurement.get("split"), str(part(measurement, "passage")))
    return arm(spec), spec.get("seed"), str(part(spec, "model")), str(part(spec, "data").get("digest")), *windows
