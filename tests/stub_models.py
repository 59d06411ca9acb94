"""Folders that look like models, written without transformers: enough for everything that reads files only."""

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

VOCABULARY, WIDTH, INNER = 16, 8, 12
MATRICES = {
    "self_attn.q_proj": (WIDTH, WIDTH),
    "self_attn.k_proj": (WIDTH // 2, WIDTH),
    "self_attn.v_proj": (WIDTH // 2, WIDTH),
    "self_attn.o_proj": (WIDTH, WIDTH),
    "mlp.gate_proj": (INNER, WIDTH),
    "mlp.up_proj": (INNER, WIDTH),
    "mlp.down_proj": (WIDTH, INNER),
}
PLACES = ("attn.q", "attn.k", "attn.v", "attn.out", "mlp.pre", "mlp.up", "mlp.out")  # what they are called here
TOKENIZER = '{"model": {"vocab": {"a": 0}}}'


def stub(place: Path, *, layers: int = 1, seed: int = 0, tokenizer: str = TOKENIZER, **config: object) -> Path:
    """A Llama's folder of random float32 weights."""
    said = {
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        "num_hidden_layers": layers,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "hidden_size": WIDTH,
        "intermediate_size": INNER,
        "vocab_size": VOCABULARY,
        "max_position_embeddings": 32,
        "tie_word_embeddings": False,
    }
    place.mkdir(parents=True, exist_ok=True)
    (place / "config.json").write_text(json.dumps(said | config))
    if tokenizer:
        (place / "tokenizer.json").write_text(tokenizer)
    save_file(weights(layers, seed), place / "model.safetensors")
    return place


def weights(layers: int, seed: int) -> Mapping[str, np.ndarray]:
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (VOCABULARY, WIDTH)}
    for layer in range(layers):
        shapes |= {f"model.layers.{layer}.{name}.weight": shape for name, shape in MATRICES.items()}
        shapes[f"model.layers.{layer}.input_layernorm.weight"] = (WIDTH,)
    shapes |= {"model.norm.weight": (WIDTH,), "lm_head.weight": (VOCABULARY, WIDTH)}
    chance = np.random.default_rng(seed)
    return {name: chance.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
