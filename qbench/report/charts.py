"""The charts' data: error against kurtosis, kurtosis by depth and by training step."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, median

import numpy as np

from qbench.capture import sites
from qbench.report import axes
from qbench.report.panels import Mark, Panel, Rule, Series, courses
from qbench.report.view import Arm, Row, View, by_seed, place
from qbench.report.words import counted, fixed, listed, number

KURTOSIS = "excess_kurtosis/tensor"
KURTOSIS_AXIS = "excess kurtosis of the tensor, log(k + 3)"
# The telling formats come first; a page with many arms has room for no others.
FIRST_QUANTIZERS = ("int8/tensor", "int4/tensor", "int4/token", "int4/block:32", "mxfp4", "nvfp4")
# Charts of all places would make a page that is too heavy to send; the others are in the export.
CHARTED_SITES = ("out", "mlp.hidden", "attn.context", "mlp.out", "attn.out", "attn.k", "mid", "mlp.in")
# What a Gaussian becomes there by itself: E f^4 / (E f^2)^2 - 3, centred, for f = GELU.
GAUSSIAN_KURTOSIS: Mapping[str, tuple[float, str]] = {"mlp.hidden": (3.17, "GELU of a Gaussian")}


Point = tuple[str, int, str]  # arm, seed, site


@dataclass(frozen=True, slots=True, kw_only=True)
class Clouds:
    """Every activation site of every arm and seed with its kurtosis, and one panel for each quantizer.

    A mark's `index` is its place in `kurtosis`.
    """

    kurtosis: Mapping[Point, float]
    panels: Mapping[str, Panel]


def clouds(run: View) -> Clouds:
    """SQNR against kurtosis for each activation quantizer, the telling ones first."""
    kurtosis = {
        (row.arm, row.seed, row.site): row.values[KURTOSIS]
        for row in run.select("shape", kind="activation")
        if KURTOSIS in row.values
    }
    rows: dict[str, list[Row]] = defaultdict(list)
    for row in run.select("error", kind="activation"):
        if "error_db" in row.values and _point(row) in kurtosis:
            rows[row.quantizer].append(row)
    order = dict.fromkeys([name for name in (*FIRST_QUANTIZERS, *rows) if name in rows])
    return Clouds(kurtosis=kurtosis, panels={name: _cloud(run, kurtosis, rows[name]) for name in order})


def _point(row: Row) -> Point:
    return row.arm, row.seed, row.site


def _cloud(run: View, kurtosis: Mapping[Point, float], rows: Sequence[Row]) -> Panel:
    places = {point: index for index, point in enumerate(kurtosis)}
    marks: dict[str, list[Mark]] = {arm: [] for arm, _, _ in kurtosis}
    for row in rows:
        at = _point(row)
        marks[row.arm].append(Mark(x=kurtosis[at], y=-row.values["error_db"], label=row.site, index=places[at]))
    every = [mark for found in marks.values() for mark in found]
    gaussian = [row.values["shape_loss_db"] - row.values["error_db"] for row in rows if "shape_loss_db" in row.values]
    level = [median(gaussian)] if gaussian else []
    rules = [Rule(axis="y", at=at, label=f"Gaussian data: {fixed(at, 1)} dB") for at in level]
    return Panel(
        name=rows[0].quantizer,
        title=f"SQNR with {rows[0].quantizer} against excess kurtosis",
        summary=_cloud_summary(rows[0].quantizer, every, gaussian),
        x=axes.kurtosis(KURTOSIS_AXIS, kurtosis.values()),
        y=axes.linear("SQNR, dB", [mark.y for mark in every], around=level),
        series=tuple(
            Series(name=a.name, style=a.style, marks=tuple(marks[a.name])) for a in run.arms if a.name in marks
        ),
        rules=(Rule(axis="x", at=0.0, label="Gaussian: 0"), *rules),
    )


def _cloud_summary(quantizer: str, marks: Sequence[Mark], gaussian: Sequence[float]) -> str:
    parts = [f"{counted(len(marks), 'point')}, quantized with {quantizer}."]
    r = correlation(marks)
    if r is not None:
        parts.append(f"The correlation of log(k + 3) with SQNR is r = {fixed(r, 2)}.")
    if gaussian:
        under = sum(mark.y < median(gaussian) - 1 for mark in marks)
        parts.append(
            f"Gaussian data would give {_between(gaussian)} dB; {under} of {len(marks)} lie more than 1 dB below."
        )
    return " ".join(parts)


def correlation(marks: Sequence[Mark]) -> float | None:
    """Pearson's r between log(k + 3) and SQNR; None where it is undefined."""
    x, y = np.array([[axes.log_kurtosis(mark.x), mark.y] for mark in marks] or np.empty((0, 2))).T
    if len(x) < 3 or x.std() < 1e-12 or y.std() < 1e-12:
        return None
    return float(np.corrcoef(x, y)[0, 1])


def _between(values: Sequence[float]) -> str:
    low, high = fixed(min(values), 1), fixed(max(values), 1)
    return low if low == high else f"{low} to {high}"


def site_classes(run: View) -> list[str]:
    """Classes of the sites inside blocks whose shape was measured and which have charts, the telling ones first."""
    found = {
        name for row in run.select("shape", kind="activation") for layer, name in [place(row.site)] if layer is not None
    }
    return [name for name in CHARTED_SITES if name in found]


def depth(run: View, site_class: str) -> Panel:
    """Kurtosis of one class of sites by layer, after training: mean over seeds, the bars span them."""
    marks: dict[str, list[Mark]] = defaultdict(list)
    for arm in run.arms:
        rows = _of_class(run.select("shape", kind="activation", arm=arm.name), arm, site_class)
        for layer in sorted({layer for row in rows if (layer := place(row.site)[0]) is not None}):
            seeds = by_seed([row for row in rows if place(row.site)[0] == layer], KURTOSIS)
            marks[arm.name] += _mark(layer, seeds, f"layer {layer}")
    return _panel(run, "layer", "by depth, after training", site_class, marks)


def growth(run: View, site_class: str) -> Panel:
    """Kurtosis of one class of sites while training: mean over layers and seeds, the bars span the seeds."""
    marks: dict[str, list[Mark]] = defaultdict(list)
    for arm in run.arms:
        during = _of_class(
            [r for r in run.select("training", arm=arm.name) if r.step is not None and r.site], arm, site_class
        )
        for step in sorted({row.step for row in during if row.step is not None}):
            seeds = by_seed([row for row in during if row.step == step], KURTOSIS)
            marks[arm.name] += _mark(step, seeds, f"step {step}")
    return _panel(run, "training step", "while training, mean over layers", site_class, marks)


def _of_class(rows: Sequence[Row], arm: Arm, site_class: str) -> list[Row]:
    name = site_name(arm, site_class)
    return [row for row in rows if place(row.site)[1] == name and place(row.site)[0] is not None]


def site_name(arm: Arm, site_class: str) -> str:
    """What an arm calls a class of sites; where a block has no skip, a branch's output is the block's."""
    return sites.COPIES[arm.wiring].get(site_class, site_class)


def _mark(x: float, seeds: Mapping[int, float], label: str) -> list[Mark]:
    if not seeds:
        return []
    values = list(seeds.values())
    low, high = (min(values), max(values)) if len(values) > 1 else (None, None)
    return [Mark(x=x, y=fmean(values), low=low, high=high, label=label)]


def _panel(run: View, x_title: str, title: str, site_class: str, marks: dict[str, list[Mark]]) -> Panel:
    every = [mark for found in marks.values() for mark in found]
    series = courses(run.arms, marks)
    reference = [0.0]
    rules = [Rule(axis="y", at=0.0, label="Gaussian")]
    if site_class in GAUSSIAN_KURTOSIS:
        at, label = GAUSSIAN_KURTOSIS[site_class]
        reference, rules = [0.0, at], [Rule(axis="y", at=at, label=label)]
    return Panel(
        name=f"{site_class} {x_title}",
        title=f"{site_class} {title}",
        summary=_course(series, x_title),
        x=axes.linear(x_title, [mark.x for mark in every]),
        y=axes.linear(
            "excess kurtosis, pooled", [v for m in every for v in (m.y, m.low, m.high) if v is not None], reference
        ),
        series=series,
        rules=tuple(rules),
    )


def _course(series: Sequence[Series], x_title: str) -> str:
    ends = [
        f"{one.name} from {number(one.marks[0].y, 2)} at {x_title} {one.marks[0].x:g} "
        f"to {number(one.marks[-1].y, 2)} at {one.marks[-1].x:g}"
        for one in series
    ]
    return f"Excess kurtosis: {listed(ends)}." if ends else ""
