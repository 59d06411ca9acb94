"""The gate tests itself: every shipped policy blocks every forgery, and a gate that can be fooled is found out."""

from pathlib import Path

import numpy as np
import pytest
from gates import HEAD, policy, run

from qbench.gate import selftest as module
from qbench.gate.policy import load, shipped
from qbench.gate.selftest import selftest, table
from qbench.gate.source import opened
from qbench.gate.verdict import judge
from qbench.results.lines import BadRecords

KNOWN = Path(module.__file__).parent / "known_bad"
WANTED = (
    "another model",
    "pairs shuffled",
    "quantized cells dropped",
    "NaN in one window",
    "cost inflated to the margin",
    "cost inflated to twice the margin",
    "records of an old schema",
    "fewer windows than the minimum",
)


@pytest.mark.parametrize("name", shipped())
def test_every_shipped_policy_blocks_every_forgery(name: str) -> None:
    trials = selftest(load(name))
    assert [trial.name for trial in trials if not trial.good] == []
    assert trials[0].verdict.status == "PASS"
    assert set(WANTED) <= {trial.name for trial in trials}
    assert ("baseline exchanged" in {trial.name for trial in trials}) == (name == "regression")
    twice = next(trial for trial in trials if trial.name == "cost inflated to twice the margin")
    assert twice.verdict.status == "FAIL"
    assert len(table(trials).splitlines()) == len(trials) + 1


def test_a_real_runs_own_evidence_can_be_forged_too(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).normal(0.01, 0.1, 512)
    one = policy(tmp_path, "  - {metric: loss, margin: 0.05}\n")
    with opened(run(noise).write(tmp_path / "run")) as source:
        trials = selftest(one, source, tmp_path / "kept")
    assert [trial.name for trial in trials if not trial.good] == []
    assert (tmp_path / "kept" / "pairs-shuffled" / "records.jsonl").is_file()


def test_a_policy_that_cannot_pass_fails_its_self_test(tmp_path: Path) -> None:
    one = policy(tmp_path, "  - {metric: loss, margin: 0.05}\n", HEAD.replace("[512, 2048]", "[8]"))
    assert not selftest(one)[0].good


def test_a_gate_that_is_fooled_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    passing = selftest(load("kv8"))[0].verdict
    monkeypatch.setattr(module, "judge", lambda *_: passing)
    wrong = {trial.name for trial in selftest(load("kv8")) if not trial.good}
    assert "pairs shuffled" in wrong


BAD = sorted(path.name for path in KNOWN.glob("*.zip"))


@pytest.mark.parametrize("name", BAD)
def test_the_known_bad_runs_that_ship_are_blocked(name: str) -> None:
    one = load(KNOWN / "policy.yaml")
    try:
        with opened(KNOWN / name) as source:
            found = judge(one, source).status
    except BadRecords:
        found = "ERROR"
    assert (found == "PASS") == (name == "control.qbench.zip")


def test_a_run_may_be_its_own_baseline_in_a_self_test(tmp_path: Path) -> None:
    rules = "  - {metric: loss, margin: 0.05, against: [previous, anchor]}\n"
    noise = np.random.default_rng(0).normal(0.01, 0.1, 512)
    with opened(run(noise).write(tmp_path / "run")) as source:
        trials = selftest(policy(tmp_path, rules), source)
    assert [trial.name for trial in trials if not trial.good] == []
    assert "baseline exchanged" in {trial.name for trial in trials}
