"""Vectors that are not what their record says are told apart from vectors that are not there, and prove nothing."""

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_gate_compare import LOSS, NOISE, W4, Folder, N, only, pair, run, spec
from test_gate_evidence import ODD, spoilt

from qbench.cli.main import ERROR, GOOD
from qbench.gate.compare import How, compare

BAD = {
    "NaN": (np.where(np.arange(N) == 3, np.nan, LOSS), "1 of 512 windows are not finite"),
    "other numbers": (LOSS - 1, "its record says"),
    "another form": (LOSS.reshape(2, -1), "another form than a number for each window"),
}


@pytest.mark.parametrize("what", BAD)
def test_vectors_that_do_not_reproduce_their_record_are_missing(tmp_path: Path, what: str) -> None:
    vectors, reason = BAD[what]
    Folder(tmp_path / "a").add(spec(), {"loss": LOSS})
    Folder(tmp_path / "b").add(spec(), {"loss": vectors}, values={"loss": float(LOSS.mean()) + 1e-3}, n=N)
    row = only(compare(tmp_path / "a", tmp_path / "b"))
    assert (row.verdict, row.n) == ("no evidence", 0)
    assert reason in row.note


def test_an_increase_that_its_two_losses_do_not_give_is_missing(tmp_path: Path) -> None:
    for name, said in (("a", 0.1), ("b", 0.05)):
        folder = Folder(tmp_path / name).add(spec(), {"loss": LOSS})
        values = {"loss": float((LOSS + 0.1 + NOISE).mean()), "loss_increase": said + float(NOISE.mean())}
        folder.add(spec(measurement={"treatment": W4}), {"loss": LOSS + 0.1 + NOISE}, values=values)
    row = only(compare(tmp_path / "a", tmp_path / "b", How(metrics=("loss_increase",))))
    assert row.verdict == "no evidence"
    assert row.note.startswith("the evidence gives 0.0991832, its record says 0.0491832")


def test_the_bytes_of_a_model_are_compared_and_exported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a, b = pair(tmp_path, LOSS)
    for folder, size in ((a, 1000.0), (b, 1001.0)):
        Folder(folder).add(spec(measurement={"treatment": W4}), {}, values={"bytes/model": size})
    row = only(compare(a, b, How(metrics=("bytes/model",))))
    assert (row.verdict, row.difference, row.unit, row.method) == ("regressed", 1.0, "B", "counted, not sampled")
    assert run("export", b) == GOOD
    rows = csv.DictReader(capsys.readouterr().out.splitlines())
    assert [(one["value"], one["unit"]) for one in rows if one["metric"] == "bytes/model"] == [("1001.0", "B")]


@pytest.mark.parametrize("odd", ODD)
def test_an_odd_manifest_is_told_in_a_line(tmp_path: Path, capsys: pytest.CaptureFixture[str], odd: Any) -> None:
    a, b = pair(tmp_path, LOSS)
    (b / "manifest.json").write_text(json.dumps({"schema": 1, **odd} if odd else odd))
    for command in (("compare", a, b), ("gate", "w8-lossless", "--candidate", b), ("pack", b, "--out", b / "x.zip")):
        assert run(*command) == ERROR
    assert "Traceback" not in capsys.readouterr().err


def test_a_damaged_pack_is_told_in_a_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a, _ = pair(tmp_path, LOSS)
    packed = spoilt(tmp_path / "x.zip", 8)
    for command in (("compare", a, packed), ("gate", "w8-lossless", "--candidate", packed)):
        assert run(*command) == ERROR
    said = capsys.readouterr()
    assert "Traceback" not in said.err
    assert "is no packed run" in said.out
