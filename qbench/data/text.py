"""Text as bytes: the standard library's own source, or files of yours, split into train, tune and test.

Three splits, because a learning rate chosen on the test split has seen it. Nothing is downloaded and nothing is
tokenized: a token is a byte. A NUL byte, which no text contains, stands between documents.
"""

import os
import platform
import sysconfig
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from hashlib import sha256
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Tokens = NDArray[np.integer[Any]]  # [N], or rows [N, T + 1] that are a window each
Splits = tuple[list[bytes], list[bytes], list[bytes]]

SEPARATOR = b"\0"
TRAIN, TUNE = 90, 95  # percent: up to the first is train, from there to the second tune, the rest test
SHORTEST = 2  # bytes of a split
FEWEST = 20  # with fewer files than this a split by file could come out empty
HIDDEN = (".*",)
# Tests are not what the library is, tables are not text, and the build's own records differ between machines.
NOT_LIBRARY = (
    *("__pycache__", "encodings", "idle_test", "site-packages", "dist-packages", "test", "tests"),
    *("config-*", "_sysconfigdata*"),
)


class BadData(ValueError):
    """There is no usable text where the name points."""


@dataclass(frozen=True, slots=True, eq=False)
class Corpus:
    """Three read-only arrays of byte tokens, and the digest of everything they were made from.

    Of text they are one after the other, [N], and a window starts anywhere. Of a procedural task each row is a whole
    problem, [N, T + 1], and a window of its own.
    """

    name: str
    digest: str
    train: Tokens
    tune: Tokens
    test: Tokens
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Document:
    """One file: its name relative to the corpus, its bytes, their hash."""

    name: str
    content: bytes
    digest: bytes


def stdlib() -> Corpus:
    """The Python standard library's source, about 10 MB of .py files; the digest changes with the Python release."""
    root = Path(sysconfig.get_path("stdlib"))
    documents = _read(root, (path for path in _walk(root, NOT_LIBRARY) if path.suffix == ".py"))
    return joined("stdlib", by_content(documents), documents, f"Python {platform.python_version()}")


def text(path: Path) -> Corpus:
    """A file, or a folder of files at any depth (hidden ones aside), whatever their encoding.

    Each file is a document; of a .jsonl file each line is one, its key "text". At least 20 different ones are split by
    the rank of their content's hash, so that identical ones never fall on both sides. Fewer are each cut after 90 % and
    95 % of their bytes, at line ends.

    Raises:
        BadData: nothing is there, it is empty, cannot be read, or leaves a split empty.
    """
    if not path.exists():
        raise BadData(f"{path}: no such file or folder; expected a text file or a folder of text files")
    files = _read(path, _walk(path, HIDDEN) if path.is_dir() else [path])
    documents = [one for file in files for one in _within(file, path / file.name if path.is_dir() else path)]
    # The name stored with results says which text it was, not where on this machine it lies.
    return joined(f"text:{path.resolve().name}", divided(documents), documents)


def unigram_entropy(split: Tokens) -> float:
    """Entropy, in nats per token, of the split's own token frequencies: the loss of the best context-free guess.

    >>> round(unigram_entropy(np.frombuffer(b"abab", np.uint8)), 4)  # log 2
    0.6931
    """
    if not len(split):
        raise BadData("an empty split has no token frequencies")
    counts = np.bincount(split.ravel())
    shares = counts[counts > 0] / split.size
    return float(-(shares * np.log(shares)).sum())


def available(tokens: Tokens, context: int) -> int:
    """How many different windows of `context` predictions there are.

    Raises:
        BadData: none, or the rows of `tokens` are no windows of this context.
    """
    if context < 1:
        raise ValueError(f"a window needs a context of at least 1 token, found {context}")
    if tokens.ndim == 2:
        if tokens.shape[1] != context + 1:
            raise BadData(
                f"this task's problems are for a context of {tokens.shape[1] - 1}, and the model's is {context}: "
                "give the model that context, or the data another length"
            )
        return len(tokens)
    if len(tokens) <= context:
        raise BadData(
            f"this split has {len(tokens)} tokens; a window of context {context} needs {context + 1}: "
            "give more text or a shorter context"
        )
    return len(tokens) - context


def _walk(root: Path, left_out: Sequence[str]) -> Iterator[Path]:
    def kept(names: Sequence[str]) -> list[str]:
        return [name for name in names if not any(fnmatchcase(name, pattern) for pattern in left_out)]

    for folder, folders, files in os.walk(root):
        folders[:] = kept(folders)
        yield from (Path(folder, name) for name in kept(files))


def _read(root: Path, paths: Iterable[Path]) -> list[Document]:
    """The files that are not empty, sorted by name so that the order does not depend on the file system."""
    named = sorted((path.relative_to(root).as_posix(), path) for path in paths)
    try:
        contents = [(name, path.read_bytes()) for name, path in named]
    except OSError as error:
        raise BadData(f"{error.filename}: {error.strerror}; expected a readable text file") from error
    documents = [Document(name, content, sha256(content).digest()) for name, content in contents if content]
    if not documents:
        raise BadData(f"{root}: nothing to read in {len(named)} files; expected text that is not empty")
    return documents


def _within(file: Document, path: Path) -> Iterator[Document]:
    """The documents that a file holds."""
    if path.suffix != ".jsonl":
        yield file
        return
    from qbench.data.documents import documents

    for one in documents(path):
        content = one.text.encode()
        yield Document(f"{file.name}:{one.name.rpartition(':')[2]}", content, sha256(content).digest())


def places(hashes: Sequence[bytes], train: int, tune: int) -> NDArray[np.int8]:
    """0 train, 1 tune, 2 test by the rank of each hash, below `train` and `tune` percent: equal ones go to one side."""
    distinct = sorted(set(hashes))
    percent = {each: 100 * rank / len(distinct) for rank, each in enumerate(distinct)}
    return np.array([(percent[each] >= train) + (percent[each] >= tune) for each in hashes], dtype=np.int8)


def divided(documents: Sequence[Document], train: int = TRAIN, tune: int = TUNE) -> Splits:
    """By content where at least 20 documents differ, else each cut at line ends after so many percent of its bytes."""
    distinct = len({document.digest for document in documents})
    return (by_content if distinct >= FEWEST else _by_position)(documents, train, tune)


def by_content(documents: Sequence[Document], train: int = TRAIN, tune: int = TUNE) -> Splits:
    """The same content never falls on two sides; the splits' shares end at `train` and `tune` percent."""
    splits: Splits = ([], [], [])
    found = places([document.digest for document in documents], train, tune)
    for document, place in zip(documents, found.tolist(), strict=True):
        splits[place].append(document.content)
    return splits


def _by_position(documents: Sequence[Document], train: int, tune: int) -> Splits:
    splits: Splits = ([], [], [])
    for document in documents:
        content = document.content
        cuts = [0, *(_line_end(content, len(content) * share // 100) for share in (train, tune)), len(content)]
        for split, (start, end) in zip(splits, pairwise(cuts), strict=True):
            split.append(content[start:end])
    return splits


def _line_end(content: bytes, position: int) -> int:
    """The last line end within one percent before `position`, or `position` where the lines are longer than that."""
    return content.rfind(b"\n", position - len(content) // 100, position) + 1 or position


def joined(name: str, splits: Splits, documents: Sequence[Document], detail: str = "") -> Corpus:
    """The corpus of three lists of documents, and the digest of them all; BadData where a split comes out empty."""
    digest = sha256()
    for document in documents:
        digest.update(f"{document.name}\0".encode(errors="surrogateescape") + document.digest)
    train, tune, test = (np.frombuffer(SEPARATOR.join(filter(None, split)), np.uint8) for split in splits)
    for split, tokens in (("train", train), ("tune", tune), ("test", test)):
        if len(tokens) < SHORTEST:
            raise BadData(
                f"{name}: its {split} split has {len(tokens)} bytes; expected at least {SHORTEST}, a token and the "
                "next: give more text, of which 90, 5 and 5 % go to train, tune and test"
            )
    return Corpus(name, digest.hexdigest(), train, tune, test, detail)
