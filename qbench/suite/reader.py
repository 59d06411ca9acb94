"""What a suite's own model is taught, and how it is judged, whatever it reads: one row for each kind of data."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from qbench.evaluate.sensitivity import Judge as Scoring
from qbench.suite.material import Material
from qbench.train.spec import TrainingSpec
from qbench.train.trainer import Batch

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False)
class Scored:
    """What a model costs: by metric, one number for each window, problem or image; "loss" and "error_rate" always."""

    vectors: Mapping[str, Floats]

    @property
    def losses(self) -> Floats:
        return self.vectors["loss"]

    @property
    def loss(self) -> float:
        return self.mean("loss")

    def mean(self, metric: str) -> float:
        return float(self.vectors[metric].mean())


class Reader(Protocol):
    """Material as one model reads it.

    `examples` are pieces of a split, evenly spaced, in the form that `score` and `floor` take; `batches` are the same
    in the form that `scoring` and the training take, `material.recorded` of them at once. `bounded` are the metrics
    that get an interval.
    """

    bounded: ClassVar[tuple[str, ...]]

    @property
    def material(self) -> Material: ...
    @property
    def scoring(self) -> Scoring: ...

    def lessons(self, training: TrainingSpec, seed: int) -> Iterator[Batch]:
        """Batches of the training split, all of them; the order depends on the seed alone."""
        ...

    def chance(self) -> float:
        """Entropy in nats of what is predicted in the training split: the loss of the best guess that sees nothing."""
        ...

    def known(self) -> Mapping[str, float]:
        """Metrics of the tuning split that no model changes."""
        ...

    def examples(self, split: str, n: int) -> Any: ...
    def score(self, model: nn.Module, examples: Any) -> Scored: ...
    def floor(self, model: nn.Module, examples: Any, scored: Scored) -> float:
        """The largest change of a piece's loss when only the arithmetic changes."""
        ...

    def derived(self, loss: float) -> Mapping[str, float]:
        """Metrics that are the loss in another unit."""
        ...

    def watched(self) -> Tensor:
        """What the model reads where its kurtosis is followed through a training."""
        ...

    def batches(self, split: str, n: int) -> list[Batch]: ...
