"""What the files of a model hold: where its bytes are, and what a treatment of its weights makes of them."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from time import perf_counter

from qbench.capture.families import weight_site
from qbench.capture.place import Matrix
from qbench.models.bytes import Bytes, Part, Stored, parts, table
from qbench.models.finished import finished
from qbench.models.folder import Folder, layout, look
from qbench.quant.quantizer import Quantizer
from qbench.results.record import Record
from qbench.suite.answer import Answer
from qbench.suite.cells import Cell

Matrices = Mapping[str, tuple[Matrix, Quantizer]]


def model_answer(cell: Cell) -> Answer:
    """One record for each kind of tensor, and one for the whole model."""
    start = perf_counter()
    folder = look(cell.sources["model"])
    found = table(_parts(folder), tied=_tied(folder))
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
    records += _formats(cell, folder)
    return Answer(cell, tuple(records), warnings=_said(folder), seconds=perf_counter() - start)


def treated_bytes(source: str | Path, matrices: Matrices) -> Bytes:
    """The bytes of a model whose named weights are stored as their quantizers say."""
    folder = look(source)
    kept = {name for part in _parts(folder) for name in part.matrices()}
    treatment: dict[str, Stored] = {}
    for site, (matrix, quantizer) in matrices.items():
        stored = Stored(quantizer.bits_per_value(matrix.read().shape), quantizer.spec.bits)
        treatment |= dict.fromkeys(_as_kept(site, kept), stored)
    return table(_parts(folder), treatment, tied=_tied(folder))


def _as_kept(site: str, kept: set[str]) -> tuple[str, ...]:
    """The matrices of the files that one of the loaded model is made of: experts' gate and up lie apart in files."""
    if site in kept or not site.endswith(".gate_up"):
        return (site,)
    stem = site.removesuffix("gate_up")
    return (f"{stem}pre", f"{stem}up")


def _parts(folder: Folder) -> list[Part]:
    """Every tensor once; of a checkpoint quantized elsewhere each weight with all that it is decoded from."""

    def site(name: str) -> str | None:
        return weight_site(name, folder.config) or _raw(name)

    stored = layout(folder)
    packed = finished(folder.config, stored)
    weights = packed.weights.values() if packed else ()
    used = {part.name for weight in weights for part in weight.parts.values()}
    plain = parts([tensor for name, tensor in stored.items() if name not in used], site)
    return [*(Part(one.name, one.shape, one.bytes, site(one.name) or "") for one in weights), *plain]


def _formats(cell: Cell, folder: Folder) -> list[Record]:
    """What a checkpoint quantized elsewhere is stored in: one record for each format."""
    packed = finished(folder.config, layout(folder))
    return [
        Record(
            cell=cell.id,
            kind="weight",
            scope="packed",
            quantizer=group.format,
            bits_per_value=group.stored_bits,
            values={"bytes/stored": float(group.bytes), "parameters": float(group.values)},
            n=len(group.weights),
        )
        for group in (packed.groups if packed else ())
    ]


def _said(folder: Folder) -> tuple[str, ...]:
    """What a reader must know about a checkpoint quantized elsewhere."""
    packed = finished(folder.config, layout(folder))
    if packed is None:
        return ()
    inputs = sorted({group.activations for group in packed.groups if group.activations})
    left = f"not quantized: {_some(packed.left)}" if packed.left else ""
    cache = f"its keys and values are {packed.cache} when it runs; here they are not" if packed.cache else ""
    stored = [name for name in inputs if " " in name]  # with a stored scale, which is not applied
    where = "here not" if stored else "and here"
    runs = f"its inputs are {', '.join(inputs)} when it runs, {where}" if inputs else ""
    return tuple(filter(None, (f"quantized elsewhere by {packed.method}", left, runs, cache)))


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _raw(name: str) -> str | None:
    """Of a model whose family nobody knows, weights go by the names of their modules."""
    return name.removesuffix(".weight") if name.endswith(".weight") else None


def _tied(folder: Folder) -> bool:
    return bool(folder.config.get("tie_word_embeddings")) and not any("lm_head" in t.name for t in folder.tensors)
