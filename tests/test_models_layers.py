"""Layers and initialization against closed forms and second implementations."""

import cmath
from math import erf, sqrt

import pytest
import torch
from torch import Tensor

from qbench.models.attention import TEMPERATURES, Attention
from qbench.models.catalog import model_spec
from qbench.models.initialize import GELU_POWER, gaussian
from qbench.models.layers import MLP, RMSNorm, Site, rotary_table, rotate
from qbench.models.spec import ModelSpec
from qbench.models.transformer import build

SPEC = model_spec("residual-free", layers=2, width=64, heads=4, context=32)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_rmsnorm_is_its_formula() -> None:
    x = torch.randn(3, 5, 24, generator=generator()) * torch.tensor([1e-4, 1.0, 1e4]).view(3, 1, 1)
    norm = RMSNorm(24)
    with torch.no_grad():
        norm.gain.copy_(torch.randn(24, generator=generator(1)))
    exact = x.double() / (x.double().pow(2).mean(-1, keepdim=True) + 1e-6).sqrt() * norm.gain.double()
    torch.testing.assert_close(norm(x).double(), exact, rtol=1e-6, atol=1e-7)


def test_rotation_is_multiplication_by_a_unit_complex_number() -> None:
    x = torch.randn(2, 6, 3, 8, generator=generator())
    turned = rotate(x, rotary_table(context=6, head=8))
    for t in range(6):
        for k in range(4):
            turn = cmath.exp(1j * t * 10_000 ** (-2 * k / 8))
            pairs = (y[:, t, :, 2 * k : 2 * k + 2].reshape(-1, 2).tolist() for y in (x, turned))
            for pair, found in zip(*pairs, strict=True):
                expected = complex(*pair) * turn
                assert found == pytest.approx([expected.real, expected.imag], abs=1e-5)


def test_rotated_products_depend_on_the_distance_alone() -> None:
    table = rotary_table(context=40, head=16)
    q, k = torch.randn(2, 16, generator=generator())
    queries = rotate(q.expand(1, 40, 1, 16), table)[0, :, 0]
    keys = rotate(k.expand(1, 40, 1, 16), table)[0, :, 0]
    products = queries @ keys.T
    for distance in range(-39, 40):
        along = products.diagonal(distance)
        torch.testing.assert_close(along, along[:1].expand_as(along), rtol=0, atol=2e-4)
    assert products[0].std() > 0.1  # and they do depend on it


def reference_attention(attention: Attention, x_TD: Tensor, temperature: float) -> Tensor:
    """Softmax attention of one window, written out position by position in float64."""
    heads, size = attention.heads, x_TD.shape[-1] // attention.heads
    x = x_TD.double()
    x = x / (x.pow(2).mean(-1, keepdim=True) + 1e-6).sqrt() * attention.norm.gain.double()
    q, k, v = (x @ w.double().T for w in (attention.q, attention.k, attention.v))
    context = torch.zeros_like(x)
    for h in range(heads):
        part = slice(h * size, (h + 1) * size)
        turns = torch.tensor([[1j * t * 10_000 ** (-2 * i / size) for i in range(size // 2)] for t in range(len(x))])
        turns = turns.to(torch.complex128).exp()
        qc = torch.view_as_complex(q[:, part].reshape(len(x), -1, 2)) * turns
        kc = torch.view_as_complex(k[:, part].reshape(len(x), -1, 2)) * turns
        for t in range(len(x)):
            logits = (qc[t].conj() * kc[: t + 1]).real.sum(-1) * temperature / sqrt(size)
            context[t, part] = logits.softmax(-1) @ v[: t + 1, part]
    return context @ attention.out.double().T


@pytest.mark.parametrize("layer", [0, 3])
def test_attention_is_its_formula(layer: int) -> None:
    attention = Attention(ModelSpec(width=16, heads=2, context=12, temperature="inv-sqrt-layer"), layer, Site())
    with torch.no_grad():
        for w in (attention.q, attention.k, attention.v, attention.out):
            w.copy_(gaussian(w.shape, generator(7 + len(w))) / 2)
    x = torch.randn(1, 12, 16, generator=generator(3))
    exact = reference_attention(attention, x[0], temperature=1 / sqrt(1 + layer))
    torch.testing.assert_close(attention(x)[0].double(), exact, rtol=1e-5, atol=1e-5)


def test_temperatures_are_their_formulas() -> None:
    assert [TEMPERATURES["const"](layer) for layer in range(3)] == [1, 1, 1]
    assert [TEMPERATURES["inv-sqrt-layer"](layer) for layer in (0, 3, 8)] == pytest.approx([1, 1 / 2, 1 / 3])


def test_mlp_is_its_formula() -> None:
    mlp = MLP(8, 32, Site())
    with torch.no_grad():
        mlp.pre.copy_(gaussian((32, 8), generator()))
        mlp.out.copy_(gaussian((8, 32), generator(1)))
    x = torch.randn(1, 3, 8, generator=generator(2))
    normal = x.double() / (x.double().pow(2).mean(-1, keepdim=True) + 1e-6).sqrt()
    pre = normal @ mlp.pre.double().T
    hidden = torch.tensor([z * (1 + erf(z / sqrt(2))) / 2 for z in pre.flatten().tolist()], dtype=torch.float64)
    torch.testing.assert_close(mlp(x).double(), hidden.view_as(pre) @ mlp.out.double().T, rtol=1e-5, atol=1e-5)


def test_the_power_of_gelu_is_an_integral() -> None:
    z = torch.linspace(-12, 12, 200_001, dtype=torch.float64)
    density = torch.exp(-z * z / 2) / sqrt(2 * torch.pi)
    power = torch.trapezoid(torch.nn.functional.gelu(z).square() * density, z).item()
    assert power == pytest.approx(GELU_POWER, abs=5e-4)


@pytest.mark.parametrize("layer", range(SPEC.layers))
def test_orthogonal_init_is_orthogonal(layer: int) -> None:
    weights = build(SPEC, seed=0).weights()
    eye = torch.eye(64)
    value, out = weights[f"blocks.{layer}.attn.v"], weights[f"blocks.{layer}.attn.out"]
    wide, narrow = weights[f"blocks.{layer}.mlp.pre"], weights[f"blocks.{layer}.mlp.out"]
    for gram in (value @ value.T, out @ out.T, wide.T @ wide / 4, narrow @ narrow.T * 0.425):
        torch.testing.assert_close(gram, eye, rtol=0, atol=1e-6)


def test_value_and_output_come_from_one_svd() -> None:
    """Their product U V^T is the orthogonal factor of the Gaussian: it turns it into a symmetric positive matrix."""
    weights = build(SPEC, seed=5).weights()
    g = generator(5)
    for name in ("embed", "logits"):
        gaussian(weights[name].shape, g)
    drawn = gaussian((64, 64), g)
    product = (weights["blocks.0.attn.v"].T @ weights["blocks.0.attn.out"].T).double()
    positive = drawn @ product.T
    torch.testing.assert_close(positive, positive.T, rtol=0, atol=1e-4)
    assert torch.linalg.eigvalsh(positive.detach()).min() > 0


def test_query_times_key_is_the_best_approximation_at_the_rank_of_a_head() -> None:
    """Rank d_h by construction; near alpha Z + beta I; and no other rank-d_h matrix comes nearer (Eckart & Young)."""
    noise, diagonal, width, size = 0.1, 5.0, 64, 16
    weights = build(SPEC, seed=0).weights()
    g = generator(0)
    for name in ("embed", "logits"):
        gaussian(weights[name].shape, g)
    gaussian((width, width), g)  # values and output
    for head in range(4):
        target = noise * gaussian((width, width), g) / sqrt(width) + diagonal * torch.eye(width, dtype=torch.float64)
        rows = slice(head * size, (head + 1) * size)
        q, k = (weights[f"blocks.0.attn.{name}"][rows].detach().double() for name in ("q", "k"))
        found = q.T @ k
        tail = torch.linalg.eigvalsh(target @ target.T)[:-size]  # what no matrix of this rank can reach
        assert (target - found).norm() == pytest.approx(tail.sum().sqrt().item(), rel=1e-6)
        torch.testing.assert_close(q @ q.T, k @ k.T, rtol=0, atol=1e-5)  # the scale is shared evenly


@pytest.mark.parametrize(("arch", "deviations"), [
    ("residual", {"attn.q": 0.02, "attn.out": 0.01, "mlp.pre": 0.02, "mlp.out": 0.01}),
    ("residual-free-plain", {"attn.q": 0.125, "attn.out": 0.125, "mlp.pre": 0.125, "mlp.out": 0.0625}),
])  # fmt: skip
def test_normal_inits_have_the_deviation_they_state(arch: str, deviations: dict[str, float]) -> None:
    weights = build(model_spec(arch, layers=2, width=64), seed=0).weights()
    for name, deviation in {
        **{f"blocks.1.{n}": d for n, d in deviations.items()},
        "embed": 0.02,
        "logits": 0.02,
    }.items():
        w = weights[name]
        assert w.std().item() == pytest.approx(deviation, rel=4 / sqrt(2 * w.numel())), name
        assert abs(w.mean().item()) < 4 * deviation / sqrt(w.numel()), name


def self_attention(width: int, tokens: int, qk_noise: float, qk_diagonal: float) -> float:
    """Mean weight that unmasked, unrotated attention gives a token itself, on normalized Gaussian tokens."""
    spec = model_spec("residual-free", layers=1, width=width, heads=width // 64 or 1, qk_noise=qk_noise,
                      qk_diagonal=qk_diagonal, temperature="const")  # fmt: skip
    weights = build(spec, seed=0).weights()
    x = torch.randn(8, tokens, width, generator=generator())
    x = x / x.square().mean(-1, keepdim=True).sqrt()
    q, k = ((x @ weights[f"blocks.0.attn.{n}"].T).unflatten(-1, (spec.heads, -1)).transpose(1, 2) for n in "qk")
    return (q @ k.mT / sqrt(width // spec.heads)).softmax(-1).diagonal(dim1=-2, dim2=-1).mean().item()


@pytest.mark.parametrize(("noise", "diagonal", "tokens", "published"), [
    (2.0, 0.6, 64, 0.81), (2.0, 0.6, 256, 0.62), (0.7, 0.7, 64, 0.97), (0.7, 0.7, 256, 0.92), (0.1, 5.0, 256, 1.0),
])  # fmt: skip
def test_attention_looks_at_itself_as_much_as_measured_elsewhere(
    noise: float, diagonal: float, tokens: int, published: float
) -> None:
    """Independent measurement at width 256, head size 64, of one draw each: ours spread by 0.02."""
    assert self_attention(256, tokens, noise, diagonal) == pytest.approx(published, abs=0.04)


def last_layer_self_attention(spec: ModelSpec) -> float:
    """Mean weight of a token on itself in the last layer of a fresh model, where 32 to 64 tokens are in sight."""
    model = build(spec, seed=0)
    seen: dict[str, Tensor] = {}
    for name in ("q", "k"):
        model.sites()[f"blocks.{spec.layers - 1}.attn.{name}"].register_forward_hook(
            lambda _m, _a, out, name=name: seen.update({name: out.unflatten(-1, (spec.heads, -1)).transpose(1, 2)})
        )
    model(torch.stack([torch.randperm(256, generator=generator(s))[:64] for s in range(8)]))
    logits = seen["q"] @ seen["k"].mT * TEMPERATURES[spec.temperature](spec.layers - 1) / sqrt(spec.width // spec.heads)
    logits = logits.masked_fill(torch.ones(64, 64).triu(1).bool(), float("-inf"))
    return logits.softmax(-1).diagonal(dim1=-2, dim2=-1)[..., 32:].mean().item()


def test_the_recipe_looks_at_itself_at_small_widths_too_and_owes_it_to_the_diagonal() -> None:
    assert last_layer_self_attention(model_spec("residual-free")) > 0.4
    assert last_layer_self_attention(model_spec("residual-free", qk_diagonal=0.0)) < 0.1
    assert last_layer_self_attention(model_spec("residual")) == pytest.approx(1 / 48, rel=0.1)
