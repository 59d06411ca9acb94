"""How one cell ended, and what it was measured on."""

from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from time import perf_counter

import numpy as np
from torch import Tensor

from qbench.capture.places import NoScope
from qbench.capture.sites import own, resolve
from qbench.data.text import Corpus
from qbench.data.windows import evaluation_windows
from qbench.models.spec import ModelSpec
from qbench.models.transformer import Transformer
from qbench.quant.vendor import CannotRun
from qbench.results.record import Record, Status
from qbench.suite.cells import Cell
from qbench.suite.prepare import Log

CHANNEL_AXIS = {"weight": 0}  # a channel of a matrix [out, in] is an output; of an activation, the last axis

# What data, memory and numbers can do wrong. Anything else is a fault of the program: it ends the worker, with its log.
FAULTS = (RuntimeError, ValueError, ArithmeticError, LookupError, OSError)


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
    """A trained model with what it is measured on."""

    model: Transformer
    spec: ModelSpec
    corpus: Corpus
    device: str

    def windows(self, split: str, n: int) -> Tensor:
        return evaluation_windows(getattr(self.corpus, split), self.spec.context, n)

    def resolve(self, pattern: str, kind: str) -> tuple[str, ...]:
        return resolve(pattern, kind, own(self.spec.wiring, self.spec.layers))


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
    warning = {"stuck": "stuck at unigram: the model learned little but byte frequencies", "diverged": "diverged"}
    warnings = (warning[summary["status"]],) if summary["status"] in warning else ()
    return Answer(cell, tuple(records), warnings=warnings, seconds=seconds)


def single(assign: Mapping[str, str]) -> tuple[str, str]:
    """Kind and quantizer of a treatment with one entry; several kinds have no one name."""
    if len(assign) != 1:
        return "", ""
    ((key, quantizer),) = assign.items()
    return key.partition(":")[0], quantizer
