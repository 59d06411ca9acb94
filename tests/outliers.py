"""Outliers put into a model without changing what it computes: what a sound instrument must see."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from qbench.capture.families import linear_groups
from qbench.capture.place import Matrix
from qbench.capture.places import matrices

# The norms before attention and MLP, and where blocks are.
NORMS: Mapping[str, tuple[str, str, str]] = {
    "llama": ("model.layers", "input_layernorm", "post_attention_layernorm"),
    "gpt2": ("transformer.h", "ln_1", "ln_2"),
}


@torch.no_grad()
def inject(model: Any, channels: Sequence[int], factor: float) -> tuple[str, ...]:
    """Make some channels of the attention and MLP inputs `factor` times larger; gives back the names of these places.

    The gain (and bias) of a norm is multiplied, what the following matrices read is divided: logits stay.
    """
    config = model.config.to_dict()
    blocks, *norms = NORMS[config["model_type"]]
    weights, places = matrices(model), list[str]()
    for block, groups in enumerate(linear_groups(config)):
        inner = model.get_submodule(f"{blocks}.{block}")
        for half, norm in zip(("attn", "mlp"), norms, strict=True):
            site = f"blocks.{block}.{half}.in"
            for parameter in inner.get_submodule(norm).parameters():
                parameter[channels] *= factor
            for names in (names for names, read in groups if read == site):
                _divide([weights[name] for name in names], channels, factor)
            places.append(site)
    return tuple(places)


def _divide(readers: Sequence[Matrix], channels: Sequence[int], factor: float) -> None:
    for matrix in readers:
        matrix.read()[:, channels] /= factor
