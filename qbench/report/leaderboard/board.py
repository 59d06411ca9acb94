"""The whole leaderboard as a value: groups, their ranked rows, and what was replaced."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from qbench.report.leaderboard import front
from qbench.report.leaderboard.check import Checked
from qbench.report.leaderboard.entries import Entry, entries
from qbench.report.leaderboard.groups import Group
from qbench.report.leaderboard.ranks import ranks


@dataclass(frozen=True, slots=True)
class Correction:
    """One submission replaced by another, and why."""

    date: str
    old: str
    new: str
    reason: str


@dataclass(frozen=True, slots=True)
class Board:
    """Rows by group, ranked ones first; the newest version of a suite comes before the older ones, which are kept."""

    groups: dict[Group, tuple[Entry, ...]]
    submissions: tuple[Checked, ...]
    corrections: tuple[Correction, ...]

    @property
    def rows(self) -> list[Entry]:
        return [entry for found in self.groups.values() for entry in found]


def board(checks: Iterable[Checked]) -> Board:
    """All rows of the accepted ones; the same for any order of the folders."""
    accepted = sorted((one for one in checks if one.accepted), key=lambda one: one.name)
    corrections = _corrections(accepted)
    by = {one.old: one.new for one in corrections}
    found: dict[Group, list[Entry]] = defaultdict(list)
    for one in accepted:
        for entry in entries(one):
            found[entry.group].append(replace(entry, superseded=by.get(one.name, "")))
    order = sorted(found, key=lambda group: (group.suite, -group.version, group.scope, group.metric, group.id))
    return Board({group: _ranked(found[group]) for group in order}, tuple(accepted), tuple(corrections))


def _ranked(rows: Sequence[Entry]) -> tuple[Entry, ...]:
    """By value within the group; what was superseded stands below without a rank."""
    rows = sorted(rows, key=lambda one: (not one.ranked, one.value, one.model, one.quantizer, one.submission))
    ranked = [one for one in rows if one.ranked]
    places = ranks([(one.low, one.high) for one in ranked])
    unbeaten = set(map(id, front.front(ranked)))
    return (
        *(replace(one, rank=place, front=id(one) in unbeaten) for one, place in zip(ranked, places, strict=True)),
        *rows[len(ranked) :],
    )


def refused(checks: Sequence[Checked]) -> dict[str, str]:
    """Names that stand twice, and submissions that want to replace what is not theirs."""
    names = [one.name for one in checks]
    wrong = {
        name: "two folders have this name; a name stands for one submission" for name in names if names.count(name) > 1
    }
    who = {one.name: one.submission.who for one in checks if one.submission is not None}
    for one in checks:
        for target in one.submission.supersedes if one.submission is not None else ():
            if target.submission == one.name or who.get(target.submission, who.get(one.name)) != who.get(one.name):
                wrong[one.name] = f"cannot supersede {target.submission}, which is not by {who[one.name]}"
    return wrong


def _corrections(accepted: Sequence[Checked]) -> list[Correction]:
    known = {one.name for one in accepted}
    found = [
        Correction(_date(one), target.submission, one.name, target.reason)
        for one in accepted
        if one.submission is not None
        for target in one.submission.supersedes
        if target.submission in known
    ]
    return sorted(found, key=lambda one: (one.date, one.new, one.old))


def _date(checked: Checked) -> str:
    session = checked.run.manifest["sessions"][-1] if checked.run is not None else {}
    return str(session.get("finished") or session.get("started", ""))[:10]
