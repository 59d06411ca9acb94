"""Scale rules: one positive number for each group of values, as it is stored and as it is used."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import frexp
from types import MappingProxyType

import torch
from torch import Tensor
from torch.nn.functional import pad

from qbench.quant.blocks import Blocks
from qbench.quant.codebooks import dynamic_map
from qbench.quant.grid import Grid
from qbench.quant.rounding import levels_of, nearest, snap_
from qbench.quant.spec import QuantizerSpec

STORAGE: Mapping[str, torch.dtype] = MappingProxyType(
    {
        "fp32": torch.float32,
        "bf16": torch.bfloat16,
        "fp16": torch.float16,
        "e4m3": torch.float8_e4m3fn,
        "e8m0": torch.float8_e8m0fnu,
    }
)
_SMALLEST = 2.0**-127  # of which float32 can still hold the inverse


@dataclass(frozen=True, slots=True)
class Scaling:
    """`stored` is what would be written to memory; a level is worth level * `factor`, a value is value * `inverse`.

    Where a scale underflowed, or the group is all zero, both are 0. `zeros` are zero points, in units of the grid;
    `outer` are the scales of the scales.
    """

    stored: Tensor
    factor: Tensor
    inverse: Tensor
    zeros: Tensor | None
    outer: tuple[Tensor, ...] = ()


Rule = Callable[[Blocks, Grid, QuantizerSpec], Tensor]


def absmax(blocks: Blocks, grid: Grid, _spec: QuantizerSpec) -> Tensor:
    """Map the largest magnitude of the group to the peak of the grid."""
    return blocks.peak / grid.peak


def rms(blocks: Blocks, grid: Grid, _spec: QuantizerSpec) -> Tensor:
    """Give the group the power for which the grid suits a Gaussian best (QuEST, arXiv 2502.05003)."""
    return blocks.rms * grid.unit()


def mean_magnitude(blocks: Blocks, _grid: Grid, _spec: QuantizerSpec) -> Tensor:
    """The best scale of signs (XNOR-Net, arXiv 1603.05279), and BitNet b1.58's for -1, 0, 1 (arXiv 2402.17764)."""
    return blocks.mean_magnitude


def percentile(blocks: Blocks, grid: Grid, spec: QuantizerSpec) -> Tensor:
    """Map a percentile of the magnitudes to the peak: what lies beyond is clipped."""
    return blocks.percentile(spec.rule_argument) / grid.peak


def clip(blocks: Blocks, grid: Grid, spec: QuantizerSpec) -> Tensor:
    """absmax of the group after clipping it at so many standard deviations (TernGrad, arXiv 1705.07878)."""
    return torch.minimum(blocks.peak, blocks.deviation * spec.rule_argument) / grid.peak


def l2(blocks: Blocks, grid: Grid, _spec: QuantizerSpec) -> Tensor:
    """Map the norm of the group to the peak (QSGD, arXiv 1610.02132)."""
    return blocks.rms * torch.as_tensor(blocks.count).to(blocks.values).sqrt() / grid.peak


def mse(blocks: Blocks, grid: Grid, spec: QuantizerSpec) -> Tensor:
    """absmax shrunk by 0 to 79 hundredths, whichever has the least squared error (the grid of GPTQ's `mse` option)."""
    top = blocks.peak / grid.peak
    best, least = top, torch.full_like(top, torch.inf)
    for hundredths in range(80):
        raw = top * (1 - hundredths / 100)
        factor = factor_of(_store(raw, spec.scale), spec.scale, (), blocks.values.dtype)
        levels = snap_((blocks.values * _inverse(factor)), grid)
        error = (levels.mul_(factor) - blocks.values).div_(blocks.unit).square_().sum(blocks.dims, keepdim=True)
        better = error < least
        best, least = torch.where(better, raw, best), torch.where(better, error, least)
    return best


def none(blocks: Blocks, _grid: Grid, _spec: QuantizerSpec) -> Tensor:
    """The levels are in the tensor's own units."""
    return torch.ones_like(blocks.peak)


RULES: Mapping[str, Rule] = MappingProxyType(
    {
        "absmax": absmax,
        "rms": rms,
        "meanabs": mean_magnitude,
        "percentile": percentile,
        "clip": clip,
        "l2": l2,
        "mse": mse,
        "none": none,
    }
)


def _floor(peak: Tensor, grid: Grid) -> Tensor:
    """The OCP MX rule: floor(log2 max|x|) - floor(log2 of the grid's peak)."""
    # frexp, not log2: in float32 log2(7.9999995) is exactly 3, which would double the scale.
    return torch.frexp(peak).exponent - frexp(grid.peak)[1]


def _ceil(peak: Tensor, grid: Grid) -> Tensor:
    """One more unless the largest magnitude is a power of two."""
    return _floor(peak, grid) + (torch.frexp(peak).mantissa > 0.5)


def _rceil(peak: Tensor, grid: Grid) -> Tensor:
    """ceil(log2(max|x| / peak)): the least exponent at which nothing saturates (NVIDIA's conversion)."""
    mantissa, exponent = torch.frexp(peak / grid.peak)
    return exponent - (mantissa == 0.5).int()


def _even(peak: Tensor, grid: Grid) -> Tensor:
    """The OCP rule for max|x| rounded to the element's own mantissa first, halves away from zero."""
    mantissa_bits = grid.floating[0] if grid.floating else 0
    return _floor(peak, grid) + (torch.frexp(peak).mantissa >= 1 - 2.0 ** -(mantissa_bits + 2))


EXPONENTS: Mapping[str, Callable[[Tensor, Grid], Tensor]] = MappingProxyType(
    {"pow2": _floor, "ceil": _ceil, "rceil": _rceil, "even": _even}
)


def scaling(blocks: Blocks, spec: QuantizerSpec, grid: Grid) -> Scaling:
    """The scales of all groups, rounded to their storage and then used as stored."""
    if spec.rule in EXPONENTS:
        return _scaling(blocks, _exponent(EXPONENTS[spec.rule](blocks.peak, grid), blocks.peak), spec)
    if spec.variant == "asym":
        # Halved first, which is exact, so that the range of the largest floats does not overflow.
        raw = (blocks.high / 2 - blocks.low / 2) / (grid.levels[-1] / 2)
        return _scaling(blocks, _store(raw, spec.scale), spec, grid.levels[-1])
    raw = RULES[spec.rule_word](blocks, grid, spec)
    if spec.scale in _TWO_LEVEL:
        return _TWO_LEVEL[spec.scale](blocks, raw, grid)
    return _scaling(blocks, _store(raw, spec.scale), spec)


def factor_of(stored: Tensor, storage: str, outer: tuple[Tensor, ...], dtype: torch.dtype) -> Tensor:
    """A stored scale as decoding uses it: one whose inverse would overflow counts as 0."""
    factor = _WORTH.get(storage, lambda stored, _outer: stored)(stored.to(dtype), tuple(o.to(dtype) for o in outer))
    return _usable(factor)


def underflowed(blocks: Blocks, used: Scaling) -> Tensor:
    """How many scales became zero though their group is not."""
    return ((used.factor == 0) & (blocks.peak > 0)).sum()


def _scaling(blocks: Blocks, stored: Tensor, spec: QuantizerSpec, top: float | None = None) -> Scaling:
    factor = factor_of(stored, spec.scale, (), blocks.values.dtype)
    inverse = _inverse(factor)
    zeros = None if top is None else (-blocks.low * inverse).round_().clamp_(0, top)
    return Scaling(stored, factor, inverse, zeros)


def _usable(factor: Tensor) -> Tensor:
    return factor.masked_fill(factor < _SMALLEST, 0)


def _inverse(factor: Tensor) -> Tensor:
    return factor.reciprocal().masked_fill_(factor == 0, 0)


def _store(raw: Tensor, storage: str) -> Tensor:
    dtype = STORAGE[storage]
    # A scale beyond the largest number of its storage saturates the group; infinity would turn it into NaN.
    return raw.clamp(max=torch.finfo(dtype).max).to(dtype)


def _exponent(exponent: Tensor, peak: Tensor) -> Tensor:
    # Setting the exponent's bits, not exp2: that is not exact on every device. An all-zero group gets the smallest
    # scale there is.
    exponent = exponent.masked_fill(peak == 0, -127).clamp_(-127, 127)
    return (exponent + 127).to(torch.uint8).view(torch.float8_e8m0fnu)


def _nvidia(blocks: Blocks, raw: Tensor, grid: Grid) -> Scaling:
    """NVFP4: e4m3 scales under one fp32 scale, which maps the largest of them to e4m3's largest number."""
    largest = torch.finfo(torch.float8_e4m3fn).max
    outer = (blocks.peak.amax() / (largest * grid.peak)).float()
    wide = outer.to(raw.dtype)
    stored = _store((raw / wide).nan_to_num_(0), "e4m3")
    factor = factor_of(stored, "e4m3.fp32", (outer,), raw.dtype)
    inverse = (wide.reciprocal() / stored.to(raw.dtype)).masked_fill_(factor == 0, 0)
    return Scaling(stored, factor, inverse, None, (outer,))


INNER = 256  # scales that share a scale


def _double(_blocks: Blocks, raw: Tensor, _grid: Grid) -> Scaling:
    """Double quantization (QLoRA, arXiv 2305.14314): scales less their mean, in 8-bit dynamic blocks of 256.

    As in bitsandbytes, values are encoded with the exact scale and decoded with the stored one.
    """
    exact = raw.float()
    unit = torch.ldexp(torch.ones_like(exact[:1]).amax(), torch.frexp(exact.amax()).exponent.clamp(-120, 120))
    mean = (exact / unit).mean() * unit  # whose sum does not overflow, and is otherwise the same
    rows = (exact - mean).flatten()
    rows = pad(rows, (0, -rows.numel() % INNER)).view(-1, INNER)
    inner = rows.abs().amax(1, keepdim=True)
    codes = nearest(rows * _inverse(inner), _inner_grid()).to(torch.uint8)
    stored = codes.flatten()[: raw.numel()].view(raw.shape)
    outer = (inner.flatten(), mean)
    factor = factor_of(stored, "double", outer, raw.dtype)
    return Scaling(stored, factor, _inverse(_usable(exact.to(raw.dtype))), None, outer)


def _inner_worth(codes: Tensor, inner: Tensor, mean: Tensor) -> Tensor:
    levels = levels_of(codes, _inner_grid(), inner.dtype).flatten()
    levels = pad(levels, (0, -levels.numel() % INNER)).view(-1, INNER) * inner[:, None]
    return levels.flatten()[: codes.numel()].view(codes.shape) + mean


def _inner_grid() -> Grid:
    return Grid(8, dynamic_map(signed=True))


_TWO_LEVEL: Mapping[str, Callable[[Blocks, Tensor, Grid], Scaling]] = MappingProxyType(
    {"e4m3.fp32": _nvidia, "double": _double}
)
_WORTH: Mapping[str, Callable[[Tensor, tuple[Tensor, ...]], Tensor]] = MappingProxyType(
    {"e4m3.fp32": lambda stored, outer: stored * outer[0], "double": lambda codes, outer: _inner_worth(codes, *outer)}
)
