"""The layout of every family of pretrained models that has names for its places: one table row each."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from qbench.capture.layout import Layout, Part, Spot, attention, experts, mlp

Config = Mapping[str, Any]

_Q_K_V = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
_GATE_UP = ("mlp.gate_proj", "mlp.up_proj")
_LLAMA_ATTENTION = attention("self_attn", _Q_K_V, "self_attn.o_proj", joins="self_attn")
_GATED = mlp("mlp", _GATE_UP, "mlp.down_proj")
_PLAIN = mlp("mlp", ("mlp.fc1",), "mlp.fc2")
_SHARED = {
    "pre": "mlp.shared_expert.gate_proj",
    "up": "mlp.shared_expert.up_proj",
    "out": "mlp.shared_expert.down_proj",
    "gate": "mlp.shared_expert_gate",
}
# How checkpoints keep one expert: not as a slice of a stack, and gate and up apart.
_MIXTRAL_STORED = {
    "block_sparse_moe.gate": "mlp.router",
    "block_sparse_moe.experts.*.w1": "mlp.experts.*.pre",
    "block_sparse_moe.experts.*.w3": "mlp.experts.*.up",
    "block_sparse_moe.experts.*.w2": "mlp.experts.*.out",
}
_QWEN_STORED = {
    "mlp.experts.*.gate_proj": "mlp.experts.*.pre",
    "mlp.experts.*.up_proj": "mlp.experts.*.up",
    "mlp.experts.*.down_proj": "mlp.experts.*.out",
}
_VIT_STORED = {
    "attention.attention.query": "attn.q",
    "attention.attention.key": "attn.k",
    "attention.attention.value": "attn.v",
    "attention.output.dense": "attn.out",
    "intermediate.dense": "mlp.pre",
    "output.dense": "mlp.out",
}


def _layers(config: Config, key: str = "num_hidden_layers") -> int:
    if not isinstance(config.get(key), int):
        raise ValueError(f"the config of a {config['model_type']} model has no {key}: found {config.get(key)!r}")
    return config[key]


def _llama(config: Config) -> Layout:
    return Layout(
        blocks="model.layers",
        layers=_layers(config),
        attention=_LLAMA_ATTENTION,
        mlp=_GATED,
        final="model.norm",
        head="lm_head",
        embedding="model.embed_tokens",
        tied=bool(config.get("tie_word_embeddings", False)),
    )


def _gemma(config: Config) -> Layout:
    return replace(_llama(config), tied=bool(config.get("tie_word_embeddings", True)))


def _gemma2(config: Config) -> Layout:
    """Norms in front of both branches and behind them."""
    after = "post_attention_layernorm"
    branch = attention("self_attn", _Q_K_V, "self_attn.o_proj")
    return replace(
        _gemma(config),
        attention=branch.then({"attn.normed": Spot(after, "output"), "mid": Spot(after, "sum")}),
        mlp=_GATED.then({"mlp.normed": Spot("post_feedforward_layernorm", "output")}),
    )


def _phi(config: Config) -> Layout:
    side_by_side = attention("self_attn", _Q_K_V, "self_attn.dense")
    return replace(_llama(config), attention=side_by_side, mlp=_PLAIN, final="model.final_layernorm")


def _phi3(config: Config) -> Layout:
    return replace(
        _llama(config),
        attention=attention("self_attn", ("self_attn.qkv_proj",), "self_attn.o_proj", joins="self_attn"),
        mlp=mlp("mlp", ("mlp.gate_up_proj",), "mlp.down_proj"),
    )


def _mixtral(config: Config) -> Layout:
    dense = _llama(config)
    everywhere = frozenset(range(dense.layers))
    return replace(
        dense, moe=experts(), sparse=everywhere, experts=config.get("num_local_experts", 8), stored=_MIXTRAL_STORED
    )


def _olmoe(config: Config) -> Layout:
    return replace(_mixtral(config), experts=config.get("num_experts", 64), stored=_QWEN_STORED)


def _qwen3_moe(config: Config) -> Layout:
    """Experts in every n-th block, save some that are named."""
    dense = _llama(config)
    count = config.get("num_experts", config.get("num_local_experts", 0))
    step, without = config.get("decoder_sparse_step", 1), config.get("mlp_only_layers") or ()
    sparse = frozenset(n for n in range(dense.layers) if count and n not in without and (n + 1) % step == 0)
    return replace(dense, moe=experts(), sparse=sparse, experts=count, stored=_QWEN_STORED)


def _qwen2_moe(config: Config) -> Layout:
    return replace(_qwen3_moe(config), moe=experts(_SHARED))


def _gpt2(config: Config) -> Layout:
    return Layout(
        blocks="transformer.h",
        layers=_layers(config, "n_layer"),
        attention=attention("attn", ("attn.c_attn",), "attn.c_proj", joins="attn"),
        mlp=mlp("mlp", ("mlp.c_fc",), "mlp.c_proj"),
        final="transformer.ln_f",
        head="lm_head",
        embedding="transformer.wte",
        tied=bool(config.get("tie_word_embeddings", True)),
        transposed=True,
    )


def _gpt_neox(config: Config) -> Layout:
    parallel = config.get("use_parallel_residual", True)
    fused = ("attention.query_key_value",)
    return Layout(
        blocks="gpt_neox.layers",
        layers=_layers(config),
        attention=attention("attention", fused, "attention.dense", joins="" if parallel else "attention"),
        mlp=mlp("mlp", ("mlp.dense_h_to_4h",), "mlp.dense_4h_to_h"),
        final="gpt_neox.final_layer_norm",
        head="lm_head",
        embedding="gpt_neox.embed_in",
        tied=bool(config.get("tie_word_embeddings", False)),
        stored_head=("embed_out",),
    )


def _opt(config: Config) -> Layout:
    """The 350m model has its norms behind the sums, and embeddings of another width than its blocks."""
    before = config.get("do_layer_norm_before", True)
    width = config.get("hidden_size")
    projected = config.get("word_embed_proj_dim", width) != width
    normed = before and not config.get("_remove_final_layer_norm", False)
    last = "project_out" if projected else "final_layer_norm" if normed else ""
    core = attention("self_attn", _Q_K_V, "self_attn.out_proj", joins="self_attn" if before else "")
    layers = mlp("fc1", ("fc1",), "fc2")
    ends = ("project_in", "project_out") if projected else ()
    return Layout(
        blocks="model.decoder.layers",
        layers=_layers(config),
        attention=core if before else core.then(_post_norm("attn", "self_attn_layer_norm")),
        mlp=layers if before else layers.then({"mlp.sum": Spot("final_layer_norm", "input")}),
        final=f"model.decoder.{last}" if last else "",
        head="lm_head",
        embedding="model.decoder.embed_tokens",
        tied=bool(config.get("tie_word_embeddings", True)),
        extra={name: f"model.decoder.{name}" for name in ends},
    )


def _post_norm(half: str, norm: str) -> dict[str, Spot]:
    return {f"{half}.sum": Spot(norm, "input"), "mid": Spot(norm, "output")}


def _bert_blocks() -> tuple[Part, Part]:
    q_k_v = ("attention.self.query", "attention.self.key", "attention.self.value")
    core = attention("attention.self", q_k_v, "attention.output.dense")
    layers = mlp("intermediate", ("intermediate.dense",), "output.dense")
    return (
        core.then(_post_norm("attn", "attention.output.LayerNorm")),
        layers.then({"mlp.sum": Spot("output.LayerNorm", "input")}),
    )


def _bert(config: Config, root: str = "bert", final: str = "cls.predictions.transform") -> Layout:
    attending, layers = _bert_blocks()
    return Layout(
        blocks=f"{root}.encoder.layer",
        layers=_layers(config),
        attention=attending,
        mlp=layers,
        final=final,
        head="cls.predictions.decoder",
        embedding=f"{root}.embeddings.word_embeddings",
        tied=bool(config.get("tie_word_embeddings", True)),
        extra={"transform": "cls.predictions.transform.dense"},
    )


def _roberta(config: Config) -> Layout:
    ends = {"transform": "lm_head.dense"}
    return replace(_bert(config, "roberta", "lm_head.layer_norm"), head="lm_head.decoder", extra=ends)


def _vit(config: Config) -> Layout:
    root = str(config["model_type"])
    q_k_v = ("attention.q_proj", "attention.k_proj", "attention.v_proj")
    return Layout(
        blocks=f"{root}.layers",
        layers=_layers(config),
        attention=attention("attention", q_k_v, "attention.o_proj", joins="attention"),
        mlp=_PLAIN,
        final=f"{root}.layernorm",
        head="classifier",
        stored=_VIT_STORED,
    )


def _dinov2(config: Config) -> Layout:
    image = _vit(config)
    gated = bool(config.get("use_swiglu_ffn", False))
    sites = {name: spot for name, spot in image.attention.sites.items() if name != "mid"}
    gain = {"attn.scaled": Spot("layer_scale1", "output"), "mid": Spot("layer_scale1", "sum")}
    layers = (_GATED if gated else _PLAIN).then({"mlp.scaled": Spot("layer_scale2", "output")})
    return replace(
        image,
        blocks="dinov2.encoder.layer",
        attention=replace(image.attention, sites={**sites, **gain}),
        mlp=layers,
        stored={**_VIT_STORED, "mlp.weights_in": "mlp.gate_up", "mlp.weights_out": "mlp.out"},
    )


FAMILIES: Mapping[str, Callable[[Config], Layout]] = {
    "gpt2": _gpt2,
    "gpt_neox": _gpt_neox,
    "opt": _opt,
    "llama": _llama,
    "mistral": _llama,
    "qwen2": _llama,
    "qwen3": _llama,
    "smollm3": _gemma,
    "olmo": _llama,
    "gemma": _gemma,
    "gemma2": _gemma2,
    "gemma3_text": _gemma2,
    "phi": _phi,
    "phi3": _phi3,
    "bert": _bert,
    "roberta": _roberta,
    "xlm-roberta": _roberta,
    "vit": _vit,
    "deit": _vit,
    "dinov2": _dinov2,
    "mixtral": _mixtral,
    "qwen2_moe": _qwen2_moe,
    "qwen3_moe": _qwen3_moe,
    "olmoe": _olmoe,
}
