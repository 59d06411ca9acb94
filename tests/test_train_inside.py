"""Quantizers inside a training step, against steps in which the same is done by hand."""

from collections.abc import Iterator
from itertools import count, islice

import pytest
import torch
from torch import Tensor, nn

from qbench.models.catalog import model_spec
from qbench.models.transformer import Transformer, build
from qbench.names import UnknownName
from qbench.quant.quantizer import Quantizer
from qbench.quant.quantizer import build as quantizer
from qbench.quant.straight import fake
from qbench.train.fit import Fitted, final_loss, fit, run
from qbench.train.inside import Inside
from qbench.train.spec import Optimizer, TrainingSpec
from qbench.train.trainer import Trainer, next_token_loss


def small(arch: str = "residual") -> Transformer:
    return build(model_spec(arch, layers=2, width=32, heads=2, context=16, vocabulary=8), seed=0)


def batches() -> Iterator[Tensor]:
    for i in count():
        generator = torch.Generator().manual_seed(i)
        yield torch.randint(1, 3, (4, 17), generator=generator).cumsum(-1) % 8


BATCH = next(batches())


def loss_of(model: nn.Module) -> Tensor:
    return next_token_loss(model(BATCH[:, :-1]), BATCH[:, 1:])


def gradients(model: nn.Module, quantized: dict[str, str], draw: int = 0) -> tuple[float, dict[str, Tensor]]:
    """Loss and gradients with quantizers inside."""

    def work() -> float:
        loss = loss_of(model)
        loss.backward()
        return loss.item()

    loss = Inside(model, quantized).run(work, draw)
    return loss, {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def exact(model: nn.Module) -> dict[str, Tensor]:
    loss_of(model).backward()
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def test_a_gradient_is_quantized_where_it_passes() -> None:
    """At the last block's output: everything behind it sees the quantized gradient, nothing in front of it does."""
    model = small()
    plain = exact(small())
    _, found = gradients(model, {"gradient:blocks.1.out": "int4/tensor"})
    assert torch.equal(found["logits"], plain["logits"])
    assert torch.equal(found["norm.gain"], plain["norm.gain"])
    by_hand = small()
    by_hand.blocks[1].site["out"].register_full_backward_hook(
        lambda _module, _into, out: (quantizer("int4/tensor").roundtrip(out[0]),)
    )
    wanted = exact(by_hand)
    for name in ("embed", "blocks.1.mlp.out", "blocks.0.attn.q"):
        assert torch.equal(found[name], wanted[name])
        assert not torch.equal(found[name], plain[name])


def test_an_activation_is_quantized_and_its_gradient_passes_straight_through() -> None:
    model = small()
    loss, found = gradients(model, {"activation:interior": "int3/token"})
    by_hand = small()
    by_hand.blocks[0].site["out"].register_forward_hook(
        lambda _module, _inputs, x: x + (quantizer("int3/token").roundtrip(x) - x).detach()
    )
    assert loss == pytest.approx(loss_of(by_hand).item(), rel=1e-6)
    wanted = exact(by_hand)
    for name, gradient in found.items():
        torch.testing.assert_close(gradient, wanted[name], rtol=1e-4, atol=1e-6)
    assert abs(loss - loss_of(small()).item()) > 1e-5


def test_forward_and_backward_have_bit_widths_of_their_own() -> None:
    inside = Inside(small(), {"activation:boundaries": "int8/token", "gradient:boundaries": "int2/tensor"})
    inside.run(lambda: loss_of(inside._runner.model).backward(), 0)
    limits = {place: seen.limit for place, seen in inside.engagement.places.items()}
    assert limits == {
        f"{kind}:blocks.{i}.out": limit for kind, limit in (("activation", 256), ("gradient", 4)) for i in (0, 1)
    }
    assert inside.engagement.warnings() == ()
    assert inside.engagement.places["gradient:blocks.0.out"].levels <= 4


@pytest.mark.parametrize("name", ["int4/channel", "int2/channel/rms"])
def test_weights_are_quantized_and_their_gradient_has_the_trust_mask(name: str) -> None:
    """Gradients reach the float32 weights, but for those that the code clips (QuEST, arXiv 2502.05003)."""
    model = small()
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    loss, found = gradients(model, {"weight:weights": name})
    by_hand = small()
    masks: dict[str, Tensor] = {}
    with torch.no_grad():
        for site, weight in by_hand.weights().items():
            if site.startswith("blocks."):
                q = quantizer(name, channel_axis=0)
                choice = q.choose(weight)
                masks[site] = q.trusted(choice).reshape(weight.shape)
                weight.copy_(q.roundtrip(weight))
    assert loss == pytest.approx(loss_of(by_hand).item(), rel=1e-6)
    wanted = exact(by_hand)
    for n, gradient in found.items():
        torch.testing.assert_close(gradient, wanted[n] * masks.get(n, torch.tensor(1.0)), rtol=1e-4, atol=1e-7)
    clipped = sum(int((~mask).sum()) for mask in masks.values())
    assert (clipped > 0) == ("rms" in name)
    assert all(torch.equal(p, before[n]) for n, p in model.named_parameters())


def test_recomputed_activations_see_the_quantized_weights_and_activations() -> None:
    """Recomputing happens in the backward pass, when the weights could be back already."""
    quantized = {
        "weight:weights": "int3/channel",
        "activation:linear": "int4/token/sr:7",
        "gradient:all": "int8/tensor",
    }
    found = [
        fit(small(), TrainingSpec(steps=3, batch=4, quantized=quantized, recompute=recompute), batches())
        for recompute in (False, True)
    ]
    assert found[0].curve == found[1].curve
    for a, b in zip(found[0].model.parameters(), found[1].model.parameters(), strict=True):
        assert torch.equal(a, b)


def first_update(**settings: object) -> tuple[float, dict[str, Tensor], Trainer]:
    """Loss of the first step, and what it did to each parameter."""
    training = TrainingSpec(batch=4, clip=1e9, optimizer="sgd", aux_lr=1e-3, **settings)  # type: ignore[arg-type]
    trainer = Trainer(small(), training)
    before = {n: p.detach().clone() for n, p in trainer.model.named_parameters()}
    loss, _ = trainer.step(BATCH, 1.0)
    return loss, {n: p.detach() - before[n] for n, p in trainer.model.named_parameters()}, trainer


BY_TOKEN = {"activation:boundaries": "int4/token", "weight:weights": "int4/channel"}


def test_a_batch_in_parts_is_quantized_as_the_whole() -> None:
    """Where no scale reaches over windows; and the optimizer's state is quantized once, after the last part."""
    loss, whole, _ = first_update(quantized=BY_TOKEN)
    in_parts, found, trainer = first_update(quantized={**BY_TOKEN, "state:momentum": "int4/tensor"}, accumulate=4)
    assert in_parts == pytest.approx(loss, rel=1e-5)
    for name in ("blocks.0.attn.q", "blocks.1.mlp.out"):
        assert (found[name] - whole[name]).norm() < 1e-4 * whole[name].norm()
        kept = trainer.optimizers[0].state[trainer.model.weights()[name]]["momentum_buffer"]
        assert kept.unique().numel() <= 15


def test_quantizers_go_with_bfloat16() -> None:
    """The products are rounded to 8 bits, the codes are as they were; what is kept stays in float32."""
    loss, exact_update, _ = first_update(quantized={**BY_TOKEN, "gradient:interior": "int8/token"})
    rounded, found, trainer = first_update(
        quantized={**BY_TOKEN, "gradient:interior": "int8/token"}, precision="bfloat16", recompute=True
    )
    assert loss != rounded == pytest.approx(loss, rel=0.02)
    assert trainer.inside.engagement.warnings() == ()
    assert len(trainer.inside.engagement.places) == 2 + 12 + 1
    assert all(seen.levels <= seen.limit for seen in trainer.inside.engagement.places.values())
    for name in ("blocks.0.attn.v", "blocks.1.mlp.out"):
        assert found[name].dtype == torch.float32
        assert (found[name] - exact_update[name]).norm() < 0.15 * exact_update[name].norm()


def test_outside_the_step_the_model_is_itself() -> None:
    model = small()
    trainer = Trainer(model, TrainingSpec(quantized={"activation:all": "int2/tensor", "weight:all": "int2/tensor"}))
    trainer.step(BATCH, 1.0)
    other = small()
    other.load_state_dict(model.state_dict())
    assert torch.equal(model(BATCH[:, :-1]), other(BATCH[:, :-1]))


def test_an_error_leaves_the_model_as_it_was() -> None:
    model = small()
    wanted = model(BATCH[:, :-1])

    def broken() -> None:
        raise RuntimeError("in the middle")

    with pytest.raises(RuntimeError, match="in the middle"):
        Inside(model, {"activation:all": "int2/tensor", "weight:all": "int2/tensor"}).run(broken, 0)
    assert torch.equal(model(BATCH[:, :-1]), wanted)


def test_stochastic_rounding_draws_anew_in_each_step_and_at_each_place() -> None:
    quantized = {"activation:boundaries": "int2/tensor/sr:1"}
    losses = [gradients(small(), quantized, draw)[0] for draw in (0, 0, 1)]
    assert losses[0] == losses[1] != losses[2]


def test_what_comes_later_holds() -> None:
    inside = Inside(small(), {"weight:weights": "int8/channel", "weight:blocks.0.attn.q": "int2/channel"})
    inside.run(lambda: loss_of(inside._runner.model).backward(), 0)
    assert inside.engagement.places["weight:blocks.0.attn.q"].limit == 4
    assert inside.engagement.places["weight:blocks.0.attn.k"].limit == 256


def test_a_pattern_that_selects_nothing_is_a_mistake() -> None:
    with pytest.raises(UnknownName, match="did you mean 'boundaries'"):
        Trainer(small(), TrainingSpec(quantized={"gradient:boundarys": "int4/tensor"}))


def trained(arch: str, quantized: dict[str, str] | None, optimizer: str = "adamw", steps: int = 60) -> Fitted:
    training = TrainingSpec(optimizer=optimizer, lr=0.01, aux_lr=0.02, steps=steps, batch=4, quantized=quantized)  # type: ignore[arg-type]
    return fit(small(arch), training, batches())


@pytest.mark.parametrize("arch", ["residual", "residual-free"])
def test_a_model_learns_with_four_bits_everywhere(arch: str) -> None:
    quantized = {
        "activation:boundaries": "int4/token",
        "gradient:boundaries": "int4/token",
        "weight:weights": "int4/channel",
    }
    fitted = trained(arch, quantized)
    assert fitted.status == "trained"
    assert final_loss(fitted.curve) < 1.0
    assert fitted.curve != trained(arch, None).curve
    assert fitted.engagement.warnings() == ()
    assert len(fitted.engagement.places) == 2 + 2 + 12


@pytest.mark.parametrize(
    ("optimizer", "what", "keys"),
    [
        ("adamw", "all", {"exp_avg": 1, "exp_avg_sq": 1}),
        ("muon", "momentum", {"momentum_buffer": 1}),
        ("muon-rms", "momentum", {"momentum_buffer": 1}),
        ("sgd", "momentum", {"momentum_buffer": 1}),
        ("soap", "momentum", {"exp_avg": 1}),
        ("soap", "factors", {"GG": 2}),
        ("soap", "bases", {"Q": 2}),
        ("shampoo", "factors", {"factors": 2}),
        ("shampoo", "bases", {"roots": 2}),
        ("shampoo", "all", {"exp_avg": 1, "exp_avg_sq": 1, "factors": 2, "roots": 2}),
    ],
)
def test_states_are_quantized_after_each_step_each_kind_apart(optimizer: str, what: str, keys: dict[str, int]) -> None:
    """What the optimizer keeps has no more levels than its code; what was not named keeps its own values."""
    training = TrainingSpec(optimizer=optimizer, batch=4, quantized={f"state:{what}": "int4/tensor"})  # type: ignore[arg-type]
    trainer = Trainer(small(), training)
    for batch, _ in zip(batches(), range(12), strict=False):
        trainer.step(batch, 1.0)
    for parameter in trainer.model.weights().values():
        for key, kept in trainer.optimizers[0].state.get(parameter, {}).items():
            for one in kept if isinstance(kept, list) else [kept]:
                if isinstance(one, Tensor) and one.numel() > 1:
                    assert (one.unique().numel() <= 15) == (key in keys), key
    places = trainer.inside.engagement.places
    assert len(places) == 12 * sum(keys.values())
    assert set(places) == set(trainer.inside.engagement.asked)
    assert {
        place.removeprefix("state:").split(".", 4)[4 - ("embed" in place)].split(".")[0] for place in places
    } == set(keys)
    rest = trainer.optimizers[1].state[trainer.model.embed]["exp_avg"]
    assert rest.unique().numel() > 15


def test_quantized_states_change_the_next_step_and_not_this_one() -> None:
    factors = {"state:factors": "int4/tensor"}
    plain, quantized = (trained("residual", these, "soap", 13) for these in (None, factors))
    # Factors make the new basis at the end of the eleventh update; the twelfth is the first to use it.
    assert plain.curve[:12] == quantized.curve[:12]
    assert plain.curve[12] != quantized.curve[12]


@pytest.mark.parametrize(("optimizer", "key"), [("soap", "GG"), ("shampoo", "factors")])
def test_a_quantized_factor_stays_symmetric(optimizer: Optimizer, key: str) -> None:
    """A scale for each row alone would make it lopsided, and solvers of symmetric matrices read one half."""
    quantized = {"state:factors": "int4/token"}
    trainer = Trainer(small(), TrainingSpec(optimizer=optimizer, steps=12, batch=4, quantized=quantized))
    run(trainer, islice(batches(), 12))
    factors = [one for state in trainer.optimizers[0].state.values() for one in state[key] if isinstance(one, Tensor)]
    assert factors
    for factor in factors:
        assert torch.equal(factor, factor.mT)


def test_each_place_and_state_has_random_numbers_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    streams: list[int] = []
    drawn = Quantizer.drawn

    def noted(self: Quantizer, draw: int, place: str = "") -> Quantizer:
        found = drawn(self, draw, place)
        streams.append(found.stream)
        return found

    monkeypatch.setattr(Quantizer, "drawn", noted)
    kinds = ("activation:interior", "gradient:interior", "weight:weights", "state:all")
    training = TrainingSpec(steps=2, batch=4, quantized=dict.fromkeys(kinds, "int8/tensor/sr:3"))
    run(Trainer(small(), training), islice(batches(), 2))
    matrices = 12
    assert len(streams) == len(set(streams)) == 2 * (1 + 1 + matrices + 2 * matrices)


def test_a_second_moment_never_comes_back_below_zero() -> None:
    trainer = Trainer(small(), TrainingSpec(batch=4, quantized={"state:variance": "int2/tensor+hadamard"}))
    for batch, _ in zip(batches(), range(3), strict=False):
        assert trainer.step(batch, 1.0)[0] < 3
    moments = [state["exp_avg_sq"] for state in trainer.optimizers[0].state.values()]
    assert all((moment >= 0).all() for moment in moments)
    again = [quantizer("int2/tensor+hadamard").roundtrip(moment) for moment in moments]
    assert any((moment < 0).any() for moment in again)  # the rotation would


def test_a_training_that_breaks_under_a_quantizer_has_diverged() -> None:
    model = small()
    with torch.no_grad():
        model.blocks[0].mlp.out[0, 0] = float("nan")
    fitted = fit(model, TrainingSpec(steps=2, batch=4, quantized={"activation:boundaries": "int4/tensor"}), batches())
    assert (fitted.status, fitted.curve) == ("diverged", ())
    assert model.embed.isfinite().all()


def test_fake_and_inside_agree_on_the_mask() -> None:
    """What `quant.straight` promises of trust is what a weight inside gets."""
    weight = nn.Parameter(small().weights()["blocks.0.attn.q"].detach().clone())
    fake(weight, quantizer("int2/channel/rms", channel_axis=0), trust=True).sum().backward()
    assert weight.grad is not None
    assert 0 < (weight.grad == 0).sum() < weight.numel() / 2
