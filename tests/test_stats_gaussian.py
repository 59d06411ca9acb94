"""Closed forms against published tables, independent integrals and simulation."""

from itertools import pairwise
from math import log10, pi, sqrt

import numpy as np
import pytest
from scipy import integrate, special, stats

from qbench.stats.blocks import Steps, absmax_loss, expected_crest_db, range_loss, rms_error
from qbench.stats.density import NORMAL
from qbench.stats.gaussian import (
    central_kurtosis,
    distortion,
    lloyd_max,
    optimal_uniform,
    rate_distortion_db,
)

# Mean squared errors for unit variance, by an independent Newton solution and analytic integrals.
LLOYD_MAX = dict(
    enumerate((0.363380, 0.117482, 0.0345478, 0.00950101, 0.00250467, 6.44240e-4, 1.63478e-4, 4.11851e-5), 1)
)
# J. Max, IRE Trans. IT-6 (1960), tables I and II; the printed Lloyd-Max errors are good to 5 in 10^4.
MAX_1960 = {1: 0.3634, 2: 0.1175, 3: 0.03454, 4: 0.009497}
MAX_1960_STEP = {1: 1.596, 2: 0.9957, 3: 0.5860, 4: 0.3352, 5: 0.1881}
MAX_1960_UNIFORM = {1: 0.3634, 2: 0.1188, 3: 0.03744, 4: 0.01154, 5: 0.003495}
NARROW = {2: 1.22401, 3: 0.65077, 4: 0.35341, 5: 0.19325, 6: 0.10549, 7: 0.05726, 8: 0.03087}
FULL = {2: 1.04839, 3: 0.60182, 4: 0.33861, 5: 0.18879, 6: 0.10418, 7: 0.05689, 8: 0.03077}


def integers(bits: int) -> tuple[float, ...]:
    return tuple(float(level) for level in range(1 - 2 ** (bits - 1), 2 ** (bits - 1)))


def test_density_and_distribution_agree_with_scipy() -> None:
    for t in (-30.0, -8.0, -1.3, 0.0, 0.7, 5.0):
        assert NORMAL.density(np.array(t)) == pytest.approx(stats.norm.pdf(t), rel=1e-12)
        assert NORMAL.partial(np.array([t]))[0] == pytest.approx(stats.norm.cdf(t), rel=1e-12)


@pytest.mark.parametrize("levels", [(-1.0, 0.5), (-2.0, -0.3, 0.0, 1.7), (0.0, 3.0)])
def test_distortion_is_the_integral(levels: tuple[float, ...]) -> None:
    def integrand(x: float) -> float:
        return min((x - c) ** 2 for c in levels) * stats.norm.pdf(x)

    cuts = [-12.0, *((a + b) / 2 for a, b in pairwise(levels)), 12.0]
    expected = sum(integrate.quad(integrand, a, b)[0] for a, b in pairwise(cuts))
    assert distortion(levels) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize(("bits", "error"), LLOYD_MAX.items())
def test_lloyd_max_reaches_the_least_error(bits: int, error: float) -> None:
    levels = lloyd_max(bits)
    assert distortion(levels) == pytest.approx(error, rel=3e-6)
    assert levels == tuple(-level for level in reversed(levels))


def test_lloyd_max_agrees_with_the_published_table() -> None:
    assert {bits: distortion(lloyd_max(bits)) for bits in MAX_1960} == pytest.approx(MAX_1960, rel=5e-4)
    assert lloyd_max(2)[2:] == pytest.approx((0.4528, 1.510), rel=1e-3)


def test_every_lloyd_level_is_the_mean_of_its_cell() -> None:
    levels = lloyd_max(5)
    edges = [-np.inf, *((a + b) / 2 for a, b in pairwise(levels)), np.inf]
    means = [stats.truncnorm.mean(a, b) for a, b in pairwise(edges)]
    assert levels == pytest.approx(means, abs=1e-8)


def test_uniform_steps_agree_with_the_published_tables() -> None:
    assert {b: optimal_uniform(b, "mid-rise") for b in MAX_1960_STEP} == pytest.approx(MAX_1960_STEP, rel=5e-4)
    assert {b: optimal_uniform(b, "narrow") for b in NARROW} == pytest.approx(NARROW, abs=6e-6)
    assert {b: optimal_uniform(b, "full") for b in FULL} == pytest.approx(FULL, abs=6e-6)
    for bits, error in MAX_1960_UNIFORM.items():
        step = optimal_uniform(bits, "mid-rise")
        assert distortion([step * (i + 0.5 - 2 ** (bits - 1)) for i in range(2**bits)]) == pytest.approx(
            error, rel=5e-4
        )


def test_rate_distortion_is_six_decibels_a_bit() -> None:
    assert rate_distortion_db(1) == pytest.approx(10 * log10(1 / 4))
    assert rate_distortion_db(4.25) == pytest.approx(10 * log10(2**-8.5))


# Decibels of SQNR on Gaussian data, blocks of n: symmetric integers and asymmetric ones at 2, 3, 4, 5, 6, 8 bits.
ABSMAX = {
    64: ((2.9, 12.0, 19.4, 26.0, 32.3, 44.5), (6.8, 14.2, 20.8, 27.1, 33.3, 45.4)),
    128: ((2.3, 11.3, 18.6, 25.2, 31.5, 43.8), (6.0, 13.3, 20.0, 26.3, 32.4, 44.6)),
    256: ((1.9, 10.6, 18.0, 24.6, 30.9, 43.1), (5.3, 12.6, 19.2, 25.5, 31.7, 43.8)),
    768: ((1.3, 9.8, 17.1, 23.7, 30.0, 42.3), (4.4, 11.6, 18.3, 24.6, 30.7, 42.9)),
    4096: ((0.8, 8.7, 16.1, 22.7, 29.0, 41.3), (3.3, 10.5, 17.1, 23.4, 29.6, 41.7)),
}


@pytest.mark.parametrize("block", ABSMAX)
def test_block_errors_agree_with_the_table(block: int) -> None:
    bits = (2, 3, 4, 5, 6, 8)
    symmetric = [-10 * log10(absmax_loss(integers(b), block).error) for b in bits]
    asymmetric = [-10 * log10(found.error) for b in bits if (found := range_loss(2**b, block))]
    assert symmetric == pytest.approx(ABSMAX[block][0], abs=0.065)  # the table has one decimal
    assert asymmetric == pytest.approx(ABSMAX[block][1], abs=0.06)


def test_tiny_blocks_are_exact() -> None:
    assert absmax_loss(integers(4), 1).error == 0  # one value is its own scale
    # Of two values with ratio r = tan(angle) only the smaller is rounded, and the angle is uniform.
    levels = np.array(integers(2))
    error, _ = integrate.quad(
        lambda a: float(np.abs(np.tan(a) - levels).min() ** 2 * np.cos(a) ** 2), 0, pi / 4, points=[np.arctan(0.5)]
    )
    assert absmax_loss(integers(2), 2).error == pytest.approx(error / (pi / 4), rel=1e-5)
    assert rms_error((-1.0, 1.0), 1) == 0  # one value is plus or minus its own rms
    assert rms_error((-1.0, 1.0), 2) == pytest.approx(2 - 4 * sqrt(2) / pi, rel=1e-6)  # 2 - 2 E|sqrt(2) sin|
    assert range_loss(16, 4) is None


def test_huge_blocks_approach_the_unscaled_grid() -> None:
    levels = lloyd_max(4)
    assert rms_error(levels, 10**9) == pytest.approx(distortion(levels), rel=1e-6)
    assert absmax_loss(integers(8), 10**9).error > absmax_loss(integers(8), 10**6).error
    assert absmax_loss(integers(8), 10**9, steps=Steps(127, 1, 1 / 64)).error == pytest.approx(
        distortion([v / 16 for v in integers(8)]), rel=1e-3
    )


@pytest.mark.parametrize("n", [1, 2, 7, 64, 1000])
def test_crest_by_simulation(n: int) -> None:
    x = np.random.default_rng(0).standard_normal((4_000_000 // max(n, 20), n))
    crest_db = 20 * np.log10(np.abs(x).max(1) / np.sqrt((x**2).mean(1)))
    assert expected_crest_db(n) == pytest.approx(crest_db.mean(), abs=5 * crest_db.std() / sqrt(len(x)) + 1e-9)


def test_crest_of_very_many_values() -> None:
    n = 10**9
    gumbel = stats.norm.isf(1 / (2 * n)) + special.psi(1) * -1 / stats.norm.isf(1 / (2 * n))
    assert expected_crest_db(n) == pytest.approx(20 * log10(gumbel), abs=0.05)


@pytest.mark.parametrize("n", [1, 2, 3, 5, 30, 300])
def test_sample_kurtosis_by_simulation(n: int) -> None:
    x = np.random.default_rng(1).standard_normal((3_000_000 // max(n, 10), n))
    mean, sd = central_kurtosis(n)
    if n == 1:
        assert (mean, sd) == (0, 0)
        return
    kurtosis = stats.kurtosis(x, axis=1)
    assert kurtosis.mean() == pytest.approx(mean, abs=5 * kurtosis.std() / sqrt(len(x)) + 1e-9)
    assert kurtosis.std() == pytest.approx(sd, rel=0.03, abs=1e-6)
