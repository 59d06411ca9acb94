"""A decoder written out with plain matrix products, one place after the other: what captures are compared with."""

from collections.abc import Callable
from math import sqrt

import torch
from torch import Tensor
from torch.nn.functional import gelu

from qbench.models.catalog import model_spec
from qbench.models.spec import ModelSpec, Wiring
from qbench.models.transformer import Transformer, build

At = Callable[[str, Tensor], Tensor]
WIRINGS: tuple[Wiring, ...] = ("residual", "residual-free")


def small(wiring: Wiring, layers: int = 2, width: int = 16) -> Transformer:
    """A model whose every number matters: random gains, weights far from zero; in evaluation mode."""
    spec = model_spec(wiring, layers=layers, width=width, heads=2, context=12, vocabulary=32, init="fan-in")
    model = build(spec, seed=0)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 1:
                parameter.copy_(1 + 0.3 * torch.randn(parameter.shape, generator=generator))
            elif name in ("embed", "logits"):
                parameter.mul_(20)
    return model.eval()


def tokens(windows: int, length: int = 12, seed: int = 2) -> Tensor:
    return torch.randint(32, (windows, length), generator=torch.Generator().manual_seed(seed))


def forward(model: Transformer, read: Tensor, at: At) -> Tensor:
    """Logits of tokens [B, T]; every tensor with a name is replaced by what `at(name, tensor)` returns."""
    own = dict(model.named_parameters())
    x = at("embed", own["embed"][read])
    for layer in range(model.spec.layers):
        for part, last, inner in (("attn", "mid", attention), ("mlp", "out", mlp)):
            name = f"blocks.{layer}.{part}"
            normal = at(f"{name}.in", normalized(x, own[f"{name}.norm.gain"]))
            update = inner(own, model.spec, name, (normal, at))
            if model.spec.wiring == "residual":
                update = x + at(f"{name}.out", update)
            x = at(f"blocks.{layer}.{last}", update)
    return at("logits", at("final", normalized(x, own["norm.gain"])) @ own["logits"].T)


def normalized(x: Tensor, gain: Tensor) -> Tensor:
    return x / (x.pow(2).mean(-1, keepdim=True) + 1e-6).sqrt() * gain


def mlp(own: dict[str, Tensor], _spec: ModelSpec, name: str, given: tuple[Tensor, At]) -> Tensor:
    x, at = given
    return at(f"{name}.hidden", gelu(at(f"{name}.pre", x @ own[f"{name}.pre"].T))) @ own[f"{name}.out"].T


def attention(own: dict[str, Tensor], spec: ModelSpec, name: str, given: tuple[Tensor, At]) -> Tensor:
    x, at = given
    size = spec.width // spec.heads
    q = at(f"{name}.q", turned(x @ own[f"{name}.q"].T, size))
    k = at(f"{name}.k", turned(x @ own[f"{name}.k"].T, size))
    v = at(f"{name}.v", x @ own[f"{name}.v"].T)
    layer = int(name.split(".")[1])
    temperature = 1 / sqrt(1 + layer) if spec.temperature == "inv-sqrt-layer" else 1.0
    future = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool).triu(1)
    context: list[Tensor] = []
    for head in range(spec.heads):
        part = slice(head * size, (head + 1) * size)
        scores = q[..., part] @ k[..., part].transpose(1, 2) * temperature / sqrt(size)
        context.append(scores.masked_fill(future, float("-inf")).softmax(-1) @ v[..., part])
    return at(f"{name}.context", torch.cat(context, -1)) @ own[f"{name}.out"].T


def turned(x: Tensor, size: int) -> Tensor:
    """Each pair of neighbours of a head turned by position times 10000^(-2 k / size)."""
    position = torch.arange(x.shape[1], dtype=torch.float64)[:, None]
    pair = torch.arange(x.shape[2], dtype=torch.float64)[::2] % size
    angle = position * 10_000 ** (-pair / size)
    cos, sin = angle.cos().to(x.dtype), angle.sin().to(x.dtype)
    even, odd = x[..., ::2], x[..., 1::2]
    return torch.stack([even * cos - odd * sin, even * sin + odd * cos], -1).flatten(-2)
