"""Causal self-attention with rotary positions and a temperature that depends on depth.

Shape suffixes: B windows, T tokens, D width, H heads.
"""

from collections.abc import Callable, Mapping
from math import sqrt

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from qbench.models.layers import RMSNorm, rotary_table, rotate, sites
from qbench.models.spec import ModelSpec, Temperature

# Factor on the logits of layer l = 0, 1, ..., on top of 1 / sqrt(head size): below 1 attends more evenly.
TEMPERATURES: Mapping[Temperature, Callable[[int], float]] = {
    "const": lambda layer: 1.0,
    "inv-sqrt-layer": lambda layer: 1 / sqrt(1 + layer),
}


class Attention(nn.Module):
    """Normalize, attend, mix the heads; the sub-block's output, before it joins the stream.

    Queries and keys pass their sites after the rotation, all heads side by side: [B, T, D].
    `outlet` is called on the output: a `Site`, or an identity where the stream's own site follows at once.
    """

    rotary: Tensor

    def __init__(self, spec: ModelSpec, layer: int, outlet: nn.Module) -> None:
        super().__init__()
        self.heads = spec.heads
        self.scale = TEMPERATURES[spec.temperature](layer) / sqrt(spec.width // spec.heads)
        self.norm = RMSNorm(spec.width)
        self.q, self.k, self.v, self.out = (nn.Parameter(torch.empty(spec.width, spec.width)) for _ in range(4))
        self.register_buffer("rotary", rotary_table(spec.context, spec.width // spec.heads), persistent=False)
        self.site = sites(("in", "q", "k", "v", "context"))
        self.site["out"] = outlet

    def forward(self, x_BTD: Tensor) -> Tensor:
        x_BTD = self.site["in"](self.norm(x_BTD))
        # Separate matrices, one product: a third of the calls, and the optimizer still sees q, k and v by themselves.
        q_BTD, k_BTD, v_BTD = F.linear(x_BTD, torch.cat([self.q, self.k, self.v])).chunk(3, -1)
        q_BTD, k_BTD = self._rotated(q_BTD, "q"), self._rotated(k_BTD, "k")
        v_BTD = self.site["v"](v_BTD)
        q_BHTD, k_BHTD, v_BHTD = (self._by_head(x_BTD) for x_BTD in (q_BTD, k_BTD, v_BTD))
        context_BHTD = F.scaled_dot_product_attention(q_BHTD, k_BHTD, v_BHTD, is_causal=True, scale=self.scale)
        context_BTD = self.site["context"](context_BHTD.transpose(1, 2).flatten(-2))
        return self.site["out"](F.linear(context_BTD, self.out))

    def _rotated(self, x_BTD: Tensor, site: str) -> Tensor:
        x_BTHD = rotate(x_BTD.unflatten(-1, (self.heads, -1)), self.rotary[: x_BTD.shape[1]])
        return self.site[site](x_BTHD.flatten(-2))

    def _by_head(self, x_BTD: Tensor) -> Tensor:
        return x_BTD.unflatten(-1, (self.heads, -1)).transpose(1, 2)
