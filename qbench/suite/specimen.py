"""A model with what it is looked at with, wherever both come from: what the cells about flow are answered with."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from qbench.capture.place import Matrix, Place
from qbench.evaluate.sensitivity import Judge
from qbench.quant.quantizer import Quantizer

Assignment = tuple[dict[str, tuple[Place, Quantizer]], dict[str, tuple[Matrix, Quantizer]]]


@dataclass(frozen=True, slots=True, eq=False)
class Specimen:
    """`batches` are as `scoring` takes them and `inputs` what the model reads of them, both on its device.

    `assignment` gives the places and matrices that the cell's treatment quantizes.
    """

    model: nn.Module
    scoring: Judge
    batches: Sequence[Any]
    inputs: Sequence[Tensor]
    assignment: Callable[[], Assignment]
