"""What others read: schemas of our files, every_eval_ever, and the model card of the hub."""

import json
import struct
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import Draft202012Validator

from qbench.cli.main import USAGE, main
from qbench.gate.compare import compare
from qbench.report.every_eval_ever import documents
from qbench.report.model_card import card, eval_results
from qbench.results.demo import unpack
from qbench.results.record import Attempt, Closing, Record
from qbench.results.run import Run, read

ROOT = Path(__file__).parents[1]
GROWTH = ROOT / "results" / "growth"


def schema(name: str) -> Draft202012Validator:
    document = json.loads((ROOT / "docs" / "schemas" / f"{name}.json").read_text())
    Draft202012Validator.check_schema(document)
    return Draft202012Validator(document)


def records(folder: Path) -> Iterator[Any]:
    with (folder / "records.jsonl").open() as lines:
        yield from map(json.loads, lines)


def test_records_and_manifests_are_what_their_schemas_say(tmp_path: Path) -> None:
    unpack(tmp_path)
    line = schema("records")
    wrong = [
        error.message
        for i, one in enumerate(records(tmp_path))
        if i % 20 == 0 or one["line"] == "cell"
        for error in line.iter_errors(one)
    ]
    assert wrong == []
    for folder in (tmp_path, GROWTH):
        assert list(schema("manifest").iter_errors(json.loads((folder / "manifest.json").read_text()))) == []


@pytest.mark.parametrize(
    "line",
    [
        {"line": "record", "cell": "a"},
        {"line": "record", "cell": "a", "values": {"loss": "low"}},
        {"line": "record", "cell": "a", "values": {}, "intervals": {"loss": [1]}},
        {"line": "record", "cell": "a", "values": {}, "colour": 1},
        {"line": "cell", "schema": 2, "cell": "a", "question": "q", "status": "measured", "spec": {}},
        {"line": "cell", "schema": 1, "cell": "a", "question": "q", "status": "fine", "spec": {}},
    ],
)
def test_what_is_no_record_is_none_by_the_schema_and_by_the_reader(tmp_path: Path, line: Any) -> None:
    from qbench.results.lines import BadRecords, scan

    assert not schema("records").is_valid(line)
    (tmp_path / "records.jsonl").write_text(json.dumps(line) + "\n")
    with pytest.raises(BadRecords):
        scan(tmp_path / "records.jsonl")


def test_evidence_is_what_its_schema_says() -> None:
    checked = schema("evidence")
    for file in sorted((GROWTH / "evidence").iterdir())[:20]:
        data = file.read_bytes()
        (length,) = struct.unpack("<Q", data[:8])
        assert list(checked.iter_errors(json.loads(data[8 : 8 + length]))) == []


def test_a_comparison_is_what_its_schema_says() -> None:
    arms = {"residual + adamw": "residual-free + adamw"}
    from qbench.gate.compare import How

    document = json.loads(json.dumps(compare(GROWTH, GROWTH, How(arms=arms)).json(), allow_nan=False))
    assert list(schema("comparison").iter_errors(document)) == []
    document["rows"][0]["verdict"] = "fine"
    assert not schema("comparison").is_valid(document)


def test_the_samples_schema_agrees_with_the_reader(tmp_path: Path) -> None:
    from test_imports import HEADER, item, write

    from qbench.evaluate.imported import BadSamples
    from qbench.evaluate.samples import read as read_samples

    checked = schema("samples")
    assert checked.is_valid(HEADER)
    assert checked.is_valid(item(0))
    for bad in (item(0, weight=0), item(0, values={}), item(0, values={"perplexity": 1}), item(0, colour=1)):
        assert not checked.is_valid(bad)
        with pytest.raises(BadSamples):
            read_samples(write(tmp_path / "s.jsonl", HEADER, bad))


# What eval.schema.json 0.2.2 demands of the parts that we write, in our own words.
TEXT, NUMBER, TEXTS = (
    {"type": "string"},
    {"type": "number"},
    {"type": "object", "additionalProperties": {"type": "string"}},
)
DEMANDED: dict[str, Any] = {
    "type": "object",
    "additionalProperties": False,
    "required": [
        *("schema_version", "evaluation_id", "retrieved_timestamp", "source_metadata"),
        *("model_info", "eval_library", "evaluation_results"),
    ],
    "properties": {
        "schema_version": {"const": "0.2.2"},
        "evaluation_id": TEXT,
        "evaluation_timestamp": TEXT,
        "retrieved_timestamp": {"type": "string", "pattern": "^[0-9]+$"},
        "source_metadata": {
            "required": ["source_type", "source_organization_name", "evaluator_relationship"],
            "properties": {
                "source_type": {"enum": ["documentation", "evaluation_run"]},
                "evaluator_relationship": {"enum": ["first_party", "third_party", "collaborative", "other"]},
            },
        },
        "eval_library": {"required": ["name", "version"], "properties": {"name": TEXT, "version": TEXT}},
        "model_info": {
            "required": ["name", "id"],
            "properties": {"name": TEXT, "id": TEXT, "additional_details": TEXTS},
        },
        "evaluation_results": {
            "type": "array",
            "minItems": 1,
            "items": {
                "required": ["evaluation_name", "source_data", "metric_config", "score_details"],
                "properties": {
                    "evaluation_name": TEXT,
                    "source_data": {
                        "required": ["dataset_name", "source_type"],
                        "properties": {
                            "dataset_name": TEXT,
                            "source_type": {"enum": ["other", "hf_dataset"]},
                            "hf_repo": TEXT,
                            "additional_details": TEXTS,
                        },
                    },
                    "metric_config": {
                        "required": ["lower_is_better"],
                        "properties": {"lower_is_better": {"const": True}, "metric_unit": TEXT},
                        "if": {"required": ["score_type"]},
                        "then": {
                            "required": ["min_score", "max_score"],
                            "properties": {"score_type": {"const": "continuous"}},
                        },
                    },
                    "score_details": {
                        "required": ["score"],
                        "properties": {
                            "score": NUMBER,
                            "details": TEXTS,
                            "uncertainty": {
                                "properties": {
                                    "num_samples": {"type": "integer"},
                                    "confidence_interval": {
                                        "required": ["lower", "upper"],
                                        "properties": {"lower": NUMBER, "upper": NUMBER},
                                    },
                                }
                            },
                        },
                    },
                },
            },
        },
    },
}


def test_every_eval_ever_gets_what_it_demands() -> None:
    run = read(GROWTH).current
    found = documents(run, "us", "first_party")
    assert len(found) == 12  # four arms, three seeds
    for document in found.values():
        assert list(Draft202012Validator(DEMANDED).iter_errors(json.loads(json.dumps(document, allow_nan=False)))) == []
    of_one = found["residual + adamw/seed-0"]["evaluation_results"]
    scores = {(one["evaluation_name"], one["metric_config"]["metric_name"]): one["score_details"] for one in of_one}
    row = next(run.records(arm="residual + adamw", seed=0, metric="loss_increase", treatment="int4/tensor @ linear"))
    told = scores["loss: int4/tensor @ linear", "loss_increase"]
    assert told["score"] == row["value"]
    assert told["uncertainty"]["confidence_interval"]["lower"] == row["low"]
    identifiers = [one["evaluation_result_id"] for one in of_one]
    assert len(set(identifiers)) == len(identifiers)


def imported(tmp_path: Path, *names: str) -> Run:
    """Tasks of other people's models, as results of the harness say them."""
    from test_imports import harness

    for name in names:
        path = harness(tmp_path / name.replace("/", "_"), [1.0, 0.0, 0.0, 1.0, 1.0, 0.0, 0.0, 0.0], model_name=name)
        assert main(["import", str(path), "--out", str(tmp_path / "run")]) == 0
    return read(tmp_path / "run")


def test_every_eval_ever_gets_tasks_with_the_dataset_of_the_hub(tmp_path: Path) -> None:
    (document,) = documents(imported(tmp_path, "llama"), "us").values()
    assert list(Draft202012Validator(DEMANDED).iter_errors(document)) == []
    found = {one["metric_config"]["metric_name"]: one for one in document["evaluation_results"]}
    assert found["task_bits_per_byte"]["source_data"]["dataset_name"] == "text"  # and not the loader, json
    assert set(found) == {"task_error/acc", "task_bits_per_byte"}  # not the error rate once more
    source = found["task_error/acc"]["source_data"]
    assert (source["source_type"], source["hf_repo"]) == ("hf_dataset", "org/right")
    assert found["task_bits_per_byte"]["source_data"]["source_type"] == "other"
    assert found["task_error/acc"]["score_details"]["uncertainty"]["num_samples"] == 8


def test_models_whose_names_look_alike_get_a_file_each(tmp_path: Path) -> None:
    imported(tmp_path, "a b", "a-b", "A+b")
    assert main(["export", str(tmp_path / "run"), "--format", "every-eval-ever", "--out", str(tmp_path / "o")]) == 0
    found = {json.loads(file.read_text())["model_info"]["id"]: file.stem for file in (tmp_path / "o").iterdir()}
    assert set(found) == {"a b", "a-b", "A+b"}
    assert len({name.lower() for name in found.values()}) == 3


def test_a_card_claims_nothing_of_models_that_others_measured(tmp_path: Path) -> None:
    from test_imports import HEADER, item, write

    from qbench.evaluate import imported as store
    from qbench.evaluate import samples

    store.store([samples.read(write(tmp_path / "s.jsonl", HEADER, *map(item, range(9))))], tmp_path / "run")
    text = card(read(tmp_path / "run"))
    assert "loss (Q4_K_M)" in text
    assert "| unquantized |" not in text
    assert "| Q4\\_K\\_M | 4.50 | 1.04 |" in text


def test_the_card_of_a_task_has_its_accuracy_once_and_no_empty_row(tmp_path: Path) -> None:
    text = card(imported(tmp_path, "llama"))
    (index,) = yaml.safe_load(text.split("---")[1])["model-index"]
    told = [(one["name"], one["value"]) for result in index["results"] for one in result["metrics"]]
    assert told[0] == ("acc (right)", 0.375)
    assert [name for name, _ in told] == ["acc (right)", "task_bits_per_byte (text)"]
    rows = [line for line in text.splitlines() if line.startswith("| ")][2:]
    assert [line.split(" | ")[0] for line in rows] == ["| right"]


def task(dataset: str, wrong: float) -> Run:
    spec = {
        "arm": "m",
        "seed": 0,
        "model": {"arch": "pretrained", "name": "m", "task": "causal-lm"},
        "data": {"name": dataset, "digest": "d"},
        "measurement": {"what": "task", "options": {"name": "quiz"}},
    }
    record = Record(cell="c", site="quiz", values={"task_error/acc": wrong}, n=40)
    closing = Closing(cell="c", question="q", status="measured", spec=spec)
    return Run(folder=Path("r"), cells={"c": Attempt(closing, (record,))}, manifest={})


def test_the_hub_reads_the_card() -> None:
    repocard = pytest.importorskip("huggingface_hub.repocard")
    run = read(GROWTH).current
    text = card(run)
    results = repocard.ModelCard(text, ignore_metadata_errors=False).data.eval_results
    losses = [one.metric_value for one in results if one.metric_name == "loss (int4/tensor @ linear)"]
    seeds = [r["value"] for r in run.records(metric="loss", treatment="int4/tensor @ linear", arm="residual + adamw")]
    assert losses[0] == pytest.approx(sum(seeds) / 3)
    right = [one.metric_value for one in results if one.metric_name == "accuracy (int4/tensor @ linear)"]
    wrong = run.records(metric="error_rate", treatment="int4/tensor @ linear", arm="residual + adamw")
    assert right[0] == pytest.approx(1 - sum(row["value"] for row in wrong) / 3)
    assert "## residual + adamw" in text


def test_the_table_says_what_is_left_of_the_accuracy() -> None:
    run = read(GROWTH).current
    table = card(run).split("## residual + adamw\n")[1].split("## ")[0]
    (line,) = [one for one in table.splitlines() if one.startswith("| int3/tensor @ boundaries ")]
    wrong = {
        name: sum(r["value"] for r in run.records(metric="error_rate", treatment=name, arm="residual + adamw")) / 3
        for name in ("unquantized", "int3/tensor @ boundaries")
    }
    right = [1 - wrong[name] for name in ("int3/tensor @ boundaries", "unquantized")]
    assert line.split("|")[-3:-1] == [f" {100 * right[0]:.1f} % ", f" {100 * right[0] / right[1]:.1f} % "]


def test_accuracies_on_datasets_of_the_hub_go_into_eval_results(tmp_path: Path) -> None:
    (entry,) = yaml.safe_load(eval_results(task("cais/hle", 0.75)))
    assert entry["dataset"] == {"id": "cais/hle", "task_id": "quiz"}
    assert entry["value"] == 0.25
    hub = pytest.importorskip("huggingface_hub")
    (parsed,) = hub.parse_eval_result_entries([entry])
    assert (parsed.dataset_id, parsed.task_id, parsed.value) == ("cais/hle", "quiz", 0.25)
    assert eval_results(task("json", 0.75)) == ""


def test_options_of_another_format_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", str(GROWTH), "--organization", "us"]) == USAGE
    assert "--organization is for --format every-eval-ever" in capsys.readouterr().err
    assert main(["export", str(GROWTH), "--format", "every-eval-ever"]) == USAGE
    assert "has 12 models, a file each; say --out DIR" in capsys.readouterr().err


def test_two_arms_of_models_with_one_name_get_a_document_each(tmp_path: Path) -> None:
    one, two = task("cais/hle", 0.75), task("cais/hle", 0.25)
    (cell,) = two.cells.values()
    other = replace(cell.closing, cell="d", spec=dict(cell.closing.spec) | {"arm": "finetuned"})
    run = replace(one, cells={**one.cells, "d": Attempt(other, (replace(cell.records[0], cell="d"),))})
    found = documents(run, "us")
    assert sorted(one["model_info"]["name"] for one in found.values()) == ["finetuned", "m"]
    assert len({one["model_info"]["id"] for one in found.values()}) == 2
    assert len({one["evaluation_id"] for one in found.values()}) == 2
    scores = [[r["score_details"]["score"] for r in one["evaluation_results"]] for one in found.values()]
    assert sorted(scores) == [[0.25], [0.75]]
    assert list(documents(one, "us")) == ["m"]


@pytest.mark.parametrize("out", [[], ["--out", "documents"]])
def test_a_run_without_answers_has_nothing_to_export(
    tmp_path: Path, out: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "records.jsonl").write_text("")
    assert main(["export", "run", "--format", "every-eval-ever", *out]) == USAGE
    assert "run holds no measured loss or kernel or task" in capsys.readouterr().err
    assert not (tmp_path / "documents").exists()


@pytest.mark.parametrize("place", ["passage", "model"])
def test_recovery_is_of_the_same_passage_and_context(place: str) -> None:
    """Two unquantized answers, of short and of long windows: each format is measured by its own."""
    cells: dict[str, Attempt] = {}
    for context, wrong in ((64, 0.5), (512, 0.2)):
        for name, assign in (("unquantized", {}), ("int4/token", {"activation:boundaries": "int4/token"})):
            treatment = {"name": name, "scope": "boundaries" * bool(assign), "assign": assign}
            asked = {"what": "loss", "windows": 8, "split": "test", "treatment": treatment}
            spec = {
                "arm": "m",
                "seed": 0,
                "model": {"context": context if place == "model" else 64},
                "data": {"name": "t", "digest": "d"},
                "measurement": asked | ({"passage": {"context": context}} if place == "passage" else {}),
            }
            cell = f"{context} {name}"
            end = Closing(cell=cell, question=cell, status="measured", spec=spec)
            cells[cell] = Attempt(end, (Record(cell=cell, values={"loss": 1.0, "error_rate": wrong}, n=8),))
    rows = [line for line in card(Run(folder=Path("r"), cells=cells, manifest={})).splitlines() if line[:3] == "| i"]
    assert [row.split("|")[-2] for row in rows] == [" 100.0 % "] * 2
