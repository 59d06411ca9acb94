"""Revisions: what decides about a number beside what was asked, so that numbers of other code are not taken for it."""

from typing import TYPE_CHECKING, Any

from qbench.models.spec import ModelSpec
from qbench.quant.catalog import quantizer_spec
from qbench.train.spec import FROM_LIBRARIES, TrainingSpec

if TYPE_CHECKING:
    from qbench.suite.cells import Environment, Measurement

# Raised by hand when ...
TRAIN = 1  # training gives other weights
INSIDE = 2  # training does, of those whose factors are quantized, or that round up and down at random
LAYER_NORM = 2  # training does, of models with LayerNorm: PyTorch's own rounds otherwise than ours did
MEASURE = 2  # a measurement gives other numbers; quantizers have revisions of their own

_WITH_FACTORS = {"state:factors", "state:bases", "state:all"}


def of_measurement(measurement: "Measurement") -> dict[str, Any]:
    """Of our own code that measures, and of its quantizers."""
    used = [measurement.quantizer] if measurement.quantizer else []
    used += measurement.treatment.assign.values() if measurement.treatment else []
    return {"measure": MEASURE, "quantizers": sorted({quantizer_spec(name).revision for name in used})}


def of_training(model: ModelSpec, training: TrainingSpec, environment: "Environment") -> dict[str, Any]:
    """What decides about trained weights beside the specs and TRAIN; nothing for most trainings."""
    library = FROM_LIBRARIES.get(training.optimizer, "")
    found: dict[str, Any] = {library: environment.libraries.get(library, "")} if library else {}
    inside = training.quantized or {}
    specs = [quantizer_spec(name) for name in inside.values()]
    found |= {"quantizers": sorted({spec.revision for spec in specs})} if inside else {}
    if _WITH_FACTORS & inside.keys() or any(spec.rounding.startswith("sr:") for spec in specs):
        found["inside"] = INSIDE
    if "layernorm" in (model.norm, model.qk_norm):
        found["layernorm"] = LAYER_NORM
    return {"trained_with": found} if found else {}


def of_library(measurement: "Measurement", environment: "Environment") -> dict[str, Any]:
    """The version of the library whose code is measured."""
    library = str(measurement.options.get("library", ""))
    return {library: environment.libraries.get(library, "")} if library else {}
