"""A run folder as a value: rows, filters, failures, and how fast."""

import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from qbench.results import evidence, origin
from qbench.results.record import Closing, Record
from qbench.results.run import NoRun, Row, read
from qbench.results.store import Store, settled


def spec(arm: str = "residual", seed: int = 0, **measurement: object) -> dict:
    return {
        "suite": "growth", "version": 1, "arm": arm, "seed": seed, "device": "cpu",
        "model": {"arch": arm, "wiring": arm}, "training": {"optimizer": "muon", "lr": 0.02},
        "data": {"name": "stdlib", "digest": "ab"}, "measurement": measurement,
    }  # fmt: skip


def closing(
    cell: str, arm: str = "residual", seed: int = 0, status: str = "measured", **measurement: object
) -> Closing:
    what = spec(arm, seed, **({"what": "shape"} | measurement))
    return Closing(
        cell=cell, question="q", status=status, spec=what, error="" if status == "measured" else "out of memory"
    )  # type: ignore[arg-type]


def fill(folder: Path) -> None:
    with Store.open(folder) as store:
        for cell, arm, seed in (("aa1", "residual", 0), ("aa2", "residual", 1), ("b", "residual-free", 0)):
            sites = [f"blocks.{i}.{place}" for i in range(2) for place in ("out", "mlp.in")]
            shapes = [
                Record(cell=cell, kind="activation", site=site, values={"rms": 1, "crest_db": 9}) for site in sites
            ]
            store.append(closing(cell, arm, seed), shapes)
        store.append(
            closing("c", status="failed"), [Record(cell="c", kind="activation", site="embed", values={"rms": 1})]
        )
        loss = Record(
            cell="d", kind="activation", scope="boundaries", quantizer="int4/tensor", bits_per_value=4.5,
            values={"loss": 2.5, "levels": 15}, intervals={"loss": (2.25, 2.75)}, n=128,
            samples=evidence.save(folder, {"loss": np.full(128, 2.5)}),
        )  # fmt: skip
        treatment = {
            "name": "int4/tensor @ boundaries",
            "scope": "boundaries",
            "assign": {"activation:boundaries": "int4/tensor"},
        }
        store.append(closing("d", what="loss", treatment=treatment), [loss])
        store.append(
            closing("e", what="training"),
            [
                Record(cell="e", step=0, values={"validation_loss": 5}),
                Record(cell="e", step=None, values={"validation_loss": 2}),
            ],
        )


def test_a_row_carries_all_that_its_number_belongs_to(tmp_path: Path) -> None:
    fill(tmp_path)
    rows = list(read(tmp_path).records(scope="boundaries"))
    assert rows[0] == Row(
        suite="growth", arm="residual", wiring="residual", optimizer="muon", seed=0, what="loss",
        treatment="int4/tensor @ boundaries", step=None, kind="activation", site="", scope="boundaries",
        quantizer="int4/tensor", slice="", bits_per_value=4.5, metric="loss", value=2.5, low=2.25, high=2.75, n=128,
        samples=rows[0]["samples"], cell="d",
    )  # fmt: skip
    assert [(row["metric"], row["low"], row["high"]) for row in rows[1:]] == [("levels", None, None)]
    assert set(rows[0]) == set(Row.__annotations__)


def test_rows_are_kept_by_all_conditions_together(tmp_path: Path) -> None:
    fill(tmp_path)
    run = read(tmp_path)

    def count(**where: object) -> int:
        return len(list(run.records(**where)))  # type: ignore[arg-type]

    assert count() == count(metric=None, site=None) == 3 * 4 * 2 + 2 + 2
    assert count(metric="rms") == count(metric="crest_db") == 12
    assert count(metric="rms", site="blocks.*.out") == 6
    assert count(metric="rms", site="blocks.*.out", arm="residual") == 4
    assert count(metric="rms", site="blocks.*.out", arm="residual", seed=0) == 2
    assert count(site="blocks") == 0  # a pattern names the whole site
    assert count(site="blocks.1.mlp.in") == 6
    assert count(kind="activation", quantizer="int4/tensor") == 2
    assert count(step=0) == 1
    assert count(what="training") == 2
    assert count(treatment="int4/tensor @ boundaries", metric="loss") == 1
    assert count(metric="missing") == 0


def test_a_wrong_condition_teaches(tmp_path: Path) -> None:
    fill(tmp_path)
    with pytest.raises(TypeError, match=r"records have no 'metrics'; did you mean 'metric'\? known: suite, arm"):
        read(tmp_path).records(metrics="rms")  # type: ignore[call-arg]


def test_failures_are_kept_apart(tmp_path: Path) -> None:
    fill(tmp_path)
    run = read(tmp_path)
    assert [(one.cell, one.status, one.error) for one in run.failed] == [("c", "failed", "out of memory")]
    assert all(row["cell"] != "c" for row in run.records())
    assert len(run.cells["c"].records) == 1


def test_a_cell_is_found_by_the_start_of_its_name(tmp_path: Path) -> None:
    fill(tmp_path)
    run = read(tmp_path)
    assert run.cell("aa1").closing.cell == "aa1"
    assert run.cell("b") is run.cells["b"]
    with pytest.raises(LookupError, match="2 cells start with 'aa'"):
        run.cell("aa")
    with pytest.raises(LookupError, match="no cell starts with 'x'"):
        run.cell("x")


def test_a_run_without_the_cells_of_an_older_suite(tmp_path: Path) -> None:
    fill(tmp_path)
    run = read(tmp_path).only({"aa1", "unknown"})
    assert list(run.cells) == ["aa1"]
    assert {row["cell"] for row in run.records()} == {"aa1"}


def test_evidence_and_manifest_come_along(tmp_path: Path) -> None:
    fill(tmp_path)
    origin.begin(tmp_path, origin.Asked(suite="suite: growth"))
    run = read(tmp_path)
    (row,) = run.records(metric="loss")
    assert run.evidence(row["samples"])["loss"].mean() == row["value"]
    assert run.manifest["sessions"][0]["suite"] == "suite: growth"


def test_frame_is_the_rows(tmp_path: Path) -> None:
    pandas = pytest.importorskip("pandas")
    fill(tmp_path)
    run = read(tmp_path)
    frame = run.frame(metric="rms")
    assert isinstance(frame, pandas.DataFrame)
    assert list(frame.columns) == list(Row.__annotations__)
    assert len(frame) == 12
    assert frame["value"].mean() == 1
    assert list(run.frame(metric="none").columns) == list(frame.columns)


def test_frame_without_pandas_teaches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(tmp_path)
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(ImportError, match="pip install pandas, or iterate over records"):
        read(tmp_path).frame()


def test_the_notebook_shows_counts_and_escapes_names(tmp_path: Path) -> None:
    with Store.open(tmp_path) as store:
        store.append(closing("a", arm="<script>alert(1)</script> & co"), [])
        store.append(closing("b", arm="plain", status="unsupported"), [])
    run = read(tmp_path)
    shown = run._repr_html_()
    assert "<script>" not in shown
    assert "<td>&lt;script&gt;alert(1)&lt;/script&gt; &amp; co</td><td>1</td><td>0</td><td>0</td>" in shown
    assert "<td>plain</td><td>0</td><td>0</td><td>1</td>" in shown
    assert repr(run) == f"Run({str(tmp_path)!r}: 1 measured, 0 failed, 1 unsupported)"


def test_a_folder_without_records_is_said(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(NoRun, match=r"holds no records\.jsonl; name the folder"):
            read(folder)


def test_odd_specs_are_read(tmp_path: Path) -> None:
    with Store.open(tmp_path) as store:
        for i, odd in enumerate([{}, {"model": None, "training": 3, "measurement": []}, {"arm": None, "seed": None}]):
            end = Closing(cell=str(i), question="", status="measured", spec=odd)
            store.append(end, [Record(cell=str(i), values={"rms": 1})])
    assert [row["wiring"] for row in read(tmp_path).records()] == ["", "", ""]


def test_ten_thousand_records_are_read_while_one_blinks(tmp_path: Path) -> None:
    """Best of five, because the machine has other things to do."""
    names = ["rms", "crest_db", "excess_kurtosis/tensor", "excess_kurtosis/token", "kurtosis/osp", "max_to_median"]
    with Store.open(tmp_path) as store:
        for i in range(400):
            records = [
                Record(
                    cell=f"{i:012d}",
                    kind="activation",
                    site=f"blocks.{j}.out",
                    values=dict.fromkeys(names, j / 7),
                    n=128,
                )
                for j in range(25)
            ]
            store.append(closing(f"{i:012d}"), records)

    def seconds(task: object) -> float:
        best = float("inf")
        for _ in range(5):
            start = time.process_time()
            task(tmp_path)  # type: ignore[operator]
            best = min(best, time.process_time() - start)
        return best

    assert sum(len(one.records) for one in read(tmp_path).cells.values()) == 10_000
    assert seconds(read) < 0.3
    assert seconds(settled) < 0.05


def test_reading_loads_nothing_heavy() -> None:
    code = (
        "import sys\n"
        "from qbench.results import digest, export, files, latex, lines, match, origin, private, record, run, store\n"
        "heavy = {'torch', 'numpy', 'duckdb', 'pandas', 'safetensors'} & set(sys.modules)\n"
        "import qbench.results.evidence, json; print(json.dumps([sorted(heavy), 'torch' in sys.modules]))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == [[], False]
