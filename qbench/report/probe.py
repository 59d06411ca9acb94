"""The page of a model from elsewhere: what can be shipped first, then what it rests on."""

from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup

from qbench.report import (
    assets,
    cache,
    conditions,
    front,
    hard,
    kernels,
    layers,
    others,
    payload,
    predictions,
    provenance,
    sheets,
    shrink,
    slices,
    spots,
    svg,
    tables,
    troubles,
    verdict,
)
from qbench.report.formats import PRETRAINED, Format, arms, formats, recommended, stored
from qbench.report.view import View
from qbench.results.run import Run

FRONT = svg.Frame(width=440, height=300, left=58, right=14, decimals=1)
SIXTEEN_BITS = 16.5  # from which a parameter in the files takes more than the usual 16 bits


def is_probe(seen: View) -> bool:
    """Every model of the run comes from elsewhere."""
    return bool(seen.arms) and all(arm.model.get("arch") == PRETRAINED for arm in seen.arms)


def render(run: Run, seen: View) -> str:
    """The page as text; what was not measured is said to be missing in plain sentences."""
    found = formats(seen)
    context: dict[str, Any] = {
        "kind": "probe",
        **_first_screen(run, seen, found),
        **_formats(seen, found),
        **_tensors(seen, found),
        **_rest(run, seen),
    }
    measured = {name: any(context[key] for key in keys) for name, _, _, keys in SECTIONS}
    context["sections"] = [(name, title) for name, title, _, _ in SECTIONS if measured[name]]
    context["missing"] = conditions.missing([words for name, _, words, _ in SECTIONS if not measured[name]])
    context["data"] = Markup(
        payload.text({"name": context["name"], "cloud": None, "tables": sheets.sheets(seen, found)})
    )
    return assets.page("probe.html", context, "probe.css")


# Sections that need something measured: where they are, what their links say, what a reader misses without them.
SECTIONS = (
    ("front", "Cost and size", "a front of cost and size", ("front",)),
    ("kernels", "Kernels", "real kernels", ("kernels", "unsupported")),
    ("bytes", "Bytes that stay", "what the files hold", ("stored",)),
    ("hard", "Hard tensors", "which tensors are hard", ("weights", "activations")),
    ("outliers", "Outliers", "outliers", ("spots",)),
    ("layers", "Sensitive layers", "the sensitivity of single layers", ("sweeps",)),
    ("cache", "Keys and values", "keys and values", ("cache_costs", "cache_errors")),
    ("predictions", "KLD statistics", "KLD statistics", ("blocks",)),
    ("parts", "Parts of the data", "costs by part of the data", ("by_slice", "by_position")),
    ("others", "Tasks and optimizers", "tasks and optimizers", ("tasks", "optimizers")),
)


def headline(seen: View, found: Sequence[Format]) -> str:
    """The answer in a sentence or two."""
    if found:
        return verdict.headline(found)
    if seen.select("error", kind="weight"):
        return hard.headline(seen)
    if seen.select("sensitivity"):
        return layers.headline(seen)
    return "No answer: no cost of any format was measured. What went wrong stands below."


def _first_screen(run: Run, seen: View, found: Sequence[Format]) -> dict[str, Any]:
    asked = provenance.suite(run)
    name = str(asked.get("suite") or "probe")
    several = len({one.arm for one in found}) > 1
    models = " and ".join(str(arm.model.get("name", arm.name)) for arm in arms(seen))
    return {
        "name": "".join(c if c.isalnum() or c in "-_" else "-" for c in name),
        "title": f"{name}, {models}",
        "question": str(asked.get("question") or "What can this model be shipped in?"),
        "headline": headline(seen, found),
        "points": verdict.points(found),
        "sentence": conditions.sentence(seen),
        "profile": conditions.profile(run),
        "files": verdict.files(found, several),
        "flows": verdict.flows(found, several),
        "first_weights": None if found else hard.by_format(seen, "weight"),
        "floors": verdict.floors(found, _numerical(seen)),
        "thresholds": verdict.thresholds(),
        "wide": _wide(seen),
        "costs": bool(found),
    }


def _numerical(seen: View) -> float | None:
    """What another batch size does to a window's loss."""
    rows = [row.values["floor/numerical"] for row in seen.select("loss") if "floor/numerical" in row.values]
    return max(rows, default=None)


def _wide(seen: View) -> str:
    """Against files of 32 bits every format looks twice as good as it is to those who would ship 16."""
    wide = [arm.name for arm in arms(seen) if (row := stored(seen, arm)) and _bits(row.values) > SIXTEEN_BITS]
    return (
        "The files keep 32 bits a parameter: against a 16-bit copy, every format is half as many times smaller."
        if wide
        else ""
    )


def _bits(values: Mapping[str, float]) -> float:
    return values.get("bits_per_parameter", 0.0)


def _formats(seen: View, found: Sequence[Format]) -> dict[str, Any]:
    best = recommended(found)
    after = shrink.bytes_after(seen, best) if best else None
    drawn = front.panels(found)
    return {
        "front": [
            {"name": name, "svg": Markup(svg.draw(panel, f"front-{i}", FRONT)), "summary": panel.summary}
            for i, (name, panel) in enumerate(drawn.items())
        ],
        "classes": front.classes(found),
        "blocks": predictions.blocks(sorted(found, key=lambda one: one is not best), conditions.setting(seen)),
        "unshrunk": shrink.of_bytes(after, best.name) if best and after else None,
        "stored": shrink.stored_tables(seen),
        "by_slice": slices.table(found, positions=False),
        "by_position": slices.table(found, positions=True),
        "worst_slice": slices.summary(found, positions=False),
        "worst_position": slices.summary(found, positions=True),
        "cache_costs": cache.costs(found),
        "cache_errors": cache.errors(seen),
        "cache_summary": cache.summary(seen),
    }


def _tensors(seen: View, found: Sequence[Format]) -> dict[str, Any]:
    best = recommended(found)
    chosen = best.assign.get(shrink.SCOPE, "") if best else ""
    mapped = bool(spots.whole(seen))
    return {
        "weights": hard.hard(seen, "weight", chosen),
        "activations": hard.hard(seen, "activation"),
        "weight_formats": hard.by_format(seen, "weight") if found else None,
        "activation_formats": hard.by_format(seen, "activation"),
        "spots": spots.sentences(seen) if mapped else [],
        "spots_table": spots.table(seen) if mapped else None,
        "sweeps": layers.sweeps(seen),
    }


def _rest(run: Run, seen: View) -> dict[str, Any]:
    return {
        "kernels": kernels.table(seen),
        "unsupported": kernels.unsupported(seen),
        "gaps": kernels.gaps(seen),
        "tasks": others.tasks(seen),
        "optimizers": others.optimizers(seen),
        "facts": conditions.facts(run, seen),
        "suite_text": provenance.suite_text(run),
        "calibration": tables.calibration(seen),
        **troubles.section(seen),
    }
