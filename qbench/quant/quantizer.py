"""Quantizers: a tensor into what would be stored, and back."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import lru_cache
from zlib import crc32

import torch
from torch import Tensor

from qbench.quant.blocks import Blocks, join, split, working
from qbench.quant.catalog import quantizer_spec
from qbench.quant.encoded import Encoded, packed, unpacked
from qbench.quant.fit import fitted_grid
from qbench.quant.grid import Grid, grid_of
from qbench.quant.rotate import derandomized, randomized, rotate, rotation_size
from qbench.quant.rounding import nearest, snap_, whole
from qbench.quant.scale import Scaling, factor_of, scaling, underflowed
from qbench.quant.smooth import Calibration, observed
from qbench.quant.spec import QuantizerSpec, bits_per_value
from qbench.quant.static import NotCalibrated


@dataclass(frozen=True, slots=True)
class Choice:
    """What a quantizer chose for one tensor: the groups, their scales, and levels and channel factors of its own."""

    grid: Grid
    blocks: Blocks
    used: Scaling
    factors: Tensor | None  # of smoothing, [width]


@dataclass(frozen=True, slots=True)
class Quantizer:
    """Grid, granularity, scale rule, rounding and wrappers of a spec, applied to tensors of any shape.

    `channel_axis` is the axis whose every index has its own scale under `channel`: the last for activations and
    gradients, 0 for weights. `stream` makes another draw of stochastic rounding, `calibration` gives the factors of
    smoothing and the scale of a static spec. Arithmetic is float64 for float64 tensors, else float32; results have the
    tensor's dtype. Raises NonFinite for NaN or infinity, CannotRotate and NoSuchAxis where a shape does not fit,
    NotCalibrated where a static spec has no scale, or one of other channels.
    """

    spec: QuantizerSpec
    channel_axis: int = -1
    stream: int = 0
    calibration: Calibration | None = None

    def encode(self, x: Tensor) -> Encoded:
        """The bytes that would be stored."""
        if not x.numel():
            nothing = torch.empty(0, dtype=torch.uint8, device=x.device)
            return Encoded(nothing, torch.empty(0, device=x.device), x.shape, x.dtype)
        choice = self.choose(x)
        levels = self._snapped(choice)
        codes = nearest(levels, choice.grid)
        used, stored_factors = choice.used, None if self.calibration else choice.factors
        return Encoded(
            codes=packed(codes, choice.grid, self.spec, levels),
            scales=used.stored if self._stores_scales else used.stored.new_empty(0),
            shape=x.shape,
            dtype=x.dtype,
            zeros=None
            if used.zeros is None or self.spec.static
            else packed(used.zeros.to(torch.uint8), None, self.spec),
            outer=used.outer,
            codebook=_codebook(choice.grid, x.device) if self.spec.fitted else None,
            factors=stored_factors,
            underflowed=int(underflowed(choice.blocks, used)),
        )

    def decode(self, e: Encoded) -> Tensor:
        """The tensor that the bytes stand for, in its own dtype."""
        if not e.shape.numel():
            return torch.empty(e.shape, dtype=e.dtype, device=e.codes.device)
        dtype = torch.float64 if e.dtype == torch.float64 else torch.float32
        sizes = split(torch.empty(e.shape or (1,), device="meta"), self.spec.granularity, self.channel_axis)
        grid = grid_of(self.spec) if e.codebook is None else Grid(self.spec.bits, tuple(e.codebook.unique().tolist()))
        levels = unpacked(e.codes, sizes.values.shape, grid, self.spec, dtype)
        if self.spec.rule == "none":
            return saturating(self.restore(levels, e.shape, e.factors), e.dtype)
        if self.spec.static:
            used = self._fixed(Blocks(levels, sizes.dims, sizes.count))
            return saturating(self.restore(worth_(levels, used.factor, used.zeros), e.shape, e.factors), e.dtype)
        zeros = None if e.zeros is None else unpacked(e.zeros, e.scales.shape, None, self.spec, dtype)
        factor = factor_of(e.scales, self.spec.scale, e.outer, dtype)
        return saturating(self.restore(worth_(levels, factor, zeros), e.shape, e.factors), e.dtype)

    def roundtrip(self, x: Tensor) -> Tensor:
        """What the rest of the network would see: equal to decode(encode(x)), in fewer passes over memory."""
        if not x.numel():
            return x.detach().clone()
        choice = self.choose(x)
        values = worth_(self._snapped(choice), choice.used.factor, choice.used.zeros)
        return saturating(self.restore(values, x.shape, choice.factors), x.dtype)

    def fake(self, x: Tensor, backward: "Quantizer | None" = None, *, trust: bool = False) -> Tensor:
        """`roundtrip` for training, see `straight.fake`."""
        from qbench.quant.straight import fake

        return fake(x, self, backward, trust=trust)

    def codes(self, x: Tensor) -> Tensor:
        """Which level each value became, uint8, counted from the lowest; in the shape of the blocks, with padding."""
        if not x.numel():
            return torch.empty(x.shape, dtype=torch.uint8, device=x.device)
        choice = self.choose(x)
        return nearest(self._snapped(choice), choice.grid).to(torch.uint8)

    def saturated(self, x: Tensor) -> int:
        """Values beyond the outermost level by more than half a step, after any rotation."""
        return int((~self.trusted(self.choose(x))).sum()) if x.numel() else 0

    def trusted(self, choice: Choice) -> Tensor:
        """Which values are not saturated, in the shape of the blocks: QuEST's trust mask."""
        low, high = choice.grid.limits
        y = choice.blocks.values * choice.used.inverse
        y = y if choice.used.zeros is None else y.add_(choice.used.zeros)
        return (y >= low) & (y <= high)

    def choose(self, x: Tensor) -> Choice:
        """Groups, scales and whatever else is chosen by looking at a tensor that is not empty."""
        x, factors = self.smoothed(working(x))
        blocks = self.blocks(x)
        if not self.spec.fitted:
            grid = grid_of(self.spec)
            used = self._fixed(blocks) if self.spec.static else scaling(blocks, self.spec, grid)
            return Choice(grid, blocks, used, factors)
        used = scaling(blocks, self.spec, _UNIT)
        values = join(blocks.values * used.inverse, x.shape, self.spec.granularity)
        return Choice(fitted_grid(self.spec.grid, self.spec.bits, values), blocks, used, factors)

    def smoothed(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """`x` (float32 or float64, at least 1-d) with its channels divided by factors, and those."""
        if self.spec.smooth is None:
            return x, None
        factors = (self.calibration or observed(x)).factors(self.spec.smooth).to(x.device)
        return x / factors.to(x.dtype), factors

    def blocks(self, x: Tensor) -> Blocks:
        """The groups of `x` (float32 or float64, at least 1-d) that share a scale, after rotation."""
        if self.spec.hadamard is not None:
            x = rotate(x, rotation_size(self.spec.hadamard, x.shape[-1]))
        if self.spec.rht is not None:
            x = randomized(x, self.spec.rht)
        return split(x, self.spec.granularity, self.channel_axis)

    def restore(self, values: Tensor, shape: torch.Size, factors: Tensor | None = None) -> Tensor:
        """Undo `blocks`, and smoothing by `factors`, for quantized values."""
        x = join(values, shape if shape else torch.Size((1,)), self.spec.granularity)
        if self.spec.hadamard is not None:
            x = rotate(x, rotation_size(self.spec.hadamard, x.shape[-1]))
        if self.spec.rht is not None:
            x = derandomized(x, self.spec.rht)
        if factors is None and self.calibration is not None and self.spec.smooth is not None:
            factors = self.calibration.factors(self.spec.smooth).to(x.device)
        return (x if factors is None else x * factors.to(x.dtype)).reshape(shape)

    def bits_per_value(self, shape: Iterable[int]) -> float:
        """Stored bits over values, for a tensor of this shape."""
        return bits_per_value(self.spec, shape, self.channel_axis, calibrated=self.calibration is not None)

    def drawn(self, draw: int, place: str = "") -> "Quantizer":
        """The same with other random numbers for stochastic rounding: of their own for each draw and each place."""
        return replace(self, stream=crc32(f"{draw} {place}".encode()))

    @property
    def _stores_scales(self) -> bool:
        return self.spec.rule != "none" and not self.spec.static

    def _fixed(self, blocks: Blocks) -> Scaling:
        if self.calibration is None or self.calibration.fixed is None:
            raise NotCalibrated(
                f"the scale of {self.spec} is fixed before: choose it with capture.calibrate from data that is not "
                f"measured on, then build({str(self.spec)!r}, calibration=...)"
            )
        return self.calibration.fixed.over(blocks, self.spec)

    def _snapped(self, choice: Choice) -> Tensor:
        return snapped(choice.blocks, choice.used, choice.grid, self.spec.rounding, self.stream)


def build(spec: QuantizerSpec | str, channel_axis: int = -1, calibration: Calibration | None = None) -> Quantizer:
    """The quantizer of a spec, of a row of the catalog, or of a spelled name; raises QuantizerName.

    >>> build("int4/token").roundtrip(torch.tensor([7.0, 2.4, -0.1])) + 0.0
    tensor([7., 2., 0.])
    """
    if calibration is None:
        return _built(spec, channel_axis)
    return replace(_built(spec, channel_axis), calibration=calibration)  # kept by whoever has it, and no longer


@lru_cache(maxsize=4096)
def _built(spec: QuantizerSpec | str, channel_axis: int) -> Quantizer:
    return Quantizer(spec if isinstance(spec, QuantizerSpec) else quantizer_spec(str(spec)), channel_axis)


def snapped(blocks: Blocks, used: Scaling, grid: Grid, rounding: str = "nearest", stream: int = 0) -> Tensor:
    """The level of each value, in units of the grid; a new tensor."""
    y = blocks.values * used.inverse
    if rounding == "rtz":
        # The inverse of a scale is rounded, and the largest value of a group must not fall short of its level.
        y = y.mul_(1 + 4 * torch.finfo(y.dtype).eps)
    if used.zeros is None:
        return snap_(y, grid, rounding, stream)
    return whole(rounding, stream)(y).add_(used.zeros).clamp_(grid.levels[0], grid.levels[-1])


def worth_(levels: Tensor, factor: Tensor, zeros: Tensor | None) -> Tensor:
    """What the levels stand for; in place."""
    return (levels if zeros is None else levels.sub_(zeros)).mul_(factor)


def saturating(x: Tensor, dtype: torch.dtype) -> Tensor:
    """A level above the largest value of a float16 tensor may lie beyond the largest float16."""
    largest = torch.finfo(torch.float16).max
    return x.clamp_(-largest, largest).half() if dtype == torch.float16 else x.to(dtype)


_UNIT = Grid(1, (-1.0, 1.0), unit_power=True)  # for the scales of grids that are fitted after scaling


def _codebook(grid: Grid, device: torch.device) -> Tensor:
    """Fitted levels as stored: 2^bits fp32 numbers, the last one repeated where there are fewer."""
    missing = 2**grid.bits - len(grid.levels)
    return torch.tensor([*grid.levels, *grid.levels[-1:] * missing], dtype=torch.float32, device=device)
