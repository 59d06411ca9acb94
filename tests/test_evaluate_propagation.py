"""Errors through a whole model: against whole passes of the clean and the quantized model, and known special cases."""

from typing import Any

import pytest
import torch
from by_hand import WIRINGS, small, tokens
from torch import Tensor, nn

from qbench.capture.place import Matrix, Place
from qbench.capture.places import matrices, places, select
from qbench.capture.read import watching
from qbench.capture.write import quantized
from qbench.evaluate.propagation import Matrices, Places, propagation
from qbench.evaluate.units import units
from qbench.metrics.flow import Crossed, FlowSums, flow, linear_flow
from qbench.models.spec import Wiring
from qbench.quant.quantizer import Quantizer, build

LAYERS = 3


def batches() -> list[Tensor]:
    return [tokens(3), tokens(2, seed=7)]


def treated(model: nn.Module, activations: str = "linear", weights: str = "weights") -> tuple[Places, Matrices]:
    there, held = places(model), matrices(model)
    at = {name: (there[name], build("int4/token")) for name in select(model, "activation", activations)}
    of = {name: (held[name], build("int4/channel", channel_axis=0)) for name in select(model, "weight", weights)}
    return at, of


def passed(model: nn.Module, names: list[str], batch: Tensor, treatment: tuple[Any, Any] = ({}, {})) -> dict[str, Any]:
    """What flows through places in one whole pass."""
    kept: dict[str, Tensor] = {}
    there = places(model)

    def keep(name: str, x: Tensor) -> None:
        kept[name] = x.clone()

    with torch.no_grad(), quantized(*treatment), watching({name: there[name] for name in names}, keep):
        model(batch)
    return kept


@pytest.mark.parametrize("wiring", WIRINGS)
def test_the_error_behind_each_block_is_that_of_whole_passes(wiring: Wiring) -> None:
    model = small(wiring, layers=LAYERS)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    at, of = treated(model)
    found = propagation(model, batches(), units(model, batches()[0]), at, of)
    ends = [f"blocks.{i}.out" for i in range(LAYERS)]
    expected = [FlowSums() for _ in ends]
    for batch in batches():
        clean, moved = passed(model, ends, batch), passed(model, ends, batch, (at, of))
        for i, name in enumerate(ends):
            start = clean[name]
            expected[i] += flow(start, moved[name], Crossed(start, start, moved[name], moved[name]))
    for i, one in enumerate(expected):
        assert found.blocks[f"blocks.{i}"].error == pytest.approx(one.before.value, rel=1e-5)
    for i in range(1, LAYERS):
        assert found.blocks[f"blocks.{i}"].before.value == pytest.approx(expected[i - 1].before.value, rel=1e-5)
    assert found.blocks["blocks.0"].inherited.value == 0
    assert "flow/gain" not in found.values()["blocks.0"]
    assert not found.left_out
    assert not found.warnings
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


@pytest.mark.parametrize("wiring", WIRINGS)
def test_all_four_outputs_of_a_block(wiring: Wiring) -> None:
    model = small(wiring, layers=LAYERS)
    at, of = treated(model)
    found = propagation(model, batches()[:1], units(model, batches()[0]), at, of)
    ends = ["blocks.0.out", "blocks.1.out"]
    h, f_h = passed(model, ends, batches()[0]).values()
    moved, both = passed(model, ends, batches()[0], (at, of)).values()
    block = model.blocks[1]
    mine = [{name: pair for name, pair in part.items() if name.startswith("blocks.1.")} for part in (at, of)]
    with torch.no_grad():
        f_moved = block(moved)
        with quantized(mine[0], mine[1]):
            changed = block(h)
    expected = flow(h, moved, Crossed(f_h, f_moved, changed, both))
    assert found.values()["blocks.1"] == pytest.approx(expected.values(), rel=1e-5)


@pytest.mark.parametrize("wiring", WIRINGS)
def test_each_matrix_on_what_it_really_reads(wiring: Wiring) -> None:
    model = small(wiring, layers=LAYERS)
    at, of = treated(model)
    found = propagation(model, batches(), units(model, batches()[0]), at, of)
    reads = {"attn.q": "attn.in", "attn.v": "attn.in", "attn.out": "attn.context", "mlp.out": "mlp.hidden"}
    for matrix, site in reads.items():
        name, place = f"blocks.2.{matrix}", f"blocks.2.{site}"
        held, quantizer = of[name]
        sums = FlowSums()
        for batch in batches():
            h = passed(model, [place], batch)[place]
            moved = passed(model, [place], batch, (at, of))[place]  # watched behind the quantizer
            sums += linear_flow(h, moved, held.read(), quantizer.roundtrip(held.read()))
        values = found.values()[name]
        for metric, value in sums.values().items():
            assert values[metric] == pytest.approx(value, rel=1e-4), (name, metric)
        assert values["flow/gain"] == pytest.approx(values["flow/gain/spectral"] * values["flow/gain/alignment"])
    assert len(found.matrices) == 6 * LAYERS


def test_without_quantizers_there_is_no_error() -> None:
    model = small("residual", layers=2)
    found = propagation(model, batches(), units(model, batches()[0]), {}, {})
    assert [sums.error for sums in found.blocks.values()] == [0, 0]
    assert set(found.spectral.values()) == {1.0}


def test_boundaries_alone_and_what_is_outside_the_blocks() -> None:
    model = small("residual-free", layers=2)
    at, of = treated(model, "boundaries", "head")
    at |= {"final": (places(model)["final"], build("int8/token"))}
    found = propagation(model, batches(), units(model, batches()[0]), at, of)
    assert found.left_out == ("activation:final", "weight:logits")
    values = found.values()
    assert values["blocks.0"]["flow/introduced"] == pytest.approx(values["blocks.0"]["flow/error"])
    assert values["blocks.1"]["flow/inherited"] > 0


class Adding(nn.Module):
    """A block that writes into its input, is given it by name, and gives a tuple."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.linear = nn.Linear(6, 6)
        with torch.no_grad():
            self.linear.weight.copy_(torch.randn(6, 6, generator=torch.Generator().manual_seed(seed)))

    def forward(self, *, hidden_states: Tensor, past_key_values: object = None) -> tuple[Tensor]:
        return (hidden_states.add_(self.linear(hidden_states)),)


class Elsewhere(nn.Module):
    def __init__(self, cache: object = None) -> None:
        super().__init__()
        self.layers = nn.ModuleList([Adding(0), Adding(1)])
        self.cache = cache

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            (x,) = layer(hidden_states=x.clone(), past_key_values=self.cache)
        return x


def test_blocks_of_other_models() -> None:
    model = Elsewhere()
    x = torch.randn(3, 4, 6, generator=torch.Generator().manual_seed(2))
    linears = [layer.linear for layer in model.layers]
    quantizer = build("int3/channel", channel_axis=0)
    of: dict[str, tuple[Matrix, Quantizer]] = {
        f"layers.{i}.linear": (Matrix(linear.weight), quantizer) for i, linear in enumerate(linears)
    }
    at = {"layers.0.linear": (Place(linears[0], "input", "input"), build("int4/token"))}
    found = propagation(model, [x], units(model, x), at, of)
    with torch.no_grad():
        clean = model(x)
        with quantized(at, of):
            moved = model(x)
    error = (((moved - clean).norm(dim=-1) / clean.norm(dim=-1)) ** 2).mean().item()
    assert found.blocks["blocks.1"].error == pytest.approx(error, rel=1e-5)
    assert set(found.matrices) == {"layers.0.linear", "layers.1.linear"}
    assert found.left_out == ()


class Shrinking(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(6, 5)])

    def forward(self, x: Tensor) -> Any:
        return self.layers[0](x)


def test_what_cannot_be_followed_is_said() -> None:
    model, x = Elsewhere(cache=object()), torch.randn(1, 2, 6)
    with pytest.raises(ValueError, match="use_cache=False"):
        propagation(model, [x], (), {}, {})
    with pytest.raises(ValueError, match="no batch"):
        propagation(Elsewhere(), [], (), {}, {})
    with pytest.raises(ValueError, match=r"\(1, 2, 6\) and gave \(1, 2, 5\)"):
        propagation(Shrinking(), [x], (), {}, {})
