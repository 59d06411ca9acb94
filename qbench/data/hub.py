"""Data sets by name, from the Hugging Face hub or a folder in a format that its `datasets` library reads.

A name is SOURCE@COMMIT?key=value&key=value, as in `owner/name@0123...?config=en&column=text`. A folder starts with
`.`, `/` or `~` and has no commit. What comes from the hub is streamed, and kept on this machine under its name.
"""

import re
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

from qbench.data.catalog import LOCAL
from qbench.data.options import settings
from qbench.data.text import BadData

NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
COMMIT = re.compile(r"[0-9a-f]{40}")
VALIDATION = ("validation", "valid", "val", "dev")  # what published splits for choosing are called


@dataclass(frozen=True, slots=True)
class Asked:
    """What a name asks for; `kind` is the part of the data name in front of it, for what mistakes say."""

    kind: str
    source: str
    commit: str
    options: Mapping[str, str] = field(default_factory=dict[str, str])

    @property
    def local(self) -> bool:
        return self.source.startswith(LOCAL)

    @property
    def title(self) -> str:
        """The name without the folders of whoever ran it: what results keep."""
        source = Path(self.source).expanduser().resolve().name if self.local else f"{self.source}@{self.commit}"
        options = "&".join(f"{key}={value}" for key, value in self.options.items())
        return f"{self.kind}:{source}{'?' if options else ''}{options}"


@dataclass(frozen=True, slots=True, eq=False)
class Rows:
    """The rows of one published split, in order; `features` by column, None where only the rows tell."""

    split: str
    features: Mapping[str, Any] | None
    stream: Any

    def __iter__(self) -> Iterator[dict[str, Any]]:
        with _broken(self.split):
            yield from self.stream


def asked(kind: str, name: str, known: Sequence[str]) -> Asked:
    """What `name` asks for, with settings that are `known`; looks at nothing but the name.

    Raises:
        BadData: it is no folder and no name on the hub, or a name without its commit, or a setting is wrong.

    >>> asked("hf-text", f"owner/name@{'0' * 40}?column=body", ["column"]).options
    {'column': 'body'}
    """
    whole, _, text = name.partition("?")
    source, _, commit = whole.partition("@") if not whole.startswith(LOCAL) else (whole, "", "")
    found = Asked(kind, source, commit, settings(f"{kind}:{whole}", text, known, "&"))
    if found.local:
        return found
    if not NAME.fullmatch(source):
        raise BadData(
            f"{kind}:{whole}: expected owner/name@COMMIT on the hub, or a folder such as ./{source or 'data'}"
        )
    if not COMMIT.fullmatch(commit):
        raise BadData(
            f"{kind}:{whole}: pin the revision, {kind}:{source}@COMMIT with the 40 hex digits of a commit from "
            f"huggingface.co/datasets/{source}/commits/main, found {commit or 'none'}"
        )
    return found


def published(wanted: Asked) -> list[Rows]:
    """The splits of a data set as they were published, each a stream; nothing is read yet but what there is.

    Raises:
        BadData: it is not there, the hub is out of reach, or it has no such configuration or split.
        ImportError: `datasets` is not installed; says how.
    """
    library = _library()
    if wanted.local:
        source = Path(wanted.source).expanduser()
        if not source.exists():
            raise BadData(f"{wanted.kind}:{wanted.source}: no such folder; expected one that `datasets` reads")
        at = {}
    else:
        source, at = wanted.source, {"revision": wanted.commit}
        _reach(wanted)
    with _broken(wanted.title):
        found = library.load_dataset(str(source), wanted.options.get("config"), streaming=True, **at)
    split = wanted.options.get("split")
    if split is not None and split not in found:
        raise BadData(f"{wanted.title}: no split {split!r}; it has {', '.join(map(str, found))}")
    return [Rows(str(name), rows.features, rows) for name, rows in found.items() if split in (None, name)]


def roles(splits: Sequence[str]) -> dict[str, int | None]:
    """What each published split is for: 0 train, 1 tune, 2 test, None for one that is cut into all three.

    A published test split stays whole; without one, a validation split is the test. Other splits are left out where
    there is a train split.

    >>> roles(["train", "validation", "test"]), roles(["train", "dev"]), roles(["en", "de"])
    ({'train': 0, 'validation': 1, 'test': 2}, {'train': 0, 'dev': 2}, {'en': None, 'de': None})
    """
    held = next((name for name in VALIDATION if name in splits), None)
    if "train" not in splits or (held is None and "test" not in splits):
        return dict.fromkeys(splits if "train" not in splits else ["train"])
    places: dict[str, int | None] = {"train": 0}
    if held is not None:
        places[held] = 1 if "test" in splits else 2
    return places | ({"test": 2} if "test" in splits else {})


def _reach(wanted: Asked) -> None:
    """Raises BadData where the hub does not have it, or is out of reach: at once, where `datasets` tries for long."""
    from huggingface_hub import HfApi, errors
    from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError, RevisionNotFoundError

    name = f"{wanted.kind}:{wanted.source}"
    try:
        HfApi().dataset_info(wanted.source, revision=wanted.commit)
    except RevisionNotFoundError:
        raise BadData(f"{name}: the hub has no commit {wanted.commit} of it") from None
    except RepositoryNotFoundError:  # one behind a gate too
        raise BadData(f"{name}: the hub shows you no such data set; log in: hf auth login") from None
    except HfHubHTTPError as error:
        raise BadData(f"{name}: the hub refused: {_first_line(error)}") from None
    except (OSError, getattr(errors, "HTTPError", OSError)):
        raise BadData(
            f"{name}: the hub is out of reach (offline?), and nothing of this commit is kept here; run it once with a "
            f"network, or give a folder, {wanted.kind}:./FOLDER"
        ) from None


def _library() -> Any:
    try:
        library = import_module("datasets")
    except ModuleNotFoundError as error:
        raise ImportError("data sets by name need datasets, which is not installed: pip install datasets") from error
    library.disable_progress_bars()
    return library


@contextmanager
def _broken(name: str) -> Generator[None, None, None]:
    """Whatever a file of the data set, or the way to it, does wrong, as one line."""
    from datasets.exceptions import DatasetsError
    from pyarrow import ArrowException

    try:
        yield
    except (OSError, ValueError, ArrowException, DatasetsError, RuntimeError) as error:
        if isinstance(error, BadData):
            raise
        raise BadData(f"{name}: {type(error).__name__}: {_first_line(error)}") from error


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), "no reason given")
