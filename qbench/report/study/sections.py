"""All sections of a study in the order in which a reader asks, each where its records exist, and their drawings."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from markupsafe import Markup

from qbench.report import payload, svg
from qbench.report.effects import Effect
from qbench.report.panels import Panel
from qbench.report.study import (
    adds,
    courses,
    equal,
    flow,
    grids,
    inside,
    noise,
    predict,
    rates,
    seeds,
    stacks,
)
from qbench.report.study.crossing import Crossing
from qbench.report.study.form import Figure, Section
from qbench.report.view import View
from qbench.results.run import Run

FRAME = svg.Frame(width=360, height=250, left=50)
NARROW = svg.Frame(width=276, height=225, left=44, right=8)  # four of them stand side by side
Claim = Mapping[str, Any]


def first(seen: View, where: Crossing, claims: Sequence[Claim]) -> list[Section]:
    """What a reader wants behind the claims: levels, equal loss, training, and quantizers inside it."""
    found = (
        grids.section(seen, where, claims),
        equal.section(seen, where, claims),
        inside.section(seen, where),
        courses.section(seen, where) if where.crossed else courses.losses(seen, where),
    )
    return [section for section in found if section is not None]


def last(run: Run, seen: View, where: Crossing, found: Sequence[tuple[Effect, Claim]]) -> list[Section]:
    """Why it is so, and what it rests on."""
    rest = seeds.section(run, seen, where, found)
    return [*why(seen, where), *([rest] if rest else [])]


def why(seen: View, where: Crossing) -> list[Section]:
    """What explains the costs, and how the rates were chosen."""
    every = (
        predict.section(seen, where),
        noise.section(seen, where),
        adds.section(seen, where),
        flow.section(seen, where),
        stacks.section(seen),
        rates.section(seen, where),
    )
    return [section for section in every if section is not None]


def drawn(section: Section) -> dict[str, Any]:
    """The section as its template reads it, with charts as SVG."""
    return {
        "name": section.name,
        "title": section.title,
        "about": section.about,
        "said": section.said,
        "cautions": section.cautions,
        "maps": section.maps,
        "tables": section.tables,
        "figures": [_figure(figure) for figure in section.figures],
    }


def _figure(figure: Figure) -> dict[str, Any]:
    grids: dict[str, str] = {}
    return {
        "name": figure.name,
        "title": figure.title,
        "label": figure.label,
        "caption": figure.caption,
        "lines": figure.keys,
        "tables": figure.tables,
        "variants": [
            {
                "name": variant.name,
                "note": variant.note,
                "narrow": len(variant.panels) > 3,
                "panels": [
                    _panel(panel, f"{figure.name}-{i}-{j}", NARROW if len(variant.panels) > 3 else FRAME, grids)
                    for j, panel in enumerate(variant.panels)
                ],
            }
            for i, variant in enumerate(figure.variants)
        ],
    }


def _panel(panel: Panel, identifier: str, frame: svg.Frame, grids: dict[str, str]) -> dict[str, Any]:
    told = panel.points <= MANY and any(mark.told for one in panel.series for mark in one.marks)
    drawing = svg.draw(panel if told else silent(panel), identifier, frame, grids)
    return {"title": panel.title, "svg": Markup(drawing)}


MANY = 60  # marks in a panel, beyond which none carries its own words: the page would be too heavy


def silent(panel: Panel) -> Panel:
    """Without words of its own for each mark."""
    quiet = tuple(replace(one, marks=tuple(replace(mark, told=False) for mark in one.marks)) for one in panel.series)
    return replace(panel, series=quiet, silent=True)


def sheets(sections: Sequence[Section]) -> dict[str, payload.Rows]:
    """CSV files of every figure, by its name."""
    return {figure.name: _sheet(figure) for section in sections for figure in section.figures}


def _sheet(figure: Figure) -> payload.Rows:
    rows = [
        [
            variant.name,
            panel.name,
            f"{series.name}{' (expected)' * series.dashed}",
            payload.short(mark.x),
            payload.short(mark.y),
            None if mark.high is None else payload.short(mark.high - mark.y, 3),
        ]
        for variant in figure.variants
        for panel in variant.panels
        for series in panel.series
        for mark in series.marks
    ]
    return payload.packed(["shown", "panel", "arm", "x", "y", "half_of_interval"], rows)


def panels(sections: Sequence[Section]) -> dict[str, list[Panel]]:
    """For static figures: the panels of every variant, by a name for its file."""
    return {
        "-".join(filter(None, (figure.name, _file(variant.name) if len(figure.variants) > 1 else ""))): [
            *variant.panels
        ]
        for section in sections
        for figure in section.figures
        for variant in figure.variants
    }


def _file(name: str) -> str:
    return "".join(c if c.isalnum() or c in "._" else "-" for c in name).strip("-")
