"""What a run shows while it works: on a terminal what is under way, in a log what there is to know."""

import re
from functools import partial
from io import StringIO
from pathlib import Path

import pytest
import rich.console
from tiny import text

from qbench.cli import progress
from qbench.cli.progress import Bar, Lines
from qbench.suite.cells import Cell
from qbench.suite.device import find
from qbench.suite.run import Plan, Step, group_name, plan
from qbench.suite.schema import load

MODELS = 100
SUITE = f"""\
suite: many
version: 1
question: q
data: text:words.txt
spec: {{layers: 2, width: 16, heads: 2, context: 16}}
training: {{steps: 4, batch: 2}}
models:
  - name: "model {{aux_lr}}"
    product: {{arch: [residual], training.aux_lr: [{", ".join(f"0.{i:03}" for i in range(1, MODELS + 1))}]}}
evaluate: {{windows: 4}}
"""


@pytest.fixture
def planned(tmp_path: Path) -> Plan:
    (tmp_path / "many.yaml").write_text(SUITE)
    (tmp_path / "words.txt").write_text(text())
    return plan(load(tmp_path / "many.yaml"), tmp_path / "run", find("cpu"), 2)


def models(planned: Plan) -> list[tuple[Cell, ...]]:
    """The cells of each model."""
    return [group for group in planned.groups if group[0].training is not None]


def ended(cell: Cell, **more: object) -> Step:
    return Step(group_name(cell), cell=cell, **{"status": "measured", **more})  # type: ignore[arg-type]


def test_what_is_over_goes_and_what_is_under_way_is_seen(planned: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = StringIO()
    terminal = partial(rich.console.Console, file=seen, force_terminal=True, width=100, height=12)
    monkeypatch.setattr(rich.console, "Console", terminal)
    *over, measured, trained = models(planned)
    with Bar(planned) as bar:
        for group in over:
            bar.show(Step(group_name(group[0]), share=0.5))
            for cell in group:
                bar.show(ended(cell))
        bar.show(Step(group_name(measured[0]), share=1.0))
        bar.show(ended(measured[0]))
        bar.show(Step(group_name(trained[0]), share=0.25))
    assert f"  {group_name(over[0][0])} " in seen.getvalue()  # while it was under way
    last = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", seen.getvalue().rpartition("many ")[2])
    rows = [row.split("/0")[0].strip() for row in last.splitlines()[1:] if row.strip()]
    assert rows == [measured[0].arm, trained[0].arm]
    assert ("measuring" in last, "training 25%" in last) == (True, True)


def test_a_log_has_what_there_is_to_do_failures_and_how_far_it_is(
    planned: Plan, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = [0.0]
    monkeypatch.setattr(progress, "perf_counter", lambda: clock[0])
    first, second = models(planned)[:2]
    todo = len(planned.cells)

    def said(step: Step, seconds: float = 0.0) -> str:
        clock[0] += seconds
        lines.show(step)
        return capsys.readouterr().err

    with Lines(planned) as lines:
        start = capsys.readouterr().err
        assert start == f"{planned.out}: {todo} of {todo} cells to run on 2 workers\n"
        assert said(Step(group_name(first[0]), share=0.5)) == ""
        assert said(ended(first[0])) == ""  # a model is trained: no line of its own
        warned = said(ended(first[1], warnings=("hm",)), 10.5)
        assert re.fullmatch(rf"{first[0].arm}/0: hm\n +\d+%  2 of {todo} cells, .* left.*\n", warned), warned
        assert said(ended(second[0], status="failed", error="no")).startswith(f"failed: {second[0].arm}/0, training")
        assert said(ended(second[1], status="failed", error="no"), 9.0) == ""  # what fails a model is said once
