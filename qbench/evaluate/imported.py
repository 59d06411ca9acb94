"""Somebody else's measurements as cells and records, so that they can be compared and gated like our own."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qbench.results import digest, evidence, origin
from qbench.results.private import scrub
from qbench.results.record import Closing, Record
from qbench.results.store import Store

SUITE = "imported"
ARCH = "pretrained"
DIGITS = 16
PLAIN: Mapping[str, Any] = {"name": "unquantized", "scope": "", "assign": {}}


class BadSamples(ValueError):
    """A file of somebody's measurements is not what it should be; one line for each mistake."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Imported:
    """One cell from elsewhere: whose numbers, of what, and what they are.

    `model` has at least a name, `measurement` at least what it is; `runtime` says what measured it. `records` have no
    cell yet; `vectors` are the evidence behind those that count samples, none where only summaries are known.
    """

    model: Mapping[str, Any]
    data: Mapping[str, str]
    measurement: Mapping[str, Any]
    runtime: str
    records: Sequence[Record]
    vectors: Mapping[str, NDArray[Any]] = field(default_factory=dict[str, NDArray[Any]])
    device: str = ""
    warnings: tuple[str, ...] = ()

    def spec(self) -> dict[str, Any]:
        """As the cells of our own runs have it; what was quantized belongs to the model."""
        return {
            "suite": SUITE,
            "version": 1,
            "arm": str(self.model["name"]),
            "model": {"arch": ARCH, **self.model},
            "training": None,
            "seed": 0,
            "data": dict(self.data),
            "device": self.device,
            "runtime": self.runtime,
            "measurement": dict(self.measurement),
            "revisions": {},
        }

    @property
    def question(self) -> str:
        """The same for whatever model, runtime and device: equal ids may be compared."""
        asked = {"data": dict(self.data), "measurement": dict(self.measurement)}
        return digest.of(asked)[:DIGITS]


def store(found: Sequence[Imported], folder: str | Path) -> list[str]:
    """Add cells to the run in `folder`, created where missing, and return their ids.

    Raises what `Store.open` and `Store.append` raise, and ValueError for no cells.
    """
    if not found:
        raise ValueError("nothing to import")
    folder = Path(folder)
    before = origin.read(folder)["sessions"]
    ids = [digest.of(one.spec())[:DIGITS] for one in found]
    known: list[str] = before[-1].get("asked", []) if before else []
    asked = [*known, *(one for one in ids if one not in known)]
    runtimes = sorted({one.runtime for one in found})
    with Store.open(folder) as opened:
        began = origin.begin(folder, origin.Asked(suite="", cells=asked, options={"imported": runtimes}, device=""))
        for cell, one in zip(ids, found, strict=True):
            name = evidence.save(folder, one.vectors) if one.vectors else ""
            records = [replace(record, cell=cell, samples=name) for record in one.records]
            closing = Closing(
                cell=cell, question=one.question, status="measured", spec=one.spec(), warnings=one.warnings
            )
            opened.append(closing, records)
        origin.finish(folder, began, {"measured": len(ids)})
    return ids


def public(name: str) -> str:
    """A name that may be stored: the last part of a path, without anybody's names."""
    return scrub(Path(name).name or name if "/" in name[:1] or "\\" in name else name)


def hashed(ids: Sequence[str]) -> NDArray[np.uint8]:
    """The ids of items as evidence: SHA-256, uint8 [N, 32]."""
    return np.frombuffer(b"".join(sha256(one.encode()).digest() for one in ids), np.uint8).reshape(len(ids), 32)
