"""Scale rules, granularities, wrappers and fitted levels, each against its definition."""

from itertools import product
from math import ceil, sqrt

import numpy as np
import pytest
import torch
from torch import Tensor

from qbench.quant.blocks import join, split
from qbench.quant.fit import fitted_grid
from qbench.quant.group import NoSuchAxis
from qbench.quant.observe import Observer
from qbench.quant.quantizer import build
from qbench.quant.rotate import CannotRotate, derandomized, randomized
from qbench.quant.smooth import Calibration
from qbench.quant.straight import fake
from qbench.stats.gaussian import lloyd_max, optimal_uniform


def gaussian(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


GROUPS = {
    "tensor": lambda i: (),
    "token": lambda i: i[:-1],
    "channel": lambda i: (i[-1],),
    "block:4": lambda i: (*i[:-1], i[-1] // 4),
    "block:4@0": lambda i: (i[0] // 4, *i[1:]),
    "block:3@-2": lambda i: (*i[:-2], i[-2] // 3, i[-1]),
    "tile:2x3": lambda i: (*i[:-2], i[-2] // 2, i[-1] // 3),
}


@pytest.mark.parametrize("granularity", GROUPS)
@pytest.mark.parametrize("shape", [(5, 7), (4, 6, 9), (3, 2, 5, 4)])
def test_groups_are_those_of_the_definition(granularity: str, shape: tuple[int, ...]) -> None:
    x = gaussian(*shape)
    members: dict[tuple[int, ...], list[tuple[int, ...]]] = {}
    for i in product(*map(range, shape)):
        members.setdefault(GROUPS[granularity](i), []).append(i)
    expected = torch.empty_like(x)
    for group in members.values():
        rows = torch.stack([x[i] for i in group])
        scale = (rows.abs().amax() / 7).float().double()
        for i, value in zip(group, torch.round(rows / scale).clamp(-7, 7) * scale, strict=True):
            expected[i] = value
    q = build(f"int4/{granularity}")
    torch.testing.assert_close(q.roundtrip(x), expected, rtol=1e-12, atol=0)
    assert q.encode(x).scales.numel() == len(members)
    assert q.spec.group.counts(shape)[0] == len(members)
    assert torch.equal(join(split(x, granularity).values, x.shape, granularity), x)


@pytest.mark.parametrize("granularity", GROUPS)
def test_ranges_do_not_see_padding(granularity: str) -> None:
    x = gaussian(5, 7) + 3
    blocks = split(x, granularity)
    members: dict[tuple[int, ...], list[float]] = {}
    for i in product(range(5), range(7)):
        members.setdefault(GROUPS[granularity](i), []).append(float(x[i]))
    groups = [np.array(group) for group in members.values()]
    ranges = {
        "peak": lambda g: np.abs(g).max(),
        "rms": lambda g: sqrt((g**2).mean()),
        "mean_magnitude": lambda g: np.abs(g).mean(),
        "deviation": lambda g: g.std(),
    }
    for name, definition in ranges.items():
        found = sorted(getattr(blocks, name).flatten().tolist())
        assert found == pytest.approx(sorted(map(definition, groups)), abs=1e-6), name
    found = sorted(blocks.percentile(60).flatten().tolist())
    assert found == pytest.approx(sorted(np.sort(np.abs(g))[ceil(0.6 * len(g)) - 1] for g in groups))


@pytest.mark.parametrize(("count", "percent", "rank"), [(1000, 99.9, 999), (10_000, 99.9, 9990), (100, 55, 55)])
def test_a_percentile_is_the_rank_that_its_decimals_say(count: int, percent: float, rank: int) -> None:
    x = torch.arange(1, count + 1.0)
    assert float(split(x, "tensor").percentile(percent)) == rank
    observer = Observer(build(f"int8/tensor/percentile:{percent}+static").spec)
    observer.see((x / count).pow(40))  # so steep that a neighbour is another bin
    expected = (rank / count) ** 40 / 127
    assert float(observer.fixed().stored) == pytest.approx(expected, rel=1e-3 if count < 10_000 else 2e-3)


def test_an_axis_that_is_not_there_is_named() -> None:
    with pytest.raises(NoSuchAxis, match="axis -3 of a tensor that has 2"):
        build("int4/block:4@-3").roundtrip(torch.ones(4, 4))


def test_grid_search_finds_the_best_of_its_scales() -> None:
    x = gaussian(1, 64) ** 3
    top = float(x.abs().max()) / 7
    q = build("int4/token/mse")
    scales = [float(np.float32(top * (1 - i / 100))) for i in range(80)]
    errors = [float(((x / s).round().clamp(-7, 7) * s - x).square().sum()) for s in scales]
    assert float(q.encode(x).scales) == pytest.approx(scales[int(np.argmin(errors))])
    assert float((q.roundtrip(x) - x).square().sum()) == pytest.approx(min(errors))
    assert min(errors) < 0.99 * errors[0]


def test_rules_are_their_definitions() -> None:
    x = gaussian(1, 300)
    scale = {
        "int4/token/percentile:90": float(x.abs().sort().values[0, 269]) / 7,
        "int8/token/l2": float(x.norm()) / 127,
        "ternary/token": float(x.abs().mean()),
        "ternary/token/clip:2.5": min(float(x.abs().max()), 2.5 * float(x.std(correction=0))),
        "binary/token": float(x.abs().mean()),
        "uniform4/token": float(x.square().mean().sqrt()) * optimal_uniform(4, "mid-rise"),
    }
    for name, expected in scale.items():
        assert float(build(name).encode(x).scales) == pytest.approx(expected, rel=1e-6), name


# QuEST's own constants: the largest magnitude that is not clipped, over rms (github.com/IST-DASLab/QuEST).
QUEST = {
    1: 0.7978845608028654,
    2: 1.4935346200015913,
    3: 2.051068354131873,
    4: 2.513930578568423,
    5: 2.9160938834961225,
}


@pytest.mark.parametrize("bits", QUEST)
def test_the_gaussian_uniform_grid_is_quest_s(bits: int) -> None:
    x = gaussian(8, 128)
    rms = x.square().mean(-1, keepdim=True).sqrt()
    top, n = QUEST[bits] * rms, 2**bits
    step = 2 * top / (n - 1)
    clipped = x.clamp(-top, top)
    theirs = torch.round(clipped / step + 0.5) * step - step / 2  # as published
    ours = build(f"uniform{bits}/token").roundtrip(x)
    torch.testing.assert_close(ours, theirs.clamp(-top, top), rtol=2e-4, atol=0)


def test_the_trust_mask_stops_the_gradient_of_clipped_values() -> None:
    x = torch.tensor([[0.1, -0.2, 0.15, 3.0] * 8], requires_grad=True)
    q = build("uniform2/token")
    step = x.detach().square().mean().sqrt() * optimal_uniform(2, "mid-rise")
    fake(x, q, trust=True).sum().backward()
    assert x.grad is not None
    # QuEST: the error of a trusted value is at most half a step.
    error = (q.roundtrip(x.detach()) - x.detach()).abs()
    assert torch.equal(x.grad, (error <= step / 2 * (1 + 1e-6)).float())
    assert x.grad.sum() == 24
    assert q.saturated(x.detach()) == 8


@pytest.mark.parametrize("wrapper", ["+hadamard:32", "+rht:5", "+smooth:0.5"])
def test_the_trust_mask_works_where_the_values_are_rounded(wrapper: str) -> None:
    """Against autograd through the same steps: transform, mask, transform back."""
    x = (gaussian(4, 96) * torch.linspace(0.1, 3, 96)).requires_grad_()
    q, weight = build(f"uniform2/token{wrapper}"), gaussian(4, 96, seed=1)
    (fake(x, q, trust=True) * weight).sum().backward()
    choice = q.choose(x.detach())
    y = x.detach().requires_grad_()
    inner = y if choice.factors is None else y / choice.factors.double()
    values = q.blocks(inner).values * q.trusted(choice)
    (q.restore(values, x.shape, choice.factors) * weight).sum().backward()
    assert x.grad is not None
    assert y.grad is not None
    torch.testing.assert_close(x.grad, y.grad)
    assert 0 < q.saturated(x.detach()) < x.numel() / 2


@pytest.mark.parametrize("width", [1, 2, 4, 12, 20, 28, 36, 44, 64, 96, 160, 768, 1536, 2560, 4096, 14336])
def test_random_rotations_are_orthogonal_and_mix_everything(width: int) -> None:
    x = gaussian(3, width)
    torch.testing.assert_close(derandomized(randomized(x, 1), 1), x)
    torch.testing.assert_close(randomized(x, 1).norm(), x.norm())
    spike = torch.zeros(width, dtype=torch.float64)
    spike[width // 3] = 1
    assert randomized(spike, 1).abs().tolist() == pytest.approx([width**-0.5] * width)
    if width > 8:
        assert not torch.equal(randomized(x, 1), randomized(x, 2))


def test_random_rotations_say_what_they_cannot_do() -> None:
    with pytest.raises(CannotRotate, match="last axis of 7 values"):
        randomized(gaussian(7), 0)
    with pytest.raises(CannotRotate, match="last axis of 94 values"):
        randomized(gaussian(94), 0)


def test_smoothing_moves_the_difficulty_out_of_outlier_channels() -> None:
    x = gaussian(256, 64)
    x[:, 5] *= 100
    plain, smooth = (x - build(f"int8/token{w}").roundtrip(x) for w in ("", "+smooth:0.5"))
    assert smooth.square().sum() < plain.square().sum() / 4
    assert build("int8/token+smooth:1").encode(x).factors.tolist() == pytest.approx(x.abs().amax(0).tolist())


def test_calibrated_smoothing_is_smoothquant_s_and_is_not_stored() -> None:
    x, weights = gaussian(32, 16) * torch.arange(1.0, 17), gaussian(8, 16)
    calibration = Calibration(x.abs().amax(0), weights.abs().amax(0))
    s = x.abs().amax(0) ** 0.7 / weights.abs().amax(0) ** 0.3
    q = build("int8/token+smooth:0.7", calibration=calibration)
    expected = build("int8/token").roundtrip(x / s) * s
    torch.testing.assert_close(q.roundtrip(x), expected, rtol=1e-5, atol=1e-6)
    e = q.encode(x)
    assert torch.equal(q.decode(e), q.roundtrip(x))
    assert e.factors is None
    assert e.bits_per_value == q.bits_per_value(x.shape) == build("int8/token").bits_per_value(x.shape)
    assert build("int8/token+smooth:0.7").bits_per_value(x.shape) == e.bits_per_value + 1  # 16 factors of 32 bits


def test_k_means_is_near_the_best_there_is() -> None:
    """Against the optimum of one dimension, by dynamic programming over sorted values."""
    x = torch.sort(gaussian(60) ** 3).values
    cost = [
        [float((x[i : j + 1] - x[i : j + 1].mean()).square().sum()) if i <= j else 0.0 for j in range(60)]
        for i in range(60)
    ]
    best = cost[0]
    for _ in range(3):
        best = [min(best[i - 1] + cost[i][j] if i else cost[0][j] for i in range(j + 1)) for j in range(60)]
    levels = torch.tensor(fitted_grid("kmeans", 2, x).levels)
    found = float((x[:, None] - levels).abs().amin(1).square().sum())
    assert (
        best[-1] * (1 - 1e-9) <= found <= 1.3 * best[-1]
    )  # Lloyd's algorithm stops at the first optimum that it meets


@pytest.mark.parametrize("bits", range(1, 6))
def test_k_means_of_a_gaussian_is_lloyd_max(bits: int) -> None:
    x = gaussian(2**20)
    assert fitted_grid("kmeans", bits, x).levels == pytest.approx(lloyd_max(bits), abs=0.1)
    y = build(f"kmeans{bits}/tensor").roundtrip(x)
    error = float((x - y).square().mean())
    levels = torch.tensor(lloyd_max(bits), dtype=torch.float64)
    assert error <= float((x - levels[torch.bucketize(x, (levels[1:] + levels[:-1]) / 2)]).square().mean()) * 1.002


def test_quantiles_are_numpy_s_and_equally_used() -> None:
    x = gaussian(4096)
    expected = np.quantile(x.numpy(), (np.arange(16) + 0.5) / 16)
    assert fitted_grid("quantile", 4, x).levels == pytest.approx(expected.tolist(), abs=1e-6)
    counts = torch.bincount(build("quantile4/tensor").codes(x).flatten().int())
    assert counts.min() > 4096 / 16 * 0.7


def test_fitted_levels_are_stored_and_few_values_need_few() -> None:
    x = torch.tensor([1.0, 2.0, 2.0, 7.5])
    q = build("kmeans3/tensor")
    e = q.encode(x)
    assert e.codebook is not None
    assert (e.codebook.numel(), e.scales.numel()) == (8, 0)
    assert torch.equal(q.decode(e), x)


def test_float16_results_saturate() -> None:
    x = torch.full((1, 64), 25_000.0, dtype=torch.float16)
    x[:, 1] = 65504
    q = build("lloyd4/token")
    assert q.roundtrip(x.float()).max() > 70_000  # the nearest level is beyond the largest float16
    assert q.roundtrip(x).max() == q.decode(q.encode(x)).max() == 65504
