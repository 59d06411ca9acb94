"""What decisions promise, by simulation: how often a model that is as bad as the margin passes, and what covers."""

from collections.abc import Callable
from math import exp, sqrt

import numpy as np
import pytest
from scipy import stats

from qbench.stats import paired

EXPERIMENTS = 2000
ALPHA = 0.05


def limit(alpha: float) -> float:
    """The promise and three standard errors of the simulation."""
    return alpha + 3 * sqrt(alpha * (1 - alpha) / EXPERIMENTS)


def normal(random: np.random.Generator, n: int) -> np.ndarray:
    return random.standard_normal(n)


def lognormal(random: np.random.Generator, n: int) -> np.ndarray:
    """Skewness 6.2."""
    return random.lognormal(size=n) - exp(0.5)


def left(random: np.random.Generator, n: int) -> np.ndarray:
    return -lognormal(random, n)


def heavy_both_ways(random: np.random.Generator, n: int) -> np.ndarray:
    return lognormal(random, n) - lognormal(random, n)


def remembering(memory: float) -> Callable[[np.random.Generator, int], np.ndarray]:
    """Lognormal windows of an autoregression."""

    def draw(random: np.random.Generator, n: int) -> np.ndarray:
        noise = random.standard_normal(n)
        noise[1:] *= sqrt(1 - memory**2)
        values = np.empty(n)
        last = 0.0
        for i, one in enumerate(noise.tolist()):
            values[i] = last = memory * last + one
        return np.exp(values) - exp(0.5)

    return draw


Law = Callable[[np.random.Generator, int], np.ndarray]


def shares(law: Law, n: int, **how: float) -> tuple[float, float]:
    """How often a true effect of exactly the margin passes and fails, both of which are errors."""
    random = np.random.default_rng(n)
    found = [paired.noninferior(law(random, n) + 0.1, 0.1, **how).status for _ in range(EXPERIMENTS)]
    return found.count("pass") / EXPERIMENTS, found.count("fail") / EXPERIMENTS


@pytest.mark.parametrize(
    ("law", "n"), [(normal, 64), (lognormal, 64), (lognormal, 128), (lognormal, 512), (left, 64), (heavy_both_ways, 64)]
)
def test_at_the_margin_a_pass_is_as_rare_as_alpha_says(law: Law, n: int) -> None:
    passed, failed = shares(law, n)
    assert passed <= limit(ALPHA)
    assert failed <= limit(ALPHA)


def test_the_smallest_sample_that_a_policy_may_ask_for_keeps_the_promise() -> None:
    assert shares(lognormal, paired.FLOOR, minimum=paired.FLOOR, block=1)[0] <= limit(ALPHA)


@pytest.mark.parametrize(("memory", "n"), [(0.2, 64), (0.4, 256)])
def test_correlated_windows_keep_the_promise(memory: float, n: int) -> None:
    assert shares(remembering(memory), n)[0] <= limit(ALPHA)


def test_a_smaller_alpha_is_kept_too() -> None:
    assert shares(lognormal, 64, alpha=0.0125)[0] <= limit(0.0125)


def test_the_simulation_catches_methods_that_break_the_promise() -> None:
    random = np.random.default_rng(0)
    draws = np.stack([lognormal(random, 64) for _ in range(EXPERIMENTS)])
    plain = draws.mean(1) + stats.t.ppf(0.95, 63) * stats.sem(draws, axis=1) < 0
    assert plain.mean() > 1.5 * limit(ALPHA)  # Student's t alone, without its correction
    together = [paired.noninferior(remembering(0.6)(random, 512), 0.0, block=1).status for _ in range(300)]
    assert together.count("pass") / 300 > 2 * limit(ALPHA)  # correlated windows taken for independent ones


def test_tests_have_power() -> None:
    random = np.random.default_rng(1)
    passed = [paired.noninferior(random.standard_normal(256), 0.3).status == "pass" for _ in range(400)]
    assert np.mean(passed) > 0.98
    failed = [paired.noninferior(random.standard_normal(256) + 0.6, 0.3).status == "fail" for _ in range(400)]
    assert np.mean(failed) > 0.98


@pytest.mark.parametrize("n", [64, 512])
def test_intervals_cover_skewed_differences(n: int) -> None:
    random = np.random.default_rng(n)
    draws = [lognormal(random, n) for _ in range(EXPERIMENTS)]
    bootstrap = [low <= 0 <= high for _, low, high in (paired.bootstrap_interval(values) for values in draws)]
    assert np.mean(bootstrap) >= 0.93
    decided = [paired.noninferior(values, 0.0, alpha=0.025) for values in draws]
    assert np.mean([one.low <= 0 <= one.high for one in decided]) >= 0.93
    if n == 512:  # Student's t alone needs so many
        assert np.mean([low <= 0 <= high for _, low, high in map(paired.t_interval, draws)]) >= 0.93


def ever_passes(random: np.random.Generator, law: Law, looks: int | None, split: bool) -> bool:
    """A user who doubles the windows until the answer is PASS, and keeps those already measured."""
    values = law(random, 256)
    for look, n in enumerate((64, 128, 256), start=1):
        how = {"look": look, "looks": looks} if split else {}
        if paired.noninferior(values[:n], 0.0, block=1, **how).status == "pass":
            return True
    return False


@pytest.mark.parametrize("looks", [3, None])
def test_extending_until_it_passes_does_not_help(looks: int | None) -> None:
    random = np.random.default_rng(11)
    passed = [ever_passes(random, lognormal, looks, split=True) for _ in range(EXPERIMENTS)]
    assert np.mean(passed) <= limit(ALPHA)


def test_extending_would_help_if_every_look_had_the_whole_alpha() -> None:
    random = np.random.default_rng(11)
    passed = [ever_passes(random, lognormal, None, split=False) for _ in range(1000)]
    assert np.mean(passed) > limit(ALPHA)


def test_adding_seeds_until_it_passes_does_not_help() -> None:
    random = np.random.default_rng(5)

    def ever(split: bool) -> bool:
        values = random.standard_normal(8)
        plans: list[paired.Options] = [{"look": k, "looks": 6} if split else {} for k in range(1, 7)]
        tried = (paired.seeds_noninferior(values[: k + 2], 0.0, **how) for k, how in enumerate(plans, start=1))
        return any(one.status == "pass" for one in tried)

    assert np.mean([ever(split=True) for _ in range(EXPERIMENTS)]) <= limit(ALPHA)
    assert np.mean([ever(split=False) for _ in range(500)]) > 1.5 * limit(ALPHA)


def test_error_rates_keep_the_promise_for_every_share_of_changed_items() -> None:
    """Exactly, over all tables that can occur: only b wrong, only a wrong."""
    n = 100
    for margin in (0.01, 0.02, 0.05, 0.1):
        for less in (0.0, 0.005, 0.02, 0.1):
            passed = failed = 0.0
            worse, better = (counts.ravel() for counts in np.mgrid[:60, :45])
            rest = n - worse - better
            shares = [less + margin, less, 1 - 2 * less - margin]
            chance = stats.multinomial.pmf(np.stack([worse, better, rest], axis=1), n, shares)
            seen = (rest >= 0) & (chance > 1e-7)
            for i in np.flatnonzero(seen).tolist():
                status = decided(int(worse[i]), int(better[i]), n, margin)
                passed += chance[i] * (status == "pass")
                failed += chance[i] * (status == "fail")
            assert passed <= ALPHA, (margin, less)
            assert failed <= 1.3 * ALPHA, (margin, less)


def decided(worse: int, better: int, n: int, margin: float) -> str:
    a = np.zeros(n)
    b = np.zeros(n)
    b[:worse] = 1
    a[worse : worse + better] = 1
    return paired.proportion_noninferior(a, b, margin).status


@pytest.mark.parametrize(("seeds", "seed_sd", "n"), [(3, 0.0, 32), (5, 0.1, 64), (3, 0.3, 64), (3, 0.0, 512)])
def test_seeds_keep_the_promise_when_they_share_skewed_windows(seeds: int, seed_sd: float, n: int) -> None:
    random = np.random.default_rng(n)
    found = []
    for _ in range(EXPERIMENTS):
        table = seed_sd * random.standard_normal((seeds, 1)) + lognormal(random, n)
        found.append(paired.seeds_noninferior(table + 0.05 * random.standard_normal((seeds, n)), 0.0).status)
    assert found.count("pass") / EXPERIMENTS <= limit(ALPHA)
    assert found.count("fail") / EXPERIMENTS <= limit(ALPHA)


@pytest.mark.parametrize(("seeds", "seed_sd"), [(3, 0.5), (5, 0.0), (5, 2.0)])
def test_seeds_keep_the_promise(seeds: int, seed_sd: float) -> None:
    random = np.random.default_rng(seeds)
    passed = 0
    for _ in range(EXPERIMENTS):
        own = seed_sd * random.standard_normal((seeds, 1)) + random.standard_normal(64)
        table = own + random.standard_normal((seeds, 64))
        passed += paired.seeds_noninferior(table, 0.0).status == "pass"
    assert passed / EXPERIMENTS <= limit(ALPHA)
    if seed_sd:  # windows alone would not: seeds are what the answer is about
        table = seed_sd * random.standard_normal((400, seeds, 1)) + random.standard_normal((400, seeds, 64))
        flat = table.reshape(400, -1)
        assert np.mean(flat.mean(1) + 1.65 * stats.sem(flat, axis=1) < 0) > 2 * limit(ALPHA)
