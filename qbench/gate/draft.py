"""A run as a draft that may be changed and written again: what the self-test forges evidence with."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qbench.gate.items import WEIGHT
from qbench.gate.source import Source
from qbench.results import evidence
from qbench.results.files import make_folder, write_whole
from qbench.results.lines import RECORDS, encode
from qbench.results.origin import MANIFEST
from qbench.results.record import Attempt, Closing, Record

Vectors = dict[str, NDArray[Any]]


@dataclass
class Cell:
    """A cell with the vectors behind its records, by the name that the records give them."""

    closing: Closing
    records: list[Record]
    vectors: dict[str, Vectors] = field(default_factory=dict[str, Vectors])

    @property
    def what(self) -> str:
        return str(self.closing.spec["measurement"]["what"])

    def respec(self, **parts: Any) -> None:
        self.closing = replace(self.closing, spec={**self.closing.spec, **parts})

    def reseal(self, changed: Callable[[Vectors], Vectors]) -> None:
        """Change the vectors, and have the records say what they now say: nothing but the evidence itself is wrong."""
        self.vectors = {name: changed(dict(vectors)) for name, vectors in self.vectors.items()}
        self.records = [_resealed(record, self.vectors.get(record.samples, {})) for record in self.records]


@dataclass
class Draft:
    """Cells in order, and the manifest's last session."""

    cells: list[Cell]
    session: dict[str, Any]

    def write(self, folder: Path) -> Path:
        """The run, as `qbench run` would have stored it."""
        make_folder(folder)
        lines: list[bytes] = []
        for cell in self.cells:
            names = {old: evidence.save(folder, vectors) for old, vectors in cell.vectors.items()}
            records = [replace(one, samples=names.get(one.samples, one.samples)) for one in cell.records]
            lines.append(encode(replace(cell.closing, records=len(records)), records))
        write_whole(folder / RECORDS, b"".join(lines))
        manifest = {"schema": 1, "sessions": [self.session]}
        write_whole(folder / MANIFEST, json.dumps(manifest).encode())
        return folder


def draft(source: Source) -> Draft:
    """A copy of what a gate reads of a run. Raises BadEvidence where its vectors cannot be read."""
    return Draft([_cell(source, one) for one in source.run.cells.values()], dict(source.run.session))


def _cell(source: Source, attempt: Attempt) -> Cell:
    names = {record.samples for record in attempt.records if record.samples}
    return Cell(attempt.closing, list(attempt.records), {name: source.run.evidence(name) for name in names})


def _resealed(record: Record, vectors: Mapping[str, NDArray[Any]]) -> Record:
    if not vectors or record.slice:
        return record
    means: dict[str, float] = {}
    for name, vector in vectors.items():
        key = name.removeprefix(f"{record.site}/") if record.site else name
        if key in record.values and vector.ndim == 1 and np.isfinite(vector).all() and vector.size:
            means[key] = float(np.average(vector, weights=vectors.get(f"{name}{WEIGHT}")))
    n = len(next(iter(vectors.values())))
    if "loss_increase" in vectors and n > 1 and np.isfinite(vectors["loss_increase"]).all():
        means["floor/window"] = float(vectors["loss_increase"].std(ddof=1) / n**0.5)
    return replace(record, values={**record.values, **means}, intervals={}, n=n)
