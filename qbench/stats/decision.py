"""What a test against a margin concludes, at which level of which look, and how much more data would settle it."""

from dataclasses import dataclass
from math import ceil, isfinite
from statistics import NormalDist
from typing import Literal

Status = Literal["pass", "fail", "inconclusive"]
POWER = 0.8  # of a test that is worth running
LEAST = 1e-7  # no bound can be trusted at a smaller level


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """What data say before they are held against a margin: bounds at one level, p-values of both sides of the margin.

    `identical` says that candidate and baseline do not differ anywhere, `stays` which share of the variance would be
    the same for any n: windows that all seeds have in common.
    """

    estimate: float
    low: float
    high: float
    n: int
    effective_n: float
    standard_error: float
    p_pass: float
    p_fail: float
    identical: bool = False
    stays: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """How evidence is judged; `things` are what n counts."""

    margin: float
    level: float
    minimum: int
    things: str
    method: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """Whether a cost grew by less than a margin. `low` and `high` are one-sided bounds, each at `level`.

    `p_pass` is the p-value of "the effect reaches the margin", `p_fail` of "it stays below". `minimum_detectable` is
    how far below the margin an effect has to be to pass with 80 % power; `needed_n` how many windows, items or seeds
    settle this estimate with such power. It is None, and ends are infinite, where n cannot tell.
    """

    status: Status
    estimate: float
    low: float
    high: float
    margin: float
    n: int
    effective_n: float
    minimum: int
    minimum_detectable: float
    needed_n: int | None
    p_pass: float
    p_fail: float
    level: float
    method: str
    note: str


def level_of_look(alpha: float, look: int = 1, looks: int | None = 1) -> float:
    """The level of one of `looks` planned looks at growing data, alpha / looks each (Bonferroni).

    Without a plan (None) look k has alpha / 2^k: their sum stays below alpha however often somebody looks. Raises
    ValueError for a look that was not planned, and where a level is below 1e-7.

    >>> level_of_look(0.05, 2, 2), level_of_look(0.05, 1, None), level_of_look(0.05, 2, None)
    (0.025, 0.025, 0.0125)
    """
    if not 0 < alpha < 0.5:
        raise ValueError(f"alpha is a chance between 0 and 0.5, found {alpha}")
    if look < 1 or (looks is not None and look > looks):
        raise ValueError(f"look {look} is not one of the {looks} that were planned; a further look needs a new plan")
    level = alpha / 2.0 ** min(look, 1000) if looks is None else alpha / looks
    if level < LEAST:
        raise ValueError(f"alpha {alpha} leaves {level:.1g} for look {look}; below {LEAST:.0e} nothing can be trusted")
    return level


def decide(found: Evidence, rule: Rule) -> Decision:
    """Hold evidence against a margin; ValueError for one that is not finite."""
    if not isfinite(rule.margin):
        raise ValueError(f"a margin is a finite number, found {rule.margin}")
    needed = _needed(found, rule)
    status, note = _status(found, rule, needed)
    return Decision(
        status=status,
        estimate=found.estimate,
        low=found.low,
        high=found.high,
        margin=rule.margin,
        n=found.n,
        effective_n=found.effective_n,
        minimum=rule.minimum,
        minimum_detectable=found.high - found.estimate + _spare(found),
        needed_n=needed,
        p_pass=found.p_pass,
        p_fail=found.p_fail,
        level=rule.level,
        method=rule.method,
        note=note,
    )


def _status(found: Evidence, rule: Rule, needed: int | None) -> tuple[Status, str]:
    if found.n < rule.minimum:
        return "inconclusive", f"{found.n} {rule.things} are too few to trust a bound; {rule.minimum} are the minimum"
    if found.identical and rule.margin >= 0:
        return "pass", "candidate and baseline are identical"
    if found.high < rule.margin:
        return "pass", ""
    if found.low > rule.margin:
        return "fail", ""
    return "inconclusive", _open(found, rule, needed)


def _open(found: Evidence, rule: Rule, needed: int | None) -> str:
    if needed is not None:
        return f"needs about {needed / found.n:.1f}x the {rule.things} ({needed}) to settle this estimate"
    if found.stays:
        return f"more {rule.things} alone may not settle this estimate; more windows for each may"
    return "the estimate lies on the margin; more data may not settle it"


def _needed(found: Evidence, rule: Rule) -> int | None:
    """How many values see this distance from the margin with 80 % power: bounds shrink as 1 / sqrt(n), or what can."""
    distance = rule.margin - found.estimate
    reach = (found.high - found.estimate if distance > 0 else found.estimate - found.low) + _spare(found)
    if not isfinite(reach):
        return rule.minimum
    if abs(distance) <= 1e-9 * reach:
        return None
    ratio = (reach / distance) ** 2
    left = 1 - found.stays * ratio
    return max(rule.minimum, ceil(found.n * (1 - found.stays) * ratio / left)) if left > 0 else None


def _spare(found: Evidence) -> float:
    """What a test needs beyond its bound in order to decide with the wanted power and not one half (J. Cohen 1988)."""
    return NormalDist().inv_cdf(POWER) * found.standard_error
