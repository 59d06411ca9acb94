"""A training that is cut off, by an error or by kill -9, ends as one that was not: the same bits and the same log."""

import os
import signal
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from test_faults import PLUGIN, until
from tiny import CLOCKS, SUITE, Bench, values, workers

from qbench.suite import material, resume
from qbench.suite.cache import Entry
from qbench.suite.cells import Cell, Environment
from qbench.suite.expand import expand
from qbench.suite.prepare import Prepared, prepare
from qbench.suite.schema import load

HEAD = """
suite: tiny
version: 1
question: Does it go on?
training: {optimizer: soap, lr: 0.003, steps: 20, batch: 4, shape_steps: [0, 7, 15], checkpoints: [3, 12]}
models: [{name: one, arch: residual}]
"""
SIZE = "layers: 2, width: 16, heads: 2"
DATA = {
    "text": f"data: text:notes.txt\nspec: {{{SIZE}, context: 16}}\n",
    "problems": f"data: 'dyck:k=4,length=16,sequences=4000'\nspec: {{{SIZE}, context: 16, vocabulary: 9}}\n",
    "images": f"data: digits\nspec: {{{SIZE}, task: vision, vocabulary: 10}}\n",
}


class CutOff(RuntimeError):
    """Power went away."""


@pytest.fixture(params=DATA)
def cell(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cell]:
    monkeypatch.setenv("QBENCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(resume, "SECONDS", 0.0)
    monkeypatch.setattr(resume, "SHARE", 1e9)  # at every step
    torch.set_num_threads(1)
    (tmp_path / "notes.txt").write_text("".join(f"line {i} of {i * i}\n" for i in range(2000)))
    (tmp_path / "suite.yaml").write_text(HEAD + DATA[request.param])
    suite = load(tmp_path / "suite.yaml")
    digest = material.expected(suite).digest
    environment = Environment(data_digest=digest, torch_version=torch.__version__, device="cpu")
    return next(cell for cell in expand(suite, environment) if cell.measurement.what == "training")


def made(cell: Cell, stop: int | None = None) -> tuple[Prepared, list[int]]:
    steps: list[int] = []

    def progress(done: int, _: int) -> None:
        steps.append(done)
        if done == stop:
            raise CutOff

    return prepare(cell, "cpu", progress), steps


def timeless(log: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [row | {"values": {k: v for k, v in row["values"].items() if k not in CLOCKS}} for row in log]


def kept(cell: Cell) -> Path:
    return Entry(cell.training_key).snapshot(cell.log_key)


def test_what_was_cut_off_goes_on_to_the_same_bits_and_the_same_log(
    cell: Cell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for stop in (8, 14):  # the loss is noted at every second step, shapes at 7 and 15
        with pytest.raises(CutOff):
            made(cell, stop)
        assert kept(cell).exists()
    second, steps = made(cell)
    assert steps == [14, 16, 18, 20]
    assert not kept(cell).exists()
    half = Entry(cell.training_key).model(12)
    monkeypatch.setenv("QBENCH_CACHE", str(tmp_path / "other"))
    whole, steps = made(cell)
    assert steps[0] == 0
    assert second.digest == whole.digest
    assert timeless(second.log) == timeless(whole.log)
    assert [row["step"] for row in second.log if row.get("site") == "embed"] == [0, 7, 15, 20]
    again = Entry(cell.training_key).model(12)
    assert half is not None
    assert again is not None
    assert all(torch.equal(a, b) for a, b in zip(half.parameters(), again.parameters(), strict=True))


@pytest.mark.parametrize("damage", [b"", b"garbage", None], ids=["empty", "garbage", "truncated"])
def test_a_damaged_snapshot_begins_anew(cell: Cell, damage: bytes | None) -> None:
    with pytest.raises(CutOff):
        made(cell, 8)
    kept(cell).write_bytes(kept(cell).read_bytes()[:-5] if damage is None else damage)
    _, steps = made(cell)
    assert steps[0] == 0
    assert not kept(cell).exists()


def test_it_costs_little(cell: Cell, monkeypatch: pytest.MonkeyPatch) -> None:
    """No snapshot before its time, and then none before a hundred times what it took."""
    now = 0.0
    saved: list[float] = []

    def save(*_: object) -> None:
        nonlocal now
        saved.append(now)
        now += 3.0

    def progress(_done: int, _of: int) -> None:
        nonlocal now
        now += 30.0

    monkeypatch.setattr(resume, "SECONDS", 20.0)
    monkeypatch.setattr(resume, "SHARE", 0.02)
    monkeypatch.setattr(resume, "monotonic", lambda: now)
    monkeypatch.setattr(resume.snapshot, "save", save)
    prepare(cell, "cpu", progress)  # every second step takes half a minute
    assert saved == [30.0, 183.0, 336.0]


NOTED = """
import sys
if 'torch' in sys.modules:
    from qbench.suite import resume
    resume.SECONDS, resume.SHARE, load = 0.1, 1.0, resume.snapshot.load
    def noted(trainer, path):
        history = load(trainer, path)
        open('resumed', 'w').write(str(trainer.steps))
        return history
    resume.snapshot.load = noted
"""


@pytest.mark.slow  # three runs
@pytest.mark.skipif(sys.platform != "linux", reason="looks at processes through /proc")
def test_a_killed_worker_goes_on_from_its_snapshot(tmp_path: Path) -> None:
    suite = SUITE.replace("steps: 12", "steps: 400").replace("[0, 6]", "[0, 6, 100, 300]")
    suite = suite.replace("  - {name: residual-free, arch: residual-free, training: {lr: 0.01}}\n", "")
    bench, whole = Bench.new(tmp_path / "killed", suite), Bench.new(tmp_path / "whole", suite)
    for one in (bench, whole):
        (one.home / "plugin.py").write_text(PLUGIN + NOTED)
    options = ("run", bench.suite, "--out", bench.out, "--plugin", bench.home / "plugin.py", "--workers", "1")
    process = bench.start(*options)
    snapshots = lambda: list(bench.cache.glob("models/*/training-*.safetensors"))  # noqa: E731
    until(snapshots, process)
    os.kill(workers(process.pid)[0], signal.SIGKILL)
    process.communicate()
    assert process.returncode == 4
    assert snapshots()
    assert bench.qbench(*options).returncode == 0
    assert 0 < int((bench.home / "resumed").read_text()) < 400
    assert not snapshots()
    assert whole.run("--plugin", whole.home / "plugin.py").returncode == 0
    assert _measured(values(bench.out)) == _measured(values(whole.out))
    assert not (whole.home / "resumed").exists()


def _measured(found: Mapping[str, Any]) -> dict[str, Any]:
    return {cell: (one["spec"], one["records"], one["warnings"]) for cell, one in found.items()}
