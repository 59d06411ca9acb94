"""The training loop: a model, a training spec and batches in; a trained model and its loss curve out."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from math import cos, isfinite, pi
from statistics import fmean
from time import process_time
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from qbench.models.transformer import Transformer
from qbench.train import optimizer
from qbench.train.spec import TrainingSpec

Status = Literal["trained", "stuck", "diverged"]
# Called with the number of updates made so far, the model, and the loss of the last batch (None before the first).
Observer = Callable[[int, Transformer, float | None], None]

STUCK_MARGIN = 0.1  # nats
FINAL_SHARE = 0.05  # of the steps: what "the final loss" averages over


@dataclass(frozen=True, slots=True, kw_only=True)
class Fitted:
    """A trained model and how the training went.

    `curve` holds the training loss of each step in nats per token, before its update. A training that
    diverged stopped before the update that would have broken the model: `curve` ends there.
    `seconds` is process time, observers excluded.
    """

    model: Transformer
    curve: tuple[float, ...]
    largest_gradient_norm: float
    status: Status
    seconds: float


def fit(
    model: Transformer,
    training: TrainingSpec,
    batches: Iterable[Tensor],
    observe: Observer | None = None,
    unigram_entropy: float | None = None,
) -> Fitted:
    """Train `model` in place, where its parameters are, on `training.steps` batches of tokens [B, T + 1].

    `observe` is called before the first step and after each. The status is "stuck" only where
    `unigram_entropy` (nats per token) is given. Raises ValueError where the batches run out.
    """
    watch = observe or _ignore
    trainer = Trainer(model, training)
    curve: list[float] = []
    norms: list[float] = []
    seconds = 0.0
    watch(0, model, None)
    for step, batch in enumerate(islice(batches, training.steps)):
        began = process_time()
        loss, norm = trainer.step(batch, learning_rate_factor(step, training))
        seconds += process_time() - began
        if not (isfinite(loss) and isfinite(norm)):
            break
        curve.append(loss)
        norms.append(norm)
        watch(step + 1, model, loss)
    else:
        if len(curve) < training.steps:
            raise ValueError(f"training wants {training.steps} batches, the data gave {len(curve)}")
    return Fitted(
        model=model,
        curve=tuple(curve),
        largest_gradient_norm=max(norms, default=float("nan")),
        status=_status(curve, training.steps, unigram_entropy),
        seconds=seconds,
    )


class Trainer:
    """A model with its optimizers: what one training step needs."""

    def __init__(self, model: Transformer, training: TrainingSpec) -> None:
        self.model = model
        self.clip = training.clip
        self.parameters = list(model.parameters())
        self.optimizers = optimizer.build(model, training)
        self.peaks = [(group, float(group["lr"])) for o in self.optimizers for group in o.param_groups]

    def step(self, batch: Tensor, factor: float) -> tuple[float, float]:
        """Loss and gradient norm of `batch`; the update happens only where both are finite."""
        batch = batch.to(self.parameters[0].device)
        loss = next_token_loss(self.model(batch[:, :-1]), batch[:, 1:])
        loss.backward()
        norm = nn.utils.clip_grad_norm_(self.parameters, self.clip)
        loss_now, norm_now = torch.stack([loss.detach(), norm]).tolist()  # one wait for the device, not two
        if isfinite(loss_now) and isfinite(norm_now):
            for group, peak in self.peaks:
                group["lr"] = peak * factor
            for one in self.optimizers:
                one.step()
        for parameter in self.parameters:
            parameter.grad = None
        return loss_now, norm_now


def next_token_loss(logits_BTV: Tensor, targets_BT: Tensor) -> Tensor:
    """Mean cross-entropy in nats per token."""
    return F.cross_entropy(logits_BTV.flatten(0, 1), targets_BT.flatten())


def learning_rate_factor(step: int, training: TrainingSpec) -> float:
    """Share of the peak rate at `step` = 0, 1, ...: linear warm-up, then cosine, to `final` at the last step.

    >>> [round(learning_rate_factor(s, TrainingSpec(steps=41, warmup=0.05)), 3) for s in (0, 1, 2, 20, 40)]
    [0.5, 1.0, 0.999, 0.568, 0.1]
    """
    warm = int(training.warmup * training.steps)
    if step < warm:
        return (step + 1) / warm
    progress = (step - warm + 1) / (training.steps - warm)
    return training.final + (1 - training.final) * (1 + cos(pi * progress)) / 2


def final_loss(curve: Sequence[float]) -> float:
    """Mean training loss of the last twentieth of the steps: one batch alone is too noisy to judge by."""
    return fmean(curve[-max(1, int(FINAL_SHARE * len(curve))) :])


def stuck_at_unigram(loss: float, unigram_entropy: float) -> bool:
    """Whether a model learned no more than how frequent each token is: within 0.1 nats of that entropy, or above.

    >>> stuck_at_unigram(3.02, unigram_entropy=3.009), stuck_at_unigram(2.7, unigram_entropy=3.009)
    (True, False)
    """
    return loss > unigram_entropy - STUCK_MARGIN


def _status(curve: Sequence[float], steps: int, unigram_entropy: float | None) -> Status:
    if len(curve) < steps:
        return "diverged"
    if unigram_entropy is not None and stuck_at_unigram(final_loss(curve), unigram_entropy):
        return "stuck"
    return "trained"


def _ignore(step: int, model: Transformer, train_loss: float | None) -> None:
    """The observer of those who do not observe."""
