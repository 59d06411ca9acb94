"""The training loop: schedule, clipping, determinism, and the ways in which a training can fail."""

from collections.abc import Iterator
from itertools import count
from math import cos, isfinite, log, pi, sqrt

import pytest
import torch
from torch import Tensor

from qbench.models.catalog import model_spec
from qbench.models.transformer import Transformer, build
from qbench.train import trainer as training_step
from qbench.train.fit import Fitted, final_loss, fit, learning_rate_factor, stuck_at_unigram
from qbench.train.spec import TrainingSpec
from qbench.train.trainer import Trainer, next_token_loss


def small(arch: str = "residual", seed: int = 0) -> Transformer:
    return build(model_spec(arch, layers=2, width=16, heads=2, context=16, vocabulary=8), seed)


def batches(seed: int = 0) -> Iterator[Tensor]:
    """Text that a model can learn: the next token is this one plus one or two."""
    for i in count():
        generator = torch.Generator().manual_seed(1000 * seed + i)
        yield (torch.randint(1, 3, (4, 17), generator=generator).cumsum(-1)) % 8


MUON = TrainingSpec(optimizer="muon", lr=0.02, aux_lr=0.02, steps=40, batch=4)


def run(arch: str = "residual", training: TrainingSpec = MUON, seed: int = 0) -> Fitted:
    return fit(small(arch, seed), training, batches(seed))


@pytest.mark.parametrize("arch", ["residual", "residual-free"])
@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_a_model_learns_what_there_is_to_learn(arch: str, optimizer: str) -> None:
    """The text has log 2 nats per token; guessing costs log 8."""
    lr = {"adamw": 0.01, "muon": 0.02}[optimizer]
    training = TrainingSpec(optimizer=optimizer, lr=lr, aux_lr=0.02, steps=80, batch=4)  # pyright: ignore[reportArgumentType]
    fitted = run(arch, training)
    assert fitted.status == "trained"
    assert fitted.curve[0] == pytest.approx(log(8), rel=0.05)
    assert log(2) - 0.1 < final_loss(fitted.curve) < 1.0


def test_a_training_is_decided_by_its_arguments() -> None:
    one, two, other = run(), run(), run(seed=1)
    assert one.curve == two.curve != other.curve
    assert all(torch.equal(a, b) for a, b in zip(one.model.parameters(), two.model.parameters(), strict=True))


def test_the_observer_changes_nothing_and_sees_every_step() -> None:
    seen: list[tuple[int, float | None, float]] = []

    def observe(step: int, model: Transformer, train_loss: float | None) -> None:
        with torch.no_grad():
            model(next(batches())[:, :-1])
        seen.append((step, train_loss, model.embed.detach().sum().item()))

    watched = fit(small(), MUON, batches(), observe)
    assert watched.curve == run().curve
    assert [step for step, _, _ in seen] == list(range(41))
    assert [loss for _, loss, _ in seen] == [None, *watched.curve]
    assert seen[0][2] == small().embed.sum().item()  # before the first update
    assert seen[1][2] != seen[0][2]  # after it


def test_gradients_are_gone_after_training_and_the_norm_is_the_largest() -> None:
    fitted = run()
    assert all(p.grad is None for p in fitted.model.parameters())
    model = small()
    next_token_loss(model(next(batches())[:, :-1]), next(batches())[:, 1:]).backward()
    first = sqrt(sum(p.grad.square().sum().item() for p in model.parameters() if p.grad is not None))
    one = fit(small(), TrainingSpec(steps=1, batch=4), batches())
    assert one.largest_gradient_norm == pytest.approx(first, rel=1e-5)
    assert fitted.largest_gradient_norm >= first * (1 - 1e-5)
    assert 0 < fitted.seconds < 60


def test_the_gradient_is_clipped_to_its_norm(monkeypatch: pytest.MonkeyPatch) -> None:
    norms: list[float] = []
    step = torch.optim.AdamW.step

    def spy(self: torch.optim.AdamW, closure: None = None) -> None:
        grads = [p.grad for g in self.param_groups for p in g["params"]]
        norms.append(sum(g.square().sum().item() for g in grads))
        step(self, closure)

    monkeypatch.setattr(torch.optim.AdamW, "step", spy)
    trainer = Trainer(small(), TrainingSpec(clip=0.01, batch=4))
    _, norm = trainer.step(next(batches()), 1.0)
    assert norm > 0.01
    assert sqrt(sum(norms)) == pytest.approx(0.01, rel=1e-3)


def test_the_schedule_warms_up_then_follows_a_cosine_to_a_tenth() -> None:
    training = TrainingSpec(steps=500)
    factors = [learning_rate_factor(step, training) for step in range(500)]
    assert factors[:25] == pytest.approx([(step + 1) / 25 for step in range(25)])
    assert factors[25:] == pytest.approx([0.1 + 0.9 * (1 + cos(pi * (step - 24) / 475)) / 2 for step in range(25, 500)])
    assert factors[-1] == pytest.approx(0.1)
    assert max(factors) == factors[24] == 1


@pytest.mark.parametrize("steps", [1, 2, 3, 20])
@pytest.mark.parametrize("warmup", [0.0, 0.05, 1.0])
def test_short_schedules_stay_between_zero_and_the_peak(steps: int, warmup: float) -> None:
    training = TrainingSpec(steps=steps, warmup=warmup)
    assert all(0 < learning_rate_factor(step, training) <= 1 for step in range(steps))


def test_every_group_follows_the_schedule_from_its_own_peak() -> None:
    trainer = Trainer(small(), TrainingSpec(optimizer="muon", lr=0.02, aux_lr=0.004, batch=4))
    trainer.step(next(batches()), 0.25)
    assert [g["lr"] for o in trainer.optimizers for g in o.param_groups] == pytest.approx([0.005, 0.001])


def test_the_loss_is_the_mean_negative_log_probability_of_the_next_token() -> None:
    logits = torch.randn(2, 3, 8, generator=torch.Generator().manual_seed(0))
    targets = torch.tensor([[0, 1, 2], [3, 4, 5]])
    by_hand = -sum(logits[b, t].double().log_softmax(-1)[targets[b, t]] for b in range(2) for t in range(3)) / 6
    assert next_token_loss(logits, targets).item() == pytest.approx(float(by_hand), rel=1e-6)


@pytest.mark.parametrize("broken", [float("nan"), float("inf")])
def test_a_training_that_breaks_stops_before_it_spoils_the_model(broken: float) -> None:
    def observe(step: int, model: Transformer, _loss: float | None) -> None:
        if step == 3:
            with torch.no_grad():
                model.logits[0, 0] = broken

    fitted = fit(small(), MUON, batches(), observe)
    assert (fitted.status, len(fitted.curve)) == ("diverged", 3)
    assert fitted.model.embed.isfinite().all()
    assert all(isfinite(loss) for loss in fitted.curve)


def test_a_gradient_that_is_not_finite_is_a_divergence_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training_step.nn.utils, "clip_grad_norm_", lambda *_args: torch.tensor(float("nan")))
    fitted = run()
    assert (fitted.status, fitted.curve) == ("diverged", ())
    assert all(torch.equal(a, b) for a, b in zip(fitted.model.parameters(), small().parameters(), strict=True))


def test_a_model_that_only_learned_frequencies_is_stuck() -> None:
    noise = (torch.randint(8, (4, 17), generator=torch.Generator().manual_seed(i)) for i in count())
    assert fit(small(), MUON, noise, unigram_entropy=log(8)).status == "stuck"
    assert fit(small(), MUON, batches(), unigram_entropy=log(8)).status == "trained"


def test_stuck_means_within_a_tenth_of_a_nat_or_above() -> None:
    assert [stuck_at_unigram(loss, 3.0) for loss in (2.89, 2.91, 3.0, 3.5)] == [False, True, True, True]


def test_the_final_loss_averages_the_last_twentieth() -> None:
    assert final_loss([9.0] * 95 + [1.0, 2.0, 3.0, 4.0, 5.0]) == 3
    assert final_loss([9.0, 1.0]) == 1


def test_too_few_batches_are_an_error_and_further_ones_are_not_read() -> None:
    with pytest.raises(ValueError, match="training wants 40 batches, the data gave 7"):
        fit(small(), MUON, (batch for batch, _ in zip(batches(), range(7), strict=False)))
    source = batches()
    fit(small(), MUON, source)
    assert torch.equal(next(source), next(b for i, b in enumerate(batches()) if i == 40))
