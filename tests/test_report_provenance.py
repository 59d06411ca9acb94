"""What a page says about where its numbers come from."""

from dataclasses import replace

from fake_run import quickstart
from fake_study import study

from qbench.report import provenance
from qbench.report.view import view
from qbench.report.words import duration
from qbench.results.run import Run


def cost(run: Run) -> str:
    return dict(provenance.facts(run, view(run)))["cost"]


def test_the_cost_is_that_of_sessions_of_cells_and_of_models() -> None:
    run = quickstart()
    trained = sum(cell.closing.spec["measurement"]["what"] == "training" for cell in run.cells.values())
    rest = len(run.cells) - trained
    assert cost(run) == (
        "4 min 11 s of processor time, 2 min 31 s on the clock, at most 700 MiB of memory. "
        f"The cells one after another: {duration(trained / 4)} training and {duration(rest / 4)} measuring. "
        f"All models took {duration(trained * 19)} of processor time when they were trained, here or in an earlier run"
    )
    assert "choosing learning rates" in cost(study())


def test_a_session_that_was_stopped_keeps_no_account_and_that_is_said() -> None:
    run = quickstart()
    [session] = run.manifest["sessions"]
    stopped = session | {"finished": None, "cost": {}}
    both = replace(run, manifest=run.manifest | {"sessions": [stopped, session]})
    assert "on the clock, 1 session that did not finish left out, at most" in cost(both)
    alone = replace(run, manifest=run.manifest | {"sessions": [stopped]})
    assert cost(alone).startswith("1 session that did not finish left out. The cells one after another")
