"""Two answers to one question, number by number and window by window: what there is to compare."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qbench.results.match import Pair
from qbench.results.record import Attempt, Record
from qbench.results.run import Run, arm, part

Vector = NDArray[np.float64]
HASHES = ("doc_hash", "prompt_hash", "target_hash")
Place = tuple[str, str, str, str]  # kind, site, scope, quantizer
NUMERICAL = "floor/numerical"


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

    def of(self, record: Record, metric: str) -> Vector | None:
        """The number of each window or item behind a metric, float64 [N]; None where the run keeps none.

        Items that count unequally are scaled so that their plain mean is the metric.
        """
        kept = self._vectors(record)
        key = next((name for name in (metric, f"{record.site}/{metric}") if name in kept), None)
        if key is None or "perplexity" in metric:  # exponentials of a mean are no means
            return None
        values = np.asarray(kept[key], dtype=np.float64)
        weights = kept.get(f"{key}/weight")
        return values if weights is None else values * weights / np.mean(weights)

    def increase(self, cell: Attempt, record: Record) -> Vector | None:
        """What a treatment costs in each window: its loss minus the unquantized model's of the same run."""
        plain = self._plain.get(_kin(cell))
        if plain is None or plain is cell or not plain.records:
            return None
        pair = [self.of(record, "loss"), self.of(plain.records[0], "loss")]
        if pair[0] is None or pair[1] is None or pair[0].shape != pair[1].shape:
            return None
        return pair[0] - pair[1]

    def items(self, record: Record) -> NDArray[Any] | None:
        """What the numbers are of, a digest for each item [N, bytes]; None for windows, which the data digest names."""
        kept = self._vectors(record)
        found = [kept[name] for hashed in HASHES for name in (hashed, f"{record.site}/{hashed}") if name in kept]
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
    if metric == "loss_increase" and None in [None if one is None else 0 for one in vectors]:
        cells = (pair.a, pair.b)
        vectors = [side.increase(cell, one) for side, cell, one in zip(sides, cells, records, strict=True)]
    x, y = vectors
    if x is None or y is None:
        lone = "a perplexity is no mean over windows" if "perplexity" in metric else "no number for each window is kept"
        return Numbers(place=place, metric=metric, a=a, b=b, missing=lone)
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
