"""What is wrong with a suite file: each mistake with its place, and all of them at once."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

SHOWN = 50  # mistakes; a file with more of them has one that explains the rest
ENOUGH = 200  # mistakes, after which looking for more only costs time


class Mark(NamedTuple):
    """A place in a file; line 0 means the source as a whole, such as an option of the command line."""

    source: str
    line: int = 0
    column: int = 0

    def __str__(self) -> str:
        return f"{self.source}:{self.line}:{self.column}" if self.line else self.source


@dataclass(frozen=True, slots=True, order=True)
class Mistake:
    """`text` says what was found and what is allowed; `path` is the dotted key, empty where there is none."""

    mark: Mark
    path: str
    text: str

    def __str__(self) -> str:
        return ": ".join(part for part in (str(self.mark), self.path, self.text) if part)


class BadSuite(ValueError):
    """The suite cannot be run as written; its text is one mistake a line, in the order of the file."""

    def __init__(self, mistakes: Iterable[Mistake]) -> None:
        self.mistakes = tuple(sorted(set(mistakes)))
        lines = [str(mistake) for mistake in self.mistakes[:SHOWN]]
        left = len(self.mistakes) - SHOWN
        super().__init__("\n".join([*lines, f"and {left} more"] if left > 0 else lines))
