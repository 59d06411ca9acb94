"""Scores of a model: against the definition in float64, and against scipy for what is uncertain about them."""

from math import log

import by_hand
import numpy as np
import pytest
import torch
from by_hand import small, tokens
from scipy import stats
from subjects import cell, subject
from torch import Tensor

from qbench.evaluate.likelihood import (
    OTHER_BATCH,
    bits_per_byte,
    likelihood,
    numerical_floor,
    why_not_exact,
)
from qbench.models.transformer import Transformer
from qbench.quant.quantizer import build
from qbench.results.record import Record
from qbench.suite.answer import Answer
from qbench.suite.cells import Measurement
from qbench.suite.losses import loss_answers
from qbench.suite.value import Treatment
from qbench.train.trainer import loss_of

WINDOWS = tokens(40, length=13)


def by_definition(model: Transformer, windows: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Loss and error rate of each window, token by token from float64 logits."""
    exact = small(model.spec.wiring).double()
    logits = by_hand.forward(exact, windows[:, :-1], lambda _, x: x).detach().numpy()
    losses, errors = np.zeros(len(windows)), np.zeros(len(windows))
    for n, window in enumerate(windows.tolist()):
        for t, target in enumerate(window[1:]):
            z = logits[n, t]
            losses[n] += (np.log(np.exp(z - z.max()).sum()) + z.max() - z[target]) / 12
            errors[n] += (z.argmax() != target) / 12
    return losses, errors


@pytest.mark.parametrize("wiring", by_hand.WIRINGS)
def test_each_window_has_its_mean_cross_entropy_and_error_rate(wiring: str) -> None:
    model = small(wiring)
    scored = likelihood(model, WINDOWS)
    losses, errors = by_definition(model, WINDOWS)
    assert np.abs(scored.losses - losses).max() < 1e-6 * losses.max()
    np.testing.assert_allclose(scored.errors, errors, rtol=0, atol=1e-12)
    assert 0 < errors.min() < errors.max() <= 1
    assert scored.loss == pytest.approx(losses.mean(), abs=1e-6)
    assert scored.error_rate == pytest.approx(errors.mean(), abs=1e-12)
    assert scored.losses.dtype == scored.errors.dtype == np.float64


def test_a_window_is_scored_by_itself_and_in_order() -> None:
    model = small("residual")
    scored = likelihood(model, WINDOWS)
    backwards = likelihood(model, WINDOWS.flip(0))
    np.testing.assert_allclose(backwards.losses[::-1], scored.losses, rtol=0, atol=1e-6)
    alone = [likelihood(model, window[None]).loss for window in WINDOWS]
    np.testing.assert_allclose(alone, scored.losses, rtol=0, atol=1e-6)


def test_equal_calls_give_equal_numbers_and_leave_no_graph() -> None:
    model = small("residual")
    one, other = (likelihood(model, WINDOWS) for _ in range(2))
    assert np.array_equal(one.losses, other.losses)
    assert np.array_equal(one.errors, other.errors)
    assert all(parameter.grad is None for parameter in model.parameters())


def test_the_numerical_floor_is_the_largest_change_by_another_batch_size_or_precision() -> None:
    model = small("residual")
    reference = likelihood(model, WINDOWS)
    exact, _ = by_definition(model, WINDOWS)
    floor = numerical_floor(model, WINDOWS, reference)
    # Logits are rounded to float32 before they are scored, hence the last digits.
    assert 0.5 * np.abs(exact - reference.losses).max() < floor < 1e-5
    assert next(model.parameters()).dtype == torch.float32
    shifted = type(reference)(reference.losses.copy(), reference.errors)
    shifted.losses[3] -= 0.25
    assert numerical_floor(model, WINDOWS, shifted) == pytest.approx(0.25, abs=1e-5)


def test_the_numerical_floor_sees_what_depends_on_the_batch() -> None:
    """A scale for the whole batch ties its windows together."""
    model = small("residual")
    site = model.sites()["blocks.0.out"]
    handle = site.register_forward_hook(lambda _m, _i, x: build("int2/tensor").roundtrip(x))
    try:
        assert numerical_floor(model, WINDOWS, likelihood(model, WINDOWS)) > 1e-4
    finally:
        handle.remove()


def test_without_room_for_float64_the_floor_is_that_of_another_batch_size(monkeypatch: pytest.MonkeyPatch) -> None:
    model = small("residual")
    reference = likelihood(model, WINDOWS)
    assert why_not_exact(model) == ""
    with_both = numerical_floor(model, WINDOWS, reference)
    needed = 8 * sum(parameter.numel() for parameter in model.parameters())
    monkeypatch.setattr("qbench.evaluate.likelihood.free_memory", lambda: needed - 1)
    assert why_not_exact(model) == "a float64 copy takes 0.00 GB, and 0.00 GB are free"
    monkeypatch.setattr("qbench.evaluate.likelihood.deepcopy", None)
    other = np.abs(likelihood(model, WINDOWS, OTHER_BATCH).losses - reference.losses).max()
    assert numerical_floor(model, WINDOWS, reference) == other <= with_both
    monkeypatch.setattr("qbench.evaluate.likelihood.free_memory", lambda: None)
    assert why_not_exact(model) == ""
    model.codes = torch.nn.Parameter(torch.zeros(3, dtype=torch.uint8), requires_grad=False)
    assert why_not_exact(model) == "1 of its weights are packed codes, which have no float64"


def test_losses_by_position_are_for_windows_that_say_what_is_scored() -> None:
    with pytest.raises(ValueError, match="a plain tensor of tokens was scored"):
        likelihood(small("residual"), WINDOWS).by_position()


def test_bits_per_byte_are_nats_over_log_two_and_the_bytes_of_a_token() -> None:
    assert bits_per_byte(log(2)) == pytest.approx(1)
    assert bits_per_byte(3.0, bytes_per_token=4.5) == pytest.approx(3.0 / log(2) / 4.5)


def test_the_training_loss_is_the_mean_over_windows() -> None:
    model = small("residual")
    loss = loss_of(model, WINDOWS[:, :-1], WINDOWS[:, 1:])
    assert loss.item() == pytest.approx(likelihood(model, WINDOWS).loss, abs=1e-6)
    assert loss.requires_grad


# What suites store of it


def answers(*assigns: dict[str, str], windows: int = 24) -> list[tuple[Answer, Record]]:
    treatments = [Treatment(name=str(i), scope="", assign=assign) for i, assign in enumerate(assigns)]
    cells = [cell(Measurement(what="loss", windows=windows, split="test", treatment=one)) for one in treatments]
    done = list(loss_answers(cells, subject()))
    assert [(answer.status, answer.error) for answer in done] == [("measured", "")] * len(cells)
    assert [answer.cell for answer in done] == cells
    return [(answer, answer.records[0]) for answer in done]


def test_the_loss_increase_is_the_mean_of_paired_differences_with_its_t_interval() -> None:
    (plain, plain_record), (coarse, record) = answers({}, {"activation:boundaries": "int3/tensor"})
    differences = coarse.vectors["loss"] - plain.vectors["loss"]
    assert record.values["loss_increase"] == pytest.approx(differences.mean(), rel=1e-12)
    assert abs(record.values["loss_increase"]) > 0.01  # an untrained model may well gain
    for values, interval in (
        (differences, record.intervals["loss_increase"]),
        (coarse.vectors["loss"], record.intervals["loss"]),
        (plain.vectors["loss"], plain_record.intervals["loss"]),
    ):
        expected = stats.t.interval(0.95, len(values) - 1, values.mean(), stats.sem(values))
        assert interval == pytest.approx(expected, rel=1e-6)
    assert record.values["floor/window"] == pytest.approx(stats.sem(differences))
    assert plain_record.values["floor/window"] == pytest.approx(stats.sem(plain.vectors["loss"]))
    assert "loss_increase" not in plain_record.values
    assert 0 <= plain_record.values["floor/numerical"] < 1e-5
    for answer, stored in ((plain, plain_record), (coarse, record)):
        assert stored.values["loss"] == pytest.approx(answer.vectors["loss"].mean())
        assert stored.values["error_rate"] == pytest.approx(answer.vectors["error_rate"].mean())
        assert stored.values["bits_per_byte"] == pytest.approx(stored.values["loss"] / log(2))
        assert stored.n == len(answer.vectors["loss"]) == 24


def test_a_treatment_that_changes_nothing_increases_nothing() -> None:
    """Every matrix is put on the grid first, so that quantizing it again is exact."""
    there = subject()
    with torch.no_grad():
        for name, parameter in there.model.weights().items():
            if name.startswith("blocks."):
                parameter.copy_(torch.randint(-7, 8, parameter.shape) / 32).select(1, 0).fill_(7 / 32)
    treatment = Treatment(name="w", scope="", assign={"weight:weights": "int4/channel"})
    asked = cell(Measurement(what="loss", windows=8, split="test", treatment=treatment))
    (answer,) = loss_answers([asked], there)
    assert answer.records[0].values["loss_increase"] == 0
    assert len(answer.warnings) == 1
    assert answer.warnings[0].startswith("the error is exactly zero at weight:blocks.0.attn.k, ")


def test_what_was_stored_is_counted() -> None:
    """Two layers of width 16 read 12 tokens in 24 windows; 2 x (4 x 16 x 16 + 2 x 16 x 64) weights in blocks."""
    assign = {"weight:weights": "int4/channel", "activation:boundaries": "int8/token"}
    (_, w), (_, both) = answers({"weight:weights": "int4/channel"}, assign)
    values, rows = 2 * (4 * 256 + 2 * 1024), 2 * (4 * 16 + 64 + 16)
    stored = 4 * values + 32 * rows
    assert w.bits_per_value == pytest.approx(stored / values)
    every = values + 2 * 32 * 16 + 5 * 16  # embedding, head and gains stay at 32 bits
    assert w.values["bits_per_value/model"] == pytest.approx((stored + 32 * (every - values)) / every)
    sent, tokens_sent = 2 * 24 * 12 * 16, 2 * 24 * 12
    total = stored + 8 * sent + 32 * tokens_sent
    assert both.bits_per_value == pytest.approx(total / (values + sent))
    assert both.values["bits_per_value/model"] == w.values["bits_per_value/model"]
    assert (w.values["sites_touched"], both.values["sites_touched"]) == (12, 14)
    assert (w.kind, w.quantizer, both.kind, both.quantizer) == ("weight", "int4/channel", "", "")
    assert 8 < w.values["levels"] <= 15 < both.values["levels"] <= 255


def test_one_window_has_a_loss_and_no_spread() -> None:
    (_, plain), (_, record) = answers({}, {"activation:middle": "int8/token"}, windows=1)
    assert plain.values["loss"] > 0
    assert record.intervals["loss_increase"] == (-np.inf, np.inf)  # the store leaves it out
    assert np.isnan(record.values["floor/window"])


def test_a_loss_that_is_not_finite_fails_its_own_cell_only() -> None:
    there = subject()
    asked = [
        cell(Measurement(what="loss", windows=8, split="test", treatment=Treatment(name=n, scope="", assign=assign)))
        for n, assign in (("a", {"activation:blocks.*.nowhere": "int8/token"}), ("b", {}))
    ]
    bad, good = loss_answers(asked, there)
    assert (bad.status, good.status) == ("failed", "measured")
    assert "no activation site 'blocks.*.nowhere'" in bad.error
    with torch.no_grad():
        there.model.weights()["logits"].fill_(float("nan"))
    (broken,) = loss_answers(asked[1:], there)
    assert broken.status == "failed"
    assert "the loss is nan" in broken.error
