"""Divergence from a reference: against all logits at once in float64, and against the other libraries' own losses."""

import os
from copy import deepcopy
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import random_models
import torch
from real import babyllama
from real import text as real_text
from scipy import stats
from scipy.special import log_softmax, rel_entr, softmax
from tokenizers import Tokenizer
from torch import Tensor, nn

from qbench.capture.place import Place
from qbench.capture.places import matrices
from qbench.capture.write import quantized
from qbench.data.documents import Document
from qbench.data.passages import Cut, Windows, passages
from qbench.evaluate import pieces
from qbench.evaluate.block import block
from qbench.evaluate.costs import COLUMNS
from qbench.evaluate.divergence import BY_SLICE, divergence
from qbench.evaluate.likelihood import bits_per_byte, likelihood, numerical_floor
from qbench.evaluate.reference import BadReference, Reference, references
from qbench.metrics.catalog import METRICS
from qbench.models.hub import HubModel, load
from qbench.quant.quantizer import build

BOS = 1
LETTERS = "abcdefghij klmno"


def text(n: int, seed: int) -> str:
    return "".join(np.random.default_rng(seed).choice(list(LETTERS), n))


def encode(text: str) -> list[int]:
    return [5 + LETTERS.index(letter) for letter in text]


def windows_of(context: int = 24, count: int | None = 12, **cut: Any) -> Windows:
    documents = [
        Document(name, text(n, seed), name) for seed, (name, n) in enumerate({"chat": 300, "code": 500}.items())
    ]
    return passages(documents, encode, Cut(context, count, **cut))


WINDOWS = windows_of()


def hub(family: str = "llama") -> HubModel:
    return HubModel(random_models.build(family), "causal-lm")


def changed(model: HubModel, amount: float, seed: int = 5) -> HubModel:
    """The same model with noise on every weight."""
    other = deepcopy(model)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=amount * float(parameter.std()))
    return other


@torch.no_grad()
def by_definition(model: nn.Module, other: nn.Module, windows: Windows) -> dict[str, np.ndarray]:
    """All columns [N, T] from all logits at once, with scipy in float64."""
    p_logits, q_logits = (m(windows.tokens[:, :-1]).double().numpy() for m in (model, other))
    p, q = softmax(p_logits, -1), softmax(q_logits, -1)
    target = windows.tokens[:, 1:].numpy()
    at = (*np.indices(target.shape), target)
    return {
        "loss": -log_softmax(q_logits, -1)[at],
        "reference_loss": -log_softmax(p_logits, -1)[at],
        "kld": rel_entr(p, q).sum(-1),
        "kld/reverse": rel_entr(q, p).sum(-1),
        "delta_p": q[at] - p[at],
        "wrong": (q.argmax(-1) != target).astype(float),
        "reference_wrong": (p.argmax(-1) != target).astype(float),
        "top1_changed": (p.argmax(-1) != q.argmax(-1)).astype(float),
    }


@pytest.mark.parametrize("family", ["llama", "llama-tied", "gemma2", "gpt2", "phi"])
def test_every_column_is_what_all_logits_in_float64_say(family: str) -> None:
    model = hub(family)
    other = changed(model, 0.3)
    found = divergence(other, WINDOWS, references(model, WINDOWS))
    expected = by_definition(model, other, WINDOWS)
    for name in COLUMNS:
        np.testing.assert_allclose(found.each[name], expected[name], rtol=1e-5, atol=2e-6, err_msg=name)
    assert expected["kld"].mean() > 0.01
    assert 0 < expected["top1_changed"].mean() < 1


@pytest.mark.parametrize("amount", [1e-5, 1e-4, 1e-2])
def test_small_divergences_are_no_rounding(amount: float) -> None:
    """At 1e-5 the mean divergence is 1e-10; the textbook sum in float32 is off by 1e-7."""
    model = hub()
    other = changed(model, amount)
    found, expected = divergence(other, WINDOWS, references(model, WINDOWS)), by_definition(model, other, WINDOWS)
    for name in ("kld", "kld/reverse"):
        assert found.each[name].mean() == pytest.approx(expected[name].mean(), rel=0.02, abs=2e-10)


def test_a_model_does_not_diverge_from_itself() -> None:
    model = hub("gemma2")
    values = divergence(model, WINDOWS, references(model, WINDOWS)).values()
    zero = {name for name in values if name.startswith(("kld", "delta_p", "flips", "top1", "loss_increase"))}
    assert {values[name] for name in zero} == {0.0}
    assert len(zero) > 15
    assert values["perplexity_ratio"] == 1
    assert values["loss_correlation"] == pytest.approx(1, abs=1e-12)


def test_values_are_means_tails_and_correlations_of_the_columns() -> None:
    model = hub()
    other = changed(model, 0.3)
    found = divergence(other, WINDOWS, references(model, WINDOWS))
    each = {name: column.ravel() for name, column in found.each.items()}
    values = found.values()
    expected = {
        "loss": each["loss"].mean(),
        "perplexity": np.exp(each["loss"].mean()),
        "perplexity_ratio": np.exp(each["loss"].mean()) / np.exp(each["reference_loss"].mean()),
        "loss_correlation": stats.pearsonr(each["loss"], each["reference_loss"]).statistic,
        "kld/max": each["kld"].max(),
        "kld/p99.9": np.quantile(each["kld"], 0.999),
        "kld/median": np.median(each["kld"]),
        "kld/p1": np.quantile(each["kld"], 0.01),
        "delta_p/rms": (each["delta_p"] ** 2).mean() ** 0.5,
        "flips": (each["wrong"] != each["reference_wrong"]).mean(),
        "flips/to_wrong": (each["wrong"] > each["reference_wrong"]).mean(),
        "bits_per_byte": each["loss"].sum() / np.log(2) / WINDOWS.bytes.sum(),
    }
    for name, value in expected.items():
        assert values[name] == pytest.approx(value, rel=1e-9), name
    assert values["flips"] == values["flips/to_wrong"] + values["flips/to_right"] > 0
    order = [
        name for name in values if name in ("perplexity", "loss_correlation", "perplexity_ratio", "kld", "kld/max")
    ]
    assert order == ["perplexity", "loss_correlation", "perplexity_ratio", "kld", "kld/max"]


def test_only_what_is_scored_counts() -> None:
    strided = windows_of(context=24, count=None, stride=7)
    model = hub()
    other = changed(model, 0.3)
    found, expected = divergence(other, strided, references(model, strided)), by_definition(model, other, strided)
    counted = np.arange(24) >= strided.first.numpy()[:, None]
    assert counted.sum() == 300 + 500 - 2
    values = found.values()
    assert values["kld"] == pytest.approx(expected["kld"][counted].mean(), rel=1e-5)
    assert values["loss"] == pytest.approx(expected["loss"][counted].mean(), rel=1e-6)
    scored = likelihood(other, strided)
    assert scored.loss == pytest.approx(values["loss"], rel=1e-6)
    assert scored.error_rate == pytest.approx(values["error_rate"], rel=1e-12)
    np.testing.assert_allclose(found.scored.losses, scored.losses, rtol=1e-6)
    np.testing.assert_allclose(found.unquantized.losses, likelihood(model, strided).losses, rtol=1e-6)
    np.testing.assert_allclose(found.scored.by_position(), scored.by_position(), rtol=1e-6)
    assert bits_per_byte(scored.loss, strided.bytes_per_token) == pytest.approx(values["bits_per_byte"], rel=1e-6)


def test_slices_and_positions_are_parts_of_the_whole() -> None:
    windows = windows_of(context=24, count=None, stride=7)
    model = hub()
    found = divergence(changed(model, 0.3), windows, references(model, windows))
    values, slices, positions = found.values(), found.by_slice(), found.by_position()
    assert list(slices) == ["chat", "code"]
    assert list(positions) == ["0-5", "6-11", "12-17", "18-23"]
    counted = np.arange(24) >= windows.first.numpy()[:, None]
    by_position = counted.sum(0).reshape(4, 6).sum(1)
    for name in ("kld", "loss", "flips", "error_rate"):
        means = [(part[name], weight) for part, weight in zip(slices.values(), (299, 499), strict=True)]
        assert sum(m * w for m, w in means) / 798 == pytest.approx(values[name], rel=1e-9)
        of_positions = [part[name] for part in positions.values()]
        assert np.average(of_positions, weights=by_position) == pytest.approx(values[name], rel=1e-9)
        assert values[f"{name}/worst_slice"] == max(slices["chat"][name], slices["code"][name])
    last = found.each["loss"][:, 18:][counted[:, 18:]]
    assert positions["18-23"]["loss"] == pytest.approx(last.mean(), rel=1e-12)
    scored = likelihood(model, windows)
    assert np.array_equal(np.isnan(scored.by_position()[:, 0]), windows.first.numpy() >= 6)
    ranges = np.array_split(scored.each, 4, axis=1)
    np.testing.assert_allclose(scored.by_position()[0], [part[0].mean() for part in ranges], rtol=1e-12)
    one = passages([Document("a", text(200, 3), "a")], encode, Cut(24, 4))
    assert not [name for name in divergence(model, one, references(model, one)).values() if "worst" in name]


def test_standard_errors_are_those_of_means_over_windows() -> None:
    model = hub()
    found = divergence(changed(model, 0.3), WINDOWS, references(model, WINDOWS))
    values, errors, means = found.values(), found.standard_errors(), found.per_window()
    for name in ("kld", "kld/reverse", "delta_p", "top1_changed", "flips"):
        assert errors[name] == pytest.approx(stats.sem(means[name]), rel=1e-9)
    paired = stats.sem(means["loss"] - means["reference_loss"])
    assert errors["loss_increase"] == pytest.approx(paired, rel=1e-9)
    assert errors["perplexity_ratio"] == pytest.approx(paired * values["perplexity_ratio"], rel=1e-9)
    squares = (found.each["delta_p"] ** 2).mean(1)
    assert errors["delta_p/rms"] == pytest.approx(stats.sem(squares) / (2 * squares.mean() ** 0.5), rel=1e-9)


def test_windows_weigh_as_much_in_the_error_as_they_have_predictions() -> None:
    """The jackknife over windows is another way to the error of a ratio of sums."""
    windows = windows_of(context=24, count=None, stride=5)
    model = hub()
    found = divergence(changed(model, 0.3), windows, references(model, windows))
    counts, sums = windows.counts, found.per_window()["kld"] * windows.counts
    left = (sums.sum() - sums) / (counts.sum() - counts)
    jackknife = np.sqrt((len(left) - 1) / len(left) * ((left - left.mean()) ** 2).sum())
    assert found.standard_errors()["kld"] == pytest.approx(jackknife, rel=0.02)


# Pieces


class Recorder(nn.Module):
    """A model that remembers how large its head's answers were."""

    def __init__(self, model: HubModel) -> None:
        super().__init__()
        self.model, self.largest = model, 0
        self.vocabulary = model.vocabulary

    def hidden(self, x: Tensor) -> Tensor:
        return self.model.hidden(x)

    def head(self, states: Tensor) -> Tensor:
        logits = self.model.head(states)
        self.largest = max(self.largest, logits.numel())
        return logits

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.hidden(x))


def test_logits_in_pieces_are_the_same_and_never_all_there(monkeypatch: pytest.MonkeyPatch) -> None:
    model = hub()
    other = Recorder(changed(model, 0.3))
    reference = references(model, WINDOWS)
    whole, scored = divergence(other, WINDOWS, reference), likelihood(other, WINDOWS)
    assert other.largest == WINDOWS.tokens[:, 1:].numel() * 97
    monkeypatch.setattr(pieces, "MOST", 97 * 10)
    monkeypatch.setattr("qbench.evaluate.likelihood.MOST", 97 * 10)
    other.largest = 0
    recorded = Recorder(model)
    kept = Reference(WINDOWS, reference.states, recorded.head, 97)
    apart, again = divergence(other, WINDOWS, kept), likelihood(other, WINDOWS)
    assert other.largest == recorded.largest == 97 * 10
    for name in COLUMNS:
        np.testing.assert_allclose(apart.each[name], whole.each[name], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(again.losses, scored.losses, rtol=1e-6)
    assert np.array_equal(again.errors, scored.errors)
    floor = numerical_floor(model, WINDOWS, likelihood(model, WINDOWS))
    assert np.abs(again.losses - scored.losses).max() <= floor


def test_batch_size_does_not_change_a_window_beyond_the_numerical_floor() -> None:
    for family in ("llama", "gpt2"):
        model = hub(family)
        plain = likelihood(model, WINDOWS)
        floor = numerical_floor(model, WINDOWS, plain)
        assert 0 < floor < 1e-4
        for batch in (1, 3, 5, 12):
            assert np.abs(likelihood(model, WINDOWS, batch).losses - plain.losses).max() <= floor
        quiet = divergence(model, WINDOWS, references(model, WINDOWS, batch=5), batch=3)
        assert quiet.values()["kld/max"] < 1e-9


def test_what_is_done_to_a_model_does_not_reach_its_reference() -> None:
    """Neither weights that change in place, tied ones too, nor a quantizer at the head's own output."""
    for family in ("llama-tied", "gemma2"):
        model = hub(family)
        untouched = deepcopy(model)
        reference = references(model, WINDOWS)
        place = Place(model.hf.get_output_embeddings(), "output")
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(0.9)
        with quantized({"logits": (place, build("int4/token"))}, {}) as engagement:
            found = divergence(model, WINDOWS, reference)
            expected = by_definition(untouched, model, WINDOWS)
        assert engagement.levels > 8
        np.testing.assert_allclose(found.each["kld"], expected["kld"], rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(found.each["reference_loss"], expected["reference_loss"], rtol=1e-5)


def test_a_model_without_states_is_compared_by_its_logits() -> None:
    class Plain(nn.Module):
        def __init__(self, model: HubModel) -> None:
            super().__init__()
            self.model = model

        def forward(self, x: Tensor) -> Tensor:
            return self.model(x)

    model = hub()
    other = changed(model, 0.3)
    plain = divergence(Plain(other), WINDOWS, references(Plain(model), WINDOWS))
    assert plain.values() == pytest.approx(divergence(other, WINDOWS, references(model, WINDOWS)).values(), rel=1e-4)


def test_what_cannot_be_compared_is_refused() -> None:
    model = hub()
    reference = references(model, WINDOWS)
    with pytest.raises(BadReference, match=r"12 windows of context 24 .*, found 11 windows of context 24"):
        divergence(model, windows_of(count=11), reference)

    class Wider(Recorder):
        def head(self, states: Tensor) -> Tensor:
            return nn.functional.pad(self.model.head(states), (0, 3))

    with pytest.raises(BadReference, match="the candidate knows 100 tokens, the reference 97"):
        divergence(Wider(model), WINDOWS, reference)
    with torch.no_grad():
        model.hf.get_output_embeddings().weight[3, 3] = torch.nan
    with pytest.raises(ValueError, match="288 of 288 predictions have logits that are not finite"):
        divergence(model, WINDOWS, reference)


# Other libraries' own losses on the same windows


def test_the_loss_of_a_window_is_what_transformers_computes_from_labels() -> None:
    model = hub()
    strided = windows_of(context=24, count=None, stride=7)
    scored = likelihood(model, strided)
    for tokens, first, loss in zip(strided.tokens, strided.first.tolist(), scored.losses, strict=True):
        labels = tokens.clone()
        labels[: first + 1] = -100  # the perplexity guide's way to leave predictions out
        with torch.no_grad():
            expected = model.hf(input_ids=tokens[None], labels=labels[None]).loss.item()
        assert loss == pytest.approx(expected, abs=1e-5)
    assert np.exp(scored.loss) == pytest.approx(_guide(model), abs=1e-4)


def _guide(model: HubModel) -> float:
    """The perplexity of `windows_of`'s documents: losses of all windows, times their predictions, over all of them."""
    total, count = 0.0, 0
    for name, n in {"chat": 300, "code": 500}.items():
        tokens = torch.tensor([encode(text(n, ("chat", "code").index(name)))])
        previous = 1
        for end in [*range(25, n, 7), n]:
            part = tokens[:, end - 25 : end]
            labels = part.clone()
            labels[:, : 25 - (end - previous)] = -100
            with torch.no_grad():
                total += model.hf(input_ids=part, labels=labels).loss.item() * (end - previous)
            count, previous = count + end - previous, end
    return float(np.exp(total / count))


@pytest.mark.filterwarnings("ignore")
def test_perplexity_is_lm_eval_s_rolling_likelihood(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(os.environ, "HF_HUB_OFFLINE", "1")
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    model = hub()
    tokenizer = random_models.tokenizer("llama")
    texts = [text(n, 10 + n) for n in (64, 333, 500)]
    # Left alone it would open a text with two BOS tokens: the tokenizer's, and its own prefix.
    once: dict[str, Any] = {"tokenizer": tokenizer, "add_bos_token": False}
    lm = HFLM(pretrained=model.hf, batch_size=4, max_length=32, device="cpu", backend="causal", **once)
    asked = [Instance("loglikelihood_rolling", {}, (each,), i) for i, each in enumerate(texts)]
    theirs = lm.loglikelihood_rolling(asked, disable_tqdm=True)

    def opened(text: str) -> list[int]:
        return [lm.prefix_token_id, *tokenizer.encode(text, add_special_tokens=False)]

    for each, expected in zip(texts, theirs, strict=True):
        windows = passages([Document("a", each, "a")], opened, Cut(32, stride=32))
        scored = likelihood(model, windows)
        assert windows.counts.sum() == len(each)
        assert scored.loss == pytest.approx(-expected / len(each), abs=1e-5)
        assert np.exp(scored.loss) == pytest.approx(np.exp(-expected / len(each)), abs=1e-4)


# What is printed


def test_the_block_says_what_it_is_of_and_keeps_the_known_order() -> None:
    model = hub()
    found = divergence(changed(model, 0.3), WINDOWS, references(model, WINDOWS))
    shown = block(found.values(), found.standard_errors(), found.setting())
    first, *rest = shown.splitlines()
    assert first == (
        "KL(unquantized || quantized), log-softmax in float32, sums in float64; 288 predictions in 12 windows of "
        "context 24; ± is one standard error over windows"
    )
    labels = [line.split(":")[0].strip() for line in rest if ":" in line]
    assert labels == [
        *("Mean PPL(Q)", "Mean PPL(base)", "Cor(ln(PPL(Q)), ln(PPL(base)))"),
        *("Mean ln(PPL(Q)/PPL(base))", "Mean PPL(Q)/PPL(base)"),
        *("Mean    KLD", "Maximum KLD", "99.9%   KLD", "99.0%   KLD", "95.0%   KLD", "Median  KLD", "10.0%   KLD"),
        *("5.0%   KLD", "1.0%   KLD", "Mean    KLD, reverse"),
        *("Mean    Δp", "RMS     Δp", "Same top p", "Flips"),
    ]
    lines = {line.split(":")[0].strip(): line for line in rest}
    base = float(lines["Mean PPL(base)"].split(":")[1].split("±")[0])
    assert base == pytest.approx(np.exp(found.unquantized.loss), rel=1e-5)
    kept = float(lines["Same top p"].split(":")[1].split("±")[0])
    assert kept == pytest.approx(100 * (1 - found.values()["top1_changed"]), abs=1e-3)
    assert [line for line in rest if "±" not in line and ":" in line] == [
        line for line in rest if "%   KLD" in line or line.startswith(("Maximum", "Median", "Cor"))
    ]
    assert "±" not in block(found.values(), {}, "")


def test_every_value_has_a_row_in_the_catalog() -> None:
    model = hub()
    values = divergence(changed(model, 0.3), WINDOWS, references(model, WINDOWS)).values()
    assert values.keys() <= METRICS.keys()
    of_slices = {name for name in METRICS if name.endswith("/worst_slice")}
    assert of_slices == {f"{name}/worst_slice" for name in BY_SLICE} <= values.keys()


def test_a_real_checkpoint_diverges_more_with_fewer_bits() -> None:
    place, story = babyllama(), real_text("tinyshakespeare.txt").read_text()[:6000]
    model, tokenizer = load(place), Tokenizer.from_file(str(place / "tokenizer.json"))
    encoded = tokenizer.encode(story, add_special_tokens=False)
    windows = passages(
        [Document("a", story, "a")], lambda _: encoded.ids, Cut(128, 8, bos=1), lambda _: encoded.offsets
    )
    assert windows.bytes_per_token == pytest.approx(1, abs=0.01)  # a token is a letter
    reference = references(model, windows)
    weights = {name: matrix for name, matrix in matrices(model).items() if name.startswith("blocks")}
    found: list[float] = []
    for bits in (8, 6, 4):
        quantizer = build(f"int{bits}/channel", channel_axis=0)
        with quantized({}, {name: (matrix, quantizer) for name, matrix in weights.items()}):
            found.append(divergence(model, windows, reference).values()["kld"])
    assert found[0] < 0.002
    assert all(low * 4 < high for low, high in pairwise(found))
    assert divergence(model, windows, reference).values()["kld"] < 1e-12
