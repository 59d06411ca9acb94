"""Norms: what sets the scale of each token.

Tensors of 16 bits are normalized in float32 and rounded once, so that no wiring has coarser norms than another.

Shape suffixes: B windows, T tokens, D width.
"""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional

from qbench.models.spec import Norm

EPSILON = 1e-6


class RMSNorm(nn.Module):
    """x / sqrt(mean(x^2) + 1e-6) * gain over the last axis (Zhang & Sennrich, arXiv 1910.07467).

    With `gains` 1 a single gain scales all channels: SSNorm of Outlier-Safe Pre-Training (arXiv 2506.19697), which
    cannot make one channel larger than the others.
    """

    def __init__(self, gains: int) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(gains))

    def forward(self, x_BTD: Tensor) -> Tensor:
        return (_scaled(wide(x_BTD)) * self.gain).type_as(x_BTD)


class RMSNormNoGain(nn.Module):
    """RMSNorm whose gain is 1 and stays 1."""

    def forward(self, x_BTD: Tensor) -> Tensor:
        return _scaled(wide(x_BTD)).type_as(x_BTD)


class LayerNorm(nn.Module):
    """(x - mean) / sqrt(variance + 1e-6) * gain over the last axis (Ba et al., arXiv 1607.06450), without a bias."""

    def __init__(self, gains: int) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(gains))

    def forward(self, x_BTD: Tensor) -> Tensor:
        wide_BTD = wide(x_BTD)
        return functional.layer_norm(wide_BTD, self.gain.shape, wide(self.gain), eps=EPSILON).type_as(x_BTD)


def wide(x: Tensor) -> Tensor:
    """`x` in float32 where it has fewer bits."""
    return x.float() if x.dtype in (torch.bfloat16, torch.float16) else x


def _scaled(x_BTD: Tensor) -> Tensor:
    # Spelled out: F.rms_norm is 30 % slower forward and backward on CPU, and as exact.
    return x_BTD * torch.rsqrt(x_BTD.square().mean(-1, keepdim=True) + EPSILON)


# Each row makes the norm of vectors of a width.
NORMS: Mapping[Norm, Callable[[int], nn.Module]] = {
    "rmsnorm": RMSNorm,
    "rmsnorm-no-gain": lambda width: RMSNormNoGain(),
    "ssnorm": lambda width: RMSNorm(1),
    "layernorm": LayerNorm,
    "none": lambda width: nn.Identity(),
}
