"""What a suite asks about flow, checked against its arms: noise, additions, errors block by block, random stacks."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from math import prod
from typing import Any

from qbench.evaluate.stack import Stack
from qbench.names import suggestion
from qbench.suite.findings import Findings, Path
from qbench.suite.form import FlowEntry, NoiseEntry, StackEntry, SuiteForm
from qbench.suite.measured import Sites, treatments_of
from qbench.suite.value import CALIBRATION, Arm, Flow, Noise, StackArm

# What is measured of models, and of nothing else.
OF_MODELS = (
    *("tensors", "treatments", "noise", "adds", "flow"),
    *("calibration", "kernels", "sensitivity", "eval", "optimizers"),
)
_AXES = ("wiring", "branch", "input", "ratio", "width", "depth", "rows")
_PLACEHOLDER = re.compile(r"\{([^{}]*)\}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Flows:
    """The parts of a suite that are about flow, as `value.Suite` has them."""

    noise: tuple[Noise, ...] = ()
    adds: int = 0
    flow: tuple[Flow, ...] = ()
    stacks: tuple[StackArm, ...] = ()


def asked(form: SuiteForm, sites: Sites, arms: Sequence[Arm]) -> Flows:
    """These parts, checked."""
    return Flows(
        noise=_noise(form.noise, sites),
        adds=form.adds.windows if form.adds else 0,
        flow=_flow(form.flow, sites),
        stacks=_arms(form, sites.findings, arms),
    )


def _noise(entries: Sequence[NoiseEntry], sites: Sites) -> tuple[Noise, ...]:
    """The noise entries of a file; a scope or pattern that selects nothing, or an entry again, is a mistake."""
    made: list[Noise] = []
    for i, entry in enumerate(entries):
        for key in ("scopes", "sites"):
            for j, pattern in enumerate(getattr(entry, key)):
                sites.select(pattern, "activation", ("noise", i, key, j))
        one = Noise(
            scopes=entry.scopes, sites=entry.sites, snr_db=entry.snr_db, pairs=entry.pairs, windows=entry.windows
        )
        if one in made:
            sites.findings.add(("noise", i), "measured a second time")
        made.append(one)
    return tuple(made)


def _flow(entries: Sequence[FlowEntry], sites: Sites) -> tuple[Flow, ...]:
    """The treatments whose errors are followed; the same one twice is a mistake."""
    made: dict[str, Flow] = {}
    for i, entry in enumerate(entries):
        for treatment in treatments_of(entry, sites, ("flow", i)):
            if treatment.name in made:
                sites.findings.add(("flow", i), f"a second treatment {treatment.name!r}")
            made[treatment.name] = Flow(treatment=treatment, windows=entry.windows)
    return tuple(made.values())


def count_stacks(form: SuiteForm) -> int:
    """Runs of stacks, without making them."""
    return sum(
        prod(len(getattr(entry, axis)) for axis in _AXES) * len(entry.seeds or form.seeds) for entry in form.stacks
    )


def _arms(form: SuiteForm, findings: Findings, arms: Sequence[Arm]) -> tuple[StackArm, ...]:
    """The stacks of a file, in its order; each has a name that nothing else in the suite has."""
    if form.stacks and not form.models:
        for key in OF_MODELS:
            if getattr(form, key):
                findings.add((key,), "is measured of models, and this suite has stacks alone", key=True)
    taken = {CALIBRATION, *(arm.name for arm in arms)}
    made: list[StackArm] = []
    for i, entry in enumerate(form.stacks):
        for one in _stacks(entry, form, findings, ("stacks", i)):
            if one.name in taken:
                hint = ", with the keys of its grid in braces" if _several(entry) else ""
                text = f"a second arm {one.name!r}; each needs a name of its own{hint}"
                findings.add(("stacks", i, "name"), text)
            taken.add(one.name)
            made.append(one)
    return tuple(made)


def _stacks(entry: StackEntry, form: SuiteForm, findings: Findings, path: Path) -> Iterator[StackArm]:
    known = _placeholders(entry, findings, path)
    for values in product(*(getattr(entry, axis) for axis in _AXES)) if known else ():
        setting: dict[str, Any] = dict(zip(_AXES, values, strict=True))
        spelled = {axis: f"{value:g}" if isinstance(value, float) else str(value) for axis, value in setting.items()}
        name = _PLACEHOLDER.sub(lambda found, spelled=spelled: spelled[found[1]], entry.name)
        try:
            yield StackArm(name=name, stack=Stack(**setting), seeds=entry.seeds or form.seeds)
        except ValueError as error:
            findings.add((*path, "branch"), str(error))
            return


def _placeholders(entry: StackEntry, findings: Findings, path: Path) -> bool:
    """Whether everything in braces in the name is an axis."""
    wrong = [name for name in _PLACEHOLDER.findall(entry.name) if name not in _AXES]
    for name in wrong:
        findings.add((*path, "name"), f"nothing called {name!r}{suggestion(name, _AXES)} known: {', '.join(_AXES)}")
    return not wrong


def _several(entry: StackEntry) -> bool:
    return any(len(getattr(entry, axis)) > 1 for axis in _AXES)
