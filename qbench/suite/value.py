"""A suite as a frozen value: the arms to compare, what is measured of them, and the effects that are claimed."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from qbench.capture.sites import Kind, SiteNames, of, stacked
from qbench.data.catalog import stored_name
from qbench.evaluate.stack import Stack
from qbench.models.spec import ModelSpec
from qbench.train.spec import TrainingSpec

Split = Literal["test", "tune", "all"]
Dtype = Literal["float32", "bfloat16", "float16", "auto"]
Attention = Literal["default", "sdpa", "eager"]
Bos = Literal["auto", "always", "never"]
Scalar = str | int | float | bool | None

PRETRAINED = "pretrained"  # the arch of a model that is loaded
STACK = "stack"  # the arch of random layers
CALIBRATION = "calibration"  # the arm, and its model, of tensors with known moments
UNQUANTIZED = "unquantized"  # the treatment that quantizes nothing
TUNING_WINDOWS = 32  # of the tune split, for the validation loss during training


@dataclass(frozen=True, slots=True, kw_only=True)
class Pretrained:
    """A model that was trained elsewhere: a folder with an absolute path, or a name on the hub.

    `config` is what its config.json says, empty for a model that is not here yet; `names` are its sites, None where
    they are only known when the model is loaded.
    """

    source: str
    config: Mapping[str, Any] = field(default_factory=dict[str, Any])
    names: SiteNames | None = None
    revision: str = ""
    dtype: Dtype = "float32"
    attention: Attention = "default"
    device_map: str = ""

    @property
    def local(self) -> bool:
        return bool(self.config)


@dataclass(frozen=True, slots=True, kw_only=True)
class Arm:
    """One model, trained here with several seeds or trained elsewhere; `arch` is the row of the models catalog.

    `reference` names the arm that a model quantized elsewhere is compared with. With `rates` the learning rate is the
    one of them that does best on the tuning split with the first seed; with `rate_of` it is that of another arm.
    """

    name: str
    arch: str
    model: ModelSpec | Pretrained
    training: TrainingSpec | None
    seeds: tuple[int, ...]
    reference: str = ""
    rates: tuple[float, ...] = ()
    rate_of: str = ""

    @property
    def names(self) -> SiteNames | None:
        """What its places are called; None where nobody knows before the model is loaded."""
        if isinstance(self.model, Pretrained):
            return self.model.names
        return of(self.model)


@dataclass(frozen=True, slots=True, kw_only=True)
class Tensors:
    """Places of one kind whose shape is measured, and the error of each quantizer there.

    `sites` are scopes and patterns. Weights are read from no text: 0 windows of no split. `outliers` asks for the
    channels and tokens that stand out.
    """

    kind: Kind
    sites: tuple[str, ...]
    windows: int
    split: Split | Literal[""]
    quantizers: tuple[str, ...]
    outliers: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Treatment:
    """What is quantized while the loss is measured: `assign` maps "kind:scope or pattern" to a quantizer."""

    name: str
    scope: str = ""
    assign: Mapping[str, str] = field(default_factory=dict[str, str])


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluate:
    """What models are judged on. A pretrained model is judged on whole texts, never on a split of them: `context`
    tokens a window (0 for what the model can read, at most CONTEXT), a new window every `stride` tokens (0 for windows
    spread over the text), after a token that begins a text where the tokenizer adds one (`bos: auto`).

    With `looks` the windows may grow to those numbers, as far as `look`; `windows` is then the first of them.
    """

    windows: int
    split: Split
    looks: tuple[int, ...] = ()
    look: int = 1
    context: int = 0
    stride: int = 0
    bos: Bos = "auto"


@dataclass(frozen=True, slots=True, kw_only=True)
class CalibrationData:
    """What quantizers that need data see before; never what models are judged on, unless `overlap` allows it."""

    data: str
    windows: int
    overlap: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Sensitivity:
    """One layer at a time: `weights` and `inputs` name quantizers, at least one; `top` layers of a cheap ranking are
    measured exactly, 0 for all.
    """

    weights: str = ""
    inputs: str = ""
    top: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Tasks:
    """Tasks of the lm-evaluation-harness; `include` is a folder of task files, `limit` documents of each, 0 for all."""

    lm_eval: tuple[str, ...]
    include: str = ""
    limit: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Noise:
    """White noise at each of `sites` alone and at all places of each of `scopes` at once, at levels `snr_db` below the
    tensors, in `pairs` of draws.
    """

    scopes: tuple[str, ...]
    sites: tuple[str, ...]
    snr_db: tuple[float, ...]
    pairs: int
    windows: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Flow:
    """A treatment whose error is followed from block to block."""

    treatment: Treatment
    windows: int


@dataclass(frozen=True, slots=True, kw_only=True)
class StackArm:
    """Random layers that nobody trains: an arm of closed forms and of what is measured beside them."""

    name: str
    stack: Stack
    seeds: tuple[int, ...]

    @property
    def names(self) -> SiteNames:
        """What flows behind each layer; `layer.0` is what goes in."""
        return stacked(self.stack.depth)


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

    ratio is first / second, difference is first - second. `against` is measured of the second arm, the same as
    `measure` where None.
    """

    claim: str
    between: tuple[str, str]
    measure: Measure
    against: Measure | None
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
    empty one. `path` is the file's name without its folder, `text` its source before profile and overrides. `adds` are
    the windows on which additions are measured, 0 where they are not. A suite of `stacks` may have no arms, and no
    use for data.
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
    calibration: CalibrationData | None
    kernels: tuple[str, ...]
    sensitivity: tuple[Sensitivity, ...]
    tasks: Tasks | None
    optimizers: tuple[str, ...]
    budget: Budget
    effects: tuple[Effect, ...]
    path: str
    text: str
    profile: str = ""
    overrides: tuple[tuple[str, str], ...] = ()
    noise: tuple[Noise, ...] = ()
    adds: int = 0
    flow: tuple[Flow, ...] = ()
    stacks: tuple[StackArm, ...] = ()

    @property
    def data_name(self) -> str:
        return stored_name(self.data)

    @property
    def pretrained(self) -> bool:
        """Whether its models are loaded; a suite trains all of its models or none."""
        return any(isinstance(arm.model, Pretrained) for arm in self.arms)

    def arm(self, name: str) -> Arm:
        """The arm called `name`; KeyError where there is none."""
        return {arm.name: arm for arm in self.arms}[name]
