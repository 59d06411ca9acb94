"""The instrument as a whole: known tensors in, known numbers out; faults put in on purpose are seen where they are."""

from dataclasses import replace
from math import log10

import by_hand
import numpy as np
import pytest
import torch
from by_hand import small, tokens
from subjects import cell, subject
from torch import Tensor
from torch.nn.functional import cross_entropy

from qbench.capture import read
from qbench.capture.places import places
from qbench.capture.sites import CALIBRATION_SITES
from qbench.capture.write import quantized
from qbench.data.synthetic import DISTRIBUTIONS, calibration
from qbench.evaluate.likelihood import likelihood
from qbench.models.transformer import Transformer
from qbench.quant.blocks import NonFinite
from qbench.quant.catalog import QUANTIZERS
from qbench.quant.quantizer import build
from qbench.results.record import Record
from qbench.suite.cells import Measurement
from qbench.suite.expand import ROWS, WIDTH
from qbench.suite.material import Text
from qbench.suite.probe import sweep
from qbench.suite.tally import Tally

PER_BATCH = ("int4/tensor", "int4/channel", "lloyd4/block:8")
WINDOWS = 2 * Text.recorded + 5  # two whole batches and a short one


def tallied(kind: str, site: str) -> tuple[Tally, list[Tensor], list[Tensor]]:
    """A tally fed as a suite feeds it; the same batches as they are, and quantized by each of `PER_BATCH` in turn."""
    from qbench.suite.tensors import feeder

    there = subject()
    tally = Tally(kind, PER_BATCH, shape=True)
    asked = Measurement(what="shape", kind=kind, sites=(site,), windows=WINDOWS, split="test")
    feeder(there)(asked, tally)
    windows = there.reader.examples("test", WINDOWS)
    batches = [_by_hand(there.model, kind, site, part) for part in windows.split(Text.recorded)]
    return tally, batches, [build(q).roundtrip(x) for q in PER_BATCH for x in batches]


def _by_hand(model: Transformer, kind: str, site: str, windows: Tensor) -> Tensor:
    leaves: list[Tensor] = []

    def at(name: str, x: Tensor) -> Tensor:
        if name != site:
            return x
        leaves.append(x.detach().requires_grad_())
        return leaves[0]

    logits = by_hand.forward(model, windows[:, :-1], at)
    if kind == "activation":
        return leaves[0].detach()
    # Every window weighs the same: what a mean over a whole batch gives it.
    total = cross_entropy(logits.flatten(0, 1), windows[:, 1:].flatten(), reduction="sum") / (Text.recorded * 12)
    (gradient,) = torch.autograd.grad(total, leaves)
    return gradient


@pytest.mark.parametrize("kind", ["activation", "gradient"])
def test_statistics_are_pooled_over_batches_or_averaged_as_their_definition_says(kind: str) -> None:
    tally, batches, _ = tallied(kind, site := "blocks.0.out")
    whole = torch.cat(batches).double().flatten(0, 1).numpy()
    assert whole.shape == (WINDOWS * 12, 16)
    found = tally.shapes[site].values()

    def excess(x: np.ndarray, axis: int | None) -> np.ndarray:
        centred = x - x.mean(axis, keepdims=True)
        return (centred**4).mean(axis) / (centred**2).mean(axis) ** 2 - 3

    pooled = {
        "rms": np.sqrt((whole**2).mean()),
        "excess_kurtosis/tensor": excess(whole, None),
        "excess_kurtosis/channel": excess(whole, 0).mean(),
        "excess_kurtosis/token": excess(whole, 1).mean(),
    }
    averaged = {"crest_db": np.mean([20 * log10(x.abs().max() / x.square().mean().sqrt()) for x in batches])}
    for name, value in (pooled | averaged).items():
        assert found[name] == pytest.approx(value, rel=1e-4, abs=1e-4), name
    assert averaged["crest_db"] != pytest.approx(20 * log10(np.abs(whole).max() / pooled["rms"]), abs=1e-3)
    # What Gaussian batches of these sizes would show, within four standard errors of 400 draws of each.
    draws = [np.random.default_rng(0).standard_normal((400, x.numel())) for x in batches]
    crests = [20 * np.log10(np.abs(x).max(1) / np.sqrt((x**2).mean(1))) for x in draws]
    assert found["gaussian/crest_db"] == pytest.approx(np.mean(crests), abs=4 * np.std(crests) / 400**0.5)


@pytest.mark.parametrize("kind", ["activation", "gradient"])
def test_errors_are_sums_over_batches_each_with_scales_of_its_own(kind: str) -> None:
    tally, batches, copies = tallied(kind, site := "blocks.0.mid")
    whole = torch.cat(batches).double().flatten(0, 1)
    for i, name in enumerate(PER_BATCH):
        copy = torch.cat(copies[3 * i : 3 * i + 3]).double().flatten(0, 1)
        asked = Measurement(what="error", kind=kind, sites=(site,), windows=WINDOWS, split="test", quantizer=name)
        (record,) = tally.records(cell(asked))
        error = (whole - copy).square()
        ratio_C = error.sum(0) / whole.square().sum(0)
        expected = {
            "error_db": 10 * log10(error.sum() / whole.square().sum()),
            "error_db/channel": 10 * ratio_C.log10().mean().item(),
            "max_error": (error.max() / whole.square().mean()).sqrt().item(),
            "zeroed": ((copy == 0) & (whole != 0)).double().mean().item(),
        }
        for metric, value in expected.items():
            assert record.values[metric] == pytest.approx(value, rel=1e-3, abs=1e-3), (name, metric)
        assert record.n == whole.numel()
        # Bits are those of the recorded batch, the whole one.
        assert record.bits_per_value == pytest.approx(build(name).bits_per_value((Text.recorded, 12, 16)))


@pytest.fixture(scope="module")
def calibrated() -> tuple[dict[str, Record], dict[str, dict[str, dict[str, float]]]]:
    """Shape records of the calibration tensors, and error values by quantizer, as a suite measures them."""
    tally = Tally("activation", list(QUANTIZERS), shape=True)
    for site, x in calibration(ROWS, WIDTH, seed=0).items():
        tally.visit(site, x)
    place = {"kind": "activation", "sites": CALIBRATION_SITES}
    shapes = {record.site: record for record in tally.records(cell(Measurement(what="shape", **place)))}
    errors = {
        str(row.spec): {
            record.site: dict(record.values)
            for record in tally.records(cell(Measurement(what="error", quantizer=str(row.spec), **place)))
        }
        for row in QUANTIZERS.values()
    }
    return shapes, errors


@pytest.mark.parametrize("site", CALIBRATION_SITES)
def test_measured_kurtosis_is_the_exact_one_within_four_standard_errors(site: str, calibrated) -> None:
    """The standard error is the spread over other seeds, of the plain formula in numpy."""
    distribution = DISTRIBUTIONS[site]

    def kurtosis(seed: int) -> float:
        x = distribution.draw(np.random.default_rng(seed), (ROWS, WIDTH))
        return float(((x - x.mean()) ** 4).mean() / x.var() ** 2 - 3)

    spread = np.std([kurtosis(seed) for seed in range(12)], ddof=1)
    measured = calibrated[0][site].values["excess_kurtosis/tensor"]
    assert abs(measured - distribution.excess_kurtosis((ROWS, WIDTH))) < 4 * spread
    if site == "gaussian":  # the exact standard error, sqrt(24 / n)
        assert abs(measured) < 4 * (24 / (ROWS * WIDTH)) ** 0.5


def test_gaussian_data_loses_what_every_format_is_expected_to_lose(calibrated) -> None:
    losses = {name: by_site["gaussian"].get("shape_loss_db") for name, by_site in calibrated[1].items()}
    without = [name for name, loss in losses.items() if loss is None]
    # Blocks along a batch axis of one; rules and values that are fitted to the data; scales of few values.
    assert set(without) == {
        "int4/block:32@0",
        "int4/channel/mse",
        "kmeans2/block:64/absmax",
        "int8/token+smooth:0.5",
        "int4/block:512/l2/sr:0",
    }
    off = {name: loss for name, loss in losses.items() if loss is not None and abs(loss) > 0.3}
    assert off == {}
    # It is a ruler and not a constant: a hot channel costs one scale for the tensor many decibels.
    assert calibrated[1]["int4/tensor"]["hot-channel"]["shape_loss_db"] > 3
    assert calibrated[1]["int4/channel"]["hot-channel"]["shape_loss_db"] < 0.3


FACTOR, CHANNEL = 50.0, 5


def with_outlier(model: Transformer, block: int = 1) -> Transformer:
    """The same function with one channel of `mlp.in` fifty times as large: the next matrix divides it out."""
    changed = small(model.spec.wiring)
    changed.load_state_dict(model.state_dict())
    with torch.no_grad():
        changed.blocks[block].mlp.norm.gain[CHANNEL] *= FACTOR
        changed.blocks[block].mlp.pre[:, CHANNEL] /= FACTOR
    return changed


@pytest.mark.parametrize("wiring", by_hand.WIRINGS)
def test_an_outlier_channel_that_changes_no_function_is_found_where_it_is(wiring: str) -> None:
    plain = small(wiring)
    outlier, windows, site = with_outlier(plain), tokens(32, length=13), "blocks.1.mlp.in"
    before, after = likelihood(plain, windows), likelihood(outlier, windows)
    assert np.abs(before.losses - after.losses).max() < 1e-5
    assert np.array_equal(before.errors, after.errors)
    plain_x, outlier_x = _all(plain, windows), _all(outlier, windows)
    assert list(plain_x) == list(outlier_x)
    # Read as an error: a single scale suffers there and nowhere else; a scale for each channel does not notice.
    names = ["int4/tensor", "int4/channel"]
    for name, x in plain_x.items():
        old, new = sweep(x, names), sweep(outlier_x[name], names)
        worse = {q: new[q]["error_db/channel"] - old[q]["error_db/channel"] for q in names}
        assert worse["int4/channel"] == pytest.approx(0, abs=0.1)
        if name == site:
            assert worse["int4/tensor"] > 10
            assert new["int4/tensor"]["zeroed"] > 0.8 > 3 * old["int4/tensor"]["zeroed"]
        else:
            assert worse["int4/tensor"] == pytest.approx(0, abs=0.1)
    # Run with it: the loss of the quantized model tells the two apart as well.
    moved = {q: _moved(outlier, site, q, windows) / _moved(plain, site, q, windows) for q in names}
    assert moved["int4/channel"] == pytest.approx(1, abs=0.05)
    assert moved["int4/tensor"] > 2


def _all(model: Transformer, windows: Tensor) -> dict[str, Tensor]:
    seen: dict[str, Tensor] = {}
    read.activations(model, places(model), [windows[:, :-1]], lambda site, x: seen.update({site: x.clone()}))
    return seen


def _moved(model: Transformer, site: str, quantizer: str, windows: Tensor) -> float:
    """How far the losses of single windows move, root mean square, when `site` is quantized."""
    plain = likelihood(model, windows)
    with quantized({site: (places(model)[site], build(quantizer))}, {}):
        scored = likelihood(model, windows)
    return float(np.sqrt(((scored.losses - plain.losses) ** 2).mean()))


def test_the_same_outlier_in_a_weight_is_seen_by_its_axis() -> None:
    """One row of a matrix ten times as large: a scale for each output channel does not notice it, axis 0."""
    model = small("residual")
    w = model.weights()["blocks.0.mlp.pre"].detach().clone()
    old = sweep(w, ["int4/tensor", "int4/channel"], channel_axis=0)
    w[3] *= FACTOR
    new = sweep(w, ["int4/tensor", "int4/channel"], channel_axis=0)
    assert new["int4/tensor"]["error_db/channel"] > old["int4/tensor"]["error_db/channel"] + 10
    assert new["int4/channel"]["error_db/channel"] == pytest.approx(old["int4/channel"]["error_db/channel"], abs=1e-6)
    along_the_wrong_axis = sweep(w, ["int4/channel"])["int4/channel"]
    assert along_the_wrong_axis["error_db"] != pytest.approx(new["int4/channel"]["error_db"], abs=0.1)


def test_weights_of_a_tally_have_a_scale_for_each_output() -> None:
    tally = Tally("weight", ["int4/channel"], shape=False)
    w = small("residual").weights()["blocks.0.mlp.pre"]
    tally.visit("blocks.0.mlp.pre", w)
    asked = replace(cell(Measurement(what="error", kind="weight", quantizer="int4/channel")))
    (record,) = tally.records(asked)
    assert record.bits_per_value == pytest.approx((4 * w.numel() + 32 * len(w)) / w.numel())
    scale = w.detach().double().abs().amax(1, keepdim=True) / 7
    error = ((w / scale).round() * scale - w).square().sum() / w.double().square().sum()
    assert record.values["error_db"] == pytest.approx(10 * log10(error.item()), abs=1e-3)


@pytest.mark.parametrize("shape", [True, False], ids=["with shapes", "errors only"])
def test_a_value_that_is_not_finite_is_reported_with_its_site_and_count(shape: bool) -> None:
    there = subject()
    with torch.no_grad():
        there.model.weights()["blocks.1.mlp.pre"][0, 0] = float("nan")
    tally = Tally("activation", ["int4/token"], shape=shape)
    with pytest.raises(NonFinite, match=r"^blocks\.1\.mlp\.pre: .*\d+ of \d+ values are NaN or infinite"):
        read.activations(there.model, places(there.model), [there.inputs("test", 4)[0]], tally.visit)
    place = {"blocks.1.mlp.hidden": (places(there.model)["blocks.1.mlp.hidden"], build("int4/token"))}
    with pytest.raises(NonFinite, match=r"^activation:blocks\.1\.mlp\.hidden: "), quantized(place, {}):
        there.model(there.inputs("test", 4)[0])
