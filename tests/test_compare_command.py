"""`qbench compare A B`: what the paths hold decides; no torch is needed, and old records stay readable."""

import json
import subprocess
import sys
from pathlib import Path
from shutil import copytree

import numpy as np
import pytest
from test_gate_compare import LOSS, NOISE, large, pair, run
from test_imports import HEADER, harness, item, write

from qbench.cli import probe
from qbench.cli.main import ERROR, GOOD, USAGE
from qbench.gate.compare import compare
from qbench.gate.policy import load
from qbench.gate.source import pack
from qbench.results.run import read

GOLDEN = Path(__file__).parent / "golden"


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """The models that the command had measured, in place of measuring them."""
    seen: list[tuple[str, str]] = []

    def instead(options: object) -> int:
        seen.append((options.base, options.candidate))  # type: ignore[attr-defined]
        return GOOD

    monkeypatch.setattr(probe, "compare", instead)
    return seen


@pytest.fixture
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two runs, one packed, two models, a saved reference, an empty folder."""
    pair(tmp_path, LOSS + 0.01 + NOISE)
    for name in ("model", "quantized"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text("{}")
    (tmp_path / "saved.safetensors").write_bytes(bytes(64))
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path)
    pack(Path("b"), Path("b.zip"))
    return tmp_path


@pytest.mark.usefixtures("places")
@pytest.mark.parametrize("base", ["model", "saved.safetensors", "somebody/base"])
@pytest.mark.parametrize("candidate", ["quantized", "somebody/quantized"])
def test_models_references_and_names_of_the_hub_are_measured(
    measured: list[tuple[str, str]], base: str, candidate: str
) -> None:
    assert run("compare", base, candidate) == GOOD
    assert measured == [(base, candidate)]


@pytest.mark.usefixtures("places")
@pytest.mark.parametrize(("a", "b"), [("a", "b"), ("a", "b.zip"), ("b.zip", "a")])
def test_runs_are_compared_as_they_are(
    measured: list[tuple[str, str]], capsys: pytest.CaptureFixture[str], a: str, b: str
) -> None:
    assert run("compare", a, b, "--format", "json") == GOOD
    document = json.loads(capsys.readouterr().out)
    assert measured == []
    assert (document["a"]["run"], document["b"]["run"]) == (a, b)
    assert document["rows"][0]["verdict"] == ("regressed" if a == "a" else "improved")


@pytest.mark.usefixtures("places")
@pytest.mark.parametrize(
    ("a", "b", "sentence"),
    [
        ("a", "model", "a is a run and model is none; compare two runs or two models"),
        ("model", "b.zip", "b.zip is a run and model is none"),
        ("a", "nowhere", "a is a run and nowhere is none"),
        ("a", "empty", "empty is neither a run folder (no records.jsonl) nor a model (no config.json)"),
        ("empty", "model", "empty is neither a run folder"),
        ("a/records.jsonl", "b", "a/records.jsonl is a file of a run; name the folder that it lies in"),
    ],
)
def test_what_fits_together_is_said(
    measured: list[tuple[str, str]], capsys: pytest.CaptureFixture[str], a: str, b: str, sentence: str
) -> None:
    assert run("compare", a, b) == USAGE
    assert sentence in capsys.readouterr().err
    assert measured == []


def test_a_packed_run_says_what_its_folder_says(places: Path) -> None:
    ours, packed = compare(places / "a", places / "b"), compare(places / "a", places / "b.zip")
    assert packed.rows == ours.rows
    assert packed.b["records"] == ours.b["records"]
    (places / "b.zip").write_bytes((places / "b.zip").read_bytes()[:-40])
    assert run("compare", places / "a", places / "b.zip") in (USAGE, ERROR)


BLOCKED = """
import sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("torch", "transformers", "lm_eval", "datasets", "pandas", "scipy"):
            raise ModuleNotFoundError(f"{name} is blocked", name=name)

sys.meta_path.insert(0, Blocked())
from qbench.cli.main import main

for line in sys.argv[1:]:
    if main(line.split("|")):
        sys.exit(f"failed: {line}")
"""


def test_nothing_needs_torch_nor_what_imports_it(tmp_path: Path) -> None:
    files = (write(tmp_path / "s.jsonl", HEADER, *map(item, range(40))), harness(tmp_path / "h", [1.0, 0.0] * 4))
    out = tmp_path / "out"
    lines = [
        f"import|{files[0]}|--out|{out}",
        f"import|{files[1]}|--out|{tmp_path / 'tasks'}",
        f"pack|{out}|--out|{tmp_path / 'p.zip'}",
        *(f"compare|{out}|{tmp_path / 'p.zip'}|--out|{tmp_path}/c.{end}" for end in ("html", "md", "json", "txt")),
        f"export|{tmp_path / 'tasks'}|--format|every-eval-ever|--out|{tmp_path / 'eee'}",
        f"export|{tmp_path / 'tasks'}|--format|model-card|--out|{tmp_path / 'README.md'}",
    ]
    done = subprocess.run([sys.executable, "-c", BLOCKED, *lines], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_records_of_every_schema_that_ever_was_can_be_read_and_compared(tmp_path: Path) -> None:
    """Folders that are never written again: one for each version of records, manifest and evidence."""
    folders = sorted(GOLDEN.glob("schema-*"))
    assert folders
    for folder in folders:
        loss = {r["treatment"]: r["value"] for r in read(folder).records(metric="loss")}
        assert loss == {"unquantized": 1.5818515, "int4/token @ linear": 1.66517887}
        found = compare(folder, folder)
        assert {(row.metric, row.verdict, row.n) for row in found.rows} == {
            ("loss", "no evidence", 128),
            ("error_rate", "no evidence", 128),
            ("loss_increase", "no evidence", 128),
        }


@pytest.mark.parametrize(
    ("schema", "todo"),
    [
        ("0", "measure again: the text of its suite stands in manifest.json; or read it with the qbench that wrote it"),
        ("2", "upgrade qbench-suite to read it"),
        ("null", "is this a file of qbench?"),
    ],
)
@pytest.mark.parametrize("name", ["records.jsonl", "manifest.json"])
def test_another_schema_says_what_to_do(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, schema: str, todo: str
) -> None:
    folder = copytree(GOLDEN / "schema-1", tmp_path / "run")
    text = (folder / name).read_text()
    (folder / name).write_text(
        text.replace('"schema":1', f'"schema":{schema}').replace('"schema": 1', f'"schema": {schema}')
    )
    assert run("compare", folder, folder) == ERROR
    said = capsys.readouterr().err
    assert todo in said
    assert name in said
    assert "this qbench reads schema 1" in said


def test_exports_of_a_hundred_thousand_records_take_less_than_a_second(tmp_path: Path) -> None:
    from test_gate_compare import _children

    folder = large(tmp_path, 0.0)
    for shape in ("every-eval-ever", "model-card"):
        command = [sys.executable, "-m", "qbench.cli.main", "export", str(folder), "--format", shape]
        before = _children()
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        assert _children() - before < 1
        assert f"{np.mean(LOSS):.1f}" in done.stdout


def test_the_policy_on_the_page_is_one(tmp_path: Path) -> None:
    page = (Path(__file__).parents[1] / "docs" / "compare.md").read_text()
    (tmp_path / "tasks.yaml").write_text(page.split("```yml\n")[1].split("```")[0])
    assert [rule.metric for rule in load(tmp_path / "tasks.yaml").rules] == ["error_rate"]
