"""`qbench compare`: two finished runs, or two models that are run first."""

import argparse
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from zipfile import is_zipfile

from qbench.cli.main import GOOD, UsageError
from qbench.results.files import write_whole
from qbench.results.lines import RECORDS

MODEL = "config.json"  # what every model's folder has
# Options that only one of the two understands, with what they are when nobody gave them.
OF_RUNS: Mapping[str, Any] = {"metric": [], "arm": [], "format": None, "minimum": None}
OF_MODELS: Mapping[str, Any] = {
    "data": None,
    "overrides": [],
    "profile": None,
    "plugin": [],
    "device": "auto",
    "workers": None,
    "only": None,
    "dry_run": False,
    "quiet": False,
    "trust_remote_code": False,
}
SPELLED: Mapping[str, str] = {"overrides": "--set"}


def compare(options: argparse.Namespace) -> int:
    """Runs are compared as they are; models, and a saved reference, are measured first."""
    runs = [_is_run(Path(path)) for path in (options.base, options.candidate)]
    if runs[0] != runs[1]:
        run, other = (options.base, options.candidate) if runs[0] else (options.candidate, options.base)
        raise UsageError(f"{run} is a run and {other} is none; compare two runs or two models")
    if all(runs):
        _refuse(options, OF_MODELS, "two runs, which were measured already")
        return _compare_runs(options)
    from qbench.cli.probe import compare as compare_models

    _refuse(options, OF_RUNS, "two models; compare their run folders to use it")
    return compare_models(options)


def _is_run(path: Path) -> bool:
    """Whether a path holds a run, as a folder or packed; UsageError where it holds no model either."""
    if path.name == RECORDS:
        raise UsageError(f"{path} is a file of a run; name the folder that it lies in")
    if path.is_file():
        return is_zipfile(path)
    if path.is_dir() and not (path / RECORDS).exists() and not (path / MODEL).exists():
        raise UsageError(f"{path} is neither a run folder (no {RECORDS}) nor a model (no {MODEL})")
    return (path / RECORDS).exists()


def _compare_runs(options: argparse.Namespace) -> int:
    from qbench.gate.compare import How, compare
    from qbench.report import compared

    how = How(metrics=tuple(options.metric), arms=_arms(options.arm), minimum=options.minimum)
    shape = _format(options)
    document = compare(options.base, options.candidate, how).json()
    text = {"text": compared.text, "md": compared.markdown, "html": compared.html, "json": compared.json}[shape](
        document
    )
    if options.out:
        write_whole(Path(options.out), text.encode())
        print(options.out)
    else:
        sys.stdout.write(text)
    return GOOD


def _format(options: argparse.Namespace) -> str:
    if not options.out:
        return options.format or "text"
    ending = Path(options.out).suffix.removeprefix(".")
    if ending not in ("json", "md", "html", "txt"):
        raise UsageError(f"cannot tell the format of {options.out}; known endings: json, md, html, txt")
    found = "text" if ending == "txt" else ending
    if options.format not in (None, found):
        raise UsageError(f"--format {options.format} does not go with a file that ends in .{ending}")
    return found


def _arms(given: list[str]) -> Mapping[str, str] | None:
    pairs: dict[str, str] = {}
    for text in given:
        ours, equals, theirs = text.partition("=")
        if not (equals and ours and theirs):
            raise UsageError(f"--arm {text}: expected A=B, the name of a model in the first run and in the second")
        pairs[ours] = theirs
    return pairs or None


def _refuse(options: argparse.Namespace, table: Mapping[str, Any], what: str) -> None:
    for name, default in table.items():
        if getattr(options, name) != default:
            raise UsageError(f"{SPELLED.get(name, '--' + name.replace('_', '-'))} does not apply to {what}")
