"""Stochastic rounding is right on average, the same every time, and another for each seed and stream."""

from math import sqrt

import numpy as np
import pytest
import torch
from scipy import stats

from qbench.quant.catalog import QUANTIZERS
from qbench.quant.grid import Grid, integer, minifloat
from qbench.quant.quantizer import build
from qbench.quant.rounding import snap_, uniform
from qbench.stats.gaussian import lloyd_max

GRIDS = {
    "integers": integer(4, "narrow"),
    "floats": minifloat(2, 1),
    "wide floats": minifloat(5, 2, reserved=4),
    "half integers": Grid(3, tuple(i - 3.5 for i in range(8))),
    "any levels": Grid(3, lloyd_max(3)),
    "any levels with a zero": Grid(3, (-2.0, -1.5, -0.25, 0.0, 0.5, 0.75, 3.0)),
    "two levels": Grid(1, (-1.0, 1.0)),
}


@pytest.mark.parametrize("name", GRIDS)
def test_the_mean_of_many_draws_is_the_value(name: str) -> None:
    grid = GRIDS[name]
    inner = torch.linspace(grid.levels[0], grid.levels[-1], 41) if grid.peak < 100 else torch.linspace(-9, 9, 41)
    draws = 20_000
    y = snap_(inner.repeat(draws, 1), grid, "sr:1")
    levels = torch.tensor(grid.levels)
    above = levels[torch.bucketize(inner, levels).clamp_(max=len(levels) - 1)]
    below = levels[(torch.bucketize(inner, levels, right=True) - 1).clamp_(min=0)]
    assert ((y == above) | (y == below)).all()
    gap = (above - below).clamp(min=1e-9)
    assert ((y.double().mean(0) - inner).abs() <= 5 * gap / 2 / sqrt(draws) + 1e-6).all()


@pytest.mark.parametrize("name", GRIDS)
def test_what_is_a_level_stays_and_what_is_beyond_saturates(name: str) -> None:
    grid = GRIDS[name]
    levels = torch.tensor(grid.levels)
    for rounding in ("sr:0", "nearest", *(["rtz"] if 0.0 in grid.levels else [])):
        assert torch.equal(snap_(levels.repeat(1000), grid, rounding), levels.repeat(1000))
        far = torch.tensor([1.0, 1.5, 100.0]) * (grid.levels[-1] + 1)
        assert snap_(far.clone(), grid, rounding).eq(grid.levels[-1]).all()
        assert snap_(-far, grid, rounding).eq(grid.levels[0]).all()


@pytest.mark.parametrize("name", [name for name, grid in GRIDS.items() if 0.0 in grid.levels])
def test_toward_zero_is_never_away_from_it(name: str) -> None:
    grid = GRIDS[name]
    x = torch.randn(10_000, generator=torch.Generator().manual_seed(0)) * 4
    levels = np.array(grid.levels)
    expected = [
        max(levels[levels <= v]) if v >= 0 else min(levels[levels >= v]) for v in x.clamp(*levels[[0, -1]]).tolist()
    ]
    assert torch.equal(snap_(x.clone(), grid, "rtz"), torch.tensor(expected, dtype=torch.float32))


def test_random_numbers_are_uniform_and_independent() -> None:
    n = 200_000
    like = torch.empty(n)
    u = uniform(like, seed=3).double().numpy()
    assert 0 <= u.min() < u.max() < 1
    assert stats.kstest(u, "uniform").pvalue > 1e-3
    for other in (
        uniform(like, 4),
        uniform(like, 3, stream=1),
        uniform(like, 3, stream=2),
        torch.from_numpy(np.roll(u, 1)),
    ):
        assert abs(np.corrcoef(u, other.double().numpy())[0, 1]) < 5 / sqrt(n)
    pairs, _, _ = np.histogram2d(u[::2], u[1::2], bins=16)
    assert stats.chisquare(pairs.ravel()).pvalue > 1e-3


def test_numbers_depend_on_position_alone() -> None:
    assert torch.equal(uniform(torch.empty(3, 5), 9).flatten(), uniform(torch.empty(15), 9))
    assert torch.equal(uniform(torch.empty(40), 9)[:15], uniform(torch.empty(15), 9))


def murmur(h: int) -> int:
    """The 32-bit finalizer of MurmurHash3, as published."""
    h = (h ^ (h >> 16)) * 0x85EBCA6B & 0xFFFFFFFF
    h = (h ^ (h >> 13)) * 0xC2B2AE35 & 0xFFFFFFFF
    return h ^ (h >> 16)


@pytest.mark.parametrize(("seed", "stream"), [(0, 0), (7, 3), (999_999_999, 123)])
def test_the_hash_is_the_same_on_every_machine(seed: int, stream: int) -> None:
    keys = murmur(seed + 1), murmur(stream + 0x9E3779B9)
    expected = [(murmur(murmur(i ^ keys[0]) ^ keys[1]) >> 8) / 2**24 for i in range(100)]
    assert uniform(torch.empty(100), seed, stream).tolist() == expected


STOCHASTIC = [name for name, row in QUANTIZERS.items() if row.spec.seed is not None]


@pytest.mark.parametrize("name", STOCHASTIC)
def test_formats_are_unbiased_over_streams_and_reproducible(name: str) -> None:
    """TernGrad clips first: what it is right about on average is the clipped gradient."""
    x = torch.randn(2, 512, generator=torch.Generator().manual_seed(0))
    q = build(name)
    assert torch.equal(q.roundtrip(x), q.roundtrip(x))
    assert not torch.equal(q.roundtrip(x), q.drawn(1).roundtrip(x))
    draws = torch.stack([q.drawn(stream).roundtrip(x) for stream in range(400)])
    target = x.clamp(-2.5 * x.std(correction=0), 2.5 * x.std(correction=0)) if "clip" in name else x
    step = (draws.amax(0) - draws.amin(0)).amax()
    tolerance = 5 * draws.std(0) / sqrt(400) + 0.02 * step  # odds of one in a hundred show no deviation in 400 draws
    off = ((draws.mean(0) - target).abs() > tolerance).float().mean()
    saturated = 0.06 if name.startswith(("mxfp4", "nvfp4")) else 0.0  # floor exponents clip the largest, rotated or not
    assert off <= saturated
