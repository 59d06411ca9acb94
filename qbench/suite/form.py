"""The form of a suite file: which keys it may have, and what may stand under them."""

from collections.abc import Mapping
from dataclasses import fields
from typing import Annotated, Any, Literal, cast, get_type_hints

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    create_model,
    model_validator,
)

from qbench.capture.sites import MOST_LAYERS, Kind
from qbench.models.spec import ModelSpec
from qbench.suite.value import Attention, Bos, Dtype
from qbench.train.spec import TrainingSpec

LARGEST = 2**31 - 1  # any count; a seed too, because random number generators want no more
MOST_CELLS = 100_000
MOST_PROFILES = 20
MOST_LOOKS = 5
REQUIRED = ("suite", "version", "question", "models")
LOADING = ("load", "revision", "dtype", "attention", "device_map", "reference")


class Form(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


def _as_many(value: Any) -> Any:
    return value if isinstance(value, tuple) else (value,)


def _distinct(values: tuple[Any, ...]) -> tuple[Any, ...]:
    seen = set[Any]()
    for value in values:
        if value in seen:
            raise ValueError(f"{value} is given twice")
        seen.add(value)
    return values


def _ascending(values: tuple[int, ...]) -> tuple[int, ...]:
    if list(values) != sorted(set(values)):
        raise ValueError("looks at growing data: each number of windows is larger than the one before")
    return values


def _scalar(value: object) -> object:
    if isinstance(value, tuple | dict):
        raise ValueError("a parameter is text, a number, true, false or null")
    return value


def _tidy(text: str) -> str:
    if text != " ".join(text.split()):
        raise ValueError("no line breaks and no needless spaces here; it stands in tables")
    return text


Name = Annotated[str, Field(min_length=1, max_length=100), AfterValidator(_tidy)]
Text = Annotated[str, Field(min_length=1, max_length=1000)]
Word = Annotated[str, Field(min_length=1, max_length=200)]
Count = Annotated[int, Field(ge=1, le=LARGEST)]
Looks = Annotated[
    tuple[Count, ...], Field(min_length=1, max_length=MOST_LOOKS), BeforeValidator(_as_many), AfterValidator(_ascending)
]
Seeds = Annotated[tuple[Annotated[int, Field(ge=0, le=LARGEST)], ...], Field(min_length=1), AfterValidator(_distinct)]
Words = Annotated[tuple[Word, ...], Field(min_length=1), BeforeValidator(_as_many), AfterValidator(_distinct)]
Names = Annotated[tuple[Word, ...], BeforeValidator(_as_many), AfterValidator(_distinct)]  # a profile may empty it
Axis = Annotated[tuple[Any, ...], Field(min_length=1)]


def _partial(spec: type[ModelSpec] | type[TrainingSpec], limits: Mapping[str, int]) -> type[Form]:
    """A form with the fields of `spec`, none of them required."""
    hints: dict[str, Any] = get_type_hints(spec)
    for name, hint in hints.items():
        if hint is int:
            hints[name] = Annotated[int, Field(le=limits.get(name, LARGEST))]
    slots: dict[str, Any] = {field.name: (hints[field.name], field.default) for field in fields(spec)}
    return create_model(f"{spec.__name__}Form", __base__=Form, **slots)


SpecForm = _partial(ModelSpec, {"layers": MOST_LAYERS})
TrainingForm = _partial(TrainingSpec, {})


class Quantizers(Form):
    """A name, or every combination of the parts of `quant.spec.QuantizerSpec`."""

    name: Word | None = None
    grid: Words = ()
    bits: Annotated[tuple[int, ...], BeforeValidator(_as_many), Field(min_length=1), AfterValidator(_distinct)] = ()
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


QuantizerList = Annotated[tuple[Quantizers, ...], BeforeValidator(_as_many), Field(min_length=1)]


class ModelEntry(Form):
    """One arm, or with `product`, `zip` or `ablate` several; their keys are arch, spec.* and training.*.

    With `load` the arm is a model that was trained elsewhere; LOADING are the keys that go with it.
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
        given = self.model_fields_set
        if given - {"kind"} != {"scope", "quantizers"} and given != {"name", "assign"}:
            raise ValueError("a treatment has scope and quantizers (and kind), or name and assign")
        return self


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
    claim: Text
    between: Annotated[tuple[Name, ...], Field(min_length=2, max_length=2), AfterValidator(_distinct)]
    measure: MeasureForm
    compare: Literal["ratio", "difference"]
    thesis: Annotated[str, Field(pattern=r"^(above|below) [-+]?[0-9]{1,9}(\.[0-9]{1,9})?$")]


class SuiteForm(Form):
    """The keys of a file. REQUIRED ones have a default too, so that the rest can be checked without them."""

    suite: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9-]{0,63}$")] = ""
    version: Count = 1
    question: Text = ""
    note: Annotated[str, Field(max_length=1000)] = ""
    params: dict[str, Annotated[Any, AfterValidator(_scalar)]] = {}
    seeds: Seeds = (0,)
    data: Word = "stdlib"
    spec: SpecForm = SpecForm()  # pyright: ignore[reportInvalidTypeForm]
    training: TrainingForm = TrainingForm()  # pyright: ignore[reportInvalidTypeForm]
    models: Annotated[tuple[ModelEntry, ...], Field(min_length=1)] = ()
    tensors: tuple[TensorsEntry, ...] = ()
    evaluate: EvaluateForm = EvaluateForm()
    treatments: tuple[TreatmentEntry, ...] = ()
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
