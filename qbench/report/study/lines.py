"""Charts with a line for each arm: one panel for each optimizer, or each depth, all of one scale."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from qbench.report import axes
from qbench.report.axes import Axis
from qbench.report.panels import Mark, Panel, Rule, Series
from qbench.report.study.crossing import Crossing
from qbench.report.tables import NONE, Table
from qbench.report.view import Arm
from qbench.report.words import counted, number

Marks = Mapping[str, Sequence[Mark]]  # by the name of the arm
Scale = Literal["linear", "logarithmic", "kurtosis"]
STEEP = 12.0  # kurtosis from which a straight axis hides everything near 0
FAR = 30.0  # times the least, from which values are spread over a logarithm

SCALES: Mapping[Scale, Callable[[str, Iterable[float]], Axis]] = {
    "linear": axes.linear,
    "logarithmic": axes.logarithmic,
    "kurtosis": axes.kurtosis,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Chart:
    """`x` and `y` are the axes' titles with units; `expected` are dashed lines beside the measured ones.

    Scales are only wishes: a logarithm needs values above 0, and a kurtosis that never leaves 0 a straight axis.
    """

    name: str
    title: str
    x: str
    y: str
    marks: Marks
    expected: Marks | None = None
    across: Scale = "linear"
    up: Scale = "linear"
    rules: tuple[Rule, ...] = ()
    ringed: tuple[Mark, ...] = ()
    apart: bool = False  # each panel has its own axis across, whose ticks are its marks
    seen: Mapping[str, str] | None = None  # what a reader sees, by optimizer; by default who ends highest


def panels(chart: Chart, where: Crossing) -> tuple[Panel, ...]:
    """One for each optimizer that has marks; where optimizers are not crossed, one for each depth."""
    groups = {name: where.with_optimizer(name) for name in where.optimizers} if where.crossed else _by_depth(where)
    both = _axis(chart, "x"), _axis(chart, "y")
    drawn = [_panel(chart, where, (name, arms), both) for name, arms in groups.items()]
    return tuple(panel for panel in drawn if panel.points)


def _by_depth(where: Crossing) -> dict[str, list[Arm]]:
    arms = [*where.main.values()]
    depths = sorted({arm.layers for arm in arms})
    if len(depths) < 2:
        return {"": arms}
    return {counted(depth, "layer"): [arm for arm in arms if arm.layers == depth] for depth in depths}


def _axis(chart: Chart, which: Literal["x", "y"]) -> Axis:
    every = [mark for found in (chart.marks, chart.expected or {}) for marks in found.values() for mark in marks]
    if which == "x":
        values = [mark.x for mark in every]
        return SCALES[_possible(chart.across, values)](chart.x, values)
    # Intervals of two seeds may be as wide as the page: they are cut where they would hide the values.
    values = [mark.y for mark in every]
    low, high = min(values, default=0.0), max(values, default=1.0)
    room = 0.25 * (high - low)
    ends = [min(max(end, low - room), high + room) for m in every for end in (m.low, m.high) if end is not None]
    lines = [rule.at for rule in chart.rules if rule.axis == "y"]
    scale = _possible(chart.up, [*values, *lines])
    positive = [end for end in ends if end > low / 3] if scale == "logarithmic" else ends
    return SCALES[scale](chart.y, [*values, *positive, *lines])


def _own(chart: Chart, values: Sequence[float]) -> Axis:
    axis = SCALES[_possible(chart.across, values)](chart.x, values)
    return replace(axis, ticks=tuple((axis.scale(value), f"{value:g}") for value in sorted(set(values))))


def _possible(wish: Scale, values: Sequence[float]) -> Scale:
    if wish == "logarithmic" and min(values, default=0.0) <= 0:
        return "linear"
    if wish == "kurtosis" and max(values, default=0.0) < STEEP:
        return "linear"
    return wish


def _panel(chart: Chart, where: Crossing, group: tuple[str, Sequence[Arm]], both: tuple[Axis, Axis]) -> Panel:
    name, arms = group
    series = [_series(arm, chart.marks.get(arm.name, ()), where) for arm in arms]
    dashed = [replace(_series(arm, (chart.expected or {}).get(arm.name, ()), where), dashed=True) for arm in arms]
    shown = [one for one in series if one.marks]
    x = _own(chart, [mark.x for one in shown for mark in one.marks]) if chart.apart else both[0]
    mine = {id(mark) for arm in arms for mark in chart.marks.get(arm.name, ())}
    return Panel(
        name=f"{chart.name} {name}".strip(),
        title=f"{name or chart.title}{seen_in(shown) if chart.seen is None else chart.seen.get(name, '')}",
        summary=f"{chart.title}{f', {name}' if name else ''}: {chart.y} against {chart.x}. {ends(shown, chart.x)}",
        x=x,
        y=both[1],
        series=(*(one for one in dashed if one.marks), *shown),
        rules=chart.rules,
        ringed=tuple(mark for mark in chart.ringed if id(mark) in mine),
        joined=False,
    )


def _series(arm: Arm, marks: Sequence[Mark], where: Crossing) -> Series:
    return Series(name=where.title(arm), style=arm.style, marks=tuple(marks), line=tuple(range(len(marks))))


def seen_in(series: Sequence[Series]) -> str:
    """Who ends highest and who lowest, for a title; whose intervals overlap are about the same.

    >>> one = lambda name, y: Series(name=name, style=0, marks=(Mark(x=0, y=y),))
    >>> seen_in([one("a", 1.0), one("b", 34.2)]), seen_in([one("a", 1.0)])
    (': b highest (34), a lowest (1.0)', '')
    """
    if len(series) < 2:
        return ""
    order = sorted(series, key=lambda one: one.marks[-1].y)
    least, most = order[0].marks[-1], order[-1].marks[-1]
    if least.high is not None and most.low is not None and most.low <= least.high:
        ends = dict.fromkeys(number(mark.y, 2) for mark in (least, most))
        return f": ends at {' to '.join(ends)}, intervals overlap" if len(ends) > 1 else f": all end at {min(ends)}"
    low, high = (one.name.split(" + ")[0] for one in (order[0], order[-1]))
    return f": {high} highest ({number(most.y, 2)}), {low} lowest ({number(least.y, 2)})"


def ends(series: Sequence[Series], x: str) -> str:
    """Where each line begins and ends, for those who do not see it."""
    told = [
        f"{one.name.split(' + ')[0]} from {number(one.marks[0].y, 2)} to {number(one.marks[-1].y, 2)}"
        for one in series
        if len(one.marks) > 1
    ]
    return f"From the first to the last {x}: {'; '.join(told)}." if told else ""


def table(chart: Chart, where: Crossing) -> Table:
    """The numbers of a chart: an arm a row, a place a column; with half of the interval where there is one."""
    arms = [arm for arm in where.main.values() if chart.marks.get(arm.name)]
    places = sorted({mark.x for arm in arms for mark in chart.marks[arm.name]})
    rows: list[tuple[str, ...]] = []
    for arm in arms:
        here = {mark.x: _told(mark) for mark in chart.marks[arm.name]}
        rows.append((where.title(arm), *(here.get(x, NONE) for x in places)))
    return Table(
        caption=f"{chart.title}: {chart.y}, mean ± half of the 95 % interval over seeds",
        columns=(chart.x, *(f"{x:g}" for x in places)),
        rows=tuple(rows),
        styles=tuple(arm.style for arm in arms),
    )


def _told(mark: Mark) -> str:
    reach = None if mark.high is None else mark.high - mark.y
    return number(mark.y) if reach is None else f"{number(mark.y)} ± {number(reach, 1)}"
