"""Export: a run as one long table, one number a line, for spreadsheets, pandas and R."""

import csv
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, TextIO

from qbench.results import digest
from qbench.results.files import cannot_write, whole
from qbench.results.record import Attempt, Closing, printable
from qbench.results.run import Row, Run, common, part, rows

Line = Mapping[str, Any]

# Column -> its type in DuckDB's words, in the order of the table.
COLUMNS: Mapping[str, str] = {
    "suite": "VARCHAR",
    "model": "VARCHAR",
    "wiring": "VARCHAR",
    "optimizer": "VARCHAR",
    "seed": "BIGINT",
    "step": "BIGINT",
    "kind": "VARCHAR",
    "site": "VARCHAR",
    "scope": "VARCHAR",
    "quantizer": "VARCHAR",
    "slice": "VARCHAR",
    "bits_per_value": "DOUBLE",
    "metric": "VARCHAR",
    "unit": "VARCHAR",
    "value": "DOUBLE",
    "low": "DOUBLE",
    "high": "DOUBLE",
    "n": "BIGINT",
    "status": "VARCHAR",
    "samples_digest": "VARCHAR",
    "record_id": "VARCHAR",
}


def lines(run: Run, units: Mapping[str, str]) -> Iterator[Line]:
    """Every number of a run, and one line without a value for every cell that was not measured.

    The order depends on what was measured and not on when. `model` is the arm's name. Where a record names no single
    quantizer, the column has the treatment's name: `unquantized`, `W4A8`. `units` maps metrics to units; a metric that
    it lacks has an empty one. `record_id` is the same in every run that measured the same.
    """
    for attempt in sorted(run.cells.values(), key=_place):
        if attempt.closing.status != "measured":
            yield _line(_unmeasured(attempt.closing), "", attempt.closing.status)
        for row in rows(attempt):
            yield _line(row, units.get(row["metric"], ""), "measured")


def write_csv(table: Iterable[Line], stream: TextIO) -> None:
    """With a header; text that a spreadsheet would run as a formula starts with an apostrophe instead."""
    writer = csv.writer(stream)  # RFC 4180; with "\n" alone as the end of a line, text with a "\r" would not be quoted
    writer.writerow(COLUMNS)
    writer.writerows([_inert(line[name]) for name in COLUMNS] for line in table)


def write_jsonl(table: Iterable[Line], stream: TextIO) -> None:
    """One object a line, every column in each, null where it is empty."""
    stream.writelines(json.dumps(dict(line), separators=(",", ":"), allow_nan=False) + "\n" for line in table)


def write_parquet(table: Iterable[Line], path: Path) -> None:
    """Typed columns, lines in the given order; the same table gives the same bytes with the same DuckDB."""
    import duckdb

    text = path.with_name(f"{path.stem}.jsonl.tmp")  # a draft beside a draft, swept as one where it is left behind
    try:
        _to_text(write_jsonl, table, text)
        # One thread: several would cut the row groups differently each time.
        with duckdb.connect(config={"threads": 1}) as database:
            relation = database.read_json(str(text), format="newline_delimited", columns=dict(COLUMNS))
            relation.write_parquet(str(path))
    finally:
        text.unlink(missing_ok=True)


def save(run: Run, path: str | Path, units: Mapping[str, str]) -> None:
    """Write the table to `path`, whole or not at all, in the format that its ending names.

    Raises ValueError for an ending that is none of FORMATS, CannotWrite where the file cannot be written.
    """
    path = Path(path)
    write = FORMATS.get(path.suffix.removeprefix("."))
    if write is None:
        raise ValueError(f"cannot tell the format of {path.name}; known endings: {', '.join(FORMATS)}")
    with whole(path) as draft, cannot_write(path):
        write(lines(run, units), draft)


def _to_text(write: Callable[[Iterable[Line], TextIO], None], table: Iterable[Line], path: Path) -> None:
    with path.open("w", encoding="utf-8", newline="") as stream:
        write(table, stream)


def _place(attempt: Attempt) -> tuple[str, str, int, str, str]:
    shared = common(attempt.closing)
    seed = shared["seed"] if isinstance(shared["seed"], int) else -1
    measurement = digest.canonical(attempt.closing.spec.get("measurement"))
    return shared["suite"], shared["arm"], seed, measurement, attempt.closing.cell


def _line(row: Mapping[str, Any], unit: str, status: str) -> Line:
    own = {"model": row["arm"], "unit": unit, "status": status, "samples_digest": row["samples"]}
    own["quantizer"] = row["quantizer"] or row["treatment"]
    told = [row[name] for name in ("cell", "kind", "site", "quantizer", "step", "metric")]
    own["record_id"] = digest.of([*told, *filter(None, [row["slice"]])])[:16]
    told = {name: own.get(name, row.get(name)) for name in COLUMNS}
    return {name: printable(value) if isinstance(value, str) else value for name, value in told.items()}


def _unmeasured(closing: Closing) -> dict[str, Any]:
    """A row of a cell without numbers: what it would have measured, as far as its spec says."""
    measurement = part(closing.spec, "measurement")
    treatment = part(measurement, "treatment")
    assigned = [(place.partition(":")[0], quantizer) for place, quantizer in part(treatment, "assign").items()]
    kind, quantizer = assigned[0] if len(assigned) == 1 else ("", "")
    row = dict.fromkeys(Row.__annotations__) | common(closing)
    return row | {
        "kind": measurement.get("kind", kind),
        "site": "",
        "slice": "",
        "scope": treatment.get("scope", "") if len(assigned) == 1 else "",
        "quantizer": measurement.get("quantizer", quantizer),
        "metric": "",
        "n": 0,
        "samples": "",
    }


def _inert(value: Any) -> Any:
    """Text that begins like a formula, disarmed; numbers may begin with a minus sign."""
    return f"'{value}" if isinstance(value, str) and value.startswith(("=", "+", "-", "@", "\t", "\r")) else value


FORMATS: Mapping[str, Callable[[Iterable[Line], Path], None]] = {
    "csv": partial(_to_text, write_csv),
    "jsonl": partial(_to_text, write_jsonl),
    "parquet": write_parquet,
}
