"""Tasks that are computed, not read: no download, exact answers, and the same on every machine to the bit.

A data name such as `dyck:k=8,length=128` makes a corpus whose splits are rows [N, T + 1], a whole problem each: a
model's context is T. What a loss is about, and how many answers are right, is in `exact.py`.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from hashlib import sha256
from types import MappingProxyType
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from qbench.data.distinct import Distinct
from qbench.data.dyck import Dyck
from qbench.data.options import settings, whole
from qbench.data.text import TRAIN, TUNE, BadData, Corpus, places

Rows = NDArray[np.uint8]
FEWEST = 20  # different problems: with fewer, a split could come out empty
SHARED = {"sequences": (FEWEST, 2**24), "seed": (0, 2**32 - 1)}
SEQUENCES = 2**16


class Task(Protocol):
    """What a procedural task is: rows of tokens, and which predictions of them mean what."""

    @property
    def context(self) -> int: ...
    @property
    def vocabulary(self) -> int: ...
    def rows(self, seed: int, count: int) -> Rows: ...
    def learned(self, rows: Rows) -> NDArray[np.bool_]: ...
    def exact(self, rows: Rows) -> NDArray[np.bool_]: ...
    def floor(self, rows: Rows) -> NDArray[np.float64]: ...


@dataclass(frozen=True, slots=True)
class Kind:
    """One row of the table: how a task is made of its settings, and the bounds of those."""

    make: Callable[..., Task]
    bounds: Mapping[str, tuple[int, int]]


KINDS: Mapping[str, Kind] = MappingProxyType(
    {
        "dyck": Kind(Dyck, {"k": (1, 127), "length": (2, 2**16)}),
        "set": Kind(Distinct, {"values": (1, 253), "n": (1, 2**15)}),
    }
)


def task(name: str) -> Task:
    """The task of a data name; BadData where a setting is wrong, or the name is none of a task."""
    return _read(name)[0]


def corpus(name: str) -> Corpus:
    """The problems of `name` without repetitions, split by the rank of their content's hash; nothing is kept on disk.

    Raises:
        BadData: a setting is wrong, or there are fewer than 20 different problems.
    """
    made, given = _read(name)
    rows = made.rows(given["seed"], given["sequences"])
    first: dict[bytes, int] = {}
    for number, row in enumerate(rows):
        first.setdefault(sha256(row).digest(), number)
    if len(first) < FEWEST:
        raise BadData(f"{name}: only {len(first)} different sequences; expected at least {FEWEST}: make them longer")
    rows, place = rows[list(first.values())], places(list(first), TRAIN, TUNE)
    parts = [np.ascontiguousarray(rows[place == split]) for split in range(3)]
    digest = sha256(f"{made.vocabulary} {[part.shape for part in parts]}".encode())
    for part in parts:
        digest.update(part.tobytes())
        part.setflags(write=False)
    return Corpus(name, digest.hexdigest(), *parts, detail=f"{len(rows)} different sequences")


def _read(name: str) -> tuple[Task, dict[str, int]]:
    kind, _, text = name.partition(":")
    if kind not in KINDS:
        raise BadData(f"{name}: no procedural task; known: {', '.join(KINDS)}")
    bounds = {**KINDS[kind].bounds, **SHARED}
    given: dict[str, int] = {"sequences": SEQUENCES, "seed": 0}
    given |= whole(name, settings(name, text, bounds), bounds)
    own: dict[str, Any] = {key: given[key] for key in KINDS[kind].bounds if key in given}
    try:
        return KINDS[kind].make(**own), given
    except ValueError as error:
        raise BadData(f"{name}: {error}") from None
