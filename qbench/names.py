"""Look things up by name, and say what was meant when the name is wrong."""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from difflib import get_close_matches
from fnmatch import fnmatchcase
from itertools import product
from typing import Any, TypeVar, cast

T = TypeVar("T")

_BRACES = re.compile(r"\{([^{}]*)\}")


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


def repeated(entry: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """An entry once for each combination of the values in its `each`, whose keys stand in braces in its texts.

    >>> [one["claim"] for one in repeated({"claim": "with {o}", "each": {"o": ["adamw", "muon"]}})]
    ['with adamw', 'with muon']
    >>> list(repeated({"claim": "{}"}))
    [{'claim': '{}'}]
    """
    each: Mapping[str, Sequence[Any]] = entry.get("each") or {}
    for values in product(*each.values()):
        chosen = dict(zip(each, values, strict=True))
        yield {key: _filled(value, chosen) for key, value in entry.items() if key != "each"}


def _filled(value: Any, chosen: Mapping[str, Any]) -> Any:
    if isinstance(value, str):
        return _BRACES.sub(lambda found: str(chosen.get(found[1], found[0])), value)
    if isinstance(value, Mapping):
        return {key: _filled(part, chosen) for key, part in cast(Mapping[str, Any], value).items()}
    if isinstance(value, list | tuple):
        return [_filled(part, chosen) for part in cast(Sequence[Any], value)]
    return value
