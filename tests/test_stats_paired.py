"""Paired statistics against scipy, brute force and closed forms."""

from itertools import combinations, pairwise
from math import inf, isinf, sqrt

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import optimize, stats

from qbench.stats import paired
from qbench.stats.correlated import block_length, units
from qbench.stats.discordant import Score
from qbench.stats.resample import resampled
from qbench.stats.seeds import seeds_effect
from qbench.stats.skewed import Skewed, Widest

RANDOM = np.random.default_rng(3)
LOGNORMAL = RANDOM.lognormal(size=200)
SELDOM = (np.arange(128) % 11 == 0) * 1.0


def autoregressive(n: int, memory: float, random: np.random.Generator) -> np.ndarray:
    """Normal values of mean 0 and variance 1 whose correlation at lag k is memory^k."""
    noise = random.standard_normal(n)
    values = [noise[0]]
    for one in noise[1:]:
        values.append(memory * values[-1] + sqrt(1 - memory**2) * one)
    return np.array(values)


# Exact tests of right and wrong.


@pytest.mark.parametrize(("worse", "better"), [(12, 2), (2, 12), (5, 5), (0, 0), (1, 0), (700, 610)])
def test_mcnemar_is_a_binomial_test_of_the_pairs_that_differ(worse: int, better: int) -> None:
    a = [0] * worse + [1] * better + [0, 1, 1]
    b = [1] * worse + [0] * better + [0, 1, 1]
    found = paired.mcnemar(a, b)
    assert (found.worse, found.better, found.n) == (worse, better, worse + better + 3)
    if worse + better:
        assert found.p == pytest.approx(stats.binomtest(worse, worse + better).pvalue)
        assert found.p_worse == pytest.approx(stats.binomtest(worse, worse + better, alternative="greater").pvalue)
    else:
        assert found.p == found.p_worse == 1


def test_sign_test_leaves_ties_out() -> None:
    values = np.array([0.5] * 9 + [-0.1] * 3 + [0.0] * 4)
    found = paired.sign_test(values)
    assert found.p == pytest.approx(stats.binomtest(9, 12).pvalue)
    assert (found.worse, found.better, found.n) == (9, 3, 16)


def test_items_come_in_pairs_of_zeros_and_ones() -> None:
    with pytest.raises(ValueError, match="in pairs, found 2 of a and 1 of b"):
        paired.mcnemar([0, 1], [1])
    with pytest.raises(ValueError, match="0 and 1, found 1 other"):
        paired.mcnemar([0, 1], [1, 0.5])


@pytest.mark.parametrize(("worse", "better", "n"), [(12, 5, 60), (0, 4, 50), (7, 0, 40), (0, 0, 30), (90, 70, 500)])
@pytest.mark.parametrize("difference", [-0.1, -0.01, 0.02, 0.3])
def test_score_has_the_variance_of_the_likeliest_table(worse: int, better: int, n: int, difference: float) -> None:
    def unlikely(q: float) -> float:  # of the four shares, the equal ones enter through their sum
        shares = np.maximum([q + difference, q, 1 - 2 * q - difference], 1e-300)
        return -float(np.array([worse, better, n - worse - better]) @ np.log(shares))

    limits = (max(0, -difference), (1 - difference) / 2)
    q = optimize.minimize_scalar(unlikely, bounds=limits, method="bounded", options={"xatol": 1e-12}).x
    gap = worse - better - n * difference
    expected = np.sign(gap) * max(abs(gap) - 0.5, 0) / sqrt(n * (2 * q + difference - difference**2))
    assert Score(worse, better, n).z(difference) == pytest.approx(expected, rel=1e-3, abs=1e-9)


def test_score_interval_ends_where_the_test_begins_to_reject() -> None:
    found = Score(12, 5, 60)
    estimate, low, high = found.interval(0.05)
    assert estimate == pytest.approx(7 / 60)
    assert (found.p_below(low), found.p_above(high)) == pytest.approx((0.05, 0.05))


# Intervals of means.


def test_t_interval_agrees_with_scipy() -> None:
    low, high = stats.ttest_1samp(LOGNORMAL, 0).confidence_interval(0.9)
    assert paired.t_interval(LOGNORMAL, 0.9) == pytest.approx((LOGNORMAL.mean(), low, high))
    assert paired.t_interval([2.0]) == (2.0, -inf, inf)


def test_bca_agrees_with_scipy() -> None:
    def theirs(method: str) -> np.ndarray:
        found = stats.bootstrap(
            (LOGNORMAL,), np.mean, confidence_level=0.9, n_resamples=50_000, batch=2000, method=method, rng=1
        )
        return np.array(found.confidence_interval)

    drawn = [resampled(units(LOGNORMAL, block=1), seed) for seed in range(12)]
    ours = np.mean([(one.bound(0.05), one.bound(0.95)) for one in drawn], axis=0)
    tolerance = 0.02 * np.diff(theirs("BCa"))[0]
    assert np.abs(ours - theirs("BCa")).max() < tolerance
    assert np.abs(ours - theirs("percentile")).min() > 2 * tolerance  # the intervals are not all alike


def test_skewness_is_corrected_as_hall_defines_it() -> None:
    found = Skewed.of(units(LOGNORMAL, block=1))
    k = stats.skew(LOGNORMAL) / sqrt(200)
    for level in (0.02, 0.5, 0.95):
        t = optimize.brentq(
            lambda t, x: t + k * t**2 / 3 + k**2 * t**3 / 27 + k / 6 - x, -50, 50, args=(stats.t.ppf(1 - level, 199),)
        )
        assert found.bound(level) == pytest.approx(LOGNORMAL.mean() - t * stats.sem(LOGNORMAL))


@pytest.mark.parametrize("values", [LOGNORMAL, -LOGNORMAL, RANDOM.standard_normal(64)])
def test_bounds_and_p_values_are_inverse(values: np.ndarray) -> None:
    found = units(values)
    bounds = Widest((resampled(found, 1), Skewed.of(found)), found.independent)
    for level in (0.2, 0.05, 0.01):
        assert bounds.p_above(bounds.high(level)) == pytest.approx(level, rel=0.02)
        assert bounds.p_below(bounds.low(level)) == pytest.approx(level, rel=0.02)


@pytest.mark.parametrize("alpha", [0.05, 1e-6])
@pytest.mark.parametrize("values", [LOGNORMAL, -LOGNORMAL, SELDOM])
def test_the_widest_of_three_bounds_decides(values: np.ndarray, alpha: float) -> None:
    """At small levels the bootstrap has no more draws to go by, and the others take over."""
    found = paired.noninferior(values, 0.0, alpha=alpha, block=1, seed=4)
    grouped = units(values, 1)
    z = stats.norm.ppf(alpha) * (1 + 1.75 / sqrt(values.size))
    level, freedom = float(stats.norm.cdf(z)), values.size - 1
    t = stats.t.ppf(level, freedom) * stats.sem(values)
    others = (resampled(grouped, 4), Skewed.of(grouped))
    assert found.low == pytest.approx(min(values.mean() + t, *(one.bound(level) for one in others)))
    assert found.high == pytest.approx(max(values.mean() - t, *(one.bound(1 - level) for one in others)))


def test_the_bootstrap_is_seeded() -> None:
    assert paired.bootstrap_interval(LOGNORMAL, seed=1) == paired.bootstrap_interval(LOGNORMAL, seed=1)
    assert paired.bootstrap_interval(LOGNORMAL, seed=1) != paired.bootstrap_interval(LOGNORMAL, seed=2)


# Correlated windows.


def test_blocks_cover_every_value_once_and_joining_changes_no_mean() -> None:
    for n, block in ((7, 2), (1000, 1), (5000, 3), (1, 4)):
        values = RANDOM.standard_normal(n)
        found = units(values, block)
        assert found.sizes.sum() == n
        assert len(found.sums) == max(1, min(512, n // block))
        assert found.sizes.max() - found.sizes.min() <= 1
        assert found.mean == pytest.approx(values.mean())
        assert found.independent == n / block


@pytest.mark.parametrize("memory", [0.0, 0.3, 0.6])
def test_design_effect_of_an_autoregression(memory: float) -> None:
    values = autoregressive(200_000, memory, np.random.default_rng(5))
    assert paired.design_effect(values, 100) == pytest.approx((1 + memory) / (1 - memory), rel=0.15)


def test_correlated_windows_count_less() -> None:
    values = autoregressive(4000, 0.6, np.random.default_rng(1))
    found = paired.noninferior(values, 1.0, block=50)
    assert found.effective_n == pytest.approx(4000 / paired.design_effect(values, 50))
    assert 700 < found.effective_n < 1400  # of 4000, a quarter
    assert paired.noninferior(np.tile([1.0, -1.0], 32), 1.0).effective_n == 64  # and never more than there are


def test_design_effect_needs_spread() -> None:
    assert paired.design_effect([0.1] * 50, 5) == 1
    assert paired.design_effect([3.0], 1) == 1


@pytest.mark.parametrize("memory", [0.3, 0.6])
def test_block_length_is_the_one_that_theory_gives(memory: float) -> None:
    n = 20_000
    slope, level = 2 * memory / (1 - memory) ** 2, (1 + memory) / (1 - memory)
    best = (1.5 * (slope / level) ** 2 * n) ** (1 / 3)
    random = np.random.default_rng(2)
    found = [block_length(autoregressive(n, memory, random)) for _ in range(24)]
    assert 0.93 < np.mean(found) / best < 1.03


def test_independent_and_constant_values_need_no_blocks() -> None:
    random = np.random.default_rng(0)
    assert np.mean([block_length(random.standard_normal(400)) == 1 for _ in range(200)]) > 0.9
    assert block_length([0.1] * 64) == block_length([1.0]) == 1


# Seeds.


def test_one_number_a_seed_is_students_t() -> None:
    values = [0.3, 0.1, 0.7, 0.4]
    low, high = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    assert paired.seeds_interval(values) == pytest.approx((0.375, low, high))
    for value in (0.1, 0.6):
        below = stats.t.cdf((value - 0.375) / stats.sem(values), 3)
        assert seeds_effect(values).bounds.p_below(value) == pytest.approx(below)
        assert seeds_effect(values).bounds.p_above(value) == pytest.approx(1 - below)
    assert seeds_effect(values).seed_sd == pytest.approx(np.std(values, ddof=1))


def test_seeds_and_windows_are_crossed() -> None:
    random = np.random.default_rng(8)
    seeds, windows = 6, 40
    square, spread = [], []
    for _ in range(400):
        table = 2 * random.standard_normal((seeds, 1)) + random.standard_normal(windows) * 3
        effect = seeds_effect(table + random.standard_normal((seeds, windows)))
        square.append(effect.standard_error**2)
        spread.append(effect.seed_sd**2)
    assert np.mean(square) == pytest.approx(4 / seeds + 9 / windows + 1 / seeds / windows, rel=0.08)
    assert np.mean(spread) == pytest.approx(4, rel=0.1)


def test_where_windows_agree_only_seeds_count_and_the_other_way_round() -> None:
    seeds = np.array([0.3, 0.1, 0.7, 0.4])
    assert paired.seeds_interval(np.repeat(seeds[:, None], 64, axis=1)) == pytest.approx(paired.seeds_interval(seeds))
    effect = seeds_effect([LOGNORMAL] * 4, block=1)
    alone = Widest((Skewed(LOGNORMAL.mean(), float(stats.sem(LOGNORMAL)), 199), Skewed.of(units(LOGNORMAL, 1))), 200)
    assert effect.share == pytest.approx(1)
    for level in (0.05, 0.3):
        assert effect.bounds.high(level) == pytest.approx(alone.high(level))
        assert effect.bounds.low(level) == pytest.approx(alone.low(level))


def test_skewness_counts_as_far_as_windows_make_the_spread() -> None:
    table = np.array([[0.0], [0.2], [-0.3]]) + LOGNORMAL
    effect = seeds_effect(table, block=1)
    total = sqrt(np.var([0.0, 0.2, -0.3], ddof=1) / 3 + stats.sem(LOGNORMAL) ** 2)
    assert effect.standard_error == pytest.approx(total)
    share = stats.sem(LOGNORMAL) / total
    assert effect.bounds.stretch == pytest.approx(1 + 1.75 * share / sqrt(200))
    k = [one.k for one in effect.bounds.of if isinstance(one, Skewed)]
    assert k == pytest.approx([0, share**3 * stats.skew(LOGNORMAL) / sqrt(200)])


def test_seeds_that_share_correlated_windows_vary_by_blocks() -> None:
    windows = autoregressive(4000, 0.6, np.random.default_rng(1))
    alone = units(windows, 50).standard_error
    assert seeds_effect([windows] * 3, block=50).standard_error == pytest.approx(alone)
    assert alone > 1.7 * stats.sem(windows)


@pytest.mark.parametrize(("windows", "block"), [(2, None), (31, None), (150, 10)])
def test_too_few_windows_are_not_mended_by_seeds(windows: int, block: int | None) -> None:
    table = np.random.default_rng(windows).standard_normal((5, windows))
    found = paired.seeds_noninferior(table, 100.0, block=block)
    assert (found.status, found.n) == ("inconclusive", windows)
    assert f"{windows} windows of each seed are too few" in found.note
    enough = np.tile(table, 1 + 32 // windows)
    assert paired.seeds_noninferior(enough, 100.0, block=2).status == "pass"


def test_the_spread_of_seeds_leaves_out_the_noise_of_their_windows() -> None:
    random = np.random.default_rng(9)
    tables = random.standard_normal((400, 8, 1)) + 4 * random.standard_normal((400, 8, 32))
    found = [seeds_effect(table, block=1).seed_sd ** 2 for table in tables]
    assert np.mean(found) == pytest.approx(1, rel=0.1)  # their means have a variance of 1.5


def test_windows_alone_would_hide_what_seeds_differ_by() -> None:
    table = np.array([[0.0], [1.0], [2.0]]) + RANDOM.standard_normal((3, 200)) / 100
    assert paired.t_interval(table.ravel())[2] - 1 < 0.1
    assert paired.seeds_interval(table)[2] - 1 > 2


def test_a_single_seed_says_nothing() -> None:
    assert paired.seeds_interval([LOGNORMAL]) == (pytest.approx(LOGNORMAL.mean()), -inf, inf)
    assert paired.seeds_noninferior([LOGNORMAL], 100.0).status == "inconclusive"
    with pytest.raises(ValueError, match=r"same windows, found \[2, 3\]"):
        paired.seeds_interval([[1.0, 2.0], [1.0, 2.0, 3.0]])


# Many rules.


@given(st.lists(st.floats(0, 1), max_size=6))
def test_holm_is_the_closed_test_with_bonferroni(values: list[float]) -> None:
    def adjusted(i: int) -> float:
        sets = [s for size in range(1, len(values) + 1) for s in combinations(range(len(values)), size) if i in s]
        return max(min(1.0, len(s) * min(values[j] for j in s)) for s in sets)

    assert paired.holm(values) == pytest.approx([adjusted(i) for i in range(len(values))])


def test_holm_takes_chances() -> None:
    with pytest.raises(ValueError, match="between 0 and 1"):
        paired.holm([0.1, float("nan")])


# Decisions.


def test_what_is_clear_is_decided_and_what_is_not_says_how_much_it_takes() -> None:
    values = np.random.default_rng(0).standard_normal(256)
    passed, failed, unclear = (paired.noninferior(values + shift, 0.5) for shift in (0.0, 1.0, 0.45))
    assert [d.status for d in (passed, failed, unclear)] == ["pass", "fail", "inconclusive"]
    assert passed.high < 0.5 < failed.low
    assert unclear.low < 0.5 < unclear.high
    assert unclear.needed_n is not None
    assert unclear.needed_n > 256
    assert f"({unclear.needed_n})" in unclear.note
    assert paired.noninferior(values, 0.5) == passed


def test_power_is_what_minimum_detectable_and_needed_n_say() -> None:
    random = np.random.default_rng(4)
    visible = np.mean([paired.noninferior(random.standard_normal(128), 9.0).minimum_detectable for _ in range(50)])
    passed = [paired.noninferior(random.standard_normal(128), float(visible)).status == "pass" for _ in range(600)]
    assert 0.72 < np.mean(passed) < 0.92
    needed = [paired.noninferior(random.standard_normal(128), 0.15).needed_n or 0 for _ in range(200)]
    n = int(np.median(needed))
    passed = [paired.noninferior(random.standard_normal(n), 0.15).status == "pass" for _ in range(600)]
    assert 0.68 < np.mean(passed) < 0.95


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from([0.01, 0.05, 0.2]), st.floats(-1, 4), st.integers(32, 200))
def test_status_bounds_and_p_values_say_the_same(draw: int, alpha: float, margin: float, n: int) -> None:
    found = paired.noninferior(np.random.default_rng(draw).lognormal(size=n), margin, alpha=alpha, minimum=32, block=1)
    assert (found.status == "pass") == (found.high < margin)
    assert (found.status == "fail") == (found.low > margin)
    if abs(found.high - margin) > 0.02:
        assert (found.p_pass < found.level) == (found.status == "pass")
    if abs(found.low - margin) > 0.02:
        assert (found.p_fail < found.level) == (found.status == "fail")
    assert found.low < found.estimate < found.high


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32 - 1), st.floats(1.01, 100), st.sampled_from([64, 200]))
def test_a_candidate_that_varies_more_earns_no_tolerance(draw: int, factor: float, n: int) -> None:
    """With the same mean, a larger spread of the differences only ever widens the bounds."""
    values = np.random.default_rng(draw).lognormal(size=n)
    wilder = values.mean() + factor * (values - values.mean())
    calm, wild = (paired.noninferior(one, 2.0, block=2) for one in (values, wilder))
    assert calm.margin == wild.margin == 2.0
    assert wild.high > calm.high
    assert wild.low < calm.low
    assert wild.p_pass >= min(calm.p_pass, 0.5) - 1e-3
    over = wilder - wilder.mean() + 2.0  # an effect of just the margin never passes, however noisy
    assert paired.noninferior(over, 2.0, block=2).status == "inconclusive"


@pytest.mark.parametrize("n", [1, 2, 31, 63])
@pytest.mark.parametrize("value", [0.0, -100.0, 100.0])
def test_too_few_windows_are_never_conclusive(n: int, value: float) -> None:
    found = paired.noninferior(np.full(n, value) + (value != 0) * np.arange(n) % 3, 1.0)
    assert (found.status, found.needed_n) == ("inconclusive", 64)
    assert f"{n} windows are too few" in found.note
    least = paired.noninferior(np.full(min(n, 31), value), 1.0, minimum=1, block=1)
    assert (least.status, least.minimum) == ("inconclusive", 32)


def test_too_few_blocks_are_never_conclusive() -> None:
    values = np.random.default_rng(0).standard_normal(150)
    found = paired.noninferior(values, 100.0, block=10)
    assert (found.status, found.minimum) == ("inconclusive", 160)
    assert paired.noninferior(values, 100.0, block=9).status == "pass"
    alone = paired.noninferior(values, 100.0, block=150)
    assert alone.status == "inconclusive"
    assert isinf(alone.high)


def test_identical_models_pass_without_a_margin() -> None:
    assert paired.noninferior([0.0] * 64, 0.0).status == "pass"
    assert paired.noninferior([0.0] * 64, -0.1).status == "fail"
    assert paired.noninferior([0.25] * 64, 0.25).status == "inconclusive"
    assert paired.noninferior([0.25] * 64, 0.3).status == "pass"
    assert paired.seeds_noninferior([0.0] * 3, 0.0).status == "pass"


@pytest.mark.parametrize("bad", [[], [1.0, float("nan")], [1.0, inf], [1e200, 1.0], [[1.0, 2.0]]])
def test_broken_differences_are_refused(bad: list[float]) -> None:
    with pytest.raises(ValueError, match=r"at least one value|NaN or infinite"):
        paired.noninferior(bad, 0.1)


@pytest.mark.parametrize("margin", [float("nan"), inf])
def test_a_margin_is_a_number(margin: float) -> None:
    with pytest.raises(ValueError, match=r"finite number|less than 1"):
        paired.noninferior(LOGNORMAL, margin)
    with pytest.raises(ValueError, match=r"finite number|less than 1"):
        paired.proportion_noninferior([0] * 200, [0] * 200, margin)


def test_error_rates_are_decided_by_pairs() -> None:
    a = [0] * 380 + [1] * 20
    swapped = [1] * 10 + [0] * 370 + [0] * 10 + [1] * 10  # the same rate, 20 items changed
    worse = [1] * 60 + [0] * 320 + [1] * 20
    assert paired.proportion_noninferior(a, swapped, 0.05).status == "pass"
    assert paired.proportion_noninferior(a, worse, 0.05).status == "fail"
    assert paired.proportion_noninferior(a, swapped, 0.015).status == "inconclusive"
    assert paired.proportion_noninferior(a[:99], a[:99], 0.5).status == "inconclusive"
    assert paired.proportion_noninferior(a, a, 0.01).status == "pass"


def test_seeds_are_decided_by_their_own_spread() -> None:
    assert paired.seeds_noninferior([0.1, 0.12, 0.11], 0.2).status == "pass"
    assert paired.seeds_noninferior([0.1, 0.12, 0.11], 0.05).status == "fail"
    assert paired.seeds_noninferior([0.1, 0.3, -0.1], 0.2).status == "inconclusive"
    assert paired.seeds_noninferior([0.1, 0.11], 10.0).status == "inconclusive"
    assert paired.seeds_noninferior([0.1, 0.11], 10.0, minimum=2).status == "pass"


def test_more_seeds_do_not_lessen_what_windows_have_in_common() -> None:
    random = np.random.default_rng(0)
    windows = random.standard_normal(64)
    windows -= windows.mean()
    together = windows + random.standard_normal((3, 64)) / 100
    found = paired.seeds_noninferior(together, 0.15, block=1)
    assert (found.status, found.needed_n) == ("inconclusive", None)
    assert "more windows for each may" in found.note
    apart = np.array([[0.0], [0.3], [-0.3]]) + np.zeros(64)
    found = paired.seeds_noninferior(apart, 0.3)
    assert found.needed_n == paired.seeds_noninferior([0.0, 0.3, -0.3], 0.3).needed_n
    half = paired.seeds_noninferior(apart + windows * 0.3 / sqrt(3) / stats.sem(windows), 0.7, block=1)
    assert half.status == "pass"
    assert half.needed_n is not None
    part = (0.7 / half.minimum_detectable) ** 2
    assert half.needed_n == np.ceil(3 * 0.5 / (part - 0.5)) > 3
    noise = [seeds_effect(random.standard_normal((5, 64)), block=1).common for _ in range(50)]
    assert np.mean(noise) < 0.3  # nothing in common


# Looks.


def test_looks_share_alpha() -> None:
    assert sum(paired.level_of_look(0.05, k, 4) for k in range(1, 5)) == pytest.approx(0.05)
    unplanned = [paired.level_of_look(0.05, k, None) for k in range(1, 15)]
    assert sum(unplanned) < 0.05
    assert all(later < earlier for earlier, later in pairwise(unplanned))
    one, two = (paired.noninferior(LOGNORMAL, 2.0, looks=looks) for looks in (1, 2))
    assert (one.level, two.level) == (0.05, 0.025)
    assert two.high > one.high


@pytest.mark.parametrize(("look", "looks"), [(2, 1), (0, 1), (5, 4), (60, None), (10**6, None)])
def test_a_look_too_many_is_refused(look: int, looks: int | None) -> None:
    with pytest.raises(ValueError, match=r"new plan|can be trusted"):
        paired.noninferior(LOGNORMAL, 2.0, look=look, looks=looks)


@pytest.mark.parametrize("alpha", [0.0, 0.5, -1.0, float("nan"), 1e-9])
def test_alpha_is_a_small_chance(alpha: float) -> None:
    with pytest.raises(ValueError, match="alpha"):
        paired.noninferior(LOGNORMAL, 2.0, alpha=alpha)


def test_a_hundred_rules_take_well_under_a_second() -> None:
    from time import process_time

    tables = [np.random.default_rng(k).lognormal(size=4096) for k in range(100)]
    paired.noninferior(tables[0], 2.0, block=2)
    start = process_time()
    for table in tables:
        paired.noninferior(table, 2.0, block=2)
    assert process_time() - start < 2
