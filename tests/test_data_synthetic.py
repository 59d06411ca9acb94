"""Calibration tensors: what they are, and that only their seed decides them."""

import pytest
import torch
from scipy import stats

from qbench.data.synthetic import DISTRIBUTIONS, HOT, SINK, calibration

ROWS, WIDTH = 512, 96
NULL = {
    "gaussian": stats.norm(),
    "laplace": stats.laplace(scale=0.5**0.5),
    "uniform": stats.uniform(-(3**0.5), 2 * 3**0.5),
    "student-t": stats.t(5, scale=0.6**0.5),
}


@pytest.mark.parametrize("site", NULL)
def test_values_follow_the_distribution_named(site: str) -> None:
    x = calibration(ROWS, WIDTH, seed=0)[site]
    assert stats.kstest(x.numpy().ravel(), NULL[site].cdf).pvalue > 1e-3
    assert NULL[site].var() == pytest.approx(1)
    assert NULL[site].stats("k") == pytest.approx(DISTRIBUTIONS[site].excess_kurtosis((ROWS, WIDTH)))


def test_one_channel_is_hot() -> None:
    deviation = calibration(ROWS, WIDTH, seed=0)["hot-channel"][0].std(0)
    assert deviation[WIDTH // 2] == pytest.approx(HOT, rel=0.15)
    assert deviation[torch.arange(WIDTH) != WIDTH // 2].sub(1).abs().max() < 0.15


def test_one_token_is_a_sink_in_one_channel() -> None:
    x = calibration(ROWS, WIDTH, seed=0)["sink-token"]
    assert x[0, 0, WIDTH // 2] == SINK
    assert (x.abs() > 10).sum() == 1


def test_sites_are_float32_independent_and_decided_by_the_seed() -> None:
    a, b, c = (calibration(ROWS, WIDTH, seed) for seed in (0, 0, 1))
    assert list(a) == ["gaussian", "laplace", "uniform", "student-t", "hot-channel", "sink-token"]
    for site, x in a.items():
        assert (x.shape, x.dtype) == ((1, ROWS, WIDTH), torch.float32)
        assert torch.equal(x, b[site])
        assert not torch.equal(x, c[site])
    flat = torch.stack([x.flatten() for x in a.values()])
    off_diagonal = torch.corrcoef(flat) - torch.eye(len(a))
    assert off_diagonal.abs().max() < 5 / (ROWS * WIDTH) ** 0.5
