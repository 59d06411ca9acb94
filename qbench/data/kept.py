"""Data read over the network, kept on this machine: read once, and at hand for every worker and without a network."""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from qbench.results.files import make_folder, write_whole

VERSION = 1  # of what is kept and how it was cut; another version reads again


@dataclass(frozen=True, slots=True, eq=False)
class Kept:
    """Arrays by name, and what is said about them."""

    arrays: Mapping[str, NDArray[Any]]
    said: Mapping[str, str]


def folder() -> Path:
    """`data` in `QBENCH_CACHE`, or in `qbench` in the user's cache folder."""
    default = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "qbench"
    return Path(os.environ.get("QBENCH_CACHE") or default) / "data"


def kept(name: str, read: Callable[[], Kept]) -> Kept:
    """What is kept under `name`, or what `read` gives, which is then kept; a damaged file is read again.

    Raises:
        CannotWrite: the cache cannot be written, known before anything is read.
    """
    path = folder() / f"{sha256(f'{VERSION} {name}'.encode()).hexdigest()[:32]}.safetensors"
    if path.exists():
        try:
            return _load(path)
        except (OSError, SafetensorError):
            path.unlink(missing_ok=True)
    make_folder(path.parent)
    found = read()
    arrays = {key: np.ascontiguousarray(array) for key, array in found.arrays.items()}
    write_whole(path, save(arrays, metadata=dict(found.said)))
    return found


def _load(path: Path) -> Kept:
    with safe_open(path, framework="np") as file:
        arrays = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118  safe_open is no mapping
        said = dict(file.metadata() or {})
    for array in arrays.values():
        array.setflags(write=False)
    return Kept(arrays, said)
