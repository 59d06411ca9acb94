"""Which cells make one row: those of one model, in one group, with one quantizer, each of another seed."""

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from qbench.report.leaderboard.groups import Group, group
from qbench.report.leaderboard.hostile import plain
from qbench.results.record import Attempt, Record
from qbench.results.run import Run, arm, part

METRICS = ("loss", "error_rate", "task_error/acc_norm", "task_error/acc", "task_error/exact_match", "task_error/f1")

Key = tuple[Group, str, str]  # and the arm and the quantizer


@dataclass(frozen=True, slots=True)
class Found:
    """One cell of a row: its whole record."""

    attempt: Attempt
    record: Record
    metric: str

    @property
    def value(self) -> float:
        return self.record.values[self.metric]

    @property
    def seed(self) -> int:
        return self.attempt.closing.spec["seed"]


def rows(run: Run) -> Mapping[Key, list[Found]]:
    """Every row of a submission with its cells, in the order of the run."""
    found: dict[Key, list[Found]] = defaultdict(list)
    for attempt in run.cells.values():
        for record, metric in _ranked(attempt):
            key = group(attempt, metric), arm(attempt.closing.spec), quantizer(attempt)
            found[key].append(Found(attempt, record, metric))
    return found


def faults(run: Run) -> Iterator[str]:
    """Cells that are counted as seeds and are none: the same one under another name narrows the interval."""
    for (_, name, treatment), cells in rows(run).items():
        for seed, count in Counter(one.seed for one in cells).items():
            if count > 1:
                same = " and ".join(plain(one.attempt.closing.cell, 20) for one in cells if one.seed == seed)
                yield plain(f"{plain(name, 60)}, {plain(treatment, 60)}: seed {seed} was measured by {same}")


def _ranked(attempt: Attempt) -> Iterator[tuple[Record, str]]:
    """The record of a cell as a whole, and the metric that it is ranked by."""
    what = part(attempt.closing.spec, "measurement").get("what")
    if attempt.closing.status != "measured" or what not in ("loss", "task"):
        return
    for record in attempt.records:
        if record.slice or record.site or record.step is not None:
            continue
        metric = next((name for name in METRICS if name in record.values), None)
        if metric is not None:
            yield record, metric
            return


def quantizer(attempt: Attempt) -> str:
    """What is assigned, the same words for all that assign the same."""
    assigned = part(attempt.closing.spec, "measurement", "treatment", "assign")
    names = [str(assigned[place]) for place in sorted(assigned)]
    return plain(" + ".join(names if len(set(names)) > 1 else names[:1]), 120) or "none"
