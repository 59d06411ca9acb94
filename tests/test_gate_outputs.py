"""A verdict in every form: JSON that its schema describes, JUnit a CI service counts, Markdown that stays text."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from html import unescape
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
import yaml
from gates import HEAD, policy, run, verdict

from qbench.gate.baseline import Acceptance, accept
from qbench.gate.finding import Finding, Verdict
from qbench.gate.outputs import to_json, to_junit, to_markdown, to_text, write
from qbench.gate.policy import shipped
from qbench.gate.source import opened

ROOT = Path(__file__).parents[1]
SCHEMAS = ROOT / "docs" / "schemas"
NOISE = np.random.default_rng(0).normal(0, 0.1, 512)
NOISE -= NOISE.mean()
RULES = """
  - {name: good, metric: loss, margin: 0.1}
  - {name: bad, metric: loss, margin: 0.01}
  - {name: open, metric: loss, margin: 0.051}
  - {name: gone, metric: kld, margin: 0.1}
  - {name: soft, metric: loss, margin: 0.01, tier: warn}
  - {name: waived, metric: loss, margin: 0.01}
waivers: [{rule: waived, owner: ann, reason: known, expires: 2027-01-01}]
"""
HOSTILE = "<script>alert(1)</script>|`x`\n# [a](b) @all \x00\x1b[2J"


@pytest.fixture
def mixed(tmp_path: Path) -> Verdict:
    return verdict(policy(tmp_path, RULES), run(NOISE + 0.05), tmp_path)


def schema(name: str) -> Callable[[object], None]:
    jsonschema = pytest.importorskip("jsonschema")
    rules = json.loads((SCHEMAS / f"{name}.json").read_text())
    jsonschema.Draft202012Validator.check_schema(rules)
    return jsonschema.Draft202012Validator(rules).validate


def test_each_rule_ends_as_it_must(mixed: Verdict) -> None:
    assert [one.status for one in mixed.results] == ["PASS", "FAIL", "INCONCLUSIVE", "ERROR", "FAIL", "FAIL"]
    assert [one.job for one in mixed.results] == ["green", "red", "red", "red", "yellow", "yellow"]
    assert (mixed.status, mixed.exit_code) == ("FAIL", 1)


def test_the_json_is_what_its_schema_says(mixed: Verdict, tmp_path: Path) -> None:
    check = schema("verdict")
    check(json.loads(to_json(mixed)))
    endless = replace(mixed.results[0].findings[0], high=float("inf"))
    infinite = replace(mixed, results=(replace(mixed.results[0], findings=(endless,)),))
    check(json.loads(to_json(infinite)))
    folder = run(NOISE).write(tmp_path / "lock")
    with opened(folder) as source:
        lock = accept(source, tmp_path / "lock.json", Acceptance("ann", "first"))
        schema("baseline")(dict(lock))
        again = accept(source, tmp_path / "lock.json", Acceptance("ann", "second"))
    assert again["replaces"] == lock["digest"]


def test_every_shipped_policy_is_what_the_schema_says() -> None:
    check = schema("policy")
    for path in shipped().values():
        check(yaml.safe_load(path.read_text()))
    with pytest.raises(Exception, match="Additional properties"):
        check({**yaml.safe_load(path.read_text()), "frob": 1})


def test_junit_has_one_case_a_rule_and_failure_is_not_error(mixed: Verdict) -> None:
    suite = ElementTree.fromstring(to_junit(mixed))
    assert {name: suite.get(name) for name in ("tests", "failures", "errors", "skipped")} == {
        "tests": "6",
        "failures": "2",
        "errors": "1",
        "skipped": "2",
    }
    kinds = [next((part.tag for part in case), "") for case in suite]
    assert kinds == ["", "failure", "failure", "error", "skipped", "skipped"]
    assert suite[2][0].get("type") == "INCONCLUSIVE"


def test_the_summary_says_effect_bounds_margin_n_and_what_to_do(mixed: Verdict) -> None:
    text = to_markdown(mixed)
    assert text.startswith("## ❌ FAIL")
    assert "+0.05 nats/token" in text
    assert "more windows" in text
    assert "more windows" in to_text(mixed)
    assert "waived by ann until 2027" in to_text(mixed)


def hostile(mixed: Verdict, rules: int) -> Verdict:
    finding = Finding(label=HOSTILE * 50, status="ERROR", reason=HOSTILE * 50, todo=HOSTILE)
    result = replace(mixed.results[0], rule=HOSTILE, status="ERROR", findings=(finding,), reason=HOSTILE)
    return replace(mixed, results=(result,) * rules, candidate={"name": HOSTILE, "digest": ""}, notes=(HOSTILE,) * 99)


def test_what_a_run_says_stays_text(mixed: Verdict) -> None:
    bad = hostile(mixed, 3)
    summary = to_markdown(bad)
    assert "<script" not in summary
    assert "\x1b" not in summary + to_text(bad)
    assert len(summary.splitlines()) < 120
    assert summary.count("\n# ") == 0
    assert ElementTree.fromstring(to_junit(bad)).get("tests") == "3"
    json.loads(to_json(bad))


def test_an_address_in_a_run_becomes_no_link(mixed: Verdict) -> None:
    address = "see https://evil.example/x or WWW.evil.example or www.evil.example"
    text = to_markdown(replace(mixed, notes=(address,)))
    assert "://" not in text
    assert "www." not in text.lower()
    assert address in unescape(text).replace("\u2060", "")


def test_the_summary_stays_below_what_a_service_shows(mixed: Verdict) -> None:
    assert len(to_markdown(hostile(mixed, 5000)).encode()) < 2**20


def test_files_are_written_together(mixed: Verdict, tmp_path: Path) -> None:
    assert {path.name for path in write(mixed, tmp_path / "out")} == {"verdict.json", "junit.xml", "summary.md"}


def qbench(*arguments: str | Path, folder: Path) -> subprocess.CompletedProcess[str]:
    """With torch forbidden: a gate runs where there is none."""
    code = "import sys; sys.modules['torch'] = None; from qbench.cli.main import main; sys.exit(main(sys.argv[1:]))"
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=120, cwd=folder)


def test_the_command_says_it_with_its_exit_code(tmp_path: Path) -> None:
    policy(tmp_path, "  - {metric: loss, margin: 0.05}\n")
    for name, effect in (("good", 0.0), ("bad", 0.2), ("open", 0.05)):
        run(NOISE + effect).write(tmp_path / name)
    codes = {
        name: qbench("gate", "policy.yaml", "--candidate", name, folder=tmp_path) for name in ("good", "bad", "open")
    }
    assert {name: done.returncode for name, done in codes.items()} == {"good": 0, "bad": 1, "open": 3}
    assert codes["good"].stdout.startswith("PASS  good")
    packed = qbench("pack", "good", folder=tmp_path)
    assert packed.stdout.startswith("good.qbench.zip: ")
    done = qbench("gate", "policy.yaml", "--candidate", "good.qbench.zip", "--out", "v", folder=tmp_path)
    assert (done.returncode, (tmp_path / "v" / "junit.xml").exists()) == (0, True)
    (tmp_path / "policy.yaml").write_text(HEAD)
    wrong = qbench("gate", "policy.yaml", "--candidate", "good", folder=tmp_path)
    assert (wrong.returncode, wrong.stderr.startswith("policy.yaml:1:1: ")) == (2, True)


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        ("gate kv8", 2, "say what to judge"),
        ("gate kv8 --candidate a --replay b", 2, "say what to judge"),
        ("gate kv8 --candidate nowhere", 4, "no such folder or file"),
        ("gate kv8 --candidate junk", 4, "is no packed run"),
        ("gate kv9 --candidate a", 2, "did you mean 'kv8'?"),
        ("pack nowhere", 4, "holds no records.jsonl"),
        ("baseline accept nowhere --owner a --reason b", 4, "no such folder or file"),
        ("baseline accept nowhere --owner a", 2, "required: --reason"),
        ("gate kv8 --model ./nowhere --look 3", 2, "plans 2 looks"),
        ("gate kv8 --candidate a --look 2", 2, "--look does not apply to --candidate; it goes with --model"),
        ("gate kv8 --candidate a --keep b", 2, "--keep does not apply to --candidate; it goes with --self-test"),
        ("gate kv8 --replay a --out b", 2, "--out does not apply to --replay; it goes with --candidate or --model"),
        ("gate kv8 --replay a --format md", 2, "--format does not apply to --replay"),
        ("gate kv8 --self-test --baseline a", 2, "--baseline does not apply to --self-test"),
        ("gate kv8 --self-test --candidate a --trust-remote-code", 2, "--trust-remote-code does not apply"),
        ("baseline accept a --owner a --reason b --baseline c", 2, "name it with --policy"),
        ("gate kv8 --replay nope1 nope2", 4, "ERROR         nope2"),
    ],
)
def test_a_mistake_is_told_in_a_line(tmp_path: Path, arguments: str, code: int, said: str) -> None:
    (tmp_path / "junk").write_text("no zip")
    done = qbench(*arguments.split(), folder=tmp_path)
    assert done.returncode == code
    assert said in done.stdout + done.stderr
    assert "Traceback" not in done.stderr


def test_the_action_passes_on_verdict_summary_and_exit_code(tmp_path: Path) -> None:
    """The script of action.yml, with a `python` whose virtual environment is this one."""
    policy(tmp_path, "  - {metric: loss, margin: 0.05, on_inconclusive: warn}\n")
    run(NOISE + 0.05).write(tmp_path / "open")
    action = yaml.safe_load((ROOT / "action.yml").read_text())
    script = action["runs"]["steps"][0]["run"]
    tools = tmp_path / "runner" / "qbench" / "bin"
    tools.mkdir(parents=True)
    (tmp_path / "python").write_text("#!/bin/sh\nexit 0\n")
    (tools / "pip").write_text("#!/bin/sh\nexit 0\n")
    (tools / "python").symlink_to(sys.executable)
    (tools / "qbench").write_text(f'#!/bin/sh\nexec "{sys.executable}" -m qbench.cli.main "$@"\n')
    for tool in (tmp_path / "python", tools / "pip", tools / "qbench"):
        tool.chmod(0o755)
    values = {"POLICY": "policy.yaml", "CANDIDATE": "open", "BASELINE": "", "ANCHOR": "", "OUT": "v", "VERSION": "x"}
    places = {name: str(tmp_path / name) for name in ("GITHUB_OUTPUT", "GITHUB_STEP_SUMMARY")}
    path = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "RUNNER_TEMP": str(tmp_path / "runner")}
    done = subprocess.run(
        ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", script],
        env={**os.environ, **values, **places, **path},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "GITHUB_OUTPUT").read_text().splitlines()[-1] == "verdict=INCONCLUSIVE"
    assert (tmp_path / "GITHUB_STEP_SUMMARY").read_text().startswith("## ❔ INCONCLUSIVE")
    assert "::warning" in done.stdout
