"""Every text a suite may name."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from qbench import names
from qbench.data.text import BadData, Corpus, stdlib, text
from qbench.names import pick


@dataclass(frozen=True, slots=True)
class Source:
    """One row; a name that ends in PATH stands for all names with a path in its place."""

    load: Callable[[str], Corpus]  # given what stands in the place of PATH
    meaning: str


_ROWS: dict[str, Source] = {
    "stdlib": Source(lambda _: stdlib(), "the Python standard library's own source, about 10 MB"),
    "text:PATH": Source(lambda path: text(Path(path)), "a text file, or a folder of text files"),
}

SOURCES: Mapping[str, Source] = MappingProxyType(_ROWS)


def add(name: str, row: Source) -> None:
    """Take a row from a plugin; ValueError where the name is taken."""
    names.add(_ROWS, name, row, Source)


def load(name: str) -> Corpus:
    """The corpus called `name`, read from disk.

    Raises:
        UnknownName: no such row.
        BadData: the row is there and its text is not.

    >>> load("text")
    Traceback (most recent call last):
    qbench.names.UnknownName: no data 'text'; did you mean 'text:PATH'? known: stdlib, text:PATH
    """
    for row, source in SOURCES.items():
        stem = row.removesuffix("PATH")
        if stem != row and name.startswith(stem):
            if name == stem:
                raise BadData(f"{name!r} names no file; expected {row}, as in {stem}notes.txt")
            return source.load(name.removeprefix(stem))
    return pick(SOURCES, name, "data").load("")


def digest(name: str) -> str:
    """The digest of the corpus called `name`; reads all of it."""
    return load(name).digest
