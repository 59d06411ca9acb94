"""Trained models are made once: what is cached, what is not, and what a damaged cache costs."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from qbench.data import catalog as data
from qbench.data.text import BadData
from qbench.suite.cache import Entry
from qbench.suite.cells import Cell, Environment
from qbench.suite.expand import expand
from qbench.suite.prepare import Prepared, prepare
from qbench.suite.schema import load

SUITE = """
suite: tiny
version: 1
question: Is it kept?
data: text:notes.txt
spec: {layers: 2, width: 16, heads: 2, context: 16}
training: {optimizer: muon, lr: 0.02, steps: 6, batch: 4, shape_steps: [0, 3], checkpoints: [3]}
models: [{name: free, arch: residual-free}]
"""


@pytest.fixture
def cell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Cell:
    monkeypatch.setenv("QBENCH_CACHE", str(tmp_path / "cache"))
    torch.set_num_threads(1)
    (tmp_path / "notes.txt").write_text("".join(f"line {i} of {i * i}\n" for i in range(2000)))
    (tmp_path / "suite.yaml").write_text(SUITE)
    suite = load(tmp_path / "suite.yaml")
    environment = Environment(data_digest=data.digest(suite.data), torch_version=torch.__version__, device="cpu")
    return next(cell for cell in expand(suite, environment) if cell.measurement.what == "training")


def made(cell: Cell) -> tuple[Prepared, list[int]]:
    steps: list[int] = []
    return prepare(cell, "cpu", lambda done, _: steps.append(done)), steps


def test_a_model_is_trained_once_and_then_read_to_the_bit(cell: Cell) -> None:
    first, trained = made(cell)
    again, nothing = made(cell)
    assert (first.cached, again.cached, nothing) == (False, True, [])
    assert trained[-1] == 6
    assert first.digest == again.digest
    assert first.log == again.log


def test_the_log_has_losses_shapes_and_a_summary(cell: Cell) -> None:
    *rows, summary = made(cell)[0].log
    assert [row["step"] for row in rows if "validation_loss" in row["values"]] == [0, 1, 2, 3, 4, 5, 6]
    assert {row["step"] for row in rows if row.get("site") == "blocks.0.out"} == {0, 3, 6}
    assert summary["values"]["training_tokens"] == 6 * 4 * 16
    assert summary["values"]["loss"] == rows[-1]["values"].get("validation_loss", summary["values"]["loss"])


def test_checkpoints_keep_the_weights_of_their_steps(cell: Cell) -> None:
    last = made(cell)[0].model
    entry = Entry(cell.training_key)
    half = entry.model(3)
    assert half is not None
    assert not torch.equal(half.weights()["blocks.0.attn.q"], last.weights()["blocks.0.attn.q"])
    assert entry.model(2) is None


def test_watching_other_steps_trains_again_to_the_same_weights(cell: Cell) -> None:
    first, _ = made(cell)
    assert cell.training is not None
    other = replace(cell, training={**cell.training, "shape_steps": [1]})
    second, _ = made(other)
    assert (other.training_key, second.cached, second.digest) == (cell.training_key, False, first.digest)
    assert made(cell)[0].cached


@pytest.mark.parametrize("damage", [b"", b"garbage", None], ids=["empty", "garbage", "truncated"])
def test_damaged_weights_are_trained_again(cell: Cell, damage: bytes | None) -> None:
    first, _ = made(cell)
    file = Entry(cell.training_key).path / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-5] if damage is None else damage)
    second, _ = made(cell)
    assert (second.cached, second.digest) == (False, first.digest)


def test_text_that_changed_since_the_plan_is_refused(cell: Cell) -> None:
    Path(cell.data.removeprefix("text:")).write_text("something else\n" * 500)
    with pytest.raises(BadData, match=r"notes\.txt changed while the run was under way"):
        made(cell)
