"""What attention does with its logits: how much of each value goes into each context.

Shape suffixes: B windows, H heads, T queries, S keys, D head size.
"""

from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from qbench.models.spec import Attention, ModelSpec


class Softmax(nn.Module):
    """Softmax of the logits, by torch's own kernels."""

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__()
        self.causal = spec.task == "language"

    def forward(self, q_BHTD: Tensor, k_BHTD: Tensor, v_BHTD: Tensor, scale: float) -> Tensor:
        return F.scaled_dot_product_attention(q_BHTD, k_BHTD, v_BHTD, is_causal=self.causal, scale=scale)


class Clipped(nn.Module):
    """clip((1 - gamma) softmax + gamma, 0, 1) with gamma = -alpha / context: a head can attend to nothing.

    Source: Bondarenko et al., arXiv 2306.12929. Where alpha > 1, even attention to a whole context is clipped away.
    """

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__()
        self.causal = spec.task == "language"
        self.gamma = -spec.clip / spec.length

    def forward(self, q_BHTD: Tensor, k_BHTD: Tensor, v_BHTD: Tensor, scale: float) -> Tensor:
        weights_BHTS = softmax(q_BHTD, k_BHTD, scale, self.causal)
        return ((1 - self.gamma) * weights_BHTS + self.gamma).clamp(0, 1) @ v_BHTD


class Polynomial(nn.Module):
    """logit^p / sqrt(number of keys in sight) in the place of softmax (Saratchandran et al., arXiv 2410.18613)."""

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__()
        self.causal = spec.task == "language"
        self.power = spec.power

    def forward(self, q_BHTD: Tensor, k_BHTD: Tensor, v_BHTD: Tensor, scale: float) -> Tensor:
        seen_TS = in_sight(q_BHTD, self.causal)
        weights_BHTS = (q_BHTD @ k_BHTD.mT * scale).pow(self.power) * seen_TS
        return weights_BHTS * seen_TS.sum(-1, keepdim=True).rsqrt() @ v_BHTD


class Shaped(nn.Module):
    """alpha I + beta softmax - gamma C, C even attention; each a learned number for each head, 1 at first.

    With queries of 0 the softmax is C at step 0, and attention the identity. Source: He & Hofmann, arXiv 2311.01906.
    """

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__()
        self.causal = spec.task == "language"
        self.itself, self.attended, self.even = (nn.Parameter(torch.ones(spec.heads)) for _ in range(3))

    def forward(self, q_BHTD: Tensor, k_BHTD: Tensor, v_BHTD: Tensor, scale: float) -> Tensor:
        attended_BHTS = softmax(q_BHTD, k_BHTD, scale, self.causal)
        seen_TS = in_sight(q_BHTD, self.causal)
        even_TS = seen_TS / seen_TS.sum(-1, keepdim=True)
        mixed_BHTS = self.attended[:, None, None] * attended_BHTS - self.even[:, None, None] * even_TS
        return self.itself[:, None, None] * v_BHTD + mixed_BHTS @ v_BHTD


def softmax(q_BHTD: Tensor, k_BHTD: Tensor, scale: float, causal: bool) -> Tensor:
    """The weights of softmax attention, [B, H, T, S]."""
    logits_BHTS = q_BHTD @ k_BHTD.mT * scale
    if causal:
        logits_BHTS = logits_BHTS.masked_fill(in_sight(q_BHTD, causal) == 0, float("-inf"))
    return logits_BHTS.softmax(-1)


def in_sight(q_BHTD: Tensor, causal: bool) -> Tensor:
    """1 where query t sees key s, else 0: [T, S]."""
    length = q_BHTD.shape[-2]
    all_TS = torch.ones(length, length, dtype=q_BHTD.dtype, device=q_BHTD.device)
    return all_TS.tril() if causal else all_TS


ATTENTIONS: Mapping[Attention, Callable[[ModelSpec], nn.Module]] = {
    "softmax": Softmax,
    "gated": Softmax,  # its gate is on the context, in `attention`
    "clipped": Clipped,
    "polynomial": Polynomial,
    "shaped": Shaped,
}
