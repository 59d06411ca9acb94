"""Evidence: the vectors behind a number, one value per window or item, in files named by their content."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load as decode
from safetensors.numpy import save as encode

from qbench.results import digest
from qbench.results.files import make_folder, write_whole

EVIDENCE = "evidence"
_NAME = re.compile(r"[0-9a-f]{16}")

Vector = NDArray[Any]


class BadEvidence(ValueError):
    """An evidence file is missing, or is not what its name says."""


def save(folder: str | Path, vectors: Mapping[str, Vector]) -> str:
    """Store vectors in a run folder; the name, 16 hex digits, goes into `Record.samples`.

    The same vectors have the same name and are stored once. Floats keep their type and every bit, NaN included.
    Raises CannotWrite where the file cannot be stored.
    """
    data = encode({name: np.ascontiguousarray(vector) for name, vector in vectors.items()})
    name = digest.of_bytes(data)[:16]
    path = _path(folder, name)
    make_folder(path.parent)
    if not (path.exists() and path.read_bytes() == data):
        write_whole(path, data)
    return name


def load(folder: str | Path, name: str) -> dict[str, Vector]:
    """The vectors stored under `name`; BadEvidence where they are missing or the content does not match the name."""
    path = _path(folder, name)
    if not path.exists():
        raise BadEvidence(f"{path} is missing; copy the {EVIDENCE} folder along with the records")
    data = path.read_bytes()
    if (found := digest.of_bytes(data)[:16]) != name:
        raise BadEvidence(f"{path} holds other data than was recorded: its digest is {found}")
    try:
        return decode(data)
    except KeyError as error:
        raise BadEvidence(f"{path}: vectors of type {error}, which numpy does not have") from error
    except (SafetensorError, ValueError, TypeError) as error:
        raise BadEvidence(f"{path}: {error}") from error


def _path(folder: str | Path, name: str) -> Path:
    if not _NAME.fullmatch(name):
        raise BadEvidence(f"evidence is named by 16 hex digits, found {name!r}")
    return Path(folder) / EVIDENCE / f"{name}.safetensors"
