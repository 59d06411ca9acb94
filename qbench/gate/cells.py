"""Which cells of a run a rule is about, and whether they may be judged at all."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from qbench.gate.looks import Problem, in_order, question
from qbench.gate.policy import Policy, Rule
from qbench.gate.source import JUDGED, Source
from qbench.results.record import Attempt, Closing
from qbench.results.run import arm, part

FEWEST_SEEDS = 3  # what models that the suite trained are judged from at least


@dataclass(frozen=True, slots=True)
class Group:
    """One question about one model, answered with every seed that the model has, look by look."""

    label: str
    by_seed: Mapping[Any, tuple[Attempt, ...]]

    @property
    def cells(self) -> list[Attempt]:
        return [cell for looks in self.by_seed.values() for cell in looks]


def chosen(rule: Rule, policy: Policy, source: Source) -> list[Group]:
    """The cells a rule is about, by question. Raises Problem where there are none, or where one cannot be trusted."""
    if source.asked is None:
        text = f"{source.name} does not say which cells were asked for: its manifest.json is gone or damaged"
        raise Problem(text, missing=True)
    cells = about(rule, source)
    if not cells:
        raise Problem(f"no cell of {source.name} is about {_sought(rule)}{_unfinished(source)}", missing=True)
    for cell in cells:
        _refuse(policy, cell.closing)
    groups = [_group(rule, several, source) for several in _by_question(cells)]
    if source.gone:
        raise Problem(f"{source.name} is not finished{_unfinished(source)}", missing=True)
    return groups


def about(rule: Rule, source: Source) -> list[Attempt]:
    """The cells of a run that a rule is about, whatever became of them."""
    return [cell for cell in source.run.cells.values() if _about(rule, cell.closing)]


def needed(policy: Policy, closing: Closing) -> bool:
    """Whether a cell has to be measured for a policy: one that a rule is about, or what it is compared with."""
    plain = part(closing.spec, "measurement").get("what") == "loss" and not changed(closing.spec)
    return plain or any(_about(rule, closing) for rule in policy.rules)


def treatment(spec: Mapping[str, Any]) -> Mapping[str, Any]:
    return part(spec, "measurement", "treatment")


def assigned(spec: Mapping[str, Any]) -> Mapping[str, Any]:
    """What is quantized in a cell, and with what."""
    return part(spec, "measurement", "treatment", "assign")


def changed(spec: Mapping[str, Any]) -> bool:
    """Whether a cell is about a quantized model, and not the model that it is compared with."""
    what = part(spec, "measurement").get("what")
    return bool(assigned(spec)) or what == "kernel" or bool(part(spec, "model").get("reference_model_digest"))


def title(spec: Mapping[str, Any]) -> str:
    """What a cell says of its model, in words: the treatment, kernel or task."""
    asked = part(spec, "measurement")
    name = treatment(spec).get("name") or part(asked, "options").get("name") or asked.get("what", "")
    return f"{arm(spec)}: {name}"


def _about(rule: Rule, closing: Closing) -> bool:
    spec = closing.spec
    what = part(spec, "measurement").get("what")
    if what not in JUDGED or (rule.arm and arm(spec) != rule.arm):
        return False
    name = treatment(spec).get("name") or part(spec, "measurement", "options").get("name")
    if rule.format and name != rule.format:
        return False
    if rule.scope and treatment(spec).get("scope") != rule.scope:
        return False
    if rule.quantizer and set(map(str, assigned(spec).values())) != {rule.quantizer}:
        return False
    if rule.format or rule.scope or rule.quantizer:
        return True
    return _by_default(rule, spec, str(what))


def _by_default(rule: Rule, spec: Mapping[str, Any], what: str) -> bool:
    """What a rule without selectors is about: every changed model, and against another run every loss there is."""
    if rule.against == "unquantized" or rule.exact:
        return what == "loss" and changed(spec)
    return what == "loss" or (what == "task" and rule.metric == "error_rate")


def _refuse(policy: Policy, closing: Closing) -> None:
    spec, what = closing.spec, title(closing.spec)
    if closing.status != "measured":
        raise Problem(f"{what} {closing.status}{f' ({closing.error[:200]})' if closing.error else ''}", missing=True)
    if (spec.get("suite"), spec.get("version")) != (policy.suite, policy.suite_version):
        raise Problem(
            f"{what} was measured by suite {spec.get('suite')} version {spec.get('version')}; "
            f"the policy asks for {policy.suite} version {policy.suite_version}"
        )
    device = str(spec.get("device", ""))
    if not any(fnmatchcase(device, pattern) for pattern in policy.device):
        raise Problem(f"{what} was measured on {device or 'nothing'}; the policy asks for {', '.join(policy.device)}")
    data = part(spec, "data").get("digest")
    if not data or (policy.data and data != policy.data):
        raise Problem(
            f"{what} was measured on data {str(data)[:16]}; the policy asks for {(policy.data or 'some')[:16]}"
        )


def _by_question(cells: Sequence[Attempt]) -> list[list[Attempt]]:
    found: dict[tuple[str, str], list[Attempt]] = {}
    for cell in cells:
        found.setdefault((arm(cell.closing.spec), question(cell.closing)), []).append(cell)
    return list(found.values())


def _group(rule: Rule, cells: Sequence[Attempt], source: Source) -> Group:
    spec = cells[0].closing.spec
    name = title(spec)
    by_seed: dict[Any, list[Attempt]] = {}
    for cell in cells:
        seed = cell.closing.spec.get("seed")
        if not isinstance(seed, int | None):
            raise Problem(f"{name}: the seed {str(seed)[:40]!r} is no number")
        if part(cell.closing.spec, "model") != part(spec, "model"):
            raise Problem(f"{name}: its seeds are not of one model")
        by_seed.setdefault(seed, []).append(cell)
    others = {
        str(cell.closing.spec.get("seed")) for cell in source.run.cells.values() if arm(cell.closing.spec) == arm(spec)
    }
    gone = others - {str(seed) for seed in by_seed}
    if gone:
        raise Problem(f"{name}: seed {', '.join(sorted(gone))[:80]} is missing", missing=True)
    _enough(rule, spec, len(by_seed))
    return Group(name, {seed: in_order(several, name) for seed, several in by_seed.items()})


def _enough(rule: Rule, spec: Mapping[str, Any], seeds: int) -> None:
    """Neither too few seeds nor more than were fixed; a model that was loaded, and what is counted, need only one."""
    name, fixed = title(spec), max(rule.seeds or 0, FEWEST_SEEDS)
    trained = bool(spec.get("training")) and not rule.exact
    fewest = fixed if trained else rule.seeds or 1
    if seeds < fewest:
        why = "a model that the suite trained takes" if trained and fewest != rule.seeds else "the rule asks for"
        raise Problem(f"{name}: {seeds} seeds, {why} {fewest}", missing=True)
    if seeds > fixed:
        # Who adds seeds until it passes has looked more often than alpha allows: one bad model in ten passes so.
        raise Problem(f"{name}: {seeds} seeds, the rule fixes {fixed}; write seeds: {seeds} into it")


def _sought(rule: Rule) -> str:
    parts = {"arm": rule.arm, "format": rule.format, "quantizer": rule.quantizer, "scope": rule.scope}
    return ", ".join(f"{name} {value!r}" for name, value in parts.items() if value) or f"the {rule.metric} of a model"


def _unfinished(source: Source) -> str:
    if not source.gone:
        return ""
    return f": {source.gone} cells that were asked for are missing; the same qbench run command again measures them"
