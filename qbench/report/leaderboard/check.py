"""May this folder enter the leaderboard? Everything against it at once, one line each."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from qbench.report.leaderboard import complete, hostile, plausible, reproduction, rows, shape, submission
from qbench.report.leaderboard.submission import Submission
from qbench.results.run import Run

SHOWN = 50
LONGEST = 400  # letters of a fault


@dataclass(frozen=True, slots=True, kw_only=True)
class Checked:
    """One folder: the run and its submission where they could be read, and `faults`, none where it may enter.

    `label` is how far its numbers were checked: self-attested, or reproduced by somebody.
    """

    name: str
    submission: Submission | None = None
    run: Run | None = None
    faults: tuple[str, ...] = ()
    label: str = ""

    @property
    def accepted(self) -> bool:
        return not self.faults and self.run is not None and self.submission is not None


def check(folder: str | Path) -> Checked:
    """Read a folder that anybody may have sent; nothing in it makes this raise or take more than bounded time."""
    folder = Path(folder)
    name = hostile.name(folder)
    found = hostile.faults(folder)
    if found:
        return Checked(name=hostile.plain(name), faults=_limited(found))
    made, found = submission.read(folder)
    if made is None:
        return Checked(name=name, faults=_limited(found))
    unsigned = submission.unsigned(folder, made)
    run, found = shape.read(folder)
    if run is None:
        return Checked(name=name, submission=made, faults=_limited([*unsigned, *found]))
    label, contradictions = _label(folder, made, run)
    doubts = [
        *unsigned,
        *contradictions,
        *_unranked(run),
        *complete.faults(run),
        *plausible.faults(run),
        *rows.faults(run),
    ]
    return Checked(name=name, submission=made, run=run, faults=_limited(doubts), label=label)


def _label(folder: Path, made: Submission, run: Run) -> tuple[str, list[str]]:
    evidence = "" if complete.has_evidence(folder) else ", no evidence"
    if made.provenance != "reproduced":
        return f"self-attested{evidence}", []
    found, faults = reproduction.read(folder, run)
    return (found.label if found else ""), faults


def _unranked(run: Run) -> Iterator[str]:
    if not any(one.closing.spec["measurement"]["what"] in ("loss", "task") for one in run.cells.values()):
        yield "no loss and no task was measured, so there is nothing to rank"


def _limited(faults: Iterable[str]) -> tuple[str, ...]:
    found: Sequence[str] = list(dict.fromkeys(hostile.plain(fault, LONGEST) for fault in faults))
    left = len(found) - SHOWN
    return (*found[:SHOWN], f"and {left} more") if left > 0 else tuple(found)


def as_text(checks: Sequence[Checked]) -> str:
    """One line for each fault, and one for each folder that has none."""
    lines = [
        line
        for one in checks
        for line in ([f"{one.name}: {fault}" for fault in one.faults] or [f"{one.name}: accepted, {one.label}"])
    ]
    return "".join(f"{line}\n" for line in lines)


def as_markdown(checks: Sequence[Checked]) -> str:
    """The same as a comment under a pull request; what a submission says is code, so that nothing in it is markup."""
    parts: list[str] = []
    for one in checks:
        verdict = f"accepted, {_code(one.label)}" if one.accepted else f"refused, {len(one.faults)} faults"
        parts.append(f"### {_code(one.name)}: {verdict}\n")
        parts += [f"- {_code(fault)}" for fault in one.faults]
        parts += [""] if one.faults else []
    return "\n".join(parts)


def _code(text: str) -> str:
    return f"`` {hostile.plain(text, LONGEST).replace('`', 'ˋ')} ``"
