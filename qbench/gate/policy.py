"""A policy file, read into a value; every mistake in it named with its line."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path

from pydantic import ValidationError

from qbench.gate.form import REQUIRED, Against, BaselineForm, MarginForm, PolicyForm, RuleForm, Tier, WaiverForm
from qbench.gate.metrics import DIVERGENCES, EXACT, objection
from qbench.names import suggestion
from qbench.results import digest
from qbench.suite.document import LARGEST_FILE, parse
from qbench.suite.explain import note
from qbench.suite.findings import Findings
from qbench.suite.mistakes import ENOUGH, BadSuite, Mark, Mistake
from qbench.suite.shipped import folder as suites


class BadPolicy(BadSuite):
    """A policy cannot be used as written; its text is one mistake a line."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """One promise: this cost, of these cells, against one reference, grows by less than the margin.

    `margin` is in the metric's unit, or with `relative` a share of the reference's mean; `at_most` is a ceiling
    instead. `asked` is its name in the file, which one rule against several references shares.
    Selectors that are empty select everything; no `seeds` are as many as there should be of the model that is judged.
    """

    name: str
    asked: str
    metric: str
    against: Against
    alpha: float
    arm: str = ""
    scope: str = ""
    quantizer: str = ""
    format: str = ""
    margin: float | None = None
    relative: bool = False
    at_most: float | None = None
    minimum_n: int | None = None
    seeds: int | None = None
    worst_slice: bool = False
    tier: Tier = "block"
    missing_fails: bool = False
    warn_inconclusive: bool = False

    @property
    def exact(self) -> bool:
        return self.metric in EXACT


@dataclass(frozen=True, slots=True)
class Waiver:
    """Somebody takes responsibility for a rule that does not pass, until a day."""

    rule: str
    owner: str
    reason: str
    expires: date


@dataclass(frozen=True, slots=True)
class Lock:
    """Where a policy keeps an accepted baseline: a lock file, or the digest of its records."""

    path: Path | None
    digest: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """`windows` are the numbers of windows at which a verdict is allowed, fixed before looking; `digest` is the file's.

    `suite` and `version` say what must have been measured, `device` patterns of where, `data` on what.
    """

    name: str
    version: int
    note: str
    provisional: bool
    suite: str
    suite_version: int
    device: tuple[str, ...]
    data: str | None
    max_age_days: int | None
    windows: tuple[int, ...]
    rules: tuple[Rule, ...]
    waivers: tuple[Waiver, ...]
    previous: Lock | None
    anchor: Lock | None
    digest: str
    path: Path

    def needs(self, reference: Against) -> bool:
        return any(rule.against == reference for rule in self.rules)


def load(policy: str | Path) -> Policy:
    """Read and check a policy, given by path or by the name of a shipped one. Raises BadPolicy with all mistakes."""
    path = find(policy)
    text = _read(path)
    tree, mistakes = parse(text, str(path))
    if tree is None or not isinstance(tree.value, dict):
        if tree is not None:
            mistakes.append(Mistake(tree.mark, "", "a policy is a mapping of keys to values"))
        raise BadPolicy(mistakes)
    findings = Findings(tree, frozenset(mistake.mark for mistake in mistakes), mistakes)
    form = _checked(findings)
    if form is None or findings.mistakes:
        raise BadPolicy(findings.mistakes)
    _check(form, findings)
    if findings.mistakes:
        raise BadPolicy(findings.mistakes)
    return _made(form, path, digest.of_bytes(text.encode()))


def shipped() -> dict[str, Path]:
    """The policies that come with qbench, by name."""
    return {path.stem: path for path in sorted((suites() / "policies").glob("*.yaml"))}


def find(policy: str | Path) -> Path:
    """The file of a policy; BadPolicy where there is none."""
    path, names = Path(policy), shipped()
    try:
        if path.is_file():
            return path
    except (OSError, ValueError):  # a name that no file can have
        pass
    if str(policy) in names:
        return names[str(policy)]
    text = (
        f"no such file, and no shipped policy of that name{suggestion(str(policy), names)} shipped: {', '.join(names)}"
    )
    raise BadPolicy([Mistake(Mark(str(policy)), "", text)])


def _read(path: Path) -> str:
    try:
        with path.open("rb") as file:
            content = file.read(LARGEST_FILE + 1)
        if len(content) > LARGEST_FILE:
            raise BadPolicy([Mistake(Mark(str(path)), "", f"more than {LARGEST_FILE} bytes; that is no policy")])
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        text = f"byte 0x{error.object[error.start]:02x} is not UTF-8"
        raise BadPolicy([Mistake(Mark(str(path)), "", text)]) from None
    except OSError as error:
        raise BadPolicy([Mistake(Mark(str(path)), "", error.strerror or str(error))]) from error


def _checked(findings: Findings) -> PolicyForm | None:
    raw = findings.root.plain()
    for key in REQUIRED:
        if key not in raw:
            findings.add((), f"{key} is missing; a policy has at least {', '.join(REQUIRED)}")
    try:
        return PolicyForm.model_validate(raw)
    except ValidationError as error:
        for fault in error.errors(include_url=False)[:ENOUGH]:
            note(findings, (), PolicyForm, fault)
    return None


def _check(form: PolicyForm, findings: Findings) -> None:
    """What the form alone cannot say."""
    for i, rule in enumerate(form.rules):
        for key, text in _of_rule(rule, form.against):
            findings.add(("rules", i, key), text)
    names = [rule_name(rule) for rule in form.rules]
    for i, name in enumerate(names):
        if name in names[:i]:
            findings.add(("rules", i), f"a second rule called {name!r}; give one of them another name")
    for i, waiver in enumerate(form.waivers):
        if waiver.rule not in names:
            text = f"no rule {waiver.rule!r}{suggestion(waiver.rule, names)} known: {', '.join(names)}"
            findings.add(("waivers", i, "rule"), text)
    if all(rule.tier == "warn" for rule in form.rules):
        findings.add(("rules",), "every rule only warns; a verdict needs at least one of tier: block")


def _of_rule(rule: RuleForm, against: Sequence[Against]) -> list[tuple[str, str]]:
    """Mistakes of one rule, each with its key."""
    if text := objection(rule.metric):
        return [("metric", text)]
    if (rule.margin is None) == (rule.at_most is None):
        return [("margin", "a rule has either a margin or at_most")]
    if rule.at_most is not None:
        exact = f"{rule.metric} is sampled: at_most would ignore how far it may be off; give a margin"
        return [] if rule.metric in EXACT else [("at_most", exact)]
    margin = rule.margin
    assert margin is not None
    if (margin.absolute is None) == (margin.relative is None):
        return [("margin", "a margin is absolute or relative")]
    return list(_of_margin(rule, margin, against))


def _of_margin(rule: RuleForm, margin: MarginForm, against: Sequence[Against]) -> Iterator[tuple[str, str]]:
    if margin.relative is not None and rule.metric in DIVERGENCES:
        yield "margin", f"{rule.metric} stands beside the unquantized model, whose own is 0; give an absolute margin"
    if rule.metric not in EXACT:
        if not (margin.absolute or margin.relative):
            yield "margin", "no amount of data shows that a cost grew by less than 0; give a margin above 0"
        return
    if "unquantized" in (rule.against or against):
        yield "margin", f"{rule.metric} against unquantized says little; give at_most, or against: previous"
    if rule.worst_slice:
        yield "worst_slice", f"{rule.metric} is counted, not sampled; it has no slices"


def rule_name(rule: RuleForm) -> str:
    """Its own, or one made from what it gates."""
    what = " ".join(part for part in (rule.arm, rule.format, rule.quantizer) if part)
    made = f"{rule.metric}{f' of {what}' if what else ''}{f' @ {rule.scope}' if rule.scope else ''}"
    return rule.name or made + (" in the worst slice" if rule.worst_slice else "")


def _made(form: PolicyForm, path: Path, of_file: str) -> Policy:
    return Policy(
        name=form.policy,
        version=form.version,
        note=form.note,
        provisional=form.provisional,
        suite=form.suite.name,
        suite_version=form.suite.version,
        device=form.device,
        data=form.data,
        max_age_days=form.max_age_days,
        windows=form.windows,
        rules=tuple(one for rule in form.rules for one in _rules(rule, form)),
        waivers=tuple(map(_waiver, form.waivers)),
        previous=_lock(form.baselines.previous, path),
        anchor=_lock(form.baselines.anchor, path),
        digest=of_file,
        path=path,
    )


def _rules(rule: RuleForm, form: PolicyForm) -> Sequence[Rule]:
    """One rule for each reference; a ceiling has none to be compared with."""
    margin = rule.margin
    given = dict.fromkeys(rule.against or form.against)
    references: list[Against] = list(given) if rule.at_most is None else ["unquantized"]
    return [
        Rule(
            name=rule_name(rule) if len(references) == 1 else f"{rule_name(rule)} (against {against})",
            asked=rule_name(rule),
            metric=rule.metric,
            against=against,
            alpha=form.alpha if rule.alpha is None else rule.alpha,
            arm=rule.arm or "",
            scope=rule.scope or "",
            quantizer=rule.quantizer or "",
            format=rule.format or "",
            margin=None if margin is None else margin.absolute if margin.relative is None else margin.relative,
            relative=margin is not None and margin.relative is not None,
            at_most=rule.at_most,
            minimum_n=rule.minimum_n,
            seeds=rule.seeds,
            worst_slice=rule.worst_slice,
            tier=rule.tier,
            missing_fails=rule.on_missing == "fail",
            warn_inconclusive=rule.on_inconclusive == "warn",
        )
        for against in references
    ]


def _waiver(waiver: WaiverForm) -> Waiver:
    return Waiver(waiver.rule, waiver.owner, waiver.reason, date.fromisoformat(waiver.expires))


def _lock(form: BaselineForm | None, path: Path) -> Lock | None:
    if form is None:
        return None
    return Lock(path.parent / form.lock if form.lock else None, form.digest)
