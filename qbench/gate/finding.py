"""What was found: one finding a case, one result a rule, one verdict a policy."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

Status = Literal["PASS", "FAIL", "INCONCLUSIVE", "ERROR"]
Colour = Literal["green", "yellow", "red"]
WORST: tuple[Status, ...] = ("FAIL", "ERROR", "INCONCLUSIVE", "PASS")
EXIT: Mapping[Status, int] = {"PASS": 0, "FAIL": 1, "INCONCLUSIVE": 3, "ERROR": 4}


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One case of a rule: a model in a format, or a slice of it. Numbers are in the metric's unit.

    `low` and `high` are one-sided bounds at `level`; `reference` is the mean cost of what it was compared with.
    """

    label: str
    status: Status
    reason: str = ""
    effect: float | None = None
    low: float | None = None
    high: float | None = None
    margin: float | None = None
    reference: float | None = None
    n: int = 0
    seeds: int = 0
    effective_n: float | None = None
    minimum_detectable: float | None = None
    needed_n: int | None = None
    level: float | None = None
    method: str = ""
    todo: str = ""
    p_pass: float | None = None
    p_fail: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """One rule. `status` is what the evidence says, `waived` who overruled it; `job` is the colour of its CI job."""

    rule: str
    metric: str
    unit: str
    against: str
    tier: str
    status: Status
    findings: tuple[Finding, ...]
    job: Colour = "red"
    waived: str = ""
    reason: str = ""
    p_pass: float | None = None
    p_fail: float | None = None

    @property
    def blocks(self) -> bool:
        return self.tier == "block" and not self.waived

    @property
    def shown(self) -> Finding:
        """The case that decided."""
        first = [one for one in self.findings if one.status == self.status]
        return max(first or self.findings, key=lambda one: (one.p_pass or 0.0, one.effect or 0.0))


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """The answer, and everything it rests on. `judged` is the day that waivers and ages were reckoned from."""

    status: Status
    job: Colour
    results: tuple[Result, ...]
    policy: Mapping[str, Any]
    candidate: Mapping[str, Any]
    baselines: Mapping[str, Mapping[str, Any]] = field(default_factory=dict[str, Mapping[str, Any]])
    notes: tuple[str, ...] = ()
    judged: str = ""

    @property
    def exit_code(self) -> int:
        """0 pass, 1 fail, 3 inconclusive, 4 error; 0 too where the policy only warns of what is inconclusive."""
        return 0 if self.status == "INCONCLUSIVE" and self.job != "red" else EXIT[self.status]


def worst(found: Iterable[Status]) -> Status:
    """
    >>> worst(["PASS", "INCONCLUSIVE"]), worst([])
    ('INCONCLUSIVE', 'ERROR')
    """
    ranks = [WORST.index(status) for status in found]
    return WORST[min(ranks)] if ranks else "ERROR"


def together(results: Sequence[Result]) -> Status:
    """PASS only where a blocking rule passed on evidence, and none that blocks did anything else."""
    blocking: list[Status] = [one.status for one in results if one.blocks]
    if not blocking:
        return "INCONCLUSIVE" if results else "ERROR"
    return worst(blocking)
