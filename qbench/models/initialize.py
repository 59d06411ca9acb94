"""Weights at step 0: GPT-2's, recipes that train without skip connections, and a plain control.

Matrices are stored [out, in]. The formulas are written for row vectors, y = x W, so W = stored.T.
Everything is drawn in float64 and rounded once: products that are orthogonal on paper stay so.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from math import sqrt

import torch
from torch import Generator, Tensor, nn

from qbench.models.attention import Attention
from qbench.models.mlps import MLPS
from qbench.models.retention import bisected, logits, own_weight
from qbench.models.spec import Init, ModelSpec
from qbench.models.wiring import WIRINGS

STANDARD_DEVIATION = 0.02
SCALED_OUTPUTS = ("attn.out", "mlp.out")
TRIAL_WIDTH = 256

Weights = Mapping[str, nn.Parameter]
Values = dict[str, Tensor]


def initialize(weights: Weights, spec: ModelSpec, seed: int) -> None:
    """Fill `weights` (as in `Transformer.weights`, and the class token) in place, following `spec.init`.

    Embedding and head come first: models that share a seed share them, whatever their wiring. Tables and projections
    at the ends that only some models have come last. Inside of blocks a matrix more, such as a gate, makes all that is
    drawn after it another draw.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name in ("embed", "logits"):
            tokens = name == "logits" or spec.task == "language"
            deviation = STANDARD_DEVIATION if tokens else 1 / sqrt(weights[name].shape[1])
            weights[name].copy_(deviation * gaussian(weights[name].shape, generator))
        for layer in range(spec.layers):
            prefix = f"blocks.{layer}."
            block = {name.removeprefix(prefix): w for name, w in weights.items() if name.startswith(prefix)}
            for name, value in INITS[spec.init](block, spec, generator).items():
                block[name].copy_(value)
        for name, draw in _ENDS.items():
            if name in weights:
                weights[name].copy_(draw(weights[name].shape, spec, generator))


def gaussian(shape: Sequence[int], generator: Generator) -> Tensor:
    """Independent standard normal values, float64."""
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def gpt2(block: Weights, spec: ModelSpec, generator: Generator) -> Values:
    """Normal with deviation 0.02; the 2 L matrices that write to the stream share one unit of growth between them."""
    shrink = 1 / sqrt(2 * spec.layers)
    return {
        name: STANDARD_DEVIATION * (shrink if name in SCALED_OUTPUTS else 1.0) * gaussian(w.shape, generator)
        for name, w in block.items()
    }


def fan_in(block: Weights, spec: ModelSpec, generator: Generator) -> Values:
    """Normal with variance 1 / fan-in: keeps the scale of the signal and nothing else. The negative control."""
    return {name: gaussian(w.shape, generator) / sqrt(w.shape[1]) for name, w in block.items()}


def suo(block: Weights, spec: ModelSpec, generator: Generator) -> Values:
    """Scaled uniform orthogonal, every matrix: keeps the root mean square of what passes (Martens et al., 2021)."""
    return {name: scaled_orthogonal(w.shape, generator) for name, w in block.items()}


def orthogonal(block: Weights, spec: ModelSpec, generator: Generator) -> Values:
    """Layers that pass the signal on without skips: orthogonal values and MLP, attention that looks at itself.

    W_V = U and W_O = V^T of one Gaussian's SVD; per head W_Q W_K^T close to alpha Z + beta I; W_1 with gain
    sqrt(out / in), so that pre-activations have unit variance; W_2 undoing the power that the activation takes away.
    Source: Ji et al., "Cutting the Skip", arXiv 2510.00345; the gain of W_2 is ours.
    """
    value, out = value_and_output(spec, 1.0, generator)
    q, k = near_diagonal_attention(spec, generator)
    found = {
        "attn.q": q,
        "attn.k": k,
        "attn.v": value,
        "attn.out": out,
        "mlp.pre": scaled_orthogonal(block["mlp.pre"].shape, generator),
        "mlp.out": scaled_orthogonal(block["mlp.out"].shape, generator) / sqrt(MLPS[spec.mlp].power),
    }
    return found | _others(block, found, generator)


def cutting_the_skip(block: Weights, spec: ModelSpec, generator: Generator) -> Values:
    """As published: W_V = c U, W_O = c V^T, near-diagonal queries and keys, scaled uniform orthogonal MLP.

    Source: Ji et al., arXiv 2510.00345, as summarized by others: alpha 2, beta 0.6, c 3 for a ViT-B. Those do not carry
    over to small widths: see `cutting_the_skip_target`.
    """
    value, out = value_and_output(spec, spec.vo_gain, generator)
    q, k = near_diagonal_attention(spec, generator)
    found = {"attn.q": q, "attn.k": k, "attn.v": value, "attn.out": out}
    found |= {name: scaled_orthogonal(block[name].shape, generator) for name in ("mlp.pre", "mlp.out")}
    return found | _others(block, found, generator)


def cutting_the_skip_target(block: Weights, spec: ModelSpec, generator: Generator) -> Values:
    """The same with the beta that makes attention, before any temperature, look at itself 1 - c / L at any width."""
    return cutting_the_skip(block, replace(spec, qk_diagonal=diagonal(spec)), generator)


@lru_cache(maxsize=32)
def diagonal(spec: ModelSpec) -> float:
    """The beta of W_Q W_K^T = alpha Z + beta I at which a head looks at itself 1 - `temperature_strength` / layers.

    Measured on one head, of narrow models on several, which differ more. Raises ValueError where none does it.
    """
    heads = max(1, TRIAL_WIDTH // spec.width)
    one = replace(spec, heads=heads, kv_heads=heads, head_size=spec.size, attention="softmax", temperature="const")
    trial = Attention(one, 0, WIRINGS[spec.wiring].attn)

    @torch.no_grad()
    def looks(beta: float) -> float:
        q, k = near_diagonal_attention(replace(one, qk_diagonal=beta), torch.Generator().manual_seed(0))
        trial.q.copy_(q)
        trial.k.copy_(k)
        return own_weight(logits(trial, one))

    return bisected(looks, 1 - spec.temperature_strength / spec.layers, f"init {spec.init}, qk_diagonal")


def mimetic(block: Weights, spec: ModelSpec, generator: Generator) -> Values:
    """Like trained attention: W_Q W_K^T near alpha Z + beta I, W_V W_O near alpha Z - beta I; the MLP as GPT-2's.

    Source: Trockman & Kolter, arXiv 2305.09828; alpha = beta = 0.7 and 0.4.
    """
    q, k = near_diagonal_attention(spec, generator)
    eye = torch.eye(spec.width, dtype=torch.float64)
    target = spec.vo_noise * gaussian(eye.shape, generator) / sqrt(spec.width) - spec.vo_diagonal * eye
    u, s, vt = torch.linalg.svd(target)
    root = s.sqrt()
    found = {"attn.q": q, "attn.k": k, "attn.v": (u * root).T, "attn.out": vt.T * root}
    rest = {name: w for name, w in block.items() if name not in found}
    return found | gpt2(rest, spec, generator)


def shaped(block: Weights, spec: ModelSpec, generator: Generator) -> Values:
    """For shaped attention: queries 0, values and output the identity; the rest keeps the scale of the signal.

    Source: He & Hofmann, "Simplifying Transformer Blocks", arXiv 2311.01906. They keep W = I + gain * W'; here W = I.
    """
    eye = torch.eye(spec.width, dtype=torch.float64)
    found = {"attn.q": torch.zeros_like(eye), "attn.v": eye, "attn.out": eye}
    return found | fan_in({name: w for name, w in block.items() if name not in found}, spec, generator)


def semi_orthogonal(shape: Sequence[int], generator: Generator) -> Tensor:
    """The matrix with all singular values 1 that is nearest to a Gaussian one, so uniformly distributed."""
    u, _, vt = torch.linalg.svd(gaussian(shape, generator), full_matrices=False)
    return u @ vt


def scaled_orthogonal(shape: Sequence[int], generator: Generator) -> Tensor:
    """Semi-orthogonal times max(1, sqrt(out / in)): outputs have, on average, the mean square of the inputs."""
    return max(1.0, sqrt(shape[0] / shape[1])) * semi_orthogonal(shape, generator)


def value_and_output(spec: ModelSpec, gain: float, generator: Generator) -> tuple[Tensor, Tensor]:
    """Stored W_V = c U and W_O = c V^T: their product is c^2 times an orthogonal matrix.

    Where the heads together are not as wide as the stream, or share values, there is no such product: both are then
    scaled uniform orthogonal, times c.
    """
    inner, shared = spec.heads * spec.size, spec.groups * spec.size
    if inner != spec.width or shared != inner:
        shapes = ((shared, spec.width), (spec.width, inner))
        value, out = (gain * scaled_orthogonal(shape, generator) for shape in shapes)
        return value, out
    u, _, vt = torch.linalg.svd(gaussian((spec.width, spec.width), generator))
    return gain * u.T, gain * vt.T


def near_diagonal_attention(spec: ModelSpec, generator: Generator) -> tuple[Tensor, Tensor]:
    """Stored query and key matrices, all heads stacked: [heads * size, width] and [kv_heads * size, width].

    Per head W_Q W_K^T is the best approximation, at the rank of a head, of alpha Z + beta I with
    Z_ij ~ N(0, 1 / width) drawn afresh. The heads do not sum to beta I. Of heads that share keys the first one's are
    used, and the queries of the others are the best for their own Z with those keys.
    """
    queries: list[Tensor] = []
    keys: list[Tensor] = []
    for head in range(spec.heads):
        noise = gaussian((spec.width, spec.width), generator) / sqrt(spec.width)
        target = spec.qk_noise * noise + spec.qk_diagonal * torch.eye(spec.width, dtype=torch.float64)
        if head % (spec.heads // spec.groups) == 0:
            u, s, vt = torch.linalg.svd(target)
            root = s[: spec.size].sqrt()
            queries.append((u[:, : spec.size] * root).T)
            keys.append((vt[: spec.size].T * root).T)
        else:
            queries.append(torch.linalg.pinv(keys[-1].T) @ target.T)
    return torch.cat(queries), torch.cat(keys)


def _others(block: Weights, found: Values, generator: Generator) -> Values:
    """What only some blocks have: a second projection like the first, a gate that begins near its bias."""
    others: Values = {}
    for name, w in block.items():
        if name == "attn.gate":
            others[name] = STANDARD_DEVIATION * gaussian(w.shape, generator)
        elif name not in found:
            others[name] = scaled_orthogonal(w.shape, generator)
    return others


INITS: Mapping[Init, Callable[[Weights, ModelSpec, Generator], Values]] = {
    "gpt2": gpt2,
    "fan-in": fan_in,
    "orthogonal": orthogonal,
    "suo": suo,
    "cutting-the-skip": cutting_the_skip,
    "cutting-the-skip-target": cutting_the_skip_target,
    "mimetic": mimetic,
    "shaped": shaped,
}


def _vectors(shape: Sequence[int], spec: ModelSpec, generator: Generator) -> Tensor:
    return spec.position_deviation * gaussian(shape, generator)


def _rotation(shape: Sequence[int], spec: ModelSpec, generator: Generator) -> Tensor:
    return semi_orthogonal(shape, generator)


_ENDS: Mapping[str, Callable[[Sequence[int], ModelSpec, Generator], Tensor]] = {
    "positions": _vectors,
    "class_token": _vectors,
    "embed_projection": _rotation,
    "final_projection": _rotation,
}
