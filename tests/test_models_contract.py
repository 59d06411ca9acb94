"""Laws that hold for every model in the catalog, in every wiring, for text and for images."""

from dataclasses import asdict, fields, replace
from math import log, sqrt
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from qbench.capture.sites import of, own
from qbench.models.catalog import MODELS, model_spec
from qbench.models.layers import MLP, Site
from qbench.models.spec import ModelSpec
from qbench.models.transformer import Transformer, build
from qbench.models.wiring import WIRINGS

SMALL = {"layers": 3, "width": 32, "heads": 4, "context": 16}
VISION: dict[str, Any] = {"task": "vision", "vocabulary": 10, "positions": "learned", "position_deviation": 0.5}
SPECS = {arch: model_spec(arch, **SMALL) for arch in MODELS}
SPECS |= {
    f"{arch}/{wiring}": replace(SPECS[arch], wiring=wiring)
    for arch in ("residual", "residual-free")
    for wiring in WIRINGS
    if wiring != SPECS[arch].wiring
}
SPECS |= {
    f"vision/{arch}": model_spec(arch, **SMALL, **VISION)
    for arch in ("residual", "residual-free", "osp", "op", "sas-p", "cutting-the-skip-target", "swiglu")
}
SPECS["vision/class"] = model_spec("residual-free", **SMALL, **VISION, pooling="class")
SPECS["vision/rope"] = model_spec("residual-free", **SMALL, task="vision", vocabulary=10, image=12, patch=4, channels=3)
every_model = pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS.keys())
every_decoder = pytest.mark.parametrize(
    "spec", [s for s in SPECS.values() if s.task == "language"], ids=[n for n in SPECS if "vision" not in n]
)

# What no gradient reaches before the first update: branches whose gain begins at 0, keys whose queries do.
SILENT_AT_FIRST = {
    "skip-init": (".q", ".k", ".v", ".out", ".pre", ".norm.gain"),
    "rezero": (".q", ".k", ".v", ".out", ".pre"),
    "sas": (".k",),
    "sas-p": (".k",),
    "vision/sas-p": (".k",),
}
# What begins as the identity or as zero, in every model.
CONSTANT = ("attn.q", "attn.v", "attn.out")


def inputs(spec: ModelSpec, windows: int = 2, length: int = 16, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    if spec.task == "vision":
        return torch.randn(windows, spec.channels, spec.image, spec.image, generator=generator)
    return torch.randint(256, (windows, length), generator=generator)


def loss_of(model: Transformer, seed: int = 0) -> Tensor:
    spec = model.spec
    x = inputs(spec, windows=8, length=17, seed=seed)
    if spec.task == "vision":
        return cross_entropy(model(x), torch.arange(8) % spec.vocabulary)
    return cross_entropy(model(x[:, :-1]).flatten(0, 1), x[:, 1:].flatten())


def expected_sites(spec: ModelSpec) -> list[str]:
    """The places, from what a block is: written apart from the code that names them."""
    gate, up = spec.attention == "gated", spec.mlp == "swiglu"
    attention = ["attn.in", "attn.q", "attn.k", "attn.v", *["attn.gate"] * gate, "attn.context"]
    mlp = ["mlp.in", "mlp.pre", *["mlp.up"] * up, "mlp.hidden"]
    attends = spec.wiring in ("residual", "attention-residual", "post-norm")
    widens = spec.wiring not in ("residual-free", "attention-residual")
    after = spec.wiring == "post-norm"
    inside = [*attention, *["attn.out"] * attends, *["attn.sum"] * after, "mid"]
    inside += [*mlp, *["mlp.out"] * widens, *["mlp.sum"] * after, "out"]
    return ["embed", *(f"blocks.{n}.{site}" for n in range(spec.layers) for site in inside), "final", "logits"]


def watched(model: Transformer) -> dict[str, Tensor]:
    """Site -> what flows there for one input."""
    seen: dict[str, Tensor] = {}
    hooks = [
        site.register_forward_hook(lambda _m, _a, out, name=name: seen.update({name: out}))
        for name, site in model.sites().items()
    ]
    model(inputs(model.spec))
    for hook in hooks:
        hook.remove()
    return seen


def drawn(weights: dict[str, nn.Parameter], spec: ModelSpec) -> dict[str, nn.Parameter]:
    constant = CONSTANT if spec.init == "shaped" else ()
    return {name: w for name, w in weights.items() if not name.endswith(constant or ("?",))}


@every_model
def test_a_logit_for_every_token_at_every_position_or_for_every_class(spec: ModelSpec) -> None:
    logits = build(spec, seed=0)(inputs(spec, length=11))
    assert logits.shape == ((2, 11, 256) if spec.task == "language" else (2, 10))
    assert logits.dtype == torch.float32


@every_decoder
def test_a_later_token_never_changes_an_earlier_logit(spec: ModelSpec) -> None:
    model = build(spec, seed=0)
    before = inputs(spec)
    logits = model(before)
    for t in range(before.shape[1]):
        after = before.clone()
        after[:, t] = (after[:, t] + 1) % 256
        changed = model(after)
        torch.testing.assert_close(changed[:, :t], logits[:, :t], rtol=0, atol=1e-6)
        assert not torch.allclose(changed[:, t], logits[:, t], rtol=0, atol=1e-4)


def test_every_patch_sees_every_other() -> None:
    for name in ("vision/residual", "vision/residual-free", "vision/sas-p"):
        model = build(SPECS[name], seed=0)
        with torch.no_grad():
            for block in model.blocks:
                block.get_parameter("attn.q").normal_(generator=torch.Generator().manual_seed(1))
        pixels = inputs(model.spec)
        changed = pixels.clone()
        changed[..., -2:, -2:] += 1
        seen: list[Tensor] = []
        model.sites()["final"].register_forward_hook(lambda _m, _a, out, seen=seen: seen.append(out))
        model(pixels), model(changed)
        assert ((seen[0] - seen[1]).abs().amax(-1) > 1e-6).all(), name


@pytest.mark.parametrize("name", SPECS)
def test_gradient_reaches_every_parameter(name: str) -> None:
    """At step 0, but for what an architecture silences on purpose; after two updates everywhere."""
    model = build(SPECS[name], seed=0)
    reached: list[set[str]] = []
    for step in range(3):
        loss_of(model, seed=step).backward()
        reached.append({n for n, p in model.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0})
        with torch.no_grad():
            for p in model.parameters():
                if p.grad is not None:
                    p.sub_(0.3 * p.grad)
                p.grad = None
    names = {n for n, _ in model.named_parameters()}
    assert reached[2] == names
    assert names - reached[0] == {
        n for n in names if n.startswith("blocks.") and n.endswith(SILENT_AT_FIRST.get(name, ("?",)))
    }


@pytest.mark.parametrize("name", [*MODELS, *(name for name in SPECS if "vision" in name)])
def test_it_learns_what_is_easy_in_a_few_steps(name: str) -> None:
    """A repeated word, or which half of an image is bright."""
    model = build(SPECS[name], seed=0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    x, targets = (torch.arange(16) % 4 + 97).expand(4, 16), (torch.arange(1, 17) % 4 + 97).expand(4, 16)
    if "vision" in name:
        targets = torch.arange(8) % 2
        x = inputs(model.spec, windows=8)
        x[targets == 1, :, : model.spec.image // 2] += 1
    losses: list[float] = []
    for _ in range(25):
        loss = cross_entropy(model(x).flatten(0, -2), targets.flatten())
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < 0.6 * losses[0]


@every_model
def test_equal_seeds_give_equal_models_and_other_seeds_other_matrices(spec: ModelSpec) -> None:
    one, same, other = (build(spec, seed).state_dict() for seed in (1, 1, 2))
    assert all(torch.equal(one[name], same[name]) for name in one)
    matrices = drawn(build(spec, seed=1).weights(), spec)
    assert not any(torch.equal(one[name], other[name]) for name in matrices)


@every_model
def test_no_two_matrices_are_drawn_alike(spec: ModelSpec) -> None:
    weights = list(drawn(build(spec, seed=0).weights(), spec).values())
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
    assert loss_of(build(spec, seed=0)).item() == pytest.approx(log(spec.vocabulary), rel=0.05)


@pytest.mark.parametrize("arch", ["residual", "residual-free", "osp", "op", "sas-p"])
def test_the_first_loss_does_not_grow_with_width_or_depth(arch: str) -> None:
    for size in ({"width": 256, "layers": 2}, {"width": 32, "layers": 16}):
        model = build(model_spec(arch, **SMALL | size), seed=0)
        assert loss_of(model).item() == pytest.approx(log(256), rel=0.05)


@every_model
def test_a_spec_survives_the_trip_through_plain_data_and_yaml(spec: ModelSpec) -> None:
    assert ModelSpec(**asdict(spec)) == spec == build(spec, seed=0).spec
    assert ModelSpec(**yaml.safe_load(yaml.safe_dump(spec.stored()))) == spec


def test_what_older_specs_did_not_have_is_stored_only_where_it_says_something() -> None:
    first = {"layers", "width", "heads", "context", "vocabulary", "wiring", "norm", "mlp", "mlp_ratio", "positions"}
    first |= {"init", "temperature", "qk_noise", "qk_diagonal"}
    assert set(ModelSpec().stored()) == first
    assert set(model_spec("osp").stored()) == first | {"embed_projection"}
    assert len(fields(ModelSpec)) > len(first) + 10


@every_model
def test_sites_have_the_canonical_names_in_the_order_of_the_forward_pass(spec: ModelSpec) -> None:
    model = build(spec, seed=0)
    met: list[str] = []
    for name, site in model.sites().items():
        site.register_forward_hook(lambda _m, _a, _o, name=name: met.append(name))
    model(inputs(spec))
    assert met == list(model.sites()) == expected_sites(spec) == list(of(spec).sites)


@every_model
def test_every_name_of_a_place_means_the_same_in_every_wiring(spec: ModelSpec) -> None:
    """Sums apart, which only a norm after the sum has."""
    names = [name for name in of(spec).activations if not name.endswith(".sum")]
    others = (own(wiring, spec.layers, spec.parts).activations for wiring in WIRINGS)
    assert all([name for name in other if not name.endswith(".sum")] == names for other in others)
    assert {of(spec).canonical(name) for name in names} <= set(build(spec, seed=0).sites())


@every_model
def test_a_site_is_called_what_it_is_called_in_the_module_tree(spec: ModelSpec) -> None:
    model = build(spec, seed=0)
    modules = {module: name for name, module in model.named_modules() if isinstance(module, Site)}
    assert {name: modules[site].replace("site.", "") for name, site in model.sites().items()} == {
        name: name for name in expected_sites(spec)
    }
    assert len(modules) == len(model.sites())


@every_model
def test_sites_show_one_vector_for_each_token_or_patch(spec: ModelSpec) -> None:
    queries, keys = spec.heads * spec.size, spec.groups * spec.size
    widths = {"pre": spec.hidden, "up": spec.hidden, "hidden": spec.hidden, "logits": spec.vocabulary}
    widths |= {"q": queries, "k": keys, "v": keys, "context": queries, "gate": spec.heads}
    for name, x in watched(build(spec, seed=0)).items():
        last = name.split(".")[-1]
        if spec.task == "vision" and name == "logits":
            assert x.shape == (2, 10)
        else:
            assert x.shape == (2, 16 if spec.task == "language" else spec.length, widths.get(last, 32)), name


@every_model
def test_replacing_what_a_site_gives_changes_the_logits(spec: ModelSpec) -> None:
    model = build(spec, seed=0)
    with torch.no_grad():  # so that nothing is silent, nor the same after a flip
        generator = torch.Generator().manual_seed(1)
        for p in model.parameters():
            p.add_(torch.randn(p.shape, generator=generator), alpha=0.1)
    untouched = model(inputs(spec))
    for name, site in model.sites().items():
        handle = site.register_forward_hook(lambda _m, _a, out: out.flip(-1))
        assert not torch.allclose(model(inputs(spec)), untouched, rtol=0, atol=1e-6), name
        handle.remove()
    assert torch.equal(model(inputs(spec)), untouched)


@every_model
def test_weights_are_named_by_the_sites_they_produce_and_stored_out_by_in(spec: ModelSpec) -> None:
    weights = build(spec, seed=0).weights()
    assert set(weights) == set(of(spec).weights)
    queries, keys, width = spec.heads * spec.size, spec.groups * spec.size, spec.width
    inside = {
        "attn.q": (queries, width),
        "attn.k": (keys, width),
        "attn.v": (keys, width),
        "attn.out": (width, queries),
    }
    inside |= {"mlp.pre": (spec.hidden, width), "mlp.out": (width, spec.hidden), "mlp.up": (spec.hidden, width)}
    inside["attn.gate"] = (spec.heads, width)
    patch = spec.channels * spec.patch**2
    ends = {"embed": (256, width) if spec.task == "language" else (width, patch), "logits": (spec.vocabulary, width)}
    ends |= {"positions": (spec.length, width)}
    for name, weight in weights.items():
        part = name.split(".", 2)[-1]
        wanted = inside[part] if name.startswith("blocks.") else ends.get(name, (width, width))
        assert tuple(weight.shape) == wanted, name


@every_model
def test_each_weight_maps_what_its_site_shows_and_each_joint_joins(spec: ModelSpec) -> None:
    """A weight times the input of its layer is what its own site shows, times the gain of its branch."""
    model = build(spec, seed=0)
    seen, weights, names = watched(model), model.weights(), of(spec)
    fixed = (spec.gain_start / (sqrt(spec.layers) if spec.gain_by_depth else 1)) if spec.gain != "none" else 1.0
    attends, widens = (
        spec.wiring in ("residual", "attention-residual", "post-norm"),
        spec.wiring not in ("residual-free", "attention-residual"),
    )
    for n in range(spec.layers):

        def at(site: str, n: int = n) -> Tensor:
            return seen[names.canonical(f"blocks.{n}.{site}")]

        for source, weight, gain in (
            ("attn.in", "attn.v", 1.0),
            ("attn.context", "attn.out", fixed if attends else 1.0),
            ("mlp.in", "mlp.pre", 1.0),
            ("mlp.hidden", "mlp.out", fixed if widens else 1.0),
        ):
            torch.testing.assert_close(at(weight), gain * (at(source) @ weights[f"blocks.{n}.{weight}"].T))
        mid = at("in") + at("attn.out") if attends else at("attn.out")
        out = at("mid") + at("mlp.out") if widens else at("mlp.out")
        if spec.wiring == "post-norm":
            torch.testing.assert_close(at("attn.sum"), mid)
            torch.testing.assert_close(at("mlp.sum"), out)
            torch.testing.assert_close(at("mid"), mid * (mid.square().mean(-1, keepdim=True) + 1e-6).rsqrt())
        else:
            torch.testing.assert_close(at("mid"), mid)
            torch.testing.assert_close(at("out"), out)
        if spec.wiring == "parallel":
            torch.testing.assert_close(at("mlp.in"), at("attn.in"))


def test_a_residual_free_block_forgets_its_input_when_its_update_is_zero() -> None:
    for wiring, silent in (("residual", False), ("residual-free", True), ("parallel", False), ("mlp-residual", False)):
        model = build(model_spec("residual", **SMALL, wiring=wiring), seed=0)
        with torch.no_grad():
            model.weights()["blocks.1.mlp.out"].zero_()
        logits = model(inputs(model.spec))
        assert torch.equal(logits[0], logits[1]) is silent, wiring


def test_models_that_share_a_seed_share_embedding_and_head() -> None:
    decoders = [spec for spec in SPECS.values() if spec.task == "language"]
    one, *rest = (build(spec, seed=3).weights() for spec in decoders)
    assert all(torch.equal(one[name], other[name]) for other in rest for name in ("embed", "logits"))


def test_more_tokens_than_the_context_and_other_images_are_refused() -> None:
    with pytest.raises(ValueError, match="17 tokens do not fit a context of 16"):
        build(SPECS["residual"], seed=0)(inputs(SPECS["residual"], length=17))
    with pytest.raises(ValueError, match=r"expected images \(1, 8, 8\), found \(1, 8, 9\)"):
        build(SPECS["vision/residual"], seed=0)(torch.zeros(2, 1, 8, 9))


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
    assert model_spec("residual-free-gpt2") == replace(model_spec("residual"), wiring="residual-free")
    assert model_spec("residual-free", width=96, layers=2) == ModelSpec(
        wiring="residual-free", width=96, layers=2, **recipe
    )


def test_an_unknown_model_or_setting_is_named() -> None:
    with pytest.raises(ValueError, match="no model 'residul'; did you mean 'residual'"):
        model_spec("residul")
    with pytest.raises(ValueError, match="no model setting 'layer'; did you mean 'layers'"):
        model_spec("residual", layer=2)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"heads": 3}, "width 32 is not a multiple of 3 heads; set head_size"),
        ({"heads": 32}, "the size of a head must be even, found 1, which is width 32 over 32 heads"),
        ({"head_size": 5}, "RoPE turns pairs: the size of a head must be even, found 5$"),
        ({"attention": "clipped", "clip": -1.0}, "clip must be at least 0, found -1.0"),
        ({"attention": "polynomial", "power": 0}, "power must be at least 1, found 0"),
        ({"positions": "learned", "position_deviation": -1.0}, "position_deviation must be at least 0"),
        ({"qk_noise": float("nan")}, "qk_noise must be a finite number, found nan"),
        ({"temperature": "linear", "temperature_strength": -1.0}, "must be above -1, else the last layer has none"),
        ({"init": "shaped", "attention": "polynomial"}, "nothing would ever learn"),
        ({"init": "shaped", "qk_norm": "rmsnorm"}, "which qk_norm cannot normalize"),
        ({"init": "cutting-the-skip-target", "attention": "shaped"}, "attention shaped has none"),
        ({"init": "cutting-the-skip-target", "temperature": "linear"}, "of temperature linear and of init cutting"),
        ({"temperature": "target", "temperature_strength": 1.0}, "needs an init that looks at itself.*found gpt2"),
        ({"kv_heads": 3}, "kv_heads must divide heads: found 3 and 4"),
        ({"wiring": "post-norm", "norm": "none"}, "nothing to do without a norm"),
        ({"wiring": "residual-free", "gain": "learned"}, "wiring residual-free adds none"),
        ({"temperature": "target", "temperature_strength": 3.0}, "between 0 and 3, found 3.0"),
        ({"task": "vision", "patch": 3}, "patches of 3 do not tile an image of 8"),
        ({"init": "mimetic", "kv_heads": 2}, "init mimetic needs"),
        ({"init": "shaped", "head_size": 16}, "init shaped needs"),
        ({"init": "orthogonal", "head_size": 64}, "head_size 64 is more than the width 32"),
        ({"layers": 0}, "layers must be at least 1, found 0"),
    ],
)
def test_what_makes_no_sense_is_refused_with_the_way_out(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words.replace("(", r"\(")):
        model_spec("residual", **SMALL | settings)


@pytest.mark.parametrize(
    ("settings", "idle", "live"),
    [
        ({}, {"clip", "power", "gain_start", "gain_by_depth", "vo_gain", "vo_noise", "vo_diagonal"}, {"mlp_ratio"}),
        ({}, {"qk_noise", "qk_diagonal", "pooling", "patch", "temperature_strength", "position_deviation"}, {"heads"}),
        ({"attention": "clipped", "gain": "fixed"}, {"power"}, {"clip", "gain_start", "gain_by_depth"}),
        ({"init": "mimetic", "mlp_hidden": 48}, {"mlp_ratio", "vo_gain"}, {"vo_noise", "vo_diagonal", "qk_noise"}),
        ({"task": "vision", "pooling": "class"}, {"clip"}, {"pooling", "patch", "position_deviation"}),
        ({"temperature": "linear", "positions": "learned"}, set(), {"temperature_strength", "position_deviation"}),
        ({"init": "cutting-the-skip-target"}, {"vo_noise"}, {"temperature_strength", "vo_gain", "qk_diagonal"}),
    ],
)
def test_what_does_nothing_says_so(settings: dict[str, Any], idle: set[str], live: set[str]) -> None:
    spec = model_spec("residual", **SMALL | settings)
    for name in idle:
        assert spec.idle(name).startswith(f"{name} does nothing with ")
    for name in live:
        assert not spec.idle(name)


def test_a_target_that_cannot_be_reached_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"temperature target in layer 0: attention cannot look at itself 0\.667"):
        build(model_spec("residual-free", **SMALL, qk_diagonal=0.0, temperature="target"), seed=0)


def test_the_model_is_an_ordinary_module() -> None:
    model = build(model_spec("residual-free", **SMALL), seed=0)
    assert isinstance(model, Transformer)
    assert isinstance(model, nn.Module)
    double = build(model_spec("residual-free", **SMALL), seed=0).double()
    torch.testing.assert_close(double(inputs(model.spec)).float(), model(inputs(model.spec)), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(("arch", "layers", "gain"), [("op", 12, 0.2), ("sas", 18, 0.1), ("sas-p", 18, 0.1)])
def test_quiet_branches_are_as_quiet_as_published(arch: str, layers: int, gain: float) -> None:
    """At the depth they were published with; each falls with the square root of the depth."""
    for depth, wanted in ((layers, gain), (4 * layers, gain / 2)):
        branch = Transformer(model_spec(arch, **SMALL | {"layers": depth})).blocks[0].get_submodule("mlp.gain")
        assert branch(torch.ones(1)).item() == pytest.approx(wanted, rel=0.02)


@pytest.mark.parametrize(("arch", "norms"), [("op", 2), ("rezero", 2), ("residual", 7), ("residual-free", 7)])
def test_without_norms_in_the_blocks_only_both_ends_have_one(arch: str, norms: int) -> None:
    spec = replace(SPECS[arch], qk_norm="none")
    assert sum(name.endswith("norm.gain") for name, _ in Transformer(spec).named_parameters()) == norms


@pytest.mark.parametrize("arch", ["skip-init", "rezero"])
def test_gains_of_zero_pass_the_stream_on(arch: str) -> None:
    seen = watched(build(SPECS[arch], seed=0))
    assert torch.equal(seen["blocks.2.out"], seen["embed"])


def test_shaped_blocks_without_skips_pass_each_token_on_at_first() -> None:
    """sas-p: the next stream is the normalized stream and a quiet MLP of it; no token sees another."""
    model = build(SPECS["sas-p"], seed=0)
    seen, gain = watched(model), 0.42 / sqrt(3)
    for block, name in ((0, "embed"), (1, "blocks.0.out")):
        x = seen[name] * (seen[name].square().mean(-1, keepdim=True) + 1e-6).rsqrt()
        mlp = model.blocks[block].get_submodule("mlp")
        assert isinstance(mlp, MLP)
        update = torch.nn.functional.gelu(x @ mlp.pre.T) @ mlp.out.T
        torch.testing.assert_close(seen[f"blocks.{block}.out"], x + gain * update, rtol=1e-4, atol=1e-5)


def test_projections_of_the_embedding_merge_into_the_tables() -> None:
    """osp: they are rotations at first, and can be left out after training, as published."""
    model = build(SPECS["osp"], seed=0)
    first, last = (model.get_parameter(name) for name in ("embed_projection", "final_projection"))
    for rotation in (first, last):
        torch.testing.assert_close(rotation @ rotation.T, torch.eye(32), rtol=0, atol=1e-6)
    merged = build(replace(model.spec, embed_projection=False), seed=0)
    state = {name: x for name, x in model.state_dict().items() if "projection" not in name}
    state |= {"embed": model.embed @ first.T, "logits": model.logits @ last}
    merged.load_state_dict(state)
    torch.testing.assert_close(merged(inputs(model.spec)), model(inputs(model.spec)), rtol=1e-4, atol=1e-5)


def test_vectors_of_positions_are_added_to_the_embedding() -> None:
    for arch in ("learned-positions", "sinusoidal-positions"):
        model = build(replace(SPECS[arch], position_deviation=0.3), seed=0)
        tokens, table = inputs(model.spec), model.positions
        assert table is not None
        assert table.square().mean().sqrt().item() == pytest.approx(0.3, rel=0.1)
        torch.testing.assert_close(watched(model)["embed"], model.embed[tokens] + table)
