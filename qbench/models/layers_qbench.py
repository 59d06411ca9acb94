"""The blocks of a qbench model for plain `transformers`: this file travels with the weights.

Shape suffixes: B windows, T tokens, D width, H heads, I all heads, K half a head, S keys.
"""

from math import sqrt

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .configuration_qbench import QbenchConfig, factor, head_size, length

# Of (attention, MLP): is the output added to what the block has so far?
ADDED = {
    "residual": (True, True),
    "residual-free": (False, False),
    "post-norm": (True, True),
    "attention-residual": (True, False),
    "mlp-residual": (False, True),
    "parallel": (False, True),
}


def squared_relu(x: Tensor) -> Tensor:
    """max(x, 0)^2."""
    return F.relu(x).square()


ACTS = {"gelu": F.gelu, "relu2": squared_relu, "swiglu": F.silu}


class Norm(nn.Module):
    """RMSNorm, LayerNorm or neither, with a gain for each channel, one for all, or none."""

    def __init__(self, kind: str, width: int) -> None:
        super().__init__()
        self.kind = kind
        gains = {"rmsnorm": width, "layernorm": width, "ssnorm": 1}.get(kind)
        self.gain = nn.Parameter(torch.ones(gains)) if gains else None

    def forward(self, x_BTD: Tensor) -> Tensor:
        if self.kind == "none":
            return x_BTD
        wide_BTD = wide(x_BTD)
        if self.kind == "layernorm" and self.gain is not None:
            return F.layer_norm(wide_BTD, self.gain.shape, wide(self.gain), eps=1e-6).type_as(x_BTD)
        wide_BTD = wide_BTD * torch.rsqrt(wide_BTD.square().mean(-1, keepdim=True) + 1e-6)
        return (wide_BTD if self.gain is None else wide_BTD * self.gain).type_as(x_BTD)


class Gain(nn.Module):
    """A factor on a branch: learned, fixed, or none."""

    def __init__(self, config: QbenchConfig, added: bool) -> None:
        super().__init__()
        self.kind = config.gain if added else "none"
        self.factor = config.gain_start / (sqrt(config.layers) if config.gain_by_depth else 1.0)
        if self.kind == "learned":
            self.gain = nn.Parameter(torch.tensor([self.factor]))

    def forward(self, x_BTD: Tensor) -> Tensor:
        if self.kind == "none":
            return x_BTD
        return x_BTD * (self.gain if self.kind == "learned" else self.factor)


class Heat(nn.Module):
    """The part of the temperature that is learned, or was found when the model was built."""

    value: Tensor

    def __init__(self, config: QbenchConfig) -> None:
        super().__init__()
        self.kind = config.attention_temperature
        self.causal = config.task == "language"
        if self.kind in ("learned", "logn"):
            self.gain = nn.Parameter(torch.ones(config.heads))
        if self.kind == "target":
            self.register_buffer("value", torch.ones(()))

    def forward(self, q_BHTD: Tensor) -> Tensor:
        if self.kind == "learned":
            return q_BHTD * self.gain[:, None, None]
        if self.kind == "target":
            return q_BHTD * self.value
        length = q_BHTD.shape[-2]
        keys_T = torch.arange(1, length + 1, device=q_BHTD.device)
        logs_T = (keys_T if self.causal else torch.full_like(keys_T, length)).to(self.gain.dtype).log()
        return q_BHTD * (self.gain[:, None] * logs_T)[..., None]


class Mix(nn.Module):
    """Queries, keys and values to contexts, all [B, H, T, head size]."""

    def __init__(self, config: QbenchConfig) -> None:
        super().__init__()
        self.kind, self.causal, self.power = config.attention, config.task == "language", config.power
        self.gamma = -config.clip / length(config)
        if self.kind == "shaped":
            self.itself, self.attended, self.even = (nn.Parameter(torch.ones(config.heads)) for _ in range(3))

    def forward(self, q_BHTD: Tensor, k_BHTD: Tensor, v_BHTD: Tensor, scale: float) -> Tensor:
        if self.kind in ("softmax", "gated"):
            return F.scaled_dot_product_attention(q_BHTD, k_BHTD, v_BHTD, is_causal=self.causal, scale=scale)
        logits_BHTS = q_BHTD @ k_BHTD.mT * scale
        seen_TS = torch.ones_like(logits_BHTS[0, 0])
        seen_TS = seen_TS.tril() if self.causal else seen_TS
        keys_T1 = seen_TS.sum(-1, keepdim=True)
        if self.kind == "polynomial":
            return logits_BHTS.pow(self.power) * seen_TS * keys_T1.rsqrt() @ v_BHTD
        weights_BHTS = logits_BHTS.masked_fill(seen_TS == 0, float("-inf")).softmax(-1)
        if self.kind == "clipped":
            return ((1 - self.gamma) * weights_BHTS + self.gamma).clamp(0, 1) @ v_BHTD
        itself_H11, attended_H11, even_H11 = (g[:, None, None] for g in (self.itself, self.attended, self.even))
        mixed_BHTS = attended_H11 * weights_BHTS - even_H11 * (seen_TS / keys_T1)
        return itself_H11 * v_BHTD + mixed_BHTS @ v_BHTD


class Attention(nn.Module):
    """Norm, attention, output projection."""

    def __init__(self, config: QbenchConfig, layer: int) -> None:
        super().__init__()
        self.heads, self.groups, self.size = config.heads, config.kv_heads or config.heads, head_size(config)
        self.scale = factor(config, layer) / sqrt(self.size)
        self.norm = Norm(config.norm, config.width)
        self.before = config.wiring != "post-norm"
        queries, keys = self.heads * self.size, self.groups * self.size
        self.q, self.k, self.v = (nn.Parameter(torch.empty(rows, config.width)) for rows in (queries, keys, keys))
        self.out = nn.Parameter(torch.empty(config.width, queries))
        gated = config.attention == "gated"
        self.gate = nn.Parameter(torch.empty(self.heads, config.width)) if gated else None
        self.gate_bias = nn.Parameter(torch.empty(self.heads)) if gated else None
        self.q_norm, self.k_norm = Norm(config.qk_norm, self.size), Norm(config.qk_norm, self.size)
        self.heat = Heat(config) if config.attention_temperature in ("learned", "logn", "target") else None
        self.mix = Mix(config)
        self.gain = Gain(config, ADDED[config.wiring][0])

    def forward(self, x_BTD: Tensor, rotary_TK2: Tensor | None) -> Tensor:
        x_BTD = self.norm(x_BTD) if self.before else x_BTD
        widths = [len(self.q), len(self.k), len(self.v)]
        q_BTI, k_BTI, v_BTI = F.linear(x_BTD, torch.cat([self.q, self.k, self.v])).split(widths, -1)
        q_BTHD, k_BTHD, v_BTHD = (x.unflatten(-1, (-1, self.size)) for x in (q_BTI, k_BTI, v_BTI))
        q_BTHD, k_BTHD = self.q_norm(q_BTHD), self.k_norm(k_BTHD)
        if rotary_TK2 is not None:
            q_BTHD, k_BTHD = rotate(q_BTHD, rotary_TK2), rotate(k_BTHD, rotary_TK2)
        q_BHTD, k_BHTD, v_BHTD = (x.transpose(1, 2) for x in (q_BTHD, k_BTHD, v_BTHD))
        if self.groups < self.heads:
            k_BHTD, v_BHTD = (x.repeat_interleave(self.heads // self.groups, 1) for x in (k_BHTD, v_BHTD))
        if self.heat is not None:
            q_BHTD = self.heat(q_BHTD)
        context_BHTD = self.mix(q_BHTD, k_BHTD, v_BHTD, self.scale)
        if self.gate is not None:
            gate_BTH = F.linear(x_BTD, self.gate, self.gate_bias).sigmoid()
            context_BHTD = gate_BTH.transpose(1, 2)[..., None] * context_BHTD
        return self.gain(F.linear(context_BHTD.transpose(1, 2).flatten(-2), self.out))


class MLP(nn.Module):
    """Norm, widen, act, narrow."""

    def __init__(self, config: QbenchConfig) -> None:
        super().__init__()
        hidden = config.mlp_hidden or config.mlp_ratio * config.width
        self.act = ACTS[config.mlp]
        self.norm = Norm(config.norm, config.width)
        self.before = config.wiring != "post-norm"
        self.pre = nn.Parameter(torch.empty(hidden, config.width))
        self.up = nn.Parameter(torch.empty(hidden, config.width)) if config.mlp == "swiglu" else None
        self.out = nn.Parameter(torch.empty(config.width, hidden))
        self.gain = Gain(config, ADDED[config.wiring][1])

    def forward(self, x_BTD: Tensor) -> Tensor:
        x_BTD = self.norm(x_BTD) if self.before else x_BTD
        hidden_BTF = self.act(F.linear(x_BTD, self.pre))
        if self.up is not None:
            hidden_BTF = hidden_BTF * F.linear(x_BTD, self.up)
        return self.gain(F.linear(hidden_BTF, self.out))


class Block(nn.Module):
    """Attention, then the MLP; an output that is not added is the whole stream."""

    def __init__(self, config: QbenchConfig, layer: int) -> None:
        super().__init__()
        self.wiring = config.wiring
        self.attn = Attention(config, layer)
        self.mlp = MLP(config)

    def forward(self, x_BTD: Tensor, rotary_TK2: Tensor | None) -> Tensor:
        attends, widens = ADDED[self.wiring]
        update_BTD = self.attn(x_BTD, rotary_TK2)
        mid_BTD = x_BTD + update_BTD if attends else update_BTD
        if self.wiring == "post-norm":
            mid_BTD = self.attn.norm(mid_BTD)
        update_BTD = self.mlp(x_BTD if self.wiring == "parallel" else mid_BTD)
        out_BTD = mid_BTD + update_BTD if widens else update_BTD
        return self.mlp.norm(out_BTD) if self.wiring == "post-norm" else out_BTD


def rotate(x_BTHD: Tensor, table_TK2: Tensor) -> Tensor:
    """Turn each pair (2k, 2k + 1) of a head's coordinates by the angle of its position."""
    x_BTHK = torch.view_as_complex(wide(x_BTHD).unflatten(-1, (-1, 2)))
    turn_T1K = torch.view_as_complex(wide(table_TK2)).unsqueeze(1)
    return torch.view_as_real(x_BTHK * turn_T1K).flatten(-2).type_as(x_BTHD)


def wide(x: Tensor) -> Tensor:
    """`x` in float32 where it has fewer bits: there are no complex numbers of 16 bits, and norms would be coarse."""
    return x.float() if x.dtype in (torch.bfloat16, torch.float16) else x
