"""A suite that runs in seconds, and the command that runs it, as its users run it: as a process of its own."""

import json
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import qbench
from qbench.results.run import read

SUITE = """\
# Does the machinery work? Its numbers mean nothing.
suite: tiny
version: 1
question: Does the machinery work?
seeds: [0]
data: text:words.txt
spec: {layers: 2, width: 16, heads: 2, context: 16}
training: {optimizer: muon, steps: 12, batch: 4, shape_steps: [0, 6]}
models:
  - {name: residual, arch: residual, training: {lr: 0.02}}
  - {name: residual-free, arch: residual-free, training: {lr: 0.01}}
tensors:
  - {kind: activation, windows: 4, quantizers: [int4/token, mxfp4]}
  - {kind: gradient, windows: 4, quantizers: [int8/tensor]}
  - {kind: weight, quantizers: [int4/channel]}
evaluate: {windows: 8, split: test}
treatments:
  - {scope: boundaries, quantizers: [int4/tensor]}
  - {scope: weights, quantizers: [int4/channel]}
  - {name: W4A8, assign: {"weight:weights": int4/channel, "activation:linear": int8/token}}
profiles:
  short: {training: {steps: 4, shape_steps: []}}
"""
SECOND_ARM = "  - {name: residual-free, arch: residual-free, training: {lr: 0.01}}\n"
ARMS = ("residual", "residual-free")
PER_ARM = 1 + 3 + 4 + 4  # training, shape of each kind, errors, losses with the unquantized one
CALIBRATION = 1 + 2  # shape, errors of the activation quantizers
CELLS = CALIBRATION + 2 * PER_ARM

USER = "grace-hopper"  # who must not be found in anything stored
CLOCKS = {"cpu_seconds", "tokens_per_second", "model_flops"}  # values that no run repeats


@dataclass(frozen=True)
class Bench:
    """A folder with a suite, its text and a cache; commands run in it."""

    home: Path

    @classmethod
    def new(cls, home: Path, suite: str = SUITE) -> "Bench":
        home.mkdir(exist_ok=True)
        bench = cls(home)
        bench.suite.write_text(suite)
        (home / "words.txt").write_text(text())
        # A file of the user's that must not take the place of the standard library's, in no process.
        (home / "queue.py").write_text("raise AssertionError('the wrong queue was imported')\n")
        return bench

    @property
    def suite(self) -> Path:
        return self.home / "tiny.yaml"

    @property
    def out(self) -> Path:
        return self.home / "run"

    @property
    def cache(self) -> Path:
        return self.home / "cache"

    def copy(self, home: Path) -> "Bench":
        shutil.copytree(self.home, home, dirs_exist_ok=True)
        return Bench(home)

    def environment(self, first: Path | None = None) -> dict[str, str]:
        """Of a user called USER; `first` goes before everything that can be imported."""
        places = [*([first] if first else []), Path(qbench.__file__).parents[1]]
        return os.environ | {
            "PYTHONPATH": os.pathsep.join(map(str, places)),
            "QBENCH_CACHE": str(self.cache),
            "HOME": str(self.home / USER),
            "LOGNAME": USER,
            "CUDA_VISIBLE_DEVICES": "",
            "PYTHONUNBUFFERED": "",
            "COLUMNS": "120",
        }

    def start(self, *arguments: str | Path, first: Path | None = None, **options: Any) -> "subprocess.Popen[str]":
        piped: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        return subprocess.Popen(
            [sys.executable, "-P", "-W", "error", "-m", "qbench.cli.main", *map(str, arguments)],
            cwd=self.home,
            env=self.environment(first),
            **piped | options,
        )

    def qbench(self, *arguments: str | Path, **options: Any) -> "subprocess.CompletedProcess[str]":
        process = self.start(*arguments, **options)
        try:
            out, err = process.communicate(timeout=120)
        finally:
            process.kill()
        return subprocess.CompletedProcess(process.args, process.returncode, out, err)

    def run(self, *arguments: str | Path, **options: Any) -> "subprocess.CompletedProcess[str]":
        return self.qbench("run", self.suite, "--out", self.out, *arguments, **options)

    def plan(self, *arguments: str | Path, **options: Any) -> dict[str, str]:
        """Cell id -> "arm/seed  title" of what is still to be run, from a dry run."""
        done = self.run("--dry-run", *arguments, **options)
        assert done.returncode == 0, done.stderr
        *cells, _ = done.stdout.splitlines()
        return dict(line.split("  ", 1) for line in cells)

    def find(self, what: str, *arguments: str | Path) -> str:
        """The id of the first planned cell whose description has `what` in it."""
        return next(cell for cell, description in self.plan(*arguments).items() if what in description)

    def session(self) -> dict[str, Any]:
        """What the manifest says of the last run."""
        return json.loads((self.out / "manifest.json").read_text())["sessions"][-1]


def text() -> str:
    """3,000 words of 60: enough to learn from, the same everywhere."""
    chance = random.Random(0)
    words = ["".join(chance.choices("abcdefgh", k=chance.randint(2, 7))) for _ in range(60)]
    return "\n".join(" ".join(chance.choices(words, k=10)) for _ in range(300))


def values(folder: Path) -> Mapping[str, Any]:
    """All that a run measured, by cell, without what its clocks said."""
    return {
        cell: {
            "status": attempt.closing.status,
            "spec": attempt.closing.spec,
            "question": attempt.closing.question,
            "warnings": attempt.closing.warnings,
            "records": [asdict(r) | {"values": _timeless(r.values)} for r in attempt.records],
        }
        for cell, attempt in read(folder).cells.items()
    }


def statuses(folder: Path, arm: str = "") -> list[str]:
    """How the cells of an arm, or all of them, ended."""
    cells = read(folder).cells.values()
    return [a.closing.status for a in cells if arm in ("", a.closing.spec["arm"])]


def workers(parent: int) -> list[int]:
    """Process ids of the living workers of a run."""
    found: list[int] = []
    for place in Path("/proc").glob("[0-9]*"):
        try:
            line = (place / "cmdline").read_bytes()
        except OSError:  # it ended while we looked
            continue
        if b"qbench.suite.worker" in line and _stat(int(place.name))[1:2] == [str(parent)]:
            found.append(int(place.name))
    return found


def alive(process: int) -> bool:
    """Whether a process is there and no zombie."""
    return _stat(process)[:1] not in ([], ["Z"])


def _stat(process: int) -> list[str]:
    """The fields of /proc/PID/stat after the name, from the state on; none where there is no such process."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return []


def _timeless(numbers: Mapping[str, float]) -> dict[str, float]:
    return {name: value for name, value in numbers.items() if name not in CLOCKS}
