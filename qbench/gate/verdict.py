"""Policy and runs in, verdict out: every rule, Holm's correction over all of them, waivers, and the baselines."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, date, datetime
from typing import Any

from qbench.gate.decide import Evidence, findings
from qbench.gate.finding import Colour, Finding, Result, Verdict, together, worst
from qbench.gate.metrics import unit
from qbench.gate.policy import Policy, Rule, Waiver
from qbench.gate.source import Source
from qbench.gate.vectors import Reader
from qbench.results.private import scrub
from qbench.results.run import part
from qbench.stats.paired import holm


@dataclass(frozen=True, slots=True)
class Against:
    """The runs that a candidate is compared with, and what is wrong with those that could not be had."""

    runs: Mapping[str, Source] = field(default_factory=dict[str, Source])
    problems: Mapping[str, str] = field(default_factory=dict[str, str])
    notes: Sequence[str] = ()


def judge(policy: Policy, candidate: Source, against: Against | None = None, today: date | None = None) -> Verdict:
    """Hold a run against a policy. Never raises for what is in the run: that becomes an ERROR with a reason."""
    against, today = against or Against(), today or datetime.now(UTC).date()
    readers = {name: Reader(source) for name, source in against.runs.items()}
    evidence = Evidence(Reader(candidate), readers)
    stale = _stale(policy, candidate, today)
    results = [_result(rule, _found(rule, policy, evidence, against, stale)) for rule in policy.rules]
    results = _corrected(results, policy.rules)
    results = [_waived(one, rule, policy.waivers, today) for one, rule in zip(results, policy.rules, strict=True)]
    results = [replace(one, job=_colour(one, rule)) for one, rule in zip(results, policy.rules, strict=True)]
    status = together(results)
    return Verdict(
        status=status,
        job=_job(results, status),
        results=tuple(results),
        policy={
            "name": policy.name,
            "version": policy.version,
            "digest": policy.digest,
            "provisional": policy.provisional,
            "windows": list(policy.windows),
        },
        candidate=described(candidate),
        baselines={name: described(source) for name, source in against.runs.items()},
        notes=tuple(against.notes),
        judged=today.isoformat(),
    )


def errored(policy: Policy, name: str, reason: str, today: date | None = None) -> Verdict:
    """The verdict where there is no run to judge: ERROR, with the reason on every rule."""
    today, reason = today or datetime.now(UTC).date(), scrub(reason)
    finding = Finding(label=name, status="ERROR", reason=reason, todo="nothing passes without evidence")
    results = tuple(_result(rule, [finding]) for rule in policy.rules)
    about = {"name": policy.name, "version": policy.version, "digest": policy.digest}
    return Verdict(
        status="ERROR",
        job="red",
        results=results,
        policy=about | {"provisional": policy.provisional, "windows": list(policy.windows)},
        candidate={"name": name, "digest": ""},
        notes=(reason,),
        judged=today.isoformat(),
    )


def _found(rule: Rule, policy: Policy, evidence: Evidence, against: Against, stale: str) -> list[Finding]:
    reason = stale or scrub(against.problems.get(rule.against, ""))
    if reason:
        return [Finding(label=rule.name, status="ERROR", reason=reason, margin=rule.margin, todo="see the reason")]
    return findings(rule, policy, evidence)


def _result(rule: Rule, found: Sequence[Finding]) -> Result:
    passes = [one.p_pass for one in found if one.p_pass is not None]
    fails = [one.p_fail for one in found if one.p_fail is not None]
    return Result(
        rule=rule.name,
        metric=rule.metric,
        unit=unit(rule.metric),
        against=rule.against if rule.at_most is None else "a ceiling",
        tier=rule.tier,
        status=worst(one.status for one in found),
        findings=tuple(found),
        # All cases have to pass, so the weakest speaks for the rule; any may fail, so the strongest pays for all.
        p_pass=max(passes) if passes else None,
        p_fail=min(1.0, min(fails) * len(fails)) if fails else None,
    )


def _corrected(results: Sequence[Result], rules: Sequence[Rule]) -> list[Result]:
    """Holm over all rules that were tested: neither a pass nor a fail is one of many tries."""
    tested = [i for i, one in enumerate(results) if one.p_pass is not None and one.p_fail is not None]
    passes = holm([results[i].p_pass or 0.0 for i in tested])
    fails = holm([results[i].p_fail or 0.0 for i in tested])
    made = list(results)
    for i, p_pass, p_fail in zip(tested, passes, fails, strict=True):
        level = min(one.level for one in results[i].findings if one.level is not None)
        one = replace(results[i], p_pass=p_pass, p_fail=p_fail)
        lost = (one.status == "PASS" and p_pass > level) or (one.status == "FAIL" and _by_test(one) and p_fail > level)
        if lost:
            text = f"does not hold among {len(tested)} rules (Holm): p {p_pass if one.status == 'PASS' else p_fail:.2g}"
            one = replace(one, status="INCONCLUSIVE", reason=text)
        made[i] = one
    return made


def _by_test(result: Result) -> bool:
    return all(one.p_fail is not None for one in result.findings if one.status == "FAIL")


def _waived(result: Result, rule: Rule, waivers: Sequence[Waiver], today: date) -> Result:
    for waiver in waivers:
        if waiver.rule != rule.asked:
            continue
        said = f"by {waiver.owner} until {waiver.expires.isoformat()}: {waiver.reason}"
        if waiver.expires < today:
            return replace(result, status="FAIL", reason=f"a waiver has expired ({said}); renew it or take it out")
        if result.status in ("FAIL", "INCONCLUSIVE"):
            return replace(result, waived=said)
    return result


def _colour(result: Result, rule: Rule) -> Colour:
    if result.status == "PASS":
        return "green"
    if not result.blocks or (result.status == "INCONCLUSIVE" and rule.warn_inconclusive):
        return "yellow"
    return "red"


def _job(results: Sequence[Result], status: str) -> Colour:
    colours = {one.job for one in results}
    if status in ("FAIL", "ERROR") or "red" in colours:
        return "red"
    if status == "INCONCLUSIVE" and not any(one.blocks and one.status == "INCONCLUSIVE" for one in results):
        return "red"  # nothing was left to judge: everything is waived
    return "yellow" if "yellow" in colours else "green"


def _stale(policy: Policy, candidate: Source, today: date) -> str:
    if policy.max_age_days is None:
        return ""
    ended = finished(candidate)
    if ended is None:
        return f"{candidate.name} does not say when it was measured; the policy takes {policy.max_age_days} days"
    age = (today - ended).days
    if not 0 <= age <= policy.max_age_days:
        return f"{candidate.name} was measured {age} days ago; the policy takes 0 to {policy.max_age_days}"
    return ""


def finished(source: Source) -> date | None:
    """The day on which a run was measured; None where it does not say."""
    try:
        return datetime.fromisoformat(str(source.run.session.get("finished"))).date()
    except ValueError:
        return None


def described(source: Source) -> dict[str, Any]:
    """What a verdict says about a run: its digest, and everything that decides what it may be compared with."""
    return {"name": source.name, "digest": source.digest, **{key: sorted(found) for key, found in _about(source)}}


def _about(source: Source) -> Iterator[tuple[str, set[str]]]:
    specs = [cell.closing.spec for cell in source.run.cells.values()]
    yield "suites", {f"{spec.get('suite')} {spec.get('version')}" for spec in specs}
    yield "models", {str(part(spec, "model").get("digest") or part(spec, "model").get("arch") or "") for spec in specs}
    yield "data", {str(part(spec, "data").get("digest", "")) for spec in specs}
    yield "devices", {str(spec.get("device", "")) for spec in specs}
