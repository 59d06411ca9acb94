"""The answer in sentences: what is supported, what is contradicted, and what the compared arms differ in."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from qbench.report.effects import ONE_SEED, Effect, Verdict, interval, magnitude
from qbench.report.factors import quantized
from qbench.report.view import Arm, View
from qbench.report.words import counted, listed

VERDICTS: Mapping[Verdict, str] = {
    "supported": "Supports the claim",
    "contradicted": "Contradicts it",
    "undecided": "Undecided",
}
FEW_ALONE = 2  # comparisons of one factor that are spelled out beside those of several
# What a comparison holds fixed or what names it, rather than a factor of its own.
NOT_FACTORS = {"arch", "shape_steps", "checkpoints"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """What two compared arms differ in: factor, value in the first, value in the second."""

    arms: tuple[str, str]
    factors: tuple[tuple[str, str, str], ...]


def headline(effects: Sequence[Effect]) -> str:
    """One or two sentences: how many of the suite's claims the measurements decide, and which way."""
    if not effects:
        return "This suite states no claims, so the page shows measurements and draws no conclusion."
    n: dict[Verdict, int] = {verdict: len(of(effects, verdict)) for verdict in VERDICTS}
    if n["undecided"] == len(effects):
        which = "the suite's one claim is not" if len(effects) == 1 else f"none of the {len(effects)} claims is"
        return f"No answer yet: {which} decided. {_why(effects)}"
    lead = _lead(n, len(effects))
    return f"{lead} Of {counted(len(effects), 'claim')}, {listed(_counts(n))}. {_seeds(effects)}"


def of(effects: Sequence[Effect], verdict: Verdict) -> list[Effect]:
    return [effect for effect in effects if effect.verdict == verdict]


def _lead(n: Mapping[Verdict, int], total: int) -> str:
    if n["supported"] and n["contradicted"]:
        return "The answer is mixed."
    if n["supported"] == total:
        return "Yes, on every count that this suite tests."
    if n["contradicted"] == total:
        return "No, on every count that this suite tests."
    return "Partly." if n["supported"] else "Nothing measured here supports it."


def _counts(n: Mapping[Verdict, int]) -> list[str]:
    return [f"{many} {'is' if many == 1 else 'are'} {verdict}" for verdict, many in n.items()]


def _seeds(effects: Sequence[Effect]) -> str:
    seeds = sorted({effect.n for effect in effects if effect.n > 1})
    if not seeds:
        return ""
    span = f"{seeds[0]}" if len(seeds) == 1 else f"{seeds[0]} to {seeds[-1]}"
    return f"Intervals are 95 %, over {span} seeds; a claim is decided when its interval lies on one side of no effect."


def _why(effects: Sequence[Effect]) -> str:
    if all(effect.n == 1 for effect in effects):
        return "One seed has no interval."
    if all(effect.n == 0 for effect in effects):
        return "What would decide it was not measured."
    return "Each claim has its reason below."


def sentence(effect: Effect) -> tuple[str, str]:
    """The claim, and what was measured for it."""
    claim = f"{effect.claim} ({effect.arms[0]} against {effect.arms[1]})"
    if effect.value is None:
        return claim, effect.reason
    inside = ONE_SEED if effect.low is None else f"{interval(effect)}, n\u00a0=\u00a0{effect.n}"
    return claim, f"{magnitude(effect)} ({inside})"


def differences(run: View, effects: Sequence[Effect]) -> list[Difference]:
    """For every pair of arms that a claim compares, the parts of their specs that are not the same."""
    pairs = dict.fromkeys(effect.arms for effect in effects)
    found: list[Difference] = []
    for first, second in pairs:
        a, b = run.arm(first), run.arm(second)
        if a and b and not any(set(one.arms) == {first, second} for one in found):
            found.append(Difference(arms=(first, second), factors=tuple(_factors(a, b))))
    return found


def _factors(a: Arm, b: Arm) -> list[tuple[str, str, str]]:
    left, right = _flat(a), _flat(b)
    names = [name for name in left | right if name not in NOT_FACTORS]
    return [
        (name.replace("_", " "), str(left.get(name, "none")), str(right.get(name, "none")))
        for name in names
        if left.get(name) != right.get(name)
    ]


def _flat(arm: Arm) -> dict[str, Any]:
    inside = quantized(arm.training or {})
    told = {**arm.model, **(arm.training or {})}
    return {**told, "quantized": inside} if inside else told


def differing(found: Sequence[Difference]) -> list[str]:
    """What the comparisons can and cannot say: first those that mix causes; many that do not share one sentence."""
    alone = [one for one in found if len(one.factors) == 1]
    if len(alone) < len(found) and len(alone) > FEW_ALONE:
        names = listed(list(dict.fromkeys(one.factors[0][0] for one in alone)))
        mixed = [confounded(one) for one in found if len(one.factors) != 1]
        return [*mixed, f"The other {len(alone)} comparisons change one thing each: {names}."]
    return [confounded(one) for one in found]


def confounded(difference: Difference) -> str:
    """What the comparison can and cannot say."""
    factors = listed([f"{name} ({before} or {after})" for name, before, after in difference.factors])
    names = " and ".join(difference.arms)
    if not difference.factors:
        return f"{names} have the same specification."
    if len(difference.factors) == 1:
        return f"{names} differ in {factors} alone."
    return (
        f"{names} differ in {len(difference.factors)} factors together: {factors}. "
        "The comparison does not say which of them is the cause."
    )
