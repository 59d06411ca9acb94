"""The charts' data: what quantizing a scope costs, against the bits that are left."""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import log10
from statistics import fmean, median
from typing import TypedDict, Unpack

from qbench.report import axes, pareto, troubles
from qbench.report.panels import Band, Mark, Panel, Rule, Series
from qbench.report.view import UNQUANTIZED, Arm, Row, View, by_seed, deviation
from qbench.report.words import counted, listed, number

SCOPES: Mapping[str, str] = {
    "boundaries": "every block output",
    "interior": "block outputs, the last left out",
    "middle": "the output of the middle block",
    "linear": "inputs of every linear layer",
    "weights": "matrices of all blocks",
}
COMBINED = "combinations"
NORMAL_95 = 1.96


@dataclass(frozen=True, slots=True, kw_only=True)
class Floors:
    """Sizes below which a difference in loss means nothing; None where the run cannot tell."""

    numerical: float | None  # nothing quantized, another batch size or float64
    window: float | None  # standard error over the evaluation windows
    seed: float | None  # standard deviation over seeds, pooled over arms


def floors(run: View, metric: str, treatments: Iterable[str]) -> Floors:
    """The noise floors of `metric`: the mean in power over arms, and of several treatments the median."""
    plain = run.select("loss", treatment=UNQUANTIZED)
    rows = {name: run.select("loss", treatment=name) for name in treatments}
    numerical = [row.values["floor/numerical"] for row in plain if "floor/numerical" in row.values]
    return Floors(
        numerical=max(numerical, default=None),
        window=_typical([_power_mean([_window(row, metric) for row in found]) for found in rows.values()]),
        seed=_typical([_power_mean(_deviations(found, metric)) for found in rows.values()]),
    )


def _window(row: Row, metric: str) -> float | None:
    if metric in row.intervals:
        low, high = row.intervals[metric]
        return (high - low) / 2 / NORMAL_95
    return row.values.get("floor/window")


def _deviations(rows: Sequence[Row], metric: str) -> list[float | None]:
    """Standard deviation over seeds, one for each arm that has more than one."""
    arms: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        arms[row.arm].append(row)
    return [deviation(by_seed(found, metric).values()) for found in arms.values()]


def _power_mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return fmean(value**2 for value in known) ** 0.5 if known else None


def _typical(values: Sequence[float | None]) -> float | None:
    return median(known) if (known := [value for value in values if value is not None]) else None


def scope_of(row: Row) -> str:
    return row.scope or row.treatment.partition(" @ ")[2] or COMBINED


def budgets(run: View, metric: str) -> list[Panel]:
    """One panel for each scope: `metric` (loss_increase or loss) against bits per value, for every arm and treatment.

    The panels share their axes, so that scopes can be compared. Absolute losses leave out the arms of which a seed
    learned nothing: they would press all others into a corner.
    """
    if metric == "loss":
        lost = troubles.learned_nothing(run)
        run = replace(run, arms=tuple(arm for arm in run.arms if arm.name not in lost))
    rows: dict[str, list[Row]] = defaultdict(list)
    for row in run.select("loss"):
        if row.treatment != UNQUANTIZED and metric in row.values and row.bits is not None:
            rows[scope_of(row)].append(row)
    order = [*(name for name in SCOPES if name in rows), *(name for name in rows if name not in SCOPES)]
    drawn = {name: _all_series(run, metric, rows[name]) for name in order}
    marks = [mark for series in drawn.values() for one in series for mark in one.marks]
    ends = [end for mark in marks for end in (mark.y, mark.low, mark.high) if end is not None]
    x = axes.linear("bits per value", [mark.x for mark in marks])
    if metric == "loss":
        rules = _unquantized(run)
        y = axes.linear(f"loss, {run.nats}", ends, around=[rule.at for rule in rules])
        best = {name: _best(drawn[name]) for name in order}
        return [_panel(name, drawn[name], (x, y), rules=rules, ringed=best[name]) for name in order]
    limits = floors(run, metric, dict.fromkeys(row.treatment for found in rows.values() for row in found))
    knee = 10.0 ** round(log10(limits.window)) if limits.window else 1e-3
    y = axes.signed_log(f"loss increase, {run.nats}", ends, knee)
    return [_panel(name, drawn[name], (x, y), bands=_bands(limits)) for name in order]


class Extras(TypedDict, total=False):
    """What one kind of panel shows beside its marks."""

    rules: tuple[Rule, ...]
    bands: tuple[Band, ...]
    ringed: tuple[Mark, ...]


def _panel(scope: str, series: Sequence[Series], both: tuple[axes.Axis, axes.Axis], **extras: Unpack[Extras]) -> Panel:
    return Panel(
        name=scope,
        title=f"{scope}: {SCOPES[scope]}" if scope in SCOPES else scope,
        summary=_summary(series, extras.get("ringed", ()), both[1].title),
        x=both[0],
        y=both[1],
        series=tuple(series),
        **extras,
    )


def _all_series(run: View, metric: str, rows: Sequence[Row]) -> list[Series]:
    found = [_series(arm, metric, [row for row in rows if row.arm == arm.name]) for arm in run.arms]
    return [series for series in found if series.marks]


def _series(arm: Arm, metric: str, rows: Sequence[Row]) -> Series:
    groups: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        groups[row.treatment].append(row)
    marks = sorted((_mark(name, metric, found) for name, found in groups.items()), key=lambda m: (m.x, m.y))
    line = pareto.front([(mark.x, mark.y) for mark in marks])
    return Series(name=arm.name, style=arm.style, marks=tuple(marks), line=tuple(line))


def _mark(treatment: str, metric: str, rows: Sequence[Row]) -> Mark:
    values = list(by_seed(rows, metric).values())
    low, high = (min(values), max(values)) if len(values) > 1 else (None, None)
    bits = fmean(row.bits for row in rows if row.bits is not None)
    return Mark(x=bits, y=fmean(values), low=low, high=high, label=treatment.partition(" @ ")[0], told=True)


def _unquantized(run: View) -> tuple[Rule, ...]:
    plain = [(arm, by_seed(run.select("loss", arm=arm.name, treatment=UNQUANTIZED), "loss")) for arm in run.arms]
    return tuple(Rule(axis="y", at=fmean(found.values()), style=arm.style) for arm, found in plain if found)


def _best(series: Sequence[Series]) -> tuple[Mark, ...]:
    marks = [mark for one in series for mark in one.marks]
    return tuple(marks[i] for i in pareto.front([(mark.x, mark.y) for mark in marks]))


def _bands(limits: Floors) -> tuple[Band, ...]:
    """Widest first, so that the narrower ones are drawn on top."""
    named = [("seed", limits.seed), ("window", limits.window), ("numerical", limits.numerical)]
    known = sorted(((size, name) for name, size in named if size), reverse=True)
    return tuple(Band(low=-size, high=size, label=name) for size, name in known)


def _summary(series: Sequence[Series], ringed: Sequence[Mark], measured: str) -> str:
    parts = [
        f"{one.name}: {number(one.marks[0].y)} with {one.marks[0].label} at {number(one.marks[0].x)} bits, "
        f"{number(one.marks[-1].y)} with {one.marks[-1].label} at {number(one.marks[-1].x)} bits"
        for one in series
    ]
    best = f" {counted(len(ringed), 'point')} of all arms lie on the front." if ringed else ""
    return f"{measured[:1].upper()}{measured[1:]}. {listed(parts)}.{best}" if parts else ""
