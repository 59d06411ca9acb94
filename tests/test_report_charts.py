"""What the charts show, against the records they are made of."""

from functools import cache

import numpy as np
import pytest
from fake_run import QUANTIZERS, keep, quickstart

from qbench.report import axes, budget, charts, payload, tables
from qbench.report.view import View, view
from qbench.results.run import Run


@cache
def run() -> Run:
    return quickstart((0, 1))


@cache
def seen() -> View:
    return view(run(), first=["residual", "residual-free"])


def measured(**wanted: str) -> list[dict[str, float]]:
    """Values of the records of trained arms whose measurement has these fields, straight from the run."""
    return [
        dict(record.values)
        for attempt in run().cells.values()
        if attempt.closing.spec["arm"] != "calibration"
        and all(attempt.closing.spec["measurement"].get(name) == value for name, value in wanted.items())
        for record in attempt.records
    ]


@pytest.mark.parametrize("quantizer", QUANTIZERS)
def test_the_cloud_has_a_point_for_every_record(quantizer: str) -> None:
    panel = charts.clouds(seen()).panels[quantizer]
    records = measured(what="error", kind="activation", quantizer=quantizer)
    assert panel.points == len(records) > 300
    shown = sorted(mark.y for series in panel.series for mark in series.marks)
    assert shown == sorted(-values["error_db"] for values in records)


def test_the_default_quantizer_comes_first() -> None:
    found = list(charts.clouds(seen()).panels)
    told = [name for name in charts.FIRST_QUANTIZERS if name in found]
    assert len(told) > 3
    assert found[: len(told)] == told


def test_the_correlation_is_that_of_log_kurtosis_and_sqnr() -> None:
    panel = charts.clouds(seen()).panels["int4/tensor"]
    marks = [mark for series in panel.series for mark in series.marks]
    expected = np.corrcoef([np.log(mark.x + 3) for mark in marks], [mark.y for mark in marks])[0, 1]
    assert charts.correlation(marks) == pytest.approx(expected)
    assert f"r = −{abs(expected):.2f}" in panel.summary


def test_a_constant_has_no_correlation() -> None:
    assert charts.correlation([]) is None
    assert charts.correlation([charts.Mark(x=1.0, y=float(i)) for i in range(5)]) is None


@pytest.mark.parametrize("metric", ["loss", "loss_increase"])
def test_budgets_show_every_quantized_loss_once_for_each_arm(metric: str) -> None:
    panels = budget.budgets(seen(), metric)
    treatments = {
        (a.closing.spec["arm"], name)
        for a in run().cells.values()
        if (name := a.closing.spec["measurement"].get("treatment", {}).get("name")) and name != "unquantized"
    }
    if metric == "loss":
        treatments = {one for one in treatments if one[0] != "residual-free (no recipe)"}
    assert sum(panel.points for panel in panels) == len(treatments)
    assert {(panel.x, panel.y.low, panel.y.high) for panel in panels} == {
        (panels[0].x, panels[0].y.low, panels[0].y.high)
    }


def test_bars_span_the_seeds() -> None:
    [boundaries] = [panel for panel in budget.budgets(seen(), "loss") if panel.name == "boundaries"]
    for series in boundaries.series:
        for mark in series.marks:
            assert mark.low is not None
            assert mark.high is not None
            assert mark.low < mark.y < mark.high


def test_one_seed_has_no_bar() -> None:
    marks = [m for panel in budget.budgets(seen(), "loss_increase") for one in panel.series[3:] for m in one.marks]
    assert marks
    assert all(mark.low is None and mark.high is None for mark in marks)


def test_where_there_is_no_skip_a_branch_is_the_stream() -> None:
    stream, branch = charts.depth(seen(), "out"), charts.depth(seen(), "mlp.out")
    marks = {panel.name: {s.name: s.marks for s in panel.series} for panel in (stream, branch)}
    assert marks[branch.name]["residual-free"] == marks[stream.name]["residual-free"]
    assert marks[branch.name]["residual"] != marks[stream.name]["residual"]


def test_growth_runs_to_the_end_of_training() -> None:
    for series in charts.growth(seen(), "mlp.hidden").series:
        steps = [mark.x for mark in series.marks]
        assert steps == [0, 50, 150, 300, 340 if "equal loss" in series.name else 500]
        assert series.marks[0].y == 0.0


def test_the_seed_floor_is_the_deviation_over_seeds() -> None:
    floors = budget.floors(seen(), "loss", ["unquantized"])
    losses: dict[str, list[float]] = {}
    for attempt in run().cells.values():
        spec = attempt.closing.spec
        if spec["measurement"].get("treatment", {}).get("name") == "unquantized":
            losses.setdefault(spec["arm"], []).append(attempt.records[0].values["loss"])
    deviations = [np.std(found, ddof=1) for found in losses.values() if len(found) > 1]
    assert floors.seed == pytest.approx(np.sqrt(np.mean(np.square(deviations))))
    assert floors.numerical == 2.1e-6


def test_the_floors_stand_under_the_table_of_arms() -> None:
    table = tables.arms(seen(), ["int4/tensor @ boundaries"])
    assert [row[0].split()[0] for row in table.foot] == ["numerical", "window", "seed"]
    assert all(len(row) == len(table.columns) for row in (*table.rows, *table.foot))
    assert [row[0] for row in table.rows][:2] == ["residual", "residual-free"]


def test_calibration_prints_expected_beside_measured() -> None:
    table = tables.calibration(seen())
    assert table is not None
    rows = {row[0]: row[1:3] for row in table.rows}
    assert rows["laplace"] == ("2.97", "3")
    assert rows["sink-token"][1] == tables.NONE


def test_packed_points_are_within_a_hundredth() -> None:
    panel = charts.clouds(seen()).panels["mxfp4"]
    triples = [payload.triple(mark.y) for series in panel.series for mark in series.marks]
    shown = [(int(triple, 36) - 10_000) / 100 for triple in triples]
    assert shown == pytest.approx([mark.y for series in panel.series for mark in series.marks], abs=0.0051)


def test_a_symmetric_scale_is_linear_at_its_knee_and_keeps_the_sign() -> None:
    axis = axes.signed_log("loss", [-0.05, 2.0], knee=0.001)
    assert axis.scale(-0.1) == -axis.scale(0.1)
    labels = [label for _, label in axis.ticks]
    assert labels == ["−0.01", "−0.001", "0", "0.001", "0.01", "0.1", "1"]


def test_figures_draw_the_panels_of_the_page(tmp_path) -> None:
    pytest.importorskip("matplotlib", reason="figures need matplotlib")
    from qbench.report import figures

    assert dict(figures.figures(seen())).keys() >= {
        "error-against-kurtosis",
        "loss-against-bits",
        "kurtosis-mlp.hidden",
    }
    small = keep(run(), lambda cell: cell.spec["measurement"]["what"] in ("loss", "training"))
    first = {path.name: path.read_bytes() for path in figures.write(small, tmp_path / "a", ["svg"])}
    again = {path.name: path.read_bytes() for path in figures.write(small, tmp_path / "b", ["svg"])}
    assert first == again
    assert first.keys() == {"loss-increase-against-bits.svg", "loss-against-bits.svg"}
