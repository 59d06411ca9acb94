"""Shampoo against the published algorithm in float64, and its roots against their definition."""

import pytest
import torch
from torch import Tensor, nn

from qbench.train.shampoo import Shampoo, inverse_root

SHAPES = [(12, 12), (12, 12), (24, 8), (8, 24), (12, 12)]


def gradients(step: int) -> list[Tensor]:
    """Different for each step; the second nearly of rank one, as real gradients are, the last a thousand times less."""
    generator = torch.Generator().manual_seed(step)
    grads = [torch.randn(shape, generator=generator) for shape in SHAPES]
    grads[1] = grads[1] * 1e-1 + torch.outer(grads[0][0], grads[0][1])
    grads[4] = grads[4] * 1e-3
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


def power(a: Tensor, exponent: float) -> Tensor:
    values, vectors = torch.linalg.eigh(a + 1e-6 * torch.linalg.eigvalsh(a)[-1] * torch.eye(len(a), dtype=a.dtype))
    return vectors @ torch.diag(values**exponent) @ vectors.T


def published(frequency: int, steps: int = 12, lr: float = 0.02, decay: float = 0.1) -> list[Tensor]:
    """Distributed Shampoo with Adam grafting (arXiv 2309.06497, algorithm 1), one matrix at a time in float64."""
    weights: list[Tensor] = []
    for i, p in enumerate(start()):
        w = p.detach().double()
        m, v = torch.zeros_like(w), torch.zeros_like(w)
        left, right = (torch.zeros(size, size, dtype=w.dtype) for size in w.shape)
        roots: tuple[Tensor, Tensor] | None = None
        for t in range(1, steps + 1):
            g = gradients(t - 1)[i].double()
            m, v = 0.9 * m + 0.1 * g, 0.95 * v + 0.05 * g**2
            left, right = 0.95 * left + 0.05 * g @ g.T, 0.95 * right + 0.05 * g.T @ g
            if t % frequency == 0:
                roots = power(left / (1 - 0.95**t), -1 / 4), power(right / (1 - 0.95**t), -1 / 4)
            average = m / (1 - 0.9**t)
            update = average / ((v / (1 - 0.95**t)).sqrt() + 1e-8)
            if roots is not None:
                direction = roots[0] @ average @ roots[1]
                update = direction * update.norm() / direction.norm()
            w = w * (1 - lr * decay) - lr * update
        weights.append(w)
    return weights


@pytest.mark.parametrize("frequency", [1, 5, 10])
def test_twelve_steps_follow_the_published_algorithm(frequency: int) -> None:
    """Float32 against float64: 5e-5 at steps of 0.02. Twelve steps hold Adam's part and several renewals of roots."""
    params = start()
    for found, exact in zip(
        run(Shampoo(params, lr=0.02, frequency=frequency), params), published(frequency), strict=True
    ):
        torch.testing.assert_close(found.double(), exact, rtol=0, atol=5e-5)


def test_the_direction_is_not_adams() -> None:
    """The oracle above would not notice if both left the roots out."""
    with_roots, without = published(frequency=1), published(frequency=100)
    assert all(
        (a - b).norm() > 0.1 * (b - p.double()).norm() for a, b, p in zip(with_roots, without, start(), strict=True)
    )


def test_roots_are_inverse_roots() -> None:
    x = torch.randn(3, 10, 40, generator=torch.Generator().manual_seed(0))
    a = x @ x.mT
    root = inverse_root(a, 4)
    whole = torch.linalg.matrix_power(root, 4) @ a
    torch.testing.assert_close(whole, torch.eye(10).expand(3, -1, -1), rtol=0, atol=1e-3)
    torch.testing.assert_close(root, root.mT, rtol=0, atol=1e-5)


def test_rounding_below_zero_and_zeros_do_no_harm() -> None:
    a = torch.diag(torch.tensor([1.0, -1e-9, 0.0]))
    torch.testing.assert_close(inverse_root(a, 4).diagonal(), torch.tensor([1.0, 10**1.5, 10**1.5]), rtol=1e-3, atol=0)
    assert not inverse_root(torch.zeros(2, 3, 3), 4).any()
    p = nn.Parameter(torch.ones(4, 4))
    optimizer = Shampoo([p], lr=0.5, weight_decay=0.1, frequency=1)
    p.grad = torch.zeros(4, 4)
    optimizer.step()
    torch.testing.assert_close(p.detach(), torch.full((4, 4), 0.95))


def test_a_turned_problem_is_solved_the_same_way() -> None:
    """What Adam is not: with roots, the step of U G V^T is the turned step of G, up to its length."""
    generator = torch.Generator().manual_seed(3)
    u, v = (torch.linalg.qr(torch.randn(12, 12, generator=generator))[0] for _ in range(2))
    plain, turned = (nn.Parameter(torch.zeros(12, 12)) for _ in range(2))
    one, two = (Shampoo([p], weight_decay=0.0, frequency=1) for p in (plain, turned))
    for step in range(3):
        plain.grad = gradients(step)[0]
        turned.grad = u @ plain.grad @ v.T
        before = plain.detach().clone(), turned.detach().clone()
        one.step()
        two.step()
    a, b = u @ (plain.detach() - before[0]) @ v.T, turned.detach() - before[1]
    torch.testing.assert_close(a / a.norm(), b / b.norm(), rtol=0, atol=1e-3)


def test_parameters_without_a_gradient_are_left_alone_and_only_matrices_are_accepted() -> None:
    p, q = nn.Parameter(torch.ones(4, 4)), nn.Parameter(torch.eye(4))
    q.grad = torch.ones(4, 4)
    Shampoo([p, q]).step()
    assert torch.equal(p.detach(), torch.ones(4, 4))
    with pytest.raises(ValueError, match=r"found a parameter of shape \(3,\)"):
        Shampoo([nn.Parameter(torch.ones(3))])


def test_a_closure_is_evaluated_with_gradients() -> None:
    p = nn.Parameter(torch.eye(3))

    def closure() -> float:
        loss = p.square().sum()
        loss.backward()
        return loss.item()

    assert Shampoo([p]).step(closure) == pytest.approx(3)
    assert not torch.equal(p.detach(), torch.eye(3))
