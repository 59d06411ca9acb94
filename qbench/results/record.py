"""Records: what is stored of one measurement, as flat lines of JSON that are never edited.

A cell writes its records and then one closing line; records without a closing line do not count.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from math import isfinite
from typing import Any, Literal, get_args

SCHEMA = 1
Status = Literal["measured", "failed", "unsupported"]
STATUSES: tuple[Status, ...] = get_args(Status)
DIGITS = 9  # significant digits kept: more than float32 carries


def unread(schema: object, ours: int = SCHEMA) -> str:
    """What to do about a file of another schema version than ours.

    >>> unread(2)
    'written with schema 2, this qbench reads schema 1; upgrade qbench-suite to read it'
    """
    told = f"written with schema {str(schema)[:20]}, this qbench reads schema {ours}; "
    if type(schema) is not int:
        return f"{told}is this a file of qbench?"
    if schema > ours:
        return f"{told}upgrade qbench-suite to read it"
    return (
        f"{told}measure again: the text of its suite stands in manifest.json; or read it with the qbench that wrote it"
    )


def printable(text: str) -> str:
    """Text without halves of characters, which come from file names that are no UTF-8 and which no file can hold.

    >>> printable("a\\udcffb")
    'a\\\\udcffb'
    """
    return text.encode("utf-8", "backslashreplace").decode()


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """One set of numbers: what was measured at one place of one cell.

    `site` and `quantizer` are empty where they do not apply; `step` is a training step, None after training; `slice` is
    the part of the data, or of the tensor, that these numbers are of, empty for the whole.
    `intervals` are 95 % intervals over the `n` samples whose vectors stand in the evidence file `samples`.
    """

    cell: str
    values: Mapping[str, float]
    kind: str = ""
    site: str = ""
    scope: str = ""
    quantizer: str = ""
    bits_per_value: float | None = None
    step: int | None = None
    intervals: Mapping[str, tuple[float, float]] = field(default_factory=dict[str, tuple[float, float]])
    n: int = 0
    samples: str = ""
    slice: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Closing:
    """The last line of an attempt at a cell: what was asked, how it ended, what it cost.

    `records` and `attempt` are filled in by the store.
    """

    cell: str
    question: str
    status: Status
    spec: Mapping[str, Any]
    records: int = 0
    attempt: int = 1
    seconds: float = 0.0
    error: str = ""
    log: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Attempt:
    """One finished attempt at a cell: its closing line and the records that count."""

    closing: Closing
    records: tuple[Record, ...]


def rounded(values: Mapping[str, float]) -> dict[str, float]:
    """Finite values at the digits we store; what is not finite is not a measurement and is left out.

    >>> rounded({"loss": 1 / 3, "error_db": float("-inf")})
    {'loss': 0.333333333}
    """
    return {name: float(f"{value:.{DIGITS}g}") for name, value in values.items() if isfinite(value)}


def stored(record: Record) -> Record:
    """The record as it will be read back: every number at the digits we store, no infinite interval."""
    low = rounded({name: ends[0] for name, ends in record.intervals.items()})
    high = rounded({name: ends[1] for name, ends in record.intervals.items()})
    bits = {} if record.bits_per_value is None else rounded({"bits": record.bits_per_value})
    return replace(
        record,
        values=rounded(record.values),
        bits_per_value=bits.get("bits"),
        intervals={name: (low[name], high[name]) for name in record.intervals if name in low and name in high},
    )
