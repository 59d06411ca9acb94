"""The suites that come with qbench: in a source checkout, and in an installed package."""

import os
from dataclasses import dataclass
from pathlib import Path

from qbench.names import suggestion
from qbench.suite.mistakes import BadSuite, Mark, Mistake

PACKAGE = Path(__file__).parents[1]


@dataclass(frozen=True, slots=True)
class Shipped:
    """One suite by its name, the question in its first line, and its file."""

    name: str
    question: str
    path: Path


def folder(package: Path = PACKAGE) -> Path:
    """`shipped/suites` inside an installed package, `suites` beside it in a checkout."""
    installed = package / "shipped" / "suites"
    return installed if installed.is_dir() else package.parent / "suites"


def shipped() -> tuple[Shipped, ...]:
    """All shipped suites, by name."""
    return tuple(Shipped(path.stem, _first_line(path), path) for path in sorted(folder().glob("*.yaml")))


def find(suite: str | Path) -> Path:
    """The file of a suite given by path or by shipped name; a file of that name here goes first. Raises BadSuite."""
    path = Path(suite)
    if os.path.isfile(path):  # not path.is_file(), which raises for names that are too long
        return path
    names = {entry.name: entry.path for entry in shipped()}
    if str(suite) in names:
        return names[str(suite)]
    what = "a folder, not a file" if os.path.isdir(path) else "no such file, and no shipped suite of that name"
    text = f"{what}{suggestion(str(suite), names)} shipped: {', '.join(names)}"
    raise BadSuite([Mistake(Mark(str(suite)), "", text)])


def _first_line(path: Path) -> str:
    with path.open(encoding="utf-8") as file:
        return file.readline().lstrip("#").strip()
