"""Quantizers against published numbers, other implementations and a scalar one."""

from collections.abc import Callable
from itertools import pairwise
from math import floor, frexp, log10, sqrt
from struct import pack, unpack

import pytest
import torch
from torch import Tensor
from torch.nn.functional import gelu

from qbench.quant.catalog import QUANTIZERS
from qbench.quant.expect import expected_error_db
from qbench.quant.grid import grid_of
from qbench.quant.quantizer import build
from qbench.quant.spec import QuantizerSpec
from qbench.quant.spelling import parse
from qbench.stats.gaussian import lloyd_max, optimal_uniform

SYMMETRIC_LEVELS = {
    "int3": [-3, -2, -1, 0, 1, 2, 3],
    "int3.full": [-4, -3, -2, -1, 0, 1, 2, 3],
    "int3.asym": [0, 1, 2, 3, 4, 5, 6, 7],
    "int2": [-1, 0, 1],
    "e2m1": [-6, -4, -3, -2, -1.5, -1, -0.5, 0, 0.5, 1, 1.5, 2, 3, 4, 6],  # OCP Microscaling Formats v1.0, table 5
}


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def error_db(x: Tensor, y: Tensor) -> float:
    return 10 * log10(float((x.double() - y.double()).square().sum() / x.double().square().sum()))


@pytest.mark.parametrize(("name", "levels"), SYMMETRIC_LEVELS.items())
def test_levels_are_the_published_ones(name: str, levels: list[float]) -> None:
    assert list(grid_of(parse(f"{name}/tensor")).levels) == levels


# One scalar at a time, in float64, with none of the code under test.


def nearest_level(y: float, levels: list[float]) -> float:
    distance = [abs(y - level) for level in levels]
    close = [i for i, d in enumerate(distance) if d == min(distance)]
    even = [i for i in close if (i - len(levels) // 2) % 2 == 0]
    return levels[(even or close)[0]]


def float32(value: float) -> float:
    return unpack("f", pack("f", value))[0]


def scalar_roundtrip(row: list[float], spec: QuantizerSpec) -> list[float]:
    """One group of values that share an fp32 or e8m0 scale."""
    levels = [float(level) for level in range(2**spec.bits)]
    if spec.variant == "asym":
        low, high = min(0.0, *row), max(0.0, *row)
        scale = float32((high - low) / levels[-1])
        zero = min(max(round(-low / scale), 0), levels[-1])
        return [(min(max(round(v / scale) + zero, 0), levels[-1]) - zero) * scale for v in row]
    levels = list(grid_of(spec).levels)
    peak, top = max(abs(v) for v in row), max(abs(level) for level in levels)
    if spec.rule == "pow2":
        scale = 2.0 ** ((frexp(peak)[1] - 1) - floor(frexp(top)[1] - 1))
    elif spec.rule == "rms":
        unit = optimal_uniform(spec.bits) if spec.grid == "int" else 1.0
        scale = float32(sqrt(sum(v * v for v in row) / len(row)) * unit)
    else:
        scale = float32(peak / top)
    return [nearest_level(v / scale, levels) * scale for v in row]


@pytest.mark.parametrize(
    "name",
    ["int2/G", "int4/G", "int8/G", "int4.full/G", "int3.asym/G", "int8.asym/G", "int4/G/rms", "int8/G/pow2/scale:e8m0",
     "e2m1/G", "e2m1/G/pow2/scale:e8m0", "lloyd1/G", "lloyd3/G", "lloyd4/G/absmax"],
)  # fmt: skip
@pytest.mark.parametrize("granularity", ["tensor", "token", "channel", "block:8"])
def test_equal_to_a_scalar_implementation(name: str, granularity: str) -> None:
    spec = parse(name.replace("G", granularity))
    x = torch.randn(5, 20, generator=generator(), dtype=torch.float64) ** 3
    groups = {
        "tensor": [x.flatten()],
        "token": list(x),
        "channel": list(x.T),
        "block:8": [part for row in x for part in row.split(8)],
    }[granularity]
    expected = [torch.tensor(scalar_roundtrip(group.tolist(), spec), dtype=torch.float64) for group in groups]
    back: dict[str, Callable[[], Tensor]] = {
        "tensor": lambda: expected[0].view(5, 20),
        "token": lambda: torch.stack(expected),
        "channel": lambda: torch.stack(expected).T,
        "block:8": lambda: torch.cat(expected).view(5, 20),
    }
    torch.testing.assert_close(build(spec).roundtrip(x), back[granularity](), rtol=1e-12, atol=0)


@pytest.mark.parametrize("name", ["int4", "int8", "e2m1", "int8/pow2", "e2m1/pow2"])
def test_ties_go_to_even(name: str) -> None:
    grid, _, rule = name.partition("/")
    spec = parse(f"{grid}/tensor" + ("/pow2/scale:e8m0" if rule else ""))
    levels = list(grid_of(spec).levels)
    ties = [(a + b) / 2 for a, b in pairwise(levels)]
    x = torch.tensor([*ties, max(levels)])  # the last one makes the scale 1
    assert build(spec).roundtrip(x).tolist() == [nearest_level(v, levels) for v in x.tolist()]


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_equal_to_torch_per_tensor(bits: int) -> None:
    x, top = torch.randn(64, 100, generator=generator(bits)), 2 ** (bits - 1) - 1
    scale = float(x.abs().max() / top)
    theirs = torch.fake_quantize_per_tensor_affine(x, scale, 0, -top, top)
    assert torch.equal(build(f"int{bits}/tensor").roundtrip(x), theirs)


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_equal_to_torch_with_a_zero_point(bits: int) -> None:
    x, top = torch.randn(64, 100, generator=generator(bits)) + 0.7, 2**bits - 1
    e = build(f"int{bits}.asym/tensor").encode(x)
    assert e.zeros is not None
    scale = (x.max() - x.min()) / top
    theirs = torch.fake_quantize_per_tensor_affine(x, float(scale), int(torch.round(-x.min() / scale)), 0, top)
    assert torch.equal(build(f"int{bits}.asym/tensor").decode(e), theirs)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_equal_to_torch_per_channel(axis: int) -> None:
    x = torch.randn(8, 9, 10, generator=generator())
    scales = x.abs().amax([a for a in range(3) if a != axis]) / 7
    theirs = torch.fake_quantize_per_channel_affine(x, scales, torch.zeros_like(scales, dtype=torch.int32), axis, -7, 7)
    assert torch.equal(build("int4/channel", channel_axis=axis).roundtrip(x), theirs)


def test_the_mx_scale_follows_the_standard() -> None:
    just_below, at = 7.9999995, 8.0  # in float32 log2(7.9999995) is 3
    x = torch.tensor([[just_below] + [0.0] * 31, [at] + [0.0] * 31, [2.0**-126] + [0.0] * 31, [0.0] * 32])
    assert build("mxfp4").encode(x).scales.float().flatten().tolist() == [1.0, 2.0, 2.0**-127, 2.0**-127]
    assert build("mxfp4").roundtrip(x)[:2, 0].tolist() == [6.0, 8.0]


# Measured decibels of SQNR on [2048, 96] tensors by an independent implementation; columns: a scale for each
# token / for each 32 neighbours, at 8, 6, 4 and 3 bits. Per-tensor scales depend on one extreme value, see below.
MEASURED = {
    "gauss": ((44.1, 45.4), (31.8, 33.2), (18.9, 20.3), (11.6, 12.9)),
    "laplace": ((41.5, 43.5), (29.2, 31.3), (16.4, 18.4), (9.4, 11.3)),
    "uniform": ((48.2, 48.5), (36.0, 36.3), (23.0, 23.3), (15.7, 16.0)),
    "student": ((41.0, 43.4), (28.8, 31.1), (15.9, 18.2), (8.8, 11.0)),
    "tokens": ((44.1, 45.5), (31.9, 33.2), (18.9, 20.3), (11.6, 12.9)),
    "hot": ((35.9, 40.4), (23.7, 28.1), (11.1, 15.5), (6.3, 10.4)),
    "gelu": ((41.1, 42.9), (28.9, 30.6), (15.3, 16.9), (10.8, 12.1)),
    "relu2": ((41.3, 44.0), (29.3, 32.0), (17.1, 19.7), (10.6, 13.1)),
}


def synthetic(name: str) -> Tensor:
    g = generator(1)
    x = torch.randn(2048, 96, generator=g)
    u = torch.rand(2048, 96, generator=g) - 0.5
    other = torch.randn(2048, 96, 5, generator=g)
    return {
        "gauss": lambda: x,
        "laplace": lambda: -u.sign() * (1 - 2 * u.abs()).clamp_min(1e-7).log(),
        "uniform": lambda: u,
        "student": lambda: x / other.square().mean(-1).sqrt(),
        "tokens": lambda: x * (0.5 * other[:, :1, 0]).exp(),
        "hot": lambda: x * torch.ones(96).index_fill_(0, torch.tensor([7]), 10.0),
        "gelu": lambda: gelu(x),
        "relu2": lambda: x.relu().square(),
    }[name]()


@pytest.mark.parametrize("data", MEASURED)
def test_reference_sqnr(data: str) -> None:
    x = synthetic(data)
    for bits, expected in zip((8, 6, 4, 3), MEASURED[data], strict=True):
        found = [-error_db(x, build(f"int{bits}/{g}").roundtrip(x)) for g in ("token", "block:32")]
        assert found == pytest.approx(expected, abs=0.3)


@pytest.mark.parametrize("data", ["gauss", "laplace", "uniform", "student", "hot"])
def test_error_of_one_scale_follows_the_crest(data: str) -> None:
    x = synthetic(data)
    crest_db = 20 * log10(float(x.abs().max() / x.square().mean().sqrt()))
    sqnr_db = -error_db(x, build("int8/tensor").roundtrip(x))
    assert sqnr_db == pytest.approx(20 * log10(127) + 10 * log10(12) - crest_db, abs=0.3)


@pytest.mark.parametrize("name", QUANTIZERS)
def test_error_on_gaussian_data_is_the_expected_one(name: str) -> None:
    q, shape = build(name), (64, 64)
    expected = expected_error_db(q.spec, shape)
    if expected is None:
        assert q.spec.fitted or q.spec.smooth or q.spec.rule_word in ("mse", "percentile", "meanabs", "l2")
        return
    xs = torch.randn(64, *shape, generator=generator(3))
    ys = torch.stack([q.roundtrip(x) for x in xs])
    # One extreme value sets the scale of a whole tensor, and 64 tensors are few.
    tolerance = 0.3 if q.spec.granularity == "tensor" and q.spec.rule == "absmax" else 0.06
    assert error_db(xs, ys) == pytest.approx(expected, abs=tolerance)


@pytest.mark.parametrize(
    ("name", "width"),
    [("int4/token", 16), ("int2/token", 1000), ("int8/block:48", 100), ("int4.full/token", 64), ("int3.asym/token", 12),
     ("int6.asym/token", 500), ("int5/token/rms", 10), ("e2m1/token", 7), ("mxfp4", 40), ("lloyd3/token", 5),
     ("lloyd4/token", 2), ("int8/token/pow2/scale:e8m0", 200), ("int4/token/sr:3", 20), ("int4/token/rtz", 30),
     ("e4m3/token", 100), ("mxfp4.rceil", 64), ("mxfp6e3m2.even", 50), ("mxfp8e5m2.ceil", 33), ("nvfp4", 72),
     ("int4/block:16/scale:e4m3", 64), ("int6/token/l2/sr:1", 1024), ("binary/token", 2000), ("uniform3/token", 40),
     ("int4/tile:4x4", 10), ("int3/block:5@0", 7), ("int4.asym/token/sr:2", 64), ("ternary/token/clip:1.5", 1024)],
)  # fmt: skip
def test_expected_error_by_simulation(name: str, width: int) -> None:
    rows = 2**21 // width
    x = torch.randn(rows, width, generator=generator(4))
    expected = expected_error_db(parse(name), x.shape)
    assert expected is not None
    assert error_db(x, build(name).roundtrip(x)) == pytest.approx(expected, abs=0.04)


def test_nothing_is_expected_where_nothing_finite_can_be_said() -> None:
    assert expected_error_db(parse("int4/token"), (5, 1)) is None  # one value is its own scale: no error
    assert expected_error_db(parse("int4.asym/token"), (5, 4)) is None
    assert expected_error_db(parse("int4/token"), (0, 8)) is None


def test_lloyd_max_reaches_the_theoretical_error() -> None:
    x = torch.randn(1024, 1024, generator=generator())
    for bits, published in {1: 0.3634, 2: 0.1175, 3: 0.03454, 4: 0.009501}.items():  # Max 1960; 4 bits as corrected
        assert len(lloyd_max(bits)) == 2**bits
        error = float((x - build(f"lloyd{bits}/tensor").roundtrip(x)).square().mean())
        assert error == pytest.approx(published, rel=0.005)
