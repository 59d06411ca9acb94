"""Look things up by name, and say what was meant when the name is wrong."""

from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from fnmatch import fnmatchcase
from typing import TypeVar

T = TypeVar("T")


class UnknownName(ValueError):
    """A suite or a command named something that qbench does not have."""


def pick(table: Mapping[str, T], name: str, kind: str) -> T:
    """The row of `table` called `name`.

    >>> pick({"mxfp4": 1, "int4/token": 2}, "mxpf4", kind="quantizer")
    Traceback (most recent call last):
    qbench.names.UnknownName: no quantizer 'mxpf4'; did you mean 'mxfp4'? known: int4/token, mxfp4
    """
    if name in table:
        return table[name]
    raise UnknownName(f"no {kind} {name!r}{suggestion(name, table)} known: {', '.join(sorted(table))}")


def add(table: dict[str, T], name: str, row: T, kind: type[T]) -> None:
    """Add a row from outside; ValueError where the name is taken, TypeError where the row is of another kind."""
    if name in table:
        raise ValueError("the name is taken; a row is never replaced")
    if not isinstance(row, kind):
        raise TypeError(f"expected a {kind.__name__}, found a {type(row).__name__}")
    table[name] = row


def suggestion(name: str, known: Iterable[str]) -> str:
    """`; did you mean 'x'?` where something near exists, else `;`."""
    near = get_close_matches(name, list(known), n=1)
    return f"; did you mean {near[0]!r}?" if near else ";"


def matches(pattern: str, name: str) -> bool:
    """Whether `pattern` selects `name`: `*` is any run of characters in one part, `**` any number of parts.

    >>> matches("blocks.*.out", "blocks.0.out"), matches("blocks.*.out", "blocks.0.mlp.out")
    (True, False)
    """
    parts = name.split(".")
    reached = {0}  # positions in the name that the pattern may have come to
    for part in pattern.split("."):
        if part == "**":
            reached = set(range(min(reached), len(parts) + 1)) if reached else reached
        else:
            reached = {i + 1 for i in reached if i < len(parts) and fnmatchcase(parts[i], part)}
    return len(parts) in reached
