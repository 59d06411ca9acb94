"""Per-channel smoothing, and what else was learned of a place from a calibration set."""

from dataclasses import dataclass

import torch
from torch import Tensor

from qbench.quant.static import Fixed


@dataclass(frozen=True, slots=True, eq=False)
class Calibration:
    """What was seen of a place before: the largest magnitude of each channel of the last axis, [width].

    `weights` are those of the matrix that reads the place, where the difficulty is to be shared with it
    (SmoothQuant, arXiv 2211.10438). The factors then belong to the quantizer and are not stored with each tensor.
    `fixed` is the scale of a `+static` quantizer.
    """

    largest_C: Tensor
    weights_C: Tensor | None = None
    fixed: Fixed | None = None

    def factors(self, power: float) -> Tensor:
        """What channels are divided by: largest^power / weights^(1 - power), 1 where that is 0."""
        factors = self.largest_C.detach().float() ** power
        if self.weights_C is not None:
            factors = factors / self.weights_C.detach().float() ** (1 - power)
        return torch.where((factors > 0) & factors.isfinite(), factors, 1.0)

    def of_weights(self) -> "Calibration":
        """The other half of SmoothQuant: with +smooth:1-p it multiplies each column by what +smooth:p divides x by.

        Raises ValueError where the weights that read the place were not looked at.
        """
        if self.weights_C is None:
            raise ValueError("the weights that read this place were not looked at: give them to the calibration")
        return Calibration(self.weights_C, self.largest_C)


def observed(x: Tensor) -> Calibration:
    """The calibration that a tensor, or a batch of them, gives itself."""
    return Calibration(x.detach().abs().reshape(-1, x.shape[-1]).amax(0))
