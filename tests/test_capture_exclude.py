"""Exclude lists, by giving them to the tools they are for and looking at what was left alone."""

import re
from pathlib import Path

import pytest
import torch
import yaml
from torch import Tensor, nn

from qbench.capture.exclude import SYNTAXES, Exclusion, Linears, bitsandbytes, exclusion, llm_compressor, torchao
from qbench.evaluate.units import linears, units
from qbench.models.hub import HubModel

transformers = pytest.importorskip("transformers")
SIZES = {"vocab_size": 64, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2,
         "max_position_embeddings": 32, "intermediate_size": 128}  # fmt: skip


def llama() -> nn.Module:
    return made("Llama", **SIZES, num_key_value_heads=1)


def phi3() -> nn.Module:
    return made("Phi3", **SIZES, pad_token_id=0)  # whose checkpoints have qkv_proj and gate_up_proj


def gpt2() -> nn.Module:
    return made("GPT2", vocab_size=64, n_embd=64, n_layer=2, n_head=2, n_positions=32)


def made(family: str, **sizes: int) -> nn.Module:
    torch.manual_seed(0)
    config = getattr(transformers, f"{family}Config")(**sizes)
    return transformers.AutoModelForCausalLM.from_config(config).eval()


def chosen(hf: nn.Module, *names: str) -> Exclusion:
    model = HubModel(hf, "causal-lm")
    by_name = {unit.name: unit for unit in units(model, None)}
    return exclusion([m for name in names for m in by_name[name].modules], linears(model))


def test_names_are_those_of_the_checkpoint_and_the_head_is_among_them() -> None:
    e = chosen(llama(), "blocks.1.mlp.in", "blocks.0.attn.in")
    layer = "model.layers.{}".format
    assert e.kept == (
        *(f"{layer(0)}.self_attn.{x}_proj" for x in "qkv"),
        *(f"{layer(1)}.mlp.{x}_proj" for x in ("gate", "up")),
        "lm_head",
    )
    assert len(e.linears.inside) == 14
    stored = {name.removesuffix(".weight") for name in llama().state_dict()}
    assert set(e.linears.inside) < stored
    assert chosen(phi3(), "blocks.0.attn.in", "blocks.0.mlp.in").kept == (
        f"{layer(0)}.self_attn.qkv_proj",
        f"{layer(0)}.mlp.gate_up_proj",
        "lm_head",
    )


@pytest.mark.parametrize(
    ("one", "all_of_it"),
    [
        ("a.q_proj", ["a.q_proj", "a.k_proj", "a.v_proj"]),
        ("a.up_proj", ["a.gate_proj", "a.up_proj"]),
        ("a.o_proj", ["a.o_proj"]),
        ("value", ["query", "key", "value"]),
        ("a.qkv_proj", ["a.qkv_proj"]),
    ],
)
def test_what_is_fused_on_loading_is_left_alone_together(one: str, all_of_it: list[str]) -> None:
    leaves = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "qkv_proj")
    inside = (*(f"{parent}.{leaf}" for parent in "ab" for leaf in leaves), "query", "key", "value")
    assert list(exclusion([one], Linears(inside, (), ())).kept) == all_of_it


def quantized_by_torchao(hf: nn.Module, code: str) -> set[str]:
    from torchao.quantization import Int8WeightOnlyConfig

    exec(code, {"model": hf, "config": Int8WeightOnlyConfig()})
    weights = {name: m.weight for name, m in hf.named_modules() if getattr(m, "weight", None) is not None}
    return {name for name, weight in weights.items() if type(weight.data) is not Tensor}


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
@pytest.mark.parametrize("way", ["filter", "by name"])
@pytest.mark.parametrize("make", [llama, phi3, gpt2], ids=["llama", "phi3", "gpt2"])
def test_torchao_leaves_exactly_these_alone(make: object, way: str) -> None:
    pytest.importorskip("torchao")
    e = chosen(make(), "blocks.1.attn.in", "blocks.1.attn.context", "blocks.0.mlp.hidden")
    code = torchao(e)
    if way == "by name":
        code = re.sub(r"^quantize_\(model, config.*\n# (?=quantize_)", "", code, flags=re.MULTILINE)
        assert "filter_fn=lambda" not in code
    assert quantized_by_torchao(make(), code) == set(e.linears.inside) - set(e.linears.transposed) - set(e.kept)
    assert len(e.kept) > 3
    assert ("# torchao leaves" in code) == (make is gpt2)  # whose layers are no nn.Linear


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("make", [llama, phi3, gpt2], ids=["llama", "phi3", "gpt2"])
@pytest.mark.parametrize("load", ["load_in_8bit", "load_in_4bit"])
def test_bitsandbytes_leaves_exactly_these_alone(make: object, load: str, tmp_path: Path) -> None:
    bnb = pytest.importorskip("bitsandbytes")
    make().save_pretrained(tmp_path)
    e = chosen(make(), "blocks.1.attn.in", "blocks.0.mlp.hidden")
    *setup, call = bitsandbytes(e).replace("load_in_8bit", load).splitlines()
    names: dict[str, object] = {}
    exec("\n".join(setup), names)
    config = eval(call, names)
    hf = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, quantization_config=config, dtype=torch.float32)
    small = (bnb.nn.Linear8bitLt, bnb.nn.Linear4bit)
    replaced = {name for name, module in hf.named_modules() if isinstance(module, small)}
    assert replaced == set(e.linears.inside) - set(e.kept)
    assert "lm_head" not in replaced
    assert len(replaced) >= 5


def test_llm_compressor_reads_names_and_patterns() -> None:
    """Its rule: a name is that of the module, or of its class; after `re:` a pattern that the name starts with."""
    e = chosen(llama(), "blocks.1.mlp.in")
    ignored = yaml.safe_load(llm_compressor(e))["ignore"]
    assert ignored == list(e.kept)
    stack = exclusion(["model.layers.1.mlp.experts"], Linears(("model.layers.1.mlp.gate",), ("lm_head",), ()))
    (head, pattern) = yaml.safe_load(llm_compressor(stack))["ignore"]
    assert head == "lm_head"
    assert re.match(pattern.removeprefix("re:"), "model.layers.1.mlp.experts.0.gate_proj")
    for other in (
        "model.layers.1.mlp.experts_shared",
        "model.layers.11.mlp.experts.0.up",
        "xmodel.layers.1.mlp.experts",
    ):
        assert not re.match(pattern.removeprefix("re:"), other)
    assert all("listed: model.layers.1.mlp.experts" in write(stack) for write in (torchao, bitsandbytes))


def test_every_syntax_names_every_layer() -> None:
    e = chosen(gpt2(), "blocks.0.attn.in", "blocks.1.mlp.in")
    assert e.kept == ("transformer.h.0.attn.c_attn", "transformer.h.1.mlp.c_fc", "lm_head")
    for write in SYNTAXES.values():
        assert all(f'"{name}"' in write(e) for name in e.kept)
