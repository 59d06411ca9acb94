"""The page's charts as static files for a paper: the same panels, drawn by matplotlib."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from textwrap import fill
from typing import TYPE_CHECKING, Any

from qbench.report import budget, charts, provenance
from qbench.report.panels import Panel, Series
from qbench.report.study import crossed, sections
from qbench.report.study.crossing import Crossing, crossing
from qbench.report.view import View, view
from qbench.results.run import Run

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLOURS = ("#0b62a8", "#c2410c", "#00795e", "#8a3fa0", "#856404", "#4d5663", "#a3195b", "#3f6f12")  # as in page.css
SHAPES = ("o", "^", "s", "D", "v", "P", "h")
FORMATS = ("svg", "png")
WIDE = 52  # letters of a title that fit over a panel
FEW = 6  # arms that a legend inside a panel has room for
STYLE: dict[Any, Any] = {
    "svg.hashsalt": "qbench",  # the same figure is the same file
    "svg.fonttype": "none",
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
}


def write(run: Run, folder: Path, formats: Sequence[str] = FORMATS) -> list[Path]:
    """Draw every chart of the run that has points; the files written.

    ImportError, with what to install, where matplotlib is missing.
    """
    try:
        from matplotlib import rc_context
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("figures need matplotlib: pip install 'qbench-suite[figures]'") from error
    folder.mkdir(parents=True, exist_ok=True)
    paths: list[Path] = []
    asked = provenance.suite(run)
    seen = view(run, first=provenance.compared(asked))
    names = {arm.name: arm.drawn_as for arm in seen.arms}
    for name, panels in figures(seen, provenance.claims(asked)):
        with rc_context(STYLE):
            columns = min(3, len(panels))
            rows = -(-len(panels) // columns)
            figure = Figure(figsize=(4.2 * columns, 3.3 * rows), layout="constrained")
            for place, panel in enumerate(panels, start=1):
                draw(figure.add_subplot(rows, columns, place), panel)
            _legend(figure, names)
            for ending in formats:
                paths.append(folder / f"{name}.{ending}")
                figure.savefig(paths[-1], dpi=200, metadata={"Date": None} if ending == "svg" else None)
    return paths


def _legend(figure: Any, names: Mapping[str, str]) -> None:
    """Every arm of any panel once, those drawn alike under the name they share; below the panels where many."""
    found = [pair for axes in figure.axes for pair in zip(*axes.get_legend_handles_labels(), strict=True)]
    known = {names.get(label, label): line for line, label in found}
    if len(known) <= FEW:
        figure.axes[0].legend(fontsize="small", frameon=False)
    else:
        figure.legend(
            known.values(), known.keys(), fontsize="x-small", frameon=False, loc="outside lower center", ncols=6
        )


def figures(run: View, claims: Sequence[Mapping[str, Any]] = ()) -> Iterator[tuple[str, list[Panel]]]:
    """File name and panels of every figure that has points; those of a study by optimizer."""
    where = crossing(run)
    if where.crossed:
        yield from _of_study(run, where, claims)
        return
    drawn = {
        "error-against-kurtosis": list(charts.clouds(run).panels.values())[:1],
        "loss-increase-against-bits": budget.budgets(run, "loss_increase"),
        "loss-against-bits": budget.budgets(run, "loss"),
        **{
            f"kurtosis-{name}": [charts.depth(run, name), charts.growth(run, name)] for name in charts.site_classes(run)
        },
    }
    for name, panels in drawn.items():
        filled = [panel for panel in panels if panel.points]
        if filled:
            yield name, filled


def _of_study(run: View, where: Crossing, claims: Sequence[Mapping[str, Any]]) -> Iterator[tuple[str, list[Panel]]]:
    """The charts of the page's sections, each variant a file, and losses against bits for each optimizer."""
    found = [*sections.first(run, where, claims), *sections.why(run, where)]
    drawn = {
        "error-against-kurtosis": list(crossed.clouds(run, where.main.values()).panels.values())[:1],
        **{f"loss-increase-{name}": each for name, each in crossed.budgets(run, where, "loss_increase").items()},
        **sections.panels(found),
    }
    yield from ((name, panels) for name, panels in drawn.items() if any(panel.points for panel in panels))


def draw(axes: "Axes", panel: Panel) -> None:
    """One panel on matplotlib axes; places are scaled as on the page."""
    for band in panel.bands:
        axes.axhspan(panel.y.scale(band.low), panel.y.scale(band.high), color="0.5", alpha=0.15, linewidth=0)
    for rule in panel.rules:
        colour = "0.3" if rule.style is None else COLOURS[rule.style % len(COLOURS)]
        line, scale = (axes.axvline, panel.x.scale) if rule.axis == "x" else (axes.axhline, panel.y.scale)
        line(scale(rule.at), color=colour, linestyle="--", linewidth=0.8)
    for series in panel.series:
        _draw_series(axes, panel, series)
    if panel.ringed:
        x, y = zip(*((panel.x.scale(mark.x), panel.y.scale(mark.y)) for mark in panel.ringed), strict=True)
        axes.plot(x, y, "o:" if panel.joined else "o", color="0.1", markerfacecolor="none", markersize=9, linewidth=0.8)
    _ticks(axes, panel)
    axes.set_title(fill(panel.title, WIDE), fontsize="medium", loc="left")


def _draw_series(axes: "Axes", panel: Panel, series: Series) -> None:
    colour, shape = COLOURS[series.style % len(COLOURS)], SHAPES[series.style % len(SHAPES)]
    x = [panel.x.scale(mark.x) for mark in series.marks]
    y = [panel.y.scale(mark.y) for mark in series.marks]
    if series.dashed:
        axes.plot([x[i] for i in series.line], [y[i] for i in series.line], "--", color=colour, linewidth=0.8)
        return
    dense = len(x) > 50
    axes.plot(x, y, shape, color=colour, label=series.name, markersize=3 if dense else 4, alpha=0.5 if dense else 1)
    axes.plot([x[i] for i in series.line], [y[i] for i in series.line], color=colour, linewidth=1)
    for place, mark in zip(x, series.marks, strict=True):
        if mark.low is not None and mark.high is not None:
            axes.plot([place] * 2, [panel.y.scale(mark.low), panel.y.scale(mark.high)], color=colour, linewidth=0.8)


def _ticks(axes: "Axes", panel: Panel) -> None:
    for axis, line, limit in ((panel.x, axes.xaxis, axes.set_xlim), (panel.y, axes.yaxis, axes.set_ylim)):
        limit(axis.low, axis.high)
        line.set_ticks([at for at, _ in axis.ticks], labels=[label for _, label in axis.ticks])
        line.set_label_text(axis.title)
    axes.grid(axis="y", color="0.9", linewidth=0.6)
    axes.set_axisbelow(True)
