"""Minifloats and MX blocks against torch's casts, ml_dtypes, gfloat and the tables of the OCP standard."""

import numpy as np
import pytest
import torch
from libraries import library
from torch import Tensor

from qbench.quant.encoded import packed, unpacked
from qbench.quant.grid import grid_of
from qbench.quant.pack import unpack
from qbench.quant.quantizer import build
from qbench.quant.rounding import snap_
from qbench.quant.spelling import parse

gfloat = library("gfloat")
formats = library("gfloat.formats")
ml_dtypes = library("ml_dtypes")
FORMATS = {
    "e4m3": (formats.format_info_ocp_e4m3, ml_dtypes.float8_e4m3fn),
    "e5m2": (formats.format_info_ocp_e5m2, ml_dtypes.float8_e5m2),
    "e2m3": (formats.format_info_ocp_e2m3, ml_dtypes.float6_e2m3fn),
    "e3m2": (formats.format_info_ocp_e3m2, ml_dtypes.float6_e3m2fn),
    "e2m1": (formats.format_info_ocp_e2m1, ml_dtypes.float4_e2m1fn),
}
# OCP MX v1.0 (2023), tables 3 to 5, and OFP8 v1.0, table 1: bias, largest number, smallest normal, smallest subnormal.
TABLES = {
    "e4m3": (448.0, 2.0**-6, 2.0**-9),
    "e5m2": (57344.0, 2.0**-14, 2.0**-16),
    "e2m3": (7.5, 1.0, 0.125),
    "e3m2": (28.0, 0.25, 0.0625),
    "e2m1": (6.0, 1.0, 0.5),
}
EACH = pytest.mark.parametrize("name", FORMATS)


def values(name: str) -> Tensor:
    """Every number of the format, every midpoint, their neighbours in float32, and many others."""
    levels = torch.tensor(grid_of(parse(f"{name}/tensor")).levels)
    middles = (levels[1:] + levels[:-1]) / 2
    inf = torch.tensor(torch.inf)
    exact = torch.cat([levels, middles])
    wild = torch.randn(20_000, generator=torch.Generator().manual_seed(0))
    wild = wild * torch.exp2(torch.arange(20_000) % 40 - 20.0)
    return torch.cat([exact, torch.nextafter(exact, inf), torch.nextafter(exact, -inf), wild])


def rounded(name: str, x: Tensor, rounding: str = "nearest") -> Tensor:
    return snap_(x.clone(), grid_of(parse(f"{name}/tensor")), rounding)


@EACH
def test_numbers_are_those_of_the_standard(name: str) -> None:
    grid = grid_of(parse(f"{name}/tensor"))
    positive = [level for level in grid.levels if level > 0]
    largest, normal, subnormal = TABLES[name]
    assert (positive[-1], positive[0]) == (largest, subnormal)
    assert normal in positive
    info = FORMATS[name][0]
    theirs = {gfloat.decode_float(info, code).fval for code in range(2**info.bits)}
    assert {level for level in theirs if np.isfinite(level)} == set(grid.levels)


@EACH
def test_every_code_has_the_standard_worth(name: str) -> None:
    spec = parse(f"{name}/tensor")
    grid, info = grid_of(spec), FORMATS[name][0]
    codes = [*grid.patterns, grid.negative_zero]
    stored = torch.tensor(codes, dtype=torch.uint8)
    worth = unpacked(packed_raw(stored, spec.bits), stored.shape, grid, spec, torch.float32)
    theirs = torch.tensor([gfloat.decode_float(info, code).fval for code in codes])
    assert torch.equal(worth, theirs)
    assert worth[-1].signbit()
    levels = torch.tensor([*grid.levels, -0.0])
    indices = torch.tensor([*range(len(grid.levels)), len(grid.levels) // 2])
    assert torch.equal(unpack(packed(indices, grid, spec, levels), spec.bits, len(codes)), stored)


def packed_raw(codes: Tensor, bits: int) -> Tensor:
    from qbench.quant.pack import pack

    return pack(codes, bits)


@EACH
def test_rounding_is_equal_to_gfloat_with_saturation(name: str) -> None:
    x = values(name)
    for rounding, mode in (("nearest", gfloat.RoundMode.TiesToEven), ("rtz", gfloat.RoundMode.TowardZero)):
        theirs = gfloat.round_ndarray(FORMATS[name][0], x.double().numpy(), mode, sat=True)
        assert torch.equal(rounded(name, x, rounding).double(), torch.from_numpy(theirs)), rounding


@EACH
def test_rounding_is_equal_to_ml_dtypes(name: str) -> None:
    x = values(name)
    x = x[x.abs() <= TABLES[name][0]]
    theirs = x.numpy().astype(FORMATS[name][1]).astype(np.float32)
    assert torch.equal(rounded(name, x), torch.from_numpy(theirs))


@pytest.mark.parametrize(("name", "dtype"), [("e4m3", torch.float8_e4m3fn), ("e5m2", torch.float8_e5m2)])
def test_rounding_is_equal_to_the_casts_of_torch(name: str, dtype: torch.dtype) -> None:
    x = values(name).clamp(-TABLES[name][0], TABLES[name][0])
    assert torch.equal(rounded(name, x), x.to(dtype).float())
    spec, grid = parse(f"{name}/tensor"), grid_of(parse(f"{name}/tensor"))
    levels = rounded(name, x)
    indices = torch.bucketize(levels, torch.tensor(grid.levels))
    assert torch.equal(packed(indices, grid, spec, levels), x.to(dtype).view(torch.uint8))


def test_the_cast_to_e5m2_does_not_saturate() -> None:
    """Not in torch, whose cast to e4m3 does: so values are clamped before any rounding here."""
    x = torch.tensor([1e6, -1e6])
    assert x.to(torch.float8_e5m2).float().isinf().all()
    assert x.to(torch.float8_e4m3fn).float().tolist() == [448, -448]
    assert rounded("e5m2", x).tolist() == [57344, -57344]
    assert rounded("e4m3", x).tolist() == [448, -448]


@pytest.mark.parametrize(
    ("name", "block_format"),
    [
        ("mxfp8e4m3", formats.format_info_mxfp8_e4m3),
        ("mxfp8e5m2", formats.format_info_mxfp8_e5m2),
        ("mxfp6e2m3", formats.format_info_mxfp6_e2m3),
        ("mxfp6e3m2", formats.format_info_mxfp6_e3m2),
        ("mxfp4", formats.format_info_mxfp4_e2m1),
        ("mxint8", formats.format_info_mxint8),
    ],
)
def test_blocks_decode_as_the_standard_says(name: str, block_format: object) -> None:
    """Scale byte, then 32 element codes: gfloat reads what we store."""
    x = (
        torch.randn(16, 32, generator=torch.Generator().manual_seed(5))
        * torch.exp2(torch.arange(16.0) * 3 - 20)[:, None]
    )
    q = build(name)
    e = q.encode(x)
    codes = unpack(e.codes, q.spec.bits, x.numel()).view(16, 32)
    scales = e.scales.view(torch.uint8).flatten()
    theirs = [
        list(gfloat.decode_block(block_format, [int(scale), *map(int, row)]))
        for scale, row in zip(scales, codes, strict=True)
    ]
    assert torch.equal(q.decode(e).double(), torch.tensor(theirs, dtype=torch.float64))


def test_mxint8_is_the_standard_s_fixed_point() -> None:
    """Two's complement with six fractional bits: 1.984375 is the largest element (OCP MX v1.0, table 6)."""
    grid = grid_of(parse("mxint8"))
    assert (grid.levels[0], grid.levels[-1], grid.levels[128]) == (-1.984375, 1.984375, 0.015625)
    e = build("mxint8").encode(torch.tensor([[1.0, -1.0, 1.984375] + [0.0] * 29]))
    assert e.scales.float().item() == 1
    assert e.codes.view(torch.int8)[:3].tolist() == [64, -64, 127]
