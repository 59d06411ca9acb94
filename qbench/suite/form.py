"""The form of a suite file: which keys it may have, and what may stand under them."""

from collections.abc import Mapping
from dataclasses import fields
from typing import Annotated, Any, Literal, cast, get_type_hints

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, create_model, model_validator

from qbench.capture.sites import MOST_LAYERS, Kind
from qbench.evaluate.stack import BranchName, InputName, StackWiring
from qbench.models.spec import ModelSpec
from qbench.suite.inside import Inside
from qbench.suite.slots import (
    LARGEST,
    SEVERAL,
    Axis,
    Count,
    Decibels,
    Looks,
    Name,
    Names,
    Rate,
    Seeds,
    Text,
    Word,
    Words,
    as_many,
    distinct,
    scalar,
)
from qbench.suite.value import Attention, Bos, Dtype
from qbench.train.spec import TrainingSpec

MOST_CELLS = 100_000
MOST_PROFILES = 20
FEW = 16  # windows of a measurement that runs many passes
REQUIRED = ("suite", "version", "question", "models")
LOADING = ("load", "revision", "dtype", "attention", "device_map", "reference")


class Form(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


def _partial(spec: type[ModelSpec] | type[TrainingSpec], limits: Mapping[str, int]) -> type[Form]:
    """A form with the fields of `spec`, none of them required."""
    hints: dict[str, Any] = get_type_hints(spec)
    for name, hint in hints.items():
        if hint is int:
            hints[name] = Annotated[int, Field(le=limits.get(name, LARGEST))]
    if "quantized" in hints:
        hints["quantized"] = Inside
    slots: dict[str, Any] = {field.name: (hints[field.name], field.default) for field in fields(spec)}
    return create_model(f"{spec.__name__}Form", __base__=Form, **slots)


SpecForm = _partial(ModelSpec, {"layers": MOST_LAYERS})
TrainingForm = _partial(TrainingSpec, {})


class Quantizers(Form):
    """A name, or every combination of the parts of `quant.spec.QuantizerSpec`."""

    name: Word | None = None
    grid: Words = ()
    bits: Annotated[tuple[int, ...], BeforeValidator(as_many), Field(min_length=1), AfterValidator(distinct)] = ()
    granularity: Words = ()
    variant: Words = ()
    rule: Words = ()
    scale: Words = ()

    @model_validator(mode="before")
    @classmethod
    def _named(cls, value: Any) -> Any:
        if isinstance(value, str):
            return {"name": value}
        if not isinstance(value, dict):
            raise ValueError(
                "a quantizer is a name, such as int4/token, or a grid, such as {grid: int, bits: 4, granularity: token}"
            )
        return cast(Any, value)

    @model_validator(mode="after")
    def _whole(self) -> "Quantizers":
        if self.name is not None and self.model_fields_set != {"name"}:
            raise ValueError("either a name or the parts of a grid")
        if self.name is None and not (self.grid and self.granularity):
            raise ValueError("a grid of quantizers needs at least grid and granularity")
        return self


QuantizerList = Annotated[tuple[Quantizers, ...], BeforeValidator(as_many), Field(min_length=1)]


class ModelEntry(Form):
    """One arm, or with `product`, `zip` or `ablate` several; their keys are arch, spec.* and training.*.

    With `load` the arm is a model that was trained elsewhere; LOADING are the keys that go with it. `rates` are the
    learning rates that are tried with the first seed, of which the best on the tuning split is taken; `rate_of` is the
    arm whose rate this one takes over.
    """

    name: Name = ""
    load: Text | None = None
    revision: Annotated[str, Field(max_length=200)] = ""
    dtype: Dtype = "float32"
    attention: Attention = "default"
    device_map: Annotated[str, Field(max_length=200)] = ""
    reference: Annotated[str, Field(max_length=1000)] = ""
    arch: Word | None = None
    seeds: Seeds | None = None
    spec: SpecForm = SpecForm()  # pyright: ignore[reportInvalidTypeForm]
    training: TrainingForm = TrainingForm()  # pyright: ignore[reportInvalidTypeForm]
    product: dict[str, Axis] = {}
    zip: dict[str, Axis] = {}
    ablate: dict[str, Any] = {}
    exclude: tuple[dict[str, Any], ...] = ()
    rates: Annotated[tuple[Rate, ...], AfterValidator(distinct)] = ()
    rate_of: Annotated[str, Field(max_length=100)] = ""


class TensorsEntry(Form):
    kind: Kind
    sites: Words = ("all",)
    windows: Count | None = None
    split: Literal["test", "tune"] | None = None
    quantizers: QuantizerList = ()
    outliers: bool = False


class TreatmentEntry(Form):
    """Each quantizer at each scope, or one treatment put together by hand."""

    scope: Words = ()
    kind: Literal["activation", "weight"] | None = None
    quantizers: QuantizerList = ()
    name: Name | None = None
    assign: dict[str, Word] = {}

    @model_validator(mode="after")
    def _one_of_two(self) -> "TreatmentEntry":
        given = self.model_fields_set - {"windows"}
        if given - {"kind"} != {"scope", "quantizers"} and given != {"name", "assign"}:
            raise ValueError("a treatment has scope and quantizers (and kind), or name and assign")
        return self


class FlowEntry(TreatmentEntry):
    """Treatments whose error is followed from block to block."""

    windows: Count = FEW


class NoiseEntry(Form):
    """White noise at each of `sites` alone, and at all places of each of `scopes` at once."""

    scopes: Names = ()
    sites: Names = ()
    snr_db: Decibels = (20.0,)
    pairs: Annotated[int, Field(ge=1, le=100)] = 1
    windows: Count = FEW

    @model_validator(mode="after")
    def _somewhere(self) -> "NoiseEntry":
        if not (self.scopes or self.sites):
            raise ValueError("noise goes somewhere: name scopes (all their places at once) or sites (one at a time)")
        return self


class AddsForm(Form):
    windows: Count = FEW


class StackEntry(Form):
    """Random layers over random rows, one arm for each combination of the values given."""

    name: Name
    seeds: Seeds | None = None
    wiring: Annotated[tuple[StackWiring, ...], *SEVERAL] = ("residual",)
    branch: Annotated[tuple[BranchName, ...], *SEVERAL] = ("rotation",)
    input: Annotated[tuple[InputName, ...], *SEVERAL] = ("laplace",)
    ratio: Annotated[tuple[Rate, ...], *SEVERAL] = (0.1,)
    width: Annotated[tuple[Annotated[int, Field(ge=2, le=16_384)], ...], *SEVERAL] = (256,)
    depth: Annotated[tuple[Annotated[int, Field(ge=1, le=MOST_LAYERS)], ...], *SEVERAL] = (12,)
    rows: Annotated[tuple[Count, ...], *SEVERAL] = (4096,)


class EvaluateForm(Form):
    windows: Looks = (128,)
    look: Count = 1
    split: Literal["test", "tune"] = "test"
    context: Count | None = None
    stride: Count | None = None
    bos: Bos = "auto"


class CalibrationForm(Form):
    data: Word
    windows: Count = 16
    overlap: bool = False


class SensitivityEntry(Form):
    weights: Word = ""
    inputs: Word = ""
    top: Count | None = None

    @model_validator(mode="after")
    def _something(self) -> "SensitivityEntry":
        if not (self.weights or self.inputs):
            raise ValueError("a sensitivity sweep quantizes weights, inputs, or both: name a quantizer")
        return self


class EvalForm(Form):
    lm_eval: Words
    include: Word | None = None
    limit: Count | None = None


class BudgetForm(Form):
    cells: Count = MOST_CELLS
    cpu_seconds: Annotated[float, Field(ge=0)] = 0.0


class MeasureForm(Form):
    metric: Word
    kind: Kind | None = None
    sites: Words = ()
    quantizer: Word = ""
    treatment: Word = ""

    @model_validator(mode="after")
    def _one_of_two(self) -> "MeasureForm":
        given = self.model_fields_set - {"metric"}
        if given != {"treatment"} and given - {"quantizer"} != {"kind", "sites"}:
            raise ValueError("a measure has kind and sites (and quantizer), or treatment")
        return self


class EffectEntry(Form):
    """One claim, or with `each` one for every combination of its values, whose keys stand in braces in the texts.

    `against` is what is measured of the second arm, where that is another treatment than the first one's.
    """

    claim: Text
    each: dict[Word, Words] = {}
    between: Annotated[tuple[Name, ...], Field(min_length=2, max_length=2)]
    measure: MeasureForm
    against: MeasureForm | None = None
    compare: Literal["ratio", "difference"]
    thesis: Annotated[str, Field(pattern=r"^(above|below) [-+]?[0-9]{1,9}(\.[0-9]{1,9})?$")]


class SuiteForm(Form):
    """The keys of a file. REQUIRED ones have a default too, so that the rest can be checked without them."""

    suite: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9-]{0,63}$")] = ""
    version: Count = 1
    question: Text = ""
    note: Annotated[str, Field(max_length=1000)] = ""
    params: dict[str, Annotated[Any, AfterValidator(scalar)]] = {}
    seeds: Seeds = (0,)
    data: Word = "stdlib"
    spec: SpecForm = SpecForm()  # pyright: ignore[reportInvalidTypeForm]
    training: TrainingForm = TrainingForm()  # pyright: ignore[reportInvalidTypeForm]
    models: Annotated[tuple[ModelEntry, ...], Field(min_length=1)] = ()
    tensors: tuple[TensorsEntry, ...] = ()
    evaluate: EvaluateForm = EvaluateForm()
    treatments: tuple[TreatmentEntry, ...] = ()
    noise: tuple[NoiseEntry, ...] = ()
    adds: AddsForm | None = None
    flow: tuple[FlowEntry, ...] = ()
    stacks: tuple[StackEntry, ...] = ()
    calibration: CalibrationForm | None = None
    kernels: Names = ()
    sensitivity: tuple[SensitivityEntry, ...] = ()
    eval: EvalForm | None = None
    optimizers: Names = ()
    budget: BudgetForm = BudgetForm()
    effects: tuple[EffectEntry, ...] = ()
    profiles: Annotated[dict[str, dict[str, Any]], Field(max_length=MOST_PROFILES)] = {}


def settings(form: Form) -> dict[str, Any]:
    """What was written in a partial form, without what was left out."""
    return {name: getattr(form, name) for name in form.model_fields_set}
