"""`qbench leaderboard build` and `check`: submitted run folders in, a static site out; no torch."""

import argparse
import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from qbench.cli.main import ERROR, GOOD, NO, UsageError
from qbench.report.leaderboard import board, hostile, site
from qbench.report.leaderboard.check import Checked, as_markdown, as_text, check


def leaderboard(options: argparse.Namespace) -> int:
    """Check the folders, and for `build` make the site of those that may enter; 1 where one may not."""
    if options.action == "build" and not options.out:
        raise UsageError("where should the site go? add --out SITE")
    if options.action == "check" and options.out:
        raise UsageError("--out is for leaderboard build; a check writes nothing")
    checks = _together([check(folder) for folder in _folders(options.folders)])
    return _build(checks, Path(options.out)) if options.action == "build" else _check(checks, options.format)


def _check(checks: Sequence[Checked], form: str) -> int:
    sys.stdout.write(as_markdown(checks) if form == "markdown" else as_text(checks))
    return GOOD if all(one.accepted for one in checks) else NO


def _build(checks: Sequence[Checked], out: Path) -> int:
    bad = [one for one in checks if not one.accepted]
    if len(bad) == len(checks):
        sys.stderr.write(as_text(bad))
        print(f"qbench: none of {len(checks)} submissions may enter, so no site was written", file=sys.stderr)
        return ERROR
    made = board.board(checks)
    site.build(made, out)
    sys.stderr.write(as_text(bad))
    print(f"{out / 'index.html'}: {len(made.rows)} rows in {len(made.groups)} groups")
    return NO if bad else GOOD


def _together(checks: Sequence[Checked]) -> list[Checked]:
    """With what only shows beside the others: names that stand twice, and rows that are not theirs to replace."""
    wrong = board.refused(checks)
    return [replace(one, faults=(*one.faults, wrong[one.name])) if one.name in wrong else one for one in checks]


def _folders(named: Sequence[str]) -> list[Path]:
    """Submissions, or folders whose folders are submissions, in the order of their names."""
    found: list[Path] = []
    for name in named:
        folder = Path(name)
        if not folder.is_dir():
            raise UsageError(f"{folder} is not a folder; name run folders with a {hostile.SUBMISSION}")
        inner = sorted(path for path in folder.iterdir() if path.is_dir() and _sent(path))
        found += inner if inner and not (folder / hostile.SUBMISSION).exists() else [folder]
    return list(dict.fromkeys(found))


def _sent(folder: Path) -> bool:
    """Whether it was meant as a submission: one file of a run is enough, so that none is passed over in silence."""
    return any(os.path.lexists(folder / name) for name in hostile.NEEDED)
