"""The section about equal loss: increases read off between the schedules of a model, where another one ends."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from markupsafe import Markup

from qbench.report import troubles
from qbench.report.panels import Mark
from qbench.report.study import grids, lines, rates
from qbench.report.study.crossing import Crossing
from qbench.report.study.form import Figure, Section, Variant
from qbench.report.study.levels import level
from qbench.report.study.stopped import Equal, Point, comparisons, points
from qbench.report.tables import NONE, Table
from qbench.report.view import Arm, View
from qbench.report.words import listed, number
from qbench.stats.interval import Interval

LARGE = 1e6  # ends of intervals beyond it say nothing


def section(seen: View, where: Crossing, claims: Sequence[Mapping[str, Any]]) -> Section | None:
    """None where no arm has a shorter schedule with a loss increase."""
    treatments = grids.treatments(seen, claims)
    several = [pair for pair, arms in where.schedules.items() if len(arms) > 1]
    compared = {name: comparisons(seen, where, name) for name in treatments if several}
    charts = {name: chart for name, of in compared.items() if (chart := _chart(seen, where, name, of))}
    if not charts:
        return None
    found = [one for name in charts for one in compared[name]]
    return Section(
        name="equal",
        title="At equal loss",
        link="At equal loss",
        about=(
            "Equal steps is not equal loss. Each line follows one architecture through its schedules, each run to its "
            "end: read two architectures at the same place on the horizontal axis, not at their last marks."
            f"{rates.kept(seen, where)}"
        ),
        said=tuple(_said(where, found)),
        cautions=tuple(_cautions(seen, where)),
        maps=(("How many times the increase of the other", tuple(_maps(where, charts, found))),)
        * any(map(_told, found)),
        figures=(
            Figure(
                name="equal",
                title="Loss increase against loss in full precision",
                label="Treatment",
                variants=tuple(Variant(name=name, panels=lines.panels(chart, where)) for name, chart in charts.items()),
                caption="Better models lie to the left, cheaper quantization lies lower. Bars are 95 % over seeds.",
                tables=(
                    *([table(found)] if found else []),
                    *(_numbers(where, name, chart) for name, chart in [*charts.items()][:2]),
                ),
            ),
        ),
    )


def _cautions(seen: View, where: Crossing) -> Iterator[str]:
    if lost := troubles.in_words(seen.of(arm for arms in where.schedules.values() for arm in arms)):
        yield f"Learned nothing, and so neither drawn nor compared: {listed([*lost.values()])}."


def _chart(seen: View, where: Crossing, treatment: str, compared: Sequence[Equal]) -> lines.Chart | None:
    lost = troubles.learned_nothing(seen)
    marks: dict[str, list[Mark]] = {}
    for pair, arm in where.main.items():
        schedules = [one for one in where.schedules[pair] if one.name not in lost]
        found = [_mark(where, one, points(seen, one, treatment)) for one in schedules]
        alone = all(len(where.schedules[p]) < 2 for p in where.schedules if p[1] == pair[1])
        if any(found) and not (alone and where.crossed):
            marks[arm.name] = sorted((mark for mark in found if mark), key=lambda mark: mark.x)
    if not any(len(found) > 1 for found in marks.values()):
        return None
    return lines.Chart(
        name=f"equal {treatment}",
        title=f"Increase by {treatment}",
        x=f"loss in full precision, {seen.nats}",
        y=f"loss increase, {seen.nats}",
        marks=marks,
        up="logarithmic",
        seen={name: _seen(name, compared) for name in where.optimizers},
    )


def _seen(optimizer: str, found: Sequence[Equal]) -> str:
    """What the first other architecture with a number shows, for the title."""
    one = next((one for one in found if one.ratio and one.other[1] == optimizer), None)
    if one is None or one.ratio is None:
        return ""
    return f": at {number(one.loss)} {one.stopped[0]} pays {number(one.ratio.estimate, 2)}× {one.other[0]}"


def _mark(where: Crossing, arm: Arm, found: Mapping[int, Point]) -> Mark | None:
    x, y = (level({seed: point[i] for seed, point in found.items()}) for i in (0, 1))
    if x is None or y is None:
        return None
    return y.mark(x.mean, f"{arm.name}, {where.known[arm.name].steps} steps", told=True)


def _told(one: Equal) -> bool:
    return one.ratio is not None


def _said(where: Crossing, found: Sequence[Equal]) -> list[str]:
    """The first treatment with numbers in sentences: the first architecture that was stopped earlier, against the
    second one of the study where it is there. The maps hold the others.
    """
    told = [one for one in found if one.ratio]
    first = next((one.treatment for one in told), "")
    main = next((name for name in where.architectures[1:] if any(one.other[0] == name for one in told)), "")
    pairs = [one for one in told if one.treatment == first and one.other[0] == main]
    return [_sentence(one) for one in pairs if one.stopped[0] == pairs[0].stopped[0]]


def _sentence(one: Equal) -> str:
    assert one.ratio is not None
    assert one.increases is not None
    costs = [number(cost, 2) for cost in one.increases]
    before = f"; at equal steps it is {_times(one.at_end)}" if one.at_end else ""
    return (
        f"{one.treatment}, {one.stopped[1]}: stopped at the loss of {one.other[0]} ({number(one.loss)}), "
        f"{one.stopped[0]} pays {costs[0]} against {costs[1]}, {_times(one.ratio)}{before}."
    )


def _maps(where: Crossing, treatments: Iterable[str], found: Sequence[Equal]) -> Iterator[Table]:
    """Of each treatment and each architecture that was stopped: the ratio at equal loss, and at equal steps.

    Who was compared in no optimizer has no row here; the table behind the charts says why.
    """
    for treatment in treatments:
        for stopped in dict.fromkeys(one.stopped[0] for one in found):
            here = {one.other: one for one in found if one.treatment == treatment and one.stopped[0] == stopped}
            optimizers = [name for name in where.optimizers if any(other[1] == name for other in here)]
            compared = {other[0] for other, one in here.items() if one.ratio}
            others = [name for name in where.architectures if name in compared]
            if not others:
                continue
            yield Table(
                caption=f"{treatment}: {stopped} ÷ other at the other's loss; below: 95 %, and at equal steps",
                columns=("", *optimizers),
                rows=tuple(
                    (name, *(_cell(here.get((name, optimizer))) for optimizer in optimizers)) for name in others
                ),
            )


def _cell(one: Equal | None) -> Markup | str:
    if one is None:
        return NONE
    if one.ratio is None:
        return Markup('–<small class="how">{}</small>').format(one.reason)
    inside = f"{number(one.ratio.low, 2)} to {number(one.ratio.high, 2)}" if _bounded(one.ratio) else "no interval"
    before = f"steps: {number(one.at_end.estimate, 2)}×" if one.at_end else ""
    text = Markup('<b>{}×</b><small class="how">{}</small><small class="how">{}</small>')
    return text.format(number(one.ratio.estimate, 2), inside, before)


def _bounded(ratio: Interval) -> bool:
    return ratio.low > 0 and ratio.high < LARGE


def _times(ratio: Interval) -> str:
    inside = f" ({number(ratio.low, 2)} to {number(ratio.high, 2)})" if _bounded(ratio) else ""
    return f"{number(ratio.estimate, 2)}×{inside}"


def table(found: Sequence[Equal]) -> Table:
    return Table(
        caption="Stopped at the loss of the other: loss increases there and their ratio, 95 % over seeds",
        columns=(
            "treatment",
            "optimizer",
            "stopped",
            "other",
            "at loss",
            "stopped one's",
            "other's",
            "at equal steps",
            "at equal loss",
            "",
        ),
        rows=tuple(
            (one.treatment, one.other[1], one.stopped[0], one.other[0], number(one.loss), *_row(one)) for one in found
        ),
        words=(1, 2, 3, 9),
    )


def _row(one: Equal) -> tuple[str, ...]:
    if one.ratio is None or one.increases is None:
        return NONE, NONE, NONE, NONE, one.reason
    costs = [number(cost, 2) for cost in one.increases]
    return *costs, _times(one.at_end) if one.at_end else NONE, _times(one.ratio), f"n = {one.n}"


def _numbers(where: Crossing, treatment: str, chart: lines.Chart) -> Table:
    rows = [
        (where.title(arm), mark.label.rpartition(", ")[2], number(mark.x), number(mark.y), _span(mark))
        for arm in where.main.values()
        for mark in chart.marks.get(arm.name, ())
    ]
    return Table(
        caption=f"{treatment}: mean over seeds",
        columns=("arm", "schedule", "loss", "increase", "95 % interval"),
        rows=tuple(rows),
    )


def _span(mark: Mark) -> str:
    return NONE if mark.low is None or mark.high is None else f"{number(mark.low, 2)} to {number(mark.high, 2)}"
