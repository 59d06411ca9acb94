"""Rows of the leaderboard: one model under one treatment, over its seeds, in the group that it may be ranked in."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import inf, isfinite
from statistics import fmean, stdev
from typing import Any

from qbench.report.leaderboard.check import Checked
from qbench.report.leaderboard.groups import UNTOUCHED, Group
from qbench.report.leaderboard.hostile import plain
from qbench.report.leaderboard.rows import Found, Key, rows
from qbench.results.record import Attempt, Record
from qbench.results.run import arm, part
from qbench.stats.interval import mean_interval

STORED_BITS = {"float64": 64, "float32": 32, "float16": 16, "bfloat16": 16}  # what a model here is trained in: float32
UNKNOWN = (-inf, inf)

Ends = tuple[float, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One row. `low` and `high` are its 95 % interval, over seeds where there are several, infinite where unknown.

    `increase` is the cost over the same model with nothing quantized, paired by seed and window, and `reach` the ends
    of its interval: seeds and windows that are hard for both cancel, so it is far narrower than the value's own.
    `floors` are the seed's, the windows' and the numerical one, in the metric's unit; None where not measured.
    `rank` is its best and worst place in its group, None where it is not ranked, for the reason in `superseded`;
    on the `front` stands what no other row of the group beats in both bits and value.
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
    reach: Ends
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
    front: bool = False

    @property
    def ranked(self) -> bool:
        return not self.superseded and isfinite(self.value)

    @property
    def untouched(self) -> bool:
        return self.group.scope == UNTOUCHED


Rows = Sequence[Found]


@dataclass(frozen=True, slots=True)
class _Run:
    """What rows of one submission need to know of its other cells, by arm."""

    checked: Checked
    baselines: Mapping[tuple[str, Group], Rows]
    parameters: Mapping[str, int]


def entries(checked: Checked) -> list[Entry]:
    """All rows of an accepted submission."""
    assert checked.run is not None
    found = rows(checked.run)
    baselines = {(name, key): cells for (key, name, _), cells in found.items() if key.scope == UNTOUCHED}
    run = _Run(checked, baselines, _parameters(checked.run.cells.values()))
    sole = len({name for _, name, _ in found}) == 1
    return [_entry(run, key, cells, sole) for key, cells in found.items()]


def _parameters(cells: Iterable[Attempt]) -> dict[str, int]:
    """How many numbers a model has: a loaded one says it in its spec, a trained one where its training was recorded."""
    found: dict[str, int] = {}
    for attempt in cells:
        spec = attempt.closing.spec
        told = part(spec, "model").get("parameters")
        if part(spec, "measurement").get("what") == "training" and told is None:
            told = next((one.values["parameters"] for one in attempt.records if "parameters" in one.values), None)
        if isinstance(told, int | float) and not isinstance(told, bool) and 0 < told < 2**53:
            found[arm(spec)] = int(told)
    return found


def _entry(run: _Run, key: Key, cells: Rows, sole: bool) -> Entry:
    group, name, treatment = key
    submission, measured = run.checked.submission, run.checked.run
    assert submission is not None
    assert measured is not None
    records = [one.record for one in cells]
    low, high = _interval([one.value for one in cells], records[0].intervals.get(group.metric))
    session, spec = measured.session, cells[0].attempt.closing.spec
    baseline = run.baselines.get((name, group.setting), ())
    own = [one.value for one in baseline]
    increase, reach = (None, UNKNOWN) if group.scope == UNTOUCHED else _increase(cells, baseline)
    return Entry(
        group=group,
        submission=run.checked.name,
        who=submission.who,
        licence=submission.licence,
        model=submission.model if sole else plain(f"{submission.model}: {name}", 200),
        quantizer=treatment,
        value=fmean(one.value for one in cells),
        low=low,
        high=high,
        increase=increase,
        reach=reach,
        kld=_mean(records, "kld"),
        bits=_bits(records),
        bits_model=_mean(records, "bits_per_value/model"),
        bytes=_bytes(records, part(spec, "model"), run.parameters.get(name)),
        n=sum(record.n for record in records),
        seeds=tuple(sorted(one.seed for one in cells)),
        seed_floor=stdev(own) if len(own) > 1 else None,
        window_floor=_mean(records, "floor/window") or _mean([one.record for one in baseline], "floor/window"),
        numerical_floor=_mean([one.record for one in baseline], "floor/numerical"),
        estimators=plain(" ".join(map(str, part(spec, "revisions").get("quantizers") or [])), 80),
        date=plain(str(session.get("finished") or session["started"])[:10], 10),
        commit=plain(str(part(session, "revisions", "qbench").get("commit", "")), 40),
        label=run.checked.label,
    )


def _interval(values: Sequence[float], of_windows: Ends | None) -> Ends:
    if len(values) > 1:
        found = mean_interval(values)
        return found.low, found.high
    return of_windows or UNKNOWN


def _increase(cells: Rows, baseline: Rows) -> tuple[float | None, Ends]:
    """The cost of quantizing and its interval, seed by seed; that over windows where there is one seed."""
    before = {one.seed: one.value for one in baseline}
    costs = [
        one.record.values["loss_increase"]
        if one.metric == "loss" and "loss_increase" in one.record.values
        else one.value - before.get(one.seed, -inf)
        for one in cells
    ]
    if inf in costs:
        return None, UNKNOWN
    return fmean(costs), _interval(costs, cells[0].record.intervals.get("loss_increase"))


def _mean(records: Iterable[Record], metric: str) -> float | None:
    found = [record.values[metric] for record in records if metric in record.values]
    return fmean(found) if found else None


def _bits(records: Iterable[Record]) -> float | None:
    found = [record.bits_per_value for record in records if record.bits_per_value is not None]
    return fmean(found) if found else None


def _bytes(records: Sequence[Record], model: Mapping[str, Any], parameters: int | None) -> int | None:
    """Of the model as it would be stored: what was counted, or its parameters at the bits that they have."""
    counted = _mean(records, "bytes/model")
    if counted is not None or parameters is None:
        return None if counted is None else round(counted)
    bits = _mean(records, "bits_per_value/model") or STORED_BITS.get(str(model.get("dtype", "float32")))
    return None if bits is None else round(parameters * bits / 8)
