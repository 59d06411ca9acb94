"""set: a list of values, and the same without repetitions in the order of their first appearance.

Generator: https://github.com/zlshinnick/procedural-pretraining (arXiv 2601.21725), made again here in whole numbers.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from qbench.data.dyck import Mask, Rows
from qbench.data.integers import below, stream


@dataclass(frozen=True, slots=True)
class Distinct:
    """`n` values from 1 to `values`, a separator, the distinct ones of them, and padding to the length of the longest.

    Tokens are the values, `values + 1` for the separator and `values + 2` for the padding.
    """

    values: int = 99
    n: int = 32

    def __post_init__(self) -> None:
        if not 1 <= self.values <= 253 or self.n < 1:
            raise ValueError(f"expected 1 to 253 values and a list of at least one, found {self}")

    @property
    def context(self) -> int:
        """What a model reads, and predicts, of a row: all but one token."""
        return 2 * self.n

    @property
    def vocabulary(self) -> int:
        return self.values + 3

    def rows(self, seed: int, count: int) -> Rows:
        """`count` lists with their answers, uint8 [count, 2 n + 1]; fewer are the first of more."""
        given = (below(self.values, stream(seed, 0, count * self.n)) + np.uint64(1)).astype(np.uint8)
        given = given.reshape(count, self.n)
        rows = np.full((count, 2 * self.n + 1), self.values + 2, dtype=np.uint8)
        rows[:, : self.n], rows[:, self.n] = given, self.values + 1
        seen = np.zeros((count, self.values + 1), dtype=np.bool_)
        ends, each = np.full(count, self.n + 1), np.arange(count)
        for value in given.T:
            new = np.flatnonzero(~seen[each, value])
            seen[new, value[new]] = True
            rows[new, ends[new]] = value[new]
            ends[new] += 1
        return rows

    def learned(self, rows: Rows) -> Mask:
        """Which predictions a loss is about, bool [N, T]: the answer, and where there is room after it that it ends."""
        after = np.arange(1, rows.shape[1]) > self.n
        padding = rows == self.values + 2
        return after & ~(padding[:, 1:] & padding[:, :-1])

    def exact(self, rows: Rows) -> Mask:
        """Which predictions have one right answer, bool [N, T]: the same."""
        return self.learned(rows)

    def floor(self, rows: Rows) -> NDArray[np.float64]:
        """Nats per prediction of each row, float64 [N], for whoever knows the answer: none."""
        return np.zeros(len(rows))
