"""Fixed scales, against the whole calibration set as one tensor, torchao and numpy; SmoothQuant's two halves."""

import gc
from fractions import Fraction
from math import ceil
from weakref import ref

import pytest
import torch
from torch import Tensor

from qbench.quant.blocks import NonFinite
from qbench.quant.expect import expected_loss
from qbench.quant.observe import SAMPLE, Observer
from qbench.quant.quantizer import Quantizer, build
from qbench.quant.smooth import Calibration
from qbench.quant.spec import QuantizerName, bits_per_value
from qbench.quant.spelling import parse
from qbench.quant.static import Fixed, NotCalibrated
from qbench.quant.sweep import sweep

EXACT = [
    "int8/tensor", "int8/channel", "int8.asym/tensor", "int8.asym/channel", "int4.full/tensor", "e4m3/tensor",
    "e4m3/channel/scale:bf16", "int4/tensor/rms", "uniform4/channel", "ternary/tensor", "binary/channel",
    "e2m1/channel/pow2/scale:e8m0", "int4/tensor/rceil/scale:e8m0", "nf4/channel", "int4/channel/mse",
    "int4/tensor/mse", "int8/channel/percentile:99", "ternary/tensor/clip:2.5", "int8/tensor+hadamard",
    "int8/channel+smooth:0.5",
    "lloyd4/tensor", "int4/tensor/rtz", "int4/tensor/sr:0", "int8/tensor/scale:fp16+smooth:0.5+rht:1",
]  # fmt: skip


def data(rows: int = 96, width: int = 32, seed: int = 0) -> Tensor:
    x = torch.randn(rows, width, generator=torch.Generator().manual_seed(seed)) ** 3
    return x * torch.logspace(-1, 1, width) + 0.5


def calibrated(name: str, *parts: Tensor, weights: Tensor | None = None) -> Quantizer:
    spec = parse(name)
    smoothing = Calibration(torch.cat(parts).abs().amax(0), weights)
    observer = Observer(spec, smoothing if spec.smooth is not None else None)
    for part in parts:
        observer.see(part)
    return build(name, calibration=Calibration(smoothing.largest_C, weights, observer.fixed()))


@pytest.mark.parametrize("name", EXACT)
def test_the_scale_is_that_of_the_whole_set_as_one_tensor(name: str) -> None:
    """On its own calibration set a fixed quantizer does what the one that looks at each tensor would."""
    x = data()
    static, dynamic = calibrated(f"{name}+static", *x.split(40)), build(name)
    sums = dynamic.spec.rule_word in ("rms", "meanabs")  # in float64, and over parts
    tolerance = {"rtol": 1e-6, "atol": 1e-6} if sums or dynamic.spec.rht is not None else {"rtol": 0, "atol": 0}
    torch.testing.assert_close(static.roundtrip(x), dynamic.roundtrip(x), **tolerance)
    e = static.encode(x)
    assert torch.equal(static.decode(e), static.roundtrip(x))
    assert e.bits == 8 * e.codes.numel()  # nothing but codes
    assert e.bits_per_value == pytest.approx(static.bits_per_value(x.shape)) == bits_per_value(static.spec, x.shape)
    assert torch.equal(static.codes(x), dynamic.codes(x)) or sums


@pytest.mark.parametrize("name", ["int8/tensor", "int8.asym/tensor", "int8/channel", "e4m3/tensor"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64], ids=str)
def test_other_tensors_keep_the_scale_whatever_they_hold(name: str, dtype: torch.dtype) -> None:
    q = calibrated(f"{name}+static", data(seed=0))
    x = data(6, seed=1).to(dtype).view(2, 3, 32)
    one_by_one = torch.stack([q.roundtrip(row) for row in x.flatten(0, 1)]).view(x.shape)
    assert torch.equal(q.roundtrip(x), one_by_one)  # a dynamic scale would be each row's own
    assert q.roundtrip(x).dtype == dtype
    assert torch.equal(q.decode(q.encode(x)), q.roundtrip(x))
    assert not torch.equal(q.roundtrip(x), build(name).roundtrip(x))


def test_what_lies_beyond_the_range_saturates_and_is_counted() -> None:
    q = calibrated("int8/tensor+static", torch.tensor([[-127.0, 100.0]]))
    x = torch.tensor([[127.4, 200.0, -1000.0, 3.2]])
    assert q.roundtrip(x).tolist() == [[127.0, 127.0, -127.0, 3.0]]
    assert q.saturated(x) == 2
    sums = sweep(x, [q, "int8/tensor"])
    assert (sums["int8/tensor+static"].saturated, sums["int8/tensor"].saturated) == (2, 0)
    assert sums["int8/tensor+static"].error == pytest.approx(0.4**2 + 73**2 + 873**2 + 0.2**2, rel=1e-6)
    assert sums.plain == {"int8/tensor+static": "the scale was fixed before"}


def test_a_channel_that_was_never_seen_alive_is_counted_as_underflowed() -> None:
    q = calibrated("int8/channel+static", torch.tensor([[1.0, 0.0], [2.0, 0.0]]))
    x = torch.tensor([[1.0, 5.0]])
    assert q.roundtrip(x)[0, 1] == 0
    assert q.encode(x).underflowed == 1
    assert sweep(x, [q])["int8/channel+static"].underflowed_scales == 1


@pytest.mark.parametrize("act", ["roundtrip", "encode", "codes", "saturated"])
def test_without_a_calibration_it_says_what_to_do(act: str) -> None:
    with pytest.raises(NotCalibrated, match=r"the scale of int8/tensor\+static is fixed before: choose it with"):
        getattr(build("int8/tensor+static"), act)(data())
    smoothing_only = build("int8/tensor+smooth:0.5+static", calibration=Calibration(data().abs().amax(0)))
    with pytest.raises(NotCalibrated, match="fixed before"):
        getattr(smoothing_only, act)(data())


def test_a_sweep_of_names_refuses_what_needs_a_calibration() -> None:
    with pytest.raises(NotCalibrated):
        sweep(data(), ["int8/token", "int8/tensor+static"])


def test_the_calibration_of_something_else_is_refused() -> None:
    fixed = calibrated("int8/channel+static", data()).calibration
    with pytest.raises(NotCalibrated, match=r"holds the scale of int8/channel\+static, not of int4/channel\+static"):
        build("int4/channel+static", calibration=fixed).roundtrip(data())
    with pytest.raises(NotCalibrated, match="32 channels were calibrated, the tensor has 16"):
        build("int8/channel+static", calibration=fixed).roundtrip(data(width=16))


def test_an_observer_wants_finite_values_and_at_least_one() -> None:
    for name in (
        "int8/tensor+static",
        "int8/tensor/percentile:99+static",
        "int4/tensor/rms+static",
        "int4/channel/mse+static",
    ):
        observer = Observer(parse(name))
        observer.see(torch.empty(0, 4))
        with pytest.raises(ValueError, match="nothing was seen"):
            observer.fixed()
        with pytest.raises(NonFinite):
            observer.see(torch.tensor([[1.0, torch.nan]]))


@pytest.mark.parametrize("percent", [50, 99, 99.9, 99.99, 100])
def test_a_percentile_of_any_number_of_values_is_right_to_a_thousandth(percent: float) -> None:
    """numpy's `inverted_cdf` may take the next rank, because percent / 100 is no binary fraction."""
    x = data(40_000, seed=3)
    q = calibrated(f"int8/tensor/percentile:{percent}+static", *x.split(7000))
    found = float(q.calibration.fixed.stored) * 127
    rank = ceil(x.numel() * Fraction(str(percent)) / 100)
    expected = float(x.abs().flatten().sort().values[rank - 1])
    assert expected * (1 - 1e-6) <= found <= expected * (1 + 2**-10)
    assert found == pytest.approx(expected, rel=1e-6) or percent < 100


@pytest.mark.parametrize(
    "name", ["int8/channel/percentile:99+static", "int4/tensor/mse+static", "int4/channel/mse+static"]
)
def test_a_bounded_sample_is_enough_and_does_not_depend_on_the_batches(name: str) -> None:
    x = data(40_000, seed=3)
    assert x.numel() > 4 * SAMPLE
    scales = [calibrated(name, *x.split(rows)).calibration.fixed.stored for rows in (40_000, 1024, 777)]
    assert torch.equal(scales[0], scales[1])
    assert torch.equal(scales[0], scales[2])
    dynamic = build(name.removesuffix("+static"))
    errors = [(q.roundtrip(x) - x).square().sum() for q in (dynamic, calibrated(name, x))]
    assert errors[1] < 1.15 * errors[0]


def test_the_sample_does_not_fall_in_step_with_the_windows() -> None:
    """Tokens at position 0 of windows of 64 are a hundred times as large: of any even share 1 in 64 is one."""
    x = torch.ones(64 * 2**9, 32)
    x[::64] = 100
    observer = Observer(parse("int4/channel/percentile:90+static"))
    observer.see(x)
    kept = observer.summary.representatives()[:, 0]
    assert 2**12 <= len(kept) <= SAMPLE // 32
    assert float((kept == 100).float().mean()) == pytest.approx(1 / 64, rel=0.1)


@pytest.mark.parametrize("variant", ["int8", "int8.asym"])
@pytest.mark.parametrize("granularity", ["tensor", "channel"])
def test_equal_to_the_static_primitives_of_torchao(variant: str, granularity: str) -> None:
    pytest.importorskip("torchao")
    from torchao.quantization.quant_primitives import dequantize_affine, quantize_affine

    q = calibrated(f"{variant}/{granularity}+static", data(seed=0))
    x = data(seed=1) * 1.5
    fixed = q.calibration.fixed
    assert isinstance(fixed, Fixed)
    block = (96, 32) if granularity == "tensor" else (96, 1)
    low, high, dtype = (0, 255, torch.uint8) if fixed.zeros is not None else (-127, 127, torch.int8)
    zeros = torch.zeros_like(fixed.stored) if fixed.zeros is None else fixed.zeros
    args = (block, fixed.stored, zeros.int())
    codes = quantize_affine(x, *args, dtype, low, high)
    theirs = dequantize_affine(codes, *args, dtype, low, high)
    assert torch.equal(q.roundtrip(x), theirs)
    assert (q.codes(x).int() == codes.int() - low).all()
    assert q.saturated(x) > 0


def test_smoothquant_preserves_the_function_and_shares_the_difficulty() -> None:
    """Both halves together are the paper's: W4 of W diag(f) times A8 of x / f, with f = max|x|^p / max|W|^(1 - p)."""
    x, weight, p = data().double(), data(48, seed=2).double(), 0.7
    peaks = Calibration(x.abs().amax(0), weight.abs().amax(0))
    f = peaks.factors(p).double()
    torch.testing.assert_close(peaks.of_weights().factors(1 - p).double(), 1 / f, rtol=1e-6, atol=0)
    torch.testing.assert_close((x / f) @ (weight * f).T, x @ weight.T)
    ours_x = build("int8/token+smooth:0.7", calibration=peaks).roundtrip(x)
    ours_w = build("int4/channel+smooth:0.3", channel_axis=0, calibration=peaks.of_weights()).roundtrip(weight)
    theirs = build("int8/token").roundtrip(x / f) @ build("int4/channel", channel_axis=0).roundtrip(weight * f).T
    torch.testing.assert_close(ours_x @ ours_w.T, theirs, rtol=0, atol=1e-6 * float(theirs.abs().max()))
    with pytest.raises(ValueError, match="give them to the calibration"):
        Calibration(peaks.largest_C).of_weights()


def test_smoothing_is_done_before_the_scale_is_fixed() -> None:
    x = data()
    q = calibrated("int8/tensor+smooth:1+static", x)
    assert q.calibration.fixed.stored.item() == pytest.approx(1 / 127)  # every channel's peak became 1
    assert (q.roundtrip(x) - x).norm() < (calibrated("int8/tensor+static", x).roundtrip(x) - x).norm()


@pytest.mark.parametrize(
    ("name", "lesson"),
    [
        ("int8/token+static", "token has one for every token"),
        ("int4/block:32+static", "block:32 has one"),
        ("mxfp4+static", "block:32 has one"),
        ("kmeans4/tensor+static", "not fitted levels"),
        ("int4/tensor/l2+static", "a norm that grows"),
        ("e2m1/tensor/scale:e4m3.fp32+static", "scales of scales"),
        ("int8/tensor+static+hadamard", "static comes last"),
        ("int8/tensor+static:3", "allowed: smooth:POWER, hadamard, hadamard:N, rht:SEED, static"),
        ("int8/tensor+static+static", "static"),
    ],
)
def test_what_cannot_be_fixed_says_why(name: str, lesson: str) -> None:
    with pytest.raises(QuantizerName, match=lesson):
        parse(name)


@pytest.mark.parametrize("name", [f"{name}+static" for name in EXACT])
def test_names_print_as_they_are_spelled_and_are_of_the_same_revision(name: str) -> None:
    spec = parse(name)
    assert str(spec) == name
    assert spec.revision == parse(name.removesuffix("+static")).revision
    assert expected_loss(spec, (1024, 1024)) is None  # how far other data are from the calibration set is not known


def test_a_calibration_is_kept_by_whoever_has_it_and_no_longer() -> None:
    calibration = Calibration(torch.tensor([1.0, 2.0]))
    kept = ref(calibration.largest_C)
    build("int8/token+smooth:0.5", calibration=calibration)
    del calibration
    gc.collect()
    assert kept() is None


def test_a_straight_gradient_is_the_same_with_a_calibration() -> None:
    found: list[Tensor] = []
    for calibration in (Calibration(torch.tensor([1.0, 10.0, 100.0, 4.0])), None):
        x = torch.tensor([[1.0, 10.0, 100.0, 4.0]], requires_grad=True)
        Quantizer(parse("int8/token+smooth:1"), calibration=calibration).fake(x, trust=True).sum().backward()
        assert x.grad is not None
        found.append(x.grad)
    assert found[0].tolist() == found[1].tolist() == [[1.0] * 4]
