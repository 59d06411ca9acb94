"""A suite as a frozen value: the arms to compare, what is measured of them, and the effects that are claimed."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import PurePath
from typing import Literal

from qbench.capture.sites import Kind
from qbench.models.spec import ModelSpec
from qbench.train.spec import TrainingSpec

Split = Literal["test", "tune"]
Scalar = str | int | float | bool | None

CALIBRATION = "calibration"  # the arm, and its model, of tensors with known moments
UNQUANTIZED = "unquantized"  # the treatment that quantizes nothing
TUNING_WINDOWS = 32  # of the tune split, for the validation loss during training


@dataclass(frozen=True, slots=True, kw_only=True)
class Arm:
    """One model and one way of training it, with several seeds; `arch` is the row of the models catalog."""

    name: str
    arch: str
    model: ModelSpec
    training: TrainingSpec
    seeds: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Tensors:
    """Places of one kind whose shape is measured, and the error of each quantizer there.

    `sites` are scopes and patterns. Weights are read from no text: 0 windows of no split.
    """

    kind: Kind
    sites: tuple[str, ...]
    windows: int
    split: Split | Literal[""]
    quantizers: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Treatment:
    """What is quantized while the loss is measured: `assign` maps "kind:scope or pattern" to a quantizer."""

    name: str
    scope: str = ""
    assign: Mapping[str, str] = field(default_factory=dict[str, str])


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluate:
    windows: int
    split: Split


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """`cells` is a guard; `cpu_seconds` is what its author expects, 0 where nothing is said."""

    cells: int
    cpu_seconds: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Measure:
    """The number that an effect compares: of tensors (`kind`, `sites`, maybe `quantizer`) or of a `treatment`."""

    metric: str
    kind: Kind | Literal[""] = ""
    sites: tuple[str, ...] = ()
    quantizer: str = ""
    treatment: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Effect:
    """A claim: the first arm of `between` compared with the second is `direction` of `bound`.

    ratio is first / second, difference is first - second.
    """

    claim: str
    between: tuple[str, str]
    measure: Measure
    compare: Literal["ratio", "difference"]
    direction: Literal["above", "below"]
    bound: float

    @property
    def thesis(self) -> str:
        return f"{self.direction} {self.bound:g}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Suite:
    """A question about models and quantizers, checked and ready to be expanded into cells.

    `data` is a name that `data.catalog` loads, with an absolute path where it has one; `data_name` is what may be
    stored and printed. `note` is what a reader of the page must know beside the answer. `treatments` begins with the
    empty one. `path` is the file's name without its folder, `text` its source before profile and overrides.
    """

    name: str
    version: int
    question: str
    note: str
    params: Mapping[str, Scalar]
    data: str
    arms: tuple[Arm, ...]
    tensors: tuple[Tensors, ...]
    evaluate: Evaluate
    treatments: tuple[Treatment, ...]
    budget: Budget
    effects: tuple[Effect, ...]
    path: str
    text: str
    profile: str = ""
    overrides: tuple[tuple[str, str], ...] = ()

    @property
    def data_name(self) -> str:
        return stored_name(self.data)

    def arm(self, name: str) -> Arm:
        """The arm called `name`; KeyError where there is none."""
        return {arm.name: arm for arm in self.arms}[name]


def stored_name(data: str) -> str:
    """A data name without the folders of whoever ran it; the digest says what was in the file.

    >>> stored_name("text:/home/ada/notes.txt"), stored_name("stdlib")
    ('text:notes.txt', 'stdlib')
    """
    kind, colon, path = data.partition(":")
    return f"{kind}{colon}{PurePath(path).name}"
