"""Calibration of places in live models."""

import pytest
import torch
from by_hand import small, tokens
from torch import Tensor, nn

from qbench.capture.calibrate import calibrate
from qbench.capture.place import Place
from qbench.capture.places import matrices, places
from qbench.capture.read import activations
from qbench.capture.write import quantized
from qbench.names import UnknownName
from qbench.quant.blocks import NonFinite
from qbench.quant.quantizer import build
from qbench.quant.spelling import parse

SITES = ("blocks.0.attn.in", "blocks.1.mlp.hidden", "blocks.1.out")
BATCHES = [tokens(3, seed=1), tokens(2, seed=2), tokens(4, seed=3)]


def everything(model: nn.Module, site: str) -> Tensor:
    seen: list[Tensor] = []
    activations(model, {site: places(model)[site]}, BATCHES, lambda _, x: seen.append(x.flatten(0, 1)))
    return torch.cat(seen)


def test_the_range_of_all_batches_is_the_largest_of_theirs() -> None:
    model = small("residual")
    found = calibrate(model, places(model), BATCHES, dict.fromkeys(SITES, parse("int8/tensor+static")))
    assert set(found) == set(SITES)
    for site in SITES:
        x = everything(model, site)
        parts = [calibrate(model, places(model), [b], {site: parse("int8/tensor+static")})[site] for b in BATCHES]
        assert found[site].fixed is not None
        assert found[site].fixed.stored.item() == max(float(part.fixed.stored) for part in parts)
        assert found[site].fixed.stored.item() == float(x.abs().max() / 127)
        assert torch.equal(found[site].largest_C, x.abs().amax(0))


@pytest.mark.parametrize(
    "name",
    ["int8.asym/tensor+static", "int8/channel+static", "int4/tensor/rms+static", "int4/channel/mse+static",
     "int8/tensor+smooth:0.5+static", "int8/channel+smooth:0.5+hadamard:4+static", "e4m3/tensor+static"],
)  # fmt: skip
def test_a_quantizer_is_that_of_everything_that_flowed_by(name: str) -> None:
    model, site = small("residual"), SITES[1]
    found = calibrate(model, places(model), BATCHES, {site: parse(name)})[site]
    x = everything(model, site)
    expected = build(name.removesuffix("+static")).roundtrip(x)
    torch.testing.assert_close(build(name, calibration=found).roundtrip(x), expected, rtol=1e-6, atol=1e-6)
    again = calibrate(model, places(model), torch.cat(BATCHES).split(1), {site: parse(name)})[site]
    torch.testing.assert_close(again.fixed.stored, found.fixed.stored, rtol=1e-6, atol=0)


def test_a_model_runs_with_fixed_scales() -> None:
    model = small("residual")
    spec = parse("int8.asym/tensor+static")
    found = calibrate(model, places(model), BATCHES, dict.fromkeys(SITES, spec))
    assigned = {site: (places(model)[site], build(spec, calibration=found[site])) for site in SITES}
    read = tokens(2, seed=9)
    plain = model(read).detach()
    with torch.no_grad(), quantized(assigned, {}) as engagement:
        both, alone = model(read), model(read[:1])
    # A fixed scale does not see the other windows of a batch.
    assert torch.allclose(both[:1], alone, atol=1e-5)
    assert 0 < float((both - plain).norm()) < 0.1 * float(plain.norm())
    assert engagement.warnings() == ()


def test_smoothing_takes_the_weights_that_read_the_place_into_account() -> None:
    model, site, power = small("residual"), SITES[0], 0.5
    own = matrices(model)
    readers = [own[f"blocks.0.attn.{name}"] for name in "qkv"]
    spec = parse("int8/token+smooth:0.5")
    found = calibrate(model, places(model), iter(BATCHES), {site: spec}, {site: readers})[site]
    x, weights = everything(model, site), torch.cat([matrix.read() for matrix in readers])
    expected = x.abs().amax(0) ** power / weights.abs().amax(0) ** (1 - power)
    torch.testing.assert_close(found.factors(power), expected)
    assert found.fixed is None


def test_only_sums_are_kept() -> None:
    """A hundred batches cost no more memory than one: nothing that was seen stays alive."""
    model, kept = small("residual"), []
    counted = places(model)[SITES[0]].attach(lambda x: kept.append(x) if len(kept) < 1 else None)
    found = calibrate(
        model, places(model), (tokens(2, seed=i) for i in range(100)), {SITES[0]: parse("int8/channel+static")}
    )
    counted.remove()
    assert kept[0]._base is None
    assert found[SITES[0]].fixed.stored.untyped_storage().nbytes() <= 16 * 4


def test_a_place_that_nothing_reaches_has_no_scale() -> None:
    model = small("residual")
    idle = nn.Linear(4, 4)
    there = {**places(model), "expert": Place(idle)}
    spec = parse("int8/tensor+static")
    assert set(calibrate(model, there, BATCHES, {SITES[0]: spec, "expert": spec})) == {SITES[0]}


def test_mistakes_are_said() -> None:
    model, spec = small("residual"), parse("int8/tensor+smooth:0.5+static")
    with pytest.raises(ValueError, match="calibration set is empty"):
        calibrate(model, places(model), [], {SITES[0]: spec})
    with pytest.raises(ValueError, match="needs the data twice"):
        calibrate(model, places(model), iter(BATCHES), {SITES[0]: spec})
    with pytest.raises(UnknownName, match=r"no place 'blocks.0.attn.inn'; did you mean 'blocks.0.attn.in'"):
        calibrate(model, places(model), BATCHES, {"blocks.0.attn.inn": spec})
    with torch.no_grad():
        model.weights()["blocks.0.mlp.pre"].fill_(torch.nan)
    for name in ("int8/tensor+static", "int8/token+smooth:0.5"):
        with pytest.raises(NonFinite, match=r"blocks\.1\.out"):
            calibrate(model, places(model), BATCHES, {"blocks.1.out": parse(name)})
    assert not any(module._forward_hooks for module in model.modules())
