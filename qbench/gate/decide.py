"""One rule held against the evidence: cases found, tested, and put into words."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from qbench.gate.cells import Group, about, chosen, title, treatment
from qbench.gate.finding import Finding
from qbench.gate.looks import Problem, order, question
from qbench.gate.metrics import unit
from qbench.gate.policy import Policy, Rule
from qbench.gate.source import Source
from qbench.gate.tested import Case, look_of, tested
from qbench.gate.vectors import Pairs, Reader, run_pairs, unquantized_pairs
from qbench.results.private import scrub
from qbench.results.record import Attempt
from qbench.results.run import arm, part


@dataclass(frozen=True, slots=True)
class Evidence:
    """The candidate, and what it may be compared with."""

    candidate: Reader
    references: dict[str, Reader]


def findings(rule: Rule, policy: Policy, evidence: Evidence) -> list[Finding]:
    """All cases of a rule, at least one; what cannot be judged is an ERROR, or a FAIL where the policy says so."""
    try:
        groups = chosen(rule, policy, evidence.candidate.source)
        _cover(rule, evidence)
    except Problem as problem:
        return [_trouble(rule, "", problem)]
    return [one for group in groups for one in _of_group(rule, policy, evidence, group)]


def _cover(rule: Rule, evidence: Evidence) -> None:
    """A candidate answers everything that its baseline answers: what got worse cannot be left out."""
    if rule.against not in evidence.references or rule.at_most is not None:
        return
    theirs = about(rule, evidence.references[rule.against].source)
    alone = len({arm(cell.closing.spec) for cell in theirs}) == 1  # one model has the place of any other

    def key(cell: Attempt) -> tuple[str, str, str]:
        spec = cell.closing.spec
        return "" if alone else arm(spec), question(cell.closing), str(spec.get("seed"))

    ours = {key(cell) for cell in about(rule, evidence.candidate.source)}
    for cell in theirs:
        if cell.closing.status == "measured" and key(cell) not in ours:
            raise Problem(
                f"{title(cell.closing.spec)}: the {rule.against} baseline has it, this run does not", missing=True
            )


def _of_group(rule: Rule, policy: Policy, evidence: Evidence, group: Group) -> list[Finding]:
    try:
        if rule.exact:
            return [_counted(rule, evidence, group)]
        pairs = [_joined(rule, evidence, looks, group.label) for looks in group.by_seed.values()]
        return [tested(rule, policy, case) for case in _cases(rule, policy, group, pairs)]
    except Problem as problem:
        return [_trouble(rule, group.label, problem)]


def _trouble(rule: Rule, label: str, problem: Problem) -> Finding:
    status = "FAIL" if rule.missing_fails and problem.missing else "ERROR"
    todo = "measure it: nothing passes without evidence" if problem.missing else "measure again, from one run"
    return Finding(label=label or rule.name, status=status, reason=scrub(str(problem)), margin=rule.margin, todo=todo)


def _joined(rule: Rule, evidence: Evidence, looks: Sequence[Attempt], name: str) -> Pairs:
    """The pairs of all looks, each proven on its own, in the order of the text."""
    parts = [_pairs(rule, evidence, cell) for cell in looks]
    if len(parts) == 1:
        return parts[0]
    places = order(looks, [len(one.candidate) for one in parts], name)
    return Pairs(
        candidate=np.concatenate([one.candidate for one in parts])[places],
        reference=np.concatenate([one.reference for one in parts])[places],
        slices=np.concatenate([one.slices for one in parts])[places],
    )


def _pairs(rule: Rule, evidence: Evidence, cell: Attempt) -> Pairs:
    if rule.against == "unquantized":
        return unquantized_pairs(rule, evidence.candidate, cell)
    reader = _reference(rule, evidence)
    return run_pairs(rule, evidence.candidate, cell, (reader, counterpart(cell, reader.source)))


def _reference(rule: Rule, evidence: Evidence) -> Reader:
    if rule.against not in evidence.references:
        raise Problem(f"there is no {rule.against} baseline to compare with; give --baseline RUN", missing=True)
    return evidence.references[rule.against]


def counterpart(cell: Attempt, source: Source) -> Attempt:
    """The cell of a baseline that answers the same question, with the same seed, under the same conditions."""
    spec = cell.closing.spec
    arms = {arm(one.closing.spec) for one in source.run.cells.values()}
    name = next(iter(arms)) if len(arms) == 1 else arm(spec)
    found = [
        one
        for one in source.run.cells.values()
        if one.closing.question == cell.closing.question
        and arm(one.closing.spec) == name
        and one.closing.spec.get("seed") == spec.get("seed")
    ]
    label = f"{arm(spec)}: {treatment(spec).get('name', '')} with seed {spec.get('seed')}"
    if len(found) != 1:
        raise Problem(f"{source.name} has {len(found)} cells that answer {label}; expected one", missing=not found)
    other = found[0].closing
    if other.status != "measured":
        raise Problem(f"{label} {other.status} in {source.name}", missing=True)
    for what, x, y in (
        ("suite", (spec.get("suite"), spec.get("version")), (other.spec.get("suite"), other.spec.get("version"))),
        ("device", spec.get("device"), other.spec.get("device")),
        ("data", part(spec, "data").get("digest"), part(other.spec, "data").get("digest")),
        ("tokenizer", part(spec, "model").get("tokenizer"), part(other.spec, "model").get("tokenizer")),
    ):
        if x != y:
            raise Problem(f"{label}: {source.name} has another {what} ({str(y)[:40]}, not {str(x)[:40]})")
    return found[0]


def _cases(rule: Rule, policy: Policy, group: Group, parts: Sequence[Pairs]) -> list[Case]:
    """The whole, or with `worst_slice` each slice: all of them have to pass."""
    if len({len(one.candidate) for one in parts}) > 1:
        raise Problem(f"{group.label}: its seeds were measured on different numbers of windows")
    look = look_of(policy, parts[0])
    if not rule.worst_slice:
        return [Case(group.label, tuple(parts), look)]
    labels = parts[0].slices
    if any(not np.array_equal(one.slices, labels) for one in parts):
        raise Problem(f"{group.label}: its seeds do not agree on which window is of which slice")
    return [
        Case(f"{group.label}, slice {label}", tuple(_only(one, labels == label) for one in parts), look)
        for label in np.unique(labels).tolist()
    ]


def _only(pairs: Pairs, kept: NDArray[np.bool_]) -> Pairs:
    return replace(pairs, candidate=pairs.candidate[kept], reference=pairs.reference[kept], slices=pairs.slices[kept])


def _counted(rule: Rule, evidence: Evidence, group: Group) -> Finding:
    """What is counted and not sampled: compared as it is, the largest of the seeds."""
    value = max(_count(rule, cell, group.label) for cell in group.cells)
    reference = None
    if rule.at_most is not None:
        limit = rule.at_most
        effect, margin = value, limit
    else:
        assert rule.margin is not None
        source = _reference(rule, evidence).source
        others = [counterpart(cell, source) for cell in group.cells]
        reference = max(_count(rule, other, f"{group.label} in {source.name}") for other in others)
        effect, margin = value - reference, rule.margin * (reference if rule.relative else 1)
    passed = effect <= margin
    more = f"{effect:.6g} {unit(rule.metric)}, {'at most' if passed else 'more than'} {margin:.6g}"
    return Finding(
        label=group.label,
        status="PASS" if passed else "FAIL",
        reason=more,
        effect=effect,
        low=effect,
        high=effect,
        margin=margin,
        reference=reference,
        seeds=len(group.by_seed),
        method="counted",
        todo="" if passed else "store fewer bits, or raise the limit with a reason",
    )


def _count(rule: Rule, cell: Attempt, name: str) -> float:
    whole = [record for record in cell.records if not record.slice]
    found = [
        record.bits_per_value if rule.metric == "bits_per_value" else record.values.get(rule.metric) for record in whole
    ]
    kept = [value for value in found if value is not None]
    if len(kept) != 1:
        raise Problem(f"{name}: {len(kept)} records have {rule.metric}; expected one", missing=not kept)
    return kept[0]
