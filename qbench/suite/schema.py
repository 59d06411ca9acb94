"""The suite file, read into a value; every mistake in it named with its line."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path

from qbench.suite import deployed, effects, fitting, flows, grid, measured, overlay, quantizers
from qbench.suite.document import LARGEST_FILE, Node, parse
from qbench.suite.explain import checked
from qbench.suite.findings import Findings, child
from qbench.suite.findings import Path as Place
from qbench.suite.form import MOST_PROFILES, SuiteForm, TreatmentEntry
from qbench.suite.mistakes import BadSuite, Mark, Mistake
from qbench.suite.shipped import find
from qbench.suite.value import Budget, Suite

__all__ = ["BadSuite", "Suite", "load"]

Override = tuple[str, str]


@dataclass(frozen=True, slots=True)
class _File:
    """A file as it was read, and what the command line lays over it."""

    path: Path
    text: str
    profile: str = ""
    overrides: tuple[Override, ...] = ()


def load(suite: str | Path, overrides: Sequence[Override] = (), profile: str | None = None) -> Suite:
    """Read and check a suite, given by path or by the name of a shipped one.

    `profile` names one of the file's own; `overrides` are (dotted key or parameter, YAML value) and go last. The file
    must be right as it stands and with each of its profiles, not only as asked for.

    Raises:
        BadSuite: all mistakes, each with its place.
    """
    path = find(suite)
    file = _File(path, _read(path), profile or "", tuple(overrides))
    tree, mistakes = parse(file.text, str(path))
    if tree is not None and not isinstance(tree.value, dict):
        mistakes.append(Mistake(tree.mark, "", "a suite is a mapping of keys to values"))
    if tree is None or not isinstance(tree.value, dict):
        raise BadSuite(mistakes)
    unreadable = frozenset(mistake.mark for mistake in mistakes)
    made, found = _variant(tree, file, unreadable)
    mistakes += found
    needed = _fills(tree, file.overrides)
    for name in ["", *_profiles(tree)]:
        if name != file.profile or file.overrides != needed:
            _, found = _variant(tree, _File(path, file.text, name, needed), unreadable)
            mistakes += _new(found, mistakes, name)
    if made is None or mistakes:
        raise BadSuite(mistakes)
    return made


def _read(path: Path) -> str:
    try:
        with path.open("rb") as file:
            content = file.read(LARGEST_FILE + 1)
    except OSError as error:
        raise BadSuite([Mistake(Mark(str(path)), "", error.strerror or str(error))]) from error
    if len(content) > LARGEST_FILE:
        raise BadSuite([Mistake(Mark(str(path)), "", f"more than {LARGEST_FILE} bytes; that is no suite")])
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        before = error.object[: error.start]
        mark = Mark(str(path), before.count(b"\n") + 1, error.start - before.rfind(b"\n"))
        raise BadSuite([Mistake(mark, "", f"byte 0x{error.object[error.start]:02x} is not UTF-8")]) from None


def _profiles(tree: Node) -> list[str]:
    """Names of the profiles to lay over the file; none where there are too many, which the form reports."""
    names = list(overlay.keys(child(tree, "profiles")))
    return names if len(names) <= MOST_PROFILES else []


def _fills(tree: Node, overrides: Sequence[Override]) -> tuple[Override, ...]:
    """The overrides that the file cannot do without: of parameters that hold nothing."""
    empty = {key for key, node in overlay.keys(child(tree, "params")).items() if node.value is None}
    return tuple(option for option in overrides if option[0].removeprefix("params.") in empty)


def _new(found: Sequence[Mistake], known: Sequence[Mistake], profile: str) -> list[Mistake]:
    note = f" (with profile {profile})" if profile else " (as the file stands)"
    return [Mistake(m.mark, m.path, m.text + note) for m in found if m not in set(known)]


def _variant(tree: Node, file: _File, unreadable: frozenset[Mark]) -> tuple[Suite | None, list[Mistake]]:
    """The suite with a profile and overrides laid over it, and the mistakes in that."""
    mistakes: list[Mistake] = []
    if file.profile:
        tree, found = overlay.with_profile(tree, file.profile)
        mistakes += found
    known = [key for key in SuiteForm.model_fields if key != "profiles"]
    for option in file.overrides:
        tree, found = overlay.with_override(tree, option, known)
        mistakes += found
    tree, found = overlay.substituted(tree)
    mistakes += found
    findings = Findings(tree, unreadable | {mistake.mark for mistake in mistakes}, mistakes)
    return _suite(findings, file), findings.mistakes


def _suite(findings: Findings, file: _File) -> Suite | None:
    """The suite, complete only where there are no mistakes; None where it is too large to be made."""
    form, bad = checked(findings)
    if _too_large(form, findings):
        return None
    counts = [findings.noted]
    arms = grid.arms(form, findings, partial(_from_suite, findings=findings, file=file))
    counts.append(findings.noted)
    sites = measured.Sites(measured.one_of_each(arms), findings)
    tensors = measured.tensors(form.tensors, sites)
    counts.append(findings.noted)
    treatments = measured.treatments(form.treatments, sites)
    counts.append(findings.noted)
    about_flow = flows.asked(form, sites, arms)
    counts.append(findings.noted)
    grown = (low < high for low, high in pairwise(counts))
    unsure = bad | {key for key, more in zip(("models", "tensors", "treatments", "flow"), grown, strict=True) if more}
    names = [arm.name for arm in arms], [treatment.name for treatment in treatments]
    fitting.check(form.data, arms, findings)
    loading = any(map(grid.loads, form.models))
    asked = deployed.asked(form, findings, partial(_from_suite, findings=findings, file=file), loading)
    return Suite(
        name=form.suite,
        version=form.version,
        question=form.question,
        note=form.note,
        params=form.params,
        data=deployed.data(form.data, ("data",), findings, partial(_from_suite, findings=findings, file=file)),
        arms=arms,
        tensors=tensors,
        evaluate=asked.evaluate,
        treatments=treatments,
        calibration=asked.calibration,
        kernels=asked.kernels,
        sensitivity=asked.sensitivity,
        tasks=asked.tasks,
        optimizers=asked.optimizers,
        budget=Budget(cells=form.budget.cells, cpu_seconds=form.budget.cpu_seconds),
        effects=effects.Effects(*names, tensors, about_flow, sites, unsure).read(form.effects),
        path=file.path.name,
        text=file.text,
        profile=file.profile,
        overrides=file.overrides,
        noise=about_flow.noise,
        adds=about_flow.adds,
        flow=about_flow.flow,
        stacks=about_flow.stacks,
    )


def _too_large(form: SuiteForm, findings: Findings) -> bool:
    """Whether the grids, before any `exclude`, make more cells than allowed; counted, so that nothing is made first."""
    models = sum(grid.count(entry) * len(entry.seeds or form.seeds) for entry in form.models)
    errors = sum(1 + quantizers.count(entry.quantizers) for entry in form.tensors)
    trials = sum(grid.count(entry) * len(entry.rates) for entry in form.models)
    treatments = sum(map(_count_treatments, (*form.treatments, *form.flow)))
    cells = trials + max(models, 1) * (2 + errors + treatments + len(form.noise)) + flows.count_stacks(form)
    if cells <= form.budget.cells:
        return False
    text = f"the grids make {cells:,} cells of {models:,} trained models; budget.cells allows {form.budget.cells:,}"
    findings.add(("budget", "cells"), text)
    return True


def _count_treatments(entry: TreatmentEntry) -> int:
    return len(entry.scope) * quantizers.count(entry.quantizers) if entry.name is None else 1


def _from_suite(path: str, key: Place, findings: Findings, file: _File) -> str:
    """`path`, which stands at `key`, made absolute: one in the file starts from the file, one in --set from here."""
    mark, _ = findings.place(key)
    return os.path.abspath(os.path.join("." if mark.line == 0 else file.path.parent, os.path.expanduser(path)))
