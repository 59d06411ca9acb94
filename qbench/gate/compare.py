"""Two runs, question by question: regressed, improved or no evidence, beside the noise floor."""

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from qbench.gate.pairs import Evidence, Numbers, numbers
from qbench.gate.rows import ALPHA, Row, adjusted, decided
from qbench.gate.source import unpacked
from qbench.metrics.catalog import METRICS
from qbench.names import pick
from qbench.results import digest, origin
from qbench.results.lines import RECORDS, selected
from qbench.results.match import Matching, Pair, match
from qbench.results.mismatch import what
from qbench.results.record import Attempt, Closing
from qbench.results.run import NoRun, Run, arm, part

SCHEMA = 1
ANSWERS = ("loss", "kernel", "task")  # cells about the quality of a model
HEADLINES = ("loss", "loss_increase", "error_rate", "kld")
# Cells that have other costs than those of quality.
ELSEWHERE: Mapping[str, Sequence[str]] = {
    **dict.fromkeys(("relative_error", "error_db", "error_db/channel", "max_error", "saturated", "zeroed"), ("error",)),
    **dict.fromkeys(("underflowed_scales", "shape_loss_db", "lloyd_gap_db", "rate_distortion_gap_db"), ("error",)),
    **dict.fromkeys(("train_loss", "validation_loss"), ("training",)),
    "bits_per_value/state": ("optimizer",),
    "bytes/state": ("optimizer",),
}
IN_NATS = ("loss", "loss_increase")  # what the numerical floor is of
CALIBRATION = "calibration"


class NoCost(ValueError):
    """A metric of which more is neither better nor worse."""


class NothingToCompare(LookupError):
    """No cell of one run may be compared with a cell of the other."""


@dataclass(frozen=True, slots=True)
class Refused:
    """Cells that are not compared, and why."""

    run: Literal["a", "b"]
    reason: str
    cells: int
    example: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """What two runs say of each other. `a` and `b` name the runs, with the digests of their records."""

    a: Mapping[str, str]
    b: Mapping[str, str]
    rows: tuple[Row, ...]
    refused: tuple[Refused, ...]
    cautions: tuple[str, ...]

    def json(self) -> dict[str, Any]:
        """As plain JSON: what docs/schemas/comparison.json describes."""
        counts = Counter(row.verdict for row in self.rows)
        verdicts = {name: counts[name] for name in ("regressed", "improved", "no evidence")}
        return {"schema": SCHEMA, "alpha": ALPHA, "verdicts": verdicts} | asdict(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class How:
    """What to compare: `metrics` (none: the headline costs), `arms` of a to arms of b (none: the same names).

    Intervals over fewer than `minimum` windows conclude nothing, None for what the statistics were checked for.
    """

    metrics: tuple[str, ...] = ()
    arms: Mapping[str, str] | None = None
    minimum: int | None = None


def compare(a: str | Path, b: str | Path, how: How | None = None) -> Comparison:
    """The run in folder `b`, or packed in that file, against its baseline `a`; only cells that this takes are read.

    Raises NoRun, BadPack, BadRecords, BadEvidence and BadManifest for damaged runs, UnknownName for a metric or an arm
    that there is none of, NoCost for a metric that is none, NothingToCompare where nothing may be compared.
    """
    how = how or How()
    for metric in how.metrics:
        if pick(METRICS, metric, "metric").role != "cost":
            raise NoCost(f"{metric!r} is no cost: more of it is neither better nor worse; see qbench ls metrics")
    with _folder(Path(a)) as first, _folder(Path(b)) as second:
        ours = _load(first, how)
        runs = ours, ours if first == second else _load(second, how)
        return _compared(runs, (_side(Path(a), first), _side(Path(b), second)), how)


def _compared(runs: tuple[Run, Run], sides: tuple[Mapping[str, str], Mapping[str, str]], how: How) -> Comparison:
    matching = match(*runs, _arms(*runs, how.arms))
    pairs = [pair for pair in matching.pairs if pair.a.records]
    refused = _refused(matching, how)
    if not pairs:
        told = "; ".join(f"{one.cells} cells of {one.run}: {one.reason}" for one in refused[:4])
        names = " and ".join(side["run"] for side in sides)
        raise NothingToCompare(f"{names} have no cell that may be compared. {told or 'They ask different things'}")
    rows = list(_rows(pairs, (Evidence(runs[0]), Evidence(runs[1])), how))
    if not rows:
        metrics = ", ".join(how.metrics or HEADLINES)
        raise NothingToCompare(f"{len(pairs)} cells may be compared, but none has {metrics} in both runs")
    order = {"regressed": 0, "improved": 1, "no evidence": 2}
    return Comparison(
        a=sides[0],
        b=sides[1],
        rows=tuple(sorted(adjusted(rows), key=lambda row: order[row.verdict])),
        refused=refused,
        cautions=tuple(_cautions(pairs)),
    )


def _folder(path: Path) -> AbstractContextManager[Path]:
    """Where the files of a run lie; what is not there is told by whoever reads it."""
    return unpacked(path) if path.is_file() else nullcontext(path)


def _load(folder: Path, how: How) -> Run:
    if not (folder / RECORDS).exists():
        raise NoRun(f"{folder} holds no {RECORDS}; name the folder that `qbench run` wrote")
    cells = selected(folder / RECORDS, lambda closing: _wanted(closing, how))
    return Run(folder=folder, cells=cells, manifest=origin.read(folder)).current


def _wanted(closing: Closing, how: How) -> bool:
    """Cells that may have what is compared; most records are of tensors, and are left unread."""
    kinds = {kind for metric in how.metrics or HEADLINES for kind in ELSEWHERE.get(metric, ANSWERS)}
    return closing.status == "measured" and what(closing) in kinds


def _arms(a: Run, b: Run, given: Mapping[str, str] | None) -> Mapping[str, str]:
    """Arms of a to arms of b: as given, else those of the same name, else the only ones."""
    ours, theirs = (list(dict.fromkeys(arm(one.closing.spec) for one in run.cells.values())) for run in (a, b))
    if given:
        for names, known in ((given.keys(), ours), (given.values(), theirs)):
            for name in names:
                pick(dict.fromkeys(known), name, "model in that run")
        return given
    models = [[name for name in names if name != CALIBRATION] for names in (ours, theirs)]
    same = {name: name for name in models[0] if name in models[1]}
    if same:
        return same
    if len(models[0]) == len(models[1]) == 1:
        return {models[0][0]: models[1][0]}
    raise NothingToCompare(
        f"the runs share no model: a has {', '.join(models[0]) or 'none'}, b has {', '.join(models[1]) or 'none'}; "
        "say which belong together with --arm A=B"
    )


def _refused(matching: Matching, how: How) -> tuple[Refused, ...]:
    """Unmatched cells by reason, those that matter to what is compared; cells of other models are no mistake."""
    found: dict[tuple[Literal["a", "b"], str], list[Closing]] = defaultdict(list)
    for one in matching.unmatched:
        if one.reason != "its model is not compared" and _wanted(replace(one.closing, status="measured"), how):
            found[one.run, one.reason].append(one.closing)
    return tuple(Refused(run, reason, len(several), _title(several[0])) for (run, reason), several in found.items())


def _rows(pairs: Sequence[Pair], sides: tuple[Evidence, Evidence], how: How) -> Iterator[Row]:
    """One row for each metric of each question, the seeds together."""
    groups: dict[tuple[Any, ...], list[tuple[Pair, Numbers]]] = defaultdict(list)
    for pair in pairs:
        for one in numbers(pair, sides, how.metrics or _headlines(pair)):
            names = tuple(arm(side.closing.spec) for side in (pair.a, pair.b))
            groups[names, pair.a.closing.question, one.place, one.metric].append((pair, one))
    for (names, _, place, metric), several in groups.items():
        ours = [one for _, one in several]
        floors = [side.floor(cell) for pair, _ in several for side, cell in zip(sides, (pair.a, pair.b), strict=True)]
        row = Row(
            arms=names,
            question=_title(several[0][0].a.closing),
            kind=place[0],
            site=place[1],
            scope=place[2],
            quantizer=place[3],
            metric=metric,
            unit=METRICS[metric].unit,
            a=float(np.mean([one.a for one in ours])),
            b=float(np.mean([one.b for one in ours])),
            difference=float(np.mean([one.b - one.a for one in ours])),
            floor=max(floors) or None if metric in IN_NATS else None,
            seeds=len(ours),
        )
        yield decided(row, ours, how.minimum)


def _headlines(pair: Pair) -> Sequence[str]:
    if what(pair.a.closing) != "task":
        return HEADLINES
    costs = [name for name, metric in METRICS.items() if metric.role == "cost"]
    found = [name for name in costs if any(name in one.values for one in pair.a.records)]
    named = any(name.startswith("task_error/") for name in found)  # of which the error rate is one
    return [name for name in found if not (named and name == "error_rate")]


def _title(closing: Closing) -> str:
    """What a cell measures, in a few words; of an imported one nothing says whether its model is quantized."""
    asked = part(closing.spec, "measurement")
    if closing.spec.get("runtime") and what(closing) == "loss":
        return "loss"
    told = [
        part(asked, "treatment").get("name", ""),
        asked.get("quantizer", ""),
        part(asked, "options").get("name", ""),
    ]
    named = next(filter(None, told), asked.get("kind", ""))
    return f"{what(closing)}, {named}" if named else what(closing)


def _side(path: Path, folder: Path) -> Mapping[str, str]:
    return {"run": path.resolve().name, "records": digest.of_bytes((folder / RECORDS).read_bytes())}


def _cautions(pairs: Sequence[Pair]) -> Iterator[str]:
    """What differs between the runs and may move numbers, though nothing forbids comparing them."""
    for name, plural in (("device", "devices"), ("torch", "versions of torch"), ("runtime", "runtimes")):
        found = {(str(x), str(y)) for x, y in (_both(pair, name) for pair in pairs) if x != y}
        for x, y in sorted(found):
            yield f"measured with different {plural}: {x or 'unknown'} and {y or 'unknown'}"
    trained = [pair for pair in pairs if pair.a.closing.spec.get("training") or pair.b.closing.spec.get("training")]
    if trained and len({_seed(pair.a) for pair in trained}) == 1:
        yield "one training seed: intervals say how windows vary, not how another training would turn out"


def _both(pair: Pair, name: str) -> tuple[Any, Any]:
    return pair.a.closing.spec.get(name), pair.b.closing.spec.get(name)


def _seed(cell: Attempt) -> Any:
    return cell.closing.spec.get("seed")
