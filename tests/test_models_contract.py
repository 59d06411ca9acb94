"""Laws that hold for every model in the catalog, in every wiring."""

from dataclasses import asdict, replace
from math import log

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from qbench.models.catalog import MODELS, model_spec
from qbench.models.layers import Site
from qbench.models.spec import ModelSpec
from qbench.models.transformer import Transformer, build
from qbench.models.wiring import WIRINGS

SMALL = {"layers": 3, "width": 32, "heads": 2, "context": 16}
SPECS = {f"{arch}/{wiring}": replace(model_spec(arch, **SMALL), wiring=wiring) for arch in MODELS for wiring in WIRINGS}
every_model = pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS.keys())


def tokens(windows: int = 2, length: int = 16, seed: int = 0) -> Tensor:
    return torch.randint(256, (windows, length), generator=torch.Generator().manual_seed(seed))


def expected_sites(spec: ModelSpec) -> list[str]:
    attention = ["attn.in", "attn.q", "attn.k", "attn.v", "attn.context"]
    mlp = ["mlp.in", "mlp.pre", "mlp.hidden"]
    if spec.wiring == "residual":
        inside = [*attention, "attn.out", "mid", *mlp, "mlp.out", "out"]
    else:
        inside = [*attention, "mid", *mlp, "out"]
    return ["embed", *(f"blocks.{n}.{site}" for n in range(spec.layers) for site in inside), "final", "logits"]


@every_model
def test_a_logit_for_every_token_of_the_vocabulary_at_every_position(spec: ModelSpec) -> None:
    logits = build(spec, seed=0)(tokens(length=11))
    assert (logits.shape, logits.dtype) == ((2, 11, 256), torch.float32)


@every_model
def test_a_later_token_never_changes_an_earlier_logit(spec: ModelSpec) -> None:
    model = build(spec, seed=0)
    before = tokens()
    logits = model(before)
    for t in range(before.shape[1]):
        after = before.clone()
        after[:, t] = (after[:, t] + 1) % 256
        changed = model(after)
        torch.testing.assert_close(changed[:, :t], logits[:, :t], rtol=0, atol=1e-6)
        assert not torch.allclose(changed[:, t], logits[:, t], rtol=0, atol=1e-4)


@every_model
def test_gradient_reaches_every_parameter(spec: ModelSpec) -> None:
    model = build(spec, seed=0)
    batch = tokens(windows=4, length=17)
    cross_entropy(model(batch[:, :-1]).flatten(0, 1), batch[:, 1:].flatten()).backward()
    silent = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert silent == []


@every_model
def test_equal_seeds_give_equal_models_and_other_seeds_other_matrices(spec: ModelSpec) -> None:
    one, same, other = (build(spec, seed).weights() for seed in (1, 1, 2))
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert not any(torch.equal(one[name], other[name]) for name in one)


@every_model
def test_no_two_matrices_are_drawn_alike(spec: ModelSpec) -> None:
    weights = list(build(spec, seed=0).weights().values())
    pairs = [(a, b) for i, a in enumerate(weights) for b in weights[:i] if a.shape == b.shape]
    assert pairs
    assert not any(torch.equal(a, b) for a, b in pairs)


@every_model
def test_building_leaves_the_global_generator_alone(spec: ModelSpec) -> None:
    before = torch.get_rng_state()
    build(spec, seed=0)
    assert torch.equal(torch.get_rng_state(), before)


@every_model
def test_the_first_loss_is_that_of_guessing(spec: ModelSpec) -> None:
    batch = tokens(windows=8, length=17)
    loss = cross_entropy(build(spec, seed=0)(batch[:, :-1]).flatten(0, 1), batch[:, 1:].flatten())
    assert loss.item() == pytest.approx(log(256), rel=0.05)


@every_model
def test_a_spec_survives_the_trip_through_plain_data(spec: ModelSpec) -> None:
    assert ModelSpec(**asdict(spec)) == spec == build(spec, seed=0).spec


@every_model
def test_sites_have_the_canonical_names_in_the_order_of_the_forward_pass(spec: ModelSpec) -> None:
    model = build(spec, seed=0)
    met: list[str] = []
    for name, site in model.sites().items():
        site.register_forward_hook(lambda _m, _a, _o, name=name: met.append(name))
    model(tokens())
    assert met == list(model.sites()) == expected_sites(spec)


@every_model
def test_a_site_is_called_what_it_is_called_in_the_module_tree(spec: ModelSpec) -> None:
    model = build(spec, seed=0)
    modules = {module: name for name, module in model.named_modules() if isinstance(module, Site)}
    assert {name: modules[site].replace("site.", "") for name, site in model.sites().items()} == {
        name: name for name in expected_sites(spec)
    }
    assert len(modules) == len(model.sites())


@every_model
def test_sites_show_one_vector_for_each_token(spec: ModelSpec) -> None:
    model = build(spec, seed=0)
    seen: dict[str, torch.Size] = {}
    for name, site in model.sites().items():
        site.register_forward_hook(lambda _m, _a, out, name=name: seen.update({name: out.shape}))
    model(tokens(length=9))
    for name, shape in seen.items():
        last = name.split(".")[-1]
        assert shape == (2, 9, {"pre": 128, "hidden": 128, "logits": 256}.get(last, 32))


@every_model
def test_replacing_what_a_site_gives_changes_the_logits(spec: ModelSpec) -> None:
    model = build(spec, seed=0)
    untouched = model(tokens())
    for name, site in model.sites().items():
        handle = site.register_forward_hook(lambda _m, _a, out: out.flip(-1))
        assert not torch.allclose(model(tokens()), untouched, rtol=0, atol=1e-6), name
        handle.remove()
    assert torch.equal(model(tokens()), untouched)


@every_model
def test_weights_are_named_by_the_sites_they_produce_and_stored_out_by_in(spec: ModelSpec) -> None:
    weights = build(spec, seed=0).weights()
    shapes = {"pre": (128, 32), "mlp.out": (32, 128), "embed": (256, 32), "logits": (256, 32)}
    inside = ("attn.q", "attn.k", "attn.v", "attn.out", "mlp.pre", "mlp.out")
    assert set(weights) == {"embed", "logits"} | {f"blocks.{n}.{w}" for n in range(3) for w in inside}
    for name, weight in weights.items():
        wanted = next((shape for end, shape in shapes.items() if name.endswith(end)), (32, 32))
        assert tuple(weight.shape) == wanted, name


@every_model
def test_each_weight_maps_what_its_site_shows(spec: ModelSpec) -> None:
    """The product of a weight and the input of its layer is the value at the site that carries its name."""
    model = build(spec, seed=0)
    seen: dict[str, Tensor] = {}
    for name, site in model.sites().items():
        site.register_forward_hook(lambda _m, _a, out, name=name: seen.update({name: out}))
    model(tokens())
    copies = spec.wiring == "residual-free"
    for n in range(spec.layers):
        at, weights = f"blocks.{n}.", model.weights()
        for source, weight, target in (
            ("attn.in", "attn.v", "attn.v"),
            ("attn.context", "attn.out", "mid" if copies else "attn.out"),
            ("mlp.in", "mlp.pre", "mlp.pre"),
            ("mlp.hidden", "mlp.out", "out" if copies else "mlp.out"),
        ):
            torch.testing.assert_close(seen[at + target], seen[at + source] @ weights[at + weight].T)
        stream = seen[f"blocks.{n - 1}.out"] if n else seen["embed"]
        if not copies:
            torch.testing.assert_close(seen[at + "mid"], stream + seen[at + "attn.out"])
            torch.testing.assert_close(seen[at + "out"], seen[at + "mid"] + seen[at + "mlp.out"])


def test_a_residual_free_block_forgets_its_input_when_its_update_is_zero() -> None:
    for wiring, silent in (("residual", False), ("residual-free", True)):
        model = build(model_spec("residual", wiring=wiring, **SMALL), seed=0)
        with torch.no_grad():
            model.weights()["blocks.1.mlp.out"].zero_()
        logits = model(tokens())
        assert torch.equal(logits[0], logits[1]) is silent


def test_models_that_share_a_seed_share_embedding_and_head() -> None:
    one, *rest = (build(spec, seed=3).weights() for spec in SPECS.values())
    assert all(torch.equal(one[name], other[name]) for other in rest for name in ("embed", "logits"))


def test_more_tokens_than_the_context_are_refused() -> None:
    with pytest.raises(ValueError, match="17 tokens do not fit a context of 16"):
        build(model_spec("residual", **SMALL), seed=0)(tokens(length=17))


def test_the_default_size_has_the_parameters_it_should() -> None:
    model = build(ModelSpec(), seed=0)
    d, layers = 64, 6
    assert sum(p.numel() for p in model.parameters()) == layers * (12 * d * d + 2 * d) + d + 2 * 256 * d


def test_the_arms_differ_in_what_their_names_say() -> None:
    recipe = {"init": "orthogonal", "temperature": "inv-sqrt-layer"}
    assert model_spec("residual") == ModelSpec()
    assert model_spec("residual-free") == ModelSpec(wiring="residual-free", **recipe)
    assert model_spec("residual-free-plain") == ModelSpec(wiring="residual-free", init="fan-in")
    assert model_spec("residual-orthogonal") == replace(model_spec("residual-free"), wiring="residual")
    assert model_spec("residual-free", width=96, layers=2) == ModelSpec(
        wiring="residual-free", width=96, layers=2, **recipe
    )


def test_an_unknown_model_or_setting_is_named() -> None:
    with pytest.raises(ValueError, match="no model 'residul'; did you mean 'residual'"):
        model_spec("residul")
    with pytest.raises(ValueError, match="no model setting 'layer'; did you mean 'layers'"):
        model_spec("residual", layer=2)


def test_the_model_is_an_ordinary_module() -> None:
    model = build(model_spec("residual-free", **SMALL), seed=0)
    assert isinstance(model, Transformer)
    assert isinstance(model, nn.Module)
    double = build(model_spec("residual-free", **SMALL), seed=0).double()
    torch.testing.assert_close(double(tokens()).float(), model(tokens()), rtol=1e-3, atol=1e-4)
