"""A trained model, once per model and seed: from the cache, or trained and kept there."""

from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from qbench.capture import read
from qbench.capture.places import places
from qbench.capture.sites import of
from qbench.data.text import BadData
from qbench.metrics.shape import shape
from qbench.models.checkpoint import digest
from qbench.models.transformer import Transformer, build
from qbench.quant.blocks import NonFinite
from qbench.results.files import make_folder
from qbench.suite import material
from qbench.suite.cache import Entry
from qbench.suite.cells import Cell
from qbench.suite.reader import Reader
from qbench.suite.readers import reader
from qbench.suite.resume import Resumable
from qbench.train import fit
from qbench.train.fit import Fitted
from qbench.train.spec import TrainingSpec
from qbench.train.throughput import stated_peak
from qbench.train.trainer import Trainer

Log = list[dict[str, Any]]
Progress = Callable[[int, int], None]
POINTS = 10  # validation losses along a training


@dataclass(frozen=True, slots=True)
class Prepared:
    """A model ready to be measured, what it reads, and what its training showed."""

    model: Transformer
    reader: Reader
    log: Log
    digest: str
    cached: bool


def prepare(cell: Cell, device: str, progress: Progress) -> Prepared:
    """The trained model of `cell`; trains only where weights or the wanted log are not cached.

    A training that was cut off goes on from its last snapshot, to the same bits.
    """
    spec, training = cell.model_spec(), cell.training_spec()
    given = material.load(cell.data)
    if given.digest != cell.data_digest:
        raise BadData(f"{given.name} changed while the run was under way; start it again")
    reads, entry = reader(given, spec), Entry(cell.training_key)
    model, log = entry.model(), entry.log(cell.log_key)
    cached = model is not None and log is not None
    if model is None or log is None:
        make_folder(entry.path)  # a cache that cannot be written is known before the training, not after
        keeping = Resumable(entry.snapshot(cell.log_key), [])
        trainer = Trainer(build(spec, cell.seed).to(device), training)
        log = train(trainer, reads, _Run(cell.seed, entry, progress, keeping))
        model = trainer.model
        entry.keep(model)
        entry.keep_log(cell.log_key, log)
        keeping.drop()
    return Prepared(model.to(device).eval(), reads, log, digest(model.state_dict()), cached)


@dataclass(frozen=True, slots=True)
class _Run:
    seed: int
    entry: Entry
    progress: Progress
    keeping: Resumable


def train(trainer: Trainer, reads: Reader, run: _Run) -> Log:
    """Train to the end; the log holds one row for each observed step (and site), and a summary at the end."""
    watcher = _Watcher(trainer.model, trainer.training, reads, run)
    lessons = reads.lessons(trainer.training, run.seed)
    fitted = fit.run(trainer, lessons, watcher, reads.chance(), run.keeping)
    return [*run.keeping.rows, _summary(fitted, trainer.training, reads, watcher)]


def _summary(fitted: Fitted, training: TrainingSpec, reads: Reader, watcher: "_Watcher") -> dict[str, Any]:
    final, model = reads.score(fitted.model, watcher.tuning), fitted.model
    others = {metric: final.mean(metric) for metric in reads.bounded if metric != "loss"}
    return {
        "status": fitted.status,
        "least": reads.material.least,
        "values": {
            "loss": final.loss,
            **reads.derived(final.loss),
            **others,
            **reads.known(),
            "largest_gradient_norm": fitted.largest_gradient_norm,
            "cpu_seconds": fitted.seconds,
            "training_tokens": float(training.steps * training.batch * model.spec.length),
            "parameters": float(sum(p.numel() for p in model.parameters())),
            **_speed(fitted, training),
            **_evidence(fitted, training),
        },
        "warnings": list(fitted.engagement.warnings()) if training.quantized else [],
    }


def _speed(fitted: Fitted, training: TrainingSpec) -> dict[str, float]:
    """How fast it was; nothing where there was no second step to time."""
    found = fitted.throughput
    if not found.seconds:
        return {}
    device = next(fitted.model.parameters()).device
    peak = stated_peak(device, training.precision)
    share = {"mfu": found.utilization(peak[0])} if peak else {}
    operations = found.operations / found.seconds
    return {"tokens_per_second": found.tokens_per_second, "model_flops": operations, **share}


def _evidence(fitted: Fitted, training: TrainingSpec) -> dict[str, float]:
    """That the quantizers inside a training ran."""
    if not training.quantized:
        return {}
    seen = fitted.engagement
    return {"sites_touched": float(len(seen.places)), "levels": float(seen.levels)}


class _Watcher:
    """Looks at a model in training: validation loss, kurtosis by site, checkpoints, progress."""

    def __init__(self, model: Transformer, training: TrainingSpec, reads: Reader, run: _Run) -> None:
        self.tuning = reads.examples("tune", reads.material.tuning())
        there = places(model)
        self._places = {name: there[name] for name in of(model.spec).sites}
        self._training, self._reads, self._run = training, reads, run
        every = max(1, training.steps // POINTS)
        self._loss_steps = {*range(0, training.steps, every), training.steps}
        self._shape_steps = {*training.shape_steps, training.steps} if training.shape_steps else set[int]()

    def __call__(self, step: int, model: Transformer, train_loss: float | None) -> None:
        rows = self._run.keeping.rows
        if step in self._loss_steps:
            values = {"validation_loss": self._reads.score(model, self.tuning).loss}
            if train_loss is not None:
                values["train_loss"] = train_loss
            rows.append({"step": step, "values": values})
            self._run.progress(step, self._training.steps)
        if step in self._shape_steps:
            rows += [{"step": step, "site": s, "values": v} for s, v in self._shapes(model).items()]
        if step in self._training.checkpoints:
            self._run.entry.keep(model, step)

    def _shapes(self, model: Transformer) -> Mapping[str, dict[str, float]]:
        seen: dict[str, dict[str, float]] = {}

        def visit(site: str, x: Tensor) -> None:
            seen[site] = {name: value for name, value in shape(x).items() if name.startswith("excess_kurtosis")}

        device = next(model.parameters()).device
        with suppress(NonFinite):  # a model that has just broken has no shape; its training says that it diverged
            read.activations(model, self._places, [self._reads.watched().to(device)], visit)
        return seen
