"""From records to decisions, as a user goes: compare, gates that pass, fail and cannot tell, a leaderboard.

Every record was measured: the quickstart's losses of trained models, and four versions of one small checkpoint, the
third with outliers put into it that do not change what it computes.
"""

import csv
import json
from hashlib import sha256
from pathlib import Path
from zipfile import ZipFile

import pytest

from qbench.cli.main import main
from qbench.gate.policy import shipped

RESULTS = Path(__file__).parents[1] / "results"
QUICKSTART = RESULTS / "leaderboard" / "quickstart"
RELEASES = RESULTS / "releases"
POLICY = """\
policy: boundaries
version: 1
suite: {{name: quickstart, version: 1}}
windows: [{windows}]
against: unquantized
rules:
  - name: boundaries
    metric: loss
    arm: residual-free
    scope: boundaries
    quantizer: {quantizer}
    margin: {{relative: 0.01}}
    seeds: 3
"""
Capture = pytest.CaptureFixture[str]


def qbench(capsys: Capture, *arguments: str | Path) -> tuple[int, str]:
    code = main([str(one) for one in arguments])
    said = capsys.readouterr()
    assert "Traceback" not in said.err
    return code, said.out


def boundaries(folder: Path, quantizer: str, windows: int = 128) -> Path:
    path = folder / "policy.yaml"
    path.write_text(POLICY.format(quantizer=quantizer, windows=windows))
    return path


def test_compare_two_models_of_the_quickstart(capsys: Capture) -> None:
    pair = "residual (equal loss)=residual-free"
    code, said = qbench(capsys, "compare", QUICKSTART, QUICKSTART, "--arm", pair, "--format", "json")
    assert code in (0, 1)
    rows = {(row["question"], row["metric"]): row for row in json.loads(said)["rows"]}
    worst = rows["loss, int3/token @ linear", "error_rate"]
    assert (worst["verdict"], worst["seeds"], worst["n"]) == ("regressed", 3, 128)
    assert worst["difference"] == pytest.approx(worst["b"] - worst["a"])
    # Equal loss was the aim of the arm, and three seeds do not tell the two apart.
    assert rows["loss, unquantized", "loss"]["verdict"] == "no evidence"


def test_a_gate_that_passes(tmp_path: Path, capsys: Capture) -> None:
    code, said = qbench(capsys, "gate", boundaries(tmp_path, "int8/token"), "--candidate", QUICKSTART)
    assert (code, said.splitlines()[0]) == (0, "PASS  quickstart  policy boundaries version 1")
    code, said = qbench(capsys, "gate", "w8-lossless", "--candidate", RELEASES / "release-1.qbench.zip")
    assert (code, said.split()[0]) == (0, "PASS")


def test_a_gate_that_fails_on_three_bits(tmp_path: Path, capsys: Capture) -> None:
    code, said = qbench(capsys, "gate", boundaries(tmp_path, "int3/token"), "--candidate", QUICKSTART)
    assert (code, said.split()[0]) == (1, "FAIL")
    assert "is above the margin" in said


def test_a_gate_that_fails_on_injected_outliers(tmp_path: Path, capsys: Capture) -> None:
    """The unquantized model is the same function; its weights are not the same to a quantizer."""
    run = RELEASES / "release-3.qbench.zip"
    code, said = qbench(capsys, "gate", "w8-lossless", "--candidate", run, "--out", tmp_path)
    assert (code, said.split()[0]) == (1, "FAIL")
    found = {rule["rule"]: rule for rule in json.loads((tmp_path / "verdict.json").read_text())["results"]}
    assert (found["loss"]["status"], found["size"]["status"]) == ("FAIL", "PASS")
    assert qbench(capsys, "gate", "kv8", "--candidate", run)[0] == 0  # keys and values are what they were


def test_gates_that_cannot_tell(tmp_path: Path, capsys: Capture) -> None:
    few = qbench(capsys, "gate", boundaries(tmp_path, "int8/token", windows=512), "--candidate", QUICKSTART)
    assert (few[0], few[1].split()[0]) == (3, "INCONCLUSIVE")
    assert "measure 512 windows" in few[1]
    close = qbench(capsys, "gate", boundaries(tmp_path, "int4/token"), "--candidate", QUICKSTART)
    assert close[0] == 3
    assert "more seeds" in close[1]


def test_what_is_not_there_is_an_error(tmp_path: Path, capsys: Capture) -> None:
    code, said = qbench(capsys, "gate", boundaries(tmp_path, "int2/token"), "--candidate", QUICKSTART)
    assert (code, said.split()[0]) == (4, "ERROR")


def test_drift_over_releases(capsys: Capture) -> None:
    """Rounding to bfloat16 is no change; noise in the weights is."""
    first, second, noisy = (RELEASES / f"release-{i}.qbench.zip" for i in (1, 2, 4))
    assert qbench(capsys, "gate", "regression", "--candidate", second, "--baseline", first, "--anchor", first)[0] == 0
    against = ("--baseline", second, "--anchor", first, "--format", "json")
    code, said = qbench(capsys, "gate", "regression", "--candidate", noisy, *against)
    found = {rule["rule"]: rule["status"] for rule in json.loads(said)["results"]}
    assert code == 1
    assert (found["loss (against previous)"], found["loss (against anchor)"]) == ("FAIL", "FAIL")


def test_the_documented_replays_are_what_the_policies_say(capsys: Capture) -> None:
    text = (RESULTS.parent / "docs" / "gate.md").read_text()
    runs = sorted(RELEASES.glob("*.zip"))
    assert len(runs) == 4
    for name in shipped():
        code, said = qbench(capsys, "gate", name, "--replay", *runs)
        assert code == 0
        counts, _, verdicts = said.partition("\n\n")
        assert f"$ qbench gate {name} --replay results/releases/*.zip\n{counts}\n" in text
        assert len(verdicts.splitlines()) == 4


def test_a_leaderboard_of_four_runs(tmp_path: Path, capsys: Capture) -> None:
    release = tmp_path / "release-1"
    with ZipFile(RELEASES / "release-1.qbench.zip") as file:
        file.extractall(release)
    names = ("records.jsonl", "manifest.json")
    digests = "".join(f"  {name}: {sha256((release / name).read_bytes()).hexdigest()}\n" for name in names)
    (release / "submission.yaml").write_text(
        f"submission: 1\nwho: tests\nmodel: a small decoder\nlicence: Apache-2.0\nprovenance: self-attested\n"
        f"digests:\n{digests}"
    )
    runs = (RESULTS / "growth", RESULTS / "wiring", QUICKSTART, release)
    code, said = qbench(capsys, "leaderboard", "check", *runs)
    assert (code, len(said.splitlines())) == (0, 4)
    site = tmp_path / "site"
    assert qbench(capsys, "leaderboard", "build", *runs, "--out", site)[0] == 0
    with (site / "rows.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert {row["suite"].split()[0] for row in rows} == {"growth", "wiring", "quickstart", "deploy-lm"}
    assert len({row["group"] for row in rows}) > 4  # what cannot be compared is not ranked together
