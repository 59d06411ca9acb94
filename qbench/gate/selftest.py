"""Can this gate fail? Evidence is forged in every way that has fooled one, and each forgery has to be blocked."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from tempfile import TemporaryDirectory

from qbench.gate.baseline import UNREADABLE
from qbench.gate.baseline import against as baselines
from qbench.gate.cells import chosen
from qbench.gate.draft import Draft, draft
from qbench.gate.finding import Verdict
from qbench.gate.forgeries import Room, forgeries
from qbench.gate.known_good import known_good
from qbench.gate.looks import Problem
from qbench.gate.policy import Lock, Policy
from qbench.gate.source import Source, opened
from qbench.gate.verdict import errored, judge
from qbench.results.evidence import EVIDENCE
from qbench.results.lines import RECORDS
from qbench.results.origin import MANIFEST


@dataclass(frozen=True, slots=True)
class Trial:
    """One forgery and what the gate said to it. The control is not forged, and has to pass."""

    name: str
    verdict: Verdict
    wanted: str = "blocked"

    @property
    def good(self) -> bool:
        return (self.verdict.status == "PASS") == (self.wanted == "PASS")


@dataclass(frozen=True, slots=True)
class Bench:
    """Where forgeries are judged: the policy with locks of its own baselines, and where those are."""

    policy: Policy
    given: Mapping[str, Path]
    folder: Path

    def judged(self, run: Path, given: Mapping[str, Path] | None = None) -> Verdict:
        with ExitStack() as stack:
            try:
                source = stack.enter_context(opened(run))
            except UNREADABLE as error:
                return errored(self.policy, run.name, str(error))
            return judge(self.policy, source, baselines(self.policy, given or self.given, stack, source))


def selftest(policy: Policy, candidate: Source | None = None, keep: Path | None = None) -> list[Trial]:
    """Forge a run that passes, a made-up one or a copy of `candidate`, and judge each forgery.

    With `keep` the forged runs stay there. Raises BadEvidence where the candidate's vectors cannot be read.
    """
    with TemporaryDirectory(prefix="qbench-self-test-") as scratch:
        folder = keep or Path(scratch)
        good = draft(candidate) if candidate is not None else known_good(policy)
        bench = _bench(policy, folder, good if candidate is not None else None)
        control = bench.judged(good.write(folder / "control"))
        trials = [Trial("control: nothing is forged", control, "PASS")]
        rooms = _rooms(bench, control, folder / "control")
        for name, forged in forgeries(good, rooms):
            trials.append(Trial(name, bench.judged(forged.write(folder / _slug(name)))))
        return [*trials, *_files(bench, good)]


def table(trials: Sequence[Trial]) -> str:
    """A line for each trial: what was forged, what the gate said, whether that is right."""
    width = max(len(trial.name) for trial in trials)
    lines = [f"{'forged':<{width}}  {'verdict':<12}  right"]
    for trial in trials:
        first = next((one for one in trial.verdict.results if one.status == trial.verdict.status), None)
        why = f"  {first.reason or first.shown.reason}"[:160] if first else ""
        lines.append(f"{trial.name:<{width}}  {trial.verdict.status:<12}  {'yes' if trial.good else 'NO'}{why}")
    return "\n".join(lines) + "\n"


def _bench(policy: Policy, folder: Path, own: Draft | None) -> Bench:
    """The policy with baselines of its own: other made-up runs, or the candidate beside itself."""
    given: dict[str, Path] = {}
    locks: dict[str, Lock] = {}
    for i, name in enumerate(("previous", "anchor"), start=1):
        given[name] = (own or known_good(policy, version=i)).write(folder / f"baseline-{name}")
        with opened(given[name]) as source:
            locks[name] = Lock(None, source.digest)
    return Bench(replace(policy, previous=locks["previous"], anchor=locks["anchor"], waivers=()), given, folder)


def _rooms(bench: Bench, control: Verdict, run: Path) -> list[Room]:
    """How far each number that a rule reads is from its margin."""
    rooms: list[Room] = []
    with opened(run) as source:
        for rule, result in zip(bench.policy.rules, control.results, strict=True):
            try:
                groups = {group.label: group for group in chosen(rule, bench.policy, source)}
            except Problem:
                continue
            for finding in result.findings:
                group = groups.get(finding.label.rpartition(", slice ")[0] or finding.label)
                if group is not None and finding.margin is not None and finding.effect is not None:
                    rooms += [
                        Room(cell.closing.cell, rule.metric, finding.margin, finding.effect) for cell in group.cells
                    ]
    return rooms


def _files(bench: Bench, good: Draft) -> Iterator[Trial]:
    """Forgeries of files: a baseline exchanged, evidence gone or edited, records of another schema, an old run."""
    folder = bench.folder
    records = (folder / "control" / RECORDS).read_bytes()
    if bench.policy.needs("previous") or bench.policy.needs("anchor"):
        other = {name: known_good(bench.policy, version=9).write(folder / "swapped") for name in bench.given}
        yield Trial("baseline exchanged", bench.judged(folder / "control", other))
        if (bench.given["previous"] / RECORDS).read_bytes() != records:
            itself = dict.fromkeys(other, folder / "control")
            yield Trial("baseline is the candidate", bench.judged(folder / "control", itself))
        yield Trial("no baseline", bench.judged(folder / "control", {"previous": folder / "nowhere"}))
    run = good.write(folder / "schema")
    (run / RECORDS).write_bytes(records.replace(b'"schema":1', b'"schema":0'))
    yield Trial("records of an old schema", bench.judged(run))
    run = good.write(folder / "cut")
    (run / RECORDS).write_bytes(records[: len(records) // 2])
    yield Trial("records cut in the middle", bench.judged(run))
    yield Trial("no run at all", bench.judged(folder / "nowhere"))
    run = good.write(folder / "unsaid")
    (run / MANIFEST).unlink()
    yield Trial("a manifest that is gone", bench.judged(run))
    if any(not rule.exact for rule in bench.policy.rules):
        run = good.write(folder / "edited")
        for path in (run / EVIDENCE).iterdir():
            path.write_bytes(path.read_bytes()[:-8] + b"\0" * 8)
        yield Trial("evidence edited in its file", bench.judged(run))
        run = good.write(folder / "lost")
        for path in (run / EVIDENCE).iterdir():
            path.unlink()
        yield Trial("evidence files gone", bench.judged(run))
    if bench.policy.max_age_days is not None:
        old = (datetime.now(UTC) - timedelta(days=bench.policy.max_age_days + 2)).isoformat()
        yield Trial(
            "a run that is too old",
            bench.judged(Draft(good.cells, {**good.session, "finished": old}).write(folder / "old")),
        )


def _slug(name: str) -> str:
    return "".join(c if c.isalnum() else "-" for c in name)[:60]
