"""What quantizing one layer at a time costs: exactly, re-running only what follows it, or estimated by gradients."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from math import nan
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from qbench.capture.place import Matrix, Place
from qbench.capture.write import Engagement, quantized
from qbench.evaluate.replay import Prefix
from qbench.evaluate.units import Unit, blocks
from qbench.quant.catalog import quantizer_spec
from qbench.quant.quantizer import Quantizer, build
from qbench.quant.smooth import Calibration

Scores = Mapping[str, Tensor]  # metric -> one number for each window of a batch, [B]


@dataclass(frozen=True, slots=True)
class Judge:
    """How a pass is scored: `run` gives what is kept of it, `score` compares that with the clean pass.

    `score(output, clean, batch)` must give "loss" with its graph; divergences from the clean output come beside it.
    """

    run: Callable[[nn.Module, Any], Tensor]
    score: Callable[[Tensor, Tensor, Any], Scores]


def _token_losses(logits: Tensor, _clean: Tensor, windows: Tensor) -> Scores:
    target = windows[:, 1:]
    wide = logits.flatten(0, 1).to(torch.promote_types(logits.dtype, torch.float32))
    each = cross_entropy(wide, target.flatten(), reduction="none").view(target.shape)
    return {"loss": each.double().mean(1)}


def _class_losses(logits: Tensor, _clean: Tensor, batch: tuple[Tensor, Tensor]) -> Scores:
    wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return {"loss": cross_entropy(wide, batch[1], reduction="none").double()}


NEXT_TOKEN = Judge(lambda model, windows: model(windows[:, :-1]), _token_losses)  # of windows [B, T + 1]
CLASSES = Judge(lambda model, batch: model(batch[0]), _class_losses)  # of images [B, ...] and labels [B]


@dataclass(frozen=True, slots=True)
class Treatment:
    """What is done to a unit: names of quantizers for its matrices and for its input; empty for nothing.

    `calibrations` of inputs that need one, by the unit's name.
    """

    weights: str = ""
    inputs: str = ""
    calibrations: Mapping[str, Calibration] = field(default_factory=dict[str, Calibration])

    def __post_init__(self) -> None:
        if not (self.weights or self.inputs):
            raise ValueError("a treatment quantizes weights, inputs, or both; both names are empty")

    def of_matrices(self, unit: Unit) -> dict[str, tuple[Matrix, Quantizer]]:
        if not self.weights:
            return {}
        return {name: (matrix, build(self.weights, channel_axis=0)) for name, matrix in unit.matrices.items()}

    def of_places(self, unit: Unit) -> dict[str, tuple[Place, Quantizer]]:
        if not self.inputs:
            return {}
        quantizer = Quantizer(quantizer_spec(self.inputs), calibration=self.calibrations.get(unit.name))
        return {name: (place, quantizer) for name, place in unit.places.items()}

    def misses(self, unit: Unit) -> str:
        """What it cannot do to a unit whose input is no place; empty where it can do all."""
        if unit.places or not self.inputs:
            return ""
        return f"the input of {unit.name} is no place: " + (
            "only its weights are quantized" if self.weights else "skipped"
        )

    def applied(self, unit: Unit) -> AbstractContextManager[Engagement]:
        return quantized(self.of_places(unit), self.of_matrices(unit))


@dataclass(frozen=True, slots=True, eq=False)
class Sweep:
    """One treatment, given to one unit of a model after the other; those that it cannot touch are skipped."""

    model: nn.Module
    units: Sequence[Unit]
    treatment: Treatment
    judge: Judge = NEXT_TOKEN

    @property
    def touched(self) -> tuple[Unit, ...]:
        return tuple(unit for unit in self.units if unit.places or self.treatment.weights)


@dataclass(frozen=True, slots=True)
class Cost:
    """Mean over windows of a metric less that of the clean model, paired, with its standard error (NaN for one)."""

    unit: str
    mean: float
    standard_error: float
    n: int


@dataclass(frozen=True, slots=True, eq=False)
class Sensitivity:
    """Scores of the clean model and of each unit: metric -> [windows], float64.

    `forwards` are block forward passes of the units, `full` what whole passes would have taken; the clean pass, which
    both need, is not among them. `warnings` name units that were skipped, and places where a quantizer changed nothing.
    """

    clean: Mapping[str, NDArray[np.float64]]
    units: Mapping[str, Mapping[str, NDArray[np.float64]]]
    forwards: int
    full: int
    warnings: tuple[str, ...] = ()

    def costs(self, metric: str = "loss") -> tuple[Cost, ...]:
        """Of every unit, the most sensitive first."""
        found = [_cost(name, scores[metric] - self.clean[metric]) for name, scores in self.units.items()]
        return tuple(sorted(found, key=lambda cost: -cost.mean))


@torch.no_grad()
def exact(sweep: Sweep, batches: Iterable[Any]) -> Sensitivity:
    """Score every batch clean and with each unit quantized alone; what comes before a unit is run once.

    Per-tensor scales of inputs are those of a batch. Memory: what leaves each block, for one batch. Raises ValueError
    where there is no batch, or where the model cannot be resumed (see `Prefix`), and what its quantizers raise.
    """
    layers = blocks(sweep.model)
    clean: list[Scores] = []
    found: dict[str, list[Scores]] = {unit.name: [] for unit in sweep.touched}
    warnings = dict.fromkeys(missed for unit in sweep.units if (missed := sweep.treatment.misses(unit)))
    forwards = 0
    for batch in batches:
        prefix = Prefix(layers)
        with prefix.recorded():
            reference = sweep.judge.run(sweep.model, batch)
        clean.append(sweep.judge.score(reference, reference, batch))
        for unit in sweep.touched:
            with prefix.resumed(unit.block), sweep.treatment.applied(unit) as engagement:
                output = sweep.judge.run(sweep.model, batch)
            warnings |= dict.fromkeys(engagement.warnings())
            found[unit.name].append(sweep.judge.score(output, reference, batch))
        forwards += prefix.forwards - len(layers)
    if not clean:
        raise ValueError("there is no batch to score")
    return Sensitivity(
        clean=_joined(clean),
        units={name: _joined(scores) for name, scores in found.items()},
        forwards=forwards,
        full=len(layers) * len(sweep.touched) * len(clean),
        warnings=tuple(warnings),
    )


def _joined(parts: Sequence[Scores]) -> dict[str, NDArray[np.float64]]:
    return {metric: torch.cat([part[metric].double().cpu() for part in parts]).numpy() for metric in parts[0]}


def _cost(unit: str, each: NDArray[np.float64]) -> Cost:
    error = float(each.std(ddof=1) / len(each) ** 0.5) if len(each) > 1 else nan
    return Cost(unit, float(each.mean()), error, len(each))
