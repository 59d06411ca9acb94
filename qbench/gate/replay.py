"""How often would a policy have failed past runs? Asked before anyone relies on it."""

from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from datetime import date
from pathlib import Path

from qbench.gate.baseline import UNREADABLE
from qbench.gate.finding import WORST, Verdict
from qbench.gate.policy import Policy
from qbench.gate.source import Source, opened
from qbench.gate.verdict import Against, errored, finished, judge


@dataclass(frozen=True, slots=True)
class Replay:
    """The verdicts over past runs, in their order; `unread` counts those that could not be read."""

    runs: tuple[str, ...]
    verdicts: tuple[Verdict, ...]
    unread: int = 0

    def counts(self) -> dict[str, Counter[str]]:
        """For each rule, how often it ended in which status."""
        found: dict[str, Counter[str]] = {}
        for verdict in self.verdicts:
            for result in verdict.results:
                found.setdefault(result.rule, Counter())[result.status] += 1
        return found


def replay(policy: Policy, runs: Sequence[str | Path], today: date | None = None) -> Replay:
    """Judge each run as on the day it was measured: `previous` is the run before it, `anchor` the first.

    Runs that do not say when that was are judged as of `today`.
    """
    verdicts: list[Verdict] = []
    with ExitStack() as stack:
        sources: list[Source | None] = []
        for run in runs:
            try:
                source = stack.enter_context(opened(run))
            except UNREADABLE as error:
                verdicts.append(errored(_possible(policy, sources), Path(run).name, str(error), today))
                sources.append(None)
                continue
            verdicts.append(judge(_possible(policy, sources), source, _history(sources), finished(source) or today))
            sources.append(source)
    return Replay(tuple(Path(run).name or str(run) for run in runs), tuple(verdicts), sources.count(None))


def _possible(policy: Policy, before: Sequence[Source | None]) -> Policy:
    """The policy without what asks for an earlier run, where there is none: that is no failure."""
    if any(source is not None for source in before):
        return policy
    return replace(policy, rules=tuple(rule for rule in policy.rules if rule.against == "unquantized"))


def _history(before: Sequence[Source | None]) -> Against:
    known = [source for source in before if source is not None]
    return Against({"previous": known[-1], "anchor": known[0]} if known else {})


def table(replayed: Replay) -> str:
    """Rules down, statuses across; then each run with its verdict."""
    counts = replayed.counts()
    width = max(map(len, [*counts, "rule"]))
    lines = [f"{'rule':<{width}}  {'  '.join(f'{status:>12}' for status in WORST)}"]
    lines += [f"{rule:<{width}}  {'  '.join(f'{n[status]:>12}' for status in WORST)}" for rule, n in counts.items()]
    lines.append("")
    for run, verdict in zip(replayed.runs, replayed.verdicts, strict=True):
        first = next((one for one in verdict.results if one.status == verdict.status), None)
        why = f"  {first.rule}: {first.reason or first.shown.reason}" if first and verdict.status != "PASS" else ""
        lines.append(f"{verdict.status if verdict.results else 'first':<12}  {run}{why}")
    return "\n".join(lines) + "\n"
