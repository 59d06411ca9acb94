"""Self-attention: queries, keys and values by head, mixed as the specification says.

Shape suffixes: B windows, T tokens, D width, H heads, I all heads side by side.
"""

from math import log, sqrt

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from qbench.models.layers import branch_gain, sites
from qbench.models.mixing import ATTENTIONS
from qbench.models.norms import NORMS
from qbench.models.positions import POSITIONS, rotary_table, rotate
from qbench.models.spec import ModelSpec
from qbench.models.temperature import TEMPERATURES
from qbench.models.wiring import Joint

GATE_AT_FIRST = 0.25  # of the context that a gated head lets through before it has learned anything


class Attention(nn.Module):
    """Normalize, attend, mix the heads; the sub-block's output, before it joins the stream.

    Queries and keys pass their sites after norm and rotation, all heads side by side.
    """

    rotary: Tensor

    def __init__(self, spec: ModelSpec, layer: int, joint: Joint) -> None:
        super().__init__()
        heat = TEMPERATURES[spec.temperature]
        self.heads, self.groups, self.size = spec.heads, spec.groups, spec.size
        self.scale = heat.factor(spec, layer) / sqrt(spec.size)
        self.before = not joint.after
        self.norm = NORMS[spec.norm](spec.width)
        self._add_weights(spec)
        self.turns = POSITIONS[spec.positions].turns
        if self.turns:
            self.register_buffer("rotary", rotary_table(spec.length, spec.size), persistent=False)
        self.q_norm, self.k_norm = NORMS[spec.qk_norm](spec.size), NORMS[spec.qk_norm](spec.size)
        self.heat = heat.module(spec) if heat.module else None
        self.mix = ATTENTIONS[spec.attention](spec)
        self.gain = branch_gain(spec, joint)
        self.site = sites(("in", "q", "k", "v", *(("gate",) if self.gate is not None else ()), "context"), joint)

    def _add_weights(self, spec: ModelSpec) -> None:
        """Matrices [out, in]; the heads of keys and values may be fewer than those of queries."""
        queries, keys = spec.heads * spec.size, spec.groups * spec.size
        self.q, self.k, self.v = (nn.Parameter(torch.empty(rows, spec.width)) for rows in (queries, keys, keys))
        self.out = nn.Parameter(torch.empty(spec.width, queries))
        gated = spec.attention == "gated"
        bias = log(GATE_AT_FIRST / (1 - GATE_AT_FIRST))
        self.gate = nn.Parameter(torch.empty(spec.heads, spec.width)) if gated else None
        self.gate_bias = nn.Parameter(torch.full((spec.heads,), bias)) if gated else None

    def forward(self, x_BTD: Tensor) -> Tensor:
        x_BTD = self.site["in"](self.norm(x_BTD) if self.before else x_BTD)
        q_BHTD, k_BHTD, v_BHTD = self.by_head(x_BTD)
        if self.heat is not None:
            q_BHTD = self.heat(q_BHTD)
        context_BHTD = self.mix(q_BHTD, k_BHTD, v_BHTD, self.scale)
        if self.gate is not None:
            context_BHTD = self._let_through(x_BTD, self.gate) * context_BHTD
        context_BTI = self.site["context"](context_BHTD.transpose(1, 2).flatten(-2))
        return self.site["out"](self.gain(F.linear(context_BTI, self.out)))

    def by_head(self, x_BTD: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values of a normalized input, each [B, H, T, head size], before any temperature."""
        # Separate matrices, one product: a third of the calls, and the optimizer still sees q, k and v by themselves.
        widths = [len(self.q), len(self.k), len(self.v)]
        q_BTI, k_BTI, v_BTI = F.linear(x_BTD, torch.cat([self.q, self.k, self.v])).split(widths, -1)
        q_BTI = self.site["q"](self._placed(q_BTI, self.q_norm))
        k_BTI = self.site["k"](self._placed(k_BTI, self.k_norm))
        v_BTI = self.site["v"](v_BTI)
        return self._by_head(q_BTI), self._shared(k_BTI), self._shared(v_BTI)

    def _placed(self, x_BTI: Tensor, norm: nn.Module) -> Tensor:
        """Each head normalized, and turned by its position."""
        x_BTHD = norm(x_BTI.unflatten(-1, (-1, self.size)))
        if self.turns:
            x_BTHD = rotate(x_BTHD, self.rotary[: x_BTI.shape[1]])
        return x_BTHD.flatten(-2)

    def _by_head(self, x_BTI: Tensor) -> Tensor:
        return x_BTI.unflatten(-1, (-1, self.size)).transpose(1, 2)

    def _shared(self, x_BTI: Tensor) -> Tensor:
        """Keys or values by head, those of a group once for each of its queries."""
        x_BHTD = self._by_head(x_BTI)
        return x_BHTD if self.groups == self.heads else x_BHTD.repeat_interleave(self.heads // self.groups, 1)

    def _let_through(self, x_BTD: Tensor, gate: Tensor) -> Tensor:
        """The share of each head's context that its gate lets through: [B, H, T, 1]."""
        logits_BTH = self.site["gate"](F.linear(x_BTD, gate, self.gate_bias))
        return logits_BTH.sigmoid().transpose(1, 2)[..., None]
