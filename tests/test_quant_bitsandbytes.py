"""Bit for bit against bitsandbytes: NF4, its FP4, the dynamic map, blockwise 8 bits, double quantization."""

import pytest
import torch
from libraries import library
from torch import Tensor

from qbench.quant.codebooks import NF4, dynamic_map
from qbench.quant.grid import grid_of
from qbench.quant.quantizer import build
from qbench.quant.spelling import parse

bnb = library("bitsandbytes.functional")


def values(dtype: torch.dtype = torch.float32, rows: int = 64, width: int = 512) -> Tensor:
    return (torch.randn(rows, width, generator=torch.Generator().manual_seed(7)) ** 3).to(dtype)


def nibbles(packed: Tensor) -> Tensor:
    """Its bytes hold the first of two codes in the high half, ours in the low one, as MX and NVFP4 do."""
    flat = packed.flatten()
    return (flat << 4) | (flat >> 4)


def test_code_books_are_equal_to_the_bit() -> None:
    assert torch.equal(torch.tensor(NF4), bnb.get_4bit_type("nf4", device="cpu"))
    assert torch.equal(torch.tensor(dynamic_map(signed=True)), bnb.create_dynamic_map(signed=True))
    assert torch.equal(torch.tensor(dynamic_map(signed=False)), bnb.create_dynamic_map(signed=False))
    theirs = bnb.get_4bit_type("fp4", device="cpu")
    assert torch.equal(torch.tensor(grid_of(parse("bnbfp4/token")).levels), theirs.unique())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("block", [64, 128, 256])
def test_nf4_is_equal_to_the_bit(block: int, dtype: torch.dtype) -> None:
    x = values(dtype)
    packed, state = bnb.quantize_4bit(x, blocksize=block, quant_type="nf4")
    q = build(f"nf4/block:{block}")
    e = q.encode(x)
    assert torch.equal(e.scales.flatten(), state.absmax)
    assert torch.equal(e.codes, nibbles(packed))
    assert torch.equal(q.decode(e), bnb.dequantize_4bit(packed, state))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_fp4_is_equal_but_for_its_two_zeros(dtype: torch.dtype) -> None:
    """It keeps codes 0 and 8 for zero, and gives small positive values the negative one; their worth is the same."""
    x = values(dtype)
    packed, state = bnb.quantize_4bit(x, blocksize=64, quant_type="fp4")
    q = build("bnbfp4/block:64")
    e = q.encode(x)
    assert torch.equal(e.scales.flatten(), state.absmax)
    theirs = torch.stack([nibbles(packed) & 15, nibbles(packed) >> 4], 1).flatten()
    ours = torch.stack([e.codes & 15, e.codes >> 4], 1).flatten()
    assert (theirs == 8).any()
    assert torch.equal(ours, theirs.masked_fill(theirs == 8, 0))
    assert torch.equal(q.decode(e), bnb.dequantize_4bit(packed, state))


def test_its_ties_go_down_and_ours_to_even() -> None:
    code = bnb.get_4bit_type("fp4", device="cpu")
    x = torch.tensor([[1.0, float(code[5] + code[2]) / 2] + [0.0] * 62])
    packed, _ = bnb.quantize_4bit(x, blocksize=64, quant_type="fp4")
    assert int(nibbles(packed)[0] >> 4) == 5
    assert int(build("bnbfp4/block:64").encode(x).codes[0] >> 4) == 2


@pytest.mark.parametrize("signed", [True, False])
@pytest.mark.parametrize("block", [64, 256])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_the_dynamic_map_is_equal_to_the_bit(signed: bool, block: int, dtype: torch.dtype) -> None:
    """To its search for the nearest level, which its CPU kernel leaves to dtypes that it does not know."""
    x = values(dtype) if signed else values(dtype).abs()
    code = bnb.create_dynamic_map(signed=signed)
    codes, scales = torch.ops.bitsandbytes.quantize_blockwise.default(x.double(), code, block)
    q = build(f"dynamic{'' if signed else '.unsigned'}/block:{block}")
    e = q.encode(x)
    assert torch.equal(e.scales.flatten(), scales)
    differ = (e.codes != codes.flatten()).nonzero().flatten()
    assert len(differ) <= (0 if dtype == torch.float32 else 20)
    y = x.flatten()[differ].float() * (1 / scales[differ // block])  # ties, of which bfloat16 has some
    distance = [(y - code[found.flatten()[differ].int()]).abs() for found in (e.codes, codes)]
    torch.testing.assert_close(*distance, rtol=0, atol=1e-7)
    restored = torch.ops.bitsandbytes.dequantize_blockwise.default(e.codes.view(x.shape), scales, code, block, dtype)
    assert torch.equal(q.decode(e), restored)


def test_its_cpu_kernel_misses_the_nearest_level() -> None:
    """Of heavy-tailed values 7 in 100 get a neighbour of the nearest level, near zero one forty times too large."""
    x = values()
    codes, state = bnb.quantize_blockwise(x, code=bnb.create_dynamic_map(), blocksize=64)
    e = build("dynamic/block:64").encode(x)
    assert 0.01 < (e.codes != codes.flatten()).float().mean() < 0.2
    theirs = (bnb.dequantize_blockwise(codes, state) - x).abs()
    ours = (build("dynamic/block:64").decode(e) - x).abs()
    assert (ours <= theirs).all()


@pytest.mark.parametrize("kind", ["nf4", "fp4"])
def test_double_quantization_is_equal_to_the_bit(kind: str) -> None:
    x = values()
    packed, state = bnb.quantize_4bit(x, blocksize=64, quant_type=kind, compress_statistics=True)
    q = build(f"{kind.replace('fp4', 'bnbfp4')}/block:64/scale:double")
    e = q.encode(x)
    inner, mean = e.outer
    assert torch.equal(mean, state.offset)
    assert torch.equal(e.scales.flatten(), state.absmax)
    assert torch.equal(inner, state.state2.absmax)
    assert torch.equal(q.decode(e), bnb.dequantize_4bit(packed, state))


def test_bits_are_those_of_its_tensors() -> None:
    x = values()
    packed, state = bnb.quantize_4bit(x, blocksize=64, quant_type="nf4", compress_statistics=True)
    stored = (packed, state.absmax, state.state2.absmax, state.offset)
    assert build("nf4/block:64/scale:double").encode(x).bits == 8 * sum(t.numel() * t.element_size() for t in stored)


def test_its_blocks_cross_rows_and_ours_do_not() -> None:
    x = values(rows=4, width=96)
    codes, state = bnb.quantize_4bit(x, blocksize=64, quant_type="nf4")
    assert state.absmax.numel() == 6
    assert build("nf4/block:64").encode(x).scales.numel() == 8
    ours = build("nf4/block:64").encode(x.flatten())
    assert torch.equal(ours.scales.flatten(), state.absmax)
    assert torch.equal(ours.codes, nibbles(codes))


def test_its_cpu_kernel_decodes_rows_of_broken_blocks_wrongly() -> None:
    """bitsandbytes 0.50: where a row is no whole number of blocks, the scales of other blocks are used."""
    x = values(rows=4, width=96)
    theirs = bnb.dequantize_4bit(*bnb.quantize_4bit(x, blocksize=64, quant_type="nf4"))
    ours = build("nf4/block:64").roundtrip(x.flatten()).view(4, 96)
    assert torch.equal(theirs[0], ours[0])
    assert (theirs - x).norm() > 0.5 * x.norm() > 3 * (ours - x).norm()
