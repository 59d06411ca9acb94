"""Entries of `models`: each is one arm, or with `product`, `zip` or `ablate` a grid of them."""

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import product
from math import prod
from typing import Any, TypeVar, cast

from pydantic import ValidationError

from qbench.capture.sites import of
from qbench.models.catalog import MODELS, model_spec
from qbench.models.spec import ModelSpec
from qbench.names import UnknownName, pick, suggestion
from qbench.suite import inside
from qbench.suite.explain import note
from qbench.suite.findings import Findings, Path
from qbench.suite.form import LOADING, ModelEntry, SpecForm, SuiteForm, TrainingForm, settings
from qbench.suite.loaded import FromSuite, Loaded, check_references
from qbench.suite.value import CALIBRATION, Arm
from qbench.train.spec import TrainingSpec

T = TypeVar("T")
Setting = Mapping[str, Any]  # dotted key -> value
Axes = Mapping[str, tuple[Any, ...]]

FORMS = {"spec": SpecForm, "training": TrainingForm}
KEYS = ("arch", *(f"{part}.{key}" for part, form in FORMS.items() for key in form.model_fields))

RATE = "training.lr"
_PLACEHOLDER = re.compile(r"\{([^{}]*)\}")


def count(entry: ModelEntry) -> int:
    """Arms of an entry, before `exclude`, without making them."""
    rows = max((len(values) for values in entry.zip.values()), default=1)
    grid = prod(len(values) for values in entry.product.values()) * rows
    return grid + sum(len(_many(values)) for values in entry.ablate.values())


def arms(form: SuiteForm, findings: Findings, absolute: FromSuite) -> tuple[Arm, ...]:
    """All arms of a suite in the order of the file; an entry with mistakes gives none.

    `absolute` makes a path that stands in the file absolute.
    """
    made: dict[str, tuple[Arm, Path]] = {}
    for i, entry in enumerate(form.models):
        reader = _Entry(form, entry, findings, ("models", i))
        for arm in reader.loaded(absolute) if loads(entry) else reader.arms():
            if arm.name == CALIBRATION:
                reader.add("name", f"{arm.name!r} is the name of the arm of known tensors")
            if arm.name in made:
                hint = ", with the keys of its grid in braces" if count(entry) > 1 else ""
                reader.add("name", f"a second arm {arm.name!r}; each needs a name of its own{hint}")
            made.setdefault(arm.name, (arm, reader.path))
    found, places = tuple(arm for arm, _ in made.values()), tuple(path for _, path in made.values())
    check_references(found, findings, places)
    _check_rates(found, findings, places)
    if len({loads(entry) for entry in form.models}) > 1:
        findings.add(("models",), "a suite trains all of its models or loads all of them: they are judged differently")
    return found


def _check_rates(arms: tuple[Arm, ...], findings: Findings, places: tuple[Path, ...]) -> None:
    """Each `rate_of` names an arm that chooses its rate."""
    known = [arm.name for arm in arms if arm.rates]
    for arm, path in zip(arms, places, strict=True):
        if arm.rate_of and arm.rate_of not in known:
            text = (
                f"no arm {arm.rate_of!r} with rates{suggestion(arm.rate_of, known)} known: {', '.join(known) or 'none'}"
            )
            findings.add((*path, "rate_of"), text)


def loads(entry: ModelEntry) -> bool:
    """Whether an entry is a model from elsewhere, even where nothing stands after `load`."""
    return "load" in entry.model_fields_set


@dataclass(frozen=True, slots=True)
class _Entry:
    """One entry at `path` of the file `form`, and where its mistakes go."""

    form: SuiteForm
    entry: ModelEntry
    findings: Findings
    path: Path

    def add(self, part: str, text: str, *inner: str | int, key: bool = False) -> None:
        self.findings.add((*self.path, part, *inner), text, key)

    def loaded(self, absolute: FromSuite) -> Iterator[Arm]:
        arm = Loaded(self.entry, self.findings, self.path, absolute).arm()
        if arm is not None:
            yield arm

    def arms(self) -> Iterator[Arm]:
        before = self.findings.noted
        entry = self.entry
        if not entry.name:
            self.findings.add(self.path, "name is missing")
        for key in LOADING:
            if getattr(entry, key) != type(entry).model_fields[key].default:
                self.add(key, "belongs to a model that is loaded; write load: FOLDER", key=True)
        axes = {part: self._axes(part, getattr(entry, part)) for part in ("product", "zip", "ablate")}
        fixed = _dotted(entry) | ({} if entry.arch is None else {"arch": entry.arch})
        self._check_arch(fixed, axes)
        self._check_axes(fixed, axes)
        if self.findings.noted == before:
            yield from self._made_of(fixed, axes)

    def _made_of(self, fixed: Setting, axes: Mapping[str, Axes]) -> Iterator[Arm]:
        """What an entry sets of the model must do something in one of its arms at least."""
        idle: dict[str, set[str]] = {}
        for name, setting in self._settings(fixed, axes):
            if self.findings.enough:
                return
            for arm in self._arm(name, setting):
                if isinstance(arm.model, ModelSpec):
                    for key in setting:
                        idle.setdefault(key, set()).add(arm.model.idle(_last(key)))
                yield arm
        places = {f"spec.{key}": ("spec", key) for key in settings(self.entry.spec)}
        places |= {key: (part, key) for part, axis in axes.items() for key in axis if key.startswith("spec.")}
        for key, (part, inner) in places.items():
            said = idle.get(key, {""})
            if "" not in said:
                self.add(part, min(said), inner, key=True)

    def _axes(self, part: str, grid: Mapping[str, Any]) -> Axes:
        """The values of each key, checked one by one against the form of what they set."""
        checked: dict[str, tuple[Any, ...]] = {}
        for key, values in grid.items():
            if key not in KEYS:
                self.add(part, f"unknown key{_meant(key)} known: {', '.join(KEYS)}", key, key=True)
                continue
            many = _many(values) if part == "ablate" else values
            checked[key] = tuple(self._value(part, key, i, value) for i, value in enumerate(many))
        return checked

    def _value(self, part: str, key: str, i: int, value: Any) -> Any:
        section, _, name = key.partition(".")
        try:
            if section == "arch":
                pick(MODELS, str(value), "model")
                return value
            return getattr(FORMS[section].model_validate({name: value}), name)
        except UnknownName as error:
            self.add(part, str(error), key, i)
        except ValidationError as error:
            for fault in error.errors(include_url=False):
                note(self.findings, (*self.path, part, key, i), FORMS[section], fault)
        return value

    def _check_arch(self, fixed: Setting, axes: Mapping[str, Axes]) -> None:
        if "arch" in fixed:
            try:
                pick(MODELS, fixed["arch"], "model")
            except UnknownName as error:
                self.add("arch", str(error))
        elif not ("arch" in axes["product"] or "arch" in axes["zip"]):
            self.add("arch", f"arch is missing; known: {', '.join(sorted(MODELS))}")

    def _check_axes(self, fixed: Setting, axes: Mapping[str, Axes]) -> None:
        grid = (*axes["product"], *axes["zip"])
        for part in ("product", "zip"):
            for key in axes[part]:
                if key in fixed or grid.count(key) > 1:
                    self.add(part, "set twice; a key has one place in an entry", key, key=True)
        if len({len(values) for values in axes["zip"].values()}) > 1:
            lengths = ", ".join(f"{key} has {len(values)}" for key, values in axes["zip"].items())
            self.add("zip", f"lists of different lengths: {lengths}; they are read side by side")
        if grid and self.entry.ablate:
            self.add("ablate", "changes one base; it does not go with product or zip", key=True)
        self._check_exclude(grid)
        self._check_names([_last(key) for key in (*fixed, *grid)])
        self._check_rates((*fixed, *grid, *axes["ablate"]))

    def _check_names(self, known: list[str]) -> None:
        for part in ("name", "rate_of"):
            for name in _PLACEHOLDER.findall(getattr(self.entry, part)):
                if name not in known:
                    self.add(part, f"nothing called {name!r}{suggestion(name, known)} known: {', '.join(known)}")

    def _check_rates(self, settings: tuple[str, ...]) -> None:
        for part, other in (("rates", "rate_of"), ("rates", RATE), ("rate_of", RATE)):
            if getattr(self.entry, part) and (getattr(self.entry, other, "") or other in settings):
                self.add(part, f"{other} chooses the learning rate of this entry too; keep one of them", key=True)

    def _check_exclude(self, grid: tuple[str, ...]) -> None:
        for i, left_out in enumerate(self.entry.exclude):
            if not left_out:
                self.add("exclude", "names no values, and so would leave out every arm", i)
            for key in left_out:
                if key not in grid:
                    self.add(
                        "exclude", f"not a key of this grid{suggestion(key, grid)} known: {', '.join(grid)}", i, key
                    )

    def _settings(self, fixed: Setting, axes: Mapping[str, Axes]) -> Iterator[tuple[str, Setting]]:
        """Each arm's name and all of its own settings; the first is the base of an ablation."""
        used, kept = set[int](), 0
        for setting in _combinations(axes["product"], axes["zip"]):
            excluding = [i for i, left_out in enumerate(self.entry.exclude) if _holds(left_out, setting)]
            used.update(excluding)
            if not excluding:
                kept += 1
                yield self._named({**fixed, **setting}), {**fixed, **setting}
        for i in range(len(self.entry.exclude)):
            if i not in used:
                self.add("exclude", "fits no arm of this grid", i)
        if not kept:
            self.findings.add((*self.path, "exclude"), "leaves no arm of this grid")
        for key, values in axes["ablate"].items():
            for value in values:
                name = f"{self._named(fixed)} ({_last(key)} {_spelled(value)})"
                yield name, {**fixed, key: value}

    def _named(self, setting: Setting) -> str:
        return self._filled(self.entry.name, setting)

    def _filled(self, name: str, setting: Setting) -> str:
        """A name of the entry with `{lr}` and the like replaced by the arm's values."""
        values = {_last(key): _spelled(value) for key, value in setting.items()}
        return _PLACEHOLDER.sub(lambda found: values.get(found[1], found[0]), name)

    def _arm(self, name: str, setting: Setting) -> Iterator[Arm]:
        whole = _dotted(self.form) | dict(setting)
        part = {section: _under(section, whole) for section in FORMS}
        arch, seeds = str(setting["arch"]), self.entry.seeds or self.form.seeds
        rate_of = self._filled(self.entry.rate_of, setting)
        model = self._made("spec", name, lambda: model_spec(arch, **part["spec"]))
        if model is None or not self._inside(name, model, part["training"]):
            return
        training = self._made("training", name, lambda: TrainingSpec(**part["training"]))
        if training:
            rates = self.entry.rates
            yield Arm(name=name, arch=arch, model=model, training=training, seeds=seeds, rates=rates, rate_of=rate_of)

    def _inside(self, name: str, model: ModelSpec, training: Setting) -> bool:
        """Whether the quantizers inside a training have something to quantize; noted where not."""
        grid = {"product": self.entry.product, "zip": self.entry.zip, "ablate": self.entry.ablate}
        axes = [
            (part, inside.KEY, i) for part, axis in grid.items() for i in range(len(_many(axis.get(inside.KEY, ()))))
        ]
        axes += [(part, inside.KEY) for part, axis in grid.items() if inside.KEY in axis]
        paths: list[Path] = [*((*self.path, *axis) for axis in axes), (*self.path, "training", "quantized")]
        arm = name, of(model), training.get("optimizer", TrainingSpec().optimizer)
        paths.append(("training", "quantized"))
        return inside.fits(training.get("quantized") or {}, arm, paths, self.findings)

    def _made(self, part: str, name: str, make: Callable[[], T]) -> T | None:
        try:
            return make()
        except ValueError as error:
            self.add(part, f"arm {name!r}: {error}")
            return None


def _combinations(outer: Axes, zipped: Axes) -> Iterator[Setting]:
    rows = [dict(zip(zipped, row, strict=True)) for row in zip(*zipped.values(), strict=True)] or [{}]
    for values in product(*outer.values()):
        for row in rows:
            yield dict(zip(outer, values, strict=True)) | row


def _holds(pattern: Setting, setting: Setting) -> bool:
    """Whether a setting has the value, or one of the values, that the pattern gives to each of its keys."""
    return all(setting.get(key) in _many(values) for key, values in pattern.items())


def _dotted(form: SuiteForm | ModelEntry) -> dict[str, Any]:
    return {f"{part}.{key}": value for part in FORMS for key, value in settings(getattr(form, part)).items()}


def _under(section: str, setting: Setting) -> dict[str, Any]:
    return {key.partition(".")[2]: value for key, value in setting.items() if key.partition(".")[0] == section}


def _last(key: str) -> str:
    return key.rpartition(".")[2]


def _meant(key: str) -> str:
    """A key without its section is a likely slip: `lr` for `training.lr`."""
    whole = [known for known in KEYS if _last(known) == key]
    return f"; did you mean {whole[0]!r}?" if whole else suggestion(key, KEYS)


def _many(values: Any) -> tuple[Any, ...]:
    return cast(tuple[Any, ...], values) if isinstance(values, tuple) else (values,)


def _spelled(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {part}" for key, part in cast(Mapping[str, Any], value).items())
    return "-".join(map(str, _many(value)))
