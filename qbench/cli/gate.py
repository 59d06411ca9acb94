"""`qbench gate`, `baseline` and `pack`: records in, a verdict and an exit code out; no torch but with --model."""

import argparse
import sys
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path, PurePath

from qbench.cli.main import ERROR, GOOD, UsageError, parser
from qbench.gate import baseline as baselines
from qbench.gate import outputs, replay, selftest
from qbench.gate.finding import Verdict
from qbench.gate.policy import Policy, load
from qbench.gate.source import opened
from qbench.gate.source import pack as packed
from qbench.gate.verdict import errored, judge

ONE_OF = ("candidate", "replay", "self_test", "model")
VERDICT = ("candidate", "model")
# Options that only some ways of judging understand.
ONLY: Mapping[str, tuple[str, ...]] = {
    **dict.fromkeys(("baseline", "anchor", "out", "format"), VERDICT),
    **dict.fromkeys(("data", "run", "look", "device", "trust_remote_code"), ("model",)),
    "keep": ("self_test",),
}


def gate(options: argparse.Namespace) -> int:
    """One verdict, or what a policy would have said, or whether it can be fooled."""
    policy = load(options.policy)
    given = [name for name in ONE_OF if getattr(options, name)]
    if given not in (["candidate"], ["replay"], ["self_test"], ["candidate", "self_test"], ["model"]):
        raise UsageError("say what to judge: one of --candidate RUN, --model MODEL, --replay RUNS, --self-test")
    _refuse(options, "self_test" if options.self_test else given[0])
    if options.replay:
        replayed = replay.replay(policy, options.replay)
        sys.stdout.write(replay.table(replayed))
        return GOOD if replayed.unread < len(replayed.runs) else ERROR
    if options.self_test:
        return _self_test(policy, options)
    if options.model:
        from qbench.cli.measure import measure

        return _verdict(policy, str(measure(policy, options)), options)
    return _verdict(policy, options.candidate, options)


def baseline(options: argparse.Namespace) -> int:
    """Accept a run: write its lock file, unless it failed or a policy says no."""
    if not options.policy and (options.baseline or options.anchor):
        raise UsageError("--baseline and --anchor are for the rules of a policy; name it with --policy")
    by = baselines.Acceptance(options.owner, options.reason)
    with opened(options.run) as source, ExitStack() as stack:
        verdict = None
        if options.policy:
            policy = load(options.policy)
            against = baselines.against(policy, _given(options), stack, source)
            verdict = judge(policy, source, against)
        lock = baselines.accept(source, Path(options.lock), by, verdict)
    print(f"{options.lock}: {lock['run']} with digest {lock['digest']}")
    return GOOD


def pack(options: argparse.Namespace) -> int:
    folder = Path(options.run)
    out = packed(folder, Path(options.out or f"{folder.resolve().name}.qbench.zip"))
    print(f"{out}: {out.stat().st_size} bytes")
    return GOOD


def _refuse(options: argparse.Namespace, way: str) -> None:
    unasked = parser().parse_args(["gate", options.policy])
    for name, ways in ONLY.items():
        if way not in ways and getattr(options, name) != getattr(unasked, name):
            fitting = " or ".join(map(_spelled, ways))
            raise UsageError(f"{_spelled(name)} does not apply to {_spelled(way)}; it goes with {fitting}")


def _spelled(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _verdict(policy: Policy, run: str, options: argparse.Namespace) -> int:
    with ExitStack() as stack:
        try:
            source = stack.enter_context(opened(run))
        except baselines.UNREADABLE as error:
            return _said(errored(policy, PurePath(run).name, str(error)), options)
        return _said(judge(policy, source, baselines.against(policy, _given(options), stack, source)), options)


def _given(options: argparse.Namespace) -> dict[str, str | None]:
    return {"previous": options.baseline, "anchor": options.anchor}


def _said(verdict: Verdict, options: argparse.Namespace) -> int:
    if options.out:
        outputs.write(verdict, Path(options.out))
    sys.stdout.write(outputs.FORMATS[options.format](verdict))
    return verdict.exit_code


def _self_test(policy: Policy, options: argparse.Namespace) -> int:
    keep = Path(options.keep) if options.keep else None
    with ExitStack() as stack:
        candidate = stack.enter_context(opened(options.candidate)) if options.candidate else None
        trials = selftest.selftest(policy, candidate, keep)
    sys.stdout.write(selftest.table(trials))
    wrong = [trial.name for trial in trials if not trial.good]
    print(f"{len(trials)} trials, {len(wrong)} wrong" + (f": {', '.join(wrong)}" if wrong else ""))
    return ERROR if wrong else GOOD
