"""A scale that was chosen before, from other data, and is used for every tensor of a place."""

from dataclasses import dataclass
from math import prod

from torch import Tensor

from qbench.quant.blocks import Blocks
from qbench.quant.scale import Scaling, factor_of
from qbench.quant.spec import QuantizerSpec


class NotCalibrated(ValueError):
    """A static quantizer has no scale, or that of another quantizer or of other channels."""


@dataclass(frozen=True, slots=True, eq=False)
class Fixed:
    """The scales [groups] that `spec` chose from a calibration set, as stored, and zero points; one group or channels.

    Values beyond the range saturate. A group that was all zero has scale 0: whatever comes there becomes 0, and the
    scale is counted among those that underflowed.
    """

    spec: QuantizerSpec
    stored: Tensor
    zeros: Tensor | None = None

    def over(self, blocks: Blocks, spec: QuantizerSpec) -> Scaling:
        """The scaling of these blocks by `spec`; raises NotCalibrated where they are not what was calibrated."""
        if spec != self.spec:
            raise NotCalibrated(f"the calibration holds the scale of {self.spec}, not of {spec}: calibrate that one")
        reduced = {axis % blocks.values.ndim for axis in blocks.dims}
        shape = [1 if axis in reduced else size for axis, size in enumerate(blocks.values.shape)]
        groups = prod(shape)
        if groups != self.stored.numel():
            raise NotCalibrated(f"{self.stored.numel()} channels were calibrated, the tensor has {groups}")
        device, dtype = blocks.values.device, blocks.values.dtype
        stored = self.stored.to(device).view(shape)
        factor = factor_of(stored, spec.scale, (), dtype)
        inverse = factor.reciprocal().masked_fill_(factor == 0, 0)
        zeros = None if self.zeros is None else self.zeros.to(device, dtype).view(shape)
        return Scaling(stored, factor, inverse, zeros)
