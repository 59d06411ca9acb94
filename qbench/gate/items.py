"""What vectors are of, and that they are what a record says: other items, or other weights, are not compared."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qbench.gate.looks import Problem

HASHES = ("doc_hash", "prompt_hash", "target_hash")
WEIGHT = "/weight"
CLOSE = 1e-6  # records keep nine digits
Vectors = Mapping[str, Any]


def close(a: float, b: float) -> bool:
    """
    >>> close(1.0, 1.0000005), close(0.0, 1e-9), close(1.0, 1.01)
    (True, True, False)
    """
    return abs(a - b) <= max(1e-8, CLOSE * max(abs(a), abs(b)))


def hashes(vectors: Vectors, site: str) -> dict[str, NDArray[Any]]:
    """A digest for each item [N, bytes], by what was hashed; none for windows, which the data's own digest names."""
    named = {kind: next((name for name in (kind, f"{site}/{kind}") if name in vectors), None) for kind in HASHES}
    return {kind: np.asarray(vectors[name]) for kind, name in named.items() if name is not None}


def alike(ours: tuple[Vectors, str], theirs: tuple[Vectors, str], n: int, name: str) -> None:
    """Raises Problem where the `n` items of one side, its vectors with their site, are not those of the other."""
    kinds = [hashes(*ours), hashes(*theirs)]
    for kind in sorted({*kinds[0], *kinds[1]}):
        x, y = (side.get(kind) for side in kinds)
        if x is None or y is None:
            raise Problem(f"{name}: only one side says what its items are ({kind})", missing=True)
        if x.ndim != 2 or len(x) != n or not np.array_equal(x, y):
            raise Problem(f"{name}: the items differ from those of the other side, or stand in another order ({kind})")
    _count_alike(ours[0], theirs[0], n, name)


def _count_alike(ours: Vectors, theirs: Vectors, n: int, name: str) -> None:
    """A candidate that brings its own weights could hide its bad windows behind them."""
    for key in sorted({key for side in (ours, theirs) for key in side if key.endswith(WEIGHT)}):
        if not np.array_equal(ours.get(key, np.ones(n)), theirs.get(key, np.ones(n))):
            metric = key.removesuffix(WEIGHT)
            raise Problem(f"{name}: its windows do not count as those that it is compared with (weights of {metric})")
