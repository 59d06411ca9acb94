"""Text to judge a model on: documents, each with the slice (file, language, kind) its cost is reported under."""

import json
import os
import sysconfig
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from hashlib import sha256
from pathlib import Path
from typing import Any

from qbench.data.catalog import load, split, stored_name
from qbench.data.text import HIDDEN, NOT_LIBRARY, SEPARATOR, TRAIN, TUNE, BadData

SLICE_KEYS = ("slice", "language", "domain", "source")  # of a .jsonl line, the first one that is there
STDLIB = {"stdlib": (TUNE, 101), "stdlib-tune": (TRAIN, TUNE)}  # percent of the files, by name of the data
PACKAGE = 2**15  # bytes from which a package of the standard library is a slice of its own


@dataclass(frozen=True, slots=True)
class Document:
    """One text: its name relative to where it was read, its characters, the slice it belongs to."""

    name: str
    text: str
    slice: str


def documents(source: str | Path) -> tuple[Document, ...]:
    """The documents of a data name (`text:PATH`, `stdlib`, a plugin's), or of a path.

    A file is one document and one slice. In a folder (at any depth, hidden files and empty ones aside) each file is a
    slice. Each line of a .jsonl file is a document {"text": ..., "slice": ...}; the slice may also be called
    "language", "domain" or "source" and is the file's name where there is none. `stdlib` is the test split: what a
    model trained on `stdlib` here has not seen.

    Raises:
        UnknownName: no such data.
        BadData: nothing is there, it is empty, or it is not UTF-8 or JSON.
    """
    if isinstance(source, Path):
        return _of_path(source)
    row, path = split(source)
    if row == "text:PATH":
        return _of_path(Path(path))
    if row in STDLIB:
        return _stdlib(*STDLIB[row])
    tokens, name = load(source).test, stored_name(source)
    if tokens.ndim == 2:
        raise BadData(f"{name}: numbers and no text; it is for models that are trained here")
    pieces = tokens.tobytes().split(SEPARATOR)
    return tuple(Document(f"{name}:{i}", _decoded(piece, name), name) for i, piece in enumerate(pieces) if piece)


def digest(given: Sequence[Document]) -> str:
    """The hash of names, slices and texts, in order.

    >>> digest([Document("a", "b", "")]) == digest([Document("", "ab", "")])
    False
    """
    total = sha256()
    for document in given:
        # Lengths and lists end where JSON says, so that no two sequences share their bytes.
        total.update(json.dumps([document.name, document.slice, document.text]).encode())
    return total.hexdigest()


def _of_path(path: Path) -> tuple[Document, ...]:
    if not path.exists():
        raise BadData(f"{path}: no such file or folder; expected a UTF-8 text file, a .jsonl file or a folder of them")
    files = _files(path, HIDDEN) if path.is_dir() else [(path.name, path)]
    found = tuple(document for name, file in files for document in _of_file(name, file))
    if not found:
        what = f"no text in {len(files)} files" if path.is_dir() else "it is empty"
        raise BadData(f"{path}: {what}; expected text to judge a model on")
    return found


def _of_file(name: str, path: Path) -> Iterator[Document]:
    text = _decoded(_content(path), path)
    if path.suffix == ".jsonl":
        for number, line in enumerate(text.split("\n"), start=1):
            if line.strip():
                yield _of_line(f"{name}:{number}", line, path)
    elif text:
        yield Document(name, text, name)


def _of_line(name: str, line: str, path: Path) -> Document:
    where = f"{path} line {name.rpartition(':')[2]}"
    expected = 'expected one JSON object a line with the key "text"'
    try:
        row: Any = json.loads(line)
    except ValueError as error:
        raise BadData(f"{where}: {error}; {expected}") from error
    text = row.get("text") if isinstance(row, dict) else None
    if not isinstance(text, str) or not text:
        found = f"keys {', '.join(sorted(row))}" if isinstance(row, dict) else type(row).__name__
        raise BadData(f"{where}: found {found}; {expected}, a string that is not empty")
    if any("\ud800" <= letter <= "\udfff" for letter in text):
        raise BadData(f"{where}: half a surrogate pair, which is no character; expected valid Unicode")
    label = next((row[key] for key in SLICE_KEYS if key in row), name.rpartition(":")[0])
    if not isinstance(label, str):
        raise BadData(f"{where}: the slice is a {type(label).__name__}; expected a string")
    return Document(name, text, label)


def _stdlib(start: float, end: float) -> tuple[Document, ...]:
    root = Path(sysconfig.get_path("stdlib"))
    contents = [(name, _content(path)) for name, path in _files(root, NOT_LIBRARY) if path.suffix == ".py"]
    # The same splits as training's, by the rank of the hash of a file's content.
    hashed = [(sha256(content).digest(), name, content) for name, content in contents if content]
    distinct = sorted({key for key, _, _ in hashed})
    percent = {key: 100 * rank / len(distinct) for rank, key in enumerate(distinct)}
    chosen = [Document(n, _decoded(c, n), n.partition("/")[0]) for key, n, c in hashed if start <= percent[key] < end]
    sizes = Counter[str]()
    for document in chosen:
        sizes[document.slice] += len(document.text)
    return tuple(d if _package(d, sizes) else replace(d, slice="stdlib") for d in chosen)


def _package(document: Document, sizes: Counter[str]) -> bool:
    return "/" in document.name and sizes[document.slice] >= PACKAGE


def _files(root: Path, left_out: Sequence[str]) -> list[tuple[str, Path]]:
    """Files at any depth with their names relative to `root`, in an order that no file system decides."""

    def kept(names: Sequence[str]) -> list[str]:
        return [name for name in names if not any(fnmatchcase(name, pattern) for pattern in left_out)]

    found: list[tuple[str, Path]] = []
    for folder, folders, files in os.walk(root):
        folders[:] = kept(folders)
        paths = [Path(folder, name) for name in kept(files)]
        found += [(path.relative_to(root).as_posix(), path) for path in paths]
    return sorted(found)


def _content(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise BadData(f"{path}: {error.strerror or error}; expected a readable text file") from error


def _decoded(content: bytes, where: object) -> str:
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        raise BadData(
            f"{where}: not UTF-8 at byte {error.start} (0x{content[error.start]:02x}); convert it first, for example "
            "`iconv -f latin1 -t utf-8`"
        ) from error
