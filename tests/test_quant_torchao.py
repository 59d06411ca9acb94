"""Bit for bit against torchao: affine integers, float8, OCP MX with every element and mode, NVFP4; and its bugs."""

import pytest
import torch
from libraries import library
from torch import Tensor

from qbench.quant.pack import unpack
from qbench.quant.quantizer import build

ao = library("torchao.quantization")
primitives = library("torchao.quantization.quant_primitives")
mx = library("torchao.prototype.mx_formats.mx_tensor")
nv = library("torchao.prototype.mx_formats.nvfp4_tensor")
MODE = mx.ScaleCalculationMode
ELEMENTS = {
    "mxfp8e4m3": torch.float8_e4m3fn,
    "mxfp8e5m2": torch.float8_e5m2,
    "mxfp6e2m3": "fp6_e2m3",
    "mxfp6e3m2": "fp6_e3m2",
    "mxfp4": torch.float4_e2m1fn_x2,
}
MODES = {"": MODE.FLOOR, ".rceil": MODE.RCEIL, ".ceil": MODE.CEIL, ".even": MODE.EVEN}


def values(dtype: torch.dtype = torch.float32, rows: int = 64, width: int = 256) -> Tensor:
    """Heavy-tailed values over many binades, with ties, zeros, and blocks of zeros."""
    g = torch.Generator().manual_seed(1)
    x = torch.randn(rows, width, generator=g) ** 3 * torch.exp2(torch.randint(-20, 20, (rows, 1), generator=g).float())
    x[:, ::7] = (x[:, ::7] * 4).round() / 4
    x[3] = 0
    x[5, :32] = 0
    return x.to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", ELEMENTS)
def test_microscaling_is_equal_to_the_bit(name: str, mode: str, dtype: torch.dtype) -> None:
    x = values(dtype)
    scale, theirs = mx.to_mx(x, ELEMENTS[name], 32, MODES[mode])
    q = build(name + mode)
    e = q.encode(x)
    live = scale.view(torch.uint8).flatten() > 0  # an all-zero block has no scale of its own: see below
    assert torch.equal(e.scales.view(torch.uint8).flatten()[live], scale.view(torch.uint8).flatten()[live])
    packed = theirs.view(torch.uint8).flatten()
    ours = unpack(e.codes, 6, x.numel()) if "fp6" in name else e.codes  # theirs keeps six bits in eight
    assert torch.equal(ours, packed)
    restored = mx.MXTensor.to_mx(x, ELEMENTS[name], 32, MODES[mode]).dequantize(dtype)
    assert torch.equal(q.decode(e), restored)


def test_torchao_divides_tiny_blocks_by_twice_the_scale_that_it_stores() -> None:
    """2^-127 is stored and 2^-126 used, so that such blocks come back halved; ours are as the standard has them."""
    x = torch.full((1, 32), 2.0**-125)
    theirs = mx.MXTensor.to_mx(x, torch.float4_e2m1fn_x2, 32, MODE.FLOOR).dequantize(torch.float32)
    assert torch.equal(theirs, x / 2)
    assert torch.equal(build("mxfp4").roundtrip(x), x)


def test_torchao_takes_the_logarithm_in_float32() -> None:
    """Where the largest magnitude is one part in 2^23 above six times a power of two, its RCEIL rounds down."""
    x = torch.nextafter(torch.full((1, 32), 6 * 2.0**20), torch.tensor(torch.inf))
    scale, _ = mx.to_mx(x, torch.float4_e2m1fn_x2, 32, MODE.RCEIL)
    exact = build("mxfp4.rceil").encode(x).scales
    assert int(exact.view(torch.uint8)) == 127 + 21
    assert int(scale.view(torch.uint8)) in (127 + 20, 127 + 21)


def test_the_default_mode_of_its_tensor_and_of_its_config_differ() -> None:
    assert mx.MXTensor.to_mx.__defaults__[1] is MODE.FLOOR
    config = library("torchao.prototype.mx_formats").MXDynamicActivationMXWeightConfig()
    assert config.scaling_mode is MODE.RCEIL


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_nvfp4_is_equal_to_the_bit(dtype: torch.dtype) -> None:
    g = torch.Generator().manual_seed(2)
    x = (torch.randn(64, 256, generator=g) * 3.7).to(dtype)
    outer = nv.per_tensor_amax_to_scale(x.abs().max())
    scales, packed = nv.nvfp4_quantize(x, per_tensor_scale=outer)
    q = build("nvfp4")
    e = q.encode(x)
    assert torch.equal(e.outer[0], outer)
    assert torch.equal(e.scales.view(torch.uint8).flatten(), scales.view(torch.uint8).flatten())
    assert torch.equal(e.codes, packed.flatten())
    restored = nv.NVFP4Tensor.to_nvfp4(x, per_tensor_scale=outer).dequantize(dtype)
    assert torch.equal(q.decode(e), restored)


def test_nvfp4_without_the_scale_of_the_tensor() -> None:
    x = torch.randn(64, 256, generator=torch.Generator().manual_seed(3))
    q = build("e2m1/block:16/scale:e4m3")
    assert torch.equal(q.roundtrip(x), nv.NVFP4Tensor.to_nvfp4(x).dequantize(torch.float32))


def test_torchao_never_lets_a_block_scale_be_zero() -> None:
    """Ours may round to 0, as the cast does, and is counted as underflowed; theirs is raised to a smallest number."""
    x = torch.ones(1, 32)
    x[:, 16:] *= 2.0**-20
    outer = nv.per_tensor_amax_to_scale(x.abs().max())
    scales, _ = nv.nvfp4_quantize(x, per_tensor_scale=outer)
    e = build("nvfp4").encode(x)
    assert scales.float()[0, 1] > 0
    assert e.scales.float().flatten()[1] == 0
    assert e.underflowed == 1


def test_torchao_makes_nan_of_zeros_in_nvfp4_and_in_float8() -> None:
    zeros = torch.zeros(2, 32)
    outer = nv.per_tensor_amax_to_scale(zeros.abs().max())
    assert nv.NVFP4Tensor.to_nvfp4(zeros, per_tensor_scale=outer).dequantize(torch.float32).isnan().all()
    scale = primitives._choose_scale_float8(zeros, [2, 32])
    theirs = primitives._dequantize_affine_float8(primitives._quantize_affine_float8(zeros, scale), scale)
    assert theirs.isnan().all()
    for name in ("nvfp4", "e4m3/tensor"):
        assert build(name).roundtrip(zeros).eq(0).all()


@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize(
    ("granularity", "theirs"), [("tensor", ao.PerTensor()), ("token", ao.PerRow()), ("block:32", ao.PerGroup(32))]
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_affine_integers_are_equal_to_the_bit(bits: int, granularity: str, theirs: object, dtype: torch.dtype) -> None:
    """With -q..q for both ends, where its default is -2^(b-1)..q; and scales chosen in float32, as ours always are."""
    x = torch.randn(64, 256, generator=torch.Generator().manual_seed(bits)).to(dtype)
    top = 2 ** (bits - 1) - 1
    block = library("torchao.quantization.utils").get_block_size(x.shape, theirs)
    options = (block, torch.int8, -top, top)
    scale, zero = ao.choose_qparams_affine(x.float(), ao.MappingType.SYMMETRIC, *options)
    codes = ao.quantize_affine(x, block, scale, zero, torch.int8, -top, top)
    restored = ao.dequantize_affine(codes, block, scale, zero, torch.int8, -top, top, output_dtype=dtype)
    q = build(f"int{bits}/{granularity}")
    e = q.encode(x)
    assert torch.equal(e.scales.flatten(), scale.flatten())
    assert torch.equal(unpack(e.codes, bits, x.numel()), codes.flatten().view(torch.uint8) & (2**bits - 1))
    assert torch.equal(q.decode(e), restored)


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_zero_points_are_equal_to_the_bit(bits: int) -> None:
    x = torch.randn(64, 256, generator=torch.Generator().manual_seed(bits)) + 0.3
    options = ((1, 32), torch.uint8, 0, 2**bits - 1)
    scale, zero = ao.choose_qparams_affine(x, ao.MappingType.ASYMMETRIC, *options)
    codes = ao.quantize_affine(x, (1, 32), scale, zero, *options[1:])
    q = build(f"int{bits}.asym/block:32")
    e = q.encode(x)
    assert torch.equal(e.scales.flatten(), scale.flatten())
    assert e.zeros is not None
    assert torch.equal(unpack(e.zeros, bits, zero.numel()), zero.flatten().to(torch.uint8))
    assert torch.equal(unpack(e.codes, bits, x.numel()), codes.flatten())
    assert torch.equal(q.decode(e), ao.dequantize_affine(codes, (1, 32), scale, zero, *options[1:]))


def test_its_symmetric_default_is_the_full_range_at_another_scale() -> None:
    x = torch.randn(8, 32, generator=torch.Generator().manual_seed(0))
    scale, _ = ao.choose_qparams_affine(x, ao.MappingType.SYMMETRIC, (1, 32), torch.int8, -8, 7)
    torch.testing.assert_close(scale.flatten(), x.abs().amax(1) / 7.5)
    torch.testing.assert_close(build("int4.full/token").encode(x).scales.flatten(), x.abs().amax(1) / 8)


@pytest.mark.parametrize("granularity", ["tensor", "token", "tile:16x16"])
@pytest.mark.parametrize(("name", "dtype"), [("e4m3", torch.float8_e4m3fn), ("e5m2", torch.float8_e5m2)])
def test_float8_is_equal_to_the_bit(name: str, dtype: torch.dtype, granularity: str) -> None:
    x = torch.randn(64, 256, generator=torch.Generator().manual_seed(4)) ** 3
    block = {"tensor": [64, 256], "token": [1, 256], "tile:16x16": [16, 16]}[granularity]
    scale = primitives._choose_scale_float8(x, block, dtype)
    codes = primitives._quantize_affine_float8(x, scale, dtype)
    q = build(f"{name}/{granularity}")
    e = q.encode(x)
    assert torch.equal(e.scales.flatten(), scale.flatten())
    # It divides by the scale where ours multiplies with the inverse, which could move a value across a boundary.
    assert torch.equal(q.decode(e), primitives._dequantize_affine_float8(codes, scale))


def test_autograd_through_a_float8_tensor_loses_the_gradient() -> None:
    """Why every format here has a gradient of its own: the cast's backward pass casts the gradient, without a scale."""
    x = torch.randn(64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    (x.to(torch.float8_e4m3fn).float() * 5e-4).sum().backward()
    assert x.grad is not None
    assert x.grad.eq(0).all()
    x.grad = None
    (build("e4m3/tensor").fake(x) * 5e-4).sum().backward()
    assert x.grad.eq(5e-4).all()


def test_int8_mixed_precision_training_does_nothing_by_default() -> None:
    """torchao 0.18: its default swaps the weight for a subclass that nn.Linear then ignores."""
    training = library("torchao.prototype.quantized_training")
    generator = torch.Generator().manual_seed(0)
    plain = torch.nn.Sequential(torch.nn.Linear(64, 64))
    x = torch.randn(8, 64, generator=generator)
    before = plain(x)
    ao.quantize_(plain, training.Int8MixedPrecisionTrainingConfig())
    assert torch.equal(plain(x), before)


def test_its_gguf_weights_are_not_rounded() -> None:
    """torchao 0.18: the prototype keeps float codes, so that nothing is lost and nothing is saved."""
    prototype = library("torchao.prototype.quantization.gguf.api")
    linear = torch.nn.Linear(256, 64, bias=False)
    before = linear.weight.detach().clone()
    ao.quantize_(linear, prototype.GGUFWeightOnlyConfig())
    error = (linear.weight.dequantize() - before).norm() / before.norm()
    assert error < 1e-6
