"""Muon against the published algorithm in float64 and against torch's."""

from collections.abc import Callable
from math import sqrt

import pytest
import torch
from torch import Tensor, nn

from qbench.train import muon
from qbench.train.muon import Muon, orthogonalize, rms_matched

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


def jordan(rows: int, columns: int) -> float:
    return sqrt(max(1, rows / columns))


def moonlight(rows: int, columns: int) -> float:
    return 0.2 * sqrt(max(rows, columns))


def published(
    lr: float, weight_decay: float, scale: Callable[[int, int], float] = jordan, momentum: float = 0.95
) -> list[Tensor]:
    """K. Jordan's Muon, written from his post, one matrix at a time in float64, twelve steps."""
    weights = [p.detach().double() for p in start()]
    buffers = [torch.zeros_like(w) for w in weights]
    for step in range(12):
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
            weights[i] = weights[i] * (1 - lr * weight_decay) - lr * scale(*x.shape) * x
    return weights


def test_twelve_steps_follow_the_published_algorithm() -> None:
    """Float32 against float64: steps of 0.02 agree to 1e-5, a thousandth of one step."""
    params = start()
    for found, exact in zip(run(Muon(params, lr=0.02, weight_decay=0.1), params), published(0.02, 0.1), strict=True):
        torch.testing.assert_close(found.double(), exact, rtol=0, atol=1e-5)


def test_twelve_steps_follow_moonlights_variant() -> None:
    """Updates are up to 1.4 in size per unit of rate here (0.2 sqrt(48)): the same thousandth of a step."""
    params = start()
    found = run(Muon(params, lr=0.02, weight_decay=0.1, scale=rms_matched), params)
    for one, exact in zip(found, published(0.02, 0.1, moonlight), strict=True):
        torch.testing.assert_close(one.double(), exact, rtol=0, atol=2e-5)


def test_moonlights_updates_have_adamws_rms() -> None:
    """arXiv 2502.16982: a semi-orthogonal matrix has rms 1 / sqrt(max side), so 0.2 after scaling."""
    for shape in ((64, 64), (256, 64), (64, 256)):
        p = nn.Parameter(torch.zeros(shape))
        p.grad = torch.randn(shape, generator=torch.Generator().manual_seed(0))
        Muon([p], lr=1.0, weight_decay=0.0, scale=rms_matched).step()
        assert 0.17 < p.detach().square().mean().sqrt().item() < 0.23


def distance_from_torch(ours_as: Callable[[int, int], float] = jordan, theirs_as: str = "original") -> float:
    """Largest difference between our twelve steps and torch's, relative to how far they went."""
    ours, theirs = start(), start()
    a = run(Muon(ours, lr=0.02, weight_decay=0.1, scale=ours_as), ours)
    b = run(torch.optim.Muon(theirs, lr=0.02, weight_decay=0.1, momentum=0.95, adjust_lr_fn=theirs_as), theirs)
    return max(((x - y).norm() / (y - before).norm()).item() for before, x, y in zip(start(), a, b, strict=True))


def test_twelve_steps_follow_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Torch's Newton-Schulz rounds to 8 bits, and small singular values grow 485-fold: up to a tenth of the way.

    The same rounding on our side removes nearly all of it, so nothing else differs.
    """
    assert distance_from_torch() < 0.1
    assert distance_from_torch(rms_matched, "match_rms_adamw") < 0.1
    monkeypatch.setattr(muon, "orthogonalize", lambda g: orthogonalize(g.bfloat16()))
    assert distance_from_torch() < 0.005
    assert distance_from_torch(rms_matched, "match_rms_adamw") < 0.005


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
