"""The exit code of a command is its answer, whoever reads the rest and whatever is in it."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from gates import policy, run

from qbench.cli import main as module
from qbench.cli.main import ERROR, GOOD, INTERRUPTED, NO, main


def unread(*arguments: str, folder: Path, unbuffered: str = "") -> int:
    """The exit code where nobody reads what the command prints."""
    read, write = os.pipe()
    os.close(read)
    command = [sys.executable, "-m", "qbench.cli.main", *arguments]
    plain = {**os.environ, "PYTHONUNBUFFERED": unbuffered}
    try:
        done = subprocess.run(command, stdout=write, stderr=subprocess.DEVNULL, cwd=folder, check=False, env=plain)
        return done.returncode
    finally:
        os.close(write)


def test_a_reader_that_went_away_changes_no_answer(tmp_path: Path) -> None:
    policy(tmp_path, "  - {metric: loss, margin: 0.05}\n")
    noise = np.random.default_rng(0).normal(0, 0.1, 512)
    for name, effect in (("good", 0.0), ("bad", 0.2)):
        run(noise + effect).write(tmp_path / name)
    wanted = {"good": GOOD, "bad": NO, "nowhere": ERROR}
    gate = ("gate", "policy.yaml", "--candidate")
    assert {name: unread(*gate, name, folder=tmp_path) for name in wanted} == wanted
    # Where the command itself met the broken pipe, it may not have come to its answer.
    assert unread(*gate, "good", folder=tmp_path, unbuffered="1") == ERROR


def test_what_a_terminal_cannot_show_stops_no_command() -> None:
    command = [sys.executable, "-m", "qbench.cli.main", "ls", "metrics"]
    plain = {**os.environ, "PYTHONIOENCODING": "ascii"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=plain)
    assert (done.returncode, done.stderr) == (GOOD, "")
    assert "nats\\xb2" in done.stdout


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [(KeyError("odd"), ERROR, "KeyError: 'odd'"), (KeyboardInterrupt(), INTERRUPTED, "qbench: stopped")],
    ids=["a mistake of ours", "Ctrl-C"],
)
def test_a_mistake_in_qbench_is_no_answer_of_the_gate(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], error: BaseException, code: int, said: str
) -> None:
    def fail(_: object) -> int:
        raise error

    monkeypatch.setattr(module, "_command", lambda _: fail)
    assert main(["doctor"]) == code
    assert said in capsys.readouterr().err
