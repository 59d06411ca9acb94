"""The decoder: tokens in, logits out, every place on the way named.

Shape suffixes: B windows, T tokens, D width, V vocabulary.
"""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from qbench.models.attention import Attention
from qbench.models.initialize import initialize
from qbench.models.layers import MLP, RMSNorm, Site, sites
from qbench.models.spec import ModelSpec
from qbench.models.wiring import WIRINGS

ATTENTION_SITES = ("attn.in", "attn.q", "attn.k", "attn.v", "attn.context", "attn.out")
MLP_SITES = ("mlp.in", "mlp.pre", "mlp.hidden", "mlp.out")


class Block(nn.Module):
    """Attention, then the MLP, each on a normalized stream, each joining it as the wiring says."""

    def __init__(self, spec: ModelSpec, layer: int) -> None:
        super().__init__()
        joint = WIRINGS[spec.wiring]
        outlet = nn.Identity if joint.copies else Site
        self.join = joint.join
        self.attn = Attention(spec, layer, outlet())
        self.mlp = MLP(spec.width, spec.mlp_ratio * spec.width, outlet())
        self.site = sites(("mid", "out"))

    def forward(self, x_BTD: Tensor) -> Tensor:
        mid_BTD = self.site["mid"](self.join(x_BTD, self.attn(x_BTD)))
        return self.site["out"](self.join(mid_BTD, self.mlp(mid_BTD)))


class Transformer(nn.Module):
    """A decoder-only transformer; use `build`, which also initializes it."""

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__()
        self.spec = spec
        self.embed = nn.Parameter(torch.empty(spec.vocabulary, spec.width))
        self.blocks = nn.ModuleList([Block(spec, layer) for layer in range(spec.layers)])
        self.norm = RMSNorm(spec.width)
        self.logits = nn.Parameter(torch.empty(spec.vocabulary, spec.width))
        self.site = sites(("embed", "final", "logits"))

    def forward(self, tokens_BT: Tensor) -> Tensor:
        """Next-token logits [B, T, V] for int64 tokens [B, T].

        Raises ValueError where there are more tokens than `spec.context`.
        """
        return self.head(self.hidden(tokens_BT))

    def hidden(self, tokens_BT: Tensor) -> Tensor:
        """What the head reads, [B, T, D]: the stream after the last norm."""
        if tokens_BT.shape[-1] > self.spec.context:
            raise ValueError(f"{tokens_BT.shape[-1]} tokens do not fit a context of {self.spec.context}")
        x_BTD = self.site["embed"](F.embedding(tokens_BT, self.embed))
        for block in self.blocks:
            x_BTD = block(x_BTD)
        return self.site["final"](self.norm(x_BTD))

    def head(self, hidden: Tensor) -> Tensor:
        """Logits [..., V] of hidden states [..., D]; a place in as many pieces as the states come in."""
        return self.site["logits"](F.linear(hidden, self.logits))

    def sites(self) -> dict[str, Site]:
        """Canonical site name -> its module, in the order in which a forward pass meets them; aliases are absent."""
        found = {name.replace("site.", ""): module for name, module in self.named_modules() if isinstance(module, Site)}
        return {name: found[name] for name in _site_order(self.spec.layers) if name in found}

    def weights(self) -> dict[str, nn.Parameter]:
        """Matrices [out, in] by the site that each produces; `embed` and `logits` (the head) have a row per token."""
        return {name: parameter for name, parameter in self.named_parameters() if parameter.ndim == 2}


def build(spec: ModelSpec, seed: int) -> Transformer:
    """A fresh float32 model on the CPU; equal arguments give equal weights, and no global generator is touched."""
    model = Transformer(spec)
    initialize(model.weights(), spec, seed)
    return model


def _site_order(layers: int) -> Iterator[str]:
    yield "embed"
    for layer in range(layers):
        for site in (*ATTENTION_SITES, "mid", *MLP_SITES, "out"):
            yield f"blocks.{layer}.{site}"
    yield from ("final", "logits")
