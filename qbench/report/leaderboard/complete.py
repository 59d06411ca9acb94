"""Is everything there, and is it what it says: ids, cells, seeds, evidence."""

from collections import defaultdict
from collections.abc import Iterator
from math import isclose, sqrt
from pathlib import Path

import numpy as np

from qbench.report.leaderboard.hostile import plain
from qbench.results import digest
from qbench.results.evidence import EVIDENCE, BadEvidence, Vector
from qbench.results.record import Attempt, Record
from qbench.results.run import Run, arm
from qbench.stats.interval import student_t_quantile
from qbench.suite.cells import DIGITS

AVERAGED = ("loss", "error_rate", "kld", "loss_increase")  # metrics that are the mean of a vector of the same name
NARROWEST = 0.9  # of Student's interval over windows; what resampling gives instead differs by less
TOLERANCE = 1e-6  # relative: records keep nine digits, and summation order moves the last of them


def faults(run: Run) -> Iterator[str]:
    """One line for each thing that is missing or is not what it is called."""
    yield from _named(run)
    yield from _missing(run)
    yield from _seeds(run)
    if has_evidence(run.folder):
        yield from _evidence(run)


def has_evidence(folder: Path) -> bool:
    return (folder / EVIDENCE).is_dir()


def _named(run: Run) -> Iterator[str]:
    for cell, attempt in run.cells.items():
        if digest.of(dict(attempt.closing.spec))[:DIGITS] != cell:
            yield f"cell {plain(cell, 20)} is not named by the hash of its spec; one of the two was edited"


def _missing(run: Run) -> Iterator[str]:
    asked = run.session.get("asked", [])
    if not asked:
        yield "the manifest does not say which cells were asked for; run the suite again with this qbench"
    lost = [cell for cell in asked if cell not in run.cells]
    if lost:
        yield f"{len(lost)} of {len(asked)} cells are missing, such as {plain(lost[0], 20)}; finish the run"
    for closing in run.failed:
        if closing.status == "failed":
            cell, error = plain(closing.cell, 20), plain(closing.error, 80)
            yield f"cell {cell} failed ({error}); run it again, or leave it out of the suite"


def _seeds(run: Run) -> Iterator[str]:
    """Every question must be answered with every seed of its arm; calibration tensors and loaded models have one."""
    found: dict[tuple[str, str], set[int]] = defaultdict(set)
    of_arm: dict[str, set[int]] = defaultdict(set)
    for attempt in run.cells.values():
        spec = attempt.closing.spec
        of_arm[arm(spec)].add(spec["seed"])
        found[arm(spec), attempt.closing.question].add(spec["seed"])
    for (name, question), seeds in found.items():
        if lost := sorted(of_arm[name] - seeds):
            yield f"{plain(name, 60)}: question {plain(question, 20)} lacks the seeds {lost}"
    session = run.session.get("seeds", [])
    measured = {seed for seeds in of_arm.values() for seed in seeds}
    if lost := sorted(set(session) - measured):
        yield f"the manifest names the seeds {sorted(session)}, but nothing was measured with {lost}"


def _evidence(run: Run) -> Iterator[str]:
    for attempt in run.cells.values():
        judged = attempt.closing.spec["measurement"]["what"] == "loss"
        for record in attempt.records:
            if record.samples:
                yield from _recomputed(run, attempt, record)
            elif judged and not record.slice:
                yield f"cell {plain(attempt.closing.cell, 20)}: a loss without the evidence behind it"


def _recomputed(run: Run, attempt: Attempt, record: Record) -> Iterator[str]:
    cell = plain(attempt.closing.cell, 20)
    try:
        vectors = run.evidence(record.samples)
    except BadEvidence as error:
        yield plain(f"cell {cell}: {str(error).replace(f'{run.folder}/', '')}")
        return
    if record.slice or attempt.closing.spec["measurement"]["what"] != "loss":
        return
    if "loss" not in vectors:
        yield f"cell {cell}: its evidence holds no losses"
    for name in AVERAGED:
        vector = vectors.get(name)
        if vector is not None and name in record.values:
            yield from (f"cell {cell}: {text}" for text in _mean(record, name, vector.astype(np.float64).ravel()))


def _mean(record: Record, name: str, vector: Vector) -> Iterator[str]:
    """The mean, and an interval that claims no more than its windows give (Student's t, as qbench stores it)."""
    told, count = record.values[name], vector.size
    if not count or (name == "loss" and record.n != count):
        yield f"{name} is of {record.n} windows, but its evidence has {count}"
        return
    mean = float(vector.mean())
    if not isclose(mean, told, rel_tol=TOLERANCE, abs_tol=1e-9):
        yield f"{name} is {told:.9g}, but the mean of its evidence is {mean:.9g}"
    if name in record.intervals and count == record.n > 1:
        low, high = record.intervals[name]
        error = float(vector.std(ddof=1)) / sqrt(count)
        least = NARROWEST * student_t_quantile(0.975, count - 1) * error
        if min(told - low, high - told) < least * (1 - TOLERANCE):
            yield f"the interval of {name} is narrower than its {count} windows give: ± {least / NARROWEST:.4g}"
