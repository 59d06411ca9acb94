"""The plain charts of a study with many arms: one optimizer at a time, one seed in the cloud, and tables that fit."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from statistics import fmean

from qbench.report import budget, charts, troubles
from qbench.report.panels import Panel, Series
from qbench.report.payload import Rows, packed, short
from qbench.report.study.crossing import Crossing
from qbench.report.study.levels import level
from qbench.report.study.sections import silent
from qbench.report.tables import NONE, Table
from qbench.report.view import UNQUANTIZED, Arm, View, by_seed
from qbench.report.words import counted, number

CLOUDS = 6  # quantizers that the cloud can be moved to: each adds a number for each of some thousand points


def clouds(seen: View, arms: Collection[Arm]) -> charts.Clouds:
    """Of the first seed of each of these arms; the other seeds lie on top of it."""
    first = {arm.name: arm.seeds[0] for arm in arms}
    rows = [row for what in ("shape", "error") for row in seen.select(what) if first.get(row.arm) == row.seed]
    found = charts.clouds(replace(seen, arms=tuple(arms), rows=tuple(rows)))
    return charts.Clouds(kurtosis=found.kurtosis, panels=dict([*found.panels.items()][:CLOUDS]))


def budgets(seen: View, where: Crossing, metric: str) -> dict[str, list[Panel]]:
    """By optimizer: one panel for each scope, lines are architectures; only the treatments on each arm's own front."""
    drawn = {name: budget.budgets(seen.of(where.with_optimizer(name)), metric) for name in where.optimizers}
    lost = troubles.learned_nothing(seen)
    return {name: [_front(silent(panel), lost) for panel in panels] for name, panels in drawn.items() if panels}


def _front(panel: Panel, lost: Collection[str]) -> Panel:
    """Seven arms with all of their treatments would hide each other; the table has the others."""
    fronts = [replace(one, marks=tuple(one.marks[i] for i in one.line)) for one in panel.series]
    found = tuple(replace(one, line=tuple(range(len(one.marks)))) for one in fronts)
    return replace(panel, series=found, summary=_summary(found, panel.y.title, lost))


def _summary(series: Sequence[Series], measured: str, lost: Collection[str]) -> str:
    """Who is best with the fewest and with the most bits, of those that learned something; the tables have the rest."""
    lines = counted(sum(bool(one.marks) for one in series), "line")
    shown = [one for one in series if one.marks and one.name not in lost]
    if not shown:
        return f"{lines} of {measured}." if any(one.marks for one in series) else ""
    few, many = (min(shown, key=lambda one: one.marks[at].y) for at in (0, -1))
    return (
        f"{lines} of {measured}. Lowest with the fewest bits: {few.name}, "
        f"{number(few.marks[0].y, 2)} at {number(few.marks[0].x)} bits; with the most: {many.name}, "
        f"{number(many.marks[-1].y, 2)} at {number(many.marks[-1].x)} bits."
    )


def tables(seen: View, where: Crossing) -> list[Table]:
    """Loss increases of every treatment: a table for each scope, an arm a row."""
    scopes: dict[str, dict[str, None]] = {}
    for row in seen.select("loss"):
        if row.treatment != UNQUANTIZED and "loss_increase" in row.values:
            scopes.setdefault(budget.scope_of(row), {})[row.treatment] = None
    return [_table(seen, where, scope, list(treatments)) for scope, treatments in scopes.items()]


def _table(seen: View, where: Crossing, scope: str, treatments: Sequence[str]) -> Table:
    rows: list[tuple[str, ...]] = []
    for arm in where.main.values():
        found = {
            name: level(by_seed(seen.select("loss", arm=arm.name, treatment=name), "loss_increase"))
            for name in treatments
        }
        rows.append((where.title(arm), *(number(one.mean, 2) if (one := found[name]) else NONE for name in treatments)))
    return Table(
        caption=f"{scope}: loss increase, {seen.nats}, mean over seeds",
        columns=("arm", *(name.partition(" @ ")[0] for name in treatments)),
        rows=tuple(rows),
        styles=tuple(arm.style for arm in where.main.values()),
    )


def sheet(seen: View) -> Rows:
    """Means over seeds: a row for each arm and treatment."""
    groups: dict[tuple[str, str], dict[str, dict[int, float]]] = {}
    bits: dict[tuple[str, str], float | None] = {}
    for row in seen.select("loss"):
        at = (row.arm, row.treatment)
        bits[at] = row.bits
        for metric in ("loss", "loss_increase"):
            if metric in row.values:
                groups.setdefault(at, {}).setdefault(metric, {})[row.seed] = row.values[metric]
    rows = [
        [arm, name, bits[arm, name], *_means(found), len(found.get("loss", {}))]
        for (arm, name), found in groups.items()
    ]
    columns = ["arm", "treatment", "bits_per_value", "loss", "loss_increase", "seeds"]
    return packed(columns, rows)


def _means(found: Mapping[str, Mapping[int, float]]) -> list[float | None]:
    values = ([*found.get(name, {}).values()] for name in ("loss", "loss_increase"))
    return [short(fmean(each)) if each else None for each in values]
