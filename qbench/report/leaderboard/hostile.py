"""A folder that anybody may have sent: bounded, without links, read only where its shape is what qbench writes."""

import json
import os
import re
import stat
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from unicodedata import category

from qbench.results.evidence import EVIDENCE
from qbench.results.lines import RECORDS
from qbench.results.origin import MANIFEST

SUBMISSION = "submission.yaml"
REPRODUCED = "reproduced.json"
NEEDED = (SUBMISSION, RECORDS, MANIFEST)
LARGEST: Mapping[str, int] = {RECORDS: 2**28, MANIFEST: 2**24, SUBMISSION: 2**16, REPRODUCED: 2**20}  # bytes
LARGEST_EVIDENCE = 2**26  # bytes, of one file
MOST_EVIDENCE = 20_000  # files
LARGEST_LINE = 2**20  # bytes
MOST_LINES = 300_000
DEEPEST = 12  # levels of lists and maps; what qbench writes has six

_ID = re.compile(r"[a-z0-9][a-z0-9-]{0,63}")
_EVIDENCE_FILE = re.compile(r"[0-9a-f]{16}\.safetensors")
_IGNORED = frozenset({"report.html", "README.md", ".lock", "records.torn"})  # beside a run; never read


def name(folder: Path) -> str:
    """What a submission is called; a link has its own name, so that it cannot pass for what it leads to."""
    return folder.name if folder.is_symlink() else folder.resolve().name


def faults(folder: Path) -> list[str]:
    """What forbids reading `folder` at all: links, strange files, files or lines too large; nothing is parsed."""
    if folder.is_symlink():
        return ["is a symbolic link; a submission is a folder of its own"]
    if not _ID.fullmatch(called := name(folder)):
        return [f"the folder is called {plain(called)!r}; a submission is named by lower-case letters, digits, hyphens"]
    try:
        found = list(_entries(folder))
    except OSError as error:
        return [f"cannot be read: {error.strerror or error}"]
    there = {path for path, _ in found}
    wrong = [*(f"{path} is missing" for path in NEEDED if path not in there), *_strange(found)]
    if wrong:
        return wrong
    return list(_long_lines(folder / RECORDS))


def _entries(folder: Path) -> Iterator[tuple[str, os.stat_result]]:
    """Every name in the folder and in its evidence folder, links not followed."""
    for place in (folder, folder / EVIDENCE):
        if place != folder and (not place.exists() or place.is_symlink()):
            continue
        with os.scandir(place) as names:
            for count, entry in enumerate(sorted(names, key=lambda entry: entry.name)):
                if count > MOST_EVIDENCE:
                    return
                inside = "" if place == folder else f"{EVIDENCE}/"
                yield f"{inside}{entry.name}", entry.stat(follow_symlinks=False)


def _strange(found: Sequence[tuple[str, os.stat_result]]) -> Iterator[str]:
    if len(found) > MOST_EVIDENCE:
        yield f"more than {MOST_EVIDENCE} files"
        return
    for path, status in found:
        if fault := _fault(path, status):
            yield f"{plain(path)} {fault}"


def _fault(path: str, status: os.stat_result) -> str:
    if stat.S_ISLNK(status.st_mode):
        return "is a symbolic link; a submission holds its files itself"
    if path == EVIDENCE:
        return "" if stat.S_ISDIR(status.st_mode) else "is not a folder"
    if not stat.S_ISREG(status.st_mode):
        return "is not a plain file"
    most = _most(path)
    if most is None:
        return f"is no part of a submission; known: {', '.join((*NEEDED, REPRODUCED))}, {EVIDENCE}/"
    return f"has {status.st_size} bytes; at most {most}" if status.st_size > most else ""


def _most(path: str) -> int | None:
    """The largest size a file may have; None for a file that has no place there."""
    folder, _, name = path.rpartition("/")
    if folder == EVIDENCE:
        return LARGEST_EVIDENCE if _EVIDENCE_FILE.fullmatch(name) else None
    return 2**40 if name in _IGNORED else LARGEST.get(name)


def _long_lines(path: Path) -> Iterator[str]:
    with path.open("rb") as file:
        for number in range(1, MOST_LINES + 2):
            line = file.readline(LARGEST_LINE + 1)
            if not line:
                return
            if len(line) > LARGEST_LINE:
                yield f"{RECORDS}:{number}: a line of more than {LARGEST_LINE} bytes"
                return
            if not line.endswith(b"\n"):
                yield f"{RECORDS}:{number}: the last line is torn; finish the run with the same `qbench run`"
                return
    yield f"{RECORDS}: more than {MOST_LINES} lines; split the submission"


def read_json(path: Path) -> Any:
    """JSON of bounded depth, without NaN; ValueError says what is wrong."""
    try:
        value = json.loads(path.read_bytes(), parse_constant=_no_constant)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    if not shallow(value):
        raise ValueError(f"nested more than {DEEPEST} levels deep")
    return value


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is not a number")


def shallow(value: Any, levels: int = DEEPEST) -> bool:
    """Whether lists and maps are nested at most `levels` deep; looks level by level, so that depth cannot hurt.

    >>> shallow([[1]], levels=2), shallow([[1]], levels=1)
    (True, False)
    """
    level: list[Any] = [value]
    for _ in range(levels + 1):
        level = [inner for one in level for inner in _inside(one)]
        if not level:
            return True
    return False


def _inside(value: Any) -> Sequence[Any]:
    if isinstance(value, dict):
        return list(value.values()) or [None]  # an empty map is a level too
    return value or [None] if isinstance(value, list) else []


def plain(text: str, most: int = 200) -> str:
    """`text` as one short line: control and direction characters, which can make it look like another, are shown.

    >>> plain("a\\u202eb")
    'a\\ufffdb'
    """
    shown = "".join("\ufffd" if category(letter)[0] == "C" else letter for letter in text[: most + 1])
    return shown if len(shown) <= most else f"{shown[: most - 1]}…"
