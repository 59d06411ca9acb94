"""What went wrong: cells that failed, warnings of those that did not, grouped so that none is hidden."""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from qbench.report.view import View
from qbench.report.words import counted, listed
from qbench.results.record import Closing
from qbench.results.run import part

LEARNED_NOTHING = ("stuck", "diverged")


@dataclass(frozen=True, slots=True, kw_only=True)
class Trouble:
    """Cells that share an arm, a measurement and a reason."""

    arm: str
    what: str
    where: str
    reason: str


def section(run: View) -> dict[str, Any]:
    """What a page says of them: a line for its first screen, the section's title, its two lists."""
    failed, warned = failures(run), warnings(run)
    bad = sum(cell.status != "measured" for cell in run.cells)
    said = [f"{counted(bad, 'cell')} of {len(run.cells)} could not be measured."] if bad else []
    said += [f"{counted(len(warned), 'kind')} of warning."] if warned else []
    return {
        "troubles": " ".join(said),
        "troubles_title": "What went wrong" if bad else "Warnings",
        "trouble_groups": [
            ("Not measured", failed, "Every cell was measured." if run.cells else "There are no cells."),
            ("Warnings", warned, "No measured cell warned of anything."),
        ],
    }


def failures(run: View) -> list[Trouble]:
    """Cells without a measurement, with the reasons given."""
    bad = [cell for cell in run.cells if cell.status != "measured"]
    return _grouped([(cell, f"{cell.status}: {cell.error or 'no reason was stored'}") for cell in bad])


def warnings(run: View) -> list[Trouble]:
    """What measured cells warned of."""
    return _grouped([(cell, text) for cell in run.cells for text in cell.warnings])


def learned_nothing(run: View) -> dict[str, dict[int, bool]]:
    """Arms of which a seed is stuck or diverged, with all their seeds, True for those.

    What learned nothing has nothing to lose to few bits. The mean of such a seed and others is that of no model, so an
    arm is no candidate for the best where one of its seeds is of them.
    """
    lost: dict[str, dict[int, bool]] = defaultdict(dict)
    for cell in run.cells:
        if part(cell.spec, "measurement").get("what") == "training":
            warned = any(text.lower().startswith(LEARNED_NOTHING) for text in cell.warnings)
            lost[str(cell.spec.get("arm", ""))][int(cell.spec.get("seed") or 0)] = warned
    names = {arm.name for arm in run.arms}
    return {arm: seeds for arm, seeds in lost.items() if any(seeds.values()) and arm in names}


def stuck(run: View) -> set[tuple[str, int]]:
    """Arm and seed of every training that learned nothing."""
    return {(arm, seed) for arm, seeds in learned_nothing(run).items() for seed, is_lost in seeds.items() if is_lost}


def in_words(run: View) -> dict[str, str]:
    """The arms of which a seed learned nothing, by name, with the number of seeds where others learned something."""
    return {arm: f"{arm}{_share(seeds)}" for arm, seeds in learned_nothing(run).items()}


def _share(seeds: Mapping[int, bool]) -> str:
    count = sum(seeds.values())
    return "" if count == len(seeds) else f" (in {count} of {len(seeds)} seeds)"


def _grouped(found: Iterable[tuple[Closing, str]]) -> list[Trouble]:
    groups: dict[tuple[str, str, str], list[Closing]] = defaultdict(list)
    for cell, reason in found:
        what = str(part(cell.spec, "measurement").get("what", ""))
        groups[str(cell.spec.get("arm", "")), what, reason].append(cell)
    return [
        Trouble(arm=arm, what=what, where=_where(cells), reason=reason) for (arm, what, reason), cells in groups.items()
    ]


def _where(cells: Sequence[Closing]) -> str:
    seeds = sorted({str(cell.spec.get("seed", "")) for cell in cells})
    return f"{counted(len(cells), 'cell')}, seed{'' if len(seeds) == 1 else 's'} {listed(seeds)}"
