"""A trained model, once per model and seed: from the cache, or trained and kept there."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from qbench.capture import read
from qbench.capture.places import places
from qbench.capture.sites import own
from qbench.data import catalog as data
from qbench.data.text import BadData, Corpus, unigram_entropy
from qbench.data.windows import evaluation_windows, training_batches
from qbench.evaluate.likelihood import bits_per_byte, likelihood
from qbench.metrics.shape import shape
from qbench.models.checkpoint import digest
from qbench.models.spec import ModelSpec
from qbench.models.transformer import Transformer, build
from qbench.results.files import make_folder
from qbench.suite.cache import Entry
from qbench.suite.cells import Cell
from qbench.suite.value import TUNING_WINDOWS
from qbench.train.fit import fit
from qbench.train.spec import TrainingSpec

Log = list[dict[str, Any]]
Progress = Callable[[int, int], None]
SHAPE_WINDOWS = 8  # for the kurtosis during training
POINTS = 10  # validation losses along a training


@dataclass(frozen=True, slots=True)
class Prepared:
    """A model ready to be measured, the text it is measured on, and what its training showed."""

    model: Transformer
    corpus: Corpus
    log: Log
    digest: str
    cached: bool


def prepare(cell: Cell, device: str, progress: Progress) -> Prepared:
    """The trained model of `cell`; trains only where weights or the wanted log are not cached."""
    spec, training = cell.model_spec(), cell.training_spec()
    corpus = data.load(cell.data)
    if corpus.digest != cell.data_digest:
        raise BadData(f"{corpus.name} changed while the run was under way; start it again")
    entry = Entry(cell.training_key)
    model, log = entry.model(), entry.log(cell.log_key)
    cached = model is not None and log is not None
    if model is None or log is None:
        make_folder(entry.path)  # a cache that cannot be written is known before the training, not after
        model, log = train(spec, training, corpus, _Run(cell.seed, device, entry, progress))
        entry.keep(model)
        entry.keep_log(cell.log_key, log)
    return Prepared(model.to(device).eval(), corpus, log, digest(model.state_dict()), cached)


@dataclass(frozen=True, slots=True)
class _Run:
    seed: int
    device: str
    entry: Entry
    progress: Progress


def train(spec: ModelSpec, training: TrainingSpec, corpus: Corpus, run: _Run) -> tuple[Transformer, Log]:
    """Train from scratch; the log holds one row for each observed step (and site), and a summary at the end."""
    model = build(spec, run.seed).to(run.device)
    watcher = _Watcher(model, spec, training, corpus, run)
    batches = training_batches(corpus.train, spec.context, training.batch, training.steps, run.seed)
    fitted = fit(model, training, batches, watcher, unigram_entropy(corpus.train))
    final = likelihood(model, watcher.tuning).loss
    summary = {
        "status": fitted.status,
        "values": {
            "loss": final,
            "bits_per_byte": bits_per_byte(final),
            "unigram_entropy": unigram_entropy(corpus.tune),
            "largest_gradient_norm": fitted.largest_gradient_norm,
            "cpu_seconds": fitted.seconds,
            "training_tokens": float(training.steps * training.batch * spec.context),
            "parameters": float(sum(p.numel() for p in model.parameters())),
        },
    }
    return model, [*watcher.rows, summary]


class _Watcher:
    """Looks at a model in training: validation loss, kurtosis by site, checkpoints, progress."""

    def __init__(self, model: Transformer, spec: ModelSpec, training: TrainingSpec, corpus: Corpus, run: _Run) -> None:
        self.rows: Log = []
        self.tuning = evaluation_windows(corpus.tune, spec.context, TUNING_WINDOWS)
        there = places(model)
        self._places = {name: there[name] for name in own(spec.wiring, spec.layers).sites}
        self._training, self._run = training, run
        every = max(1, training.steps // POINTS)
        self._loss_steps = {*range(0, training.steps, every), training.steps}
        self._shape_steps = {*training.shape_steps, training.steps} if training.shape_steps else set[int]()

    def __call__(self, step: int, model: Transformer, train_loss: float | None) -> None:
        if step in self._loss_steps:
            values = {"validation_loss": likelihood(model, self.tuning).loss}
            if train_loss is not None:
                values["train_loss"] = train_loss
            self.rows.append({"step": step, "values": values})
            self._run.progress(step, self._training.steps)
        if step in self._shape_steps:
            self.rows += [{"step": step, "site": s, "values": v} for s, v in self._shapes(model).items()]
        if step in self._training.checkpoints:
            self._run.entry.keep(model, step)

    def _shapes(self, model: Transformer) -> Mapping[str, dict[str, float]]:
        seen: dict[str, dict[str, float]] = {}

        def visit(site: str, x: Tensor) -> None:
            seen[site] = {name: value for name, value in shape(x).items() if name.startswith("excess_kurtosis")}

        tokens = self.tuning[:SHAPE_WINDOWS, :-1].to(self._run.device)
        read.activations(model, self._places, [tokens], visit)
        return seen
