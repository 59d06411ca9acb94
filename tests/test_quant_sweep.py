"""The fast sweep against encoding, decoding and summing one quantizer at a time."""

import pytest
import torch
from torch import Tensor

from qbench.quant.blocks import NonFinite, join
from qbench.quant.catalog import QUANTIZERS
from qbench.quant.group import NoSuchAxis
from qbench.quant.quantizer import build
from qbench.quant.sweep import ErrorSums, sweep


def heavy(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0)) ** 3
    x[x.abs() < 1e-3] = 0
    return x.to(dtype)


def naive(x: Tensor, name: str, channel_axis: int) -> dict[str, object]:
    """The same numbers, by definition."""
    q = build(name, channel_axis)
    encoded = q.encode(x)
    wide, y = x.double(), q.decode(encoded).double()
    others = [axis for axis in range(x.ndim) if axis != channel_axis % x.ndim]
    codes = join(q.codes(x), x.shape, q.spec.granularity).reshape(-1, x.shape[-1])
    return {
        "n": x.numel(),
        "signal_C": wide.square().sum(others),
        "error_C": (y - wide).square().sum(others),
        "max_error": float((y - wide).abs().max()),
        "zeroed": int(((y == 0) & (wide != 0)).sum()),
        "nonzero": int((wide != 0).sum()),
        "saturated": q.saturated(x),
        "scales": encoded.scales.numel() or 1,  # fitted levels need no scale, and count as one that is not stored
        "underflowed_scales": encoded.underflowed,
        "bits": encoded.bits,
        "levels": len(codes[: 65536 // x.shape[-1]].unique()),
    }


def fits(name: str, x: Tensor) -> bool:
    width, size = x.shape[-1], QUANTIZERS[name].spec.hadamard
    return size is None or not width % (size or 2)


@pytest.mark.parametrize(
    ("x", "channel_axis"),
    [
        (heavy(4, 64, 96), -1),
        (heavy(96, 160), 0),
        (heavy(8, 512) * 1e-9, -1),
        (heavy(8, 512) * 1e-28, -1),
        (heavy(4, 64, 96, dtype=torch.bfloat16), -1),
        (heavy(4, 64, 96, dtype=torch.float16), -1),
        (heavy(64, 96, dtype=torch.float64), -1),
        (heavy(96, 64).T, -1),
        (heavy(70, 300), -1),
        (heavy(33, 264, dtype=torch.bfloat16), 0),
        (heavy(20, 4096), -1),
        (heavy(20_000, 4), -1),
        (heavy(64, 96).sign().mul(60_000).half(), -1),
    ],
    ids=[
        "activations",
        "weights",
        "gradients",
        "tiny",
        "bfloat16",
        "float16",
        "float64",
        "transposed",
        "ragged",
        "uneven",
        "long",
        "short",
        "large float16",
    ],
)
def test_equal_to_the_plain_way(x: Tensor, channel_axis: int) -> None:
    for name, sums in sweep(x, [name for name in QUANTIZERS if fits(name, x)], channel_axis).items():
        for key, expected in naive(x, name, channel_axis).items():
            torch.testing.assert_close(
                getattr(sums, key), expected, rtol=1e-5, atol=0, msg=lambda m, n=name, k=key: f"{n} {k}: {m}"
            )


def test_an_axis_that_is_not_there_is_refused_whatever_the_format() -> None:
    x = heavy(8, 32)
    for axis in (2, 5, -3):
        with pytest.raises(NoSuchAxis, match=f"axis {axis} of a tensor that has 2"):
            sweep(x, ["int4/token"], axis)
        with pytest.raises(NoSuchAxis, match=f"axis {axis} of a tensor that has 2"):
            build("int4/channel", axis).roundtrip(x)
        with pytest.raises(NoSuchAxis, match=f"axis {axis} of a tensor that has 2"):
            build("int4/channel", axis).bits_per_value(x.shape)


@pytest.mark.parametrize("name", ["int4/channel", "int4/channel/mse"])  # compiled, and one at a time
@pytest.mark.parametrize("axis", [0, -1])
def test_each_value_of_a_vector_is_a_channel_of_its_own(name: str, axis: int) -> None:
    x = heavy(96)
    q, sums = build(name, axis), sweep(x, [name], axis)[name]
    torch.testing.assert_close(q.roundtrip(x), x)
    assert sums.error < 1e-6 * float(x.square().sum())
    assert q.encode(x).bits_per_value == q.bits_per_value(x.shape) == sums.bits / 96 == 36
    assert sums.scales == q.encode(x).scales.numel() == 96


@pytest.mark.parametrize("rows", [31, 32, 33, 40, 48, 49, 70])
def test_scales_that_underflow_are_counted_in_the_rows_that_there_are(rows: int) -> None:
    x = heavy(rows, 96) * 1e-9
    for name in ("int4/block:32/scale:fp16", "e2m1/block:16/scale:e4m3", "int4/token/scale:fp16"):
        sums, expected = sweep(x, [name])[name], naive(x, name, -1)
        assert sums.underflowed_scales == expected["underflowed_scales"] > 0, name


def test_saturated_values_are_those_beyond_the_grid() -> None:
    x = heavy(64, 96)
    assert sweep(x, ["int4/token"])["int4/token"].saturated == 0
    assert sweep(x, ["int4/token/rms"])["int4/token/rms"].saturated > 0
    assert sweep(torch.tensor([[1.0, -1.0, 0.2]]), ["int4.full/token"])["int4.full/token"].saturated == 1


def test_sums_of_parts_merge_into_the_sums_of_the_whole() -> None:
    x = heavy(6, 32, 64)
    names = ["int4/token", "mxfp4", "lloyd4/block:64"]  # whose scales do not cross the cut
    whole, a, b = sweep(x, names), sweep(x[:2], names), sweep(x[2:], names)
    for name in names:
        merged = a[name].merge(b[name])
        torch.testing.assert_close(merged.error_C, whole[name].error_C, rtol=1e-6, atol=0)
        for key in ("n", "max_error", "saturated", "zeroed", "scales", "levels", "bits"):
            assert getattr(merged, key) == getattr(whole[name], key)


def test_different_channels_do_not_merge() -> None:
    def sums(width: int) -> ErrorSums:
        return sweep(heavy(4, width), ["int4/token"])["int4/token"]

    with pytest.raises(ValueError, match="cannot merge 8 channels with 16"):
        sums(8).merge(sums(16))


def test_nothing_adds_nothing() -> None:
    sums = sweep(heavy(4, 8), ["int4/token"])["int4/token"]
    empty = sweep(torch.empty(0, 8), ["int4/token"])["int4/token"]
    assert empty.bits_per_value == 0
    assert empty.merge(sums).error == sums.error
    assert empty.merge(sums).n == sums.n


def test_a_zero_tensor_has_no_error() -> None:
    for sums in sweep(torch.zeros(4, 128), QUANTIZERS).values():
        assert (sums.error, sums.signal, sums.zeroed, sums.underflowed_scales, sums.saturated) == (0, 0, 0, 0, 0)


def test_names_are_canonical_and_in_order() -> None:
    assert list(sweep(heavy(4, 32), ["int4/token/absmax", "e2m1/block:32/pow2/scale:e8m0"])) == ["int4/token", "mxfp4"]


def test_input_is_left_alone_and_must_be_finite() -> None:
    x = heavy(4, 128)
    before = x.clone()
    sweep(x, QUANTIZERS)
    assert torch.equal(x, before)
    with pytest.raises(NonFinite, match="1 of 512"):
        sweep(x.index_fill(0, torch.tensor([0]), 0.0).masked_fill(x == x[1, 1], float("nan")), ["int4/token"])
