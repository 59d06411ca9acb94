"""Text of a data set by name as a corpus: a row is a document, or a line of one."""

from collections.abc import Iterable
from hashlib import sha256
from itertools import chain

from qbench.data import hub
from qbench.data.kept import Kept, kept
from qbench.data.options import whole
from qbench.data.text import TUNE, BadData, Corpus, Document, Splits, divided, joined

KIND = "hf-text"
OPTIONS = ("config", "split", "column", "rows", "bytes")
FORMS = ("documents", "lines")
BYTES = 100_000_000  # of a split


def asked(name: str) -> hub.Asked:
    """What `name` asks for; BadData where that makes no sense. Reads nothing."""
    found = hub.asked(KIND, name, OPTIONS)
    _most(found)
    if found.options.get("rows", FORMS[0]) not in FORMS:
        raise BadData(f"{found.title}: rows is {' or '.join(FORMS)}, found {found.options['rows']!r}")
    return found


def corpus(name: str) -> Corpus:
    """The text of `owner/name@COMMIT` or a folder, with `?settings`.

    `config` and `split` are the data set's own; `column` is where the text is; `rows=lines` where a row is a line of
    one long text; `bytes` is how much is read of each split. Published splits stay as they are; a missing one is cut
    from train by the rank of the documents' hashes.

    Raises:
        BadData: it cannot be read, or has no text where the name points; one line says what to do.
        CannotWrite: what comes from the hub cannot be kept.
    """
    wanted = asked(name)
    if wanted.local:
        return _read(wanted)
    found = kept(wanted.title, lambda: _packed(_read(wanted)))
    parts = (found.arrays[split] for split in ("train", "tune", "test"))
    return Corpus(wanted.title, found.said["digest"], *parts, detail=found.said["detail"])


def _packed(made: Corpus) -> Kept:
    arrays = {"train": made.train, "tune": made.tune, "test": made.test}
    return Kept(arrays, {"digest": made.digest, "detail": made.detail})


def _most(wanted: hub.Asked) -> int:
    sizes = {key: value for key, value in wanted.options.items() if key == "bytes"}
    return whole(wanted.title, sizes, {"bytes": (1, 2**40)}).get("bytes", BYTES)


def _read(wanted: hub.Asked) -> Corpus:
    most, lines = _most(wanted), wanted.options.get("rows") == "lines"
    splits = {rows.split: rows for rows in hub.published(wanted)}
    places = hub.roles(list(splits))
    read: dict[str, list[Document]] = {}
    notes: list[str] = []
    for split in places:
        read[split], cut = _documents(_texts(wanted, splits[split]), split, (lines, most))
        notes += [f"{split}: the first {most} bytes"] * cut
    notes += _common(read, places)
    every = list(chain.from_iterable(read.values()))
    return joined(wanted.title, _divided(read, places), every, "; ".join(notes))


def _texts(wanted: hub.Asked, rows: hub.Rows) -> Iterable[str]:
    column = wanted.options.get("column", "")
    for row in rows:
        column = column or _only_text(wanted, row)
        value = row.get(column)
        if not isinstance(value, str):
            what = type(value).__name__ if column in row else f"no such column, but {', '.join(row)}"
            raise BadData(f"{wanted.title}: {rows.split}: column {column!r}: expected text, found {what}")
        yield value


def _only_text(wanted: hub.Asked, row: dict[str, object]) -> str:
    """The column called text, or the only one that holds text."""
    found = [name for name, value in row.items() if isinstance(value, str)]
    if "text" in found or len(found) == 1:
        return "text" if "text" in found else found[0]
    raise BadData(f"{wanted.title}: which column is the text? say ?column=NAME; it has {', '.join(row)}")


def _documents(texts: Iterable[str], split: str, how: tuple[bool, int]) -> tuple[list[Document], bool]:
    """Up to so many bytes of documents, and whether there were more."""
    lines, most = how
    contents: list[bytes] = []
    total, cut = 0, False
    for text in texts:
        content = text.encode(errors="replace")
        if total + len(content) > most:
            contents.append(content[: most - total].decode(errors="ignore").encode())  # no half characters
            cut = True
            break
        contents.append(content)
        total += len(content)
    if lines:
        contents = [b"".join(line if line.endswith(b"\n") else line + b"\n" for line in contents)]
    kept_contents = [content for content in contents if content]
    return [Document(f"{split}/{i}", c, sha256(c).digest()) for i, c in enumerate(kept_contents)], cut


def _divided(read: dict[str, list[Document]], places: dict[str, int | None]) -> Splits:
    given = {place: split for split, place in places.items() if place is not None}
    if not given:
        return divided(list(chain.from_iterable(read.values())))
    parts = {place: [document.content for document in read[split]] for place, split in given.items()}
    if 1 in parts:
        return parts[0], parts[1], parts[2]
    train, tune, _ = divided(read[given[0]], TUNE, 100)
    return train, tune, parts[2]


def _common(read: dict[str, list[Document]], places: dict[str, int | None]) -> list[str]:
    """A note of how many documents that were published as tests were published for training too."""
    sides = [{d.digest for d in read[split]} for split, place in places.items() if place == 0]
    tests = [d.digest for split, place in places.items() if place == 2 for d in read[split]]
    both = sum(digest in sides[0] for digest in tests) if sides else 0
    return [f"{both} of {len(tests)} test documents are in train too, as published"] if both else []
