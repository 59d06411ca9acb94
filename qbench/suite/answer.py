"""How one cell ended, and what it was measured on."""

from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any

import numpy as np
from torch import Tensor

from qbench.capture.places import NoScope
from qbench.capture.sites import of, resolve
from qbench.models.spec import ModelSpec
from qbench.models.transformer import Transformer
from qbench.quant.vendor import CannotRun
from qbench.results.record import Record, Status
from qbench.suite.cells import Cell
from qbench.suite.prepare import Log
from qbench.suite.reader import Reader
from qbench.train.trainer import Batch, pair

CHANNEL_AXIS = {"weight": 0}  # a channel of a matrix [out, in] is an output; of an activation, the last axis

# What data, memory and numbers can do wrong. Anything else is a fault of the program: it ends the worker, with its log.
FAULTS = (RuntimeError, ValueError, ArithmeticError, LookupError, OSError, MemoryError)


@dataclass(frozen=True, slots=True)
class Answer:
    """How one cell ended; `vectors` are the per-window samples behind the records."""

    cell: Cell
    records: tuple[Record, ...] = ()
    status: Status = "measured"
    error: str = ""
    warnings: tuple[str, ...] = ()
    seconds: float = 0.0
    vectors: Mapping[str, np.ndarray] = field(default_factory=dict[str, np.ndarray])


@dataclass(frozen=True, slots=True)
class Subject:
    """A trained model with what it reads."""

    model: Transformer
    spec: ModelSpec
    reader: Reader
    device: str

    def batches(self, split: str, n: int) -> list[Batch]:
        """`n` pieces of a split, as many at once as tensors are recorded of: what `reader.scoring` takes."""
        return [_on(batch, self.device) for batch in self.reader.batches(split, n)]

    def inputs(self, split: str, n: int) -> list[Tensor]:
        """What the model reads of these batches."""
        return [pair(batch)[0] for batch in self.batches(split, n)]

    def resolve(self, pattern: str, kind: str) -> tuple[str, ...]:
        return resolve(pattern, kind, of(self.spec))  # pyright: ignore[reportArgumentType]


def _on(batch: Batch, device: str) -> Batch:
    return batch.to(device) if isinstance(batch, Tensor) else (batch[0].to(device), batch[1].to(device))


# What no model of this kind, and no machine of this kind, can be asked: it is not tried again.
UNSUPPORTED = (NoScope, CannotRun)


def failed(cell: Cell, error: Exception, seconds: float = 0.0) -> Answer:
    if isinstance(error, UNSUPPORTED):
        return Answer(cell, status="unsupported", error=str(error), seconds=seconds)
    return Answer(cell, status="failed", error=f"{type(error).__name__}: {error}", seconds=seconds)


def attempt(cells: Sequence[Cell], answer: Callable[[], Iterable[Answer]]) -> Generator[Answer, None, None]:
    """The answers of `answer`, or one failed answer for each cell it did not get to: one bad cell costs no other."""
    start = perf_counter()
    missing = {cell.id: cell for cell in cells}
    try:
        for done in answer():
            missing.pop(done.cell.id)
            yield done
    except FAULTS as error:
        for cell in missing.values():
            yield failed(cell, error, perf_counter() - start)


def together(
    cells: Sequence[Cell], answer: Callable[[Sequence[Cell]], Iterable[Answer]]
) -> Generator[Answer, None, None]:
    """The answers of `answer` to all cells at once; where that fails, to halves of those it failed, down to each alone:
    sharing a pass costs no cell that would succeed by itself.
    """
    again: list[Cell] = []
    for done in attempt(cells, lambda: answer(cells)):
        if done.status == "failed" and len(cells) > 1:
            again.append(done.cell)
        else:
            yield done
    half = len(again) // 2
    for part in filter(None, (again[:half], again[half:])):
        yield from together(part, answer)


def training_answer(cell: Cell, log: Log, seconds: float) -> Answer:
    """The training log as records; a run that learned nothing is measured, and says so."""
    *rows, summary = log
    records = [
        Record(
            cell=cell.id,
            step=row["step"],
            site=row.get("site", ""),
            kind="activation" if "site" in row else "",
            values=row["values"],
        )
        for row in rows
    ]
    records.append(Record(cell=cell.id, values=summary["values"]))
    return Answer(cell, tuple(records), warnings=_warnings(summary), seconds=seconds)


def trial_answer(cell: Cell, log: Log, seconds: float) -> Answer:
    """How well a learning rate does on the tuning split; one that diverged has no loss."""
    summary = log[-1]
    loss = {} if summary["status"] == "diverged" else {"loss": summary["values"]["loss"]}
    record = Record(cell=cell.id, values={"lr": float((cell.training or {})["lr"]), **loss})
    return Answer(cell, (record,), warnings=_warnings(summary), seconds=seconds)


def _warnings(summary: Mapping[str, Any]) -> tuple[str, ...]:
    least = summary.get("least", "byte frequencies")
    known = {"stuck": f"stuck at unigram: the model learned little but {least}", "diverged": "diverged"}
    status = (known[summary["status"]],) if summary["status"] in known else ()
    return (*status, *summary.get("warnings", ()))


def single(assign: Mapping[str, str]) -> tuple[str, str]:
    """Kind and quantizer of a treatment with one entry; several kinds have no one name."""
    if len(assign) != 1:
        return "", ""
    ((key, quantizer),) = assign.items()
    return key.partition(":")[0], quantizer
