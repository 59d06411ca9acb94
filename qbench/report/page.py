"""One run as one self-contained HTML page: the answer, the claims, the charts, the failures, the provenance."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup

from qbench.report import (
    assets,
    budget,
    charts,
    effects,
    forest,
    payload,
    probe,
    provenance,
    summary,
    svg,
    tables,
    troubles,
)
from qbench.report.effects import Effect
from qbench.report.factors import COLOURS, MANY
from qbench.report.panels import Panel
from qbench.report.study import claims as matrix
from qbench.report.study import crossed, grids, sections
from qbench.report.study.crossing import Crossing, crossing
from qbench.report.study.form import Section
from qbench.report.view import UNQUANTIZED, View, view
from qbench.report.words import counted, listed, number, with_unit
from qbench.results.files import make_folder, write_whole
from qbench.results.run import Run, part

CLOUD = svg.Frame(width=440, height=300, right=8, decimals=1)
SMALL = svg.Frame(width=330, height=250, left=54)
COURSE = svg.Frame(width=420, height=270)
SHOWN = {"loss increase": "loss_increase", "absolute loss": "loss"}
MARKS = {"supported": "✓", "contradicted": "✗", "undecided": "?"}
MEASURED = {
    "loss_increase": "loss increase",
    "error_db": "error",
    "excess_kurtosis/tensor": "excess kurtosis",
    "excess_kurtosis/token": "excess kurtosis per token",
    "excess_kurtosis/channel": "excess kurtosis per channel",
    "error_rate": "share that is wrong",
    "error_rate/exact": "exact tokens that are wrong",
    "error_rate/problem": "problems not solved",
    "loss_increase/inside": "increase over training with nothing inside",
    "noise/increase": "loss increase by noise",
}
LOST = "{} learned nothing, so there is nothing to lose to few bits; absolute losses leave it out, the table has it."
FIRST_CLAIMS = 3  # of each kind of answer that stand in view, in the suite's order: the others are folded below
LEAD = {"supported": "Supported", "contradicted": "Contradicted", "undecided": "Undecided"}


def build(run: Run, out: Path) -> Path:
    """Write the page of `run` to the file `out`: the same run, the same bytes. CannotWrite where that fails."""
    make_folder(out.parent)
    write_whole(out, render(run).encode())
    return out


def render(run: Run) -> str:
    """The page as text; parts that were not measured are said to be missing in plain sentences."""
    asked = provenance.suite(run)
    claims = provenance.claims(asked)
    seen = view(run, first=provenance.compared(asked))
    if probe.is_probe(seen):
        return probe.render(run, seen)
    where = crossing(seen)
    found = effects.answer(seen, claims)
    early = sections.first(seen, where, claims)
    late = sections.last(run, seen, where, list(zip(found, claims, strict=True)))
    if not where.crossed:
        early, late = [], [*early, *late]
    context: dict[str, Any] = {
        **_heading(run, seen, asked),
        **_answer(run, seen, found),
        **(_charts_crossed(seen, where, claims) if where.crossed else _charts(seen, claims)),
        **_rest(seen),
        **_legend(seen, where),
        "crossed": where.crossed,
        "one_seed": where.crossed or len(seen.arms) >= MANY,
        "first_claims": FIRST_CLAIMS,
        "kind": "study crossed" if where.crossed else "study",
        "described": where.described() if where.crossed else [],
        "early": [sections.drawn(one) for one in early],
        "late": [sections.drawn(one) for one in late],
        **({"corners": Markup(svg.corners()), "rules": svg.corner_rules()} if early or late else {"corners": ""}),
    }
    if where.crossed:
        context |= _answer_crossed(seen, where, claims, found)
    context["links"] = _links(context, early, late)
    context["scripted"]["tables"] |= {
        name: payload.folded(rows) for name, rows in sections.sheets([*early, *late]).items()
    }
    context["data"] = Markup(payload.text({"name": context["name"], "colours": COLOURS, **context.pop("scripted")}))
    return assets.page("study.html", context, "study.css")


def _legend(seen: View, where: Crossing) -> dict[str, Any]:
    """Architectures by colour and optimizers by mark, where both vary; else the styles of the arms."""
    return {
        "drawn_as": list(dict.fromkeys((arm.drawn_as, arm.style) for arm in seen.arms)),
        "colours": [(name, where.colour(name)) for name in where.architectures],
        "optimizers": [(name, where.mark(name)) for name in where.optimizers],
        "data_colours": COLOURS,
        "data_shapes": len(svg.SHAPES),
        "swatch": _swatch,
    }


def _swatch(style: int) -> Markup:
    return Markup(svg.swatch(style))


def _links(context: Mapping[str, Any], early: Sequence[Section], late: Sequence[Section]) -> list[tuple[str, str]]:
    plain = [] if context["crossed"] else [("course", "Depth and training"), ("arms", "Arms")]
    return [
        ("claims", "Claims"),
        *((one.name, one.link) for one in early),
        ("budget", "Loss and bits"),
        ("cloud", "Error and kurtosis"),
        *plain,
        *((one.name, one.link) for one in late),
        ("calibration", "Calibration"),
        ("troubles", str(context["troubles_title"])),
        ("provenance", "Provenance"),
    ]


def _heading(run: Run, seen: View, asked: Mapping[str, Any]) -> dict[str, Any]:
    name = str(asked.get("suite") or next((str(c.spec["suite"]) for c in seen.cells if "suite" in c.spec), "run"))
    seeds = sorted({seed for arm in seen.arms for seed in arm.seeds})
    return {
        "name": "".join(c if c.isalnum() or c in "-_" else "-" for c in name),
        "title": f"{name}, {counted(len(seen.arms), 'arm')}, {counted(len(seeds), 'seed')}",
        "question": str(asked.get("question") or f"What was measured in {name}"),
        "suite_text": provenance.suite_text(run),
        "facts": provenance.facts(run, seen),
    }


def _answer(run: Run, seen: View, found: Sequence[Effect]) -> dict[str, Any]:
    groups = {verdict: summary.of(found, verdict) for verdict in summary.VERDICTS}
    differences = summary.differences(seen, found)
    return {
        "headline": summary.headline(found),
        "profile": part(run.session, "options").get("profile"),
        "effects": found,
        "groups": groups,
        "verdicts": [(verdict, label, MARKS[verdict]) for verdict, label in summary.VERDICTS.items()],
        "answers": [
            (verdict, LEAD[verdict], MARKS[verdict], [summary.sentence(effect) for effect in groups[verdict]])
            for verdict in summary.VERDICTS
            if groups[verdict]
        ],
        "matrices": [],
        "chance": "",
        "intervals": {claim: Markup(drawn) for claim, drawn in forest.intervals(found).items()},
        "magnitude": effects.magnitude,
        "certainty": effects.certainty,
        "levels": _levels,
        "measured": MEASURED,
        "note": provenance.suite(run).get("note", ""),
        "confounded": summary.differing(differences),
        "entangled": any(len(one.factors) > 1 for one in differences),
    }


def _answer_crossed(
    seen: View, where: Crossing, claims: Sequence[Mapping[str, Any]], found: Sequence[Effect]
) -> dict[str, Any]:
    """The claims as a matrix: what is the same with every optimizer comes first."""
    rows = matrix.claims(where, found, claims)
    tables_ = matrix.table(seen, where, rows), matrix.of_optimizers(seen, where, rows)
    return {
        "headline": matrix.headline(rows, found),
        "answers": matrix.answers(rows),
        "matrices": [table for table in tables_ if table is not None],
        "chance": matrix.chance(found),
    }


def _levels(effect: Effect) -> list[tuple[str, str]]:
    """The two arms and their means, the unit said once."""
    first, second = (number(level) for level in effect.levels or (0.0, 0.0))
    return list(zip(effect.sides, (first, with_unit(second, effect.of_levels)), strict=True))


def _charts(seen: View, claims: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    clouds = charts.clouds(seen) if len(seen.arms) < MANY else crossed.clouds(seen, seen.arms)
    classes = charts.site_classes(seen)
    courses = {name: (charts.depth(seen, name), charts.growth(seen, name)) for name in classes}
    budgets = {label: budget.budgets(seen, metric) for label, metric in SHOWN.items()}
    asked = [str(claim["measure"]["treatment"]) for claim in claims if "treatment" in claim["measure"]]
    arms = tables.arms(seen, asked)
    scripted = {
        "points": payload.points(seen, clouds),
        "cloud": payload.cloud(clouds, CLOUD),
        "tables": {
            "budget": payload.losses(seen),
            "growth": payload.courses({name: panels[1] for name, panels in courses.items()}),
            "arms": payload.of_table(arms),
        },
    }
    return {
        "cloud": _cloud(clouds) if clouds.panels else None,
        "budget": _budget(seen, budgets) if any(budgets.values()) else None,
        "course": [_course(index, name, panels) for index, (name, panels) in enumerate(courses.items())],
        "arms_table": arms,
        "scripted": scripted,
    }


def _charts_crossed(seen: View, where: Crossing, claims: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The same for many arms: one optimizer at a time."""
    clouds = crossed.clouds(seen, where.main.values())
    budgets = {
        f"{label}, {optimizer}": panels
        for label, metric in SHOWN.items()
        for optimizer, panels in crossed.budgets(seen, where, metric).items()
    }
    drawn = _budget(seen, budgets) if budgets else None
    scripted = {
        "points": payload.points(seen.of(where.main.values()), clouds),
        "cloud": payload.cloud(clouds, CLOUD),
        "tables": {
            "budget": payload.folded(crossed.sheet(seen)),
            "matrix": payload.folded(grids.sheet(seen, where, claims)),
        },
    }
    return {
        "cloud": _cloud(clouds) if clouds.panels else None,
        "budget": {**drawn, "tables": crossed.tables(seen, where)} if drawn else None,
        "course": [],
        "arms_table": None,
        "scripted": scripted,
    }


def _cloud(clouds: charts.Clouds) -> dict[str, Any]:
    panel = next(iter(clouds.panels.values()))
    return {
        "names": list(clouds.panels),
        "svg": Markup(svg.draw(panel, "cloud-chart", CLOUD)),
        "summary": panel.summary,
        "table": tables.of_cloud(panel),
    }


def _budget(seen: View, budgets: Mapping[str, Sequence[Panel]]) -> dict[str, Any]:
    quantized = {row.treatment for row in seen.select("loss")} - {UNQUANTIZED}
    increase = budget.floors(seen, "loss_increase", quantized)
    absolute = budget.floors(seen, "loss", [UNQUANTIZED])
    noise = [tables.noise(limits, seen.nats) for limits in (increase, absolute)]
    notes = {
        "loss increase": f"{noise[0]} They are the shaded bands: within them a difference means nothing.",
        "absolute loss": f"{noise[1]} Dashes: arms with nothing quantized. Rings: the front of all arms.",
    }
    stuck = [*troubles.in_words(seen).values()]
    grids: dict[str, str] = {}
    return {
        "variants": [
            {
                "name": label,
                "note": notes[label.partition(",")[0]],
                "panels": [_drawn(panel, f"budget-{at}-{i}", SMALL, grids) for i, panel in enumerate(panels)],
            }
            for at, (label, panels) in enumerate(budgets.items())
        ],
        "table": tables.of_budgets(budgets["loss increase"], seen.nats) if "loss increase" in budgets else None,
        "learned_nothing": LOST.format(listed(stuck)) if stuck else "",
    }


def _drawn(panel: Panel, identifier: str, frame: svg.Frame, grids: dict[str, str] | None = None) -> dict[str, Any]:
    drawing = Markup(svg.draw(panel, identifier, frame, grids if panel.silent else None)) if panel.points else ""
    return {"title": panel.title, "summary": panel.summary, "svg": drawing}


def _course(index: int, name: str, panels: Sequence[Panel]) -> dict[str, Any]:
    return {
        "name": name,
        "panels": [_drawn(panel, f"course-{index}{i}", COURSE) for i, panel in enumerate(panels)],
        "tables": [tables.of_course(panel) for panel in panels if panel.points],
    }


def _rest(seen: View) -> dict[str, Any]:
    return {
        "calibration": tables.calibration(seen),
        **troubles.section(seen),
    }
