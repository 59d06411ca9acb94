"""Every model a suite may name. No torch here."""

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from types import MappingProxyType
from typing import Any

from qbench import names
from qbench.models.spec import ModelSpec
from qbench.names import pick


@dataclass(frozen=True, slots=True)
class Architecture:
    """One row: where a suite's own settings start from, and what it is for."""

    spec: ModelSpec
    description: str


_PLAIN = ModelSpec()
_FREE = ModelSpec(wiring="residual-free", init="orthogonal", temperature="inv-sqrt-layer")
_CUT = ModelSpec(wiring="residual-free", init="cutting-the-skip", qk_noise=2.0, qk_diagonal=0.6)
# Gains of c / sqrt(layers): published are 0.1 with 18 layers for the simplified block (arXiv 2311.01906) and 0.2 for
# the outlier-protected one (arXiv 2405.19279), whose code has 12 layers unless told otherwise.
_SHAPED = ModelSpec(attention="shaped", init="shaped", gain="learned", gain_start=0.42, gain_by_depth=True)
_PROTECTED = ModelSpec(
    norm="none", embed_norm=True, qk_norm="rmsnorm", gain="fixed", gain_start=0.69, gain_by_depth=True, init="fan-in"
)

_ROWS: dict[str, Architecture] = {
    "residual": Architecture(_PLAIN, "pre-norm decoder with skip connections and GPT-2 initialization"),
    "residual-free": Architecture(
        _FREE,
        "no skip connections; orthogonal initialization, near-diagonal attention, flatter with depth",
    ),
    "residual-free-plain": Architecture(
        ModelSpec(wiring="residual-free", init="fan-in"),
        "no skip connections and no recipe: the negative control, which is not expected to train",
    ),
    "residual-orthogonal": Architecture(
        replace(_FREE, wiring="residual"),
        "skip connections with all of the residual-free recipe: separates the wiring from the recipe",
    ),
    "residual-free-gpt2": Architecture(
        ModelSpec(wiring="residual-free"),
        "no skip connections with the residual model's initialization: separates the wiring from the recipe",
    ),
    "osp": Architecture(
        ModelSpec(norm="ssnorm", embed_projection=True),
        "Outlier-Safe Pre-training: one gain for each norm and mixed embeddings; the strongest residual competitor",
    ),
    "op": Architecture(
        _PROTECTED,
        "Outlier-Protected block: no norms but one on the embedding, normalized queries and keys, quiet branches",
    ),
    "sas": Architecture(
        replace(_SHAPED, wiring="mlp-residual"),
        "Simplified block: shaped attention that begins as the identity, no skip around it, a quiet MLP with one",
    ),
    "sas-p": Architecture(
        replace(_SHAPED, wiring="parallel"),
        "the simplified block with attention and MLP side by side, and no skip connection",
    ),
    "post-norm": Architecture(ModelSpec(wiring="post-norm"), "skip connections with the norm after the sum"),
    "skip-init": Architecture(
        ModelSpec(gain="learned", gain_start=0.0), "pre-norm with a gain for each branch that begins at 0"
    ),
    "rezero": Architecture(
        ModelSpec(gain="learned", gain_start=0.0, norm="none", embed_norm=True, init="fan-in"),
        "no norms in the blocks, and a gain for each branch that begins at 0",
    ),
    "attention-residual": Architecture(
        replace(_FREE, wiring="attention-residual"), "the residual-free recipe with a skip around attention alone"
    ),
    "mlp-residual": Architecture(
        replace(_FREE, wiring="mlp-residual"), "the residual-free recipe with a skip around the MLP alone"
    ),
    "residual-free-linear": Architecture(
        replace(_FREE, temperature="linear"), "residual-free, attention sharper with depth: 1 to 2 along the layers"
    ),
    "residual-free-sqrt": Architecture(
        replace(_FREE, temperature="sqrt-layer"), "residual-free, attention sharper with depth: sqrt(1 + l)"
    ),
    "residual-free-inv-layer": Architecture(
        replace(_FREE, temperature="inv-layer"), "residual-free, attention much flatter with depth: 1 / (1 + l)"
    ),
    "residual-free-const": Architecture(
        replace(_FREE, temperature="const"), "residual-free, the same temperature in every layer"
    ),
    "residual-free-logn": Architecture(
        replace(_FREE, temperature="logn"), "residual-free, attention sharper the more there is to see"
    ),
    "residual-free-learned": Architecture(
        replace(_FREE, temperature="learned"), "residual-free, a temperature learned for each head"
    ),
    "residual-free-target": Architecture(
        replace(_FREE, temperature="target"),
        "residual-free, temperatures found so that attention to itself is 1 - 1 / layers at first",
    ),
    "residual-free-suo": Architecture(
        replace(_FREE, init="suo"), "residual-free, every matrix scaled uniform orthogonal, no diagonal in attention"
    ),
    "cutting-the-skip": Architecture(
        _CUT, "residual-free with the initialization and constants published for a vision transformer"
    ),
    "cutting-the-skip-target": Architecture(
        replace(_CUT, init="cutting-the-skip-target"), "the same with the diagonal that a width needs to look at itself"
    ),
    "mimetic": Architecture(
        ModelSpec(init="mimetic", qk_noise=0.7, qk_diagonal=0.7), "skip connections; begins like trained attention"
    ),
    "layernorm": Architecture(ModelSpec(norm="layernorm"), "residual with LayerNorm"),
    "no-gain": Architecture(ModelSpec(norm="rmsnorm-no-gain"), "residual with RMSNorm that learns no gain"),
    "qk-norm": Architecture(ModelSpec(qk_norm="rmsnorm"), "residual with normalized queries and keys"),
    "clipped": Architecture(ModelSpec(attention="clipped"), "residual, softmax clipped so that heads can rest"),
    "gated": Architecture(ModelSpec(attention="gated"), "residual, a gate on each head's context"),
    "polynomial": Architecture(
        ModelSpec(attention="polynomial", qk_norm="rmsnorm"), "residual, cubes of the logits in the place of softmax"
    ),
    "gqa": Architecture(ModelSpec(kv_heads=2), "residual, two heads of keys and values for all heads of queries"),
    "more-heads": Architecture(
        ModelSpec(heads=8, head_size=16, layers=4), "residual, more and wider heads than fit the width, fewer layers"
    ),
    "relu2": Architecture(ModelSpec(mlp="relu2"), "residual with squared ReLU"),
    "swiglu": Architecture(ModelSpec(mlp="swiglu"), "residual with a gated MLP"),
    "learned-positions": Architecture(ModelSpec(positions="learned"), "residual, a learned vector for each position"),
    "sinusoidal-positions": Architecture(ModelSpec(positions="sinusoidal"), "residual, sines and cosines added"),
}

MODELS: Mapping[str, Architecture] = MappingProxyType(_ROWS)


def add(name: str, row: Architecture) -> None:
    """Take a row from a plugin; ValueError where the name is taken."""
    names.add(_ROWS, name, row, Architecture)


def model_spec(arch: str, **overrides: Any) -> ModelSpec:
    """The spec of `arch` with some fields replaced.

    >>> model_spec("residual-free", layers=2).temperature
    'inv-sqrt-layer'
    >>> model_spec("residual", widht=96)  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    qbench.names.UnknownName: no model setting 'widht'; did you mean 'width'? known: attention, channels, \
clip, ...
    """
    known = {field.name: field for field in fields(ModelSpec)}
    for name in overrides:
        pick(known, name, "model setting")
    return replace(pick(MODELS, arch, "model").spec, **overrides)
