"""The whole leaderboard as a value: groups, their ranked rows, and what was replaced."""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from qbench.report.leaderboard import front
from qbench.report.leaderboard.check import Checked
from qbench.report.leaderboard.entries import Entry, entries
from qbench.report.leaderboard.groups import Group
from qbench.report.leaderboard.hostile import plain
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
    """Names that stand twice, submissions that want to replace what is not theirs, and those that give no rows."""
    names = [one.name for one in checks]
    wrong = {
        name: "two folders have this name; a name stands for one submission" for name in names if names.count(name) > 1
    }
    wrong |= {one.name: fault for one in checks if one.accepted and (fault := _rowless(one))}
    who = {one.name: one.submission.who for one in checks if one.submission is not None}
    targets = {one.name: _targets(one) for one in checks}
    for name, aims in targets.items():
        for target in aims:
            if target == name or who.get(target, who.get(name)) != who.get(name):
                wrong[name] = f"cannot supersede {target}, which is not by {who[name]}"
            elif name in _reached(target, targets):
                wrong[name] = f"cannot supersede {target}, which supersedes it"
    return wrong


def _rowless(checked: Checked) -> str:
    """Why no rows can be made of it: what no check foresaw is this submission's fault, and not everybody's."""
    try:
        entries(checked)
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        return plain(f"no rows can be made of it: {type(error).__name__}: {error}")
    return ""


def _targets(checked: Checked) -> list[str]:
    return [target.submission for target in checked.submission.supersedes] if checked.submission is not None else []


def _reached(name: str, targets: Mapping[str, Sequence[str]]) -> set[str]:
    """What `name` supersedes, and what that does."""
    found, open_ = set[str](), [name]
    while open_:
        new = set(targets.get(open_.pop(), ())) - found
        found |= new
        open_ += new
    return found


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
    session = checked.run.session if checked.run is not None else {}
    return str(session.get("finished") or session.get("started", ""))[:10]
