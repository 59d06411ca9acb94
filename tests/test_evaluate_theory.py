"""Random stacks: what is measured stays near the closed forms, and the closed forms are right where they are exact."""

from collections.abc import Callable
from math import sqrt

import numpy as np
import pytest
import torch
from scipy.integrate import quad
from scipy.stats import norm

from qbench.data.synthetic import hot_channel_kurtosis
from qbench.evaluate.random_layers import BRANCHES, INPUTS, Sources, haar
from qbench.evaluate.stack import NAMES, BranchName, InputName, Stack, StackWiring
from qbench.evaluate.theory import layers_of, theory, through
from qbench.metrics.catalog import METRICS

WIDTH = 128


def both(stack: Stack, axis: str = "tensor", seed: int = 0) -> tuple[list[float], list[float]]:
    """Measured and predicted, behind each layer."""
    found = through(stack, seed)
    return (
        [depth.values[f"excess_kurtosis/{axis}"] for depth in found],
        [depth.values[f"theory/kurtosis/{axis}"] for depth in found],
    )


@pytest.mark.parametrize("name", INPUTS)
def test_rows_have_the_kurtosis_that_they_are_said_to_have(name: str) -> None:
    stack = Stack(input=name, branch="gaussian-noise", width=WIDTH, depth=1, rows=8192)
    for axis in ("tensor", "channel"):
        (measured, _), (expected, _) = both(stack, axis)
        assert measured == pytest.approx(expected, rel=0.05, abs=0.03), axis


NEAR = (
    ("residual", "gaussian-noise", "laplace"),
    ("residual", "laplace-noise", "gaussian"),
    ("residual", "rotation", "laplace"),
    ("residual", "rotation", "uniform"),
    ("residual", "rotation", "token-scale"),
    ("residual", "shared-scale", "token-scale"),
    ("residual", "mlp", "token-scale"),
    ("residual", "mlp", "laplace"),
    ("dense", "rotation", "laplace"),
    ("dense", "rotation", "token-scale"),
    ("dense", "mlp", "laplace"),
    ("dense", "mlp", "token-scale"),
)


@pytest.mark.parametrize(("wiring", "branch", "rows"), NEAR)
def test_measured_is_near_the_closed_form(wiring: StackWiring, branch: str, rows: str) -> None:
    stack = Stack(wiring=wiring, branch=branch, input=rows, width=WIDTH, depth=3, ratio=0.2, rows=4096)
    for axis in ("tensor", "channel"):
        for measured, expected in zip(*both(stack, axis), strict=True):
            assert measured == pytest.approx(expected, rel=0.15, abs=0.08), (branch, rows, axis)


def test_a_hot_channel_on_average_over_rotations() -> None:
    dense = Stack(wiring="dense", input="hot-channel", width=WIDTH, depth=3, rows=1024)
    kept = Stack(wiring="residual", input="hot-channel", width=WIDTH, depth=3, rows=1024)
    for stack, tolerance in ((dense, 0.12), (kept, 0.08)):
        runs = np.array([both(stack, seed=seed)[0] for seed in range(24)]).mean(0)
        assert runs[1:] == pytest.approx(np.array(both(stack)[1][1:]), rel=tolerance)
    assert both(dense)[1][1] == pytest.approx(2 * hot_channel_kurtosis((1, WIDTH)) / (WIDTH + 2))


def test_mixing_contracts_once_and_additions_contract_every_time() -> None:
    dense = theory(Stack(wiring="dense", width=WIDTH, depth=6))
    assert [one.tensor for one in dense[1:] if one] == pytest.approx([9 / (WIDTH + 2)] * 6)
    kept = theory(Stack(branch="gaussian-noise", width=WIDTH, depth=6, ratio=0.25))
    assert [one.tensor for one in kept if one] == pytest.approx([3 / 1.25 ** (2 * n) for n in range(7)])


@pytest.mark.parametrize("wiring", ["residual", "dense"])
def test_with_the_weights_known_a_linear_stack_has_an_exact_kurtosis(wiring: StackWiring) -> None:
    """One matrix M in the end, and of independent inputs k sum_j M_ij^4 / (sum_j M_ij^2)^2 in channel i."""
    stack = Stack(wiring=wiring, width=64, depth=3, ratio=0.5, rows=16_384)
    skip, one = (torch.eye(64, dtype=torch.float64) * x for x in (wiring == "residual", 1.0))
    gain = sqrt(0.5) if wiring == "residual" else 1.0
    whole, found = one, through(stack, 0)
    for depth, layer in enumerate(layers_of(stack, 0), 1):
        whole = (skip + gain * layer(one, torch.Generator()).T) @ whole
        kappa = 3 * (whole.pow(4).sum(1) / whole.square().sum(1).square()).mean().item()
        measured = found[depth].values["excess_kurtosis/channel"]
        assert measured == pytest.approx(kappa, rel=0.06, abs=0.02)


def test_haar_rows_keep_three_in_d_plus_two_of_values_and_two_of_channels() -> None:
    """The moments behind both closed forms, from many rotations: sum w^4 and the variance of sum w^2 v."""
    generator = torch.Generator().manual_seed(0)
    width, count = 12, 3000
    v = torch.arange(1.0, width + 1, dtype=torch.float64)
    fourth, spread = 0.0, 0.0
    for _ in range(count):
        q = haar(width, width, generator)
        assert torch.allclose(q @ q.T, torch.eye(width, dtype=torch.float64))
        fourth += q.pow(4).sum(1).mean().item() / count
        spread += (q.square() @ v).var(correction=0).item() / count
    assert fourth == pytest.approx(3 / (width + 2), rel=0.02)
    assert spread == pytest.approx(2 / (width + 2) * v.var(correction=0).item(), rel=0.03)
    tall = haar(9, 4, generator)
    assert torch.allclose(tall.T @ tall, torch.eye(4, dtype=torch.float64))
    wide = haar(4, 9, generator)
    assert torch.allclose(wide @ wide.T, torch.eye(4, dtype=torch.float64))


def test_rotations_are_haar_and_not_only_orthogonal() -> None:
    """LAPACK's QR alone prefers negative diagonals; uniform rotations have no mean at all."""
    generator = torch.Generator().manual_seed(1)
    mean = sum(haar(3, 3, generator) for _ in range(2000)) / 2000
    assert abs(torch.as_tensor(mean)).max() < 0.06


def test_sources_of_a_gelu_by_integration() -> None:
    """Of normed rows the sum of squares is fixed: what the second Hermite polynomial says of h^2 does not vary."""

    def gelu(z: float) -> float:
        return float(z * norm.cdf(z))

    def mean_of(f: Callable[[float], float]) -> float:
        return quad(lambda z: f(z) * norm.pdf(z), -12, 12)[0]

    mean = mean_of(gelu)
    second, fourth = (mean_of(lambda z, n=n: (gelu(z) - mean) ** n) for n in (2, 4))
    norms = mean_of(lambda z: (gelu(z) - mean) ** 2 * (z**2 - 1) / sqrt(2))
    linear = mean_of(lambda z: gelu(z) * z) ** 2 / second
    found, wide = BRANCHES["mlp"].sources(Sources(), WIDTH), 4 * WIDTH + 2
    assert found.tensor == pytest.approx(3 * ((fourth - norms**2) / second**2 - 3) / wide, rel=1e-6)
    assert found.channels == pytest.approx(18 * linear**2 / wide, rel=1e-6)


SLOWLY = (
    ("residual", "rotation", "laplace", 1.0),
    ("residual", "rotation", "gaussian", 0.3),
    ("residual", "shared-scale", "gaussian", 1.0),
    ("residual", "mlp", "gaussian", 1.0),
    ("dense", "mlp", "laplace", 1.0),
)


@pytest.mark.parametrize(("wiring", "branch", "rows", "ratio"), SLOWLY)
def test_what_adds_up_over_the_layers(wiring: StackWiring, branch: BranchName, rows: InputName, ratio: float) -> None:
    """Terms of one over the width, which three layers hardly show, within four standard errors behind eight."""
    stack = Stack(wiring=wiring, branch=branch, input=rows, width=64, depth=8, ratio=ratio, rows=1024)
    runs = [through(stack, seed)[5:] for seed in range(6)]
    largest = 0.0
    for axis in ("tensor", "channel"):
        measured = np.array([[depth.values[f"excess_kurtosis/{axis}"] for depth in run] for run in runs])
        expected = np.array([depth.values[f"theory/kurtosis/{axis}"] for depth in runs[0]])
        error = measured.std(0, ddof=1) / sqrt(len(measured))
        assert np.all(abs(measured.mean(0) - expected) < 4 * error + 0.02), axis
        largest = max(largest, abs(expected).max())
    assert largest > 0.05


def test_the_first_cubic_branch_is_exact_and_later_ones_have_no_closed_form() -> None:
    stack = Stack(branch="cubic", input="gaussian", width=WIDTH, depth=2, ratio=0.01, rows=20_000)
    found = through(stack, 0)
    c = 0.1
    expected = (4 * c * sqrt(6) + 36 * c**2 + 216 * c**3 / sqrt(6) + 90 * c**4) / (1 + c**2) ** 2
    assert found[1].values["theory/kurtosis/tensor"] == pytest.approx(expected)
    assert found[1].values["excess_kurtosis/tensor"] == pytest.approx(expected, rel=0.03)
    assert found[1].values["add/c31/tensor"] == pytest.approx(c * sqrt(6) / 1.01**2, rel=0.02)
    assert abs(found[1].values["add/correlation/tensor"]) < 0.01  # uncorrelated, and yet it amplifies
    assert found[1].values["add/kurtosis/independent/tensor"] < 0.1
    assert "theory/kurtosis/tensor" not in found[2].values
    assert theory(stack)[2] is None


def test_a_shared_scale_is_what_independence_gets_wrong() -> None:
    found = through(Stack(branch="shared-scale", input="token-scale", width=WIDTH, depth=1, ratio=1.0), 0)[1].values
    kappa = 3 * (0.25 * 2.5**2 + 0.75 * 0.5**2 - 1)
    walk = 1 + 6 / (4 * WIDTH)  # of the power of tokens, with which the branch is scaled
    assert found["theory/kurtosis/channel"] == pytest.approx((kappa + 3) * walk - 3)
    assert found["excess_kurtosis/channel"] == pytest.approx(kappa, rel=0.12)
    assert found["add/kurtosis/independent/channel"] == pytest.approx(kappa / 2, rel=0.15)
    assert found["add/c22/channel"] == pytest.approx(kappa / 12, rel=0.1)  # 6 c22 makes up for the half that is lost


def test_additions_are_measured_with_their_cumulants_and_dense_layers_have_none() -> None:
    added = through(Stack(width=WIDTH, depth=2, ratio=0.3), 0)
    assert added[0].values.keys().isdisjoint(added[1].values.keys() - added[0].values.keys())
    for depth in added[1:]:
        assert depth.values["add/variance_ratio/tensor"] == pytest.approx(0.3, rel=0.05)
        assert depth.values["add/kurtosis/predicted/tensor"] == pytest.approx(
            depth.values["excess_kurtosis/tensor"], abs=1e-6
        )
        assert depth.values["add/alignment"] == pytest.approx(1)
        assert depth.values.keys() <= METRICS.keys()
    dense = through(Stack(wiring="dense", width=WIDTH, depth=1), 0)
    assert not any(name.startswith("add/") for name in dense[1].values)


def test_every_name_of_a_stack_has_its_layers_and_its_rows() -> None:
    assert set(NAMES["branch"]) == BRANCHES.keys()
    assert set(NAMES["input"]) == INPUTS.keys()


def test_equal_seeds_give_equal_numbers_and_rows_go_through_in_parts() -> None:
    stack = Stack(branch="mlp", width=16, depth=2, rows=1500)
    assert through(stack, 3) == through(stack, 3)
    assert through(stack, 3) != through(stack, 4)
    assert [depth.layers for depth in through(stack, 3)] == [0, 1, 2]


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"branch": "rotatoin"}, "did you mean 'rotation'"),
        ({"input": "cauchy"}, "known: gaussian, "),
        ({"wiring": "dense", "branch": "gaussian-noise"}, "needs a skip; dense stacks of: rotation, mlp"),
        ({"ratio": 0.0}, "must be positive"),
    ],
)
def test_mistakes_are_named(wrong: dict[str, object], said: str) -> None:
    with pytest.raises((ValueError, LookupError), match=said):
        Stack(**wrong)
