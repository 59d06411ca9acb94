"""Error metrics against tensors worked out by hand, and the theory they are compared with."""

import pytest
import torch
from torch import Tensor

from qbench.metrics.catalog import METRICS
from qbench.metrics.error import error_values, relative_error, sqnr_db
from qbench.quant.sweep import ErrorSums, sweep


def sums(x: Tensor, y: Tensor, **counts: int) -> ErrorSums:
    x, e = x.double(), (x - y).double()
    rest = {"saturated": 0, "zeroed": 0, "underflowed_scales": 0, "scales": 1, "levels": 16, "bits": 4 * x.numel()}
    return ErrorSums(
        n=x.numel(),
        signal_C=x.square().sum(0),
        error_C=e.square().sum(0),
        max_error=e.abs().max().item(),
        nonzero=int(x.count_nonzero()),
        **rest | counts,
    )


def values(x: Tensor, y: Tensor, gaussian_db: float | None = None, **counts: int) -> dict[str, float]:
    return error_values(sums(x, y, **counts), bits_per_value=4.25, code_bits=4, gaussian_db=gaussian_db)


def normal(*size: int) -> Tensor:
    return torch.randn(size, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


X = torch.tensor([[3.0, 0.0, 10.0], [4.0, 0.0, 0.0]])
Y = torch.tensor([[3.0, 0.0, 9.0], [4.5, 0.0, 0.0]])


def test_by_hand() -> None:
    found = values(X, Y, saturated=1, zeroed=2, underflowed_scales=3, scales=6, levels=9)
    assert found["relative_error"] == pytest.approx((1.25 / 125) ** 0.5)
    assert found["error_db"] == pytest.approx(-20)
    assert found["error_db/channel"] == pytest.approx((-20 - 20) / 2)
    assert found["dead_channels"] == 1
    assert found["max_error"] == pytest.approx(1 / (125 / 6) ** 0.5)
    assert (found["saturated"], found["zeroed"]) == (pytest.approx(1 / 6), pytest.approx(2 / 3))
    assert (found["underflowed_scales"], found["levels"]) == (0.5, 9)


def test_theory_at_four_bits() -> None:
    found = values(X, Y, gaussian_db=-18.9)
    assert found["lloyd_gap_db"] == pytest.approx(-20 + 20.222, abs=5e-4)  # Lloyd-Max at 4 bits: 20.222 dB
    assert found["rate_distortion_gap_db"] == pytest.approx(-20 + 4.25 * 6.0206, abs=1e-4)
    assert found["shape_loss_db"] == pytest.approx(-20 + 18.9)


def test_shape_loss_needs_a_gaussian_to_compare_with() -> None:
    assert values(X, Y).keys() == METRICS_OF_ERROR - {"shape_loss_db"}


METRICS_OF_ERROR = values(X, Y, gaussian_db=0.0).keys()


def test_names_are_in_the_catalog() -> None:
    assert METRICS.keys() >= METRICS_OF_ERROR
    assert len(METRICS_OF_ERROR) == 12


def test_hot_channel_hides_the_others_from_plain_error_only() -> None:
    # One channel of 200 sigma decides the power: deleting all others costs next to nothing, yet they are gone.
    x = normal(2048, 256)
    x[:, 0] = 200
    y = torch.zeros_like(x)
    y[:, 0] = 199
    found = values(x, y)
    assert found["error_db"] < -20
    assert found["error_db/channel"] > -0.2


def test_exact_channels_do_not_hide_the_rest() -> None:
    x = normal(64, 4)
    y = x.clone()
    y[:, 0] *= 0.9
    found = values(x, y)
    assert found["error_db/channel"] == pytest.approx(-20)
    assert found["dead_channels"] == 0


def test_a_perfect_copy_has_no_decibels() -> None:
    found = values(X, X, gaussian_db=-18.9)
    assert found["relative_error"] == found["max_error"] == 0
    assert not [name for name in found if "_db" in name]


def test_a_silent_tensor_has_no_relative_error() -> None:
    found = values(torch.zeros(4, 3), torch.zeros(4, 3))
    assert found.keys() == {"saturated", "underflowed_scales", "dead_channels", "levels"}
    assert found["dead_channels"] == 3


def test_a_sweep_of_gaussian_data_shows_what_theory_says() -> None:
    # Symmetric absmax integers on Gaussian blocks of 128: 18.6 dB at 4 bits, 43.8 at 8.
    for name, expected in (("int4/block:128", -18.6), ("int8/block:128", -43.8)):
        (found,) = sweep(normal(1024, 128).float(), [name]).values()
        code_bits = int(name[3])
        shown = error_values(found, found.bits_per_value, code_bits, gaussian_db=expected)
        assert shown["error_db"] == pytest.approx(expected, abs=0.1)
        assert shown["rate_distortion_gap_db"] == pytest.approx(expected + 6.0206 * (code_bits + 32 / 128), abs=0.1)


def test_tensors_directly() -> None:
    assert relative_error(X, Y) == pytest.approx(0.1)
    assert sqnr_db(X, Y) == pytest.approx(20)
    assert sqnr_db(X, X) == torch.inf
    x = normal(1000, 8)
    y = (x * 4).round() / 4
    assert sqnr_db(x, y) == pytest.approx(-values(x, y)["error_db"])
    assert sqnr_db(x.float() * 1e25, y.float() * 1e25) == pytest.approx(sqnr_db(x, y), rel=1e-6)  # beyond float32


def test_tensors_that_cannot_be_compared() -> None:
    with pytest.raises(ValueError, match=r"\(2, 3\) has no copy of shape \(3,\)"):
        relative_error(X, Y[0])
    with pytest.raises(ValueError, match="zero throughout"):
        sqnr_db(0 * X, Y)
