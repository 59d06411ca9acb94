"""Every text a suite may name. Reading the table loads nothing; loading a text loads NumPy."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePath
from types import MappingProxyType
from typing import TYPE_CHECKING

from qbench import names
from qbench.names import UnknownName, pick

if TYPE_CHECKING:
    from qbench.data.text import Corpus


@dataclass(frozen=True, slots=True)
class Source:
    """One row; a name that ends in PATH stands for all names with a path in its place.

    `load` is given what stands in the place of PATH. Images are loaded by `data.vision`, and train nothing here.
    """

    load: "Callable[[str], Corpus]"
    meaning: str
    images: bool = False


def _stdlib(_: str) -> "Corpus":
    from qbench.data.text import stdlib

    return stdlib()


def _text(path: str) -> "Corpus":
    from qbench.data.text import text

    return text(Path(path))


def _only_judged(_: str) -> "Corpus":
    from qbench.data.text import BadData

    raise BadData("images are for models that are loaded (load: FOLDER); the ones trained here read text")


_ROWS: dict[str, Source] = {
    "stdlib": Source(_stdlib, "the Python standard library's own source, about 10 MB"),
    "stdlib-tune": Source(_stdlib, "another part of it, for calibration"),
    "text:PATH": Source(_text, "a text file, or a folder of text files; a .jsonl file holds a document a line"),
    "digits": Source(_only_judged, "1797 handwritten digits of 8 x 8 pixels, from scikit-learn", images=True),
    "idx:PATH": Source(_only_judged, "images in MNIST's own format", images=True),
    "images:PATH": Source(_only_judged, "a folder of pictures for each class", images=True),
}
SOURCES: Mapping[str, Source] = MappingProxyType(_ROWS)


def add(name: str, row: Source) -> None:
    """Take a row from a plugin; ValueError where the name is taken."""
    names.add(_ROWS, name, row, Source)


def split(name: str) -> tuple[str, str]:
    """The row that `name` belongs to, and the path in it.

    Raises:
        UnknownName: no such row, or no path where one is wanted.

    >>> split("text:notes.txt"), split("stdlib")
    (('text:PATH', 'notes.txt'), ('stdlib', ''))
    >>> split("text")
    Traceback (most recent call last):
    qbench.names.UnknownName: no data 'text'; did you mean 'text:PATH'? known: digits, idx:PATH, images:PATH, stdlib, \
stdlib-tune, text:PATH
    """
    for row in SOURCES:
        stem = row.removesuffix("PATH")
        if stem != row and name.startswith(stem) and name not in (stem, row):
            return row, name.removeprefix(stem)
    pick(SOURCES, name, "data")
    if name.endswith("PATH"):
        raise UnknownName(f"{name!r} names no file; put its path in the place of PATH")
    return name, ""


def load(name: str) -> "Corpus":
    """The corpus called `name`, read from disk.

    Raises:
        UnknownName: no such row.
        BadData: the row is there and its text is not.
    """
    row, path = split(name)
    return SOURCES[row].load(path)


def digest(name: str) -> str:
    """The digest of the corpus called `name`; reads all of it."""
    return load(name).digest


def stored_name(data: str) -> str:
    """A data name without the folders of whoever ran it; the digest says what was in the file.

    >>> stored_name("text:/home/ada/notes.txt"), stored_name("stdlib")
    ('text:notes.txt', 'stdlib')
    """
    kind, colon, path = data.partition(":")
    return f"{kind}{colon}{PurePath(path).name}"
