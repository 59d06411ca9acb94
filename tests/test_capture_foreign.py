"""Hooks on pretrained models: nothing changes while nobody looks, and what is put in really is what attention reads."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import transformers
from random_models import FAMILIES, MASKED, VISION, build, inputs
from torch import Tensor, nn

from qbench.capture import read
from qbench.capture.place import Place
from qbench.capture.places import matrices, places, select
from qbench.capture.write import quantized
from qbench.models.hub import HubModel
from qbench.quant.quantizer import build as quantizer


def logits(model: Any, x: Tensor, **settings: Any) -> Tensor:
    with torch.no_grad():
        return model(x, **settings).logits


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("family", [f for f in FAMILIES if f != "gemma2"])  # whose soft-capping is eager only
def test_logits_stay_the_same_to_the_bit(family: str, attention: str) -> None:
    model, x = build(family), inputs(family)
    model.set_attn_implementation(attention)
    before = logits(model, x)
    found = places(model)
    assert torch.equal(logits(model, x), before)
    with read.watching(found, lambda _name, _x: None):
        torch.testing.assert_close(logits(model, x), before)
    assert torch.equal(logits(model, x), before)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("family", ["gpt2", "llama", "mistral", "bert"])
def test_masks_stay_those_of_the_implementation(family: str, attention: str) -> None:
    model, x = build(family), inputs(family)
    model.set_attn_implementation(attention)
    mask = torch.ones_like(x)
    mask[0, :5] = 0
    before = logits(model, x, attention_mask=mask)
    places(model)
    assert torch.equal(logits(model, x, attention_mask=mask), before)
    assert not torch.allclose(logits(model, x), before)


def test_gpt2_may_reorder_and_upcast_its_scores() -> None:
    config = FAMILIES["gpt2"]()
    config.reorder_and_upcast_attn = True
    model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    model.transformer.h[1].attn.scaling *= 3
    before = logits(model, inputs("gpt2"))
    found = places(model)
    assert torch.equal(logits(model, inputs("gpt2")), before)
    with found["blocks.1.attn.v"].attach(torch.zeros_like):
        assert not torch.allclose(logits(model, inputs("gpt2")), before)


def test_places_are_made_once_and_follow_another_implementation() -> None:
    model, x = build("llama"), inputs("llama")
    first, second = places(model), places(model)
    assert all(first[name].module is second[name].module for name in first)
    model.set_attn_implementation("eager")
    found = read_all(model, x, places(model))
    assert "blocks.0.attn.k" in found


def read_all(model: Any, x: Tensor, at: Any) -> dict[str, Tensor]:
    seen: dict[str, Tensor] = {}
    read.activations(model, at, [x], lambda name, t: seen.update({name: t.clone()}))
    return seen


def test_attention_of_another_interface_is_refused() -> None:
    model = build("llama")
    model.config._attn_implementation_internal = "flash_attention_2"
    with pytest.raises(
        ValueError, match=r"cannot be seen in attention 'flash_attention_2'; load the model with .*sdpa"
    ):
        places(model)
    assert matrices(model)


@pytest.mark.parametrize("family", ["llama", "bert", "vit"])
def test_a_saved_model_is_as_it_was(family: str, tmp_path: Path) -> None:
    model, x = build(family), inputs(family)
    keys, before = list(model.state_dict()), logits(model, x)
    places(model)
    assert list(model.state_dict()) == keys
    model.save_pretrained(tmp_path)
    assert "qbench" not in json.dumps(json.loads((tmp_path / "config.json").read_text()))
    again = type(model).from_pretrained(tmp_path).eval()
    assert again.config._attn_implementation == "sdpa"
    assert torch.equal(logits(again, x), before)


def test_a_copy_has_places_of_its_own() -> None:
    model, x = build("llama"), inputs("llama")
    before, found = logits(model, x), places(model)
    other = copy.deepcopy(model)
    with found["blocks.0.attn.q"].attach(torch.zeros_like):
        assert torch.equal(logits(other, x), before)
        assert not torch.equal(logits(model, x), before)
    with places(other)["blocks.0.attn.q"].attach(torch.zeros_like):
        assert torch.equal(logits(model, x), before)
        assert not torch.equal(logits(other, x), before)


def test_a_model_that_shares_the_config_needs_no_taps() -> None:
    model, x = build("llama"), inputs("llama")
    places(model)
    plain = build("llama")
    plain.config._attn_implementation_internal = model.config._attn_implementation
    assert torch.equal(logits(plain, x), logits(model, x))


def test_generation_reads_the_whole_cache_and_says_the_same() -> None:
    model, x = build("llama"), inputs("llama", batch=1)
    settings = {"max_new_tokens": 4, "do_sample": False, "attention_mask": torch.ones_like(x), "pad_token_id": 0}
    said = model.generate(x, **settings)
    lengths: list[int] = []
    with places(model)["blocks.1.attn.k"].attach(lambda k: lengths.append(k.shape[1])):
        assert torch.equal(model.generate(x, **settings), said)
    assert lengths == [12, 13, 14, 15]


# Llama's norms compute in float32, whatever the model is: a larger step, a coarser slope.
@pytest.mark.parametrize(
    ("family", "step", "close"),
    [(f, 1e-6, 1e-5) for f in ("gpt2", "opt", "phi", "bert")]
    + [(f, 1e-4, 2e-2) for f in ("llama", "gemma2", "qwen2_moe")],
)
def test_gradients_are_slopes_of_the_loss(family: str, step: float, close: float) -> None:
    """Against central differences along a random direction, at every place, in float64."""
    model: Any = build(family).double()
    model.config._experts_implementation = "eager"  # the only one that knows float64
    x, found = inputs(family), places(model)
    slope: dict[str, Tensor] = {}

    def loss(one: nn.Module, tokens: Tensor) -> Tensor:
        return F.cross_entropy(one(tokens).logits.flatten(0, 1), tokens.flatten())

    read.gradients(model, found, [x], loss, lambda name, g: slope.update({name: g.clone()}))
    generator = torch.Generator().manual_seed(1)
    for name, place in found.items():
        if name.endswith("router"):
            continue  # its probabilities are float32, whatever the model is
        direction = torch.randn(slope[name].shape, generator=generator, dtype=torch.float64)
        ends: list[float] = []
        for sign in (-step, step):
            with torch.no_grad(), place.attach(lambda t, d=sign * direction: t + d):
                ends.append(loss(model, x).item())
        found_slope = (ends[1] - ends[0]) / (2 * step)
        assert found_slope == pytest.approx((slope[name] * direction).sum().item(), rel=close, abs=close / 100), name


@pytest.mark.parametrize("family", ["llama", "gemma2", "phi"])
def test_attention_reads_the_quantized_cache(family: str) -> None:
    """Keys by channel and values by token, heads side by side: recomputed from the unquantized ones."""
    model, x = build(family), inputs(family)
    found = places(model)
    plain = read_all(model, x, found)
    by_channel, by_token = quantizer("int4/channel"), quantizer("int4/token")
    cache = {"blocks.0.attn.k": by_channel, "blocks.0.attn.v": by_token}
    with quantized({name: (found[name], q) for name, q in cache.items()}, {}) as engagement:
        seen = read_all(model, x, {name: found[name] for name in ("blocks.0.attn.context", "blocks.1.attn.v")})
    assert engagement.warnings() == ()
    size = plain["blocks.0.attn.q"].shape[-1] // 4
    heads = [plain["blocks.0.attn.q"], *(q.roundtrip(plain[name]) for name, q in cache.items())]
    query, key, value = (t.unflatten(-1, (-1, size)).transpose(1, 2) for t in heads)
    key, value = (t.repeat_interleave(4 // t.shape[1], 1) for t in (key, value))
    scores = query @ key.mT * size**-0.5
    if family == "gemma2":
        scores = 50 * (scores / 50).tanh()
    attended = scores.masked_fill(torch.ones(12, 12).triu(1).bool(), -torch.inf).softmax(-1) @ value
    torch.testing.assert_close(seen["blocks.0.attn.context"], attended.transpose(1, 2).flatten(2), rtol=1e-4, atol=1e-5)
    assert not torch.allclose(seen["blocks.1.attn.v"], plain["blocks.1.attn.v"])


@pytest.mark.parametrize("family", FAMILIES)
def test_quantizers_engage_everywhere_and_leave_no_trace(family: str) -> None:
    model, x = build(family), inputs(family)
    before, at, weights = logits(model, x), places(model), matrices(model)
    every, rows = quantizer("int4/token"), quantizer("int4/channel", channel_axis=0)
    names = select(model, "activation", "linear")
    with quantized(
        {name: (at[name], every) for name in names}, {name: (m, rows) for name, m in weights.items()}
    ) as engagement:
        after = logits(model, x)
    assert engagement.warnings() == ()
    assert len(engagement.places) == len(names) + len(weights)
    assert not torch.allclose(after, before, atol=1e-3)
    assert torch.equal(logits(model, x), before)


@pytest.mark.parametrize("family", ["llama", "bert", "vit"])
def test_a_wrapped_model_has_the_places_of_what_it_wraps(family: str) -> None:
    task = "image-classification" if family in VISION else "masked-lm" if family in MASKED else "causal-lm"
    hub, x = HubModel(build(family), task), inputs(family)
    before = logits(build(family), x)
    found: dict[str, Place] = dict(places(hub))
    assert list(found) == list(places(hub.hf))
    assert list(matrices(hub)) == list(matrices(hub.hf))
    with torch.no_grad():
        assert torch.equal(hub(x), before)
        torch.testing.assert_close(hub.head(hub.hidden(x)), before)
    seen = read_all(hub, x, found)
    assert list(seen) == list(found)
