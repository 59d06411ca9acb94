"""Rank correlations against scipy, their bootstrap against a plain loop, and coverage on data with a known answer."""

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.stats import spearmanr

from qbench.stats import rank
from qbench.stats.rank import Table, compare, spearman


def data(n: int = 60, groups: int = 6, seed: int = 0) -> tuple[dict[str, NDArray[np.float64]], NDArray[np.float64]]:
    random = np.random.default_rng(seed)
    y = random.normal(size=n) + np.repeat(random.normal(size=groups), n // groups)
    return {
        "noisy": y + 2 * random.normal(size=n),
        "good": np.round(np.exp(y + 0.3 * random.normal(size=n)), 1),
        "none": random.normal(size=n),
    }, y


@pytest.mark.parametrize("levels", [3, 7, 1000])
def test_spearman_is_scipys(levels: int) -> None:
    random = np.random.default_rng(levels)
    for _ in range(20):
        a = random.integers(levels, size=30).astype(float)
        b = a + random.integers(levels, size=30)
        assert spearman(a, b) == pytest.approx(spearmanr(a, b).statistic, abs=1e-12)


def test_what_has_no_order_has_no_correlation() -> None:
    assert np.isnan(spearman(np.ones(5), np.arange(5.0)))
    assert np.isnan(spearman(np.arange(2.0), np.arange(2.0)))


def test_the_best_comes_first_with_its_estimate() -> None:
    predictors, y = data()
    found = compare(Table(predictors, y, np.repeat(range(6), 10).tolist()))
    assert list(found.correlations) == ["good", "noisy", "none"]
    for name, one in found.correlations.items():
        assert one.rho.estimate == pytest.approx(spearmanr(predictors[name], y).statistic)
        assert one.rho.low < one.rho.estimate < one.rho.high
    assert sum(one.best for one in found.correlations.values()) == pytest.approx(1)
    assert found.correlations["good"].best > 0.95
    assert (found.n, found.groups) == (60, 6)
    assert found.differences["good", "noisy"].low > 0
    difference = found.differences["good", "noisy"].estimate
    assert difference == pytest.approx(
        found.correlations["good"].rho.estimate - found.correlations["noisy"].rho.estimate
    )


def test_the_bootstrap_is_a_plain_loop_over_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rank, "DRAWS", 200)
    predictors, y = data()
    groups = np.repeat(range(6), 10)
    strata = np.arange(60) % 2
    found = compare(Table(predictors, y, groups.tolist(), strata.tolist()), seed=5)
    random = np.random.default_rng(5)
    rhos: list[float] = []
    for _ in range(200):
        rows = np.concatenate([np.flatnonzero(groups == g) for g in random.integers(6, size=6)])
        parts = [rows[strata[rows] == s] for s in (0, 1)]
        each = [spearmanr(predictors["good"][part], y[part]).statistic for part in parts]
        rhos.append(float(np.average(each, weights=[len(part) for part in parts])))
    low, high = np.quantile(rhos, [0.025, 0.975])
    assert found.correlations["good"].rho.low == pytest.approx(low, abs=1e-9)
    assert found.correlations["good"].rho.high == pytest.approx(high, abs=1e-9)


def test_small_blocks_of_draws_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    predictors, y = data()
    table = Table(predictors, y, np.repeat(range(6), 10).tolist())
    whole = compare(table)
    monkeypatch.setattr(rank, "AT_ONCE", 600)
    assert compare(table) == whole
    assert compare(table, seed=1) != whole


def test_ranks_are_within_a_stratum() -> None:
    """Strata far apart: what only tells them apart predicts nothing, what predicts within each predicts all."""
    random = np.random.default_rng(0)
    strata = np.repeat(range(4), 25)
    y = 100.0 * strata + random.normal(size=100)
    predictors = {"stratum": strata + 1e-3 * random.normal(size=100), "within": y - 100 * strata}
    plain = compare(Table(predictors, y, list(range(100)))).correlations
    apart = compare(Table(predictors, y, list(range(100)), strata.tolist())).correlations
    assert plain["stratum"].rho.estimate > 0.9
    assert abs(apart["stratum"].rho.estimate) < 0.25
    assert apart["within"].rho.estimate == pytest.approx(1)


def test_what_goes_together_is_drawn_together() -> None:
    """Ten copies of each observation say no more than one: the interval is that of the ten, not of the hundred."""
    random = np.random.default_rng(3)
    a, b = random.normal(size=12), random.normal(size=12)
    once = compare(Table({"a": a + b}, b, list(range(12)))).correlations["a"].rho
    tenfold = Table({"a": np.repeat(a + b, 10)}, np.repeat(b, 10), np.repeat(range(12), 10).tolist())
    many = compare(tenfold).correlations["a"].rho
    assert many.estimate == pytest.approx(once.estimate)
    assert many.low == pytest.approx(once.low, abs=0.05)
    assert many.high == pytest.approx(once.high, abs=0.05)


def test_intervals_cover_the_truth() -> None:
    """Gaussian pairs of correlation r have Spearman's rho 6 / pi asin(r / 2)."""
    r, hits = 0.6, 0
    truth = 6 / np.pi * np.arcsin(r / 2)
    for seed in range(60):
        random = np.random.default_rng(seed)
        a = random.normal(size=80)
        b = r * a + np.sqrt(1 - r**2) * random.normal(size=80)
        rho = compare(Table({"a": a}, b, list(range(80))), seed).correlations["a"].rho
        hits += rho.low < truth < rho.high
    assert 51 <= hits <= 60


def test_one_group_resamples_its_observations() -> None:
    predictors, y = data()
    found = compare(Table(predictors, y, ["the only run"] * 60))
    assert found.groups == 1
    assert 0.05 < found.correlations["noisy"].rho.high - found.correlations["noisy"].rho.low < 1


def test_observations_that_miss_a_number_are_left_out() -> None:
    predictors, y = data()
    predictors["noisy"][:7] = np.nan
    found = compare(Table(predictors, y, list(range(60))))
    assert found.n == 53
    assert found.correlations["good"].rho.estimate == pytest.approx(spearmanr(predictors["good"][7:], y[7:]).statistic)


def test_a_constant_predictor_comes_last_and_wins_nothing_it_could() -> None:
    predictors, y = data()
    found = compare(Table({"good": predictors["good"], "same": np.ones(60)}, y, list(range(60))))
    assert list(found.correlations) == ["good", "same"]
    assert np.isnan(found.correlations["same"].rho.estimate)
    assert found.correlations["good"].rho.low > 0.5
    assert found.correlations["good"].best == 1


def test_mistakes_are_named() -> None:
    predictors, y = data()
    with pytest.raises(ValueError, match="one length"):
        Table(predictors, y[:-1], list(range(60)))
    with pytest.raises(ValueError, match="2 observations have all of noisy, good, none; 3 are needed"):
        compare(Table({name: x[:2] for name, x in predictors.items()}, y[:2], [0, 1]))
