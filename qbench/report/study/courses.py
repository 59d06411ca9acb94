"""While training: the loss, and the kurtosis of key places, by architecture within each optimizer; and by depth."""

from collections.abc import Callable, Sequence

from qbench.report import charts
from qbench.report.panels import Mark, Rule
from qbench.report.study import lines
from qbench.report.study.crossing import Crossing
from qbench.report.study.form import Figure, Section, Variant
from qbench.report.study.levels import level
from qbench.report.view import Arm, Row, View, by_seed, place
from qbench.report.words import number, spread

INTERIOR = "interior boundaries"
SITES = (INTERIOR, "last boundary", "mlp.hidden", "attn.context")
LOSS = "validation_loss"


def section(seen: View, where: Crossing) -> Section | None:
    """None where nothing was watched while training and no shape was measured after it."""
    growths = {name: _growth(seen, where, name) for name in SITES}
    depths = {name: _depth(seen, where, name) for name in charts.site_classes(seen)[:3]}
    figures = (
        _figure(where, "growth", "Excess kurtosis while training", "Site", growths),
        _figure(where, "depth", "Excess kurtosis by depth, after training", "Site", depths),
        _learning(seen, where),
    )
    shown = tuple(figure for figure in figures if figure is not None)
    if not shown:
        return None
    return Section(
        name="course",
        title="Through training and depth",
        link="Through training",
        about=(
            "At the start every architecture is near Gaussian; what matters is where training takes it. Lines are "
            "means over layers and seeds, bars 95 % over seeds. The first marks are before the first step."
        ),
        said=tuple(_said(seen, where, growths[INTERIOR])),
        figures=shown,
    )


def losses(seen: View, where: Crossing) -> Section | None:
    """The losses alone, for pages that show the kurtosis of every arm elsewhere; None where none was watched."""
    figure = _learning(seen, where)
    if figure is None:
        return None
    return Section(
        name="losses",
        title="How training went",
        link="Training",
        about="Loss on the tuning split while each arm trained, mean of its seeds. What collapses rises or stays up.",
        figures=(figure,),
    )


def _learning(seen: View, where: Crossing) -> Figure | None:
    return _figure(where, "learning", "Loss while training", "", {"loss": _losses(seen, where)})


def _figure(where: Crossing, name: str, title: str, label: str, drawn: dict[str, lines.Chart | None]) -> Figure | None:
    found = {key: chart for key, chart in drawn.items() if chart is not None and chart.marks}
    if not found:
        return None
    return Figure(
        name=name,
        title=title,
        label=label,
        variants=tuple(Variant(name=key, panels=lines.panels(chart, where)) for key, chart in found.items()),
        tables=tuple(lines.table(chart, where) for chart in list(found.values())[:2]),
    )


def _growth(seen: View, where: Crossing, name: str) -> lines.Chart | None:
    marks = {arm.name: _steps(_watched(seen, arm), _chosen(arm, name), charts.KURTOSIS) for arm in where.main.values()}
    return _kurtosis(name, "training step", {arm: found for arm, found in marks.items() if len(found) > 1})


def _watched(seen: View, arm: Arm) -> list[Row]:
    return [row for row in seen.select("training", arm=arm.name) if row.step is not None]


def _chosen(arm: Arm, name: str) -> Callable[[Row], bool]:
    """Which rows are of this class of sites."""
    last = arm.layers - 1
    if name == INTERIOR:
        return lambda row: place(row.site)[1] == "out" and place(row.site)[0] != last
    if name == "last boundary":
        return lambda row: row.site == f"blocks.{last}.out"
    known = charts.site_name(arm, name)
    return lambda row: place(row.site)[1] == known and place(row.site)[0] is not None


def _steps(rows: Sequence[Row], wanted: Callable[[Row], bool], metric: str) -> list[Mark]:
    by_step: dict[int, list[Row]] = {}
    for row in rows:
        if row.step is not None and wanted(row):
            by_step.setdefault(row.step, []).append(row)
    levels = {step: level(by_seed(found, metric)) for step, found in sorted(by_step.items())}
    return [one.mark(step, f"step {step}") for step, one in levels.items() if one is not None]


def _kurtosis(name: str, x: str, marks: dict[str, list[Mark]]) -> lines.Chart | None:
    if not marks:
        return None
    at, label = charts.GAUSSIAN_KURTOSIS.get(name, (0.0, "Gaussian"))
    return lines.Chart(
        name=f"{x} {name}",
        title=f"Excess kurtosis of {name}",
        x=x,
        y="excess kurtosis, pooled",
        marks=marks,
        up="kurtosis",
        rules=(Rule(axis="y", at=at, label=label),),
    )


def _depth(seen: View, where: Crossing, name: str) -> lines.Chart | None:
    marks: dict[str, list[Mark]] = {}
    for arm in where.main.values():
        known = charts.site_name(arm, name)
        rows = [row for row in seen.select("shape", kind="activation", arm=arm.name) if place(row.site)[1] == known]
        layers = {layer: [row for row in rows if place(row.site)[0] == layer] for layer in range(arm.layers)}
        found = [(layer, level(by_seed(each, charts.KURTOSIS))) for layer, each in layers.items()]
        if here := [one.mark(layer, f"layer {layer}") for layer, one in found if one is not None]:
            marks[arm.name] = here
    return _kurtosis(name, "layer", marks)


def _losses(seen: View, where: Crossing) -> lines.Chart | None:
    marks = {arm.name: _steps(_watched(seen, arm), lambda row: not row.site, LOSS) for arm in where.main.values()}
    marks = {
        name: [Mark(x=m.x, y=m.y, label=m.label) for m in found] for name, found in marks.items() if len(found) > 1
    }
    if not marks:
        return None
    return lines.Chart(
        name="learning",
        title="Loss while training",
        x="training step",
        y=f"tuning loss, {seen.nats}",
        marks=marks,
        up="logarithmic",
    )


def _said(seen: View, where: Crossing, chart: lines.Chart | None) -> list[str]:
    """What happened to the boundaries of the first two architectures under each optimizer."""
    if chart is None or not where.crossed or len(where.architectures) < 2:
        return []
    first, second = where.architectures[:2]
    said: list[str] = []
    for optimizer in where.optimizers:
        both = [where.main.get((name, optimizer)) for name in (first, second)]
        ends = [chart.marks[arm.name][-1] for arm in both if arm is not None and arm.name in chart.marks]
        if len(ends) == 2:
            told = [f"{name} {_with(mark)}" for name, mark in zip((first, second), ends, strict=True)]
            said.append(f"With {optimizer}, kurtosis at interior boundaries ends at: {told[0]}, {told[1]}.")
    return said


def _with(mark: Mark) -> str:
    return number(mark.y, 2) if mark.high is None else spread(mark.y, mark.high - mark.y)
