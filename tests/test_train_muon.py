"""Muon against the published algorithm in float64 and against torch's."""

from math import sqrt

import pytest
import torch
from torch import Tensor, nn

from qbench.train import muon
from qbench.train.muon import Muon, orthogonalize

SHAPES = [(16, 16), (16, 16), (48, 16), (16, 48), (16, 16), (1, 8)]


def gradients(step: int) -> list[Tensor]:
    """Different for each step; one matrix nearly of rank one, as real gradients are."""
    generator = torch.Generator().manual_seed(step)
    grads = [torch.randn(shape, generator=generator) for shape in SHAPES]
    grads[1] = grads[1] * 1e-3 + torch.outer(grads[0][0], grads[0][1])
    return grads


def start() -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(99)
    return [nn.Parameter(torch.randn(shape, generator=generator)) for shape in SHAPES]


def run(optimizer: torch.optim.Optimizer, params: list[nn.Parameter], steps: int = 12) -> list[Tensor]:
    for step in range(steps):
        for p, grad in zip(params, gradients(step), strict=True):
            p.grad = grad
        optimizer.step()
    return [p.detach() for p in params]


def published(lr: float, weight_decay: float, steps: int = 12, momentum: float = 0.95) -> list[Tensor]:
    """K. Jordan's Muon, written from his post, one matrix at a time in float64."""
    weights = [p.detach().double() for p in start()]
    buffers = [torch.zeros_like(w) for w in weights]
    for step in range(steps):
        for i, grad in enumerate(gradients(step)):
            g = grad.double()
            buffers[i] = momentum * buffers[i] + (1 - momentum) * g
            x = (1 - momentum) * g + momentum * buffers[i]
            tall = x.shape[0] > x.shape[1]
            x = x.T if tall else x
            x = x / x.norm()
            for _ in range(5):
                a = x @ x.T
                x = 3.4445 * x + (-4.7750 * a + 2.0315 * a @ a) @ x
            x = x.T if tall else x
            weights[i] = weights[i] * (1 - lr * weight_decay) - lr * sqrt(max(1, x.shape[0] / x.shape[1])) * x
    return weights


def test_twelve_steps_follow_the_published_algorithm() -> None:
    """Float32 against float64: steps of 0.02 agree to 1e-5, a thousandth of one step."""
    params = start()
    for found, exact in zip(run(Muon(params, lr=0.02, weight_decay=0.1), params), published(0.02, 0.1), strict=True):
        torch.testing.assert_close(found.double(), exact, rtol=0, atol=1e-5)


def distance_from_torch() -> float:
    """Largest difference between our twelve steps and torch's, relative to how far they went."""
    ours, theirs = start(), start()
    a = run(Muon(ours, lr=0.02, weight_decay=0.1), ours)
    b = run(torch.optim.Muon(theirs, lr=0.02, weight_decay=0.1, momentum=0.95), theirs)
    return max(((x - y).norm() / (y - before).norm()).item() for before, x, y in zip(start(), a, b, strict=True))


def test_twelve_steps_follow_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Torch's Newton-Schulz rounds to 8 bits, and small singular values grow 485-fold: up to a tenth of the way.

    The same rounding on our side removes nearly all of it, so nothing else differs.
    """
    assert distance_from_torch() < 0.1
    monkeypatch.setattr(muon, "orthogonalize", lambda g: orthogonalize(g.bfloat16()))
    assert distance_from_torch() < 0.005


def test_the_update_of_one_matrix_does_not_depend_on_the_others() -> None:
    together, alone = start(), start()
    everything = run(Muon(together), together)
    optimizer = Muon([alone[0]])
    for step in range(12):
        alone[0].grad = gradients(step)[0]
        optimizer.step()
    torch.testing.assert_close(alone[0].detach(), everything[0], rtol=0, atol=1e-6)


def test_singular_values_end_near_one_and_directions_stay() -> None:
    x = torch.randn(3, 20, 50, generator=torch.Generator().manual_seed(0))
    u, _, vt = torch.linalg.svd(x, full_matrices=False)
    found = orthogonalize(x)
    aligned = u.mT @ found @ vt.mT
    values = aligned.diagonal(dim1=-2, dim2=-1)
    assert 0.65 < values.min() < values.max() < 1.25
    torch.testing.assert_close(aligned, torch.diag_embed(values), rtol=0, atol=1e-4)
    torch.testing.assert_close(orthogonalize(x.mT), found.mT)


def test_a_zero_gradient_only_decays() -> None:
    p = nn.Parameter(torch.ones(4, 4))
    p.grad = torch.zeros(4, 4)
    Muon([p], lr=0.5, weight_decay=0.1).step()
    torch.testing.assert_close(p.detach(), torch.full((4, 4), 0.95))


def test_parameters_without_a_gradient_are_left_alone() -> None:
    p, q = nn.Parameter(torch.ones(4, 4)), nn.Parameter(torch.eye(4))
    q.grad = torch.ones(4, 4)
    Muon([p, q]).step()
    assert torch.equal(p.detach(), torch.ones(4, 4))
    assert not torch.equal(q.detach(), torch.eye(4))


def test_a_state_dict_continues_where_it_stopped() -> None:
    whole = start()
    wanted = run(Muon(whole, lr=0.02), whole)
    params = start()
    first = Muon(params, lr=0.02)
    run(first, params, steps=5)
    second = Muon(params, lr=0.7)  # the state brings the rate along
    second.load_state_dict(first.state_dict())
    for step in range(5, 12):
        for p, grad in zip(params, gradients(step), strict=True):
            p.grad = grad
        second.step()
    assert all(torch.equal(p.detach(), w) for p, w in zip(params, wanted, strict=True))


def test_a_closure_is_evaluated_with_gradients() -> None:
    p = nn.Parameter(torch.eye(3))

    def closure() -> float:
        loss = p.square().sum()
        loss.backward()
        return loss.item()

    assert Muon([p]).step(closure) == pytest.approx(3)
    assert not torch.equal(p.detach(), torch.eye(3))


def test_only_matrices_are_accepted() -> None:
    with pytest.raises(ValueError, match=r"found a parameter of shape \(3,\)"):
        Muon([nn.Parameter(torch.ones(3))])
