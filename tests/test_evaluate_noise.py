"""Noise instead of quantizers: exact on a quadratic loss, the softmax's Hessian on a real model, and fair to all."""

from typing import Any

import numpy as np
import pytest
import torch
from by_hand import WIRINGS, small, tokens
from torch import Tensor, nn

from qbench.capture.place import Place
from qbench.capture.places import places, select
from qbench.evaluate.likelihood import likelihood
from qbench.evaluate.noise import Noise, noisy, responses, slope
from qbench.evaluate.sensitivity import Judge
from qbench.models.spec import Wiring


class Quadratic(nn.Module):
    """Two linear blocks; its loss is the squared distance to a target, so noise costs exactly its own image's power."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.layers = nn.ModuleList([nn.Linear(5, 5, bias=False, dtype=torch.float64) for _ in range(2)])
        for layer in self.layers:
            layer.weight.data.copy_(torch.randn(5, 5, generator=generator, dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)
        return x


def _squares(output: Tensor, _clean: Tensor, batch: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
    return {"loss": (output - batch[1]).square().sum((1, 2)) / 2}


SQUARES = Judge(lambda model, batch: model(batch[0]), _squares)


def data(n: int = 4, seed: int = 1) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x, y = (torch.randn(n, 3, 5, generator=generator, dtype=torch.float64) for _ in range(2))
    return x, y


def added(model: Quadratic, group: dict[str, Place], noise: Noise, key: str, x: Tensor) -> Tensor:
    """The noise itself, as it reaches the end of block 0."""
    with torch.no_grad(), noisy(group, noise, key):
        return model.layers[0](x) - torch.nn.functional.linear(x, model.layers[0].weight)


def test_on_a_quadratic_loss_a_pair_costs_the_power_of_its_image_to_the_last_digit() -> None:
    model, batch, noise = Quadratic(), data(), Noise(20, seed=3)
    group = {"blocks.0.out": Place(model.layers[0])}
    (found,) = responses(model, {"here": group}, [batch], [noise], SQUARES)["here"]
    e = added(model, group, noise, "3 here 0 0", batch[0])
    exact = (e @ model.layers[1].weight.T).square().sum((1, 2)).detach().numpy() / 2
    assert found.increases == pytest.approx(exact, rel=1e-9)
    assert found.sensitivity.estimate == pytest.approx(exact.mean() * 100, rel=1e-9)
    assert found.sensitivity.low == pytest.approx(found.increase.low * 100)


@pytest.mark.parametrize("snr", [40.0, 20.0, -6.0])
def test_the_power_is_what_was_asked_for(snr: float) -> None:
    model, (x, _) = Quadratic(), data()
    group = {"blocks.0.out": Place(model.layers[0])}
    e = added(model, group, Noise(snr), "any", x)
    clean = torch.nn.functional.linear(x, model.layers[0].weight)
    assert (e.square().sum() / clean.square().sum()).item() == pytest.approx(10 ** (-snr / 10))
    big = torch.zeros(200, 100, 50)  # a tensor without power gets no noise
    site = nn.Identity()
    with noisy({"x": Place(site)}, Noise(0), "any"):
        assert torch.equal(site(big), big)
        white = site(big + 1) - 1
    assert abs(white.mean()) < 0.01
    assert white.std() == pytest.approx(1, abs=0.01)
    flat = white.reshape(-1, 50)
    assert abs(torch.corrcoef(flat.T) - torch.eye(50)).max() < 0.05  # white: no channel knows another


def test_more_pairs_come_near_the_expectation() -> None:
    """E|W e|^2 = |W|_F^2 |e|^2 / n: the noise is as strong in every direction."""
    model, batch = Quadratic(), data(200)
    group = {"blocks.0.out": Place(model.layers[0])}
    (found,) = responses(model, {"here": group}, [batch], [Noise(20, pairs=8)], SQUARES)["here"]
    clean = torch.nn.functional.linear(batch[0], model.layers[0].weight)
    w = model.layers[1].weight
    per_value = clean.square().mean() * w.square().sum()  # per token, of unit relative power
    assert found.sensitivity.estimate == pytest.approx((3 * per_value / 2).item(), rel=0.05)


def test_at_the_final_states_it_is_the_softmaxs_curvature() -> None:
    model, windows = small("residual"), tokens(40, length=13)
    there = places(model)
    (found,) = responses(model, {"final": {"final": there["final"]}}, [windows], [Noise(40, pairs=60)])["final"]
    with torch.no_grad():
        states = model.hidden(windows[:, :-1]).double()
        w = model.logits.double()
        p = (states @ w.T).softmax(-1)
        mean = p @ w
        trace = (p @ w.square().sum(1)) - mean.square().sum(-1)  # of W^T (diag p - p p^T) W
    expected = (states.square().mean() * trace.mean() / 2).item()
    assert found.sensitivity.estimate == pytest.approx(expected, rel=0.05)


@pytest.mark.parametrize("wiring", WIRINGS)
def test_only_the_end_of_the_model_runs_again_and_nothing_else_changes(wiring: Wiring) -> None:
    model = small(wiring, layers=3)
    there = places(model)
    groups = {name: {name: there[name]} for name in ("embed", "blocks.1.mlp.in", "blocks.2.out", "final")}
    groups["boundaries"] = {name: there[name] for name in select(model, "activation", "boundaries")}
    windows = [tokens(4, length=13), tokens(3, length=13, seed=9)]
    noise = Noise(15, pairs=2, seed=1)
    found = responses(model, groups, windows, [noise])
    for name, group in groups.items():
        parts: list[np.ndarray] = []
        for number, batch in enumerate(windows):
            total = np.zeros(len(batch))
            for draw in range(4):
                with noisy(group, noise, f"1 {name} {number} {draw // 2}", negative=draw % 2 == 1):
                    total += likelihood(model, batch).losses
            parts.append(total / 4 - likelihood(model, batch).losses)
        assert found[name][0].increases == pytest.approx(np.concatenate(parts), abs=2e-6), name
    assert not any(module._forward_hooks for module in model.modules())


def test_the_same_noise_every_time_and_for_every_level() -> None:
    model, batch = Quadratic(), data()
    group = {"blocks.0.out": Place(model.layers[0])}
    levels = [Noise(snr) for snr in (40, 20, 10)]
    once, again = (responses(model, {"a": group}, [batch], levels, SQUARES)["a"] for _ in range(2))
    assert all(np.array_equal(x.increases, y.increases) for x, y in zip(once, again, strict=True))
    assert once[0].sensitivity.estimate == pytest.approx(
        once[2].sensitivity.estimate
    )  # quadratic: the same at any level
    assert slope(once) == pytest.approx(1)
    other = responses(model, {"a": group}, [batch], [Noise(40, seed=1)], SQUARES)["a"]
    named = responses(model, {"b": group}, [batch], [Noise(40)], SQUARES)["b"]
    assert not np.array_equal(other[0].increases, once[0].increases)
    assert not np.array_equal(named[0].increases, once[0].increases)


def test_a_pair_cancels_what_is_linear() -> None:
    linear = Judge(lambda model, batch: model(batch[0]), lambda out, _c, _b: {"loss": out.sum((1, 2))})
    model = Quadratic()
    (found,) = responses(model, {"a": {"blocks.0.out": Place(model.layers[0])}}, [data()], [Noise(0)], linear)["a"]
    assert found.increases == pytest.approx(np.zeros(4), abs=1e-12)
    assert np.isnan(slope([found]))


def test_mistakes_are_named() -> None:
    model, batch = Quadratic(), data()
    nowhere: dict[str, Any] = {"blocks.0.out": Place(nn.Identity())}
    with pytest.raises(ValueError, match=r"nothing flowed through blocks\.0\.out"):
        responses(model, {"a": nowhere}, [batch], judge=SQUARES)
    with pytest.raises(ValueError, match="no batch"):
        responses(model, {"a": nowhere}, [], judge=SQUARES)
    with pytest.raises(ValueError, match="one pair"):
        Noise(pairs=0)
    site = nn.Identity()
    with pytest.raises(TypeError, match="not one floating-point tensor"), noisy({"x": Place(site)}, Noise(), ""):
        site(torch.arange(3))
