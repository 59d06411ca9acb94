"""`qbench report`, `export` and `demo`: records in, files out; no torch."""

import argparse
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TextIO

from qbench.cli.main import GOOD, UsageError
from qbench.metrics.catalog import METRICS
from qbench.names import pick
from qbench.results import export as table
from qbench.results import latex
from qbench.results.files import write_whole
from qbench.results.run import Run, read
from qbench.stats.interval import mean_interval

UNITS = {name: metric.unit for name, metric in METRICS.items()}
STREAMS: Mapping[str, Callable[[Iterable[table.Line], TextIO], None]] = {
    "csv": table.write_csv,
    "jsonl": table.write_jsonl,
}

LATEX_ONLY = ("rows", "cols", "metric", "where")


def report(options: argparse.Namespace) -> int:
    from qbench.report import figures, page

    run = read(options.folder).current
    print(page.build(run, Path(options.out or Path(options.folder) / "report.html")))
    if options.figures:
        for path in figures.write(run, Path(options.folder) / "figures"):
            print(path)
    return GOOD


def export(options: argparse.Namespace) -> int:
    """The long table, or one metric of it as LaTeX, to a file or to standard output."""
    run = read(options.folder).current
    if options.format == "latex":
        _write(_latex(run, options), options.out)
        return GOOD
    for name in LATEX_ONLY:
        if getattr(options, name):
            raise UsageError(f"--{name} is for --format latex; {options.format} has the whole table")
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
