"""`qbench reproduce`: measure random cells of a submitted run again, and say whether its numbers hold."""

import argparse
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from random import SystemRandom
from tempfile import TemporaryDirectory

from qbench.cli.main import ERROR, GOOD, NO, UsageError
from qbench.report.leaderboard import reproduction
from qbench.report.leaderboard.check import Checked, check
from qbench.report.leaderboard.hostile import REPRODUCED, SUBMISSION, plain
from qbench.report.leaderboard.reproduction import Again, floor, ranked, sample, value
from qbench.results import origin
from qbench.results.files import write_whole
from qbench.results.private import scrub_paths
from qbench.results.record import Attempt
from qbench.results.run import Run, arm, part, read
from qbench.suite.cells import Cell
from qbench.suite.device import find
from qbench.suite.document import parse
from qbench.suite.run import Cost, Plan, execute, plan
from qbench.suite.schema import load

_LABEL = re.compile(r"^provenance:.*$", flags=re.M)


@dataclass(frozen=True, slots=True)
class _Measured:
    """The new run, which of its cells answers which of the submitted ones, and the digests of the models in it."""

    run: Run
    pairs: Mapping[str, str]
    models: Mapping[str, str]


def reproduce(options: argparse.Namespace) -> int:
    """Write the label where every cell agrees; 1 where one does not, 4 where one could not be measured."""
    share, folder = _share(options.sample), Path(options.folder)
    checked = check(folder)
    run = _admissible(checked)
    seed = SystemRandom().randrange(2**31) if options.seed is None else options.seed
    chosen = sample(run, share, seed)
    print(f"{len(chosen)} of {len(ranked(run))} losses, chosen with --seed {seed}")
    with TemporaryDirectory() as scratch:
        found = _measure(run, chosen, options, Path(scratch))
        again = {one.closing.cell: _again(run, one, found) for one in chosen}
    for cell, one in again.items():
        print(f"{cell}  {_spoken(one)}")
    agreed = [one for one in again.values() if one is not None and one.agrees]
    if len(agreed) < len(again):
        print("not reproduced; the label stays as it is")
        return ERROR if None in again.values() else NO
    _write(folder, run, agreed, options.by)
    return GOOD


def _admissible(checked: Checked) -> Run:
    """The run, where nothing but an older reproduction stands against it."""
    faults = [fault for fault in checked.faults if REPRODUCED not in fault]
    if checked.run is None or faults:
        raise UsageError("\n  ".join(["this submission cannot be reproduced as it is", *faults]))
    if part(checked.run.session, "options").get("plugin"):
        raise UsageError("it was measured with plugins, which are not part of a submission and are not run")
    return checked.run


def _measure(run: Run, chosen: Sequence[Attempt], options: argparse.Namespace, scratch: Path) -> _Measured:
    planned = _plan(run, options, scratch)
    by_id = {cell.id: cell for cell in planned.cells}
    by_question = {(cell.question_id, cell.arm, cell.seed): cell for cell in planned.cells}
    pairs: dict[str, str] = {}
    for one in chosen:
        spec = one.closing.spec
        same = by_id.get(one.closing.cell) or by_question.get((one.closing.question, arm(spec), spec["seed"]))
        if same is None:
            raise UsageError(_no_cell(one, planned.cells))
        pairs[one.closing.cell] = same.id
    planned = replace(planned, done=frozenset(by_id) - frozenset(pairs.values()))
    cost = Cost()
    for step in execute(planned, cost, {"reproduces": plain(run.folder.resolve().name)}):
        if step.status == "failed":
            print(f"{step.group}: failed: {step.error}")
    if cost.from_cache:
        print(f"{cost.from_cache} trained models came from this machine's cache")
    return _Measured(read(planned.out), pairs, cost.models)


def _plan(run: Run, options: argparse.Namespace, scratch: Path) -> Plan:
    """The manifest's suite, from a file beside its data where given; overrides on the command line go last."""
    session = run.session
    asked = part(session, "options")
    given = [*(str(one) for one in asked.get("overrides") or []), *options.overrides]
    overrides = {key: value for key, _, value in (one.partition("=") for one in given)}
    file = Path(options.suite) if options.suite else scratch / "suite.yaml"
    if not options.suite:
        file.write_text(session["suite"], encoding="utf-8")
    elif scrub_paths(file.read_text(encoding="utf-8")) != session["suite"]:
        raise UsageError(f"{file} is another suite than the one in the manifest of {run.folder}")
    suite = load(file, overrides=tuple(overrides.items()), profile=asked.get("profile") or None)
    return plan(suite, scratch / "run", find(options.device), workers=1)


def _no_cell(one: Attempt, cells: Sequence[Cell]) -> str:
    return (
        f"the suite in the manifest has no cell like {one.closing.cell} ({arm(one.closing.spec)}): its data, model or "
        f"revisions are others here, where it has {len(cells)} cells; name a model's folder with --set model=./folder"
    )


def _again(run: Run, was: Attempt, found: _Measured) -> Again | None:
    """Both numbers and the floor between them; None where the cell could not be measured."""
    cell = found.pairs[was.closing.cell]
    now = found.run.cells.get(cell)
    before, after = value(was), value(now) if now is not None and now.closing.status == "measured" else None
    if before is None or after is None:
        return None
    reach, kind = floor(run, was, _same_weights(run, was, found))
    return Again(cell=was.closing.cell, was=before, found=after, floor=reach, kind=kind)


def _same_weights(run: Run, was: Attempt, found: _Measured) -> bool:
    """Whether both measured the very same model: by the digest of its weights."""
    spec = was.closing.spec
    name = f"{arm(spec)}/{spec['seed']}"
    session = run.session
    submitted = part(session, "models").get(name)
    return spec.get("training") is None or (submitted is not None and submitted == found.models.get(name))


def _spoken(one: Again | None) -> str:
    if one is None:
        return "could not be measured"
    verdict = "agrees" if one.agrees else "DIFFERS"
    return f"{one.was:.6g} then {one.found:.6g}: {verdict} within the {one.kind} floor of {one.floor:.2g}"


def _write(folder: Path, run: Run, again: Sequence[Again], by: str) -> None:
    revision = origin.revision(Path(__file__)) or {}
    facts = {"by": by, "date": datetime.now(UTC).date().isoformat(), "commit": str(revision.get("commit", ""))}
    print(reproduction.write(folder, again, facts, of=len(ranked(run))))
    write_whole(folder / SUBMISSION, labelled((folder / SUBMISSION).read_text(encoding="utf-8")).encode())


def labelled(text: str) -> str:
    """A submission that says it was reproduced: with a line of its own, or written anew where that does not fit in."""
    line = "provenance: reproduced"
    made = _LABEL.sub(line, text, count=1) if _LABEL.search(text) else f"{text.rstrip()}\n{line}\n"
    if not parse(made, SUBMISSION)[1]:
        return made
    tree, _ = parse(text, SUBMISSION)  # between brackets, as in {submission: 1, ...}; JSON is YAML too
    told = {} if tree is None else tree.plain()
    return json.dumps(told | {"provenance": "reproduced"}, indent=1, ensure_ascii=False) + "\n"


def _share(text: str) -> float:
    number, percent, _ = text.partition("%")
    try:
        share = float(number) / (100 if percent else 1)
    except ValueError:
        share = 0.0
    if not 0 < share <= 1:
        raise UsageError(f"--sample {text}: expected a share of the losses, such as 5%")
    return share
