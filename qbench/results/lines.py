"""Lines of records.jsonl: records and closing lines as text and back, and which of them count.

The file is never edited. An attempt counts once its closing line ends in a newline; a later one supersedes it.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields
from functools import partial
from math import isfinite
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from qbench.results.record import SCHEMA, STATUSES, Attempt, Closing, Record, printable, stored, unread

RECORDS = "records.jsonl"
T = TypeVar("T")

# `line` is written first, so that a reader can tell the two types apart without parsing.
_RECORD_START = b'{"line":"record"'
_DEFAULTS = {
    one.name: one.default if one.default_factory is MISSING else one.default_factory() for one in fields(Record)
}
_LARGEST_COUNT = 2**53  # larger ones are not exact in the JSON of other languages


class BadRecords(ValueError):
    """A line of a records file is not what qbench writes."""


@dataclass(slots=True)
class Log:
    """What a records file holds. `sound` is the size in bytes up to the last closing line."""

    attempts: dict[str, Attempt] = field(default_factory=dict[str, Attempt])
    superseded: int = 0
    unfinished: int = 0  # records that no closing line accounts for
    torn: int = 0  # bytes of a last line that has no newline
    sound: int = 0


def encode(closing: Closing, records: Sequence[Record]) -> bytes:
    """All lines of one attempt, the closing line last; ValueError or TypeError where they could not be read back."""
    _named(closing.cell, closing.question, closing.spec)
    lines = [_line("record", _filled(stored(record))) for record in records]
    lines.append(_line("cell", {"schema": SCHEMA} | {one.name: getattr(closing, one.name) for one in fields(closing)}))
    return "".join(lines).encode()


def scan(path: Path) -> Log:
    """Read a whole file, line by line; BadRecords names the first line that cannot be read.

    A last line without a newline was torn by a crash: it is counted and ignored, as are records without a closing line.
    """
    log, position, pending = Log(), 0, list[Record]()
    for number, line, raw in _parsed(path, skip_records=False):
        position += len(line)
        if raw is None:
            log.torn = len(line)
        elif raw.pop("line") == "record":
            pending.append(_checked(_record, raw, f"{path}:{number}"))
        else:
            closing = _checked(_closing, raw, f"{path}:{number}")
            attempt = _checked(partial(_attempt, closing), pending, f"{path}:{number}")
            log.superseded += attempt.closing.cell in log.attempts
            log.unfinished += len(pending) - len(attempt.records)
            log.attempts[attempt.closing.cell], log.sound = attempt, position
            pending = []
    log.unfinished += len(pending)
    return log


def closings(path: Path) -> Iterator[Closing]:
    """Only the closing lines, in file order; the records between them are skipped unread, so this is fast."""
    for number, _, raw in _parsed(path, skip_records=True):
        if raw is not None and raw.pop("line") == "cell":
            yield _checked(_closing, raw, f"{path}:{number}")


def selected(path: Path, wanted: Callable[[Closing], bool]) -> dict[str, Attempt]:
    """The last attempt at each cell, with the records of those that `wanted` accepts; the others' are skipped unread.

    Raises BadRecords as `scan` does for what it reads: every closing line, and the records that it keeps.
    """
    attempts, pending = dict[str, Attempt](), list[tuple[int, bytes]]()
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.endswith(b"\n"):
                break  # torn by a crash
            where = f"{path}:{number}"
            if line.startswith(_RECORD_START):
                pending.append((number, line))
                continue
            raw = _checked(_object, line, where)
            if raw.pop("line") == "record":
                pending.append((number, line))
                continue
            closing = _checked(_closing, raw, where)
            own, pending = pending[max(0, len(pending) - closing.records) :], []
            if wanted(closing):
                attempts[closing.cell] = _checked(partial(_attempt, closing), _read(path, own), where)
            else:
                attempts[closing.cell] = Attempt(closing, ())
    return attempts


def _read(path: Path, numbered: Sequence[tuple[int, bytes]]) -> list[Record]:
    records: list[Record] = []
    for number, line in numbered:
        raw = _checked(_object, line, f"{path}:{number}")
        del raw["line"]
        records.append(_checked(_record, raw, f"{path}:{number}"))
    return records


def _line(kind: str, parts: Mapping[str, Any]) -> str:
    return json.dumps({"line": kind} | dict(parts), separators=(",", ":"), allow_nan=False) + "\n"


def _filled(record: Record) -> dict[str, Any]:
    """Its fields by name, without those that have their default: a reader puts them back."""
    parts = {name: getattr(record, name) for name in _DEFAULTS}
    return {name: part for name, part in parts.items() if part != _DEFAULTS[name]}


def _parsed(path: Path, *, skip_records: bool) -> Iterator[tuple[int, bytes, dict[str, Any] | None]]:
    """Line number, line, and its JSON object; None for a torn last line."""
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.endswith(b"\n"):
                yield number, line, None
            elif not (skip_records and line.startswith(_RECORD_START)):
                yield number, line, _checked(_object, line, f"{path}:{number}")


def _checked(build: Callable[[Any], T], raw: Any, where: str) -> T:
    """`build(raw)`, whatever is wrong with `raw` reported as BadRecords at `where`."""
    try:
        return build(raw)
    except (TypeError, ValueError, KeyError, OverflowError, RecursionError) as error:
        raise BadRecords(f"{where}: {error}") from error


def _object(line: bytes) -> dict[str, Any]:
    try:
        raw = json.loads(line, parse_constant=_refuse_constant)
    except ValueError as error:
        raise ValueError(f"not a line of JSON ({error}); restore the file or delete this line") from error
    if not isinstance(raw, dict) or raw.get("line") not in ("record", "cell"):
        raise ValueError('"line" must be "record" or "cell"; is this a qbench records file?')
    return raw


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a number")


def _record(raw: dict[str, Any]) -> Record:
    _typed(raw, _RECORD_TYPES)
    raw["values"] = _numbers(raw["values"])
    if "intervals" in raw:
        raw["intervals"] = {name: _interval(ends) for name, ends in raw["intervals"].items()}
    return Record(**raw)


def _closing(raw: dict[str, Any]) -> Closing:
    schema = raw.pop("schema", None)
    if schema != SCHEMA:
        raise ValueError(unread(schema))
    _typed(raw, _CLOSING_TYPES)
    if raw["status"] not in STATUSES:
        raise ValueError(f"status {raw['status']!r} is none of {', '.join(STATUSES)}")
    _named(raw["cell"], raw["question"], raw["spec"])
    raw["error"] = printable(raw.get("error", ""))
    for name in ("log", "warnings"):
        raw[name] = _texts(raw.get(name, []))
    return Closing(**raw)


def _named(cell: str, question: str, spec: Mapping[str, Any]) -> None:
    """What identifies a cell is whole text, which pages and tables can hold, and its seed is a number or none."""
    seed = spec.get("seed")
    if seed is not None and type(seed) is not int:
        raise ValueError(f"seed cannot be {str(seed)[:80]!r}")
    try:
        json.dumps([cell, question, spec], ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        half = ascii(error.object[error.start])
        raise BadRecords(f"cell {printable(cell)[:20]}: its spec holds half a character ({half})") from None


def _attempt(closing: Closing, pending: Sequence[Record]) -> Attempt:
    """The closing line with its own records: the last ones before it, which nothing may interrupt."""
    own = pending[len(pending) - closing.records :] if closing.records <= len(pending) else pending
    if len(own) != closing.records or any(record.cell != closing.cell for record in own):
        raise ValueError(f"cell {closing.cell} closes over {closing.records} records, but they do not stand before it")
    return Attempt(closing, tuple(own))


def _typed(raw: dict[str, Any], types: Mapping[str, Callable[[Any], bool]]) -> None:
    for name, value in raw.items():
        if name not in types:
            raise ValueError(f"unknown field {name!r}; known: {', '.join(types)}")
        if not types[name](value):
            raise ValueError(f"{name} cannot be {str(value)[:80]!r}")
    missing = [name for name in types if name in _REQUIRED and name not in raw]
    if missing:
        raise ValueError(f"no {', '.join(missing)}")


def _numbers(raw: dict[str, Any]) -> dict[str, float]:
    for name, value in raw.items():
        if not _is_number(value):
            raise ValueError(f"{name} cannot be {str(value)[:80]!r}")
    return {name: float(value) for name, value in raw.items()}


def _interval(ends: Any) -> tuple[float, float]:
    if not (isinstance(ends, list) and len(ends) == 2 and all(map(_is_number, ends))):
        raise ValueError(f"an interval is [low, high], found {str(ends)[:80]}")
    return float(ends[0]), float(ends[1])


def _texts(raw: Any) -> tuple[str, ...]:
    if not all(isinstance(text, str) for text in raw):
        raise ValueError(f"lines of text expected, found {str(raw)[:80]}")
    return tuple(map(printable, raw))


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_map(value: Any) -> bool:
    return isinstance(value, dict)


def _is_list(value: Any) -> bool:
    return isinstance(value, list)


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value < _LARGEST_COUNT


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and isfinite(value)  # JSON's 1e999 reads as infinity; True is an int to Python


_REQUIRED = {"cell", "values", "question", "status", "spec"}
_RECORD_TYPES: Mapping[str, Callable[[Any], bool]] = {
    **dict.fromkeys(("cell", "kind", "site", "scope", "quantizer", "samples", "slice"), _is_text),
    **dict.fromkeys(("values", "intervals"), _is_map),
    **dict.fromkeys(("n", "step"), _is_count),
    "bits_per_value": _is_number,
}
_CLOSING_TYPES: Mapping[str, Callable[[Any], bool]] = {
    **dict.fromkeys(("cell", "question", "status", "error"), _is_text),
    **dict.fromkeys(("records", "attempt"), _is_count),
    **dict.fromkeys(("log", "warnings"), _is_list),
    "spec": _is_map,
    "seconds": _is_number,
}
