"""Numbers by depth: a chart for each of several metrics along the blocks, behind one picker of optimizers or sites."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from qbench.report.panels import Mark, Rule
from qbench.report.study import lines
from qbench.report.study.crossing import Crossing
from qbench.report.study.levels import level
from qbench.report.view import Arm, Row, View, by_seed, place

PASSED = "blocks passed"
HALVES = ("mid", "attn.sum")  # what lies between the two sub-blocks


@dataclass(frozen=True, slots=True, kw_only=True)
class Metric:
    """`axis` is what stands along the axis where the title is too long; `expected` is drawn dashed beside it."""

    name: str
    title: str
    axis: str = ""
    scale: lines.Scale = "linear"
    expected: str = ""
    at: float | None = None  # a line for reference


def passed(site: str) -> float | None:
    """How many blocks lie before a place; a half where only attention's sub-block does.

    >>> passed("blocks.0.mid"), passed("blocks.2.out"), passed("blocks.2"), passed("logits")
    (0.5, 3.0, 3.0, None)
    """
    block, name = place(f"{site}." if site.count(".") == 1 else site)
    if block is None:
        return None
    return block + 0.5 if name in HALVES else block + 1.0


def chart(seen: View, where: Crossing, metric: Metric, rows: Callable[[Arm], Sequence[Row]]) -> lines.Chart | None:
    """`rows` are those of one arm at places in a row; None where none has the metric."""
    marks = {arm.name: _marks(rows(arm), metric.name) for arm in where.main.values()}
    marks = {name: found for name, found in marks.items() if found}
    if not marks:
        return None
    expected = {arm.name: _marks(rows(arm), metric.expected) for arm in where.main.values()} if metric.expected else {}
    rules = () if metric.at is None else (Rule(axis="y", at=metric.at),)
    return lines.Chart(
        name=metric.name,
        title=metric.title,
        x=PASSED,
        y=metric.axis or metric.title,
        marks=marks,
        expected=expected,
        up=metric.scale,
        rules=rules,
    )


def _marks(rows: Sequence[Row], metric: str) -> list[Mark]:
    places: dict[float, list[Row]] = {}
    for row in rows:
        at = passed(row.site)
        if at is not None and metric in row.values:
            places.setdefault(at, []).append(row)
    levels = [(at, level(by_seed(found, metric))) for at, found in sorted(places.items())]
    return [one.mark(at, f"{at:g}") for at, one in levels if one is not None]


def charts(
    seen: View, where: Crossing, metrics: Sequence[Metric], rows: Callable[[Arm], Sequence[Row]]
) -> Mapping[str, lines.Chart]:
    """Those that have marks, by title."""
    found = {metric.title: chart(seen, where, metric, rows) for metric in metrics}
    return {title: one for title, one in found.items() if one is not None}
