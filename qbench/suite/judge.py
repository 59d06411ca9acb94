"""What a model from elsewhere costs on its data, and who says so, whatever the data are."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from torch import Tensor, nn

from qbench.evaluate.sensitivity import Judge as Scoring
from qbench.stats.interval import mean_interval

BATCH = 16  # windows or images whose tensors are recorded at once: the shape that per-tensor scales belong to
OTHER_BATCH = 7  # for the numerical floor
# What has one number for each window or image, and so an interval.
EACH = ("loss", "loss_increase", "error_rate", "kld", "kld/reverse", "top1_changed", "flips", "delta_p")
Slices = Mapping[str, Mapping[str, float]]


@dataclass(frozen=True, slots=True)
class Costs:
    """What a model costs: `values` by metric, `vectors` one number per window or image, `slices` the costs of parts."""

    values: Mapping[str, float]
    vectors: Mapping[str, np.ndarray]
    slices: Slices = field(default_factory=dict[str, Mapping[str, float]])

    @property
    def n(self) -> int:
        return len(self.vectors["loss"])

    @property
    def intervals(self) -> dict[str, tuple[float, float]]:
        """95 % intervals over windows or images, of the means that have a vector."""
        found: dict[str, tuple[float, float]] = {}
        for name in EACH:
            if name in self.vectors and name in self.values:
                _, low, high = mean_interval(self.vectors[name].tolist())
                found[name] = (low, high)
        return found

    @property
    def window_floor(self) -> float:
        """The standard error of the loss, or of its increase, over windows or images; NaN for one of them."""
        each = self.vectors.get("loss_increase", self.vectors["loss"])
        return float(each.std(ddof=1) / len(each) ** 0.5) if len(each) > 1 else float("nan")


class Judge(Protocol):
    """Says what a model costs, alone or against what a reference said of the same data.

    `inputs` are the batches of the first `n` windows or images as a model reads them; `batches` those that `scoring`
    takes. A reference is whatever `reference` gave; a floor is had for less where `plain`, or its like, is known.
    """

    @property
    def scoring(self) -> Scoring: ...
    @property
    def digest(self) -> str: ...
    def plain(self, model: nn.Module) -> Costs: ...
    def reference(self, model: nn.Module, path: Path | None = None) -> Any: ...
    def against(self, model: nn.Module, reference: Any) -> Costs: ...
    def floor(self, model: nn.Module, plain: Costs | None = None) -> float: ...
    def inputs(self, n: int) -> list[Tensor]: ...
    def batches(self, n: int) -> list[Any]: ...
