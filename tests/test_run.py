"""`qbench run`, from a suite to records: complete, resumable, cached, repeatable, and able to prove it."""

import json
import re
import time
from pathlib import Path

import numpy as np
import pytest
from scipy import stats
from tiny import ARMS, CALIBRATION, CELLS, PER_ARM, SUITE, USER, Bench, statuses, values

from qbench.metrics.catalog import METRICS
from qbench.results.run import Run, read


@pytest.fixture(scope="session")
def run(first_run: Bench) -> Run:
    return read(first_run.out)


@pytest.fixture(scope="session")
def torchless(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that makes importing torch an error where it is searched first."""
    folder = tmp_path_factory.mktemp("torchless")
    (folder / "torch.py").write_text("raise AssertionError('torch was imported')\n")
    return folder


def one(run: Run, arm: str, treatment: str) -> dict[str, float]:
    return {row["metric"]: row["value"] for row in run.records(arm=arm, what="loss", treatment=treatment)}


def test_every_cell_is_measured(first_run: Bench) -> None:
    assert statuses(first_run.out) == ["measured"] * CELLS
    assert [len(statuses(first_run.out, arm)) for arm in ("calibration", *ARMS)] == [CALIBRATION, PER_ARM, PER_ARM]
    said = (first_run.home / "said.txt").read_text()
    assert f"{CELLS} cells measured\n" in said
    assert "training 2 models" in said
    assert (first_run.out / "report.html").stat().st_size > 10_000


def test_the_same_command_again_has_nothing_to_do(finished: Bench, torchless: Path) -> None:
    before = {path: path.read_bytes() for path in finished.out.rglob("*") if path.is_file()}
    seconds: list[float] = []
    for _ in range(3):  # the quickest of three: the machine may be busy
        start = time.perf_counter()
        again = finished.run(first=torchless)
        seconds.append(time.perf_counter() - start)
        assert (again.returncode, again.stderr) == (0, "")
    assert min(seconds) < 2
    assert again.stdout == f"{finished.out}: all {CELLS} cells are there; nothing to run\n"
    assert {path: path.read_bytes() for path in finished.out.rglob("*") if path.is_file()} == before


def test_a_fresh_run_with_one_worker_gives_the_same_values(first_run: Bench, tmp_path: Path) -> None:
    other = Bench.new(tmp_path)
    done = other.run("--workers", "1", "--quiet")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert values(other.out) == values(first_run.out)
    assert other.session()["models"] == first_run.session()["models"]
    assert other.session()["cost"]["models_trained"] == 2
    samples = [sorted(path.name for path in bench.out.glob("evidence/*")) for bench in (other, first_run)]
    assert samples[0] == samples[1]


def test_a_new_quantizer_runs_only_its_own_cells(finished: Bench) -> None:
    before = (finished.out / "records.jsonl").read_bytes()
    finished.suite.write_text(SUITE.replace("weight, quantizers: [", "weight, quantizers: [int3/channel, "))
    added = [f"{arm}/0  error of int3/channel on weight" for arm in ARMS]
    assert list(finished.plan().values()) == added
    done = finished.run()
    assert done.returncode == 0, done.stderr
    assert (finished.out / "records.jsonl").read_bytes().startswith(before)
    assert statuses(finished.out) == ["measured"] * (CELLS + 2)
    assert finished.session()["cost"]["models_trained"] == 0
    assert finished.session()["cells"] == {"measured": CELLS + 2}
    assert len(finished.session()["asked"]) == CELLS + 2


@pytest.fixture(scope="module")
def elsewhere(first_run: Bench, tmp_path_factory: pytest.TempPathFactory) -> Bench:
    """One cell of another suite about the same model; blocks of one value under -1, 0, 1 change nothing."""
    text = SUITE.replace("suite: tiny", "suite: other").replace("[int4/tensor]", '["int2/block:1"]')
    bench = Bench.new(tmp_path_factory.mktemp("elsewhere"), text)
    bench.cache.symlink_to(first_run.cache)
    done = bench.run("--only", bench.find("residual/0  loss, int2/block:1"))
    assert done.returncode == 0, done.stderr
    return bench


def test_another_suite_with_the_same_model_trains_nothing(elsewhere: Bench, run: Run) -> None:
    (cell,) = read(elsewhere.out).cells
    assert cell not in run.cells
    session = elsewhere.session()
    assert session["cost"]["models_trained"] == 0
    assert session["models"]["residual/0"] == run.manifest["sessions"][0]["models"]["residual/0"]
    assert session["cells"] == {"measured": 1, "open": CELLS - 1}
    again = elsewhere.run("--only", cell[:10])
    assert again.stdout == f"{elsewhere.out}: all cells that start with {cell[:10]} are there; nothing to run\n"


def test_a_quantizer_that_changes_nothing_is_named(elsewhere: Bench) -> None:
    (attempt,) = read(elsewhere.out).cells.values()
    assert attempt.closing.warnings == (
        "the error is exactly zero at activation:blocks.0.out, activation:blocks.1.out",
    )
    assert attempt.records[0].values["loss_increase"] == 0


def test_another_seed_is_another_model(warm: Bench, run: Run) -> None:
    options = ["--set", "seeds=[7]", "--profile", "short"]
    cell = warm.find("residual/7  training", *options)
    done = warm.run("--only", cell, *options)
    assert done.returncode == 0, done.stderr
    session = warm.session()
    assert session["cost"]["models_trained"] == 1
    assert session["models"]["residual/7"] not in run.manifest["sessions"][0]["models"].values()
    assert session["seeds"] == [7]
    assert (session["options"]["profile"], session["options"]["overrides"]) == ("short", ["seeds=[7]"])
    steps = [row["step"] for row in read(warm.out).records(metric="train_loss")]
    assert steps == [1, 2, 3, 4]


@pytest.mark.parametrize(
    "options",
    [["--profile", "short"], ["--set", "seeds=[1]"], ["--set", "training.lr=0.5"], ["--set", "spec.width=32"]],
    ids=" ".join,
)
def test_what_changes_a_model_changes_its_cells(first_run: Bench, options: list[str]) -> None:
    bench = Bench(first_run.home)
    fresh = {cell for cell, text in bench.plan(*options).items() if not text.startswith("calibration")}
    assert fresh.isdisjoint(read(first_run.out).cells)
    lr_is_overridden_by_the_arms = options[-1] == "training.lr=0.5"
    assert bool(fresh) != lr_is_overridden_by_the_arms


def test_a_dry_run_prints_the_plan_and_writes_nothing(tmp_path: Path, torchless: Path) -> None:
    bench = Bench.new(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    done = bench.run("--dry-run", "--workers", "1", first=torchless)
    assert (done.returncode, done.stderr) == (0, "")
    *cells, summary = done.stdout.splitlines()
    assert len(cells) == CELLS
    assert all(re.fullmatch(r"[0-9a-f]{16}  (calibration|residual(-free)?)/0  \S.*", line) for line in cells)
    assert re.fullmatch(
        rf"{CELLS} cells, {CELLS} to run; 2 models; about \d+ CPU seconds, \d+\.\d minutes on 1 workers", summary
    )
    assert sorted(tmp_path.rglob("*")) == before


def test_quantizers_prove_that_they_ran(run: Run) -> None:
    for row in run.records(metric="levels"):
        bits = {"int4/token": 4, "mxfp4": 4, "int8/tensor": 8, "int4/channel": 4, "int4/tensor": 4, "": 8}
        assert 1 < row["value"] <= 2 ** bits[row["quantizer"]]
    for arm in ARMS:
        touched = {t: one(run, arm, t).get("sites_touched") for t in ("int4/tensor @ boundaries", "W4A8")}
        assert touched == {"int4/tensor @ boundaries": 2, "W4A8": 2 * (6 + 4)}  # of 2 layers
        assert one(run, arm, "int4/tensor @ boundaries")["loss_increase"] != 0
        plain = one(run, arm, "unquantized")
        assert 0 <= plain["floor/numerical"] < 1e-4 < plain["floor/window"]
        assert "sites_touched" not in plain
        assert "loss_increase" not in plain


def test_windows_in_the_evidence_give_the_stored_intervals(run: Run) -> None:
    for arm in ARMS:
        rows = {(row["treatment"], row["metric"]): row for row in run.records(arm=arm, what="loss")}
        plain = run.evidence(rows["unquantized", "loss"]["samples"])
        treatments = {name for name, _ in rows} - {"unquantized"}
        assert len(treatments) == 3
        for name in ("unquantized", *treatments):
            vectors = run.evidence(rows[name, "loss"]["samples"])
            assert vectors["loss"].shape == vectors["error_rate"].shape == (8,)
            assert rows[name, "error_rate"]["value"] == pytest.approx(vectors["error_rate"].mean(), rel=1e-8)
            assert rows[name, "bits_per_byte"]["value"] == pytest.approx(vectors["loss"].mean() / np.log(2), rel=1e-8)
            _same_interval(rows[name, "loss"], vectors["loss"])
            if name != "unquantized":
                _same_interval(rows[name, "loss_increase"], vectors["loss"] - plain["loss"])
                spread = stats.sem(vectors["loss"] - plain["loss"])
                assert rows[name, "floor/window"]["value"] == pytest.approx(spread, rel=1e-6)


def _same_interval(row: dict, samples: np.ndarray) -> None:
    low, high = stats.ttest_1samp(samples, 0).confidence_interval(0.95)
    assert (row["value"], row["low"], row["high"]) == pytest.approx((samples.mean(), low, high), rel=1e-6)
    assert row["n"] == len(samples)


def test_bits_are_those_of_what_is_stored(run: Run) -> None:
    rows = {(r["treatment"], r["metric"]): r for r in run.records(arm="residual", what="loss")}
    # One fp32 scale for a batch of 8 windows x 16 tokens x 16 channels; one for each of a matrix's outputs.
    assert rows["int4/tensor @ boundaries", "loss"]["bits_per_value"] == pytest.approx(4 + 32 / (8 * 16 * 16))
    inputs, outputs = 5 * 16 + 64, 4 * 16 + 64 + 16  # of the six matrices of a block: q, k, v, out, up, down
    matrices = 4 * 16 * 16 + 2 * 16 * 64
    assert inputs == outputs == 144
    assert rows["int4/channel @ weights", "loss"]["bits_per_value"] == pytest.approx(4 + 32 * outputs / matrices)
    every = next(run.records(arm="residual", metric="parameters"))["value"]
    packed = 2 * (4 * matrices + 32 * outputs)
    whole = packed + 32 * (every - 2 * matrices)
    stored = rows["int4/channel @ weights", "bits_per_value/model"]["value"]
    assert stored == pytest.approx(whole / every)


def test_every_metric_is_in_the_catalog(run: Run) -> None:
    assert {row["metric"] for row in run.records()} <= METRICS.keys()


def test_the_training_is_logged(run: Run) -> None:
    for arm in ARMS:
        losses = {row["step"]: row["value"] for row in run.records(arm=arm, metric="validation_loss")}
        assert {0, 12} <= losses.keys()
        assert losses[12] < losses[0]
        shapes = run.records(arm=arm, what="training", site="blocks.0.out", metric="excess_kurtosis/token")
        assert [row["step"] for row in shapes] == [0, 6, 12]
        summary = {r["metric"]: r["value"] for r in run.records(arm=arm, what="training") if r["step"] is None}
        assert summary["training_tokens"] == 12 * 4 * 16
        assert summary["loss"] == losses[12]


def test_the_manifest_says_where_numbers_come_from(first_run: Bench, run: Run) -> None:
    (session,) = run.manifest["sessions"]
    assert session["suite"] == SUITE
    assert set(session["asked"]) == set(run.cells)
    assert {"python", "torch", "numpy"} <= session["versions"].keys()
    assert session["revisions"]["qbench"] is None or re.fullmatch(
        "[0-9a-f]{40}", session["revisions"]["qbench"]["commit"]
    )
    assert session["machine"].keys() == {"cpu", "cores", "system", "architecture"}
    assert (session["threads"], session["device"], session["seeds"]) == (1, "cpu", [0])
    assert session["started"] <= session["finished"]
    assert session["cells"] == {"measured": CELLS}
    data = {a.closing.spec["data"]["digest"] for a in run.cells.values() if a.closing.spec["arm"] in ARMS}
    assert set(session["data"].values()) == data
    assert session["models"].keys() == {f"{arm}/0" for arm in ARMS}
    assert all(re.fullmatch("[0-9a-f]{64}", digest) for digest in session["models"].values())
    cost = session["cost"]
    parts = [cost[f"{part}_cpu_seconds"] for part in ("training", "measuring", "startup")]
    assert all(part > 0 for part in parts)
    assert cost["cpu_seconds"] >= sum(parts) - 0.1  # of the parent and of all workers, the last one too
    assert cost["models_trained"] == 2


def test_nothing_private_is_stored(first_run: Bench) -> None:
    import platform

    private = {USER, str(first_run.home), first_run.home.name, str(Path(__file__).parents[1]), "words.txt'"}
    private |= {platform.node()} if len(platform.node()) > 3 else set()
    files = [path for path in first_run.out.rglob("*") if path.is_file()]
    assert len(files) > 5
    for path in files:
        content = path.read_bytes().decode(errors="replace")
        assert [name for name in private if name in content] == [], path.name
        if path.suffix in (".json", ".jsonl"):
            assert re.findall(r"(?<![\w.<>/])/(?:home|root|tmp|usr|work|var)/[^\s\"]*", content) == []


def test_json_has_no_numbers_that_json_lacks(first_run: Bench) -> None:
    def refuse(name: str) -> None:
        raise AssertionError(name)

    for line in (first_run.out / "records.jsonl").read_text().splitlines():
        json.loads(line, parse_constant=refuse)
