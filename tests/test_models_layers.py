"""Layers and initialization against closed forms and second implementations."""

import cmath
from dataclasses import replace
from math import cos, erf, log, sin, sqrt
from typing import Any

import pytest
import torch
from torch import Tensor

from qbench.models import spec as kinds
from qbench.models.attention import Attention
from qbench.models.catalog import model_spec
from qbench.models.initialize import gaussian, near_diagonal_attention
from qbench.models.layers import MLP
from qbench.models.mixing import ATTENTIONS
from qbench.models.mlps import MLPS
from qbench.models.norms import NORMS, RMSNorm
from qbench.models.positions import rotary_table, rotate, sinusoids
from qbench.models.retention import logits, own_weight
from qbench.models.spec import ModelSpec
from qbench.models.temperature import TEMPERATURES, LogKeys
from qbench.models.transformer import build
from qbench.models.wiring import ADD

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


@pytest.mark.parametrize("name", NORMS)
def test_norms_are_their_formulas(name: kinds.Norm) -> None:
    x = torch.randn(3, 5, 24, generator=generator()) * 3 + 1
    norm = NORMS[name](24)
    gain = torch.ones(24, dtype=torch.float64)
    if parameters := list(norm.parameters()):
        assert len(parameters) == 1
        with torch.no_grad():
            parameters[0].copy_(torch.randn(parameters[0].shape, generator=generator(1)))
        gain = parameters[0].double().expand(24)
        assert parameters[0].numel() == (1 if name == "ssnorm" else 24)
    wide = x.double()
    exact = {
        "layernorm": torch.nn.functional.layer_norm(wide, (24,), gain, eps=1e-6),
        "none": wide,
    }.get(name, torch.nn.functional.rms_norm(wide, (24,), gain, eps=1e-6))
    torch.testing.assert_close(norm(x).double(), exact, rtol=1e-5, atol=1e-6)


def test_sinusoids_are_their_formula_and_have_mean_square_one() -> None:
    table = sinusoids(7, 12)
    for t in range(7):
        for k in range(6):
            angle = t * 10_000 ** (-2 * k / 12)
            assert table[t, 2 * k : 2 * k + 2].tolist() == pytest.approx([sqrt(2) * sin(angle), sqrt(2) * cos(angle)])
    assert sinusoids(9, 5).shape == (9, 5)
    assert table.square().mean().item() == pytest.approx(1)


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
    attention = Attention(ModelSpec(width=16, heads=2, context=12, temperature="inv-sqrt-layer"), layer, ADD)
    with torch.no_grad():
        for w in (attention.q, attention.k, attention.v, attention.out):
            w.copy_(gaussian(w.shape, generator(7 + len(w))) / 2)
    x = torch.randn(1, 12, 16, generator=generator(3))
    exact = reference_attention(attention, x[0], temperature=1 / sqrt(1 + layer))
    torch.testing.assert_close(attention(x)[0].double(), exact, rtol=1e-5, atol=1e-5)


def by_hand(q_TD: Tensor, k_TD: Tensor, v_TD: Tensor, kind: str, scale: float) -> Tensor:
    """Causal attention of one head, position by position."""
    rows: list[Tensor] = []
    for t in range(len(q_TD)):
        x = scale * (k_TD[: t + 1] @ q_TD[t])
        soft = x.softmax(-1)
        itself = torch.eye(t + 1, dtype=x.dtype)[t]
        weights = {
            "clipped": (((1 + 3.2 / 12) * soft) - 3.2 / 12).clamp(0, 1),
            "polynomial": x**3 / sqrt(t + 1),
            "shaped": 0.5 * itself + 2.0 * soft - 0.7 / (t + 1),
        }.get(kind, soft)
        rows.append(weights @ v_TD[: t + 1])
    return torch.stack(rows)


@pytest.mark.parametrize("kind", ATTENTIONS)
def test_attention_kinds_are_their_formulas(kind: kinds.Attention) -> None:
    mix = ATTENTIONS[kind](ModelSpec(width=16, heads=2, context=12, attention=kind)).double()
    with torch.no_grad():
        for name, value in (("itself", 0.5), ("attended", 2.0), ("even", 0.7)):
            if kind == "shaped":
                mix.get_parameter(name).fill_(value)
    q, k, v = torch.randn(3, 2, 2, 12, 8, generator=generator(), dtype=torch.float64)
    found = mix(q, k, v, 0.6)
    for b in range(2):
        for h in range(2):
            torch.testing.assert_close(found[b, h], by_hand(q[b, h], k[b, h], v[b, h], kind, 0.6))


def test_heads_that_share_keys_are_heads_with_equal_keys() -> None:
    few = build(model_spec("gqa", layers=1, width=32, heads=4, kv_heads=2, context=8), seed=0)
    many = build(model_spec("residual", layers=1, width=32, heads=4, context=8), seed=1)
    state = few.state_dict()
    for name in ("blocks.0.attn.k", "blocks.0.attn.v"):
        state[name] = state[name].unflatten(0, (2, 8)).repeat_interleave(2, 0).flatten(0, 1)
    many.load_state_dict(state)
    tokens = torch.arange(8)[None]
    torch.testing.assert_close(few(tokens), many(tokens))


def test_a_gate_scales_each_heads_context() -> None:
    """A quarter at first; closed, the block passes its stream on."""
    spec = model_spec("gated", layers=1, width=32, heads=4, context=8)
    model, plain = build(spec, seed=0), build(replace(spec, attention="softmax"), seed=0)
    attention = model.blocks[0].get_submodule("attn")
    with torch.no_grad():
        plain.load_state_dict({n: w for n, w in model.state_dict().items() if "gate" not in n})
        attention.get_parameter("gate").zero_()
    x = torch.randn(2, 8, 32, generator=generator())
    same = plain.blocks[0].get_submodule("attn")
    torch.testing.assert_close(attention(x), 0.25 * same(x))
    with torch.no_grad():
        attention.get_parameter("gate_bias").copy_(torch.tensor([1.0, -2.0, 0.0, 30.0]))
        share = attention.get_parameter("gate_bias").sigmoid().repeat_interleave(8)
        same.get_parameter("out").mul_(share)
    torch.testing.assert_close(attention(x), same(x))


def test_queries_and_keys_are_normalized_by_head_before_they_are_turned() -> None:
    model = build(model_spec("qk-norm", layers=1, width=32, heads=4, context=8), seed=0)
    for name in ("q", "k"):
        site = model.sites()[f"blocks.0.attn.{name}"]
        site.register_forward_hook(
            lambda _m, _a, out: torch.testing.assert_close(
                out.unflatten(-1, (4, 8)).square().mean(-1), torch.ones(1, 8, 4), rtol=1e-3, atol=1e-2
            )
        )
    model(torch.arange(8)[None])


def test_temperatures_are_their_formulas() -> None:
    spec = ModelSpec(layers=5, temperature_strength=0.5)

    def factors(name: kinds.Temperature) -> list[float]:
        return [TEMPERATURES[name].factor(spec, layer) for layer in (0, 3, 4)]

    assert factors("inv-sqrt-layer") == pytest.approx([1, 1 / 2, 1 / sqrt(5)])
    assert factors("inv-layer") == pytest.approx([1, 1 / 4, 1 / 5])
    assert factors("sqrt-layer") == pytest.approx([1, 2, sqrt(5)])
    assert factors("linear") == pytest.approx([1, 1.375, 1.5])
    assert all(factors(name) == [1, 1, 1] for name in ("const", "logn", "learned", "target"))


def test_log_temperature_grows_with_the_keys_in_sight() -> None:
    """From 0, where there is nothing to choose, to 1 at the end of a context."""
    heat = LogKeys(ModelSpec(width=16, heads=2, context=12))
    factors = heat(torch.ones(1, 2, 12, 1))[0, 1, :, 0]
    assert factors.tolist() == pytest.approx([log(n) / log(12) for n in range(1, 13)])
    seen = LogKeys(ModelSpec(width=16, heads=2, context=12, task="vision"))(torch.ones(1, 2, 12, 1))
    assert seen.unique().item() == pytest.approx(log(12) / log(16))


@pytest.mark.parametrize(("arch", "strength", "width"), [
    ("residual-free-target", 1.0, 32), ("residual-free-target", 1.0, 128), ("residual-free-target", 0.3, 128),
    ("cutting-the-skip-target", 1.0, 32), ("cutting-the-skip-target", 2.0, 32), ("cutting-the-skip-target", 1.0, 128),
])  # fmt: skip
def test_targets_are_met_at_every_width(arch: str, strength: float, width: int) -> None:
    """Temperatures are found for each layer, a diagonal once for all: heads differ."""
    spec = model_spec(arch, layers=4, width=width, heads=4, context=64, temperature_strength=strength)
    for block in build(spec, seed=0).blocks:
        attention = block.get_submodule("attn")
        assert isinstance(attention, Attention)
        factor = float(attention.heat.get_buffer("value")) if attention.heat is not None else 1.0
        found = own_weight(logits(attention, spec), factor)
        assert found == pytest.approx(1 - strength / 4, abs=1e-3 if attention.heat is not None else 0.06)


def test_mlp_is_its_formula() -> None:
    mlp = MLP(ModelSpec(width=8, heads=1), ADD)
    with torch.no_grad():
        mlp.pre.copy_(gaussian((32, 8), generator()))
        mlp.out.copy_(gaussian((8, 32), generator(1)))
    x = torch.randn(1, 3, 8, generator=generator(2))
    normal = x.double() / (x.double().pow(2).mean(-1, keepdim=True) + 1e-6).sqrt()
    pre = normal @ mlp.pre.double().T
    hidden = torch.tensor([z * (1 + erf(z / sqrt(2))) / 2 for z in pre.flatten().tolist()], dtype=torch.float64)
    torch.testing.assert_close(mlp(x).double(), hidden.view_as(pre) @ mlp.out.double().T, rtol=1e-5, atol=1e-5)


def test_a_gated_mlp_multiplies_its_two_halves() -> None:
    mlp = MLP(ModelSpec(width=8, heads=1, mlp="swiglu", mlp_hidden=20), ADD)
    assert mlp.up is not None
    with torch.no_grad():
        for i, w in enumerate((mlp.pre, mlp.up, mlp.out)):
            w.copy_(gaussian(w.shape, generator(i)))
    x = torch.randn(1, 3, 8, generator=generator(5))
    normal = x.double() / (x.double().pow(2).mean(-1, keepdim=True) + 1e-6).sqrt()
    pre, up = normal @ mlp.pre.double().T, normal @ mlp.up.double().T
    exact = (pre / (1 + torch.exp(-pre)) * up) @ mlp.out.double().T
    torch.testing.assert_close(mlp(x).double(), exact, rtol=1e-4, atol=1e-4)
    assert MLPS["relu2"].act(torch.tensor([-2.0, 0.0, 3.0])).tolist() == [0, 0, 9]


@pytest.mark.parametrize("name", MLPS)
def test_the_power_of_an_activation_is_an_integral(name: kinds.MLP) -> None:
    z = torch.linspace(-12, 12, 200_001, dtype=torch.float64)
    density = torch.exp(-z * z / 2) / sqrt(2 * torch.pi)
    power = torch.trapezoid(MLPS[name].act(z).square() * density, z).item()  # the other half of a gate has E[x^2] = 1
    assert power == pytest.approx(MLPS[name].power, abs=5e-4)


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


def test_cutting_the_skip_is_c_squared_times_a_rotation_with_a_uniform_orthogonal_mlp() -> None:
    weights = build(model_spec("cutting-the-skip", layers=1, width=64, vo_gain=3.0), seed=0).weights()
    eye = torch.eye(64)
    product = weights["blocks.0.attn.v"].T @ weights["blocks.0.attn.out"].T
    torch.testing.assert_close(product @ product.T, 81 * eye, rtol=0, atol=1e-3)
    wide, narrow = weights["blocks.0.mlp.pre"], weights["blocks.0.mlp.out"]
    torch.testing.assert_close(wide.T @ wide, 4 * eye, rtol=0, atol=1e-5)
    torch.testing.assert_close(narrow @ narrow.T, eye, rtol=0, atol=1e-5)


@pytest.mark.parametrize("settings", [{}, {"kv_heads": 1}, {"heads": 6, "head_size": 16}, {"mlp": "swiglu"}])
def test_scaled_uniform_orthogonal_matrices_keep_the_mean_square(settings: dict[str, Any]) -> None:
    spec = model_spec("residual-free-suo", layers=1, width=64, **settings)
    for name, w in build(spec, seed=0).weights().items():
        if name.startswith("blocks."):
            singular = torch.linalg.svdvals(w.detach())
            gain = max(1.0, sqrt(w.shape[0] / w.shape[1]))
            torch.testing.assert_close(singular, torch.full_like(singular, gain), rtol=1e-5, atol=1e-5)


def test_mimetic_products_are_near_their_diagonals() -> None:
    """W_V W_O = 0.4 Z - 0.4 I exactly, and W_Q W_K^T the best of its rank: trace and spread say so."""
    weights = build(model_spec("mimetic", layers=1, width=128, heads=2), seed=0).weights()
    product = (weights["blocks.0.attn.v"].T @ weights["blocks.0.attn.out"].T).detach()
    assert product.diagonal().mean().item() == pytest.approx(-0.4, abs=4 * 0.4 / 128)
    noise = product + 0.4 * torch.eye(128)
    assert (noise * sqrt(128)).std().item() == pytest.approx(0.4, rel=0.03)
    assert weights["blocks.0.mlp.out"].std().item() == pytest.approx(0.02 / sqrt(2), rel=0.02)


def test_shaped_attention_begins_as_the_identity() -> None:
    model = build(model_spec("sas-p", layers=2, width=32, heads=4, context=12), seed=0)
    attention = model.blocks[1].get_submodule("attn")
    x = torch.randn(2, 12, 32, generator=generator())
    torch.testing.assert_close(attention(x), RMSNorm(32)(x), rtol=1e-5, atol=1e-5)


def test_queries_that_share_keys_are_the_best_for_theirs() -> None:
    """No other queries bring W_Q W_K^T nearer to alpha Z + beta I: the residual is orthogonal to the keys."""
    weights = build(model_spec("residual-free", layers=1, width=32, heads=4, kv_heads=2, context=8), seed=0).weights()
    g = generator(0)
    for name in ("embed", "logits"):
        gaussian(weights[name].shape, g)
    for shape in ((16, 32), (32, 32)):  # values and output
        gaussian(shape, g)
    for head in range(4):
        target = 0.1 * gaussian((32, 32), g) / sqrt(32) + 5 * torch.eye(32, dtype=torch.float64)
        q = weights["blocks.0.attn.q"][8 * head : 8 * head + 8].detach().double()
        k = weights["blocks.0.attn.k"][8 * (head // 2) : 8 * (head // 2) + 8].detach().double()
        torch.testing.assert_close((target - q.T @ k) @ k.T, torch.zeros(32, 8).double(), rtol=0, atol=1e-4)


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
    size, heads = (32, 12) if width == 128 else (64, 2048 // width)
    spec = ModelSpec(width=width, heads=heads, head_size=size, qk_noise=qk_noise, qk_diagonal=qk_diagonal)
    query, key = (w.float() for w in near_diagonal_attention(spec, generator()))
    x = torch.randn(4, tokens, width, generator=generator(1))
    x = x / x.square().mean(-1, keepdim=True).sqrt()
    q, k = ((x @ w.T).unflatten(-1, (heads, size)).transpose(1, 2) for w in (query, key))
    return (q @ k.mT / sqrt(size)).softmax(-1).diagonal(dim1=-2, dim2=-1).mean().item()


@pytest.mark.parametrize(("width", "noise", "diagonal", "published"), [
    (768, 2.0, 0.6, (0.88, 0.76)), (768, 1.8, 1.0, (0.995, 0.99)), (768, 0.7, 0.7, (0.99, 0.96)),
    (384, 2.0, 0.6, (0.84, 0.68)), (384, 1.8, 1.0, (0.995, 0.98)), (384, 0.7, 0.7, (0.99, 0.95)),
    (256, 2.0, 0.6, (0.81, 0.62)), (256, 1.8, 1.0, (0.996, 0.98)), (256, 0.7, 0.7, (0.97, 0.92)),
    (128, 2.0, 0.6, (0.43, 0.29)), (128, 1.8, 1.0, (0.85, 0.72)), (128, 0.7, 0.7, (0.81, 0.55)),
    (768, 0.1, 5.0, (1.0, 1.0)), (384, 0.1, 5.0, (1.0, 1.0)), (256, 0.1, 5.0, (1.0, 1.0)), (128, 0.1, 5.0, (1.0, 1.0)),
])  # fmt: skip
def test_attention_looks_at_itself_as_much_as_measured_elsewhere(
    width: int, noise: float, diagonal: float, published: tuple[float, float]
) -> None:
    """Independent measurement with 64 and 256 tokens, of one draw each: heads differ by 0.02."""
    found = tuple(self_attention(width, tokens, noise, diagonal) for tokens in (64, 256))
    assert found == pytest.approx(published, abs=0.04)


@pytest.mark.parametrize(("noise", "diagonal", "published"), [(2.0, 0.6, 4.8), (1.8, 1.0, 7.2)])
def test_diagonals_stand_out_as_much_as_measured_elsewhere(noise: float, diagonal: float, published: float) -> None:
    """Mean size on the diagonal of W_Q W_K^T over that beside it."""
    spec = ModelSpec(width=768, heads=1, head_size=64, qk_noise=noise, qk_diagonal=diagonal)
    query, key = near_diagonal_attention(spec, generator())
    product = (query.T @ key).abs()
    itself = product.diagonal()
    ratio = itself.mean() / ((product.sum() - itself.sum()) / (768 * 767))
    assert ratio.item() == pytest.approx(published, rel=0.05)


@pytest.mark.parametrize(("width", "published"), [(256, 0.015), (768, 0.016)])
def test_attention_of_small_normal_matrices_is_even(width: int, published: float) -> None:
    spec = ModelSpec(layers=1, width=width, heads=width // 64, task="vision", image=16)
    attention = Attention(spec, 0, ADD)
    with torch.no_grad():
        for seed, w in enumerate((attention.q, attention.k, attention.v)):
            w.copy_(0.02 * gaussian(w.shape, generator(seed)))
    assert own_weight(logits(attention, spec)) == pytest.approx(published, rel=0.1)


def last_layer_self_attention(spec: ModelSpec) -> float:
    """Mean weight of a token on itself in the last layer of a fresh model, where 32 to 64 tokens are in sight."""
    model = build(spec, seed=0)
    seen: dict[str, Tensor] = {}
    for name in ("q", "k"):
        model.sites()[f"blocks.{spec.layers - 1}.attn.{name}"].register_forward_hook(
            lambda _m, _a, out, name=name: seen.update({name: out.unflatten(-1, (spec.heads, -1)).transpose(1, 2)})
        )
    model(torch.stack([torch.randperm(256, generator=generator(s))[:64] for s in range(8)]))
    logits = (
        seen["q"]
        @ seen["k"].mT
        * TEMPERATURES[spec.temperature].factor(spec, spec.layers - 1)
        / sqrt(spec.width // spec.heads)
    )
    logits = logits.masked_fill(torch.ones(64, 64).triu(1).bool(), float("-inf"))
    return logits.softmax(-1).diagonal(dim1=-2, dim2=-1)[..., 32:].mean().item()


def test_the_recipe_looks_at_itself_at_small_widths_too_and_owes_it_to_the_diagonal() -> None:
    assert last_layer_self_attention(model_spec("residual-free")) > 0.4
    assert last_layer_self_attention(model_spec("residual-free", qk_diagonal=0.0)) < 0.1
    assert last_layer_self_attention(model_spec("residual")) == pytest.approx(1 / 48, rel=0.1)
