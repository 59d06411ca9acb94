"""Every text a suite may name. Reading the table loads nothing; loading a text loads NumPy."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePath
from types import MappingProxyType
from typing import TYPE_CHECKING, Literal

from qbench import names
from qbench.names import UnknownName, pick

if TYPE_CHECKING:
    from qbench.data.procedural import Task
    from qbench.data.text import Corpus

Kind = Literal["text", "problems", "images"]

PLACES = ("PATH", "NAME", "SETTINGS")  # what a row may leave open
LOCAL = (".", "/", "~")  # what a folder's name begins with where a name on the hub may stand too
CALIBRATING = "stdlib-tune"  # documents, and no corpus in three splits
ONLY_CALIBRATING = "is what loaded models are calibrated on, a twentieth of stdlib; train on stdlib"


@dataclass(frozen=True, slots=True)
class Source:
    """One row; a name that ends in PATH, NAME or SETTINGS stands for all names with one in its place.

    `load` is given what stands there, and so is `check`, which raises BadData where it makes no sense, without reading
    anything, and `task`, the one that its problems belong to. Images are loaded by `data.vision`.
    """

    load: "Callable[[str], Corpus]"
    meaning: str
    images: bool = False
    check: Callable[[str], object] | None = None
    task: "Callable[[str], Task] | None" = None

    @property
    def kind(self) -> Kind:
        """What a model makes of it: it reads on, solves problems, or names images."""
        if self.images:
            return "images"
        return "text" if self.task is None else "problems"


def _stdlib(_: str) -> "Corpus":
    from qbench.data.text import stdlib

    return stdlib()


def _tune(_: str) -> "Corpus":
    from qbench.data.text import BadData

    raise BadData(f"{CALIBRATING} {ONLY_CALIBRATING}")


def _text(path: str) -> "Corpus":
    from qbench.data.text import text

    return text(Path(path))


def _dyck(settings: str) -> "Corpus":
    from qbench.data.procedural import corpus

    return corpus(f"dyck:{settings}" if settings else "dyck")


def _set(settings: str) -> "Corpus":
    from qbench.data.procedural import corpus

    return corpus(f"set:{settings}" if settings else "set")


def _task(kind: str) -> "Callable[[str], Task]":
    def make(settings: str) -> "Task":
        from qbench.data.procedural import task

        return task(f"{kind}:{settings}" if settings else kind)

    return make


def _hub_text(name: str) -> "Corpus":
    from qbench.data.hub_text import corpus

    return corpus(name)


def _hub_text_name(name: str) -> object:
    from qbench.data.hub_text import asked

    return asked(name)


def _hub_images_name(name: str) -> object:
    from qbench.data.hub_images import asked

    return asked(name)


def _no_text(_: str) -> "Corpus":
    from qbench.data.text import BadData

    raise BadData("images are no text; models that are trained on them have spec: {task: vision}")


_ROWS: dict[str, Source] = {
    "stdlib": Source(_stdlib, "the Python standard library's own source, about 10 MB"),
    CALIBRATING: Source(_tune, "another part of it, for calibration"),
    "text:PATH": Source(_text, "a text file, or a folder of text files; a .jsonl file holds a document a line"),
    "digits": Source(_no_text, "1797 handwritten digits of 8 x 8 pixels, from scikit-learn", images=True),
    "idx:PATH": Source(_no_text, "images in MNIST's own format", images=True),
    "images:PATH": Source(_no_text, "a folder of pictures for each class", images=True),
    "dyck": Source(
        _dyck, "words of matched brackets of 64 types; exact, and the same on every machine", task=_task("dyck")
    ),
    "dyck:SETTINGS": Source(
        _dyck, "others: k, length, sequences, seed, as in dyck:k=8,length=128", check=_task("dyck"), task=_task("dyck")
    ),
    "set": Source(
        _set, "lists, each with its distinct values; exact, and the same on every machine", task=_task("set")
    ),
    "set:SETTINGS": Source(
        _set, "others: values, n, sequences, seed, as in set:values=99,n=64", check=_task("set"), task=_task("set")
    ),
    "hf-text:NAME": Source(
        _hub_text, "text of the Hugging Face hub, owner/name@COMMIT, or ./FOLDER", check=_hub_text_name
    ),
    "hf-images:NAME": Source(
        _no_text, "labelled images of the hub, owner/name@COMMIT, or ./FOLDER", images=True, check=_hub_images_name
    ),
}
SOURCES: Mapping[str, Source] = MappingProxyType(_ROWS)


def add(name: str, row: Source) -> None:
    """Take a row from a plugin; ValueError where the name is taken."""
    names.add(_ROWS, name, row, Source)


def split(name: str) -> tuple[str, str]:
    """The row that `name` belongs to, and the path in it: of a file or folder, nothing else.

    Raises:
        UnknownName: no such row, nothing where a path or a name is wanted, or a setting that is wrong.

    >>> split("text:notes.txt"), split("stdlib"), split("dyck:k=8")
    (('text:PATH', 'notes.txt'), ('stdlib', ''), ('dyck:SETTINGS', ''))
    >>> split("text")
    Traceback (most recent call last):
    qbench.names.UnknownName: no data 'text'; did you mean 'text:PATH'? known: digits, dyck, dyck:SETTINGS, \
hf-images:NAME, hf-text:NAME, idx:PATH, images:PATH, set, set:SETTINGS, stdlib, stdlib-tune, text:PATH
    """
    row, inside = _parts(name)
    if check := SOURCES[row].check:
        try:
            check(inside)
        except ValueError as error:
            raise UnknownName(str(error)) from None
    return row, inside if row.endswith("PATH") else ""


def load(name: str) -> "Corpus":
    """The corpus called `name`, read from disk, fetched or made.

    Raises:
        UnknownName: no such row.
        BadData: the row is there and its text is not.
    """
    row, inside = _parts(name)
    return SOURCES[row].load(inside)


def digest(name: str) -> str:
    """The digest of the corpus called `name`; reads all of it."""
    return load(name).digest


def kind(name: str) -> Kind:
    """What is called `name`, as far as its name says; UnknownName where that is nothing."""
    return SOURCES[_parts(name)[0]].kind


def task(name: str) -> "Task":
    """What the problems called `name` ask. Raises BadData where a setting is wrong, ValueError where it is no task."""
    row, inside = _parts(name)
    make = SOURCES[row].task
    if make is None:
        raise ValueError(f"{name}: {SOURCES[row].kind}, and no problems of a task")
    return make(inside)


def located(name: str, absolute: "Callable[[str], str]") -> str:
    """The same name with the path of a file or folder in it, where there is one, made `absolute`.

    >>> located("text:notes.txt", "/home/{}".format), located("hf-text:./set?split=train", "/home/{}".format)
    ('text:/home/notes.txt', 'hf-text:/home/./set?split=train')
    >>> located("hf-text:owner/name", "/home/{}".format)
    'hf-text:owner/name'
    """
    row, inside = _parts(name)
    path, mark, settings = inside.partition("?") if row.startswith("hf-") else (inside, "", "")
    if row.endswith("PATH") or (row.startswith("hf-") and path.startswith(LOCAL)):
        return f"{_stem(row)}{absolute(path)}{mark}{settings}"
    return name


def stored_name(data: str) -> str:
    """A data name without the folders of whoever ran it; the digest says what was in the file.

    >>> stored_name("text:/home/ada/notes.txt"), stored_name("stdlib")
    ('text:notes.txt', 'stdlib')
    >>> stored_name("hf-text:~/mine/set?split=train"), stored_name("hf-text:owner/name@0123")
    ('hf-text:set?split=train', 'hf-text:owner/name@0123')
    """
    kind, colon, path = data.partition(":")
    if kind.startswith("hf-"):
        source, mark, settings = path.partition("?")
        return f"{kind}{colon}{PurePath(source).name if source.startswith(LOCAL) else source}{mark}{settings}"
    return f"{kind}{colon}{PurePath(path).name}"


def _parts(name: str) -> tuple[str, str]:
    """The row, and what stands in the place that it leaves open."""
    for row in SOURCES:
        stem = _stem(row)
        if stem != row and name.startswith(stem) and name not in (stem, row):
            return row, name.removeprefix(stem)
    pick(SOURCES, name, "data")
    if _stem(name) != name:
        raise UnknownName(f"{name!r} names nothing; put what you mean in the place of {name.rpartition(':')[2]}")
    return name, ""


def _stem(row: str) -> str:
    """Without the place that a row leaves open.

    >>> _stem("text:PATH"), _stem("stdlib")
    ('text:', 'stdlib')
    """
    stem, colon, place = row.rpartition(":")
    return f"{stem}{colon}" if place in PLACES else row
