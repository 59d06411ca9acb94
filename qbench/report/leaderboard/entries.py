"""Rows of the leaderboard: one model under one treatment, over its seeds, and the group that it may be ranked in."""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from math import inf, isfinite
from statistics import fmean, stdev
from typing import Any

from qbench.report.leaderboard.check import Checked
from qbench.report.leaderboard.hostile import plain
from qbench.results import digest
from qbench.results.record import Attempt, Record
from qbench.results.run import arm, part
from qbench.stats.interval import mean_interval

METRICS = ("loss", "error_rate", "task_error/acc_norm", "task_error/acc", "task_error/exact_match", "task_error/f1")
UNTOUCHED = "nothing quantized"


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """What rows must have in common to be ranked against each other; a row of any other value is in another group."""

    suite: str
    version: int
    metric: str
    scope: str
    data: str
    data_digest: str
    tokenizer: str
    budget: str
    estimator: str
    device: str

    @property
    def id(self) -> str:
        """Ten hex digits; the name of the data is left out, for its digest says what it is."""
        return digest.of({name: value for name, value in asdict(self).items() if name != "data"})[:10]

    @property
    def title(self) -> str:
        return f"{self.suite} {self.version}: {self.scope}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One row. `low` and `high` are its 95 % interval, over seeds where there are several, infinite where unknown.

    `floors` are the seed's, the windows' and the numerical one, in the metric's unit; None where not measured.
    `rank` is its best and worst place in its group, None where it is not ranked, for the reason in `superseded`.
    """

    group: Group
    submission: str
    who: str
    licence: str
    model: str
    quantizer: str
    value: float
    low: float
    high: float
    increase: float | None
    kld: float | None
    bits: float | None
    bits_model: float | None
    bytes: int | None
    n: int
    seeds: tuple[int, ...]
    seed_floor: float | None
    window_floor: float | None
    numerical_floor: float | None
    estimators: str
    date: str
    commit: str
    label: str
    superseded: str = ""
    rank: tuple[int, int] | None = None

    @property
    def ranked(self) -> bool:
        return not self.superseded and isfinite(self.value)


def entries(checked: Checked) -> list[Entry]:
    """All rows of an accepted submission."""
    assert checked.run is not None
    found: dict[tuple[Group, str, str], list[tuple[Attempt, Record, str]]] = defaultdict(list)
    for attempt in checked.run.cells.values():
        for record, metric in _ranked(attempt):
            key = group(attempt, metric), arm(attempt.closing.spec), quantizer(attempt)
            found[key].append((attempt, record, metric))
    sole = len({name for _, name, _ in found}) == 1
    baselines = _baselines(found)
    return [
        _entry(checked, (key[0], "" if sole else key[1], key[2]), rows, baselines.get((key[1], key[0].metric), []))
        for key, rows in found.items()
    ]


Rows = Sequence[tuple[Attempt, Record, str]]


def _ranked(attempt: Attempt) -> Iterator[tuple[Record, str]]:
    """The record of a cell as a whole, and the metric that it is ranked by."""
    if attempt.closing.status != "measured" or part(attempt.closing.spec, "measurement").get("what") not in (
        "loss",
        "task",
    ):
        return
    for record in attempt.records:
        if record.slice or record.site or record.step is not None:
            continue
        metric = next((name for name in METRICS if name in record.values), None)
        if metric is not None:
            yield record, metric
            return


def group(attempt: Attempt, metric: str) -> Group:
    """The group of a cell, from its spec alone."""
    spec = attempt.closing.spec
    asked, data = part(spec, "measurement"), part(spec, "data")
    return Group(
        suite=plain(str(spec["suite"]), 64),
        version=spec["version"],
        metric=metric,
        scope=_scope(asked),
        data=plain(str(data["name"]), 80),
        data_digest=str(data["digest"]),
        tokenizer=_tokenizer(part(spec, "model")),
        budget=_budget(spec),
        estimator=_estimator(spec),
        device=plain(str(spec["device"]), 60),
    )


def _scope(asked: Mapping[str, Any]) -> str:
    places = " + ".join(sorted(part(asked, "treatment", "assign"))) or UNTOUCHED
    task = part(asked, "options").get("name")
    return plain(f"{task}: {places}" if task else places, 120)


def _tokenizer(model: Mapping[str, Any]) -> str:
    """Its digest, or the alphabet of a model that reads bytes."""
    return plain(str(model.get("tokenizer") or f"{model.get('vocabulary', 'no')} symbols"), 80)


def _budget(spec: Mapping[str, Any]) -> str:
    """What a model could learn from: rows of a suite that trains are compared at the same number of tokens."""
    training, context = part(spec, "training"), part(spec, "model").get("context")
    counts = [training.get("steps"), training.get("batch"), context]
    if not training or not all(type(count) is int for count in counts):
        return "not trained here"
    return f"trained on {counts[0]} × {counts[1]} × {counts[2]} tokens"


def _estimator(spec: Mapping[str, Any]) -> str:
    asked, passage = part(spec, "measurement"), part(spec, "measurement", "passage")
    context = passage.get("context", part(spec, "model").get("context"))
    parts = [
        f"measure@{part(spec, 'revisions').get('measure')}",
        f"{asked.get('windows', 0)} windows of {context} tokens",
        f"split {asked.get('split', '')}",
    ]
    others = {name: value for name, value in passage.items() if name != "context"}
    parts += [f"{name} {others[name]}" for name in sorted(others)]
    options = part(asked, "options")
    parts += [f"{name} {options[name]}" for name in sorted(options) if name != "name"]
    return plain(", ".join(parts), 200)


def quantizer(attempt: Attempt) -> str:
    """What is assigned, the same words for all that assign the same."""
    assigned = part(attempt.closing.spec, "measurement", "treatment", "assign")
    names = [str(assigned[place]) for place in sorted(assigned)]
    return plain(" + ".join(names if len(set(names)) > 1 else names[:1]), 120) or "none"


def _baselines(found: Mapping[tuple[Group, str, str], Rows]) -> dict[tuple[str, str], list[Record]]:
    """Records with nothing quantized, by arm and metric: the noise floors stand there."""
    plain_rows: dict[tuple[str, str], list[Record]] = defaultdict(list)
    for (group, name, _), rows in found.items():
        if group.scope.endswith(UNTOUCHED):
            plain_rows[name, group.metric] += [record for _, record, _ in rows]
    return plain_rows


def _entry(checked: Checked, key: tuple[Group, str, str], rows: Rows, baseline: Sequence[Record]) -> Entry:
    group, name, treatment = key
    assert checked.submission is not None
    assert checked.run is not None
    records = [record for _, record, _ in rows]
    values = [record.values[group.metric] for record in records]
    low, high = _interval(values, records[0].intervals.get(group.metric))
    session = checked.run.manifest["sessions"][-1]
    spec, bits_model = rows[0][0].closing.spec, _mean(records, "bits_per_value/model")
    model = checked.submission.model
    own = [record.values[group.metric] for record in baseline]
    return Entry(
        group=group,
        submission=checked.name,
        who=checked.submission.who,
        licence=checked.submission.licence,
        model=plain(f"{model}: {name}", 200) if name else model,
        quantizer=treatment,
        value=fmean(values),
        low=low,
        high=high,
        increase=_mean(records, "loss_increase"),
        kld=_mean(records, "kld"),
        bits=_bits(records),
        bits_model=bits_model,
        bytes=_bytes(part(spec, "model").get("parameters"), bits_model),
        n=sum(record.n for record in records),
        seeds=tuple(sorted(one.closing.spec["seed"] for one, _, _ in rows)),
        seed_floor=stdev(own) if len(own) > 1 else None,
        window_floor=_mean(records, "floor/window") or _mean(baseline, "floor/window"),
        numerical_floor=_mean(baseline, "floor/numerical"),
        estimators=plain(" ".join(map(str, part(spec, "revisions").get("quantizers") or [])), 80),
        date=plain(str(session.get("finished") or session["started"])[:10], 10),
        commit=plain(str(part(session, "revisions", "qbench").get("commit", "")), 40),
        label=checked.label,
    )


def _interval(values: Sequence[float], of_windows: tuple[float, float] | None) -> tuple[float, float]:
    if len(values) > 1:
        found = mean_interval(values)
        return found.low, found.high
    return of_windows or (-inf, inf)


def _mean(records: Iterable[Record], metric: str) -> float | None:
    found = [record.values[metric] for record in records if metric in record.values]
    return fmean(found) if found else None


def _bits(records: Iterable[Record]) -> float | None:
    found = [record.bits_per_value for record in records if record.bits_per_value is not None]
    return fmean(found) if found else None


def _bytes(parameters: Any, bits: float | None) -> int | None:
    return round(parameters * bits / 8) if bits is not None and type(parameters) is int else None


def with_rank(entry: Entry, rank: tuple[int, int]) -> Entry:
    return replace(entry, rank=rank)
