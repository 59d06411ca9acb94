"""Tasks of EleutherAI's lm-evaluation-harness on a live model: costs with intervals, and what each document gave."""

import random
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from qbench.evaluate.documents import Costs, costs_of, error_rates
from qbench.evaluate.harness_files import libraries, load_tasks, quiet
from qbench.results.digest import of

HASHES = ("doc_hash", "prompt_hash", "target_hash")


@dataclass(frozen=True, slots=True)
class Ask:
    """`tasks`: names of tasks, groups or tags, in the YAML files under `include` or among the harness's own.

    `limit`: the first so many documents of each task. `seed` draws few-shot examples and the bootstrap.
    """

    tasks: tuple[str, ...]
    include: Path | None = None
    limit: int | None = None
    batch: int = 16
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.tasks or self.batch < 1 or (self.limit is not None and self.limit < 1):
            raise ValueError(f"expected at least one task, document and batch row, found {self}")


@dataclass(frozen=True, slots=True, eq=False)
class TaskResult:
    """One task (with the harness's filter in its name where there are several).

    `values` are costs under the names of the catalog, `intervals` their 95 % bootstrap intervals over `n` documents.
    `vectors`: a cost of each document [N] under the same names, `<name>/weight` [N] where documents count unequally,
    and doc_hash, prompt_hash and target_hash, uint8 [N, 32]. `left_out`: metrics that are no mean over documents.
    """

    task: str
    n: int
    values: Mapping[str, float]
    intervals: Mapping[str, tuple[float, float]]
    vectors: Mapping[str, NDArray[Any]]
    version: str
    task_digest: str
    documents_digest: str
    left_out: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, eq=False)
class TaskResults:
    """All tasks that were asked for, in order; `harness` is the version of lm-eval."""

    tasks: tuple[TaskResult, ...]
    harness: str
    ask: Ask


def evaluate(model: nn.Module, tokenizer: Any, ask: Ask) -> TaskResults:
    """Run the tasks on `model`, a transformers causal language model or a wrapper with one as `.hf`.

    The module runs as it stands, with its hooks and its quantized weights. Probabilities are taken in float32 at
    least. Global random states are left as they were, and nothing is written outside a temporary folder.

    Raises:
        MissingPackage: lm-eval is not installed.
        UnknownName: no such task.
        BadData: a task's file or its data are missing.
    """
    libraries()
    from lm_eval.evaluator import evaluate as run
    from lm_eval.models.huggingface import HFLM

    live: Any = getattr(model, "hf", model)
    wrapper: Any = HFLM
    precision = torch.promote_types(live.dtype, torch.float32)
    with TemporaryDirectory(prefix="qbench-tasks-") as scratch, quiet(), _own_random_state(ask.seed):
        loaded = load_tasks(ask.tasks, ask.include, Path(scratch))
        for task in loaded["tasks"].values():
            if task.get_config("num_fewshot") is None:
                task.set_config(key="num_fewshot", value=0)
            task.set_fewshot_seed(seed=ask.seed)
        wrapped = wrapper(
            pretrained=live, tokenizer=tokenizer, backend="causal", batch_size=ask.batch, softmax_dtype=precision
        )
        done: Any = run(lm=wrapped, task_dict=loaded, limit=ask.limit, bootstrap_iters=0, log_samples=True)
        results = [
            _result(loaded["tasks"][name], label, samples, ask.seed)
            for name in loaded["tasks"]
            for label, samples in _by_filter(name, done["samples"][name])
        ]
    return TaskResults(tuple(results), version("lm-eval"), ask)


def _by_filter(name: str, samples: Sequence[Mapping[str, Any]]) -> Iterator[tuple[str, list[Mapping[str, Any]]]]:
    filters = list(dict.fromkeys(sample["filter"] for sample in samples))
    for one in filters:
        label = name if len(filters) == 1 else f"{name}/{one}"
        yield label, sorted((s for s in samples if s["filter"] == one), key=lambda sample: sample["doc_id"])


def _result(task: Any, label: str, samples: Sequence[Mapping[str, Any]], seed: int) -> TaskResult:
    costs: list[Costs] = []
    left_out: list[str] = []
    for metric in dict.fromkeys(metric for sample in samples for metric in sample["metrics"]):
        how = getattr(task.aggregation().get(metric), "__name__", "mean")
        found = costs_of(metric, [sample.get(metric) for sample in samples], how, seed)
        if found is None:
            left_out.append(metric)
        else:
            costs.append(found)
    costs += error_rates(costs)
    vectors: dict[str, NDArray[Any]] = {key: each for one in costs for key, each in one.vectors.items()}
    for kind in HASHES:
        hashes = b"".join(bytes.fromhex(sample[kind]) for sample in samples)
        vectors[kind] = np.frombuffer(hashes, np.uint8).reshape(len(samples), -1)
    return TaskResult(
        label,
        len(samples),
        {one.name: one.value for one in costs},
        {one.name: one.interval for one in costs},
        vectors,
        version=str(task.VERSION),
        task_digest=_task_digest(task),
        documents_digest=sha256(vectors["doc_hash"].tobytes()).hexdigest(),
        left_out=tuple(left_out),
    )


def _task_digest(task: Any) -> str:
    """Of everything the task's file says, but not of where it and its data lie: the documents are hashed apart."""
    config = {key: value for key, value in task.dump_config().items() if key not in ("dataset_kwargs", "metadata")}
    return of({"config": _plain(config), "version": str(task.VERSION)})


def _plain(value: Any) -> Any:
    """The value as JSON; what JSON does not have, by its name."""
    if isinstance(value, Mapping):
        return {str(key): _plain(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(part) for part in value]
    if value is None or isinstance(value, str | int | float | bool):
        return value
    return getattr(value, "__qualname__", type(value).__qualname__)


@contextmanager
def _own_random_state(seed: int) -> Generator[None]:
    """Tasks that sample do so from `seed`; the process's own streams go on where they were."""
    python, numpy = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=list(range(torch.cuda.device_count()))):
        random.seed(seed)
        np.random.seed(seed)
        torch.manual_seed(seed)
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)
