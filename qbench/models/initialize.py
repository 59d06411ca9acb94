"""Weights at step 0: GPT-2's, the orthogonal recipe of residual-free models, and a plain control.

Matrices are stored [out, in]. The formulas are written for row vectors, y = x W, so W = stored.T.
Everything is drawn in float64 and rounded once: products that are orthogonal on paper stay so.
"""

from collections.abc import Callable, Mapping, Sequence
from math import sqrt

import torch
from torch import Generator, Tensor, nn

from qbench.models.spec import Init, ModelSpec

STANDARD_DEVIATION = 0.02
GELU_POWER = 0.425  # E[gelu(z)^2] for z ~ N(0, 1)
SCALED_OUTPUTS = ("attn.out", "mlp.out")

Weights = Mapping[str, nn.Parameter]


def initialize(weights: Weights, spec: ModelSpec, seed: int) -> None:
    """Fill `weights` (as in `Transformer.weights`) in place, following `spec.init`.

    Embedding and head come first: models that share a seed share them, whatever their wiring.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name in ("embed", "logits"):
            weights[name].copy_(STANDARD_DEVIATION * gaussian(weights[name].shape, generator))
        for layer in range(spec.layers):
            prefix = f"blocks.{layer}."
            block = {name.removeprefix(prefix): w for name, w in weights.items() if name.startswith(prefix)}
            for name, value in INITS[spec.init](block, spec, generator).items():
                block[name].copy_(value)


def gaussian(shape: Sequence[int], generator: Generator) -> Tensor:
    """Independent standard normal values, float64."""
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def gpt2(block: Weights, spec: ModelSpec, generator: Generator) -> dict[str, Tensor]:
    """Normal with deviation 0.02; the 2 L matrices that write to the stream share one unit of growth between them."""
    shrink = 1 / sqrt(2 * spec.layers)
    return {
        name: STANDARD_DEVIATION * (shrink if name in SCALED_OUTPUTS else 1.0) * gaussian(w.shape, generator)
        for name, w in block.items()
    }


def fan_in(block: Weights, spec: ModelSpec, generator: Generator) -> dict[str, Tensor]:
    """Normal with variance 1 / fan-in: keeps the scale of the signal and nothing else. The negative control."""
    return {name: gaussian(w.shape, generator) / sqrt(w.shape[1]) for name, w in block.items()}


def orthogonal(block: Weights, spec: ModelSpec, generator: Generator) -> dict[str, Tensor]:
    """Layers that pass the signal on without skips: orthogonal values and MLP, attention that looks at itself.

    W_V = U and W_O = V^T of one Gaussian's SVD; per head W_Q W_K^T close to alpha Z + beta I; W_1 with gain
    sqrt(out / in), so that pre-activations have unit variance; W_2 undoing the power that GELU takes away.
    Source: Ji et al., "Cutting the Skip", arXiv 2510.00345; the gain of W_2 is ours.
    """
    u, _, vt = torch.linalg.svd(gaussian((spec.width, spec.width), generator))
    q, k = near_diagonal_attention(spec, generator)
    return {
        "attn.q": q,
        "attn.k": k,
        "attn.v": u.T,
        "attn.out": vt.T,
        "mlp.pre": sqrt(spec.mlp_ratio) * semi_orthogonal(block["mlp.pre"].shape, generator),
        "mlp.out": semi_orthogonal(block["mlp.out"].shape, generator) / sqrt(GELU_POWER),
    }


def semi_orthogonal(shape: Sequence[int], generator: Generator) -> Tensor:
    """The matrix with all singular values 1 that is nearest to a Gaussian one, so uniformly distributed."""
    u, _, vt = torch.linalg.svd(gaussian(shape, generator), full_matrices=False)
    return u @ vt


def near_diagonal_attention(spec: ModelSpec, generator: Generator) -> tuple[Tensor, Tensor]:
    """Stored query and key matrices, all heads stacked, each [width, width].

    Per head W_Q W_K^T is the best approximation, at the rank of a head, of alpha Z + beta I with
    Z_ij ~ N(0, 1 / width) drawn afresh. The heads do not sum to beta I.
    """
    size = spec.width // spec.heads
    queries: list[Tensor] = []
    keys: list[Tensor] = []
    for _ in range(spec.heads):
        noise = gaussian((spec.width, spec.width), generator) / sqrt(spec.width)
        target = spec.qk_noise * noise + spec.qk_diagonal * torch.eye(spec.width, dtype=torch.float64)
        u, s, vt = torch.linalg.svd(target)
        root = s[:size].sqrt()
        queries.append((u[:, :size] * root).T)
        keys.append((vt[:size].T * root).T)
    return torch.cat(queries), torch.cat(keys)


INITS: Mapping[Init, Callable[[Weights, ModelSpec, Generator], dict[str, Tensor]]] = {
    "gpt2": gpt2,
    "fan-in": fan_in,
    "orthogonal": orthogonal,
}
