"""The transformer: tokens or an image in, logits out, every place on the way named.

Shape suffixes: B windows, T tokens, D width, V vocabulary.
"""

from collections.abc import Iterator
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from qbench.models.attention import Attention
from qbench.models.initialize import initialize
from qbench.models.layers import MLP, Site, sites
from qbench.models.norms import NORMS
from qbench.models.positions import POSITIONS
from qbench.models.retention import aim
from qbench.models.spec import ModelSpec
from qbench.models.tasks import TASKS, class_token
from qbench.models.wiring import WIRINGS, Joint

ATTENTION_SITES = ("attn.in", "attn.q", "attn.k", "attn.v", "attn.gate", "attn.context", "attn.out", "attn.sum")
MLP_SITES = ("mlp.in", "mlp.pre", "mlp.up", "mlp.hidden", "mlp.out", "mlp.sum")


class Block(nn.Module):
    """Attention, then the MLP, each joining the stream as the wiring says."""

    def __init__(self, spec: ModelSpec, layer: int) -> None:
        super().__init__()
        self.wiring = WIRINGS[spec.wiring]
        self.attn = Attention(spec, layer, self.wiring.attn)
        self.mlp = MLP(spec, self.wiring.mlp)
        self.site = sites(("mid", "out"))

    def forward(self, x_BTD: Tensor) -> Tensor:
        mid_BTD = self.site["mid"](_joined(self.wiring.attn, self.attn, x_BTD, self.attn(x_BTD)))
        update_BTD = self.mlp(x_BTD if self.wiring.parallel else mid_BTD)
        return self.site["out"](_joined(self.wiring.mlp, self.mlp, mid_BTD, update_BTD))


class Transformer(nn.Module):
    """A decoder, or where `spec.task` is vision a classifier of images; use `build`, which also initializes it."""

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__()
        self.spec = spec
        self.ends = TASKS[spec.task]
        self.embed = nn.Parameter(torch.empty(self.ends.shape(spec)))
        self.class_token = class_token(spec)
        self._add_positions(spec)
        self.embed_projection, self.final_projection = (
            nn.Parameter(torch.empty(spec.width, spec.width)) if spec.embed_projection else None for _ in range(2)
        )
        self.embed_norm = NORMS[spec.final_norm](spec.width) if spec.embed_norm else None
        self.blocks = nn.ModuleList([Block(spec, layer) for layer in range(spec.layers)])
        self.norm = NORMS[spec.final_norm](spec.width)
        self.logits = nn.Parameter(torch.empty(spec.vocabulary, spec.width))
        self.site = sites(("embed", "final", "logits"))

    def _add_positions(self, spec: ModelSpec) -> None:
        added = POSITIONS[spec.positions].added
        table = None if added is None else added(spec)
        if table is None or isinstance(table, nn.Parameter):
            self.positions = table
        else:
            self.register_buffer("positions", table, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Next-token logits [B, T, V] for int64 tokens [B, T], or class logits [B, V] for images [B, C, P, P].

        Raises ValueError where there are more tokens than `spec.context`, or where images have another shape.
        """
        return self.head(self.hidden(x))

    def hidden(self, x: Tensor) -> Tensor:
        """What the head reads, [B, T, D] or for an image [B, D]: the stream after the last norm."""
        x_BTD = self.site["embed"](self._embedded(x))
        for block in self.blocks:
            x_BTD = block(x_BTD)
        x_BTD = self.norm(x_BTD)
        if self.final_projection is not None:
            x_BTD = F.linear(x_BTD, self.final_projection)
        return self.ends.pooled(self.site["final"](x_BTD), self.spec)

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

    def _embedded(self, x: Tensor) -> Tensor:
        """What the first block reads: everything that is added to, multiplied with or divides the embedding.

        It has the type of the weights, also under autocast, and so has the stream from here on, in every wiring.
        """
        x_BTD = self.ends.read(x, self.embed, self.spec)
        if self.class_token is not None:
            x_BTD = torch.cat([self.class_token.expand(len(x_BTD), 1, -1), x_BTD], 1)
        if self.positions is not None:
            x_BTD = x_BTD + self.positions[: x_BTD.shape[1]]
        if self.embed_projection is not None:
            x_BTD = F.linear(x_BTD, self.embed_projection)
        x_BTD = x_BTD.type_as(self.embed)
        return x_BTD if self.embed_norm is None else self.embed_norm(x_BTD)


def build(spec: ModelSpec, seed: int) -> Transformer:
    """A fresh float32 model on the CPU; equal arguments give equal weights, and no global generator is touched.

    Raises ValueError where a target of `temperature` or `init` cannot be reached with heads of this size.
    """
    model = Transformer(spec)
    token = {} if model.class_token is None else {"class_token": model.class_token}
    initialize(model.weights() | token, spec, seed)
    if spec.temperature == "target":
        aim([cast(Block, block).attn for block in model.blocks], spec)
    return model


def _joined(joint: Joint, part: Attention | MLP, stream_BTD: Tensor, update_BTD: Tensor) -> Tensor:
    x_BTD = joint.join(stream_BTD, update_BTD).type_as(stream_BTD)
    return part.norm(part.site["sum"](x_BTD)) if joint.after else x_BTD


def _site_order(layers: int) -> Iterator[str]:
    yield "embed"
    for layer in range(layers):
        for site in (*ATTENTION_SITES, "mid", *MLP_SITES, "out"):
            yield f"blocks.{layer}.{site}"
    yield from ("final", "logits")
