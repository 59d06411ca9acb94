"""The cells of a suite in running order, each named by the hash of its content."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, fields
from itertools import groupby
from typing import Any, Literal

from qbench.capture.sites import CALIBRATION_SITES
from qbench.models.spec import ModelSpec
from qbench.quant.catalog import quantizer_spec
from qbench.results import digest
from qbench.suite.value import CALIBRATION, Arm, Suite, Treatment, stored_name
from qbench.train.spec import TrainingSpec

TRAIN_REVISION = 1  # raised by hand when training gives other weights
MEASURE_REVISION = 2  # raised by hand when a measurement gives other numbers; quantizers have revisions of their own
DIGITS = 16  # hexadecimal, of an id
ROWS, WIDTH = 2048, 96  # of the calibration tensors

# What is watched during a training changes its record and not its weights.
WATCHED = ("shape_steps", "checkpoints")

# The fields that say what a measurement is; the others stay empty.
_FIELDS: Mapping[str, tuple[str, ...]] = {
    "training": (),
    "shape": ("kind", "sites", "windows", "split"),
    "error": ("kind", "sites", "windows", "split", "quantizer"),
    "loss": ("windows", "split", "treatment"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Environment:
    """What trained weights depend on beside the suite; `device` is a class of hardware, such as cpu."""

    data_digest: str
    torch_version: str
    device: str
    plugins_digest: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Measurement:
    """What one cell measures; `sites` are scopes and patterns, as the suite has them."""

    what: Literal["training", "shape", "error", "loss"]
    kind: str = ""
    sites: tuple[str, ...] = ()
    windows: int = 0
    split: str = ""
    quantizer: str = ""
    treatment: Treatment | None = None

    @property
    def title(self) -> str:
        """What is measured, in a few words.

        >>> Measurement(what="error", kind="weight", quantizer="int4/channel").title
        'error of int4/channel on weight'
        """
        if self.treatment is not None:
            return f"loss, {self.treatment.name}"
        return f"error of {self.quantizer} on {self.kind}" if self.quantizer else f"{self.what} {self.kind}".rstrip()

    def spec(self) -> dict[str, Any]:
        """What is asked as JSON, without the fields that do not apply: weights have no windows."""
        part = {name: getattr(self, name) for name in _FIELDS[self.what]}
        if self.treatment is not None:
            part["treatment"] = asdict(self.treatment)
        return {"what": self.what} | {name: _listed(value) for name, value in part.items() if value or name == "sites"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """One model, one seed, one measurement: the unit that runs, fails, is kept and resumed as a whole.

    `model` and `training` are specs as JSON; the calibration arm has no training. Cells other than a training leave
    out what is watched during it, so that watching more does not measure the model again.
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
        revisions = {name: value for name, value in self.revisions.items() if name != "train"}
        return digest.of({"data": spec["data"], "measurement": measurement, "revisions": revisions})[:DIGITS]

    @property
    def title(self) -> str:
        return self.measurement.title

    @property
    def training_key(self) -> str:
        """What trained weights are kept under: equal keys have equal weights, whichever suite or arm asks for them.

        Neither the name of the architecture nor what is watched matters to the weights. A record of what was watched
        is kept under `log_key` beside them, so a suite that watches other steps trains again for its record.
        """
        model = {name: value for name, value in self.model.items() if name != "arch"}
        weights = {"model": model, "training": _unwatched(self.training), "seed": self.seed, "data": self.data_digest}
        where = {"torch": self.torch_version, "device": self.device, "revision": TRAIN_REVISION}
        return digest.of(weights | where)

    @property
    def log_key(self) -> str:
        """What the record of a training is kept under, beside its weights."""
        return digest.of({name: (self.training or {}).get(name, []) for name in WATCHED})[:DIGITS]

    def model_spec(self) -> ModelSpec:
        """The model as a value; ValueError for the calibration arm, which has none."""
        if self.training is None:
            raise ValueError(f"the {self.arm} arm has no model")
        return ModelSpec(**{name: value for name, value in self.model.items() if name != "arch"})

    def training_spec(self) -> TrainingSpec:
        """The training as a value; ValueError for the calibration arm, which has none."""
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


def expand(suite: Suite, environment: Environment) -> list[Cell]:
    """All cells, model by model: first the calibration arm, then for each arm and seed its training, shapes, errors
    and losses. Pure: the same suite and environment give the same cells.
    """
    asked = list(_measurements(suite))
    cells = list(_calibration(suite, environment))
    for arm in suite.arms:
        for seed in arm.seeds:
            cells += [_cell(suite, environment, arm, seed, measurement) for measurement in asked]
    return cells


def groups(cells: Iterable[Cell]) -> list[tuple[Cell, ...]]:
    """Cells of one arm and seed together, in order: they share one trained model."""
    return [tuple(group) for _, group in groupby(cells, key=lambda cell: (cell.arm, cell.seed))]


def _measurements(suite: Suite) -> Iterator[Measurement]:
    yield Measurement(what="training")
    places: list[dict[str, Any]] = [
        {"kind": t.kind, "sites": t.sites, "windows": t.windows, "split": t.split} for t in suite.tensors
    ]
    seen: list[Mapping[str, Any]] = []
    for place in places:
        if place not in seen:  # two entries may share a place and differ in quantizers
            yield Measurement(what="shape", **place)
            seen.append(place)
    for place, tensors in zip(places, suite.tensors, strict=True):
        for name in tensors.quantizers:
            yield Measurement(what="error", quantizer=name, **place)
    windows, split = suite.evaluate.windows, suite.evaluate.split
    for treatment in suite.treatments:
        yield Measurement(what="loss", windows=windows, split=split, treatment=treatment)


def _cell(suite: Suite, environment: Environment, arm: Arm, seed: int, measurement: Measurement) -> Cell:
    training = {name: _listed(value) for name, value in asdict(arm.training).items()}
    return Cell(
        suite=suite.name,
        version=suite.version,
        arm=arm.name,
        model=asdict(arm.model) | {"arch": arm.arch},
        training=training if measurement.what == "training" else _unwatched(training),
        seed=seed,
        data=suite.data,
        measurement=measurement,
        revisions={"train": TRAIN_REVISION} | _revisions(measurement),
        **asdict(environment),
    )


def _calibration(suite: Suite, environment: Environment) -> Iterator[Cell]:
    """Tensors with known moments under the suite's own activation quantizers: the instrument is checked first."""
    names = dict.fromkeys(name for t in suite.tensors if t.kind == "activation" for name in t.quantizers)
    place: dict[str, Any] = {"kind": "activation", "sites": CALIBRATION_SITES}
    asked = [Measurement(what="error", quantizer=name, **place) for name in names]
    for measurement in [Measurement(what="shape", **place), *asked]:
        yield Cell(
            suite=suite.name,
            version=suite.version,
            arm=CALIBRATION,
            model={"arch": CALIBRATION, "rows": ROWS, "width": WIDTH},
            training=None,
            seed=0,
            data="synthetic",
            measurement=measurement,
            revisions=_revisions(measurement),
            **asdict(environment) | {"data_digest": ""},
        )


def _revisions(measurement: Measurement) -> dict[str, Any]:
    used = [measurement.quantizer] if measurement.quantizer else []
    used += measurement.treatment.assign.values() if measurement.treatment else []
    return {"measure": MEASURE_REVISION, "quantizers": sorted({quantizer_spec(name).revision for name in used})}


def _unwatched(training: Mapping[str, Any] | None) -> dict[str, Any] | None:
    return None if training is None else {n: v for n, v in training.items() if n not in WATCHED}


def _listed(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
