"""Densities against scipy, partial moments against quadrature, and the levels that are best for them."""

from math import inf, log2

import numpy as np
import pytest
from scipy import integrate, stats

from qbench.stats.blocks import Steps, absmax_loss, range_loss, rms_loss
from qbench.stats.cells import ROUNDINGS, cells, fixed
from qbench.stats.density import LAPLACE, NORMAL, STUDENT, Density, student
from qbench.stats.gaussian import distortion, index_entropy, lloyd_max, optimal_uniform, optimal_unit

SCIPY = {
    "gauss": (NORMAL, stats.norm()),
    "laplace": (LAPLACE, stats.laplace(scale=2**-0.5)),
    "student-t3": (student(3), stats.t(3, scale=3**-0.5)),
    "student-t5": (STUDENT, stats.t(5, scale=0.6**0.5)),
    "student-t9": (student(9), stats.t(9, scale=(7 / 9) ** 0.5)),
}
EACH = pytest.mark.parametrize("name", SCIPY)


@EACH
def test_densities_are_scipy_s(name: str) -> None:
    p, theirs = SCIPY[name]
    t = np.array([-40.0, -3.0, -0.2, 0.0, 1.0, 4.9, 5.1, 9.0, 80.0])
    assert p.density(t) == pytest.approx(theirs.pdf(t), rel=1e-9)
    assert p.partial(t)[0] == pytest.approx(theirs.cdf(t), abs=1e-12)
    assert p.beyond(np.abs(t)) == pytest.approx(2 * theirs.sf(np.abs(t)), rel=1e-8)
    assert p.information == pytest.approx(theirs.entropy() / np.log(2))
    assert p.reach(1e-3) == pytest.approx(theirs.isf(5e-4))
    assert theirs.var() == pytest.approx(1)


@EACH
def test_partial_moments_are_integrals(name: str) -> None:
    p, theirs = SCIPY[name]
    for t in (-2.0, 0.3, 4.0):
        _, first, second = p.partial(np.array([t]))
        assert first[0] == pytest.approx(integrate.quad(lambda x: x * theirs.pdf(x), -inf, t)[0], abs=1e-7)
        assert second[0] == pytest.approx(integrate.quad(lambda x: x * x * theirs.pdf(x), -inf, t)[0], abs=1e-6)
    mass, first, second = p.partial(np.array([-inf, inf]))
    assert (*mass, *first, *second) == pytest.approx((0, 1, 0, 0, 0, 1), abs=1e-8)


def test_student_needs_a_finite_variance_and_a_finite_sum() -> None:
    for freedom in (1, 4):
        with pytest.raises(ValueError, match="odd number"):
            student(freedom)


# Adams and Giesler, IEEE Trans. COM-26 (1978), and Noll and Zelinski: Lloyd-Max of a Laplace density, unit variance.
LAPLACE_ERROR = {1: 0.5, 2: 0.1762, 3: 0.0545, 4: 0.0154}


@pytest.mark.parametrize(("bits", "error"), LAPLACE_ERROR.items())
def test_lloyd_max_of_a_laplace_density_is_the_published_one(bits: int, error: float) -> None:
    levels = lloyd_max(bits, LAPLACE)
    assert distortion(levels, LAPLACE) == pytest.approx(error, rel=3e-3)
    assert levels == tuple(-level for level in reversed(levels))


def test_lloyd_max_of_a_laplace_density_at_two_bits() -> None:
    """Published levels 0.4196 and 1.8340, with the boundary at 1.1269."""
    assert lloyd_max(2, LAPLACE)[2:] == pytest.approx((0.4196, 1.8340), abs=2e-4)


@pytest.mark.parametrize("p", [NORMAL, LAPLACE, STUDENT], ids=lambda p: p.name)
def test_every_level_is_the_mean_of_its_cell(p: Density) -> None:
    levels = np.array(lloyd_max(4, p))
    edges = np.array([-inf, *(levels[1:] + levels[:-1]) / 2, inf])
    mass, first, _ = (np.diff(part) for part in p.partial(edges))
    assert levels == pytest.approx(first / mass, abs=1e-8)


def test_no_format_beats_rate_distortion() -> None:
    for p in (NORMAL, LAPLACE, STUDENT):
        for bits in range(1, 8):
            levels = lloyd_max(bits, p)
            rate = index_entropy(levels, p)
            assert 10 * np.log10(distortion(levels, p)) > p.rate_distortion_db(rate)
            assert rate <= bits


def test_entropies_of_gaussian_codes_are_the_published_ones() -> None:
    """Lloyd-Max and even levels at 2 to 8 bits, in bits."""
    found = [index_entropy(lloyd_max(bits)) for bits in range(2, 9)]
    assert found == pytest.approx([1.91, 2.82, 3.76, 4.73, 5.71, 6.70, 7.69], abs=0.011)
    steps = [(bits, optimal_uniform(bits, "mid-rise")) for bits in range(2, 9)]
    even = [index_entropy([s * (i + 0.5 - 2 ** (b - 1)) for i in range(2**b)]) for b, s in steps]
    assert even == pytest.approx([1.90, 2.76, 3.60, 4.45, 5.31, 6.18, 7.07], abs=0.011)


def test_the_best_unit_has_no_better_neighbour() -> None:
    for levels in ((-1.0, 0.0, 1.0), (-6.0, -4.0, -3.0, -2.0, -1.0, 0.0, 1.0, 2.0, 3.0, 4.0, 6.0)):
        for p in (NORMAL, LAPLACE):
            best = optimal_unit(levels, p)
            least = distortion([best * v for v in levels], p)
            assert all(distortion([best * f * v for v in levels], p) > least for f in (0.3, 0.8, 0.99, 1.01, 1.2, 3))


@pytest.mark.parametrize("rounding", ROUNDINGS)
def test_cells_are_the_expectation_of_the_rounding(rounding: str) -> None:
    levels = np.array([-3.0, -1.0, 0.0, 0.5, 2.0])
    x = np.linspace(-5, 4, 1_000_001)
    weight = np.exp(-(x**2) / 2)
    lower = np.clip(np.searchsorted(levels, x, side="right") - 1, 0, 3)
    a, b = levels[lower], levels[lower + 1]
    odds = np.clip((x - a) / (b - a), 0, 1)
    up = {"nearest": odds > 0.5, "rtz": np.where(x >= 0, odds >= 1, odds > 0), "sr": odds}[rounding].astype(float)
    error = (1 - up) * (x - a) ** 2 + up * (x - b) ** 2
    shares = np.bincount(lower, (1 - up) * weight, 5) + np.bincount(lower + 1, up * weight, 5)
    found = cells(levels[None], rounding).within(np.array([-5.0]), np.array([4.0]))
    assert found[0][0] == pytest.approx((error * weight).sum() / weight.sum(), rel=1e-4)
    assert found[1][0] == pytest.approx(shares / weight.sum(), abs=1e-4)


@pytest.mark.parametrize("rounding", ROUNDINGS)
def test_shares_sum_to_one(rounding: str) -> None:
    levels = tuple(float(i) for i in range(-7, 8))
    losses = [
        absmax_loss(levels, 32, LAPLACE, rounding=rounding),
        absmax_loss(levels, 32, steps=Steps(7, 1, 1 / 4), rounding=rounding),
        absmax_loss(levels, 16, steps=Steps(7, mantissa=3), rounding=rounding),
        range_loss(15, 32, rounding=rounding),
        rms_loss(tuple(v / 3 for v in levels), 1024, rounding=rounding),
    ]
    for loss in losses:
        assert loss is not None
        assert loss.shares.sum() == pytest.approx(1, abs=1e-6)
        assert 0 < loss.entropy < log2(15)
    assert fixed(levels, NORMAL, rounding)[1].sum() == pytest.approx(1)
