"""Intervals against scipy, by definition, and by how often they cover."""

from math import exp, inf, log

import numpy as np
import pytest
from scipy import stats

from qbench.stats.interval import difference_interval, mean_interval, ratio_interval, student_t_quantile


@pytest.mark.parametrize("freedom", [1, 2, 3, 4, 7, 50, 127, 199, 200, 201, 1000, 10**6])
@pytest.mark.parametrize("p", [0.025, 0.5, 0.6, 0.9, 0.975, 0.995, 0.9995])
def test_quantiles_agree_with_scipy(p: float, freedom: int) -> None:
    assert student_t_quantile(p, freedom) == pytest.approx(stats.t.ppf(p, freedom), rel=1e-9, abs=1e-12)


@pytest.mark.parametrize(("p", "freedom"), [(0.0, 3), (1.0, 3), (0.5, 0)])
def test_quantiles_that_do_not_exist(p: float, freedom: int) -> None:
    with pytest.raises(ValueError, match="degree of freedom"):
        student_t_quantile(p, freedom)


@pytest.mark.parametrize("confidence", [0.8, 0.95])
def test_mean_interval_agrees_with_scipy(confidence: float) -> None:
    values = [0.3, 1.7, 0.9, 1.1, -0.4]
    low, high = stats.t.interval(confidence, len(values) - 1, np.mean(values), stats.sem(values))
    assert mean_interval(values, confidence) == pytest.approx((np.mean(values), low, high))


def test_one_value_has_no_spread_and_none_have_no_mean() -> None:
    assert mean_interval([2.5]) == (2.5, -inf, inf)
    with pytest.raises(ValueError, match="no values"):
        mean_interval([])


def test_differences_are_paired() -> None:
    a, b = [10.1, 20.2, 30.3], [10.0, 20.0, 30.0]
    test = stats.ttest_rel(a, b).confidence_interval(0.95)
    assert difference_interval(a, b) == pytest.approx((0.2, test.low, test.high))
    with pytest.raises(ValueError, match="shorter"):
        difference_interval(a, b[:2])


def test_ratios_are_differences_of_logarithms() -> None:
    a, b = [2.0, 9.0, 5.0], [1.0, 3.0, 2.0]
    logs = mean_interval([log(x / y) for x, y in zip(a, b, strict=True)])
    assert ratio_interval(a, b) == pytest.approx(tuple(exp(v) for v in logs))
    assert ratio_interval([2.0], [1.0]) == (2.0, 0.0, inf)


@pytest.mark.parametrize(("a", "b"), [([1.0, -0.1], [1.0, 2.0]), ([1.0, 1.0], [0.0, 2.0])])
def test_ratios_need_positive_values(a: list[float], b: list[float]) -> None:
    assert ratio_interval(a, b) is None


def test_ninety_five_percent_of_intervals_cover() -> None:
    draws = np.random.default_rng(0).standard_normal((4000, 3)) + 1
    covered = sum(low <= 1 <= high for _, low, high in (mean_interval(row) for row in draws.tolist()))
    assert covered / 4000 == pytest.approx(0.95, abs=0.012)
