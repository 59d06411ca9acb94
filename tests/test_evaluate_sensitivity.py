"""One layer at a time: the kept prefix against whole passes, and gradients against autograd and differences."""

from collections.abc import Callable
from dataclasses import replace
from math import isnan
from time import process_time

import numpy as np
import pytest
import torch
from by_hand import WIRINGS, small
from by_hand import tokens as windows_of
from real import babyllama, text
from torch import Tensor, nn
from torch.nn.functional import kl_div

from qbench.capture.write import quantized
from qbench.evaluate.ranking import estimate, rank, spearman
from qbench.evaluate.replay import Prefix
from qbench.evaluate.sensitivity import CLASSES, NEXT_TOKEN, Judge, Sweep, Treatment, exact
from qbench.evaluate.units import blocks, left_out, units
from qbench.models.hub import HubModel, load
from qbench.models.spec import Wiring
from qbench.quant.blocks import NonFinite
from qbench.quant.quantizer import build

transformers = pytest.importorskip("transformers")
BOTH = Treatment("int4/channel", "int4/token")
SIZES = {"vocab_size": 32, "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2}


def llama(**more: int) -> nn.Module:
    return _model("LlamaConfig", "AutoModelForCausalLM", **SIZES, intermediate_size=48, num_key_value_heads=1, **more)


def gpt2() -> nn.Module:
    return _model("GPT2Config", "AutoModelForCausalLM", vocab_size=32, n_embd=32, n_layer=3, n_head=2, n_positions=16)


def bert() -> nn.Module:
    return _model("BertConfig", "AutoModelForMaskedLM", **SIZES, intermediate_size=48, max_position_embeddings=16)


def mixtral() -> nn.Module:
    return _model("MixtralConfig", "AutoModelForCausalLM", **SIZES, intermediate_size=24, num_key_value_heads=1,
                  num_local_experts=3)  # fmt: skip


def _model(config: str, auto: str, **sizes: int) -> nn.Module:
    torch.manual_seed(0)
    hf = getattr(transformers, auto).from_config(getattr(transformers, config)(**sizes)).eval()
    with torch.no_grad():  # random models are so close to linear in their weights that nothing would show
        for name, parameter in hf.named_parameters():
            if parameter.ndim > 1:
                parameter.mul_(5)
            elif "norm" in name.lower() and "weight" in name:
                parameter.mul_(1 + 0.3 * torch.randn(parameter.shape))
    return hf


class Raw(nn.Module):
    """Hides that it is a known family, so that units have to be found by what they are given."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x, use_cache=False).logits


MODELS: dict[str, Callable[[], nn.Module]] = {
    **{wiring: lambda wiring=wiring: small(wiring, layers=3) for wiring in WIRINGS},
    "llama": lambda: HubModel(llama(), "causal-lm"),
    "gpt2": lambda: HubModel(gpt2(), "causal-lm"),
    "bert": lambda: HubModel(bert(), "masked-lm"),
    "mixtral": lambda: HubModel(mixtral(), "causal-lm"),
    "raw llama": lambda: Raw(llama()),
    "raw gpt2": lambda: Raw(gpt2()),
}
every_model = pytest.mark.parametrize("name", MODELS)


def batches() -> list[Tensor]:
    return [windows_of(3, seed=5), windows_of(2, seed=6)]


def sweep(model: nn.Module, treatment: Treatment = BOTH, judge: Judge = NEXT_TOKEN) -> Sweep:
    return Sweep(model, units(model, batches()[0][:, :-1]), treatment, judge)


@every_model
def test_equal_to_whole_passes_to_the_bit_and_the_model_is_left_alone(name: str) -> None:
    model = MODELS[name]()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    job = sweep(model)
    found = exact(job, batches())
    assert list(found.units) == [unit.name for unit in job.units]
    for unit in job.units:
        with torch.no_grad(), quantized(BOTH.of_places(unit), BOTH.of_matrices(unit)):
            whole = torch.cat([NEXT_TOKEN.score(model(b[:, :-1]), b, b)["loss"] for b in batches()])
        assert np.array_equal(found.units[unit.name]["loss"], whole.numpy()), unit.name
        if unit.places:  # what is not routed to an expert of a tiny model may leave its loss as it is
            assert not np.array_equal(found.units[unit.name]["loss"], found.clean["loss"])
    with torch.no_grad():
        clean = torch.cat([NEXT_TOKEN.score(model(b[:, :-1]), b, b)["loss"] for b in batches()])
    assert np.array_equal(found.clean["loss"], clean.numpy())
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert not any("forward" in block.__dict__ or block._forward_hooks for block in blocks(model))


@pytest.mark.parametrize("layers", [1, 2, 5])
def test_only_what_follows_is_run_again(layers: int) -> None:
    model = small("residual", layers=layers)
    ran: list[int] = []
    for i, block in enumerate(model.blocks):
        block.mlp.register_forward_hook(lambda *_, i=i: ran.append(i))
    found = exact(sweep(model), batches())
    kinds, passes = 4, len(batches())
    assert len(ran) == passes * (layers + kinds * layers * (layers + 1) // 2)
    assert found.forwards == passes * kinds * layers * (layers + 1) // 2
    assert found.full == passes * kinds * layers**2
    assert found.forwards / found.full <= 0.6 + 1 / (2 * layers)


def test_the_saving_shows_on_the_clock() -> None:
    layers = 6
    model = small("residual", layers=layers, width=128)
    read = [windows_of(32, seed=1)]
    job = sweep(model, Treatment(weights="int8/channel"))

    def whole() -> None:
        for unit in job.units:
            with torch.no_grad(), job.treatment.applied(unit):
                NEXT_TOKEN.score(NEXT_TOKEN.run(model, read[0]), read[0], read[0])

    def seconds(act: Callable[[], object]) -> float:
        start = process_time()
        act()
        return process_time() - start

    seconds(whole)
    kept, full = (min(seconds(act) for _ in range(3)) for act in (lambda: exact(job, read), whole))
    assert kept < (0.6 + 1 / (2 * layers) + 0.15) * full  # the clean pass, and other work on the machine


def test_costs_are_paired_and_sorted_and_state_their_error() -> None:
    found = exact(sweep(MODELS["llama"](), Treatment(weights="int3/channel")), batches())
    costs = found.costs()
    assert [cost.mean for cost in costs] == sorted((cost.mean for cost in costs), reverse=True)
    each = found.units[costs[0].unit]["loss"] - found.clean["loss"]
    assert (costs[0].mean, costs[0].n) == (pytest.approx(each.mean()), 5)
    assert costs[0].standard_error == pytest.approx(np.std(each, ddof=1) / 5**0.5)
    assert isnan(exact(sweep(small("residual")), [windows_of(1)]).costs()[0].standard_error)


def test_divergence_from_the_clean_pass_and_images_and_hidden_states_can_be_judged() -> None:
    model = MODELS["llama"]()
    assert isinstance(model, HubModel)

    def divergence(states: Tensor, clean: Tensor, read: Tensor) -> dict[str, Tensor]:
        ours, theirs = (model.head(h).double().log_softmax(-1) for h in (states, clean))
        kld = kl_div(ours, theirs, reduction="none", log_target=True).sum(-1).mean(1)
        return {"kld": kld, **NEXT_TOKEN.score(model.head(states), clean, read)}

    judge = Judge(lambda m, read: m.hidden(read[:, :-1]), divergence)
    found = exact(sweep(model, judge=judge), batches())
    plain = exact(sweep(model), batches())
    assert all(np.array_equal(found.units[u]["loss"], plain.units[u]["loss"]) for u in plain.units)
    assert all(cost.mean > 0 for cost in found.costs("kld"))
    assert np.abs(found.clean["kld"]).max() < 1e-12

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList([nn.Sequential(nn.Linear(8, 8), nn.ReLU(inplace=True)) for _ in range(2)])

        def forward(self, x: Tensor) -> Tensor:
            for layer in self.layers:
                x = layer(x)
            return x

    torch.manual_seed(0)
    net, images = Net(), torch.randn(6, 8)
    read = (images, torch.arange(6) % 8)
    result = exact(Sweep(net, units(net, images), BOTH, CLASSES), [read])
    assert list(result.units) == ["blocks.0.0", "blocks.1.0"]
    with torch.no_grad():
        assert result.clean["loss"] == pytest.approx(-net(images).log_softmax(-1)[range(6), read[1]].numpy())


UNITS = {
    "residual": ["attn.in", "attn.context", "mlp.in", "mlp.hidden"],
    "llama": ["attn.in", "attn.context", "mlp.in", "mlp.hidden"],
    "gpt2": ["attn.in", "attn.context", "mlp.in", "mlp.hidden"],
    "raw llama": ["self_attn.q_proj+k_proj+v_proj", "self_attn.o_proj", "mlp.gate_proj+up_proj", "mlp.down_proj"],
    "raw gpt2": ["attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj"],
}


@pytest.mark.parametrize("name", UNITS)
def test_matrices_that_read_one_tensor_are_one_unit(name: str) -> None:
    model = MODELS[name]()
    found = units(model, batches()[0])
    assert [unit.name for unit in found] == [f"blocks.{i}.{kind}" for i in range(3) for kind in UNITS[name]]
    assert left_out(model, found) == ()


def test_units_that_are_found_are_those_that_have_names() -> None:
    for known, raw in (("llama", "raw llama"), ("gpt2", "raw gpt2")):
        named, found = (units(MODELS[name](), batches()[0]) for name in (known, raw))
        assert [unit.modules for unit in named] == [
            tuple(module.removeprefix("inner.") for module in unit.modules) for unit in found
        ]
    first = units(MODELS["llama"](), None)[0]
    assert first.modules == tuple(f"model.layers.0.self_attn.{x}_proj" for x in "qkv")


def test_a_tensor_read_by_two_halves_of_a_block_is_two_units() -> None:
    phi = _model("PhiConfig", "AutoModelForCausalLM", **SIZES, intermediate_size=48)
    kinds = [unit.kind for unit in units(Raw(phi), batches()[0])][:4]
    assert kinds == ["self_attn.q_proj+k_proj+v_proj", "self_attn.dense", "mlp.fc1", "mlp.fc2"]


def test_what_is_in_no_unit_is_listed_and_inputs_without_a_place_are_said() -> None:
    model = MODELS["mixtral"]()
    found = units(model, None)
    assert left_out(model, found) == tuple(f"model.layers.{i}.mlp.gate.weight" for i in range(3))
    weights_too, inputs_only = (exact(sweep(model, t), batches()) for t in (BOTH, replace(BOTH, weights="")))
    assert any("only its weights are quantized" in line for line in weights_too.warnings)
    assert any("skipped" in line for line in inputs_only.warnings)
    assert set(inputs_only.units) < set(weights_too.units)


class Twice(nn.Module):
    def __init__(self, times: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(4, 4)])
        self.times = times

    def forward(self, x: Tensor) -> Tensor:
        for _ in range(self.times):
            x = self.layers[0](x)
        return x


class InPlace(nn.Module):
    """What leaves a block is written to by the model, and by the block after it."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Sequential(nn.Linear(8, 8), Adding()) for _ in range(3)])

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x).mul_(2)
        return x


class Adding(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.add_(1)


def test_blocks_that_are_changed_in_place_are_resumed_from_what_left_them() -> None:
    torch.manual_seed(0)
    model, read = InPlace(), (torch.randn(5, 8), torch.arange(5))
    job = Sweep(model, units(model, read[0]), BOTH, CLASSES)
    found = exact(job, [read])
    for unit in job.units:
        with torch.no_grad(), BOTH.applied(unit):
            whole = CLASSES.score(model(read[0]), read[0], read)["loss"]
        assert np.array_equal(found.units[unit.name]["loss"], whole.numpy())


def test_what_cannot_be_resumed_is_refused() -> None:
    model = Twice(2)
    with pytest.raises(ValueError, match="block 0 runs twice in one pass"), Prefix(model.layers).recorded():
        model(torch.zeros(1, 4))
    model = Twice(0)
    with pytest.raises(ValueError, match="block 0 of 1 was not reached"), Prefix(model.layers).recorded():
        model(torch.zeros(1, 4))
    cached = llama()
    with pytest.raises(ValueError, match="use_cache=False"), Prefix(cached.model.layers).recorded():
        cached(batches()[0], use_cache=True)
    with pytest.raises(ValueError, match="Linear keeps no list of layers"):
        blocks(nn.Linear(2, 2))
    with pytest.raises(ValueError, match="no batch"):
        exact(sweep(small("residual")), [])
    with pytest.raises(ValueError, match="no batch"):
        estimate(sweep(small("residual")), [])
    with pytest.raises(ValueError, match="both names are empty"):
        Treatment()


def test_after_an_error_the_model_runs_whole_again() -> None:
    model = small("residual")
    job = sweep(model)
    expected = model(batches()[0])
    with torch.no_grad():
        model.weights()["blocks.1.mlp.pre"][0, 0] = torch.nan
    with pytest.raises(NonFinite, match=r"blocks\.1\.mlp\.pre"):
        exact(replace(job, units=[u for u in job.units if u.name == "blocks.1.mlp.in"]), batches())
    with torch.no_grad():
        model.weights()["blocks.1.mlp.pre"][0, 0] = 0.0
    assert not any("forward" in block.__dict__ for block in model.blocks)
    assert expected.shape == model(batches()[0]).shape


@pytest.mark.parametrize("name", [name for name in MODELS if name != "mixtral"])  # experts have no float64 kernel
def test_estimates_are_the_products_that_autograd_gives(name: str) -> None:
    """By definition: gradients of each batch from autograd, with quantized inputs reached by adding a zero to them."""
    model = MODELS[name]().double()
    job = sweep(model)
    found = estimate(job, batches())
    for unit in (job.units[1], job.units[-4], job.units[-1]):
        first = fisher = 0.0
        for read in batches():
            products = _products(model, unit, read)
            first += sum(float(p.sum()) for p in products)
            fisher += sum(float(p.square().sum()) for p in products)
        assert found[unit.name].first == pytest.approx(first / 5, rel=1e-6, abs=1e-12)
        assert found[unit.name].fisher == pytest.approx(fisher / 5, rel=1e-6)
        assert fisher > 0
    assert all(p.grad is None and p.requires_grad for p in model.parameters())


def _products(model: nn.Module, unit: object, read: Tensor) -> list[Tensor]:
    rows, token = build("int4/channel", channel_axis=0), build("int4/token")
    shifts, changes, handles = [], [], []

    def shift(x: Tensor) -> Tensor:
        shifts.append(torch.zeros_like(x, requires_grad=True))
        changes.append(token.roundtrip(x) - x.detach())
        return x + shifts[-1]

    for place in unit.places.values():
        handles.append(place.attach(shift))
    loss = NEXT_TOKEN.score(model(read[:, :-1]), read, read)["loss"].sum()
    for handle in handles:
        handle.remove()
    matrices = list(unit.matrices.values())
    gradients = torch.autograd.grad(loss, [*(m.parameter for m in matrices), *shifts])
    for matrix, gradient in zip(matrices, gradients, strict=False):
        part = gradient if matrix.index is None else gradient[matrix.index]
        changes.insert(0, (part.T if matrix.transposed else part) * (rows.roundtrip(matrix.read()) - matrix.read()))
    inputs = [g * c for g, c in zip(gradients[len(matrices) :], changes[len(matrices) :], strict=True)]
    return changes[: len(matrices)] + inputs


def test_the_first_order_is_the_change_of_the_loss_where_the_change_is_small() -> None:
    """int8 of an untrained model, whose gradient is far from zero, in float64."""
    model = small("residual").double()
    job = sweep(model, Treatment(weights="int8/channel"))
    estimates = estimate(job, batches())
    costs = exact(job, batches()).costs()
    pairs = np.array([(cost.mean, estimates[cost.unit].first) for cost in costs])
    assert np.corrcoef(pairs.T)[0, 1] > 0.95
    assert np.abs(pairs[:, 0] - pairs[:, 1]).max() < 0.3 * np.abs(pairs[:, 1]).max()


def test_own_gradients_and_settings_are_put_back() -> None:
    model = small("residual")
    model.weights()["blocks.0.attn.q"].grad = mine = torch.ones(16, 16)
    model.norm.gain.requires_grad_(False)
    estimate(sweep(model), batches())
    assert model.weights()["blocks.0.attn.q"].grad is mine
    assert mine.eq(1).all()
    assert not model.norm.gain.requires_grad
    assert model.weights()["blocks.0.attn.v"].grad is None
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


@pytest.mark.parametrize("wiring", WIRINGS)
def test_the_ranking_finds_a_layer_that_was_made_sensitive(wiring: Wiring) -> None:
    """One scale for a whole matrix of which one entry is very large; judged by what the model itself would say."""
    model = small(wiring)
    with torch.no_grad():
        model.weights()["blocks.1.attn.v"][3, 3] *= 300

    def as_before(logits: Tensor, clean: Tensor, _read: Tensor) -> dict[str, Tensor]:
        return {"loss": -logits.log_softmax(-1).gather(-1, clean.argmax(-1, True)).double().mean((1, 2))}

    job = sweep(model, Treatment(weights="int4/tensor"), Judge(NEXT_TOKEN.run, as_before))
    found = rank(job, batches(), top=3)
    assert next(iter(found.estimates)) == "blocks.1.attn.in"
    assert found.exact.costs()[0].unit == "blocks.1.attn.in"
    assert list(found.exact.units) == list(found.estimates)[:3]
    whole = rank(job, batches())
    assert set(whole.exact.units) == set(whole.estimates)
    increase = {cost.unit: cost.mean for cost in whole.exact.costs()}
    names = list(whole.estimates)
    fisher = [whole.estimates[n].fisher for n in names]
    assert whole.correlation["fisher"] == spearman(fisher, [increase[n] for n in names])
    assert fisher == sorted(fisher, reverse=True)


def test_rank_correlation_is_scipy_s() -> None:
    stats = pytest.importorskip("scipy.stats")
    rng = np.random.default_rng(0)
    for _ in range(20):
        a, b = rng.integers(0, 6, (2, 9)).astype(float)  # with ties
        assert spearman(a.tolist(), b.tolist()) == pytest.approx(stats.spearmanr(a, b).statistic)
    assert isnan(spearman([1.0, 2.0], [1.0, 2.0]))
    assert isnan(spearman([1.0, 1.0, 1.0], [1.0, 2.0, 3.0]))


def test_the_estimate_orders_the_layers_of_a_trained_model() -> None:
    """In a trained model the first order is near zero, and squared gradients are the better guide."""
    tokenizers = pytest.importorskip("tokenizers")
    folder = babyllama()
    characters = text("tinyshakespeare.txt").read_text()[:8000]
    ids = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json")).encode(characters).ids
    read = torch.tensor(ids[: 16 * 97]).view(16, 97)
    model = load(folder)
    found = rank(Sweep(model, units(model, None), Treatment(weights="int3/channel")), read.split(8))
    assert len(found.estimates) == 4 * len(blocks(model))
    assert found.exact.forwards / found.exact.full == 0.6  # of 5 layers
    assert found.correlation["fisher"] > 0.3
    assert found.exact.costs()[0].mean > 3 * found.exact.costs()[0].standard_error
