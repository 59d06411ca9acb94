"""Baselines: runs that somebody accepted, each pinned by a lock file that a reviewer can read."""

import json
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from qbench.gate.finding import Verdict
from qbench.gate.policy import Lock, Policy
from qbench.gate.source import BadPack, Source, canonical, opened
from qbench.gate.verdict import Against, described
from qbench.results.evidence import BadEvidence
from qbench.results.files import make_folder, write_whole
from qbench.results.lines import BadRecords
from qbench.results.origin import BadManifest
from qbench.results.run import NoRun

SCHEMA = 1
LARGEST = 1_000_000  # bytes of a lock file
UNREADABLE = (NoRun, BadPack, BadRecords, BadManifest, OSError)


class NotAccepted(ValueError):
    """A run cannot become a baseline."""


class BadLock(ValueError):
    """A lock file is not what `qbench baseline accept` writes."""


@dataclass(frozen=True, slots=True)
class Acceptance:
    """Who answers for a baseline, and why."""

    owner: str
    reason: str


def accept(source: Source, out: Path, by: Acceptance, verdict: Verdict | None = None) -> Mapping[str, Any]:
    """Write the lock file of a run, with its digest; what was locked there before is kept by digest.

    Raises:
        NotAccepted: cells failed or are missing, nothing was measured, evidence cannot be read, a verdict is no PASS,
            or nobody signs.
        CannotWrite: `out` cannot be written.
    """
    _refuse(source, by, verdict)
    lock = {
        "schema": SCHEMA,
        "run": source.name,
        "digest": source.digest,
        "owner": by.owner,
        "reason": by.reason,
        "accepted": datetime.now(UTC).date().isoformat(),
        "about": described(source),
        "policy": None if verdict is None else {**verdict.policy, "verdict": verdict.status},
        "replaces": read(out)["digest"] if out.exists() else None,
    }
    make_folder(out.parent)
    write_whole(out, canonical(lock).encode())
    return lock


def read(path: Path) -> dict[str, Any]:
    """A lock file. Raises BadLock with what is wrong, OSError where it cannot be read."""
    with path.open("rb") as file:
        data = file.read(LARGEST + 1)
    try:
        lock = json.loads(data) if len(data) <= LARGEST else None
    except (ValueError, RecursionError) as error:
        raise BadLock(f"{path}: not JSON ({error}); qbench baseline accept writes it") from error
    if not isinstance(lock, dict) or not all(isinstance(lock.get(key), str) for key in ("digest", "owner", "reason")):
        raise BadLock(f"{path}: no lock file with digest, owner and reason; qbench baseline accept writes it")
    if lock.get("schema") != SCHEMA:
        raise BadLock(
            f"{path}: written with schema {lock.get('schema')}, this qbench reads schema {SCHEMA}; accept again"
        )
    return lock


def against(policy: Policy, given: Mapping[str, str | Path | None], stack: ExitStack, candidate: Source) -> Against:
    """Open the baselines that the policy needs, and hold each against its lock; what is wrong with one is a problem.

    `given` maps previous and anchor to run folders or packs. A lock may stand without its run only where no rule needs
    the run's numbers. What no lock tells from the candidate has to be another run than that.
    """
    runs: dict[str, Source] = {}
    problems: dict[str, str] = {}
    notes: list[str] = []
    for name, lock in (("previous", policy.previous), ("anchor", policy.anchor)):
        place = given.get(name)
        if place is None:
            if any(rule.against == name for rule in policy.rules):
                problems[name] = f"no {name} baseline was given; name its run with --{_option(name)} RUN"
            continue
        try:
            runs[name] = stack.enter_context(opened(place))
        except UNREADABLE as error:
            problems[name] = f"the {name} baseline cannot be read: {error}"
            continue
        problem = _unlike(lock, runs[name])
        if problem:
            problems[name] = f"the {name} baseline is not the accepted one: {problem}"
        elif lock is None and _is_one(runs[name], candidate):
            problems[name] = f"the {name} baseline is the candidate itself, which is not worse than itself"
        elif lock is None:
            notes.append(f"the {name} baseline is locked by nobody: the policy has no baselines.{name}")
    return Against(runs, problems, notes)


def _refuse(source: Source, by: Acceptance, verdict: Verdict | None) -> None:
    if not by.owner.strip() or not by.reason.strip():
        raise NotAccepted("a baseline needs an owner and a reason; give --owner and --reason")
    measured = [cell for cell in source.run.cells.values() if cell.closing.status == "measured"]
    if not measured:
        raise NotAccepted(f"{source.name} has no measured cell; that is no baseline")
    if source.run.failed:
        names = ", ".join(closing.cell for closing in source.run.failed[:5])
        raise NotAccepted(f"{len(source.run.failed)} cells of {source.name} failed ({names}); a baseline has none")
    if source.asked is None:
        raise NotAccepted(f"{source.name} does not say which cells were asked for: its manifest.json is gone")
    if source.gone:
        raise NotAccepted(
            f"{source.gone} cells of {source.name} are missing; the same qbench run command measures them"
        )
    _open_evidence(source)
    if verdict is not None and verdict.status != "PASS":
        raise NotAccepted(f"{source.name} does not pass {verdict.policy['name']}: {verdict.status}")


def _is_one(run: Source, other: Source) -> bool:
    """Whether two runs are one, as the times of their cells tell: none takes as long twice.

    What is imported has no times, and may give the same answers twice: there, one folder is one run.
    """
    timed = any(cell.closing.seconds for cell in run.run.cells.values())
    return run.records == other.records and (timed or run.run.folder.resolve() == other.run.folder.resolve())


def _open_evidence(source: Source) -> None:
    """What nobody can read again is nothing to compare with."""
    for cell in source.run.cells.values():
        for record in cell.records:
            if record.samples:
                try:
                    source.run.evidence(record.samples)
                except (BadEvidence, OSError) as error:
                    raise NotAccepted(f"the evidence of {source.name} cannot be read: {error}") from error


def _unlike(lock: Lock | None, source: Source) -> str:
    """How a run differs from what was accepted; nothing where it is that run."""
    if lock is None:
        return ""
    wanted: Sequence[str] = [lock.digest] if lock.digest else []
    if lock.path is not None:
        try:
            wanted = [*wanted, read(lock.path)["digest"]]
        except (BadLock, OSError) as error:
            return str(error)
    if not wanted:
        return "the policy names neither a lock file nor a digest"
    ours = (source.digest, source.records)  # older locks know the records only
    other = next((digest for digest in wanted if digest not in ours), None)
    return f"{source.name} has digest {source.digest[:16]}, accepted was {other[:16]}" if other else ""


def _option(name: str) -> str:
    return "baseline" if name == "previous" else name
