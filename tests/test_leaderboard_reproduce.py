"""A submission measured again, by the command that a leaderboard's keeper runs."""

import json
import shutil
import subprocess
from pathlib import Path

import pytest
from submissions import sign
from tiny import Bench

from qbench.cli.reproduce import labelled
from qbench.report.leaderboard import submission
from qbench.report.leaderboard.check import check
from qbench.report.leaderboard.reproduction import Reproduction, schema
from qbench.suite.document import parse


def reproduce(bench: Bench, *options: str) -> "subprocess.CompletedProcess[str]":
    """As somebody who has the suite and its text."""
    return bench.qbench("reproduce", bench.out, "--suite", bench.suite, *options)


@pytest.fixture
def submitted(finished: Bench) -> Bench:
    sign(finished.out)
    (finished.out / ".lock").unlink(missing_ok=True)
    return finished


def test_a_run_is_reproduced_and_labelled(submitted: Bench) -> None:
    assert check(submitted.out).faults == ()
    done = reproduce(submitted, "--by", "Eve", "--sample", "30%", "--seed", "1")
    assert (done.returncode, done.stderr) == (0, ""), done.stdout
    assert "3 of 8 losses, chosen with --seed 1" in done.stdout
    assert done.stdout.count("agrees within the numerical floor") == 3
    assert "came from this machine's cache" in done.stdout
    found = check(submitted.out)
    assert (found.faults, found.label) == ((), "reproduced by Eve, 3 of 8 cells")
    kept = Reproduction.model_validate(json.loads((submitted.out / "reproduced.json").read_text()))
    assert all(abs(one.was - one.found) <= one.floor <= 1e-4 for one in kept.cells)
    again = reproduce(submitted, "--by", "Bob", "--seed", "2")
    assert (again.returncode, again.stderr) == (0, ""), again.stdout
    assert check(submitted.out).label == "reproduced by Bob, 1 of 8 cells"


def test_false_numbers_are_not_reproduced(submitted: Bench) -> None:
    """Every loss a hundredth lower, the evidence gone, the digests made to fit: only measuring again can tell."""
    path = submitted.out / "records.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    for row in rows:
        if "loss" in row.get("values", {}):
            row["values"]["loss"] -= 0.01
        row.pop("samples", None)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    shutil.rmtree(submitted.out / "evidence")
    sign(submitted.out)
    assert check(submitted.out).label == "self-attested, no evidence"
    before = (submitted.out / "submission.yaml").read_text()
    done = reproduce(submitted, "--by", "Eve", "--sample", "1")
    assert done.returncode == 1, done.stderr
    assert done.stdout.count("DIFFERS") == 8
    assert not (submitted.out / "reproduced.json").exists()
    assert (submitted.out / "submission.yaml").read_text() == before


def test_another_suite_reproduces_nothing(submitted: Bench) -> None:
    submitted.suite.write_text(submitted.suite.read_text().replace("steps: 12", "steps: 13"))
    done = reproduce(submitted, "--by", "Eve")
    assert done.returncode == 2
    assert "is another suite than the one in the manifest" in done.stderr


@pytest.mark.parametrize("share", ["0%", "101%", "some", "-1", "nan"])
def test_a_share_is_a_share(submitted: Bench, share: str) -> None:
    done = reproduce(submitted, "--by", "Eve", f"--sample={share}")
    assert done.returncode == 2
    assert "expected a share of the losses" in done.stderr


def test_plugins_of_others_are_not_run(submitted: Bench) -> None:
    path = submitted.out / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["sessions"][-1]["options"]["plugin"] = ["evil.py"]
    path.write_text(json.dumps(manifest))
    sign(submitted.out)
    done = reproduce(submitted, "--by", "Eve")
    assert done.returncode == 2
    assert "measured with plugins" in done.stderr


def test_the_published_schemas_are_the_code(request: pytest.FixtureRequest) -> None:
    for name, made in (("submission", submission.schema()), ("reproduced", schema())):
        path = Path(__file__).parents[1] / "docs" / "schemas" / f"{name}.json"
        text = json.dumps(made, indent=2, sort_keys=True) + "\n"
        if request.config.getoption("--update-golden"):
            path.parent.mkdir(exist_ok=True)
            path.write_text(text)
        assert path.read_text() == text


@pytest.mark.parametrize(
    "text",
    [
        "submission: 1\nwho: Ada\n",
        "submission: 1\nprovenance: self-attested  # so far\nwho: Ada",
        '{submission: 1, who: Ada, note: "1e-3", links: ["https://example.org"]}\n',
        "{submission: 1, who: Ada,\nprovenance: self-attested,\nnote: Zoë}\n",
        "submission: 1\nwho: Ada\n...\n",
    ],
)
def test_a_label_fits_into_any_spelling_of_a_submission(text: str) -> None:
    before, after = (parse(one, "s")[0] for one in (text, labelled(text)))
    assert before
    assert after
    assert after.plain() == before.plain() | {"provenance": "reproduced"}
