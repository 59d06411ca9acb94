"""What formats cost at equal bytes: one chart for each cost, the front of all of them marked."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from qbench.report import axes, pareto
from qbench.report.formats import CLASSES, Format
from qbench.report.panels import Band, Mark, Panel, Series
from qbench.report.verdict import MEGA, label, megabytes
from qbench.report.words import listed, number

COSTS: Mapping[str, str] = {
    "kld": "KLD",
    "loss_increase": "loss increase",
    "top1_changed": "changed first choices",
    "flips": "flips",
}
UNITS: Mapping[str, str] = {
    "kld": "KLD, nats a prediction",
    "loss_increase": "loss increase, nats",
    "top1_changed": "share of changed first choices",
    "flips": "share of flips",
}
STYLES = {kind: i for i, kind in enumerate(CLASSES)}


def panels(found: Sequence[Format]) -> dict[str, Panel]:
    """One for each cost that was measured, by its name; a front takes two formats of files."""
    drawn = {name: _panel(found, metric) for metric, name in COSTS.items()}
    return {name: panel for name, panel in drawn.items() if panel is not None}


def classes(found: Sequence[Format]) -> list[tuple[int, str]]:
    """The kinds of formats that are there, with their marks."""
    return [(STYLES[kind], kind) for kind in CLASSES if any(one.kind == kind for one in found)]


def _panel(found: Sequence[Format], metric: str) -> Panel | None:
    shown = [one for one in found if metric in one.values and _drawable(one, metric)]
    if sum(one.bytes > 0 for one in shown) < 2:
        return None
    several = len({one.arm for one in shown}) > 1
    x, aside = _across(shown)
    marks = {id(one): _mark(one, metric, several, aside) for one in shown}
    files = [one for one in shown if one.bytes]
    best = [files[i] for i in pareto.front([(one.bytes, one.values[metric]) for one in files])]
    series = [
        Series(name=kind, style=style, marks=tuple(marks[id(one)] for one in shown if one.kind == kind))
        for style, kind in classes(shown)
    ]
    return Panel(
        name=COSTS[metric],
        title=f"{COSTS[metric].capitalize()} against the size of the files",
        summary=_summary(best, metric),
        x=x,
        y=_axis(shown, metric),
        series=tuple(series),
        bands=_noise(shown, metric),
        ringed=tuple(marks[id(one)] for one in best),
        named=tuple(marks[id(one)] for one in best),
    )


def _drawable(one: Format, metric: str) -> bool:
    """A logarithm needs something above 0; a loss may fall."""
    return metric == "loss_increase" or one.values[metric] > 0


def _axis(shown: Sequence[Format], metric: str) -> axes.Axis:
    values = [one.values[metric] for one in shown]
    if metric == "loss_increase":
        return axes.signed_log(UNITS[metric], values, knee=0.01)
    return axes.logarithmic(UNITS[metric], values)


def _noise(shown: Sequence[Format], metric: str) -> tuple[Band, ...]:
    """For the loss: two standard errors of the best formats, within which it cannot be told from none."""
    floors = [one.values["floor/window"] for one in shown if "floor/window" in one.values]
    if metric != "loss_increase" or not floors:
        return ()
    return (Band(low=-2 * min(floors), high=2 * min(floors), label="two standard errors at the least:"),)


def _across(shown: Sequence[Format]) -> tuple[axes.Axis, float]:
    """The axis of sizes, and where on it formats lie that leave the files alone: beside all others, at no size."""
    sizes = [one.bytes / MEGA for one in shown if one.bytes]
    axis = axes.linear("size of the model's files, MB", sizes)
    if all(one.bytes for one in shown):
        return axis, 0.0
    width = axis.high - axis.low
    aside = axis.high + 0.07 * width
    return replace(axis, high=aside + 0.06 * width, ticks=(*axis.ticks, (aside, "as now"))), aside


def _mark(one: Format, metric: str, several: bool, aside: float) -> Mark:
    size = one.bytes / MEGA if one.bytes else aside
    return Mark(x=size, y=one.values[metric], label=label(one, several), told=True)


def _summary(best: Sequence[Format], metric: str) -> str:
    each = [f"{one.name} ({megabytes(one.bytes)}, {number(one.values[metric], 2)})" for one in best]
    return f"No other format is both smaller and better than {listed(each)}." if each else ""
