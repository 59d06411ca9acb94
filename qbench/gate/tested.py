"""The margin held against paired differences, at the level of a look that the policy planned."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from qbench.gate.finding import Finding, Status
from qbench.gate.metrics import unit
from qbench.gate.policy import Policy, Rule
from qbench.gate.vectors import Floats, Pairs
from qbench.stats import paired

ROUNDING = 1e-9  # of the margin: where windows agree to the last digit, the bound is as exact as the arithmetic
STATUS: dict[paired.Status, Status] = {"pass": "PASS", "fail": "FAIL", "inconclusive": "INCONCLUSIVE"}


@dataclass(frozen=True, slots=True)
class Case:
    """One question to the data: the pairs of each seed, and which of the policy's looks this is, 0 for none of them."""

    label: str
    by_seed: tuple[Pairs, ...]
    look: int

    @property
    def n(self) -> int:
        return len(self.by_seed[0].candidate)

    @property
    def reference(self) -> float:
        return float(np.mean([one.reference.mean() for one in self.by_seed]))


def look_of(policy: Policy, pairs: Pairs) -> int:
    """Which planned look this number of windows is, from 1; 0 where it is none. Nobody extends the items of a task."""
    if pairs.item:
        return 1
    n = len(pairs.candidate)
    return policy.windows.index(n) + 1 if n in policy.windows else 0


def tested(rule: Rule, policy: Policy, case: Case) -> Finding:
    """What the differences say about the margin."""
    assert rule.margin is not None
    margin = rule.margin * case.reference if rule.relative else rule.margin
    shape = Finding(
        label=case.label,
        status="ERROR",
        n=case.n,
        seeds=len(case.by_seed),
        margin=margin,
        reference=case.reference,
    )
    if margin <= 0:
        text = f"{rule.margin:.4g} of {case.reference:.4g} is no margin; give an absolute one"
        return replace(shape, reason=text, todo="give the rule an absolute margin")
    looks = 1 if case.by_seed[0].item else len(policy.windows)
    try:
        decision = _decision(rule, case, margin, {"alpha": rule.alpha, "look": case.look or 1, "looks": looks})
    except ValueError as error:
        return replace(shape, reason=str(error), todo="measure again")
    return _worded(rule, policy, case, _filled(shape, decision, case))


def _decision(rule: Rule, case: Case, margin: float, options: paired.Options) -> paired.Decision:
    rows = [_differences(rule, one, case.reference) for one in case.by_seed]
    if len(rows) > 1:
        return paired.seeds_noninferior(rows, margin, **options)
    pairs = case.by_seed[0]
    if _right_or_wrong(pairs) and margin < 1:
        return paired.proportion_noninferior(pairs.reference, pairs.candidate, margin, **options)
    return paired.noninferior(rows[0], margin, **options)


def _differences(rule: Rule, pairs: Pairs, mean: float) -> Floats:
    """Candidate minus reference. A relative margin moves with the reference, window by window: the sum is the same."""
    plain = pairs.candidate - pairs.reference
    return plain + rule.margin * (mean - pairs.reference) if rule.relative and rule.margin else plain


def _right_or_wrong(pairs: Pairs) -> bool:
    """Whether the numbers are of items that are right or wrong, and not zeros of something that is measured."""
    both = np.stack([pairs.candidate, pairs.reference])
    return bool(np.isin(both, (0.0, 1.0)).all()) and (pairs.item or bool(both.any()))


def _filled(shape: Finding, found: paired.Decision, case: Case) -> Finding:
    identical = all(np.array_equal(one.candidate, one.reference) for one in case.by_seed)
    return replace(
        shape,
        status=STATUS[found.status],
        reason=found.note,
        effect=found.estimate,
        low=found.low,
        high=found.high,
        effective_n=found.effective_n,
        minimum_detectable=found.minimum_detectable,
        needed_n=found.needed_n,
        level=found.level,
        method=found.method,
        todo=f"needs at least {found.minimum}, {found.minimum / found.n:.1f}x as many"
        if found.n < found.minimum
        else "",
        p_pass=0.0 if identical and found.status == "pass" else found.p_pass,
        p_fail=1.0 if identical else found.p_fail,
    )


def _worded(rule: Rule, policy: Policy, case: Case, found: Finding) -> Finding:
    """The finding with what follows from it; a look that nobody planned, or too little data, concludes nothing."""
    least = max(rule.minimum_n or 0, paired.WINDOWS)
    if not case.look:
        text = (
            f"{found.n} windows, but the policy looks at {_listed(policy.windows)}: other numbers are no planned look"
        )
        return replace(found, status="INCONCLUSIVE", reason=text, todo=f"measure {_next(policy, found)} windows")
    if found.n < least:
        text = f"{found.n} windows, fewer than the {least} that the rule asks for"
        return replace(found, status="INCONCLUSIVE", reason=text, todo=f"measure at least {least} windows")
    if found.status == "PASS" and found.high is not None and found.high >= (found.margin or 0.0) * (1 - ROUNDING):
        return replace(
            found, status="INCONCLUSIVE", reason="the bound lies on the margin", todo=_more(policy, case, found)
        )
    if found.status == "PASS":
        return replace(found, reason=found.reason or _against(rule, found, "below"))
    if found.status == "FAIL":
        text = "the cost is larger than the margin: another format, or a waiver with an owner"
        return replace(found, reason=_against(rule, found, "above"), todo=text)
    return replace(found, todo=found.todo or _more(policy, case, found))


def _against(rule: Rule, found: Finding, side: str) -> str:
    name, bound = ("upper", found.high) if side == "below" else ("lower", found.low)
    return " ".join(f"the {name} bound {bound:.4g} {unit(rule.metric)} is {side} the margin {found.margin:.4g}".split())


def _more(policy: Policy, case: Case, found: Finding) -> str:
    """How much more data would settle it, if the effect is what it seems."""
    if found.effect is not None and found.margin is not None and found.effect >= found.margin:
        return "the estimate is not below the margin: more data will hardly make it pass"
    things, have = ("seeds", found.seeds) if len(case.by_seed) > 1 else ("windows", found.n)
    if any(one.item for one in case.by_seed):
        things = "items"
    if len(case.by_seed) > 1 and "windows" in found.reason:
        return "needs more windows for each seed"
    if not found.needed_n or not have:
        return f"needs more {things}"
    text = f"needs {max(found.needed_n / have, 1.0):.1f}x more {things} ({found.needed_n})"
    later = [n for n in policy.windows if n > found.n]
    if things == "windows":
        plan = f"the next planned look is at {min(later)}" if later else "the policy plans no further look"
        return f"{text}; {plan}"
    return text


def _next(policy: Policy, found: Finding) -> int:
    return next((n for n in policy.windows if n > found.n), policy.windows[-1])


def _listed(windows: Sequence[int]) -> str:
    return ", then at ".join(map(str, windows))
