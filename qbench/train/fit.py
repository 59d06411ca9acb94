"""The training loop: a model, a training spec and batches in; a trained model and its loss curve out."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from math import cos, isfinite, pi
from statistics import fmean
from time import perf_counter, process_time
from typing import Literal

from qbench.capture.write import Engagement
from qbench.models.transformer import Transformer
from qbench.train.snapshot import History, Keeper
from qbench.train.spec import TrainingSpec
from qbench.train.throughput import Throughput, operations_per_token, positions
from qbench.train.trainer import Batch, Trainer

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
    `seconds` is process time, observers excluded. `throughput` leaves out the first step of a process, which sets
    things up.
    `engagement` is the proof that quantizers inside the training ran.
    """

    model: Transformer
    curve: tuple[float, ...]
    largest_gradient_norm: float
    status: Status
    seconds: float
    throughput: Throughput
    engagement: Engagement


def fit(
    model: Transformer,
    training: TrainingSpec,
    batches: Iterable[Batch],
    observe: Observer | None = None,
    unigram_entropy: float | None = None,
) -> Fitted:
    """Train `model` in place, where its parameters are, on `training.steps` batches of tokens [B, T + 1].

    A batch may also be inputs and targets. `observe` is called before the first step and after each. The status is
    "stuck" only where `unigram_entropy` (nats per token) is given. Raises ValueError where the batches run out.
    """
    return run(Trainer(model, training), batches, observe, unigram_entropy)


def run(
    trainer: Trainer,
    batches: Iterable[Batch],
    observe: Observer | None = None,
    unigram_entropy: float | None = None,
    snapshots: Keeper | None = None,
) -> Fitted:
    """What `fit` does, with a trainer; with `snapshots` it continues where it was cut off.

    `batches` are those from the beginning in any case: what was trained on is skipped. `observe` does not see the
    steps that were made before. Raises BadSnapshot where the file is of another training.
    """
    watch, training = observe or _ignore, trainer.training
    past = snapshots.resume(trainer) if snapshots else History()
    if not trainer.steps:
        watch(0, trainer.model, None)
    first = trainer.steps
    for batch in islice(batches, first, training.steps):
        if not _advance(trainer, batch, past, timed=trainer.steps > first):
            break
        watch(trainer.steps, trainer.model, past.curve[-1])
        if snapshots:
            snapshots.keep(trainer, past)
    else:
        if len(past.curve) < training.steps:
            raise ValueError(f"training wants {training.steps} batches, the data gave {len(past.curve)}")
    return Fitted(
        model=trainer.model,
        curve=tuple(past.curve),
        largest_gradient_norm=max(past.norms, default=float("nan")),
        status=_status(past.curve, training.steps, unigram_entropy),
        seconds=past.seconds,
        throughput=Throughput(past.tokens, past.wall, past.tokens * operations_per_token(trainer.model)),
        engagement=trainer.inside.engagement,
    )


def _advance(trainer: Trainer, batch: Batch, past: History, timed: bool) -> bool:
    """Make one step and note it in `past`; whether the training goes on.

    The first step of a process is not `timed`: it sets up buffers, and may compile.
    """
    began, began_wall = process_time(), perf_counter()
    loss, norm = trainer.step(batch, learning_rate_factor(trainer.steps, trainer.training))
    past.seconds += process_time() - began
    if not (isfinite(loss) and isfinite(norm)):
        return False
    if timed:
        past.wall += perf_counter() - began_wall
        past.tokens += positions(trainer.model, batch)
    past.curve.append(loss)
    past.norms.append(norm)
    return True


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
