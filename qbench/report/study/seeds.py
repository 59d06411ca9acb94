"""How much the seeds agree: every comparison as a factor, with that of each seed; and what was measured at all."""

from collections.abc import Mapping, Sequence
from math import inf, log
from typing import Any

from markupsafe import Markup

from qbench.report import effects
from qbench.report.effects import Effect
from qbench.report.study.bars import bar
from qbench.report.study.crossing import Crossing
from qbench.report.study.form import Section
from qbench.report.tables import NONE, Table
from qbench.report.view import View
from qbench.report.words import counted, listed, number
from qbench.results.run import Run, part
from qbench.stats.interval import Interval, ratio_interval

SPAN = (-2.0, 2.0)  # powers of ten


def section(run: Run, seen: View, where: Crossing, found: Sequence[tuple[Effect, Mapping[str, Any]]]) -> Section | None:
    """None for runs that are neither crossed nor compare anything."""
    if not where.crossed:
        return None
    tables = [table for table in (_ratios(seen, where, found), coverage(seen)) if table is not None]
    return Section(
        name="seeds",
        title="Seeds, and what was measured",
        link="Seeds and coverage",
        about=(
            "Every comparison as a factor, first arm over second, with Student's t interval of its logarithm over "
            "seeds; beside it the factor of each seed. A factor needs positive numbers, so kurtosis near 0 has none."
        ),
        said=tuple(not_run(run, seen, where)),
        tables=tuple(tables),
    )


def _ratios(seen: View, where: Crossing, found: Sequence[tuple[Effect, Mapping[str, Any]]]) -> Table | None:
    rows: list[tuple[str, ...]] = []
    for effect, claim in found:
        first, second = (effects.per_seed(seen, *pair) for pair in effects.pairs(claim))
        seeds = sorted(first.keys() & second.keys())
        ratio = ratio_interval([first[s] for s in seeds], [second[s] for s in seeds]) if seeds else None
        if ratio is not None:
            each = listed([number(first[seed] / second[seed], 2) for seed in seeds])
            head = Markup('{}<small class="how">{}</small>').format(effect.claim, " ÷ ".join(effect.arms))
            rows.append((head, *_factor(ratio), each, effect.verdict))
    if not rows:
        return None
    return Table(
        caption=f"Comparisons as factors; bars from {10 ** SPAN[0]:g} to {10 ** SPAN[1]:g}, logarithmic",
        columns=("claim", "factor", "95 % interval", "", "of each seed", "verdict"),
        rows=tuple(rows),
        words=(3, 4, 5),
        kind="claims",
    )


def _factor(ratio: Interval) -> tuple[str, str, str]:
    if not 0 < ratio.low < inf or ratio.high == inf:
        return f"{number(ratio.estimate, 2)}×", NONE, ""
    tens = Interval(*(log(end) / log(10) for end in ratio))
    return f"{number(ratio.estimate, 2)}×", f"{number(ratio.low, 2)} to {number(ratio.high, 2)}", bar(tens, SPAN)


def coverage(seen: View) -> Table | None:
    """How many cells of each kind each arm has: measured, or measured of asked."""
    counts: dict[tuple[str, str], list[int]] = {}
    for cell in seen.cells:
        what = str(part(cell.spec, "measurement").get("what", ""))
        count = counts.setdefault((str(cell.spec.get("arm", "")), what), [0, 0])
        count[0] += cell.status == "measured"
        count[1] += 1
    kinds = list(dict.fromkeys(what for _, what in counts))
    if not kinds:
        return None
    return Table(
        caption="Cells measured; where some were not, of how many",
        columns=("arm", "steps", "seeds", *kinds),
        rows=tuple(
            (
                arm.name,
                str((arm.training or {}).get("steps", NONE)),
                str(len(arm.seeds)),
                *(_count(counts.get((arm.name, kind))) for kind in kinds),
            )
            for arm in seen.arms
        ),
        styles=tuple(arm.style for arm in seen.arms),
    )


def _count(count: Sequence[int] | None) -> str:
    if count is None:
        return NONE
    return str(count[0]) if count[0] == count[1] else f"{count[0]} of {count[1]}"


def not_run(run: Run, seen: View, where: Crossing) -> list[str]:
    """Combinations that the suite leaves out, and cells that were asked for and have no answer."""
    absent = [
        f"{architecture} with {optimizer}"
        for architecture in where.architectures
        for optimizer in where.optimizers
        if (architecture, optimizer) not in where.main
    ]
    said = [f"Not part of this suite: {listed(absent)}."] if absent else []
    asked = set(run.session.get("asked") or [])
    missing = len(asked - {cell.cell for cell in seen.cells})
    said += [f"{counted(missing, 'cell')} of {len(asked)} were asked for and not answered yet."] if missing else []
    single = [arm.name for arm in seen.arms if len(arm.seeds) == 1 and arm.training is not None]
    said += [f"One seed, and so no interval: {listed(single)}."] if single else []
    return said
