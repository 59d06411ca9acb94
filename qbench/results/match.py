"""Which cells of two runs answer the same question, and why the others do not."""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from qbench.results.mismatch import about, nearest, objection
from qbench.results.record import Attempt, Closing
from qbench.results.run import Run, arm


@dataclass(frozen=True, slots=True)
class Pair:
    """One question, answered in both runs with the same seed on the same data."""

    a: Attempt
    b: Attempt


@dataclass(frozen=True, slots=True)
class Unmatched:
    """A cell of one run that cannot be compared with any of the other, and the reason in words."""

    run: Literal["a", "b"]
    closing: Closing
    reason: str


@dataclass(frozen=True, slots=True)
class Matching:
    """Every cell of both runs is in exactly one of the two, in the order of its run."""

    pairs: tuple[Pair, ...]
    unmatched: tuple[Unmatched, ...]


Key = tuple[str, str, Any]  # question, arm as run b calls it, seed
Cells = Mapping[Key, Sequence[Attempt]]


def match(a: Run, b: Run, arms: Mapping[str, str] | None = None) -> Matching:
    """Pair the measured cells of `a` and `b` by question, arm, seed, data and number of samples.

    `arms` maps arms of `a` to arms of `b`. Without it arms of the same name belong together, and where each run has one
    arm only, those two do. To compare two arms of one run, pass the run twice.
    """
    names = _same_arms(a, b) if arms is None else arms
    of_a = _by_key([one for one in a.cells.values() if arm(one.closing.spec) in names], names)
    of_b = _by_key([one for one in b.cells.values() if arm(one.closing.spec) in names.values()], {})
    both = [key for key in of_a if key in of_b and not _objection(of_a[key], of_b[key])]
    alone = [
        *(Unmatched("a", one.closing, reason) for one, reason in _reasons(_left(of_a, both), of_b)),
        *(Unmatched("b", one.closing, reason) for one, reason in _reasons(_left(of_b, both), of_a)),
        *(Unmatched("a", one.closing, "its model is not compared") for one in _outside(a, of_a)),
        *(Unmatched("b", one.closing, "its model is not compared") for one in _outside(b, of_b)),
    ]
    return Matching(tuple(Pair(of_a[key][0], of_b[key][0]) for key in both), tuple(alone))


def _same_arms(a: Run, b: Run) -> dict[str, str]:
    arms_a, arms_b = (list(dict.fromkeys(arm(one.closing.spec) for one in run.cells.values())) for run in (a, b))
    if len(arms_a) == len(arms_b) == 1:
        return {arms_a[0]: arms_b[0]}
    return {name: name for name in arms_a if name in arms_b}


def _by_key(cells: Sequence[Attempt], names: Mapping[str, str]) -> Cells:
    found: dict[Key, list[Attempt]] = defaultdict(list)
    for one in cells:
        name = arm(one.closing.spec)
        found[one.closing.question, names.get(name, name), one.closing.spec.get("seed")].append(one)
    return dict(found)


def _left(cells: Cells, matched: Sequence[Key]) -> list[tuple[Key, Attempt]]:
    taken = set(matched)
    return [(key, one) for key, several in cells.items() if key not in taken for one in several]


def _outside(run: Run, cells: Cells) -> list[Attempt]:
    inside = {one.closing.cell for several in cells.values() for one in several}
    return [one for cell, one in run.cells.items() if cell not in inside]


def _reasons(left: Sequence[tuple[Key, Attempt]], others: Cells) -> Iterator[tuple[Attempt, str]]:
    """Why each has no partner among `others`: the nearest miss that explains it."""
    asked, alike = {key[:2] for key in others}, defaultdict[tuple[object, ...], list[Closing]](list)
    for (_, name, seed), several in others.items():
        for one in several:
            alike[name, seed, about(one.closing)].append(one.closing)
    for key, cell in left:
        question, name, seed = key
        if key in others:
            yield cell, _objection([cell], others[key]) or "several cells of this run answer the question"
        elif (question, name) in asked:
            yield cell, f"the other run has no seed {seed}"
        else:
            near = nearest(cell.closing, alike.get((name, seed, about(cell.closing)), ()))
            yield cell, near or "the other run does not ask it"


def _objection(ours: Sequence[Attempt], theirs: Sequence[Attempt]) -> str:
    """What forbids comparing cells that answer one question; nothing where they may be compared."""
    if len(ours) > 1 or len(theirs) > 1:
        return "several cells of one run answer the question: its folder holds two versions of the model"
    return objection(ours[0], theirs[0])
