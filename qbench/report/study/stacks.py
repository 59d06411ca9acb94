"""Random stacks, nothing trained: the kurtosis that is measured behind each layer, and what closed forms say of it."""

from collections.abc import Mapping, Sequence

from qbench.report import axes
from qbench.report.panels import Mark, Panel, Rule, Series
from qbench.report.study.form import Figure, Section, Variant
from qbench.report.study.levels import Level, level
from qbench.report.tables import NONE, Table
from qbench.report.view import Arm, Row, View, by_seed
from qbench.report.words import listed, number

AXES: Mapping[str, tuple[str, str]] = {
    "all values pooled": ("excess_kurtosis/tensor", "theory/kurtosis/tensor"),
    "per channel over tokens": ("excess_kurtosis/channel", "theory/kurtosis/channel"),
}
FEW = 7  # stacks in one panel


def section(seen: View) -> Section | None:
    """None where no stack was measured."""
    stacks = [arm for arm in seen.arms if seen.select("theory", arm=arm.name)]
    if not stacks:
        return None
    groups = grouped(stacks)
    variants = tuple(
        Variant(name=name, panels=tuple(_panel(seen, stacks, group, name) for group in groups.items()))
        for name in AXES
        if any(AXES[name][0] in row.values for row in seen.select("theory"))
    )
    figure = Figure(
        name="theory",
        title="Excess kurtosis through random stacks",
        label="Kurtosis of",
        variants=variants,
        caption="Marks are measured, bars 95 % over seeds; dashed lines are closed forms, where one is known.",
        tables=tuple(_table(seen, stacks, name) for name in AXES),
        keys=tuple((style, arm.name) for style, arm in enumerate(stacks)),
    )
    return Section(
        name="theory",
        title="Random stacks and closed forms",
        link="Theory",
        about=(
            "No training: random layers on random rows. Dense mixing of d channels keeps 3 / (d + 2) of the values' "
            "kurtosis; an independent branch of r times the stream's variance leaves 1 / (1 + r)². What all channels "
            "of a token share no mixing removes."
        ),
        said=tuple(_said(seen, stacks)),
        figures=(figure,),
    )


def grouped(stacks: Sequence[Arm]) -> dict[str, list[Arm]]:
    """By what goes in, where records say so; so many in a panel as a reader can tell apart."""
    by_input: dict[str, list[Arm]] = {}
    for arm in stacks:
        by_input.setdefault(str(arm.model.get("input", "")), []).append(arm)
    return {
        f"{name or 'stacks'}{f', {start // FEW + 1}' if len(arms) > FEW else ''}": arms[start : start + FEW]
        for name, arms in by_input.items()
        for start in range(0, len(arms), FEW)
    }


def layer(row: Row) -> int:
    """How many layers a row lies behind."""
    return int(row.site.rpartition(".")[2]) if row.site else row.step or 0


def levels(rows: Sequence[Row], metric: str) -> dict[int, Level]:
    places = sorted({layer(row) for row in rows})
    found = {at: level(by_seed([row for row in rows if layer(row) == at], metric)) for at in places}
    return {at: one for at, one in found.items() if one is not None}


def _panel(seen: View, stacks: Sequence[Arm], group: tuple[str, Sequence[Arm]], which: str) -> Panel:
    measured, closed = AXES[which]
    series: list[Series] = []
    for arm in group[1]:
        style = stacks.index(arm)
        rows = seen.select("theory", arm=arm.name)
        found = [one.mark(at, f"{arm.name}, layer {at}") for at, one in levels(rows, measured).items()]
        known = [Mark(x=at, y=one.mean) for at, one in levels(rows, closed).items()]
        series.append(Series(name=arm.name, style=style, marks=tuple(known), line=_line(known), dashed=True))
        series.append(Series(name=arm.name, style=style, marks=tuple(found), line=_line(found)))
    values = [mark.y for one in series for mark in one.marks]
    return Panel(
        name=f"theory {group[0]} {which}",
        title=f"Input: {group[0]}",
        summary=f"Excess kurtosis, {which}, behind each layer: {_ends(series)}.",
        x=axes.linear("layers passed", [mark.x for one in series for mark in one.marks]),
        y=(axes.kurtosis if max(values, default=0.0) > 12 else axes.linear)("excess kurtosis", [0.0, *values]),
        series=tuple(one for one in series if one.marks),
        rules=(Rule(axis="y", at=0.0, label="Gaussian"),),
    )


def _line(marks: Sequence[Mark]) -> tuple[int, ...]:
    return tuple(range(len(marks)))


def _ends(series: Sequence[Series]) -> str:
    return listed(
        [
            f"{one.name} from {number(one.marks[0].y, 2)} to {number(one.marks[-1].y, 2)}"
            for one in series
            if one.marks and not one.dashed
        ]
    )


def _said(seen: View, stacks: Sequence[Arm]) -> list[str]:
    """How far measured values lie from closed forms, and for how many stacks there is one."""
    gaps: list[float] = []
    known: set[str] = set()
    for arm in stacks:
        rows = seen.select("theory", arm=arm.name)
        measured, closed = (levels(rows, name) for name in AXES["all values pooled"])
        known |= {arm.name} if closed else set()
        gaps += [
            abs(measured[at].mean - one.mean) / max(1.0, abs(one.mean)) for at, one in closed.items() if at in measured
        ]
    if not gaps:
        return []
    return [
        f"{len(known)} of {len(stacks)} stacks have a closed form. Measured values lie within {number(max(gaps), 2)} "
        "of it at every layer, as a share of its value, or of 1 where it is smaller."
    ]


def _table(seen: View, stacks: Sequence[Arm], which: str) -> Table:
    measured, closed = AXES[which]
    rows: list[tuple[str, ...]] = []
    last = max((layer(row) for row in seen.select("theory")), default=0)
    columns = sorted({0, 1, last // 4, last // 2, last})
    for arm in stacks:
        every = seen.select("theory", arm=arm.name)
        for name, metric in (("measured", measured), ("closed form", closed)):
            found = levels(every, metric)
            if found:
                rows.append((arm.name, name, *(number(found[at].mean) if at in found else NONE for at in columns)))
    return Table(
        caption=f"Excess kurtosis, {which}, behind so many layers: mean over seeds",
        columns=("stack", "", *(str(at) for at in columns)),
        rows=tuple(rows),
        words=(1,),
    )
