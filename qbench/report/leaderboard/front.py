"""The accuracy-bits front of one group, drawn: what no other row beats in both bits and cost."""

from collections.abc import Sequence
from math import isfinite

from qbench.report import pareto, svg
from qbench.report.axes import linear
from qbench.report.leaderboard.entries import Entry
from qbench.report.leaderboard.groups import Group
from qbench.report.leaderboard.spoken import unit
from qbench.report.panels import Mark, Panel, Series
from qbench.report.words import number

FRAME = svg.Frame(width=480, height=300, left=50)


def front(rows: Sequence[Entry]) -> list[Entry]:
    """Ranked rows of known bits that no other beats, by rising bits."""
    known = [one for one in rows if one.ranked and one.bits is not None]
    return [known[i] for i in pareto.front([(one.bits or 0.0, one.value) for one in known])]


def draw(group: Group, rows: Sequence[Entry]) -> str:
    """The chart of a group as an <svg>, empty where fewer than two rows have bits."""
    known = [one for one in rows if one.ranked and one.bits is not None]
    if len(known) < 2:
        return ""
    return svg.draw(panel(group, rows), f"front-{group.id}", FRAME)


def panel(group: Group, rows: Sequence[Entry]) -> Panel:
    known = [one for one in rows if one.ranked and one.bits is not None]
    best = front(rows)
    models = list(dict.fromkeys(one.model for one in known))
    marks = {id(one): _mark(one) for one in known}
    series = tuple(
        Series(name=model, style=i, marks=tuple(marks[id(one)] for one in known if one.model == model))
        for i, model in enumerate(models)
    )
    ends = [end for one in known for end in (one.value, one.low, one.high) if isfinite(end)]
    return Panel(
        name=group.id,
        title=f"Accuracy against bits: {group.title}",
        summary=_summary(known, best),
        x=linear("bits a quantized value", [one.bits or 0.0 for one in known]),
        y=linear(unit(group), ends),
        series=series,
        ringed=tuple(marks[id(one)] for one in best),
    )


def _summary(known: Sequence[Entry], best: Sequence[Entry]) -> str:
    ends = " to ".join(
        f"{one.quantizer} ({number(one.bits or 0.0)} bits)" for one in dict.fromkeys((best[0], best[-1]))
    )
    many = f"{len(best)} are on the front, from {ends}" if len(best) > 1 else f"one beats all others: {ends}"
    return f"Of {len(known)} rows, {many}."


def _mark(entry: Entry) -> Mark:
    known = isfinite(entry.low) and isfinite(entry.high)
    return Mark(
        x=entry.bits or 0.0,
        y=entry.value,
        low=entry.low if known else None,
        high=entry.high if known else None,
        label=entry.quantizer,
        told=True,
    )
