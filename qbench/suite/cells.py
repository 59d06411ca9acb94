"""Cells: one model, one seed, one measurement each, named by the hash of their content."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal

from qbench.data.catalog import stored_name
from qbench.models.spec import ModelSpec
from qbench.results import digest
from qbench.suite import revisions
from qbench.suite.value import PRETRAINED, STACK, Treatment
from qbench.train.spec import TrainingSpec

DIGITS = 16  # hexadecimal, of an id

# What is watched during a training changes its record and not its weights.
WATCHED = ("shape_steps", "checkpoints")
WATCHING = ("training", "trial")  # the measurements that have such a record

Followed = Literal["noise", "adds", "flow", "theory"]
Asked = Literal["shape", "error", "outliers", "loss", "kernel", "sensitivity", "task", "optimizer"]
What = Literal["training", "trial", "model", Asked, Followed]
# The fields that say what a measurement is; the others stay empty. `passage` and `options` only where they are given.
_READ = ("windows", "split", "passage")
_FIELDS: Mapping[What, tuple[str, ...]] = {
    "training": (),
    "trial": (),
    "model": (),
    "shape": ("kind", "sites", *_READ),
    "error": ("kind", "sites", *_READ, "quantizer", "options"),
    "outliers": ("kind", "sites", *_READ),
    "loss": (*_READ, "treatment", "options"),
    "kernel": (*_READ, "options"),
    "sensitivity": (*_READ, "options"),
    "task": ("options",),
    "optimizer": (*_READ, "options"),
    "noise": ("kind", "sites", *_READ, "options"),
    "adds": _READ,
    "flow": (*_READ, "treatment", "options"),
    "theory": (),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """A model from elsewhere as it was found: what a cell keeps of it, where it is, what its weights are called."""

    model: Mapping[str, Any]
    source: str
    weights: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Environment:
    """What numbers depend on beside the suite; `device` is a class of hardware, such as cpu.

    `found` are the models from elsewhere by arm, the other digests those of the calibration data and of the task files,
    `libraries` the versions of those whose kernels run. `rates` are the learning rates that were chosen, by arm.
    """

    data_digest: str
    torch_version: str
    device: str
    plugins_digest: str = ""
    calibration_digest: str = ""
    tasks_digest: str = ""
    found: Mapping[str, Found] = field(default_factory=dict[str, Found])
    libraries: Mapping[str, str] = field(default_factory=dict[str, str])
    rates: Mapping[str, float] = field(default_factory=dict[str, float])

    def of_cells(self) -> dict[str, Any]:
        names = ("data_digest", "torch_version", "device", "plugins_digest")
        return {name: getattr(self, name) for name in names}


@dataclass(frozen=True, slots=True, kw_only=True)
class Measurement:
    """What one cell measures; `sites` are scopes and patterns, as the suite has them.

    `passage` says how a text becomes windows for a model from elsewhere, `options` what else is asked.
    """

    what: What
    kind: str = ""
    sites: tuple[str, ...] = ()
    windows: int = 0
    split: str = ""
    passage: Mapping[str, Any] = field(default_factory=dict[str, Any])
    quantizer: str = ""
    treatment: Treatment | None = None
    options: Mapping[str, Any] = field(default_factory=dict[str, Any])

    @property
    def title(self) -> str:
        """What is measured, in a few words.

        >>> Measurement(what="error", kind="weight", quantizer="int4/channel").title
        'error of int4/channel on weight'
        """
        if self.treatment is not None:
            return f"{self.what}, {self.treatment.name}"
        if self.what == "noise":
            return f"noise at {', '.join((*self.options.get('scopes', ()), *self.sites))}"
        if self.quantizer:
            return f"error of {self.quantizer} on {self.kind}{_at(self.sites)}"
        return f"{self.what} {self.options.get('name', self.kind)}".rstrip() + _at(self.sites)

    def spec(self) -> dict[str, Any]:
        """What is asked as JSON, without the fields that do not apply: weights have no windows."""
        part = {name: getattr(self, name) for name in _FIELDS[self.what]}
        if self.treatment is not None:
            part["treatment"] = asdict(self.treatment)
        return {"what": self.what} | {name: listed(value) for name, value in part.items() if value or name == "sites"}

    @property
    def shared(self) -> str:
        """The same for measurements of tensors that are answered in one pass over the same tensors."""
        return digest.of({name: listed(getattr(self, name)) for name in ("kind", "sites", *_READ)})


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """One model, one seed, one measurement: the unit that runs, fails, is kept and resumed as a whole.

    `model` and `training` are specs as JSON; the calibration arm and models from elsewhere have no training. Cells
    other than a training leave out what is watched during it, so that watching more does not measure the model again.
    `sources` says where things are for whoever answers the cell, and is no part of what it is: the folder of the
    `model`, of its `reference`, the `calibration` data and the folder of `tasks`.
    """

    suite: str
    version: int
    arm: str
    model: Mapping[str, Any]
    training: Mapping[str, Any] | None
    seed: int
    data: str
    data_digest: str
    torch_version: str
    device: str
    plugins_digest: str
    measurement: Measurement
    revisions: Mapping[str, Any]
    sources: Mapping[str, str] = field(default_factory=dict[str, str])

    def spec(self) -> dict[str, Any]:
        """Everything that the cell is, as JSON and without anyone's paths: what a closing line keeps."""
        return {
            "suite": self.suite,
            "version": self.version,
            "arm": self.arm,
            "model": dict(self.model),
            "training": None if self.training is None else dict(self.training),
            "seed": self.seed,
            "data": {"name": stored_name(self.data), "digest": self.data_digest},
            "torch": self.torch_version,
            "device": self.device,
            "plugins": self.plugins_digest,
            "measurement": self.measurement.spec(),
            "revisions": dict(self.revisions),
        }

    @property
    def id(self) -> str:
        """16 hex digits that change when, and only when, `spec()` does."""
        return digest.of(self.spec())[:DIGITS]

    @property
    def question_id(self) -> str:
        """The same for cells that ask the same of different models: equal ids may be compared.

        Left out are the suite, the arm, the model, how and where it was trained, and what a treatment is called.
        """
        spec = self.spec()
        measurement = spec["measurement"]
        if self.measurement.treatment is not None:
            measurement = measurement | {"treatment": {"assign": dict(self.measurement.treatment.assign)}}
        revisions = {name: value for name, value in self.revisions.items() if name not in ("train", "trained_with")}
        return digest.of({"data": spec["data"], "measurement": measurement, "revisions": revisions})[:DIGITS]

    @property
    def title(self) -> str:
        return self.measurement.title

    @property
    def pretrained(self) -> bool:
        return self.model.get("arch") == PRETRAINED

    @property
    def stack(self) -> bool:
        """Whether it is of random layers, which no data and no other cell have to do with."""
        return self.model.get("arch") == STACK

    @property
    def training_key(self) -> str:
        """What trained weights are kept under: equal keys have equal weights, whichever suite or arm asks for them.

        Neither the name of the architecture nor what is watched matters to the weights. A record of what was watched
        is kept under `log_key` beside them, so a suite that watches other steps trains again for its record.
        """
        model = {name: value for name, value in self.model.items() if name != "arch"}
        weights = {"model": model, "training": unwatched(self.training), "seed": self.seed, "data": self.data_digest}
        where = {"torch": self.torch_version, "device": self.device, "revision": revisions.TRAIN}
        where |= {name: value for name, value in self.revisions.items() if name == "trained_with"}
        return digest.of(weights | where)

    @property
    def log_key(self) -> str:
        """What the record of a training is kept under, beside its weights: equal where the same steps are watched."""
        return digest.of(_watched(self.training or {}))[:DIGITS]

    def model_spec(self) -> ModelSpec:
        """The model as a value; ValueError where it is not one that we build."""
        if self.training is None:
            raise ValueError(f"the {self.arm} arm has no model")
        return ModelSpec(**{name: value for name, value in self.model.items() if name != "arch"})

    def training_spec(self) -> TrainingSpec:
        """The training as a value; ValueError where there is none."""
        if self.training is None:
            raise ValueError(f"the {self.arm} arm has no training")
        parts: dict[str, Any] = {**self.training}
        for name in WATCHED:
            parts[name] = tuple(parts.get(name, ()))
        return TrainingSpec(**parts)

    def to_json(self) -> dict[str, Any]:
        """The cell for another process, with the path of its data; `from_json` makes it again."""
        return {f.name: getattr(self, f.name) for f in fields(self)} | {"measurement": self.measurement.spec()}

    @classmethod
    def from_json(cls, raw: Mapping[str, Any]) -> "Cell":
        asked: dict[str, Any] = dict(raw["measurement"])
        if "treatment" in asked:
            asked["treatment"] = Treatment(**asked["treatment"])
        if "sites" in asked:
            asked["sites"] = tuple(asked["sites"])
        parts: dict[str, Any] = {**raw}
        parts["measurement"] = Measurement(**asked)
        return cls(**parts)


def unwatched(training: Mapping[str, Any] | None) -> dict[str, Any] | None:
    return None if training is None else {n: v for n, v in training.items() if n not in WATCHED}


def _watched(training: Mapping[str, Any]) -> dict[str, list[int]]:
    """The steps that are watched, each once and in order. The kurtosis of the last one is looked at wherever that of
    any is, so it stands there only where it is the only one.
    """
    steps = {name: sorted(set(training.get(name, ()))) for name in WATCHED}
    shape = steps["shape_steps"]
    return steps | {"shape_steps": [step for step in shape if step != training.get("steps")] or shape}


def _at(sites: Sequence[str]) -> str:
    return f" at {sites[0]}" if len(sites) == 1 and sites[0] not in ("all", "weights") else ""


def listed(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
