"""Which parameter moves how: routing, and one step of each optimizer against its formula."""

import pytest
import torch
from torch import Tensor, nn

from qbench.models.catalog import model_spec
from qbench.models.transformer import Transformer, build
from qbench.train import optimizer
from qbench.train.spec import TrainingSpec

every_optimizer = pytest.mark.parametrize("name", ["adamw", "muon", "muon-rms", "soap", "shampoo", "sgd"])


def small() -> Transformer:
    return build(model_spec("residual-free", layers=2, width=16, heads=2, context=8), seed=0)


@pytest.fixture(autouse=True)
def _quiet_import() -> None:
    """pytorch_optimizer imports what it finds installed; what that says is not about us."""
    pytest.importorskip("pytorch_optimizer", exc_type=ImportError)


@every_optimizer
def test_every_parameter_has_one_owner(name: str) -> None:
    model = small()
    owned = [id(p) for o in optimizer.build(model, spec(name)) for g in o.param_groups for p in g["params"]]
    assert sorted(owned) == sorted(id(p) for p in model.parameters())


@every_optimizer
def test_block_matrices_have_their_rate_and_the_rest_its_own(name: str) -> None:
    model = small()
    matrices, rest = (o.param_groups for o in optimizer.build(model, spec(name)))
    assert {(g["lr"], g["weight_decay"]) for g in matrices} == {(0.01, 0.2)}
    assert {(g["lr"], g["weight_decay"]) for g in rest} == {(0.003, 0.0)}
    inside = {id(p) for n, p in model.named_parameters() if n.startswith("blocks.") and "gain" not in n}
    assert {id(p) for g in matrices for p in g["params"]} == inside
    assert len(inside) == 2 * 6


RATES = TrainingSpec(embedding_lr=0.1, head_lr=0.2, aux_lr=0.003)


def test_each_role_has_its_own_rate() -> None:
    model = small()
    groups = optimizer.build(model, RATES)[1].param_groups
    rates = {id(p): g["lr"] for g in groups for p in g["params"]}
    assert rates[id(model.embed)] == 0.1
    assert rates[id(model.logits)] == 0.2
    assert rates[id(model.norm.gain)] == 0.003
    assert {RATES.rate("matrix"), RATES.rate("vector")} == {0.003}


@pytest.mark.parametrize(
    ("name", "shape", "expected"),
    [
        ("blocks.3.mlp.up", (8, 4), "matrix"),
        ("embed_projection", (8, 8), "matrix"),
        ("embed", (8, 4), "embedding"),
        ("positions", (8, 4), "embedding"),
        ("class_token", (8,), "vector"),
        ("logits", (8, 4), "head"),
        ("blocks.0.attn.heat.gain", (2,), "vector"),
        ("blocks.0.attn.norm.gain", (4,), "vector"),
    ],
)
def test_parameters_are_routed_by_what_they_are_for(name: str, shape: tuple[int, ...], expected: str) -> None:
    """OSP (arXiv 2506.19697): hidden matrices and the projection of the embedding follow Muon, tables do not."""
    assert optimizer.role(name, nn.Parameter(torch.empty(shape))) == expected


def spec(name: str) -> TrainingSpec:
    return TrainingSpec(optimizer=name, lr=0.01, aux_lr=0.003, weight_decay=0.2)  # pyright: ignore[reportArgumentType]


def run(name: str, steps: int) -> tuple[dict[str, Tensor], dict[str, Tensor], list[dict[str, Tensor]]]:
    """Parameters before and after some steps on fixed gradients, and those gradients."""
    model = small()
    generator = torch.Generator().manual_seed(1)
    before = {n: p.detach().double() for n, p in model.named_parameters()}
    optimizers = optimizer.build(model, spec(name))
    history: list[dict[str, Tensor]] = []
    for _ in range(steps):
        grads = {n: torch.randn(p.shape, generator=generator) for n, p in model.named_parameters()}
        for n, p in model.named_parameters():
            p.grad = grads[n].clone()
        for one in optimizers:
            one.step()
        history.append({n: g.double() for n, g in grads.items()})
    return before, {n: p.detach().double() for n, p in model.named_parameters()}, history


def adam(w: Tensor, grads: list[Tensor], lr: float, decay: float) -> Tensor:
    """AdamW (arXiv 1711.05101) with betas .9 and .95, in float64."""
    m, v = torch.zeros_like(w), torch.zeros_like(w)
    for t, g in enumerate(grads, start=1):
        m, v = 0.9 * m + 0.1 * g, 0.95 * v + 0.05 * g * g
        w = w * (1 - lr * decay)
        w = w - lr * (m / (1 - 0.9**t)) / ((v / (1 - 0.95**t)).sqrt() + 1e-8)
    return w


def sgd(w: Tensor, grads: list[Tensor], lr: float, decay: float) -> Tensor:
    """Heavy-ball momentum 0.9 (Polyak 1964) on the gradient with its decay, as torch has it, in float64."""
    v = torch.zeros_like(w)
    for g in grads:
        v = 0.9 * v + g + decay * w
        w = w - lr * v
    return w


def soap(w: Tensor, grads: list[Tensor], bases: list[Tensor]) -> Tensor:
    """SOAP (arXiv 2409.11321, algorithms 3 and 4) in float64 at the rate .01 and decay .2.

    The first gradient only makes the basis, given as `bases`: where it has fewer directions than the matrix, the rest
    may be any. Adam then runs on U^T G V, its momentum kept unrotated; every tenth step one power iteration and QR
    renew the basis, sorted by its eigenvalues, and the second moments are sorted with it.
    """
    basis = [b.double() for b in bases]
    factors = [0.05 * grads[0] @ grads[0].T, 0.05 * grads[0].T @ grads[0]]
    m, v = torch.zeros_like(w), torch.zeros_like(w)
    for t, g in enumerate(grads[1:], start=1):
        m, v = 0.95 * m + 0.05 * g, 0.95 * v + 0.05 * (basis[0].T @ g @ basis[1]).square()
        update = (basis[0].T @ m @ basis[1]) / (1 - 0.95**t) / ((v / (1 - 0.95**t)).sqrt() + 1e-8)
        w = (w - 0.01 * basis[0] @ update @ basis[1].T) * (1 - 0.01 * 0.2)
        factors = [0.95 * f + 0.05 * new for f, new in zip(factors, (g @ g.T, g.T @ g), strict=True)]
        if t % 10 == 0:
            order = [(b * (f @ b)).sum(0).argsort(descending=True) for f, b in zip(factors, basis, strict=True)]
            v = v[order[0]][:, order[1]]
            basis = [torch.linalg.qr(f @ b[:, o])[0] for f, b, o in zip(factors, basis, order, strict=True)]
    return w


@every_optimizer
def test_embedding_head_and_gains_follow_adamw(name: str) -> None:
    before, after, history = run(name, steps=4)
    rest = [n for n in before if n in ("embed", "logits") or "gain" in n]
    assert len(rest) == 2 + 2 * 2 + 1
    for n in rest:
        torch.testing.assert_close(after[n], adam(before[n], [g[n] for g in history], 0.003, 0.0), rtol=0, atol=1e-6)


def test_adamw_moves_block_matrices_at_their_own_rate_and_decays_them() -> None:
    before, after, history = run("adamw", steps=4)
    for n in (n for n in before if n.startswith("blocks.") and "gain" not in n):
        torch.testing.assert_close(after[n], adam(before[n], [g[n] for g in history], 0.01, 0.2), rtol=0, atol=1e-6)


def test_twelve_steps_of_sgd_follow_its_formula() -> None:
    before, after, history = run("sgd", steps=12)
    for n in (n for n in before if n.startswith("blocks.") and "gain" not in n):
        torch.testing.assert_close(after[n], sgd(before[n], [g[n] for g in history], 0.01, 0.2), rtol=0, atol=2e-6)


MATRICES = ("blocks.0.attn.q", "blocks.1.attn.out", "blocks.0.mlp.pre", "blocks.1.mlp.out")


def test_twelve_steps_of_soap_follow_the_published_algorithm() -> None:
    """The library's SOAP in float32: within 2e-5 of float64, at steps of 0.01, square and not."""
    first = small()
    owner, _ = optimizer.build(first, spec("soap"))
    before, after, history = run("soap", steps=12)
    for n, p in first.named_parameters():
        p.grad = history[0][n].float()
    owner.step()
    for n in MATRICES:
        bases: list[Tensor] = owner.state[first.weights()[n]]["Q"]
        for basis, gram in zip(bases, (history[0][n] @ history[0][n].T, history[0][n].T @ history[0][n]), strict=True):
            turned = basis.double().T @ gram @ basis.double()
            torch.testing.assert_close(turned, turned.diagonal().diag(), rtol=0, atol=1e-4)
        exact = soap(before[n], [g[n] for g in history], bases)
        torch.testing.assert_close(after[n], exact, rtol=0, atol=2e-5)


def test_soap_renews_its_basis_every_ten_steps_and_keeps_it_orthogonal() -> None:
    model = small()
    owner, _ = optimizer.build(model, spec("soap"))
    weight = model.weights()["blocks.0.mlp.pre"]
    bases: list[Tensor] = []
    for step in range(12):
        for p in model.parameters():
            p.grad = torch.randn(p.shape, generator=torch.Generator().manual_seed(step))
        owner.step()
        bases.append(owner.state[weight]["Q"][0].clone())
    changed = [step for step in range(1, 12) if not torch.equal(bases[step], bases[step - 1])]
    assert changed == [10]
    torch.testing.assert_close(bases[-1].T @ bases[-1], torch.eye(64), rtol=0, atol=1e-4)


@every_optimizer
def test_two_runs_are_equal_bit_for_bit(name: str) -> None:
    _, one, _ = run(name, steps=3)
    _, two, _ = run(name, steps=3)
    assert all(torch.equal(one[n], two[n]) for n in one)


def test_an_unknown_optimizer_is_named() -> None:
    with pytest.raises(ValueError, match="no optimizer 'moun'; did you mean 'muon'"):
        optimizer.build(small(), spec("moun"))
