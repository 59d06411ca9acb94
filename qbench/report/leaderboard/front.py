"""The accuracy-bits front of one group, drawn: what no other row beats in both bits and cost."""

from collections.abc import Sequence
from math import isfinite

from qbench.report import pareto, svg
from qbench.report.axes import linear
from qbench.report.leaderboard.entries import Entry, Group
from qbench.report.panels import Mark, Panel, Series
from qbench.report.words import listed, number

FRAME = svg.Frame(width=640, height=330, left=54)
WORDS = {"loss": "loss, nats a token", "error_rate": "error rate"}


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
    names = listed([f"{one.model}, {one.quantizer} ({number(one.bits or 0.0)} bits)" for one in best])
    return Panel(
        name=group.id,
        title=f"Accuracy against bits: {group.title}",
        summary=f"Of {len(known)} rows, {len(best)} are on the front: {names}.",
        x=linear("bits a quantized value", [one.bits or 0.0 for one in known]),
        y=linear(WORDS.get(group.metric, group.metric), ends),
        series=series,
        ringed=tuple(marks[id(one)] for one in best),
    )


def _mark(entry: Entry) -> Mark:
    known = isfinite(entry.low) and isfinite(entry.high)
    return Mark(
        x=entry.bits or 0.0,
        y=entry.value,
        low=entry.low if known else None,
        high=entry.high if known else None,
        label=f"{entry.model}, {entry.quantizer}, {number(entry.bits or 0.0)} bits",
        told=True,
    )
