"""The settings of a qbench model for plain `transformers`: this file travels with the weights."""

from math import sqrt

from transformers import PreTrainedConfig


class QbenchConfig(PreTrainedConfig):
    """Size and wiring; a 0 stands for the usual. What each setting means is said in qbench's `models/spec.py`."""

    model_type = "qbench"
    attribute_map = {  # noqa: RUF012  (a class attribute by the library's contract)
        "vocab_size": "vocabulary",
        "hidden_size": "width",
        "num_hidden_layers": "layers",
        "num_attention_heads": "heads",
        "max_position_embeddings": "context",
    }

    layers: int = 6
    width: int = 64
    heads: int = 4
    context: int = 64
    vocabulary: int = 256
    wiring: str = "residual"
    norm: str = "rmsnorm"
    mlp: str = "gelu"
    mlp_ratio: int = 4
    positions: str = "rope"
    attention_temperature: str = "const"
    head_size: int = 0
    kv_heads: int = 0
    mlp_hidden: int = 0
    attention: str = "softmax"
    qk_norm: str = "none"
    embed_norm: bool = False
    embed_projection: bool = False
    gain: str = "none"
    gain_start: float = 1.0
    gain_by_depth: bool = False
    temperature_strength: float = 1.0
    clip: float = 3.2
    power: int = 3
    position_deviation: float = 0.02
    task: str = "language"
    image: int = 8
    patch: int = 2
    channels: int = 1
    pooling: str = "mean"


def length(config: QbenchConfig) -> int:
    """The most positions that a forward pass has."""
    if config.task == "language":
        return config.context
    return (config.image // config.patch) ** 2 + (config.pooling == "class")


def head_size(config: QbenchConfig) -> int:
    """The width of one head."""
    return config.head_size or config.width // config.heads


def factor(config: QbenchConfig, layer: int) -> float:
    """The part of a layer's temperature that its number decides."""
    factors = {
        "inv-sqrt-layer": 1 / sqrt(1 + layer),
        "inv-layer": 1 / (1 + layer),
        "sqrt-layer": sqrt(1 + layer),
        "linear": 1 + config.temperature_strength * layer / max(1, config.layers - 1),
    }
    return factors.get(config.attention_temperature, 1.0)
