"""What a suite asks of models that are loaded: passages, calibration, kernels, sensitivity, tasks, optimizers."""

import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from qbench.data.catalog import CALIBRATING, ONLY_CALIBRATING, located, split
from qbench.names import UnknownName, pick
from qbench.quant.kernels import KERNELS
from qbench.suite import quantizers
from qbench.suite.findings import Findings, Path
from qbench.suite.form import SuiteForm, settings
from qbench.suite.grid import loads
from qbench.suite.loaded import FromSuite
from qbench.suite.value import CalibrationData, Evaluate, Sensitivity, Tasks
from qbench.train.catalog import OPTIMIZERS

ONLY_LOADED = ("calibration", "kernels", "sensitivity", "eval", "optimizers")
ONLY_PASSAGES = ("context", "stride", "bos", "look")
ONLY_TRAINED = ("seeds", "spec", "training")
WHOLE = "is for models that are trained here; loaded ones are judged on whole texts"


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """The parts of a suite that only a model from elsewhere has, and what it is judged on."""

    evaluate: Evaluate
    calibration: CalibrationData | None
    kernels: tuple[str, ...]
    sensitivity: tuple[Sensitivity, ...]
    tasks: Tasks | None
    optimizers: tuple[str, ...]


def asked(form: SuiteForm, findings: Findings, absolute: FromSuite, loading: bool) -> Asked:
    """These parts, checked; `loading` says whether the suite's models are loaded."""
    if not loading and form.models:
        _refuse(form, findings)
    elif form.models and all(map(loads, form.models)):
        _refuse_trained(form, findings)
    if form.calibration is None:
        _refuse_static(form, findings)
    asks = form.evaluate
    if asks.context and asks.stride and asks.stride > asks.context:
        findings.add(("evaluate", "stride"), f"found {asks.stride}; at most the context of {asks.context}")
    if asks.look > len(asks.windows):
        findings.add(("evaluate", "look"), f"found {asks.look}; {len(asks.windows)} numbers of windows are planned")
    return Asked(
        evaluate=Evaluate(
            windows=asks.windows[0] if not loading or _judged(form) else 0,
            looks=asks.windows if len(asks.windows) > 1 else (),
            look=asks.look,
            split="all" if loading else asks.split,
            context=asks.context or 0,
            stride=asks.stride or 0,
            bos=asks.bos,
        ),
        calibration=_calibration(form, findings, absolute),
        kernels=_known(form.kernels, lambda name: pick(KERNELS, name, "kernel"), findings, "kernels"),
        sensitivity=_sensitivity(form, findings),
        tasks=_tasks(form, findings, absolute),
        optimizers=_known(form.optimizers, lambda name: pick(OPTIMIZERS, name, "optimizer"), findings, "optimizers"),
    )


def _judged(form: SuiteForm) -> bool:
    """Whether anything runs the model on data; weights are read from its files."""
    given = ("evaluate", "treatments", "kernels", "sensitivity", "eval", "optimizers")
    return any(key in form.model_fields_set for key in given) or any(t.kind != "weight" for t in form.tensors)


def data(name: str, path: Path, findings: Findings, absolute: FromSuite) -> str:
    """The name of the data at `path` of the file, with an absolute path where it has one."""
    try:
        split(name)
    except UnknownName as error:
        exists = name and os.path.exists(absolute(name, path))
        findings.add(path, f"{error}; write text:{name} for that path" if exists else str(error))
        return name

    def there(inside: str) -> str:
        found = absolute(inside, path)
        if not os.path.exists(found):
            findings.add(path, f"no file or folder {inside!r}; a path starts from the folder of the suite")
        return found

    return located(name, there)


def _refuse(form: SuiteForm, findings: Findings) -> None:
    """What only models from elsewhere have, or read."""
    for key in ONLY_LOADED:
        if getattr(form, key):
            findings.add((key,), "is measured of models that are loaded (load: FOLDER), not of trained ones", key=True)
    for i in (i for i, entry in enumerate(form.tensors) if entry.outliers):
        findings.add(("tensors", i, "outliers"), "is measured of models that are loaded (load: FOLDER)", key=True)
    if form.data == CALIBRATING:
        findings.add(("data",), f"{CALIBRATING} {ONLY_CALIBRATING}")
    if len(form.evaluate.windows) > 1:
        findings.add(("evaluate", "windows"), "several looks are for models that are loaded; seeds are the sample here")
    for key in (key for key in settings(form.evaluate) if key in ONLY_PASSAGES):
        findings.add(("evaluate", key), "is for models that are loaded; trained ones have spec.context", key=True)


def _refuse_trained(form: SuiteForm, findings: Findings) -> None:
    """What says how models are made, or which split of a text is read, has no say about models that are there."""
    for key in ONLY_TRAINED:
        if key in form.model_fields_set and not (key == "seeds" and form.stacks):
            findings.add((key,), "is for models that are trained here, and all of this suite are loaded", key=True)
    if "split" in form.evaluate.model_fields_set:
        findings.add(("evaluate", "split"), WHOLE, key=True)
    for i, entry in enumerate(form.tensors):
        if entry.split is not None and entry.kind != "weight":  # of weights it is a mistake whatever the models
            findings.add(("tensors", i, "split"), WHOLE, key=True)


def _refuse_static(form: SuiteForm, findings: Findings) -> None:
    """A fixed scale comes from calibration data; the parts of the suite that name one are found by their spelling."""
    lists = [(("tensors", i, "quantizers"), entry.quantizers) for i, entry in enumerate(form.tensors)]
    lists += [(("treatments", i, "quantizers"), entry.quantizers) for i, entry in enumerate(form.treatments)]
    named = [((*path, j), one.name or "") for path, many in lists for j, one in enumerate(many)]
    named += [(("treatments", i, "assign", k), v) for i, e in enumerate(form.treatments) for k, v in e.assign.items()]
    for path, name in named:
        if "+static" in name:
            findings.add(path, "a static scale comes from data; give the suite calibration: {data: text:FILE}")


def _known(names: Iterable[str], find: Callable[[str], object], findings: Findings, key: str) -> tuple[str, ...]:
    found: list[str] = []
    for i, name in enumerate(names):
        try:
            find(name)
            found.append(name)
        except UnknownName as error:
            findings.add((key, i), str(error))
    return tuple(found)


def _calibration(form: SuiteForm, findings: Findings, absolute: FromSuite) -> CalibrationData | None:
    if form.calibration is None:
        return None
    name = data(form.calibration.data, ("calibration", "data"), findings, absolute)
    return CalibrationData(data=name, windows=form.calibration.windows, overlap=form.calibration.overlap)


def _sensitivity(form: SuiteForm, findings: Findings) -> tuple[Sensitivity, ...]:
    made: list[Sensitivity] = []
    for i, entry in enumerate(form.sensitivity):
        names = {
            part: quantizers.name(getattr(entry, part), findings, ("sensitivity", i, part))
            for part in ("weights", "inputs")
            if getattr(entry, part)
        }
        one = Sensitivity(**names, top=entry.top or 0)
        if one in made:
            findings.add(("sensitivity", i), "measured a second time")
        made.append(one)
    return tuple(made)


def _tasks(form: SuiteForm, findings: Findings, absolute: FromSuite) -> Tasks | None:
    if form.eval is None:
        return None
    include = form.eval.include or ""
    if include:
        include = absolute(form.eval.include or "", ("eval", "include"))
        if not os.path.isdir(include):
            findings.add(("eval", "include"), f"no folder {form.eval.include!r} of task files")
    return Tasks(lm_eval=form.eval.lm_eval, include=include, limit=form.eval.limit or 0)
