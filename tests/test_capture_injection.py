"""Outliers that change nothing in float32: one scale for a tensor must suffer, one per channel must not."""

from collections.abc import Sequence
from typing import Any

import pytest
import real
import torch
import torch.nn.functional as F
import transformers
from outliers import inject
from random_models import build, inputs
from torch import Tensor
from torch.nn import Module

from qbench.capture.outliers import Outliers, outliers
from qbench.capture.places import places
from qbench.capture.read import activations
from qbench.capture.write import quantized
from qbench.quant.quantizer import build as quantizer

CHANNELS, FACTOR = [3, 17], 100.0


def peaked(family: str) -> tuple[Module, Tensor, Tensor]:
    """A random model that is sure of itself, and its own most likely tokens: any disturbance costs."""
    model: Any = build(family)
    x = inputs(family, batch=8)
    with torch.no_grad():
        model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight * 8)  # embeddings stay
        return model, x, model(x).logits.argmax(-1)


def trained() -> tuple[Module, Tensor, Tensor]:
    """The real checkpoint on real text, one token a character."""
    folder = real.babyllama()
    model = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    said = real.text("tinyshakespeare.txt").read_text()[:4096]
    tokens = torch.tensor(tokenizer(said, add_special_tokens=False)["input_ids"])[: 8 * 129].view(8, 129)
    return model, tokens[:, :-1], tokens[:, 1:]


def loss(model: Module, x: Tensor, y: Tensor, at: Sequence[str] = (), name: str = "") -> float:
    found = places(model)
    chosen = {site: (found[site], quantizer(name)) for site in at}
    with torch.no_grad(), quantized(chosen, {}) as engagement:
        value = F.cross_entropy(model(x).logits.flatten(0, 1), y.flatten()).item()
    assert engagement.warnings() == ()
    return value


@pytest.mark.parametrize("subject", ["llama", "gpt2", "babyllama"])
def test_outliers_hurt_a_scale_per_tensor_and_not_one_per_channel(subject: str) -> None:
    model, x, y = trained() if subject == "babyllama" else peaked(subject)
    sites = [name for name in places(model) if name.endswith(("attn.in", "mlp.in"))]
    formats = ("int4/tensor", "int4/channel")
    clean, *before = (loss(model, x, y), *(loss(model, x, y, sites, name) - loss(model, x, y) for name in formats))
    assert tuple(sites) == inject(model, CHANNELS, FACTOR)
    same, *after = (loss(model, x, y), *(loss(model, x, y, sites, name) - loss(model, x, y) for name in formats))
    assert same == pytest.approx(clean, abs=1e-4)
    assert after[0] > before[0] + 0.5
    assert after[0] > 2 * before[0]
    assert after[1] == pytest.approx(before[1], rel=0.05, abs=1e-3)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_the_outlier_map_names_the_channels(family: str) -> None:
    model, x = build(family), inputs(family)
    sites = inject(model, CHANNELS, FACTOR)
    found = places(model)
    maps: dict[str, Outliers] = {}
    activations(model, {s: found[s] for s in sites}, [x], lambda site, t: maps.update({site: outliers(t)}))
    for one in maps.values():
        hot = one.channels(3)
        assert {channel.index for channel in hot[:2]} == set(CHANNELS)
        assert hot[1].energy > 100 * hot[2].energy
