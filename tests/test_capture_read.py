"""Reading a model: what a visitor sees is what a forward pass by hand has there, and the model is given back."""

from collections.abc import Iterator
from functools import partial
from weakref import ref

import by_hand
import pytest
import torch
from by_hand import WIRINGS, small, tokens
from live_memory import peak_bytes
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from qbench.capture import read
from qbench.capture.place import as_places
from qbench.capture.places import matrices as matrices_of
from qbench.capture.places import places as places_of
from qbench.capture.sites import own
from qbench.models.spec import Wiring
from qbench.models.transformer import Transformer
from qbench.suite.tally import Tally

every_wiring = pytest.mark.parametrize("wiring", WIRINGS)


def loss(model: nn.Module, windows: Tensor) -> Tensor:
    return cross_entropy(model(windows[:, :-1]).flatten(0, 1), windows[:, 1:].flatten())


def seen_activations(model: Transformer, batches: list[Tensor], **places: nn.Module) -> list[tuple[str, Tensor]]:
    seen: list[tuple[str, Tensor]] = []
    read.activations(
        model, as_places(places) or places_of(model), batches, lambda site, x: seen.append((site, x.clone()))
    )
    return seen


def gradients_by_hand(model: Transformer, windows: Tensor, sites: list[str]) -> dict[str, Tensor]:
    """For each site a forward pass of its own, in which that activation is a leaf."""
    found: dict[str, Tensor] = {}
    for wanted in sites:
        leaves: list[Tensor] = []

        def at(name: str, x: Tensor, wanted: str = wanted, leaves: list[Tensor] = leaves) -> Tensor:
            if name == wanted:
                leaves.append(x.detach().requires_grad_())
                return leaves[0]
            return x

        logits = by_hand.forward(model, windows[:, :-1], at)
        total = cross_entropy(logits.flatten(0, 1), windows[:, 1:].flatten())
        (found[wanted],) = torch.autograd.grad(total, leaves)
    return found


@every_wiring
def test_every_activation_is_that_of_a_forward_pass_by_hand(wiring: Wiring) -> None:
    model = small(wiring).double()
    batches = [tokens(3), tokens(2, length=7, seed=5)]
    expected: list[tuple[str, Tensor]] = []

    def at(name: str, x: Tensor) -> Tensor:
        expected.append((name, x.detach()))
        return x

    for batch in batches:
        by_hand.forward(model, batch, at)
    seen = seen_activations(model, batches)
    assert sorted(site for site, _ in seen) == sorted(2 * own(wiring, 2).sites)
    assert [site for site, _ in seen] == 2 * list(model.sites())
    half = len(seen) // 2
    for part in (slice(half), slice(half, None)):
        by_site = dict(expected[part])
        for site, x in seen[part]:
            assert x.abs().mean() > 1e-3  # a comparison of nothing with nothing would pass
            torch.testing.assert_close(x, by_site[site], rtol=1e-6, atol=1e-6)


@every_wiring
def test_every_gradient_is_that_of_a_leaf_put_there_by_hand(wiring: Wiring) -> None:
    model = small(wiring).double()
    windows = tokens(3, length=13)
    seen: dict[str, Tensor] = {}
    read.gradients(model, places_of(model), [windows], loss, lambda site, g: seen.update({site: g.clone()}))
    expected = gradients_by_hand(model, windows, list(model.sites()))
    assert set(seen) == set(expected)
    for site, gradient in seen.items():
        assert expected[site].norm() > 1e-5, site
        torch.testing.assert_close(gradient, expected[site], rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(
    "sites",
    [
        ["blocks.0.attn.q", "blocks.0.attn.k", "blocks.0.attn.v"],  # none of them depends on another
        ["blocks.1.mlp.hidden"],
        ["logits"],
        ["blocks.0.attn.out", "blocks.0.attn.in", "blocks.1.mid"],
    ],
    ids=",".join,
)
def test_gradients_do_not_depend_on_which_other_places_are_watched(sites: list[str]) -> None:
    model = small("residual").double()
    windows = tokens(2, length=13)
    seen: dict[str, Tensor] = {}
    places = {site: places_of(model)[site] for site in sites}
    read.gradients(model, places, [windows], loss, lambda site, g: seen.update({site: g.clone()}))
    expected = gradients_by_hand(model, windows, sites)
    assert set(seen) == set(sites)
    for site in sites:
        torch.testing.assert_close(seen[site], expected[site], rtol=1e-5, atol=1e-7)


def test_gradients_are_found_where_a_notebook_has_switched_them_off() -> None:
    model, seen = small("residual"), set[str]()
    with torch.no_grad():
        read.gradients(model, places_of(model), [tokens(2)], loss, lambda site, _: seen.add(site))
    assert seen == set(model.sites())


def test_weights_are_the_parameters_without_their_graph() -> None:
    model = small("residual")
    seen: dict[str, Tensor] = {}
    read.weights(matrices_of(model), lambda name, w: seen.update({name: w}))
    own = dict(model.named_parameters())
    assert set(seen) == {name for name, parameter in own.items() if parameter.ndim == 2}
    assert all(torch.equal(w, own[name]) and not w.requires_grad for name, w in seen.items())


class Tired(Exception):
    pass


def breaking(after: int) -> read.Visit:
    """A visitor that raises at its visit number `after`."""
    visits = iter(range(after))

    def visit(_site: str, _x: Tensor) -> None:
        if next(visits, None) is None:
            raise Tired

    return visit


def broken_batches() -> Iterator[Tensor]:
    yield tokens(2)
    raise Tired


@pytest.mark.parametrize("after", [0, 5, 1000], ids=["first visit", "inside", "no error"])
@pytest.mark.parametrize("batches", ["whole", "broken"])
@pytest.mark.parametrize("what", ["activations", "gradients"])
def test_the_model_is_given_back_as_it_was(what: str, batches: str, after: int) -> None:
    model = small("residual")
    parameters = list(model.parameters())
    parameters[0].requires_grad_(False)
    parameters[1].grad = torch.full_like(parameters[1], 7.0)
    before = [(p.detach().clone(), p.requires_grad, None if p.grad is None else p.grad.clone()) for p in parameters]
    given = [tokens(2), tokens(2)] if batches == "whole" else broken_batches()
    try:
        if what == "activations":
            read.activations(model, places_of(model), given, breaking(after))
        else:
            read.gradients(model, places_of(model), given, loss, breaking(after))
    except Tired:
        assert after < 1000 or batches == "broken"
    else:
        assert after == 1000
        assert batches == "whole"
    for parameter, (value, required, gradient) in zip(parameters, before, strict=True):
        assert torch.equal(parameter, value)
        assert parameter.requires_grad == required
        assert (parameter.grad is None) == (gradient is None)
        assert gradient is None or (parameter.grad is not None and torch.equal(parameter.grad, gradient))
    assert [name for name, module in model.named_modules() if module._forward_hooks or module._backward_hooks] == []
    assert torch.is_grad_enabled()


@pytest.mark.parametrize("what", ["activations", "gradients"])
def test_no_tensor_outlives_its_visit(what: str) -> None:
    """Weak references to all that was seen: a handful is alive at once, whatever the number of batches."""
    model, alive = small("residual"), list[ref[Tensor]]()
    most = 0

    def visit(_site: str, x: Tensor) -> None:
        nonlocal most
        alive[:] = [one for one in alive if one() is not None] + [ref(x)]
        most = max(most, len(alive))

    batches = [tokens(2, length=13) for _ in range(5)]
    if what == "activations":
        read.activations(model, places_of(model), [b[:, :-1] for b in batches], visit)
    else:
        read.gradients(model, places_of(model), batches, loss, visit)
    assert 1 <= most <= 12, most  # a block's own tensors, while it works with them; there are 28 sites a batch
    assert [one for one in alive if one() is not None] == []


def tallied(layers: int, batches: int, quantizers: int, kind: str = "activation") -> int:
    """Peak bytes of all tensors alive while a tally is fed, parameters and the tokens not counted."""
    # Blocks of 8 are measured one by one and need copies; the others share a pass.
    names = ["lloyd4/block:8", "int8/token", "int4/token", "int4/tensor", "int4/block:8", "int3/channel"][:quantizers]
    model = small("residual", layers=layers, width=32)
    tally = Tally(kind, names, shape=True)
    given = [tokens(16, length=13, seed=i) for i in range(batches)]
    run = {
        "activation": partial(read.activations, model, places_of(model), [b[:, :-1] for b in given], tally.visit),
        "gradient": partial(read.gradients, model, places_of(model), given, loss, tally.visit),
    }
    return peak_bytes(run[kind])


@pytest.mark.parametrize("kind", ["activation", "gradient"])
def test_peak_memory_does_not_grow_with_the_number_of_batches(kind: str) -> None:
    few, many = (tallied(1, batches, 2, kind) for batches in (2, 5))
    assert many <= 1.02 * few


def test_peak_memory_does_not_grow_with_the_number_of_sites_or_quantizers() -> None:
    small_one, more_sites, more_quantizers = tallied(1, 2, 1), tallied(4, 2, 1), tallied(1, 2, 6)
    widest = 16 * 12 * 128 * 4  # bytes of the widest activation, mlp.hidden
    assert small_one > 3 * widest  # the measure of memory sees the copies
    # What is kept of a site: four moments, signal and error, in float64 for each channel.
    channels = 3 * (10 * 32 + 2 * 128)
    assert more_sites <= 1.01 * small_one + channels * 6 * 8
    assert more_quantizers <= small_one + 2 * widest


def test_gradients_are_read_from_a_model_that_works_in_place() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(inplace=True), nn.Linear(4, 1))
    x, seen = torch.randn(3, 4, generator=torch.Generator().manual_seed(0)), dict[str, Tensor]()
    places = as_places({"0": model[0]})
    read.gradients(model, places, [x], lambda m, b: m(b).sum(), lambda site, g: seen.update({site: g.clone()}))
    expected = (model[0](x) > 0) * model[2].weight
    torch.testing.assert_close(seen["0"], expected.detach())
