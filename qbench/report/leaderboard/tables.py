"""Every row of the leaderboard as CSV, JSON and Parquet: the same columns in each."""

import csv
import io
import json
from collections.abc import Iterable, Mapping
from math import isfinite
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from qbench.report.leaderboard.entries import Entry
from qbench.report.payload import packed

# Column -> its type in DuckDB's words, in the order of the tables.
COLUMNS: Mapping[str, str] = {
    "group": "VARCHAR",
    "suite": "VARCHAR",
    "version": "BIGINT",
    "task": "VARCHAR",
    "scope": "VARCHAR",
    "rank_best": "BIGINT",
    "rank_worst": "BIGINT",
    "front": "BIGINT",
    "model": "VARCHAR",
    "quantizer": "VARCHAR",
    "metric": "VARCHAR",
    "value": "DOUBLE",
    "low": "DOUBLE",
    "high": "DOUBLE",
    "increase": "DOUBLE",
    "increase_low": "DOUBLE",
    "increase_high": "DOUBLE",
    "kld": "DOUBLE",
    "bits_per_value": "DOUBLE",
    "bits_per_value_model": "DOUBLE",
    "bytes": "BIGINT",
    "n": "BIGINT",
    "seeds": "BIGINT",
    "seed_floor": "DOUBLE",
    "window_floor": "DOUBLE",
    "numerical_floor": "DOUBLE",
    "device": "VARCHAR",
    "date": "VARCHAR",
    "commit": "VARCHAR",
    "submission": "VARCHAR",
    "who": "VARCHAR",
    "licence": "VARCHAR",
    "provenance": "VARCHAR",
    "superseded_by": "VARCHAR",
    "estimators": "VARCHAR",
}


def line(entry: Entry) -> dict[str, Any]:
    """One row by column; numbers at six digits, which is more than any interval leaves."""
    group = entry.group
    best, worst = entry.rank or (None, None)
    return {
        "group": group.id,
        "suite": group.suite,
        "version": group.version,
        "task": group.task,
        "scope": group.scope,
        "rank_best": best,
        "rank_worst": worst,
        "front": int(entry.front),
        "model": entry.model,
        "quantizer": entry.quantizer,
        "metric": group.metric,
        "value": _short(entry.value),
        "low": _short(entry.low),
        "high": _short(entry.high),
        "increase": _short(entry.increase),
        "increase_low": _short(entry.reach[0]),
        "increase_high": _short(entry.reach[1]),
        "kld": _short(entry.kld),
        "bits_per_value": _short(entry.bits),
        "bits_per_value_model": _short(entry.bits_model),
        "bytes": entry.bytes,
        "n": entry.n,
        "seeds": len(entry.seeds),
        "seed_floor": _short(entry.seed_floor),
        "window_floor": _short(entry.window_floor),
        "numerical_floor": _short(entry.numerical_floor),
        "device": group.device,
        "date": entry.date,
        "commit": entry.commit,
        "submission": entry.submission,
        "who": entry.who,
        "licence": entry.licence,
        "provenance": entry.label,
        "superseded_by": entry.superseded,
        "estimators": entry.estimators,
    }


def as_csv(rows: Iterable[Entry]) -> bytes:
    """RFC 4180; text that a spreadsheet would run as a formula starts with an apostrophe instead."""
    stream = io.StringIO(newline="")
    writer = csv.writer(stream)
    writer.writerow(COLUMNS)
    writer.writerows([_inert(value) for value in line(row).values()] for row in rows)
    return stream.getvalue().encode()


def as_json(rows: Iterable[Entry]) -> bytes:
    """Columns, and rows whose texts are places in `words`."""
    found = packed(list(COLUMNS), [list(line(row).values()) for row in rows])
    return (json.dumps(found, separators=(",", ":"), ensure_ascii=False, allow_nan=False) + "\n").encode()


def as_parquet(rows: Iterable[Entry]) -> bytes:
    """Typed columns; the same rows give the same bytes with the same DuckDB."""
    import duckdb

    with TemporaryDirectory() as folder:
        text, out = Path(folder) / "rows.jsonl", Path(folder) / "rows.parquet"
        text.write_text("".join(json.dumps(line(row), allow_nan=False) + "\n" for row in rows), encoding="utf-8")
        # One thread: several would cut the row groups differently each time.
        with duckdb.connect(config={"threads": 1}) as database:
            relation = database.read_json(str(text), format="newline_delimited", columns=dict(COLUMNS))
            relation.write_parquet(str(out), compression="zstd")
        return out.read_bytes()


def _short(value: float | None) -> float | None:
    return None if value is None or not isfinite(value) else float(f"{value:.6g}")


def _inert(value: Any) -> Any:
    return f"'{value}" if isinstance(value, str) and value.startswith(("=", "+", "-", "@", "\t", "\r")) else value
