"""A checkpoint that was quantized elsewhere is judged as it runs; experts that no token reaches are named."""

import json
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from judged import answered, whole
from libraries import library
from packing import state
from random_models import FAMILIES, MASKED, VISION, folder
from safetensors.torch import save_file
from torch import Tensor, nn

from qbench.data.documents import Document
from qbench.data.passages import Cut, Windows, passages

transformers = library("transformers")
TEXT = "The fox looked up at the grapes, and the grapes looked down at the fox. " * 8
JUDGED = "data: text:fables.txt\nevaluate: {windows: 6, context: 24}\nmodels:\n"
WEIGHTS = {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "channel"}
TOKENS = {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "token", "dynamic": True}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`llama`, and `w8a8`: its linear layers in 8 bits by channel, to be run with inputs in 8 bits by token."""
    place = tmp_path_factory.mktemp("shipped")
    (place / "fables.txt").write_text(TEXT)
    plain = folder("llama", place)
    low = place / "w8a8"
    transformers.AutoTokenizer.from_pretrained(plain).save_pretrained(low)
    tensors: dict[str, Tensor] = {}
    for name, tensor in state(plain).items():
        if name.endswith("_proj.weight"):
            scale = tensor.abs().amax(1, keepdim=True) / 127
            tensors[name] = (tensor / scale).round().clamp(-128, 127).to(torch.int8)
            tensors[name + "_scale"] = scale
        else:
            tensors[name] = tensor
    save_file(tensors, low / "model.safetensors", {"format": "pt"})
    said = json.loads((plain / "config.json").read_text())
    said["quantization_config"] = {
        "quant_method": "compressed-tensors",
        "format": "int-quantized",
        "config_groups": {"all": {"targets": ["Linear"], "weights": WEIGHTS, "input_activations": TOKENS}},
        "ignore": ["lm_head"],
    }
    (low / "config.json").write_text(json.dumps(said))
    return place


def as_run(model: nn.Module) -> nn.Module:
    """The same model with weights and inputs rounded in plain torch: weights to 127 steps on each side of zero, inputs
    so that their peak lies between two codes, where the library that made such checkpoints puts it: a tie, which falls
    either way with the last bit of a division. Here it falls as in torchao, which multiplies by the reciprocal.
    """

    def rounded(_: nn.Module, given: tuple[Tensor, ...]) -> tuple[Tensor]:
        (x,) = given
        scale = x.abs().amax(-1, keepdim=True) / 127.5
        return ((x * (1 / scale)).round().clamp(-128, 127) * scale,)

    low = deepcopy(model)
    for name, layer in low.named_modules():
        if name.endswith("_proj"):
            weight: Any = layer.weight
            scale = weight.data.abs().amax(1, keepdim=True) / 127
            weight.data = (weight.data / scale).round() * scale
            layer.register_forward_pre_hook(rounded)
    return low


@torch.no_grad()
def losses(model: nn.Module, tokens: Tensor) -> np.ndarray:
    logits = model(input_ids=tokens[:, :-1]).logits
    return nn.functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten(), reduction="none").numpy()


def windows(path: Path) -> Windows:
    """Cut with transformers' own tokenizer."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(path)
    document = Document("fables.txt", TEXT, "fables.txt")
    return passages([document], lambda text: tokenizer.encode(text, add_special_tokens=False), Cut(24, 6, bos=1))


def test_inputs_are_quantized_as_the_checkpoint_says(home: Path) -> None:
    plain = transformers.AutoModelForCausalLM.from_pretrained(home / "llama", dtype=torch.float32).eval()
    tokens = windows(home / "llama").tokens
    base, low = (float(losses(model, tokens).mean()) for model in (plain, as_run(plain)))
    assert abs(low - base) > 1e-5
    models = "  - {name: base, load: ./llama}\n  - {name: low, load: ./w8a8, reference: base}\n"
    found = answered(home, JUDGED + models, "loss")
    assert whole(found["base: loss, unquantized"]).values["loss"] == pytest.approx(base, abs=2e-6)
    values = whole(found["low: loss, unquantized"]).values
    assert values["loss"] == pytest.approx(low, abs=2e-6)
    assert values["loss_increase"] == pytest.approx(low - base, abs=3e-6)


def test_without_a_base_its_own_answers_are_those_it_ships_with(home: Path) -> None:
    """A treatment is compared with the model as it runs, whose inputs are quantized."""
    treatments = "treatments: [{name: embed, assign: {'weight:embed': int8/channel}}]\n"
    found = answered(home, JUDGED + "  - {name: low, load: ./w8a8}\n" + treatments, "loss")
    shipped, treated = (whole(found[f"low: loss, {name}"]).values for name in ("unquantized", "embed"))
    assert treated["loss"] - treated["loss_increase"] == pytest.approx(shipped["loss"], abs=1e-9)


def test_its_files_say_what_is_packed(home: Path) -> None:
    (answer,) = answered(home, JUDGED + "  - {name: low, load: ./w8a8}\n", "model").values()
    assert [r.values["parameters"] for r in answer.records if r.scope == "packed"] == [
        sum(t.numel() for name, t in state(home / "w8a8").items() if name.endswith("_proj.weight"))
    ]
    assert any("its inputs are int8.middle/token when it runs, and here" in said for said in answer.warnings)


@torch.no_grad()
def test_experts_that_no_token_reaches_are_named(tmp_path: Path) -> None:
    """Which ones, by the router's logits that transformers gives out."""
    path = folder("mixtral", tmp_path)
    (tmp_path / "fables.txt").write_text(TEXT)
    model = transformers.AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
    model.model.layers[0].mlp.gate.weight.zero_()
    model.save_pretrained(path)
    tokens = windows(path).tokens
    logits = model(input_ids=tokens[:, :-1], output_router_logits=True).router_logits
    reached = [set(one.softmax(-1).topk(2).indices.flatten().tolist()) for one in logits]
    missed = [", ".join(str(e) for e in range(model.config.num_local_experts) if e not in block) for block in reached]
    assert missed[0].count(",") == 1
    found = answered(tmp_path, JUDGED + f"  - {{name: mix, load: {path}}}\n", "loss")["mix: loss, unquantized"]
    assert found.status == "measured", found.error
    wanted = "; ".join(f"blocks.{i}: {experts}" for i, experts in enumerate(missed) if experts)
    assert found.warnings == (f"no token of these windows reaches experts of {wanted}",)


@pytest.mark.parametrize("family", [one for one in FAMILIES if one not in VISION])
def test_every_family_is_judged(tmp_path: Path, family: str) -> None:
    """Loss with its floor, a treatment of weights and of inputs, keys and values, the errors of a tensor."""
    folder(family, tmp_path)
    (tmp_path / "fables.txt").write_text(TEXT)
    text = f"""\
{JUDGED}  - {{name: one, load: ./{family}}}
tensors: [{{kind: activation, sites: linear, windows: 2, quantizers: [int8/token]}}]
treatments:
  - {{name: W4A8, assign: {{"weight:weights": int4/channel, "activation:linear": int8/token}}}}
  - {{scope: kv, quantizers: [int4/token]}}
"""
    found = answered(tmp_path, text)
    assert {name: one.error for name, one in found.items() if one.status not in ("measured", "unsupported")} == {}
    if family not in MASKED:  # BERT and its kin keep no cache, and say so
        assert [name for name, one in found.items() if one.status == "unsupported"] == []
    assert whole(found["one: loss, W4A8"]).values["kld"] > 0
    assert any("floor/numerical" in r.values for r in found["one: loss, unquantized"].records)
