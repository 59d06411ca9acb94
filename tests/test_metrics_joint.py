"""Additions of two tensors: cumulants against brute force and closed forms, batches against the whole."""

from fractions import Fraction
from itertools import product
from math import sqrt

import numpy as np
import pytest
import torch
from numpy.polynomial.hermite_e import hermegauss
from torch import Tensor

from qbench.metrics.catalog import METRICS
from qbench.metrics.joint import ORDERS, cumulants, joint, measure_add, merge, merge_adds, pooled

AXES = ("tensor", "token", "channel")


def pair(rows: int = 60, width: int = 7, seed: int = 0) -> tuple[Tensor, Tensor]:
    """A stream and what joins it, heavy-tailed, dependent, far from zero mean."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, width, generator=generator, dtype=torch.float64) ** 3 + 2
    f = 0.3 * x**2 - 0.5 * x + torch.randn(rows, width, generator=generator, dtype=torch.float64) - 5
    return x, f


def exact(x: list[int], f: list[int]) -> dict[str, Fraction]:
    """The definitions, in fractions: nothing is rounded."""
    n = len(x)
    a, b = ([Fraction(v) - Fraction(sum(part), n) for v in part] for part in (x, f))

    def e(p: int, q: int) -> Fraction:
        return sum((u**p * v**q for u, v in zip(a, b, strict=True)), Fraction()) / n

    variance = e(2, 0) + 2 * e(1, 1) + e(0, 2)
    y = [u + v for u, v in zip(a, b, strict=True)]
    ratio = e(0, 2) / e(2, 0)
    kx, kf = e(4, 0) / e(2, 0) ** 2 - 3, e(0, 4) / e(0, 2) ** 2 - 3
    return {
        "variance_ratio": ratio,
        "c31": (e(3, 1) - 3 * e(2, 0) * e(1, 1)) / variance**2,
        "c22": (e(2, 2) - e(2, 0) * e(0, 2) - 2 * e(1, 1) ** 2) / variance**2,
        "c13": (e(1, 3) - 3 * e(0, 2) * e(1, 1)) / variance**2,
        "kurtosis/stream": kx,
        "kurtosis/branch": kf,
        "kurtosis/predicted": sum((v**4 for v in y), Fraction()) / n / variance**2 - 3,
        "kurtosis/independent": (kx + ratio**2 * kf) / (1 + ratio) ** 2,
    }


def test_every_number_by_its_definition_in_fractions() -> None:
    random = np.random.default_rng(0)
    x, f = (random.integers(-9, 10, 40).tolist() for _ in range(2))
    f = [v + u * u // 4 for u, v in zip(x, f, strict=True)]
    found = cumulants(joint(torch.tensor(x).double(), torch.tensor(f).double(), 0))
    for name, value in exact(x, f).items():
        assert found[name].item() == pytest.approx(float(value), rel=1e-12), name
    assert found["correlation"].item() == pytest.approx(np.corrcoef(x, f)[0, 1], rel=1e-12)


@pytest.mark.parametrize("axis", AXES)
def test_the_identity_gives_the_kurtosis_that_is_measured(axis: str) -> None:
    x, f = pair()
    found = measure_add(x, x + f).values()
    y = (x + f).numpy()
    over = {"tensor": None, "token": -1, "channel": 0}[axis]
    d = y - y.mean(over, keepdims=True)
    plainly = ((d**4).mean(over) / (d**2).mean(over) ** 2 - 3).mean()
    assert found[f"add/kurtosis/sum/{axis}"] == pytest.approx(plainly, rel=1e-10)
    assert found[f"add/kurtosis/predicted/{axis}"] == pytest.approx(plainly, rel=1e-8)
    assert abs(found[f"add/kurtosis/independent/{axis}"] - plainly) > 0.05  # these depend on each other


@pytest.mark.parametrize("rows", [(20, 40), (1, 59), (30, 1)])
def test_batches_merge_to_the_whole_exactly(rows: tuple[int, int]) -> None:
    x, f = pair(sum(rows))
    whole = measure_add(x, x + f, f).values()
    parts = [measure_add(a, a + b, b) for a, b in zip(x.split(rows), f.split(rows), strict=True)]
    merged = merge_adds(*parts).values()
    assert merged == pytest.approx(whole, rel=1e-9)
    assert whole.keys() <= METRICS.keys()
    assert len(whole) == 31


def test_runs_of_a_large_tensor_are_the_tensor(monkeypatch: pytest.MonkeyPatch) -> None:
    x, f = pair(64)
    whole = measure_add(x.view(4, 16, 7), (x + f).view(4, 16, 7)).values()
    monkeypatch.setattr("qbench.metrics.joint.AT_ONCE", 50)
    assert measure_add(x, x + f).values() == pytest.approx(whole, rel=1e-9)


def test_moments_around_another_centre() -> None:
    x, f = pair()
    a, b = joint(x[:25], f[:25], 0), joint(x[25:], f[25:], 0)
    both, one = merge(a, b), joint(x, f, 0)
    flat = pooled(one)
    everything = joint(x.flatten(), f.flatten(), 0)
    for order in ORDERS:
        assert torch.allclose(both.sums[order], one.sums[order], rtol=1e-10)
        assert torch.allclose(flat.sums[order], everything.sums[order], rtol=1e-10)


@pytest.mark.parametrize("ratio", [0.1, 1.0])
@pytest.mark.parametrize("kurtosis", [0.0, 3.0])
def test_independent_branches_contract(ratio: float, kurtosis: float) -> None:
    """Every pair of two distributions' quantiles once: independent to the last digit."""
    points = (np.arange(400) + 0.5) / 400
    laplace = np.sign(points - 0.5) * -np.log(1 - 2 * abs(points - 0.5))
    normal = torch.special.ndtri(torch.from_numpy(points)).numpy()
    x, f = (a.ravel() for a in np.meshgrid(laplace, laplace if kurtosis else normal))
    f = f / f.std() * x.std() * sqrt(ratio)
    found = {name: value.item() for name, value in cumulants(joint(*map(torch.from_numpy, (x, f)), 0)).items()}
    assert [found[name] for name in ("correlation", "c31", "c22", "c13")] == pytest.approx([0] * 4, abs=1e-10)
    expected = (found["kurtosis/stream"] + ratio**2 * found["kurtosis/branch"]) / (1 + ratio) ** 2
    assert found["kurtosis/predicted"] == pytest.approx(expected, rel=1e-9)
    assert found["kurtosis/independent"] == pytest.approx(expected, rel=1e-9)
    assert found["variance_ratio"] == pytest.approx(ratio)


@pytest.mark.parametrize("c", [0.1, 0.3])
def test_an_uncorrelated_cubic_makes_a_gaussian_heavy_tailed(c: float) -> None:
    """x + c He3(x) / sqrt(6): E[x^3 h] = sqrt(6), E[x^2 h^2] = 7, E[x h^3] = 54 / sqrt(6), E[h^4] = 93."""
    nodes, weights = hermegauss(40)
    weights = weights / weights.sum()
    h = c * (nodes**3 - 3 * nodes) / sqrt(6)
    moment = {(p, q): float((weights * nodes**p * h**q).sum()) for p, q in product(range(5), repeat=2)}
    assert moment[3, 1] == pytest.approx(c * sqrt(6))
    assert moment[2, 2] - c**2 == pytest.approx(6 * c**2)
    assert moment[1, 3] == pytest.approx(c**3 * 54 / sqrt(6))
    expected = (4 * c * sqrt(6) + 36 * c**2 + 216 * c**3 / sqrt(6) + 90 * c**4) / (1 + c**2) ** 2
    y = nodes + h
    assert (weights * y**4).sum() / (weights * y**2).sum() ** 2 - 3 == pytest.approx(expected)


def test_a_shared_scale_is_not_contracted() -> None:
    random = np.random.default_rng(1)
    scale = np.exp(0.5 * random.standard_normal((20_000, 1)))
    x, f = (torch.from_numpy(scale * random.standard_normal((20_000, 8))) for _ in range(2))
    found = measure_add(x, x + f).values()
    assert found["add/kurtosis/sum/channel"] == pytest.approx(found["add/kurtosis/stream/channel"], rel=0.15)
    assert found["add/kurtosis/independent/channel"] < 0.6 * found["add/kurtosis/stream/channel"]
    assert found["add/c22/channel"] > 0.3


def test_the_branch_may_have_a_gain_but_must_be_what_joined() -> None:
    x, f = pair()
    assert measure_add(x, x - 0.2 * f, f).alignment == pytest.approx(1)
    f = f - f.mean()
    other = measure_add(x, 0.5 * x + 0.2 * f, f)
    assert other.alignment is not None
    assert other.alignment < 0.99
    assert not other.plain
    assert measure_add(x, x + f).plain
    assert measure_add(x, x, f).plain
    assert measure_add(x, x, f).alignment is None
    assert measure_add(x, x + f, 0 * f).alignment == 0


def test_what_is_constant_has_no_kurtosis_and_costs_the_others_nothing() -> None:
    x, f = pair()
    x[:, 0], f[:, 0] = 3.0, 1.0
    found, rest = measure_add(x, x + f).values(), measure_add(x[:, 1:], (x + f)[:, 1:]).values()
    for name in ("variance_ratio", "c22", "kurtosis/predicted", "kurtosis/sum"):
        assert found[f"add/{name}/channel"] == pytest.approx(rest[f"add/{name}/channel"])


def test_tokens_that_nothing_joins_keep_their_kurtosis() -> None:
    x, f = pair()
    f[:20] = 0
    found = measure_add(x, x + f).values()
    assert found["add/kurtosis/predicted/token"] == pytest.approx(found["add/kurtosis/sum/token"])
    only = measure_add(x[:20], x[:20], f[:20]).values()
    for name in ("sum", "predicted", "independent"):
        assert only[f"add/kurtosis/{name}/token"] == pytest.approx(only["add/kurtosis/stream/token"])
    assert only["add/variance_ratio/token"] == 0
    assert only.keys().isdisjoint({"add/correlation/token", "add/kurtosis/branch/token", "add/alignment"})


def test_mistakes_are_named() -> None:
    x, f = pair()
    with pytest.raises(ValueError, match=r"\[60, 7\], \[59, 7\]"):
        measure_add(x, (x + f)[:-1])
    with pytest.raises(ValueError, match="NaN"):
        measure_add(x, (x + f).masked_fill(x > 5, torch.nan))
    with pytest.raises(ValueError, match="7 and 6 channels"):
        merge_adds(measure_add(x, x + f), measure_add(x[:, 1:], (x + f)[:, 1:]))
