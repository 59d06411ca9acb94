"""YAML as a tree of values that know their line, without the parts of YAML that surprise.

Scalars are read as YAML 1.2 reads them, in decimal: `1e-3` is a number and `no` is text. Tags, anchors, aliases,
merge keys, duplicate keys and second documents are mistakes: a file means what it seems to and cannot grow when read.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from math import isfinite
from typing import Any

import yaml

from qbench.suite.mistakes import Mark, Mistake

LARGEST_FILE = 1_000_000  # bytes
DEEPEST = 20  # levels of nesting
LONGEST_KEY = 60  # characters shown of it
LONGEST_INTEGER = 18  # digits: what fits into 64 bits, whatever the digits

Scalar = str | int | float | bool | None
Value = Scalar | Mapping[str, "Node"] | tuple["Node", ...]

_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_UNPRINTABLE = re.compile("[^\t\n\r\x20-\x7e\x85\xa0-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
_INTEGER = re.compile(r"[-+]?[0-9]+")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]{1,9})?")
_INFINITE = re.compile(r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)")
_WORDS: Mapping[str, bool | None] = {
    **dict.fromkeys(("", "~", "null", "Null", "NULL")),
    **dict.fromkeys(("true", "True", "TRUE"), True),
    **dict.fromkeys(("false", "False", "FALSE"), False),
}


@dataclass(frozen=True, slots=True)
class Node:
    """A value, where it stands, and where its key stands if it has one."""

    value: Value
    mark: Mark
    key: Mark | None = None

    def plain(self) -> Any:
        """The same as dicts, tuples and scalars."""
        if isinstance(self.value, Mapping):
            return {key: node.plain() for key, node in self.value.items()}
        if isinstance(self.value, tuple):
            return tuple(node.plain() for node in self.value)
        return self.value


def parse(text: str, source: str | Mark) -> tuple[Node | None, list[Mistake]]:
    """The tree of one document and its mistakes; no tree where the text is not YAML.

    `source` names the file; a Mark stands for every place in a text that has no lines of its own.

    >>> tree, mistakes = parse("lr: 1e-3", "x.yaml")
    >>> tree.plain(), str(tree.value["lr"].mark)
    ({'lr': 0.001}, 'x.yaml:1:5')
    >>> print(*parse("a: 1\\na: 2", "x.yaml")[1])
    x.yaml:2:1: a: given twice; first at line 1
    """
    reader = _Reader(source)
    try:
        return reader.document(text), reader.mistakes
    except _Unreadable as stop:
        return None, [*reader.mistakes, stop.mistake]
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        at = reader.mark(mark.line, mark.column) if mark else reader.mark(0, 0)
        line = text.split("\n")[mark.line : mark.line + 1] if mark else []
        tab = "; indent with spaces" if "\t" in "".join(line) else ""
        what = " ".join(filter(None, (error.context, error.problem)))
        return None, [*reader.mistakes, Mistake(at, "", f"not YAML: {what}{tab}")]
    except (yaml.YAMLError, ValueError, OverflowError) as error:  # the pure-Python parser lets a few of its own escape
        return None, [*reader.mistakes, Mistake(reader.mark(0, 0), "", f"not YAML: {error}")]


class _Unreadable(Exception):
    def __init__(self, mark: Mark, text: str) -> None:
        super().__init__(text)
        self.mistake = Mistake(mark, "", text)


@dataclass(slots=True)
class _Reader:
    """Builds nodes from the parser's events: what is refused is never built, and nothing is expanded."""

    source: str | Mark
    mistakes: list[Mistake] = field(default_factory=list[Mistake])
    events: Iterator[Any] = field(default_factory=lambda: iter(()))

    def mark(self, line: int, column: int) -> Mark:
        return self.source if isinstance(self.source, Mark) else Mark(self.source, line + 1, column + 1)

    def document(self, text: str) -> Node:
        if odd := _UNPRINTABLE.search(text):
            before = text[: odd.start()]
            at = self.mark(before.count("\n"), odd.start() - before.rfind("\n") - 1)
            raise _Unreadable(at, f"character U+{ord(odd[0]):04X} is not text")
        self.events = (e for e in yaml.parse(text, Loader=_LOADER) if not isinstance(e, yaml.StreamStartEvent))
        if isinstance(next(self.events), yaml.StreamEndEvent):
            raise _Unreadable(self.mark(0, 0), "empty")
        tree = self._node(next(self.events), "", 0)
        next(self.events)  # the end of the document
        after = next(self.events)
        if not isinstance(after, yaml.StreamEndEvent):
            self._note(after, "", "a second document; one file holds one suite")
        return tree

    def _node(self, event: Any, path: str, depth: int) -> Node:
        at = self.mark(event.start_mark.line, event.start_mark.column)
        if depth > DEEPEST:
            raise _Unreadable(at, f"nested more than {DEEPEST} levels deep")
        if isinstance(event, yaml.AliasEvent):
            self._note(event, path, "an alias; write the value out where it is used")
            return Node(None, at)
        if event.anchor is not None:
            self._note(event, path, "an anchor; write the value out where it is used")
        if event.tag is not None:
            self._note(event, path, f"the tag {event.tag[:60]!r}; values carry no tags here")
        if isinstance(event, yaml.MappingStartEvent):
            return Node(self._mapping(path, depth), at)
        if isinstance(event, yaml.SequenceStartEvent):
            return Node(self._sequence(path, depth), at)
        return Node(self._scalar(event, path), at)

    def _sequence(self, path: str, depth: int) -> tuple[Node, ...]:
        nodes: list[Node] = []
        while not isinstance(event := next(self.events), yaml.SequenceEndEvent):
            nodes.append(self._node(event, under(path, len(nodes)), depth + 1))
        return tuple(nodes)

    def _mapping(self, path: str, depth: int) -> dict[str, Node]:
        nodes: dict[str, Node] = {}
        while not isinstance(event := next(self.events), yaml.MappingEndEvent):
            at = self.mark(event.start_mark.line, event.start_mark.column)
            key = self._key(event, path, depth)
            node = self._node(next(self.events), under(path, key or "?"), depth + 1)
            if key is None:
                continue
            if key in nodes:
                first = nodes[key].key or nodes[key].mark
                self.mistakes.append(Mistake(at, under(path, key), f"given twice; first at line {first.line}"))
            else:
                nodes[key] = Node(node.value, node.mark, at)
        return nodes

    def _key(self, event: Any, path: str, depth: int) -> str | None:
        """The text of a key; None, and a mistake, where it is something else."""
        if isinstance(event, yaml.ScalarEvent) and not (event.value == "<<" and not event.style):
            self._node(event, path, depth)  # for the mistakes that it may carry
            return event.value
        if isinstance(event, yaml.ScalarEvent):
            self._note(event, path, "a merge key; write the keys out")
        else:
            self._node(event, path, depth + 1)
            self._note(event, path, "a key that is not text")
        return None

    def _scalar(self, event: Any, path: str) -> Scalar:
        text: str = event.value
        if odd := _UNPRINTABLE.search(text):
            self._note(event, path, f"character U+{ord(odd[0]):04X} is not text")
            return None
        if event.style:
            return text
        try:
            return scalar(text)
        except ValueError as error:
            self._note(event, path, str(error))
            return None

    def _note(self, event: Any, path: str, text: str) -> None:
        at = self.mark(event.start_mark.line, event.start_mark.column)
        self.mistakes.append(Mistake(at, path, text))


def scalar(text: str) -> Scalar:
    """What an unquoted scalar means; ValueError for numbers that no other tool would read back as they stand.

    >>> [scalar(text) for text in ("1e-3", "no", "12:30", "true", "~", "08")]
    [0.001, 'no', '12:30', True, None, 8]
    """
    if text in _WORDS:
        return _WORDS[text]
    if _INTEGER.fullmatch(text):
        if len(text) > LONGEST_INTEGER:
            raise ValueError(f"a whole number of more than {LONGEST_INTEGER} digits")
        return int(text)
    number = float(text) if _FLOAT.fullmatch(text) else 0.0
    if _INFINITE.fullmatch(text) or not isfinite(number):
        raise ValueError(f"{text[:40]!r} is not a finite number")
    return number if _FLOAT.fullmatch(text) else text


def under(path: str, key: str | int) -> str:
    """The dotted path of a part; keys that would spoil the line are quoted and cut.

    >>> under("a", "b\\nc"), under("", 3)
    ("a.'b\\\\nc'", '3')
    """
    shown = str(key)
    if len(shown) > LONGEST_KEY or not shown.isprintable():
        shown = repr(shown[:LONGEST_KEY])
    return f"{path}.{shown}" if path else shown
