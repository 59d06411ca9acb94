"""Every family's named places against plain tensor algebra on what `transformers` itself computes and stores."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import random_models
import torch
import transformers
from random_models import CONTEXT, LAYERS, WIDTH, inputs
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers.activations import ACT2FN

from qbench.capture.experts import unreached_by
from qbench.capture.families import layout, linear_groups, site_names, weight_site
from qbench.capture.place import Matrix, Place
from qbench.capture.places import matrices, names, places, select, unnamed
from qbench.capture.read import watching
from qbench.names import UnknownName

_GROUPED = {
    "vocab_size": random_models.VOCABULARY,
    "hidden_size": WIDTH,
    "intermediate_size": 48,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": CONTEXT,
    "pad_token_id": None,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_MOE = {**_GROUPED, "num_experts": 4, "num_experts_per_tok": 2}


def _changed(family: str, **settings: object) -> transformers.PreTrainedConfig:
    config = random_models.FAMILIES[family]()
    for name, value in settings.items():
        setattr(config, name, value)
    return config


# What else a row of the table has to tell apart.
VARIANTS = {
    "sequential neox": lambda: _changed("gpt_neox", use_parallel_residual=False),
    "post-norm opt": lambda: _changed("opt", do_layer_norm_before=False, word_embed_proj_dim=24),
    "smollm3": lambda: transformers.SmolLM3Config(**_GROUPED),
    "olmo": lambda: transformers.OlmoConfig(**_GROUPED),
    "qwen3_moe": lambda: transformers.Qwen3MoeConfig(**_MOE, head_dim=8, moe_intermediate_size=16, norm_topk_prob=True),
    "olmoe": lambda: transformers.OlmoeConfig(**_MOE),
    "every second": lambda: _changed("qwen2_moe", decoder_sparse_step=2),
    "xlm-roberta": lambda: transformers.XLMRobertaConfig(
        **{**_GROUPED, "pad_token_id": 0, "max_position_embeddings": CONTEXT + 1}
    ),
    "gated dinov2": lambda: _changed("dinov2", use_swiglu_ffn=True),
}
ALL = (*random_models.FAMILIES, *VARIANTS)
ENCODERS = (*random_models.MASKED, *random_models.VISION, "xlm-roberta", "gated dinov2")
FUSED = ("attn.q", "attn.k", "attn.v")


def _with(site: str) -> list[str]:
    known = {
        family: site_names(config().to_dict()) for family, config in {**random_models.FAMILIES, **VARIANTS}.items()
    }
    return [family for family, told in known.items() if told is not None and site in told.sites]


@dataclass(frozen=True, eq=False)
class Subject:
    """A random model, and every tensor that flowed through its places in one pass."""

    family: str
    model: Any
    x: Tensor
    order: tuple[str, ...]
    seen: Mapping[str, Tensor]
    places: Mapping[str, Place]
    matrices: Mapping[str, Matrix]

    @property
    def config(self) -> dict[str, Any]:
        return self.model.config.to_dict()

    def logits(self) -> Tensor:
        with torch.no_grad():
            return self.model(self.x).logits

    def blocks(self) -> Iterator[tuple[int, dict[str, Tensor]]]:
        """The tensors of each block by their names inside it, with `in`."""
        known = site_names(self.config)
        assert known is not None
        for block in range(LAYERS):
            prefix = f"blocks.{block}."
            inside = {name.removeprefix(prefix): t for name, t in self.seen.items() if name.startswith(prefix)}
            yield block, {"in": self.seen[known.canonical(f"{prefix}in")], **inside}


@cache
def subject(family: str) -> Subject:
    with (
        patch.dict(random_models.FAMILIES, VARIANTS),  # pyright: ignore[reportArgumentType]
        patch.object(random_models, "VISION", (*random_models.VISION, "gated dinov2")),
        patch.object(random_models, "MASKED", (*random_models.MASKED, "xlm-roberta")),
    ):
        model, x = random_models.build(family), inputs(family)
    found, seen, order = places(model), dict[str, Tensor](), list[str]()
    with torch.no_grad(), watching(found, lambda name, t: (seen.update({name: t.clone()}), order.append(name))[0]):
        model(x)
    return Subject(family, model, x, tuple(order), seen, found, matrices(model))


every_family = pytest.mark.parametrize("family", ALL)


@every_family
def test_names_told_from_the_config_are_the_places_of_the_live_model_in_forward_order(
    family: str, tmp_path: Path
) -> None:
    live = subject(family)
    live.model.config.save_pretrained(tmp_path)
    told = site_names(json.loads((tmp_path / "config.json").read_text()))
    assert told is not None
    assert told.sites == tuple(live.places) == live.order
    assert told.weights == tuple(live.matrices)
    assert told.layers == LAYERS
    assert ("blocks.0.mid" in told.sites) == (family not in ("gpt_neox", "phi"))  # attention beside the MLP
    assert {"embed", "final", "logits", "blocks.1.attn.k", "blocks.1.mlp.in", "blocks.1.out"} <= set(told.sites)


@every_family
def test_block_outputs_are_the_hidden_states_that_the_library_reports(family: str) -> None:
    live = subject(family)
    with torch.no_grad():
        states = live.model(live.x, output_hidden_states=True).hidden_states
    torch.testing.assert_close(live.seen["embed"], states[0], rtol=0, atol=0)
    torch.testing.assert_close(live.seen["blocks.0.out"], states[1], rtol=0, atol=0)


@every_family
def test_blocks_add_up(family: str) -> None:
    """The stream is what entered plus what the branches gave; a norm may stand behind the sum."""
    for _, t in subject(family).blocks():
        attention, mlp = (
            next(t[f"{half}.{end}"] for end in ("scaled", "normed", "out") if f"{half}.{end}" in t)
            for half in ("attn", "mlp")
        )
        attended = t.get("attn.sum", t.get("mid", t["in"] + attention))
        torch.testing.assert_close(attended, t["in"] + attention, rtol=1e-5, atol=1e-5)
        summed = t.get("mlp.sum", t["out"])
        stream = t.get("mid", attended)
        torch.testing.assert_close(summed, stream + mlp.view_as(stream), rtol=1e-5, atol=1e-5)


@every_family
def test_context_is_attention_over_the_queries_keys_and_values_seen(family: str) -> None:
    live = subject(family)
    for block, t in live.blocks():
        attention = next(m for n, m in live.model.named_modules() if hasattr(m, "qbench_taps") and f".{block}." in n)
        size = getattr(attention, "head_dim", getattr(attention, "head_size", None)) or attention.attention_head_size
        query, key, value = (t[name].double().unflatten(-1, (-1, size)).transpose(1, 2) for name in FUSED)
        groups = query.shape[1] // key.shape[1]
        assert key.shape[1] == (query.shape[1] if family in ENCODERS else live.config.get("num_key_value_heads", 4))
        key, value = (x.repeat_interleave(groups, 1) for x in (key, value))
        scores = query @ key.mT * (1.0 if "opt" in live.family else attention.scaling)
        if cap := live.config.get("attn_logit_softcapping"):
            scores = cap * (scores / cap).tanh()
        if attention.is_causal:
            scores = scores.masked_fill(torch.ones_like(scores[0, 0]).triu(1).bool(), -torch.inf)
        expected = (scores.softmax(-1) @ value).transpose(1, 2).flatten(2)
        torch.testing.assert_close(t["attn.context"].double(), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("family", [family for family in ALL if family not in ENCODERS])
def test_keys_and_values_are_those_of_the_cache(family: str) -> None:
    live = subject(family)
    with torch.no_grad():
        layers = live.model(live.x, use_cache=True).past_key_values.layers
    for block, t in live.blocks():
        for name, kept in (("attn.k", layers[block].keys), ("attn.v", layers[block].values)):
            assert torch.equal(t[name], kept.transpose(1, 2).flatten(2))


@pytest.mark.parametrize("family", ENCODERS)
def test_queries_and_keys_that_nothing_rotates_are_projections(family: str) -> None:
    for name in FUSED:
        _is_affine(subject(family), 1, name, "attn.in", name)


def _is_affine(live: Subject, block: int, output: str, read: str, matrix: str) -> None:
    """What is left of `output` beside matrix times `read` is one bias for all tokens."""
    t = dict(live.blocks())[block]
    rest = t[output].flatten(0, -2) - t[read].flatten(0, -2) @ live.matrices[f"blocks.{block}.{matrix}"].read().T
    assert rest.std(0).max() < 1e-5, (output, matrix)


@every_family
def test_each_matrix_turns_the_place_that_it_reads_into_the_place_that_it_names(family: str) -> None:
    live = subject(family)
    for block, groups in enumerate(linear_groups(live.config)):
        for weights, site in groups:
            for name in (weight.removeprefix(f"blocks.{block}.") for weight in weights):
                if "experts" in name or name == "attn.qkv":
                    continue  # each has a test of its own
                # Queries and keys change on the way to attention: norm, rotation, scale.
                output = "attn.v" if name in FUSED else name
                _is_affine(live, block, output, site.removeprefix(f"blocks.{block}."), output)
                weight = live.matrices[f"blocks.{block}.{name}"].read()
                assert weight.shape[-1] == live.seen[site].shape[-1]


@pytest.mark.parametrize("family", ["gpt2", "gpt_neox", "phi3"])
def test_one_matrix_makes_queries_keys_and_values(family: str) -> None:
    """Every value channel, and with no rotation every query and key channel, is one of its outputs."""
    live = subject(family)
    for block, t in live.blocks():
        made = t["attn.in"].flatten(0, 1) @ live.matrices[f"blocks.{block}.attn.qkv"].read().T
        for name in FUSED if family == "gpt2" else ("attn.v",):
            distance = torch.cdist(_centred(t[name].flatten(0, 1)).T, _centred(made).T)
            assert distance.min(1).values.max() < 1e-3, name


def _centred(x: Tensor) -> Tensor:
    return (x - x.mean(0)).double()


@every_family
def test_hidden_is_the_activation_of_what_comes_before(family: str) -> None:
    live = subject(family)
    config = live.config
    key = next(k for k in ("hidden_activation", "activation_function", "hidden_act") if config.get(k))
    act = ACT2FN["silu" if family == "gated dinov2" else config[key]]
    for _, t in live.blocks():
        for half in ("mlp", "mlp.shared"):
            if f"{half}.hidden" not in t:
                continue
            first, second = t[f"{half}.gate_up"].chunk(2, -1) if f"{half}.gate_up" in t else (t[f"{half}.pre"], None)
            second = t.get(f"{half}.up", second)
            expected = act(first) if second is None else act(first) * second
            torch.testing.assert_close(t[f"{half}.hidden"], expected)


@pytest.mark.parametrize("family", ["mixtral", "qwen2_moe", "qwen3_moe", "olmoe", "every second"])
def test_experts_are_slices_of_the_stacks(family: str) -> None:
    live = subject(family)
    plan = layout(live.config)
    assert plan is not None
    for block in plan.sparse:
        x, weight = live.seen[f"blocks.{block}.mlp.in"].flatten(0, 1), _weights(live, f"blocks.{block}.mlp.")
        router = x @ weight["router"].T
        torch.testing.assert_close(live.seen[f"blocks.{block}.mlp.router"], router)
        top, chosen = router.softmax(-1).topk(2)
        if live.config.get("norm_topk_prob", True):
            top = top / top.sum(-1, keepdim=True)
        expected = torch.zeros_like(x)
        for token in range(len(x)):
            for share, expert in zip(top[token], chosen[token].tolist(), strict=True):
                gate, up = (weight[f"experts.{expert}.gate_up"] @ x[token]).chunk(2)
                expected[token] += share * (weight[f"experts.{expert}.out"] @ (nn.functional.silu(gate) * up))
        if "shared.out" in weight:
            inside = nn.functional.silu(x @ weight["shared.pre"].T) * (x @ weight["shared.up"].T)
            expected += (x @ weight["shared.gate"].T).sigmoid() * (inside @ weight["shared.out"].T)
        torch.testing.assert_close(live.seen[f"blocks.{block}.mlp.out"].flatten(0, 1), expected, rtol=1e-4, atol=1e-4)


def _weights(live: Subject, prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): m.read() for name, m in live.matrices.items() if name.startswith(prefix)}


@every_family
def test_logits_are_what_the_head_makes_of_final(family: str) -> None:
    live = subject(family)
    head = live.matrices.get("logits", live.matrices.get("embed"))
    assert head is not None
    final, logits = live.seen["final"], live.seen["logits"]
    if logits.ndim == 2:
        final = final[:, 0] if "dino" not in family else torch.cat([final[:, 0], final[:, 1:].mean(1)], 1)
    rest = (logits - final @ head.read().T).flatten(0, -2)
    assert rest.std(0).max() < 1e-5
    if cap := live.config.get("final_logit_softcapping"):
        logits = cap * (logits / cap).tanh()
    torch.testing.assert_close(logits, live.logits())


@every_family
def test_what_is_put_in_a_place_reaches_the_logits(family: str) -> None:
    live = subject(family)
    before = live.logits()
    for name, place in live.places.items():
        with place.attach(torch.clone):
            torch.testing.assert_close(live.logits(), before, rtol=1e-4, atol=1e-4, msg=name)
        # Not one factor for all channels, which a norm would undo.
        with place.attach(lambda x: x * torch.linspace(0.5, 1.5, x.shape[-1])):
            assert not torch.allclose(live.logits(), before), name
    assert torch.equal(live.logits(), before)


@pytest.mark.parametrize("family", _with("blocks.0.mid"))
def test_another_sum_reaches_both_the_stream_and_the_branch(family: str) -> None:
    live = subject(family)
    other = torch.randn_like(live.seen["blocks.0.mid"])
    seen: dict[str, Tensor] = {}
    watched = {
        name: place for name, place in live.places.items() if name.startswith("blocks.0.") and ".attn" not in name
    }
    with torch.no_grad(), live.places["blocks.0.mid"].attach(lambda _: other), watching(watched, seen.__setitem__):
        live.model(live.x)
    torch.testing.assert_close(seen["blocks.0.mid"], other, rtol=1e-5, atol=1e-5)
    branch = next(seen[f"blocks.0.mlp.{end}"] for end in ("scaled", "normed", "out") if f"blocks.0.mlp.{end}" in seen)
    summed = seen.get("blocks.0.mlp.sum", seen["blocks.0.out"])
    torch.testing.assert_close(summed, other + branch.view_as(other), rtol=1e-5, atol=1e-5)
    norm = live.seen["blocks.0.mlp.in"]
    assert not torch.allclose(seen["blocks.0.mlp.in"], norm)


@every_family
def test_what_is_written_into_a_matrix_reaches_the_logits(family: str) -> None:
    live = subject(family)
    before = live.logits()
    for name, matrix in live.matrices.items():
        original = matrix.read().clone()
        matrix.write(original.flip(0) * 1.5 + 0.01)
        assert not torch.allclose(live.logits(), before), name
        matrix.write(original)
    assert torch.equal(live.logits(), before)


@every_family
def test_checkpoint_tensors_are_told_by_the_same_names(family: str, tmp_path: Path) -> None:
    """Each stored matrix has one name; experts are stored one by one, gate and up apart."""
    live = subject(family)
    live.model.save_pretrained(tmp_path)
    stored = load_file(tmp_path / "model.safetensors")
    told = {site: tensor for name, tensor in stored.items() if (site := weight_site(name, live.config))}
    assert len(told) == sum(weight_site(name, live.config) is not None for name in stored)
    for block in range(LAYERS):
        for expert in range(4):
            one = f"blocks.{block}.mlp.experts.{expert}"
            if f"{one}.pre" in told:
                told[f"{one}.gate_up"] = torch.cat([told.pop(f"{one}.pre"), told.pop(f"{one}.up")])
        if f"blocks.{block}.mlp.up" in live.matrices and f"blocks.{block}.mlp.gate_up" in told:  # DINOv2
            fused = told.pop(f"blocks.{block}.mlp.gate_up")
            told[f"blocks.{block}.mlp.pre"], told[f"blocks.{block}.mlp.up"] = fused.chunk(2)
    assert set(told) == set(live.matrices)
    plan = layout(live.config)
    assert plan is not None
    for name, matrix in live.matrices.items():
        kept = told[name].T if plan.transposed and name.startswith("blocks.") else told[name]
        assert torch.equal(kept, matrix.read()), name


@pytest.mark.parametrize(
    ("parameter", "config", "site"),
    [
        ("h.7.attn.c_attn.weight", {"model_type": "gpt2", "n_layer": 12}, "blocks.7.attn.qkv"),
        ("h.7.attn.c_attn.bias", {"model_type": "gpt2", "n_layer": 12}, None),
        ("h.12.attn.c_attn.weight", {"model_type": "gpt2", "n_layer": 12}, None),
        ("lm_head.weight", {"model_type": "gpt2", "n_layer": 12}, None),
        ("lm_head.weight", {"model_type": "llama", "num_hidden_layers": 2}, "logits"),
        ("layers.1.mlp.up_proj.weight", {"model_type": "llama", "num_hidden_layers": 2}, "blocks.1.mlp.up"),
        ("model.layers.1.input_layernorm.weight", {"model_type": "llama", "num_hidden_layers": 2}, None),
        ("encoder.layer.1.output.dense.weight", {"model_type": "bert", "num_hidden_layers": 2}, "blocks.1.mlp.out"),
        ("pooler.dense.weight", {"model_type": "bert", "num_hidden_layers": 2}, None),
        (
            "model.layers.0.mlp.experts.gate_up_proj",
            {"model_type": "qwen3_moe", "num_hidden_layers": 2, "num_experts": 4},
            "blocks.0.mlp.experts.*.gate_up",
        ),
        ("model.layers.0.mlp.fc1.weight", {"model_type": "never heard of"}, None),
    ],
)
def test_names_that_other_checkpoints_use(parameter: str, config: dict[str, Any], site: str | None) -> None:
    assert weight_site(parameter, config) == site


@every_family
def test_groups_hold_every_block_matrix_once_but_routers(family: str) -> None:
    live = subject(family)
    grouped = [name for block in linear_groups(live.config) for weights, _ in block for name in weights]
    assert len(grouped) == len(set(grouped))
    alone = {name for name in live.matrices if name.endswith((".mlp.router", ".shared.gate"))}
    assert set(grouped) == {name for name in live.matrices if name.startswith("blocks.")} - alone
    assert all(not site or site in live.places for block in linear_groups(live.config) for _, site in block)


def test_scopes_mean_what_they_mean_in_our_own_models() -> None:
    model = subject("llama").model
    assert select(model, "activation", "interior") == ("blocks.0.out",)
    assert select(model, "activation", "kv")[:2] == ("blocks.0.attn.k", "blocks.0.attn.v")
    assert select(model, "activation", "blocks.1.in") == ("blocks.0.out",)
    assert len(select(model, "activation", "linear")) == 4 * LAYERS
    assert select(model, "weight", "head") == ("logits",)
    assert "embed" not in select(model, "weight", "weights")
    with pytest.raises(UnknownName, match=r"did you mean 'blocks\.\*\.attn\.q'"):
        select(model, "activation", "blocks.*.attn.qq")


def test_experts_that_no_token_reaches_are_listed() -> None:
    live = subject("qwen2_moe")
    token = live.x[:1, :1]
    seen: dict[str, Tensor] = {}
    with torch.no_grad(), watching(live.places, seen.__setitem__):
        live.model(token)
    reached = {
        block: seen[f"{block}.mlp.router"].topk(2).indices.flatten().tolist() for block in ("blocks.0", "blocks.1")
    }
    expected = {block: tuple(e for e in range(4) if e not in chosen) for block, chosen in reached.items()}
    assert unreached_by(live.model, [token]) == expected
    assert unreached_by(live.model, [live.x]) == {}
    assert unreached_by(subject("llama").model, [live.x]) == {}


def test_an_unknown_family_goes_by_its_modules_and_says_so() -> None:
    config = transformers.BloomConfig(vocab_size=97, hidden_size=WIDTH, n_layer=1, n_head=4)
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    assert names(model) is None
    assert "model_type 'bloom' has no site names" in unnamed(model)
    assert "transformer.h.0.mlp.dense_h_to_4h" in places(model)
    assert "transformer.h.0.mlp.dense_h_to_4h" in matrices(model)
    assert select(model, "weight", "**.dense_h_to_4h") == ("transformer.h.0.mlp.dense_h_to_4h",)
    with pytest.raises(UnknownName, match="linear"):
        select(model, "activation", "linear")
    with pytest.raises(ValueError, match="model_type 'bloom'"):
        linear_groups({"model_type": "bloom"})
    assert unnamed(subject("llama").model) == ""
    assert unnamed(nn.Linear(2, 2)) == ""


def test_a_config_without_its_number_of_layers_is_refused() -> None:
    with pytest.raises(ValueError, match="llama model has no num_hidden_layers: found None"):
        site_names({"model_type": "llama"})
