"""A qbench model for plain `transformers`: this file travels with the weights, and needs nothing of qbench.

Shape suffixes: B windows, T tokens, D width, H heads, K half a head, V vocabulary.
"""

from math import sqrt
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import GenerationMixin, PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutput


class QbenchConfig(PreTrainedConfig):
    """Size and wiring: "residual" or "residual-free"; `attention_temperature` is "const" or "inv-sqrt-layer"."""

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
    mlp_ratio: int = 4
    wiring: str = "residual"
    attention_temperature: str = "const"


class RMSNorm(nn.Module):
    """x / sqrt(mean(x^2) + 1e-6) * gain over the last axis."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(width))

    def forward(self, x_BTD: Tensor) -> Tensor:
        return x_BTD * torch.rsqrt(x_BTD.square().mean(-1, keepdim=True) + 1e-6) * self.gain


class Attention(nn.Module):
    """Norm, causal attention with rotary positions, output projection."""

    def __init__(self, config: QbenchConfig, layer: int) -> None:
        super().__init__()
        self.heads = config.heads
        flatness = sqrt(1 + layer) if config.attention_temperature == "inv-sqrt-layer" else 1.0
        self.scale = (1 / flatness) / sqrt(config.width // config.heads)
        self.norm = RMSNorm(config.width)
        self.q, self.k, self.v, self.out = (nn.Parameter(torch.empty(config.width, config.width)) for _ in range(4))

    def forward(self, x_BTD: Tensor, rotary_TK2: Tensor) -> Tensor:
        x_BTD = self.norm(x_BTD)
        q_BTD, k_BTD, v_BTD = F.linear(x_BTD, torch.cat([self.q, self.k, self.v])).chunk(3, -1)
        q_BTHD, k_BTHD, v_BTHD = (x.unflatten(-1, (self.heads, -1)) for x in (q_BTD, k_BTD, v_BTD))
        q_BHTD = rotate(q_BTHD, rotary_TK2).transpose(1, 2)
        k_BHTD = rotate(k_BTHD, rotary_TK2).transpose(1, 2)
        context_BHTD = F.scaled_dot_product_attention(
            q_BHTD, k_BHTD, v_BTHD.transpose(1, 2), is_causal=True, scale=self.scale
        )
        return F.linear(context_BHTD.transpose(1, 2).flatten(-2), self.out)


class MLP(nn.Module):
    """Norm, widen, GELU, narrow."""

    def __init__(self, config: QbenchConfig) -> None:
        super().__init__()
        hidden = config.mlp_ratio * config.width
        self.norm = RMSNorm(config.width)
        self.pre = nn.Parameter(torch.empty(hidden, config.width))
        self.out = nn.Parameter(torch.empty(config.width, hidden))

    def forward(self, x_BTD: Tensor) -> Tensor:
        return F.linear(F.gelu(F.linear(self.norm(x_BTD), self.pre)), self.out)


class Block(nn.Module):
    """Attention, then the MLP; without the residual wiring each one's output is the whole stream."""

    def __init__(self, config: QbenchConfig, layer: int) -> None:
        super().__init__()
        self.residual = config.wiring == "residual"
        self.attn = Attention(config, layer)
        self.mlp = MLP(config)

    def forward(self, x_BTD: Tensor, rotary_TK2: Tensor) -> Tensor:
        update_BTD = self.attn(x_BTD, rotary_TK2)
        x_BTD = x_BTD + update_BTD if self.residual else update_BTD
        update_BTD = self.mlp(x_BTD)
        return x_BTD + update_BTD if self.residual else update_BTD


class QbenchForCausalLM(PreTrainedModel, GenerationMixin):
    """Tokens in, next-token logits out; there is no cache, so that generating reads the whole window every time."""

    config_class = QbenchConfig
    config: QbenchConfig

    def __init__(self, config: QbenchConfig) -> None:
        super().__init__(config)
        self.embed = nn.Parameter(torch.empty(config.vocabulary, config.width))
        self.blocks = nn.ModuleList([Block(config, layer) for layer in range(config.layers)])
        self.norm = RMSNorm(config.width)
        self.logits = nn.Parameter(torch.empty(config.vocabulary, config.width))
        self.post_init()

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, labels: Tensor | None = None, **_: Any
    ) -> CausalLMOutput:
        """Logits [B, T, V] of tokens [B, T], and the mean loss of the tokens after the first where labels are given.

        Raises ValueError where the tokens exceed the context, or where padding comes first.
        """
        length = input_ids.shape[-1]
        if length > self.config.context:
            raise ValueError(f"{length} tokens do not fit a context of {self.config.context}")
        if attention_mask is not None and not bool(attention_mask[..., 0].all()):
            raise ValueError("padding comes first: positions are counted from the left, pad on the right")
        table_TK2 = rotary_table(length, self.config.width // self.config.heads).to(input_ids.device)
        x_BTD = F.embedding(input_ids, self.embed)
        for block in self.blocks:
            x_BTD = block(x_BTD, table_TK2)
        logits_BTV = F.linear(self.norm(x_BTD), self.logits)
        loss = None
        if labels is not None:
            loss = F.cross_entropy(logits_BTV[:, :-1].flatten(0, 1).float(), labels[:, 1:].flatten())
        return CausalLMOutput(loss=loss, logits=logits_BTV)

    def _init_weights(self, module: nn.Module) -> None:
        """Nothing: the weights come from the checkpoint."""


def rotary_table(length: int, head: int) -> Tensor:
    """(cos, sin) of t * 10000^(-2 k / head) at [t, k]: [length, head / 2, 2]."""
    frequency_K = 10_000.0 ** (-torch.arange(0, head, 2, dtype=torch.float64) / head)
    angle_TK = torch.outer(torch.arange(length, dtype=torch.float64), frequency_K)
    return torch.stack([angle_TK.cos(), angle_TK.sin()], -1).float()


def rotate(x_BTHD: Tensor, table_TK2: Tensor) -> Tensor:
    """Turn each pair (2k, 2k + 1) of a head's coordinates by the angle of its position."""
    x_BTHK = torch.view_as_complex(x_BTHD.unflatten(-1, (-1, 2)))
    return torch.view_as_real(x_BTHK * torch.view_as_complex(table_TK2).unsqueeze(1)).flatten(-2)
