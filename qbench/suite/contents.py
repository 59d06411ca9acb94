"""What the files of a model hold: where its bytes are, and what a treatment of its weights makes of them."""

from collections.abc import Mapping
from pathlib import Path
from time import perf_counter

from qbench.capture.families import weight_site
from qbench.capture.place import Matrix
from qbench.models.bytes import Bytes, Stored, parts, table
from qbench.models.folder import Folder, look
from qbench.quant.quantizer import Quantizer
from qbench.results.record import Record
from qbench.suite.answer import Answer
from qbench.suite.cells import Cell

Matrices = Mapping[str, tuple[Matrix, Quantizer]]


def model_answer(cell: Cell) -> Answer:
    """One record for each kind of tensor, and one for the whole model."""
    start = perf_counter()
    folder = look(cell.sources["model"])
    found = _bytes(folder, {})
    records = [
        Record(
            cell=cell.id,
            site=row.what,
            scope=row.group,
            values={
                "bytes/stored": row.before,
                "parameters": float(row.parameters),
                "bits_per_parameter": row.bits_before,
                "tied": float(_tied(folder) and row.group == "embedding"),
            },
            n=row.tensors,
        )
        for row in found.rows
    ]
    whole = {
        "bytes/stored": found.before,
        "parameters": float(found.parameters),
        "bits_per_parameter": found.bits_per_parameter,
    }
    records.append(Record(cell=cell.id, values=whole, n=len(folder.tensors)))
    return Answer(cell, tuple(records), seconds=perf_counter() - start)


def treated_bytes(source: str | Path, matrices: Matrices) -> Bytes:
    """The bytes of a model whose named weights are stored as their quantizers say."""
    treatment: dict[str, Stored] = {}
    for site, (matrix, quantizer) in matrices.items():
        treatment[site] = Stored(quantizer.bits_per_value(matrix.read().shape), quantizer.spec.bits)
    return _bytes(look(source), treatment)


def _bytes(folder: Folder, treatment: Mapping[str, Stored]) -> Bytes:
    def site(name: str) -> str | None:
        return weight_site(name, folder.config) or _raw(name)

    return table(parts(folder.tensors, site), treatment, tied=_tied(folder))


def _raw(name: str) -> str | None:
    """Of a model whose family nobody knows, weights go by the names of their modules."""
    return name.removesuffix(".weight") if name.endswith(".weight") else None


def _tied(folder: Folder) -> bool:
    return bool(folder.config.get("tie_word_embeddings")) and not any("lm_head" in t.name for t in folder.tensors)
