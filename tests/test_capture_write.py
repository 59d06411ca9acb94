"""Running a model with quantized copies: only what was named changes, as by hand, and nothing stays behind."""

from collections.abc import Iterable
from dataclasses import replace

import by_hand
import pytest
import torch
from by_hand import WIRINGS, small, tokens
from torch import Tensor, nn

from qbench.capture import read
from qbench.capture.place import Matrix, Place
from qbench.capture.places import matrices as matrices_of
from qbench.capture.places import places as places_of
from qbench.capture.write import Engagement, quantized
from qbench.models.spec import Wiring
from qbench.models.transformer import Transformer
from qbench.quant.quantizer import Quantizer, build

every_wiring = pytest.mark.parametrize("wiring", WIRINGS)
INT4, COARSE = build("int4/token"), build("int2/token")
ROWS = build("int4/channel", channel_axis=0)

Places = dict[str, tuple[Place, Quantizer]]
Matrices = dict[str, tuple[Matrix, Quantizer]]


def at_places(model: Transformer, names: Iterable[str], quantizer: Quantizer) -> Places:
    return {name: (places_of(model)[name], quantizer) for name in names}


def of_matrices(model: Transformer, names: Iterable[str], quantizer: Quantizer = ROWS) -> Matrices:
    return {name: (matrices_of(model)[name], quantizer) for name in names}


def logits_by_hand(model: Transformer, read: Tensor, quantizers: dict[str, Quantizer]) -> Tensor:
    return by_hand.forward(model, read, lambda name, x: quantizers[name].roundtrip(x) if name in quantizers else x)


@every_wiring
@pytest.mark.parametrize("name", ["int4/token", "int8/tensor", "int4/channel", "mxfp4", "int4/tensor+hadamard"])
def test_a_quantized_place_is_a_roundtrip_put_there_by_hand(wiring: Wiring, name: str) -> None:
    model, read_ = small(wiring).double(), tokens(3)
    plain, quantizer = model(read_), build(name)
    for site in model.sites():
        with quantized(at_places(model, [site], quantizer), {}):
            found = model(read_)
        expected = logits_by_hand(model, read_, {site: quantizer})
        # A value close to the middle between two levels may fall to either side.
        assert (found - expected).norm() < 1e-2 * (expected - plain).norm(), site
    assert torch.equal(model(read_), plain)


@every_wiring
def test_only_the_named_place_and_what_follows_it_change(wiring: Wiring) -> None:
    model, batch = small(wiring), tokens(2)
    order = list(model.sites())

    def all_activations() -> dict[str, Tensor]:
        seen: dict[str, Tensor] = {}
        read.activations(model, places_of(model), [batch], lambda site, x: seen.update({site: x.clone()}))
        return seen

    before = all_activations()
    named = "blocks.1.attn.q"
    with quantized(at_places(model, [named], COARSE), {}):
        after = all_activations()
    unchanged = [site for site in order if torch.equal(before[site], after[site])]
    assert unchanged == [*order[: order.index(named)], "blocks.1.attn.k", "blocks.1.attn.v"]


@pytest.mark.parametrize("fails", [False, True])
def test_weights_are_quantized_inside_and_restored_to_the_bit(fails: bool) -> None:
    model = small("residual")
    names = ["blocks.0.attn.q", "blocks.1.mlp.out"]
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    before["blocks.0.attn.q"].copy_(model.weights()["blocks.0.attn.q"].detach().flip(0))  # no special values
    with torch.no_grad():
        model.weights()["blocks.0.attn.q"].copy_(before["blocks.0.attn.q"])
        model.weights()["blocks.0.attn.q"][0, 0] = before["blocks.0.attn.q"][0, 0] = -0.0
    pointers = [parameter.data_ptr() for parameter in model.parameters()]
    try:
        with quantized({}, of_matrices(model, names)):
            for name, parameter in model.named_parameters():
                expected = ROWS.roundtrip(before[name]) if name in names else before[name]
                assert torch.equal(parameter, expected), name
                assert name not in names or not torch.equal(parameter, before[name])
            if fails:
                raise KeyboardInterrupt
    except KeyboardInterrupt:
        assert fails
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter.view(torch.int32), before[name].view(torch.int32)), name
    assert [parameter.data_ptr() for parameter in model.parameters()] == pointers


def test_a_matrix_that_cannot_be_quantized_leaves_the_others_restored() -> None:
    model = small("residual")
    with torch.no_grad():
        model.weights()["blocks.1.mlp.out"][0, 0] = float("inf")
    before = model.weights()["blocks.0.attn.q"].detach().clone()
    with pytest.raises(ValueError, match="infinite"):
        quantized({}, of_matrices(model, ["blocks.0.attn.q", "blocks.1.mlp.out"])).__enter__()
    assert torch.equal(model.weights()["blocks.0.attn.q"], before)


@pytest.mark.parametrize("backward", [None, build("int3/token")], ids=["straight", "quantized backward"])
def test_the_gradient_passes_straight_through(backward: Quantizer | None) -> None:
    """By hand: the quantized value with the gradient of the identity, and the incoming gradient quantized."""
    model, read_, site = small("residual").double(), tokens(2), "blocks.0.mlp.in"
    gradients = {} if backward is None else at_places(model, [site], backward)

    def straight(name: str, x: Tensor) -> Tensor:
        if name != site:
            return x
        y = x + (INT4.roundtrip(x) - x).detach()
        if backward is not None:
            y.register_hook(backward.roundtrip)
        return y

    wanted = list(model.weights().values())
    expected = torch.autograd.grad(by_hand.forward(model, read_, straight).square().sum(), wanted)
    with quantized(at_places(model, [site], INT4), {}, gradients) as engagement:
        found = torch.autograd.grad(model(read_).square().sum(), wanted)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4 * other.abs().max().item())
    assert set(engagement.places) == {f"activation:{site}"} | ({f"gradient:{site}"} if backward else set())
    assert engagement.warnings() == ()


def test_gradients_alone_leave_the_forward_pass_as_it_is() -> None:
    model, read_ = small("residual"), tokens(2)
    plain = model(read_)
    with quantized({}, {}, at_places(model, ["blocks.0.out"], COARSE)) as engagement:
        logits = model(read_)
        assert torch.equal(logits, plain)
        logits.sum().backward()
    assert list(engagement.places) == ["gradient:blocks.0.out"]
    assert 1 < engagement.levels <= 3  # int2 is -1, 0, 1


@every_wiring
def test_weights_and_activations_together_and_inside_one_another(wiring: Wiring) -> None:
    model, read_ = small(wiring).double(), tokens(2)
    sites, names = ["blocks.0.attn.in", "blocks.1.out"], ["blocks.0.attn.v", "blocks.1.mlp.pre"]
    plain = model(read_)
    with quantized(at_places(model, sites, INT4), of_matrices(model, names)) as together:
        found = model(read_)
        expected = logits_by_hand(model, read_, dict.fromkeys(sites, INT4))  # its weights are quantized here too
    assert (found - expected).norm() < 1e-2 * (expected - plain).norm()
    assert set(together.places) == {f"activation:{s}" for s in sites} | {f"weight:{n}" for n in names}
    with quantized({}, of_matrices(model, names)) as outer, quantized(at_places(model, sites, INT4), {}) as inner:
        assert torch.equal(model(read_), found)
    assert set(outer.places) | set(inner.places) == set(together.places)
    assert torch.equal(model(read_), plain)


def test_the_inner_of_two_quantizers_of_a_place_sees_what_the_outer_left() -> None:
    model, read_, site = small("residual").double(), tokens(2), "blocks.0.out"
    name = "blocks.0.mlp.pre"
    before = model.weights()[name].detach().clone()
    with quantized(at_places(model, [site], INT4), of_matrices(model, [name])):
        with quantized(at_places(model, [site], COARSE), of_matrices(model, [name], COARSE)):
            assert torch.equal(model.weights()[name], COARSE.roundtrip(ROWS.roundtrip(before)))
            found = model(read_)
            expected = by_hand.forward(
                model, read_, lambda at, x: COARSE.roundtrip(INT4.roundtrip(x)) if at == site else x
            )
        assert torch.equal(model.weights()[name], ROWS.roundtrip(before))
    assert torch.equal(model.weights()[name], before)
    assert (found - expected).norm() < 1e-2 * expected.norm()


BITS = {  # activations [2, 12, 16]: 384 values in 24 tokens; matrix [64, 16]: 1024 values in 64 rows
    "int4/token": (384 * 4 + 24 * 32, 1024 * 4 + 64 * 32),
    "int8/tensor": (384 * 8 + 32, 1024 * 8 + 32),
    "int4/channel": (384 * 4 + 16 * 32, 1024 * 4 + 64 * 32),
    "int4.asym/token": (384 * 4 + 24 * (32 + 4), 1024 * 4 + 64 * (32 + 4)),
    "mxfp4": (24 * (32 * 4 + 8), 64 * (32 * 4 + 8)),  # half of each block is padding, and is stored
    "int3/block:12/scale:fp16": (24 * 2 * (12 * 3 + 16), 64 * 2 * (12 * 3 + 16)),
}


@pytest.mark.parametrize("name", BITS)
def test_what_quantizers_did_is_counted(name: str) -> None:
    model = small("residual")
    places = at_places(model, ["blocks.0.out", "blocks.1.out"], build(name))
    with quantized(places, of_matrices(model, ["blocks.0.mlp.pre"], build(name, channel_axis=0))) as engagement:
        for windows in (2, 3):  # later batches are not counted again
            model(tokens(windows))
    assert set(engagement.places) == {"activation:blocks.0.out", "activation:blocks.1.out", "weight:blocks.0.mlp.pre"}
    activation, weight = BITS[name]
    assert engagement.bits("activation") == pytest.approx(2 * activation)
    assert engagement.bits("weight") == pytest.approx(weight)
    assert (engagement.values("activation"), engagement.values("weight")) == (2 * 384, 1024)
    assert engagement.bits() / engagement.values() == pytest.approx((2 * activation + weight) / (2 * 384 + 1024))
    bits = build(name).spec.bits
    assert 2 ** (bits - 1) <= engagement.levels <= 2**bits
    assert engagement.warnings() == ()


def test_an_error_of_zero_is_a_warning_and_an_overfull_code_book_an_error() -> None:
    model, read_ = small("residual"), tokens(2)
    with torch.no_grad():
        model.weights()["blocks.0.attn.q"].copy_(torch.randint(-7, 8, (16, 16)).float()).fill_diagonal_(7)
    with quantized({}, of_matrices(model, ["blocks.0.attn.q", "blocks.0.attn.k"])) as engagement:
        model(read_)
    assert engagement.warnings() == ("the error is exactly zero at weight:blocks.0.attn.q",)
    more = Engagement()
    x = torch.linspace(-1, 1, 64).reshape(1, 64)
    more.note("activation:x", build("int8/token"), x, x)
    more.note("activation:y", INT4, x, x)
    assert (more.places["activation:x"].levels, more.places["activation:y"].levels) == (64, 15)
    assert (more.places["activation:x"].limit, more.places["activation:y"].limit) == (256, 16)
    more.places["activation:y"] = replace(more.places["activation:y"], levels=17)
    with pytest.raises(RuntimeError, match="activation:y shows 17 levels, its code has 16"):
        more.warnings()


def test_a_place_that_nothing_passes_is_a_warning() -> None:
    """Attention of torch never calls the module of its output projection."""
    attention = nn.MultiheadAttention(8, 2)
    x = torch.randn(3, 1, 8, generator=torch.Generator().manual_seed(0))
    with quantized({"out_proj": (Place(attention.out_proj), INT4)}, {}) as engagement:
        attention(x, x, x)
    assert engagement.warnings() == ("nothing passed through activation:out_proj",)


def test_what_is_not_one_tensor_is_refused_by_name() -> None:
    lstm, ids = nn.LSTM(4, 4), nn.Flatten()
    with quantized({"rnn": (Place(lstm), INT4), "ids": (Place(ids), INT4)}, {}):
        with pytest.raises(TypeError, match="rnn gives a tuple, not one floating-point tensor"):
            lstm(torch.randn(2, 1, 4))
        with pytest.raises(TypeError, match="ids gives a Tensor, not one floating-point tensor"):
            ids(torch.zeros(2, 2, dtype=torch.int64))
    assert isinstance(lstm(torch.randn(2, 1, 4)), tuple)


@pytest.mark.parametrize("name", ["int4/token", "int4/block:4", "int4/block:3", "int4/tensor", "int4/token+hadamard"])
@pytest.mark.parametrize("kind", ["forward", "backward"])
def test_the_copy_may_be_changed_in_place(name: str, kind: str) -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(inplace=True), nn.Linear(8, 2))
    x = torch.randn(5, 8, generator=torch.Generator().manual_seed(0))
    place = {"0": (Place(model[0]), build(name))}
    with quantized(place if kind == "forward" else {}, {}, place if kind == "backward" else {}) as engagement:
        model(x).sum().backward()
    assert len(engagement.places) == 1
    assert model[0].weight.grad.abs().sum() > 0


@pytest.mark.parametrize("name", ["int4/block:4@2", "int4/block:2@1", "int4/block:2@-3", "int4/tile:2x4"])
def test_blocks_may_run_along_any_axis_of_an_activation(name: str) -> None:
    model, x = nn.Sequential(nn.Linear(8, 8)), torch.randn(4, 6, 8, generator=torch.Generator().manual_seed(0))
    with quantized({"0": (Place(model[0]), build(name))}, {}) as engagement:
        y = model(x)
    assert torch.equal(y, build(name).roundtrip(model(x)))
    assert 8 <= engagement.levels <= 16
