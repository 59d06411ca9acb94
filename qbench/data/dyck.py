"""k-Dyck: words of matched brackets of k types. To close the right one is to have kept a stack.

Generator: https://github.com/zlshinnick/procedural-pretraining (arXiv 2601.21725), made again here in whole numbers.
"""

from dataclasses import dataclass
from math import log

import numpy as np
from numpy.typing import NDArray

from qbench.data.integers import below, stream

Rows = NDArray[np.uint8]
Mask = NDArray[np.bool_]

OPEN = 49  # percent: how often a word that may do either opens another bracket
PIECE = 4096  # words made at a time, so that the stacks stay in the processor's cache


@dataclass(frozen=True, slots=True)
class Dyck:
    """Balanced words of `length` brackets; tokens 0 to k - 1 open, k to 2 k - 1 close, 2 k stands before a word.

    A row is that token and the word, so that a model of context `length` predicts all of it. An empty word opens; one
    with as many open brackets as places left closes; any other opens with a chance of 49 %, each type equally often.
    """

    k: int = 64
    length: int = 64

    def __post_init__(self) -> None:
        if not 1 <= self.k <= 127 or self.length < 2 or self.length % 2:
            raise ValueError(f"expected 1 to 127 types and an even length of at least 2, found {self}")

    @property
    def context(self) -> int:
        """What a model reads, and predicts, of a row: all but one token."""
        return self.length

    @property
    def vocabulary(self) -> int:
        return 2 * self.k + 1

    def rows(self, seed: int, count: int) -> Rows:
        """`count` words, uint8 [count, length + 1]; fewer are the first of more."""
        pieces = [self._piece(seed, at, min(PIECE, count - at)) for at in range(0, count, PIECE)]
        return np.concatenate(pieces) if pieces else np.empty((0, self.length + 1), np.uint8)

    def learned(self, rows: Rows) -> Mask:
        """Which predictions a loss is about, bool [N, T]: all."""
        return np.ones((len(rows), self.length), dtype=np.bool_)

    def exact(self, rows: Rows) -> Mask:
        """Which predictions have one right answer, bool [N, T]: the closing brackets.

        Where a bracket is open, to close it is the likeliest next step, so the best guess is right at every one of
        them and a guess without a stack at one in k.
        """
        return rows[:, 1:] >= self.k

    def floor(self, rows: Rows) -> NDArray[np.float64]:
        """Nats per prediction of each row, float64 [N], for whoever knows how words are made: no model does better."""
        word = rows[:, 1:]
        opens = word < self.k
        depth = np.cumsum(np.where(opens, 1, -1), axis=1) - np.where(opens, 1, -1)  # before the token
        left = self.length - np.arange(self.length)
        free = (depth > 0) & (depth < left)
        nats = np.where(opens, log(self.k), 0.0) - np.where(
            free, np.where(opens, log(OPEN / 100), log(1 - OPEN / 100)), 0.0
        )
        return nats.mean(axis=1)

    def _piece(self, seed: int, first: int, count: int) -> Rows:
        draws = stream(seed, first * 2 * self.length, count * 2 * self.length).reshape(count, self.length, 2)
        chance = below(100, draws[:, :, 0].T).astype(np.uint8, order="C")
        types = below(self.k, draws[:, :, 1].T).astype(np.uint8, order="C")
        word = np.full((self.length + 1, count), 2 * self.k, dtype=np.uint8)
        stack = np.zeros((self.length // 2 + 1, count), dtype=np.uint8)
        depth, each = np.zeros(count, dtype=np.int64), np.arange(count)
        for at in range(self.length):
            opens = (depth == 0) | ((chance[at] < OPEN) & (depth < self.length - at))
            closing = stack[depth - 1, each] + np.uint8(self.k)  # of nothing where the word is empty, which opens
            word[at + 1] = np.where(opens, types[at], closing)
            stack[depth, each] = types[at]  # above the top, where it is the new one or nothing
            depth += np.where(opens, 1, -1)
        return np.ascontiguousarray(word.T)
