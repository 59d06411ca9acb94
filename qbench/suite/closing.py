"""How a cell is closed: what a worker answered, or why it did not, becomes lines of the store."""

from dataclasses import replace
from pathlib import Path

import numpy as np

from qbench.results import evidence
from qbench.results.record import Closing, Record
from qbench.results.store import Store
from qbench.suite.cells import Cell
from qbench.suite.engine import Message


def answered(store: Store, out: Path, cell: Cell, message: Message) -> Closing:
    """Keep the records and the evidence of an answer. Raises CannotWrite."""
    body = message.body
    samples = ""
    if body["vectors"]:
        samples = evidence.save(out, {name: np.asarray(vector) for name, vector in body["vectors"].items()})
    records = [replace(Record(**raw), samples=samples) for raw in body["records"]]
    closing = Closing(
        cell=cell.id,
        question=cell.question_id,
        status=body["status"],
        spec=cell.spec(),
        seconds=round(body["seconds"], 4),
        error=body["error"],
        log=message.log if body["status"] == "failed" else (),
        warnings=tuple(body["warnings"]),
    )
    store.append(closing, records)
    return closing


def failed(store: Store, cell: Cell, reason: str, log: tuple[str, ...]) -> Closing:
    """Keep that a worker ended without an answer. Raises CannotWrite."""
    closing = Closing(cell=cell.id, question=cell.question_id, status="failed", spec=cell.spec(), error=reason, log=log)
    store.append(closing, [])
    return closing
