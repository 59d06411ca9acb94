"""Numbers of other tools as records: what is right is kept to the digit, what is wrong is named with its line."""

import hashlib
import json
import math
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qbench.cli.main import ERROR, GOOD, main
from qbench.evaluate import lm_eval_files, samples
from qbench.evaluate.imported import BadSamples, store
from qbench.gate.compare import compare
from qbench.results.run import read

HEADER: dict[str, Any] = {
    "line": "run",
    "schema": 1,
    "model": {"name": "llama-q4", "quantization": "Q4_K_M", "tokenizer": "t" * 64},
    "data": {"name": "wiki"},
    "runtime": "llama.cpp b4321",
    "bits_per_value": 4.5,
}


def item(i: int, **changed: Any) -> dict[str, Any]:
    return {"line": "item", "id": f"w{i}", "values": {"loss": 1 + i / 100, "error_rate": 0.5}} | changed


def write(path: Path, *lines: Any) -> Path:
    path.write_text("".join(f"{line if isinstance(line, str) else json.dumps(line)}\n" for line in lines))
    return path


def test_samples_become_a_cell_with_evidence(tmp_path: Path) -> None:
    lines = [item(i, slice="code" if i % 2 else "prose", weight=1 + i % 3) for i in range(30)]
    store([samples.read(write(tmp_path / "s.jsonl", HEADER, *lines))], tmp_path / "run")
    run = read(tmp_path / "run")
    (cell,) = run.cells.values()
    whole, *slices = cell.records
    weights = [1 + i % 3 for i in range(30)]
    expected = math.fsum(w * (1 + i / 100) for i, w in enumerate(weights)) / sum(weights)
    assert whole.values["loss"] == pytest.approx(expected, rel=1e-8)
    assert (whole.n, whole.bits_per_value) == (30, 4.5)
    low, high = whole.intervals["loss"]
    assert low < expected < high
    code = math.fsum(w * (1 + i / 100) for i, w in enumerate(weights) if i % 2) / sum(weights[1::2])
    assert {one.slice: one.values["loss"] for one in slices}["code"] == pytest.approx(code, rel=1e-8)
    assert whole.values["loss/worst_slice"] == max(one.values["loss"] for one in slices)
    kept = run.evidence(whole.samples)
    assert kept["loss"].tolist() == [1 + i / 100 for i in range(30)]
    assert kept["doc_hash"][3].tobytes() == hashlib.sha256(b"w3").digest()


def test_the_order_of_items_and_the_runtime_do_not_matter(tmp_path: Path) -> None:
    random.seed(0)
    lines = [item(i, values={"loss": random.lognormvariate(0, 1)}) for i in range(200)]
    worse = [one | {"values": {"loss": one["values"]["loss"] + 0.1 + random.gauss(0, 0.01)}} for one in lines]
    random.shuffle(worse)
    store([samples.read(write(tmp_path / "a.jsonl", HEADER, *lines))], tmp_path / "a")
    store([samples.read(write(tmp_path / "b.jsonl", HEADER | {"runtime": "vLLM"}, *worse))], tmp_path / "b")
    found = compare(tmp_path / "a", tmp_path / "b")
    assert [(row.question, row.metric, row.verdict) for row in found.rows] == [("loss", "loss", "regressed")]
    assert found.rows[0].difference == pytest.approx(0.1, abs=0.01)
    assert found.cautions == ("measured with different runtimes: llama.cpp b4321 and vLLM",)


def test_two_runs_keep_one_order_whatever_order_they_were_written_in(tmp_path: Path) -> None:
    """Windows that follow each other stay neighbours, so that what they share stays visible."""
    names = [f"part 2, {i}" for i in range(30)] + [f"part 10, {i}" for i in range(30)]
    lines = [item(0, id=name, values={"loss": float(i)}, slice=name[:7].strip(" ,")) for i, name in enumerate(names)]
    shuffled = random.Random(1).sample(lines, len(lines))
    assert shuffled != lines
    for found in (
        samples.read(write(tmp_path / f"{i}.jsonl", HEADER, *those)) for i, those in enumerate((lines, shuffled))
    ):
        assert found.vectors["loss"].tolist() == [float(i) for i in range(60)]
        assert found.vectors["slice"].tolist() == [0] * 30 + [1] * 30
        assert [one.slice for one in found.records] == ["", "part 2", "part 10"]


def test_heavy_windows_count_for_more_in_a_comparison(tmp_path: Path) -> None:
    weights = [1 + i % 3 for i in range(90)]
    for name, shift in (("a", 0.0), ("b", 0.3)):
        lines = [item(i, values={"loss": 1 + shift * (i % 3)}, weight=w) for i, w in enumerate(weights)]
        store([samples.read(write(tmp_path / f"{name}.jsonl", HEADER, *lines))], tmp_path / name)
    (row,) = compare(tmp_path / "a", tmp_path / "b").rows
    expected = 0.3 * sum(w * (i % 3) for i, w in enumerate(weights)) / sum(weights)
    assert row.difference == pytest.approx(expected)
    assert row.low is not None
    assert row.high is not None
    assert (row.low + row.high) / 2 == pytest.approx(expected, abs=0.02)  # 0.3 without weights, 0.4 with them


@pytest.mark.parametrize(
    ("lines", "mistake"),
    [
        ([item(0)], 's.jsonl:1: the first line is about the run: {"line": "run"'),
        ([HEADER | {"schema": 2}, item(0)], "s.jsonl:1: schema 2; this qbench reads schema 1"),
        ([HEADER | {"modle": {}}, item(0)], "s.jsonl:1: no field 'modle'; did you mean 'model'?"),
        ([HEADER | {"model": {"digest": "x"}}, item(0)], "s.jsonl:1: model.name is missing"),
        ([HEADER, item(0), "{"], "s.jsonl:3: not a line of JSON"),
        ([HEADER, item(0), item(0)], "s.jsonl:3: id 'w0' stands in line 2 already"),
        ([HEADER, item(0, values={"los": 1})], "s.jsonl:2: no metric 'los'; did you mean 'loss'?"),
        ([HEADER, item(0, values={"perplexity": 9})], "s.jsonl:2: no metric 'perplexity'"),
        ([HEADER, '{"line":"item","id":"a","values":{"loss":NaN}}'], "s.jsonl:2: loss is a finite number, found nan"),
        ([HEADER, item(0), item(1, values={"loss": 1})], "s.jsonl:3: every item has the same metrics"),
        ([HEADER, item(0, weight=0)], "s.jsonl:2: a weight is above 0, found 0"),
        ([HEADER, item(0, weight=1e308)], "s.jsonl:2: a weight is above 0"),
        ([HEADER, item(0, values={"loss": 10**400})], "s.jsonl:2: loss is a finite number"),
        ([HEADER, item(0, values={"error_rate": -3})], "s.jsonl:2: error_rate is a share from 0 to 1, found -3"),
        ([HEADER | {"bits_per_value": -4}, item(0)], "s.jsonl:1: bits_per_value is a number from 0, found -4"),
        ([HEADER | {"bits_per_value": math.nan}, item(0)], "s.jsonl:1: bits_per_value is a number from 0, found nan"),
        ([HEADER], "s.jsonl: no items"),
        ([HEADER, item(0), "x" * (1 << 21)], "s.jsonl:3: longer than 1048576 bytes"),
    ],
    ids=lambda value: value[:40] if isinstance(value, str) else "",
)
def test_a_mistake_is_named_and_nothing_is_stored(tmp_path: Path, lines: list[Any], mistake: str) -> None:
    path = write(tmp_path / "s.jsonl", *lines)
    with pytest.raises(BadSamples) as found:
        samples.read(path)
    assert mistake in str(found.value)
    assert main(["import", str(path), "--out", str(tmp_path / "run")]) == ERROR
    assert not (tmp_path / "run").exists()


def test_every_mistake_is_named_at_once(tmp_path: Path) -> None:
    with pytest.raises(BadSamples) as found:
        samples.read(write(tmp_path / "s.jsonl", HEADER, item(0, weight=-1), item(1, slice=3), item(2)))
    assert [line[:9] for line in str(found.value).splitlines()] == ["s.jsonl:2", "s.jsonl:3"]


def test_blank_lines_are_no_items(tmp_path: Path) -> None:
    found = samples.read(write(tmp_path / "s.jsonl", HEADER, item(0), "", item(1), "", " "))
    assert found.records[0].n == 2


def test_paths_are_not_stored(tmp_path: Path) -> None:
    secret = HEADER | {"model": {"name": "/home/somebody/secret/llama"}, "data": {"name": "/data/private/wiki.txt"}}
    store([samples.read(write(tmp_path / "s.jsonl", secret, item(0)))], tmp_path / "run")
    text = (tmp_path / "run" / "records.jsonl").read_text()
    assert "somebody" not in text
    assert "private" not in text
    assert "llama" in text


def mutated(text: str, chance: random.Random) -> str:
    tokens: list[Callable[[str], str]] = [
        lambda t: t[: chance.randrange(len(t))],
        lambda t: t.replace(chance.choice(':,"{}'), chance.choice(["", "[", "null", "1e999", "\\u0000", "-"]), 1),
        lambda t: t.replace(chance.choice(["item", "loss", "w1", "run", "1"]), chance.choice(["", "[]", "é", "true"])),
        lambda t: t[: (i := chance.randrange(len(t)))] + chance.choice(["\n", "\\", "9" * 400, "[" * 3000]) + t[i:],
    ]
    return chance.choice(tokens)(text)


def test_mutated_files_are_refused_or_read_never_a_traceback(tmp_path: Path) -> None:
    chance, outcomes = random.Random(0), {"read": 0, "refused": 0}
    path = write(tmp_path / "s.jsonl", HEADER, *map(item, range(4)))
    whole = path.read_text()
    for _ in range(1500):
        path.write_text(mutated(whole, chance))
        try:
            found = samples.read(path)
        except BadSamples:
            outcomes["refused"] += 1
        else:
            outcomes["read"] += 1
            assert all(np.isfinite(v).all() for v in found.vectors.values())
    assert min(outcomes.values()) > 50, outcomes


WRONG = [0.0, 1.0, 1.0, 0.0, 1.0, 1.0, 1.0, 0.0]
NATS = [-2311.5, -100.25, -900.0, -40.0, -7.5, -300.0, -1.25, -60.0]
BYTES = [600, 40, 333, 21, 9, 120, 2, 30]


def harness(folder: Path, acc: list[float], shift: float = 0.0, **changed: Any) -> Path:
    """Files as lm_eval 0.4.13 writes them, with the numbers that it would have computed."""
    folder.mkdir(parents=True)
    bits = -math.fsum(n - shift for n in NATS) / sum(BYTES) / math.log(2)
    results = {
        "results": {
            "right": {"alias": "right", "acc,none": sum(acc) / len(acc), "acc_stderr,none": 0.1},
            "text": {"alias": "text", "bits_per_byte,none": bits, "bits_per_byte_stderr,none": "N/A"},
        },
        "configs": {
            "right": {
                "task": "right",
                "dataset_path": "org/right",
                "num_fewshot": 0,
                "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
            },
            "text": {"task": "text", "dataset_path": "json", "metric_list": [{"metric": "bits_per_byte"}]},
        },
        "versions": {"right": 1.0, "text": 1.0},
        "n-samples": {"right": {"original": 50, "effective": 8}, "text": {"original": 8, "effective": 8}},
        "config": {"model": "hf", "model_args": {"pretrained": "/home/me/m"}, "model_sha": "", "device": "cpu"},
        "model_name": "/home/me/llama",
        "lm_eval_version": "0.4.13",
    }
    (folder / "results_2026-01-01T00-00-00.1.json").write_text(json.dumps(results | changed))
    for task, rows in (
        ("right", [{"acc": a} for a in acc]),
        ("text", [{"bits_per_byte": [n - shift, b]} for n, b in zip(NATS, BYTES, strict=True)]),
    ):
        hashes = [hashlib.sha256(f"{task}{i}".encode()).hexdigest() for i in range(len(rows))]
        lines = [
            {"doc_id": i, "filter": "none", "metrics": list(row), **dict.fromkeys(lm_eval_files.HASHES, h), **row}
            for i, (row, h) in enumerate(zip(rows, hashes, strict=True))
        ]
        write(folder / f"samples_{task}_2026-01-01T00-00-00.1.jsonl", *lines)
    return folder / "results_2026-01-01T00-00-00.1.json"


def test_results_of_the_harness_keep_their_numbers_and_their_samples(tmp_path: Path) -> None:
    right, text = lm_eval_files.read(harness(tmp_path / "h", [1 - w for w in WRONG]))
    assert right.records[0].values == {"task_error/acc": sum(WRONG) / 8, "error_rate": sum(WRONG) / 8}
    assert right.vectors["right/task_error/acc"].tolist() == WRONG
    assert right.vectors["right/error_rate"].tolist() == WRONG
    assert "error_rate" not in text.records[0].values
    bits = -math.fsum(NATS) / sum(BYTES) / math.log(2)
    assert text.records[0].values["task_bits_per_byte"] == pytest.approx(bits, rel=1e-12)
    assert (right.model["name"], right.data["name"], right.runtime) == ("llama", "org/right", "lm_eval 0.4.13 (hf)")
    assert right.measurement["options"] == {"name": "right", "library": "lm_eval", "version": "1.0", "few_shot": 0}
    assert not right.warnings


@pytest.mark.parametrize("kept", ["samples", "results alone"])
def test_the_first_filter_of_a_task_is_the_one_that_counts(tmp_path: Path, kept: str) -> None:
    path = harness(tmp_path / "h", [1 - w for w in WRONG])
    results = json.loads(path.read_text())
    results["results"]["right"] = {"alias": "right", "acc,strict": 0.375, "acc,flexible": 0.875, "acc_stderr,strict": 0}
    path.write_text(json.dumps(results))
    samples = path.parent / "samples_right_2026-01-01T00-00-00.1.jsonl"
    lines = [json.loads(line) for line in samples.read_text().splitlines()]
    flexible = [one | {"filter": "flexible", "acc": 1.0} for one in lines]
    write(samples, *flexible, *[one | {"filter": "strict"} for one in lines])
    if kept != "samples":
        samples.unlink()
    right = lm_eval_files.read(path)[0]
    assert right.records[0].values["task_error/acc"] == pytest.approx(0.625)
    assert right.measurement["options"]["filter"] == "strict"
    if kept == "samples":
        assert right.vectors["right/task_error/acc"].tolist() == WRONG
        write(samples, *flexible)
        with pytest.raises(BadSamples, match="no sample of the filter 'strict'"):
            lm_eval_files.read(path)


def test_two_imports_compare_by_document(tmp_path: Path) -> None:
    for name, shift in (("a", 0.0), ("b", 2.0)):
        path = harness(tmp_path / name, [1 - w for w in WRONG], shift)
        assert main(["import", str(path), "--out", str(tmp_path / f"run-{name}")]) == GOOD
    rows = {row.metric: row for row in compare(tmp_path / "run-a", tmp_path / "run-b").rows}
    extra = 2.0 * 8 / sum(BYTES) / math.log(2)
    assert rows["task_bits_per_byte"].difference == pytest.approx(extra, rel=1e-6)
    assert rows["task_error/acc"].note == "the same numbers"
    assert {row.verdict for row in rows.values()} == {"no evidence"}  # of 8 documents


GATE = """policy: imports
version: 1
suite: {name: imported, version: 1}
windows: [512]
rules:
  - {name: worse, metric: METRIC, against: previous, margin: 0.05}
"""


def gated(tmp_path: Path, metric: str, baseline: Path, candidate: Path) -> str:
    """The verdict on two imported files, from the command."""
    tmp_path.mkdir(exist_ok=True)
    for name, path in (("old", baseline), ("new", candidate)):
        assert main(["import", str(path), "--out", str(tmp_path / name)]) == GOOD
    policy = tmp_path / "policy.yaml"
    policy.write_text(GATE.replace("METRIC", metric))
    main(["gate", str(policy), "--candidate", str(tmp_path / "new"), "--baseline", str(tmp_path / "old"),
          "--out", str(tmp_path / "verdict")])  # fmt: skip
    return json.loads((tmp_path / "verdict" / "verdict.json").read_text())["status"]


@pytest.mark.parametrize(("more", "verdict"), [(0.0, "PASS"), (0.06, "INCONCLUSIVE"), (0.2, "FAIL")])
def test_windows_of_any_runtime_can_be_gated(tmp_path: Path, more: float, verdict: str) -> None:
    chance = random.Random(0)
    lines = [item(i, values={"loss": chance.lognormvariate(0, 1)}) for i in range(512)]
    spread = 0.02 if verdict != "INCONCLUSIVE" else 1.5
    worse = [one | {"values": {"loss": one["values"]["loss"] + more + chance.gauss(0, spread)}} for one in lines]
    chance.shuffle(worse)
    old, new = write(tmp_path / "a.jsonl", HEADER, *lines), write(tmp_path / "b.jsonl", HEADER, *worse)
    assert gated(tmp_path, "loss", old, new) == verdict


@pytest.mark.parametrize(("flipped", "verdict"), [(0, "PASS"), (20, "INCONCLUSIVE"), (80, "FAIL")])
def test_tasks_of_the_harness_can_be_gated(tmp_path: Path, flipped: int, verdict: str) -> None:
    """0, 4 and 16 % of 500 answers become wrong, where 5 % are allowed."""
    right = [1.0] * 300 + [0.0] * 200
    worse = [0.0] * flipped + right[flipped:]
    old, new = harness(tmp_path / "h", right), harness(tmp_path / "g", worse)
    for path in (old, new):  # one task; the other has no right answers
        results = json.loads(path.read_text())
        del results["results"]["text"]
        path.write_text(json.dumps(results))
    assert gated(tmp_path, "error_rate", old, new) == verdict


def test_tasks_of_any_runtime_can_be_gated_and_compared(tmp_path: Path) -> None:
    header = HEADER | {"task": "quiz"}
    lines = [item(i, values={"task_error/acc": float(i % 3 == 0)}) for i in range(600)]
    worse = [one if i % 4 else one | {"values": {"task_error/acc": 1.0}} for i, one in enumerate(lines)]
    old, new = write(tmp_path / "a.jsonl", header, *lines), write(tmp_path / "b.jsonl", header, *reversed(worse))
    assert gated(tmp_path, "error_rate", old, old) == "PASS"
    assert gated(tmp_path / "x", "error_rate", old, new) == "FAIL"
    (row,) = compare(tmp_path / "x" / "old", tmp_path / "x" / "new").rows
    assert (row.metric, row.verdict, row.difference) == ("task_error/acc", "regressed", pytest.approx(100 / 600))


def test_samples_of_another_run_are_refused(tmp_path: Path) -> None:
    path = harness(tmp_path / "h", [1 - w for w in WRONG])
    other = harness(tmp_path / "o", WRONG)
    name = "samples_right_2026-01-01T00-00-00.1.jsonl"
    (path.parent / name).write_bytes((other.parent / name).read_bytes())
    with pytest.raises(BadSamples, match=r"0\.625 by the results and 0\.375 by the samples"):
        lm_eval_files.read(path)


def test_results_without_samples_are_kept_and_say_so(tmp_path: Path) -> None:
    path = harness(tmp_path / "h", [1 - w for w in WRONG])
    for file in path.parent.glob("samples_*"):
        file.unlink()
    right, text = lm_eval_files.read(path)
    assert right.records[0].values["task_error/acc"] == pytest.approx(0.625)
    assert text.records[0].values["task_bits_per_byte"] > 0
    assert "--log_samples" in right.warnings[0]
    assert not right.vectors
    assert right.records[0].n == 8


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"results": 3}', "{" * 5000, '{"results": {}, "configs": {}}'])
def test_other_json_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "results_x.json").write_text(text)
    with pytest.raises(BadSamples):
        lm_eval_files.read(tmp_path / "results_x.json")
