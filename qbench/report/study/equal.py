"""Equal loss: what quantizing costs a model that was stopped earlier, at the loss of the one it is compared with.

A worse model is less sensitive. Arms that were also trained on shorter full schedules give a line of increases over
losses in full precision; between two schedules the logarithm of the increase is taken as linear in the loss.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import exp, log
from typing import Any

from markupsafe import Markup

from qbench.report import effects, troubles
from qbench.report.panels import Mark
from qbench.report.study import grids, lines
from qbench.report.study.crossing import Crossing, Pair
from qbench.report.study.form import Figure, Section, Variant
from qbench.report.study.levels import level
from qbench.report.tables import NONE, Table
from qbench.report.view import UNQUANTIZED, Arm, View, by_seed
from qbench.report.words import listed, number
from qbench.stats.interval import Interval, ratio_interval

LARGE = 1e6  # ends of intervals beyond it say nothing
Point = tuple[float, float]  # loss in full precision, increase


@dataclass(frozen=True, slots=True, kw_only=True)
class Equal:
    """The longer-trained arm stopped where the other one ends: both increases there, and their ratio over seeds.

    `other` ends at `loss`; `stopped` is of the arm with several schedules. `reason` says why there is no number.
    """

    treatment: str
    stopped: Pair
    other: Pair
    loss: float
    increases: tuple[float, float] | None = None
    at_end: Interval | None = None
    ratio: Interval | None = None
    n: int = 0
    reason: str = ""


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
        ),
        said=tuple(_said(where, found)),
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


def points(seen: View, arm: Arm, treatment: str) -> dict[int, Point]:
    """By seed, where both are known."""
    plain = by_seed(seen.select("loss", arm=arm.name, treatment=UNQUANTIZED), "loss")
    costs = effects.per_seed(seen, arm.name, {"treatment": treatment, "metric": "loss_increase"})
    return {seed: (plain[seed], costs[seed]) for seed in sorted(plain.keys() & costs.keys())}


def _chart(seen: View, where: Crossing, treatment: str, compared: Sequence[Equal]) -> lines.Chart | None:
    lost = troubles.learned_nothing(seen)
    marks: dict[str, list[Mark]] = {}
    for pair, arm in where.main.items():
        found = [_mark(where, one, points(seen, one, treatment)) for one in where.schedules[pair]]
        alone = all(len(where.schedules[p]) < 2 for p in where.schedules if p[1] == pair[1])
        if arm.name not in lost and any(found) and not (alone and where.crossed):
            marks[arm.name] = sorted((mark for mark in found if mark), key=lambda mark: mark.x)
    if not any(len(found) > 1 for found in marks.values()):
        return None
    return lines.Chart(
        name=f"equal {treatment}",
        title=f"Increase by {treatment}",
        x="loss in full precision, nats/token",
        y="loss increase, nats/token",
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


def comparisons(seen: View, where: Crossing, treatment: str) -> list[Equal]:
    """Every architecture of an optimizer against each that has several schedules, stopped at the first one's loss."""
    lost = troubles.learned_nothing(seen)
    found: list[Equal] = []
    for stopped, arms in where.schedules.items():
        if len(arms) < 2:
            continue
        curves = [points(seen, arm, treatment) for arm in arms]
        for other, arm in where.main.items():
            ends = points(seen, arm, treatment)
            if other != stopped and other[1] == stopped[1] and ends and arm.name not in lost and curves[0]:
                found.append(_equal(treatment, (stopped, curves), (other, ends)))
    return found


def _equal(
    treatment: str, stopped: tuple[Pair, Sequence[Mapping[int, Point]]], other: tuple[Pair, Mapping[int, Point]]
) -> Equal:
    (pair, curves), (against, ends) = stopped, other
    loss = sum(point[0] for point in ends.values()) / len(ends)
    about: dict[str, Any] = {"treatment": treatment, "stopped": pair, "other": against, "loss": loss}
    read = {seed: between([curve[seed] for curve in curves if seed in curve], ends[seed][0]) for seed in ends}
    known = {seed: cost for seed, cost in read.items() if cost is not None}
    if len(known) < len(read):
        return Equal(**about, reason=_outside(curves, loss))
    first = [curves[0][seed][1] for seed in sorted(known) if seed in curves[0]]
    costs, theirs = [known[seed] for seed in sorted(known)], [ends[seed][1] for seed in sorted(known)]
    ratio = ratio_interval(costs, theirs)
    if ratio is None:
        return Equal(**about, reason="an increase is zero or negative")
    return Equal(
        **about,
        increases=(sum(costs) / len(costs), sum(theirs) / len(theirs)),
        at_end=ratio_interval(first, theirs) if len(first) == len(theirs) else None,
        ratio=ratio,
        n=len(known),
    )


def between(curve: Sequence[Point], loss: float) -> float | None:
    """The increase where a curve has this loss, linear in the logarithm; None outside the curve: nothing is guessed.

    >>> round(between([(1.0, 0.1), (2.0, 0.4)], 1.5), 6), between([(1.0, 0.1), (2.0, 0.4)], 2.1)
    (0.2, None)
    """
    for (low, first), (high, last) in pairwise(sorted(curve)):
        if low <= loss <= high and first > 0 and last > 0 and high > low:
            return exp(log(first) + (loss - low) / (high - low) * (log(last) - log(first)))
    return None


def _outside(curves: Sequence[Mapping[int, Point]], loss: float) -> str:
    losses = [point[0] for curve in curves for point in curve.values()]
    if losses and loss > max(losses):
        return f"its shortest ends at {number(max(losses))}"
    return f"it ends at {number(min(losses))} at best" if losses and loss < min(losses) else "not for every seed"


def _told(one: Equal) -> bool:
    return one.ratio is not None


def _said(where: Crossing, found: Sequence[Equal]) -> list[str]:
    """The first treatment with numbers in sentences: against the second architecture where it is there."""
    told = [one for one in found if one.ratio]
    first = next((one.treatment for one in told), "")
    main = next((name for name in where.architectures[1:] if any(one.other[0] == name for one in told)), "")
    return [_sentence(one) for one in told if one.treatment == first and one.other[0] == main]


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
    """Of each treatment and each architecture that was stopped: the ratio at equal loss, and at equal steps."""
    for treatment in treatments:
        for stopped in dict.fromkeys(one.stopped[0] for one in found):
            here = {one.other: one for one in found if one.treatment == treatment and one.stopped[0] == stopped}
            optimizers = [name for name in where.optimizers if any(other[1] == name for other in here)]
            others = [name for name in where.architectures if any(other[0] == name for other in here)]
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
    stopped = listed(list(dict.fromkeys(one.stopped[0] for one in found)))
    return Table(
        caption=f"{stopped}, stopped at the loss of the other: loss increases there and their ratio, 95 % over seeds",
        columns=(
            "treatment",
            "optimizer",
            "other",
            "at loss",
            "stopped",
            "other's",
            "at equal steps",
            "at equal loss",
            "",
        ),
        rows=tuple((one.treatment, one.other[1], one.other[0], number(one.loss), *_row(one)) for one in found),
        words=(1, 2, 8),
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
