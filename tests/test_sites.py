"""The names of places: canonical names, patterns, scopes."""

import pytest

from qbench.capture.sites import COPIES, of, own, recorded, resolve
from qbench.models.catalog import MODELS, model_spec
from qbench.models.spec import ModelSpec, Wiring
from qbench.names import UnknownName

WIRINGS: tuple[Wiring, ...] = tuple(COPIES)


@pytest.mark.parametrize("wiring", WIRINGS)
def test_a_built_model_has_exactly_these_sites_and_weights(wiring: Wiring) -> None:
    transformer = pytest.importorskip("qbench.models.transformer")
    model = transformer.build(ModelSpec(layers=3, width=16, heads=2, context=8, wiring=wiring), seed=0)
    assert tuple(model.sites()) == own(wiring, 3).sites
    assert set(model.weights()) == set(own(wiring, 3).weights)


@pytest.mark.parametrize("arch", MODELS)
def test_every_model_of_the_catalog_has_its_names(arch: str) -> None:
    transformer = pytest.importorskip("qbench.models.transformer")
    spec = model_spec(arch, layers=2, width=16, heads=2, context=8)
    model = transformer.build(spec, seed=0)
    assert tuple(model.sites()) == of(spec).sites
    assert set(model.weights()) == set(of(spec).weights)
    assert len(of(spec).weights) == len(set(of(spec).weights))


def test_what_only_some_models_have_is_named_where_they_have_it() -> None:
    spec = ModelSpec(mlp="swiglu", attention="gated", positions="learned", embed_projection=True, wiring="post-norm")
    names = of(spec)
    assert names.weights[:3] == ("embed", "positions", "embed_projection")
    assert names.weights[-2:] == ("final_projection", "logits")
    assert resolve("blocks.0.mlp.up", "weight", names) == ("blocks.0.mlp.up",)
    assert resolve("blocks.0.*.*", "activation", names) == tuple(
        f"blocks.0.{site}"
        for site in (
            *("attn.in", "attn.q", "attn.k", "attn.v", "attn.gate", "attn.context", "attn.out", "attn.sum"),
            *("mlp.in", "mlp.pre", "mlp.up", "mlp.hidden", "mlp.out", "mlp.sum"),
        )
    )
    with pytest.raises(UnknownName, match=r"no weight site 'blocks\.0\.mlp\.up'"):
        resolve("blocks.0.mlp.up", "weight", of(ModelSpec()))


@pytest.mark.parametrize("arch", MODELS)
def test_records_name_what_a_model_has(arch: str) -> None:
    spec = model_spec(arch, layers=2, width=16, heads=2, context=8)
    assert recorded({**spec.stored(), "arch": arch}) == of(spec)


def test_records_of_models_from_elsewhere_and_of_stacks_have_names_too() -> None:
    assert recorded({"arch": "pretrained", "layers": 3, "task": "causal-lm"}) == own("residual", 3)
    assert recorded({"arch": "stack", "wiring": "residual", "depth": 2}).sites == ("layer.0", "layer.1", "layer.2")


def test_side_by_side_the_middle_is_what_attention_gives() -> None:
    assert own("parallel", 1).canonical("blocks.0.attn.out") == "blocks.0.mid"
    assert own("parallel", 1).canonical("blocks.0.mlp.out") == "blocks.0.mlp.out"


@pytest.mark.parametrize("wiring", WIRINGS)
def test_canonical_names_are_their_own_names(wiring: Wiring) -> None:
    assert [own(wiring, 4).canonical(site) for site in own(wiring, 4).sites] == list(own(wiring, 4).sites)


def test_what_a_block_reads_is_what_the_one_before_wrote() -> None:
    assert own("residual", 3).canonical("blocks.0.in") == "embed"
    assert own("residual", 3).canonical("blocks.2.in") == "blocks.1.out"


def test_without_a_skip_connection_the_stream_is_the_sub_blocks_output() -> None:
    assert own("residual-free", 1).canonical("blocks.0.attn.out") == "blocks.0.mid"
    assert own("residual-free", 1).canonical("blocks.0.mlp.out") == "blocks.0.out"
    assert own("residual", 1).canonical("blocks.0.mlp.out") == "blocks.0.mlp.out"


SCOPES = {
    "boundaries": ("blocks.0.out", "blocks.1.out", "blocks.2.out", "blocks.3.out"),
    "interior": ("blocks.0.out", "blocks.1.out", "blocks.2.out"),
    "middle": ("blocks.1.out",),
}


@pytest.mark.parametrize("wiring", WIRINGS)
@pytest.mark.parametrize(("scope", "sites"), SCOPES.items())
def test_scopes_of_four_layers(scope: str, sites: tuple[str, ...], wiring: Wiring) -> None:
    assert resolve(scope, "activation", own(wiring, 4)) == sites
    assert resolve(scope, "gradient", own(wiring, 4)) == sites


@pytest.mark.parametrize("wiring", WIRINGS)
def test_linear_is_the_inputs_of_the_matrices_of_each_block(wiring: Wiring) -> None:
    inputs = [f"blocks.{b}.{s}" for b in range(2) for s in ("attn.in", "attn.context", "mlp.in", "mlp.hidden")]
    assert list(resolve("linear", "activation", own(wiring, 2))) == inputs


def test_weights_leave_out_head_and_embedding() -> None:
    weights = resolve("weights", "weight", own("residual", 2))
    assert len(weights) == 12
    assert not {"embed", "logits"} & set(weights)
    assert {"embed", "logits"} < set(resolve("all", "weight", own("residual", 2)))


def test_a_star_stays_within_one_part_of_a_name() -> None:
    assert resolve("blocks.*.out", "activation", own("residual", 2)) == ("blocks.0.out", "blocks.1.out")
    assert resolve("blocks.0.**.out", "activation", own("residual", 1)) == (
        "blocks.0.attn.out",
        "blocks.0.mlp.out",
        "blocks.0.out",
    )
    assert resolve("**", "activation", own("residual", 2)) == own("residual", 2).sites
    assert resolve("blocks.[02].attn.q", "activation", own("residual", 3)) == ("blocks.0.attn.q", "blocks.2.attn.q")


def test_aliases_select_their_place_once_and_in_the_order_of_the_forward_pass() -> None:
    assert resolve("blocks.*.in", "activation", own("residual", 3)) == ("embed", "blocks.0.out", "blocks.1.out")
    assert resolve("blocks.*.mlp.out", "activation", own("residual-free", 2)) == ("blocks.0.out", "blocks.1.out")
    assert resolve("blocks.*.mlp.out", "weight", own("residual-free", 2)) == ("blocks.0.mlp.out", "blocks.1.mlp.out")


@pytest.mark.parametrize(
    ("pattern", "kind", "near"),
    [
        ("blocks.*.mlp.hiden", "activation", "'blocks.*.mlp.hidden'"),
        ("boundarys", "gradient", "'boundaries'"),
        ("blocks.7.out", "activation", "'blocks.1.out'"),
        ("blocks.*.attn.qq", "weight", "'blocks.*.attn.q'"),
    ],
)
def test_a_pattern_that_selects_nothing_names_what_was_meant(pattern: str, kind: str, near: str) -> None:
    with pytest.raises(UnknownName, match="did you mean") as caught:
        resolve(pattern, kind, own("residual", 2))  # pyright: ignore[reportArgumentType]
    assert near in str(caught.value)


@pytest.mark.parametrize("scope", ["interior", "middle"])
def test_one_layer_has_no_interior_and_no_middle(scope: str) -> None:
    with pytest.raises(UnknownName, match=f"the scope '{scope}' has no place in a model with 1 layer"):
        resolve(scope, "activation", own("residual", 1))


def test_the_number_of_layers_is_bounded() -> None:
    with pytest.raises(ValueError, match="1 to 256 layers, found 1000000"):
        own("residual", 10**6)


def test_many_stars_cost_nothing() -> None:
    with pytest.raises(UnknownName):
        resolve(".".join(["**", "*a*b*"] * 40), "activation", own("residual", 30))
