"""Learning rates: what each arm's grid gave on the tuning split, what was taken, and whether the grid ends there."""

from collections import defaultdict
from collections.abc import Mapping, Sequence

from markupsafe import Markup

from qbench.report.panels import Mark
from qbench.report.study import lines
from qbench.report.study.crossing import Crossing
from qbench.report.study.form import Figure, Section, Variant
from qbench.report.tables import NONE, Table
from qbench.report.view import Arm, Row, View
from qbench.report.words import counted, fixed, listed

RATE = ("lr", "learning_rate")
Tried = Mapping[float, float | None]  # loss on the tuning split by rate; None where the trial has no loss


def section(seen: View, where: Crossing) -> Section | None:
    """None where no rate was tried."""
    tried = {arm.name: found for arm in where.main.values() if (found := trials(seen, arm))}
    if not tried:
        return None
    marks = {
        name: [
            Mark(x=rate, y=loss, label=f"{name}, {rate:g}", told=True) for rate, loss in sorted(known(found).items())
        ]
        for name, found in tried.items()
    }
    arms = [arm for arm in where.main.values() if arm.name in tried]
    chart = lines.Chart(
        name="rates",
        title="Loss by learning rate",
        x="peak learning rate",
        y=f"tuning loss, {seen.nats}",
        marks=marks,
        across="logarithmic",
        apart=True,
        seen={name: _taken(_of(where, name, tried)) for name in where.optimizers},
        ringed=tuple(mark for arm in arms for mark in marks[arm.name] if mark.x == taken(arm)),
    )
    figure = Figure(
        name="rates",
        title="Loss on the tuning split against the learning rate",
        variants=(Variant(name="rates", panels=lines.panels(chart, where)),),
        caption="One seed; the ring is the rate that was taken. The test split has no say.",
        tables=tuple(
            _table(where, optimizer, tried, seen.nats) for optimizer in where.optimizers if _of(where, optimizer, tried)
        ),
    )
    return Section(
        name="rates",
        title="Learning rates",
        link="Learning rates",
        about=(
            "Every arm here chose its rate from a grid of its own, so that none is compared at another one's rate."
            f"{kept(seen, where)}"
        ),
        said=(_said(arms, tried),),
        cautions=(*_edges(arms, tried), *_untried(where, tried)),
        figures=(figure,),
    )


def kept(seen: View, where: Crossing) -> str:
    """That shorter schedules were not tried themselves, for the end of a text; "" where none took over a rate."""
    several = [arms for arms in where.schedules.values() if trials(seen, arms[0])]
    shorter = [arm for _, *others in several for arm in others if not trials(seen, arm)]
    if not shorter:
        return ""
    return (
        f" {counted(len(shorter), 'shorter schedule')} kept the rate that the longest of the same arm had chosen, "
        "which need not be the best for so many steps."
    )


def _untried(where: Crossing, tried: Mapping[str, Tried]) -> list[str]:
    missing = [arm.name for arm in where.main.values() if arm.name not in tried]
    return [f"No rate was tried for these, which have the one that the suite states: {listed(missing)}."] * bool(
        missing
    )


def _taken(arms: Sequence[Arm]) -> str:
    """For a title."""
    rates = sorted({rate for arm in arms if (rate := taken(arm)) is not None})
    if len(rates) == 1:
        return f": {rates[0]:g} taken by all"
    return f": {rates[0]:g} to {rates[-1]:g} taken" if rates else ""


def trials(seen: View, arm: Arm) -> Tried:
    found: dict[float, list[Row]] = defaultdict(list)
    for row in seen.select("trial", arm=arm.name):
        rate = next((row.values[name] for name in RATE if name in row.values), None)
        if rate is not None:
            found[rate].append(row)
    return {rate: rows[0].values.get("loss") for rate, rows in found.items()}


def known(tried: Tried) -> dict[float, float]:
    return {rate: loss for rate, loss in tried.items() if loss is not None}


def taken(arm: Arm) -> float | None:
    """The rate that the arm was trained with."""
    rate = (arm.training or {}).get("lr")
    return None if rate is None else float(rate)


def at_edge(tried: Tried) -> str:
    """Where the best rate has no neighbour on one side: "highest" or "lowest" of its grid, "" inside it."""
    if not known(tried):
        return ""
    if len(tried) == 1:
        return "only one"
    return "lowest" if best(tried) == min(tried) else "highest" if best(tried) == max(tried) else ""


def best(tried: Tried) -> float:
    """The rate with the least loss, the lower one of two that are equal."""
    return min((loss, rate) for rate, loss in known(tried).items())[1]


def _edges(arms: Sequence[Arm], tried: Mapping[str, Tried]) -> list[str]:
    return [
        f"{arm.name}: the best rate is the {edge} of its grid ({best(tried[arm.name]):g}); a better one may lie beyond."
        for arm in arms
        if (edge := at_edge(tried[arm.name]))
    ]


def _said(arms: Sequence[Arm], tried: Mapping[str, Tried]) -> str:
    inside = sum(bool(known(tried[arm.name])) and not at_edge(tried[arm.name]) for arm in arms)
    lost = [f"{name} at {rate:g}" for name, found in tried.items() for rate, loss in found.items() if loss is None]
    diverged = f" Diverged: {listed(lost)}." if lost else ""
    return f"Of {counted(len(arms), 'arm')}, {inside} have their best rate inside the grid.{diverged}"


def _of(where: Crossing, optimizer: str, tried: Mapping[str, Tried]) -> list[Arm]:
    return [arm for arm in where.with_optimizer(optimizer) if arm.name in tried]


def _table(where: Crossing, optimizer: str, tried: Mapping[str, Tried], unit: str) -> Table:
    arms = _of(where, optimizer, tried)
    rates = sorted({rate for arm in arms for rate in tried[arm.name]})
    return Table(
        caption=f"{optimizer}: loss on the tuning split, {unit}; the rate that was taken is marked",
        columns=("learning rate", *(f"{rate:g}" for rate in rates)),
        rows=tuple((where.title(arm), *(_cell(arm, tried[arm.name], rate) for rate in rates)) for arm in arms),
        styles=tuple(arm.style for arm in arms),
    )


def _cell(arm: Arm, tried: Tried, rate: float) -> str:
    if rate not in tried:
        return NONE
    loss = tried[rate]
    text = "diverged" if loss is None else fixed(loss, 3)
    if rate == taken(arm):
        return Markup('<b class="best">{}<span class="vh"> taken</span></b>').format(text)
    return text
