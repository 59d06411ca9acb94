"""`qbench report`, `export` and `demo`: records in, files out; no torch."""

import argparse
import json
import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TextIO

from qbench.cli.main import GOOD, UsageError
from qbench.metrics.catalog import METRICS
from qbench.names import pick
from qbench.results import digest, latex
from qbench.results import export as table
from qbench.results.files import make_folder, write_whole
from qbench.results.run import Run, read
from qbench.stats.interval import mean_interval

UNITS = {name: metric.unit for name, metric in METRICS.items()}
STREAMS: Mapping[str, Callable[[Iterable[table.Line], TextIO], None]] = {
    "csv": table.write_csv,
    "jsonl": table.write_jsonl,
}

ANSWERS = ("loss", "kernel", "task")  # what models are judged by: of most records, others read nothing
# Options that one format understands.
ONLY: Mapping[str, str] = {
    **dict.fromkeys(("rows", "cols", "metric", "where"), "latex"),
    **dict.fromkeys(("organization", "relationship"), "every-eval-ever"),
}


def report(options: argparse.Namespace) -> int:
    """The page of a run, and its figures: in the folder, or beside the pack that it comes in."""
    from qbench.gate.source import unpacked
    from qbench.report import figures, page

    given = Path(options.folder)
    beside = given.with_name(given.name.removesuffix(".zip").removesuffix(".qbench")) if given.is_file() else given
    with unpacked(given) if given.is_file() else nullcontext(given) as folder:
        run = read(folder).current
        name = beside.with_name(f"{beside.name}.html") if given.is_file() else beside / "report.html"
        print(page.build(run, Path(options.out or name)))
        if options.figures:
            for path in figures.write(run, beside / "figures"):
                print(path)
    return GOOD


def export(options: argparse.Namespace) -> int:
    """The long table, one metric of it as LaTeX, or what others read, to a file or to standard output."""
    _refuse(options)
    if options.format in INTERCHANGE:
        return INTERCHANGE[options.format](read(options.folder, ANSWERS).current, options)
    run = read(options.folder).current
    if options.format == "latex":
        _write(_latex(run, options), options.out)
        return GOOD
    out = Path(options.out) if options.out else None
    if options.format == "parquet" and out is None:
        out = Path(options.folder) / "records.parquet"  # binary: not for a terminal
    if out is None:
        STREAMS[options.format](table.lines(run, UNITS), sys.stdout)
        return GOOD
    if out.suffix != f".{options.format}":
        raise UsageError(f"--format {options.format} is written to a file that ends in .{options.format}, found {out}")
    table.save(run, out, UNITS)
    print(out)
    return GOOD


def _refuse(options: argparse.Namespace) -> None:
    for name, shape in ONLY.items():
        if getattr(options, name) and options.format != shape:
            raise UsageError(f"--{name} is for --format {shape}; {options.format} has the whole table")


def _every_eval_ever(run: Run, options: argparse.Namespace) -> int:
    """One file for each model in a folder; a single model may go to standard output."""
    from qbench.report.every_eval_ever import documents

    found = {
        name: json.dumps(document, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
        for name, document in documents(run, options.organization or "unknown", options.relationship or "other").items()
    }
    if not found:
        raise UsageError(f"{options.folder} holds no measured {' or '.join(ANSWERS)}, so there is nothing to export")
    if options.out is None:
        if len(found) != 1:
            raise UsageError(f"{options.folder} has {len(found)} models, a file each; say --out DIR")
        _write(next(iter(found.values())), None)
        return GOOD
    written: set[str] = set()
    for name, text in found.items():
        plain = re.sub(r"[^A-Za-z0-9.-]+", "-", name).strip(".-") or "model"
        file = plain if plain.lower() not in written else f"{plain}-{digest.of(name)[:8]}"
        written.add(file.lower())
        make_folder(Path(options.out))
        _write(text, str(Path(options.out) / f"{file}.json"))
    return GOOD


def _model_card(run: Run, options: argparse.Namespace) -> int:
    """The card; what the hub reads from .eval_results lies beside it, where a run has such results."""
    from qbench.report.model_card import card, eval_results

    _write(card(run), options.out)
    if options.out and (entries := eval_results(run)):
        beside = Path(options.out).parent / ".eval_results" / "qbench.yaml"
        make_folder(beside.parent)
        _write(entries, str(beside))
    return GOOD


INTERCHANGE: Mapping[str, Callable[[Run, argparse.Namespace], int]] = {
    "every-eval-ever": _every_eval_ever,
    "model-card": _model_card,
}


def demo(options: argparse.Namespace) -> int:
    """Real records that ship with qbench, unpacked, and their page."""
    from qbench.report.page import build
    from qbench.results.demo import unpack

    folder = unpack(Path(options.out))
    print(f"records of a real quickstart run: {folder}")
    print(f"page: {build(read(folder), folder / 'report.html')}")
    return GOOD


def _latex(run: Run, options: argparse.Namespace) -> str:
    where: dict[str, str] = {}
    for text in options.where:
        column, equals, value = text.partition("=")
        if not equals:
            raise UsageError(f"--where {text}: expected COLUMN=VALUE, as in --where scope=boundaries")
        where[column] = value
    asked = {name: getattr(options, name) for name in ("rows", "cols", "metric") if getattr(options, name)}
    layout = latex.Layout(**asked, where=where)
    ranked = pick(METRICS, layout.metric, "metric").role == "cost"
    layout = replace(layout, ranked=ranked)
    return latex.table(table.lines(run, UNITS), layout, _interval)


def _interval(values: Sequence[float]) -> tuple[float, float]:
    found = mean_interval(values)
    return found.low, found.high


def _write(text: str, out: str | None) -> None:
    if out is None:
        sys.stdout.write(text)
    else:
        write_whole(Path(out), text.encode())
        print(out)
