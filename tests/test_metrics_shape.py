"""Shape statistics against scipy, closed forms, published definitions and brute force."""

from functools import reduce
from math import sqrt

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from torch import Tensor

from qbench.data.synthetic import DISTRIBUTIONS, calibration
from qbench.metrics.catalog import METRICS
from qbench.metrics.shape import gaussian_osp, measure, merge, shape


def normal(*size: int, seed: int = 0) -> Tensor:
    return torch.randn(size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def skewed(*size: int, seed: int = 0) -> Tensor:
    return normal(*size, seed=seed).exp() + torch.arange(size[-1])


def scipy_kurtosis(x: Tensor) -> dict[str, float]:
    rows = x.reshape(-1, x.shape[-1]).numpy()
    return {
        "tensor": stats.kurtosis(rows, axis=None),
        "token": stats.kurtosis(rows, axis=1).mean(),
        "channel": stats.kurtosis(rows, axis=0).mean(),
    }


# Oracles


@pytest.mark.parametrize("axis", ["tensor", "token", "channel"])
@pytest.mark.parametrize("offset", [0.0, 1e3, -1e6])
def test_excess_kurtosis_is_scipys_whatever_the_mean(axis: str, offset: float) -> None:
    x = skewed(3, 50, 7) + offset
    assert shape(x)[f"excess_kurtosis/{axis}"] == pytest.approx(scipy_kurtosis(x)[axis], rel=1e-9)


# Of one draw each of 2048 x 96 values, with what another draw may differ by: kurtosis pooled and by token, crest in dB.
REFERENCE = {
    "gaussian": ((0.00, 0.05), (-0.06, 0.03), (13.4, 1.0)),
    "laplace": ((2.85, 0.30), (2.24, 0.15), (19.4, 2.0)),
    "uniform": ((-1.20, 0.01), (-1.17, 0.01), (4.8, 0.05)),
    "student-t": ((4.36, 3.00), (2.41, 0.30), (22.3, 6.0)),
    "hot-channel": ((69.74, 6.0), (17.31, 1.0), (26.8, 2.0)),
}


@pytest.mark.parametrize("site", REFERENCE)
def test_synthetic_tensors_show_the_reference_values(site: str) -> None:
    found = shape(calibration(2048, 96, seed=0)[site])
    for name, (value, tolerance) in zip(
        ("excess_kurtosis/tensor", "excess_kurtosis/token", "crest_db"), REFERENCE[site], strict=True
    ):
        assert found[name] == pytest.approx(value, abs=tolerance), name


@pytest.mark.parametrize("site", sorted(DISTRIBUTIONS.keys() - {"student-t"}))  # whose sample kurtosis has no variance
def test_pooled_kurtosis_is_the_closed_form(site: str) -> None:
    draws = [shape(calibration(2048, 96, seed)[site])["excess_kurtosis/tensor"] for seed in range(8)]
    standard_error = np.std(draws, ddof=1) / sqrt(len(draws))
    assert np.mean(draws) == pytest.approx(DISTRIBUTIONS[site].excess_kurtosis((2048, 96)), abs=5 * standard_error)


def osp(x: Tensor) -> float:
    return ((x**4).mean(-1) / x.std(-1) ** 4 - 3).relu().mean().item()


def qualcomm(x: Tensor) -> float:
    rows = x.flatten(1)
    return (((rows - rows.mean(1, keepdim=True)) ** 4).mean(1) / (rows.std(1) ** 4 + 1e-6)).mean().item()


def he(x: Tensor) -> float:
    scales = x.flatten(0, 1).square().mean(0).sqrt()
    return ((scales**4).mean() / (scales**2).mean() ** 2).item()


def max_to_median(x: Tensor) -> float:
    return (x.abs().amax(-1) / x.abs().median(-1).values).mean().item()


PUBLISHED = {"kurtosis/osp": osp, "kurtosis/qualcomm": qualcomm, "kurtosis/he": he, "max_to_median": max_to_median}


@pytest.mark.parametrize("name", PUBLISHED)
@pytest.mark.parametrize("scale", [1.0, 0.03])
def test_published_definitions_written_out(name: str, scale: float) -> None:
    x = scale * skewed(3, 20, 16)
    assert shape(x)[name] == pytest.approx(PUBLISHED[name](x), rel=1e-10)


def hot(x: Tensor) -> Tensor:
    x[..., 9] *= 60
    return x


def sink(x: Tensor) -> Tensor:
    x[:, 0, 9] = 300
    return x


def student(x: Tensor) -> Tensor:
    return x * (5 / normal(5, *x.shape, seed=1).square().sum(0)).sqrt()


# [64, 128, 256] values: textbook pooled, and OSP's estimator, which a mean of 2 misleads.
ESTIMATORS = {
    "gaussian": (lambda x: x, (0.00, 0.01), (0.11, 0.007)),
    "student-t": (student, (4.98, 1.5), (3.37, 0.2)),
    "hot channel": (hot, (664, 30), (156, 2)),
    "one sink token of each sequence": (sink, (17_598, 30), (2.07, 0.01)),
    "mean of 2": (lambda x: x + 2, (0.00, 0.01), (40.6, 0.3)),
}


@pytest.mark.parametrize("data", ESTIMATORS)
def test_estimators_disagree_as_published(data: str) -> None:
    disturb, (textbook, textbook_tolerance), (theirs, theirs_tolerance) = ESTIMATORS[data]
    found = shape(disturb(normal(64, 128, 256)))
    assert found["excess_kurtosis/tensor"] == pytest.approx(textbook, abs=textbook_tolerance)
    assert found["kurtosis/osp"] == pytest.approx(theirs, abs=theirs_tolerance)


def test_unequal_gaussian_channels_are_gaussian_by_channel_only() -> None:
    scales = torch.linspace(0.1, 3, 64, dtype=torch.float64)
    found = shape(normal(8, 2048, 64) * scales)
    pooled = 3 * ((scales**4).mean() / (scales**2).mean() ** 2 - 1).item()
    assert found["excess_kurtosis/channel"] == pytest.approx(0, abs=0.02)
    assert found["excess_kurtosis/tensor"] == pytest.approx(pooled, rel=0.02)
    assert found["kurtosis/he"] == pytest.approx(pooled / 3 + 1, rel=0.01)


def test_gaussian_data_shows_the_gaussian_floors() -> None:
    batches = [measure(normal(4, 64, 32, seed=seed)) for seed in range(200)]
    found = reduce(merge, batches).values()
    for name in ("excess_kurtosis/token", "kurtosis/osp", "crest_db"):
        assert found[name] == pytest.approx(found[f"gaussian/{name}"], abs=0.06 if name == "crest_db" else 0.01), name
    tensors = [batch.values() for batch in batches]
    for axis in ("tensor", "channel"):
        drawn = [values[f"excess_kurtosis/{axis}"] for values in tensors]
        floor = tensors[0][f"gaussian/excess_kurtosis/{axis}"]
        assert np.mean(drawn) == pytest.approx(floor, abs=4 * np.std(drawn) / sqrt(len(drawn)))
    spread = np.std([values["excess_kurtosis/tensor"] for values in tensors], ddof=1)
    assert spread == pytest.approx(tensors[0]["gaussian/sd/excess_kurtosis/tensor"], rel=0.2)


@pytest.mark.parametrize("channels", [16, 20, 40, 80, 200, 1024])
def test_osp_floor_is_what_gaussian_tokens_show(channels: int) -> None:
    tokens = 4_000_000 // channels
    x = normal(tokens, channels, seed=5)
    by_token = [osp(part) for part in x.tensor_split(100)]
    standard_error = float(np.std(by_token)) / sqrt(len(by_token))
    assert gaussian_osp(channels) == pytest.approx(np.mean(by_token), abs=0.001 + 3 * standard_error)


def test_one_channel_alone_has_he_kurtosis_of_the_width() -> None:
    x = torch.zeros(2, 8, 16)
    x[..., 3] = normal(2, 8).float()
    assert shape(x)["kurtosis/he"] == pytest.approx(16)


# Merging


@settings(deadline=None, max_examples=40)
@given(data=st.data(), seed=st.integers(0, 2**16), offset=st.sampled_from([0.0, 1e3]))
def test_any_partition_in_any_order_merges_to_the_whole(data: st.DataObject, seed: int, offset: float) -> None:
    x = skewed(12, 5, 6, seed=seed) + offset
    cuts = sorted(data.draw(st.sets(st.integers(1, 11), max_size=5)))
    parts = data.draw(st.permutations(list(torch.tensor_split(x, cuts))))
    merged, whole = reduce(merge, [measure(part) for part in parts]).values(), shape(x)
    crests = [(len(part), shape(part)) for part in parts]
    for name in whole.keys() - {"crest_db", "gaussian/crest_db"}:
        # Kurtosis is a difference from 3, so 3 sets the scale of its rounding.
        assert merged[name] == pytest.approx(
            whole[name], rel=1e-11 if offset else 1e-12, abs=3e-11 if offset else 3e-12
        )
    for name in ("crest_db", "gaussian/crest_db"):
        assert merged[name] == pytest.approx(np.mean([values[name] for _, values in crests]), rel=1e-12)


def test_order_of_merging_does_not_matter() -> None:
    a, b, c = (measure(skewed(2, 9, 4, seed=seed) * 10**seed) for seed in range(3))
    left, right = merge(merge(a, b), c).values(), merge(c, merge(b, a)).values()
    assert left == pytest.approx(right, rel=1e-12)


def test_only_batches_of_one_width_merge() -> None:
    with pytest.raises(ValueError, match="4 and 5 channels"):
        merge(measure(normal(2, 3, 4)), measure(normal(2, 3, 5)))


# Contract


@settings(deadline=None, max_examples=60)
@given(
    size=st.lists(st.integers(1, 6), min_size=1, max_size=4),
    seed=st.integers(0, 2**16),
    dead=st.floats(0, 1),
    scale=st.sampled_from([1e-20, 1.0, 1e20]),
)
def test_every_value_is_finite_and_in_the_catalog(size: list[int], seed: int, dead: float, scale: float) -> None:
    x = normal(*size, seed=seed) * (normal(size[-1], seed=seed + 1).abs() > dead) * scale
    found = shape(x.float())
    assert found.keys() <= METRICS.keys()
    assert np.isfinite(list(found.values())).all()
    assert 1 - 1e-12 <= found.get("kurtosis/he", 1) <= size[-1] + 1e-12


@pytest.mark.parametrize("value", [0.0, 0.1, -1e3])
def test_constant_rows_are_left_out_of_the_means(value: float) -> None:
    x = skewed(2, 40, 8).float()
    x_with = torch.cat([x, torch.full((2, 40, 2), value)], dim=-1)
    assert shape(x_with)["excess_kurtosis/channel"] == pytest.approx(shape(x)["excess_kurtosis/channel"], rel=1e-12)
    x_with = torch.cat([x, torch.full((2, 5, 8), value)], dim=1)
    for name in ("excess_kurtosis/token", "kurtosis/osp"):
        assert shape(x_with)[name] == pytest.approx(shape(x)[name], rel=1e-12)


@pytest.mark.parametrize("value", [0.0, 0.1])
def test_a_constant_tensor_has_no_kurtosis(value: float) -> None:
    found = shape(torch.full((2, 5, 33), value, dtype=torch.float64))  # the mean of 33 times 0.1 is not 0.1
    assert found["rms"] == pytest.approx(value)
    assert not [name for name in found if name.startswith(("excess", "kurtosis/osp", "kurtosis/qualcomm"))]
    assert ("crest_db" in found, "gaussian/crest_db" in found) == (value > 0, value > 0)


def test_a_silent_batch_has_no_part_in_the_mean_crest() -> None:
    loud, silent = measure(normal(2, 5, 8)), measure(torch.zeros(2, 5, 8))
    assert merge(loud, silent).values()["crest_db"] == loud.values()["crest_db"]
    assert merge(loud, silent).values()["gaussian/crest_db"] == loud.values()["gaussian/crest_db"]


def test_rms_and_crest_by_hand() -> None:
    found = shape(torch.tensor([[[3.0, 4.0], [0.0, 0.0]]]))
    assert found["rms"] == pytest.approx(2.5)
    assert found["crest_db"] == pytest.approx(20 * np.log10(4 / 2.5))
    assert found["max_to_median"] == pytest.approx(4 / 3)


def test_a_matrix_is_one_sequence_and_a_vector_one_token() -> None:
    x = skewed(6, 4)
    assert shape(x) == shape(x[None]) == pytest.approx(shape(x[None, None]))
    assert shape(x[0]) == shape(x[:1])


def test_precision_of_the_input_is_kept_out_of_the_sums() -> None:
    x = normal(2, 50, 16).bfloat16()
    assert shape(x) == pytest.approx(shape(x.double()), rel=1e-6, abs=1e-6)


def test_measuring_leaves_the_tensor_and_its_graph_alone() -> None:
    x = normal(2, 5, 4).requires_grad_()
    before = x.detach().clone()
    assert not measure(x).channels_C.mean.requires_grad
    assert torch.equal(x, before)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_what_is_not_finite_is_counted_and_refused(bad: float) -> None:
    x = normal(2, 3, 4)
    x[0, 0, 0] = x[1, 2, 3] = bad
    with pytest.raises(ValueError, match=r"\(2, 3, 4\) .* 2 of 24 values are NaN or infinite"):
        measure(x)


def test_an_empty_tensor_is_refused() -> None:
    with pytest.raises(ValueError, match=r"\(0, 4\) has no values"):
        measure(torch.empty(0, 4))
