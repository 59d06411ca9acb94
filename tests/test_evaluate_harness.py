"""Tasks of the lm-evaluation-harness: its own numbers, our intervals, and nothing said or left behind."""

import json
import random
import socket
import sys
from math import exp
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import random_models
import real
import torch
import yaml
from scipy import stats
from torch import nn

from qbench.data.documents import documents
from qbench.data.tasks import Shape, write_tasks
from qbench.data.text import BadData
from qbench.evaluate.harness import Ask, TaskResult, evaluate
from qbench.metrics.catalog import METRICS
from qbench.models.folder import MissingPackage
from qbench.models.hub import HubModel, load
from qbench.names import UnknownName
from qbench.quant.quantizer import build
from qbench.stats.bootstrap import weighted_mean_interval

NAMES = ("continuation", "held_out")
HARNESS = {  # our cost and the harness's own metric, one as a function of the other
    "task_error/acc": ("acc,none", lambda x: 1 - x),
    "task_error/acc_norm": ("acc_norm,none", lambda x: 1 - x),
    "error_rate": ("acc_norm,none", lambda x: 1 - x),  # the first that counts right and wrong
    "task_bits_per_byte": ("bits_per_byte,none", float),
    "task_perplexity/byte": ("byte_perplexity,none", float),
    "task_perplexity/word": ("word_perplexity,none", float),
}


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Both tasks, made of this test's own helpers."""
    folder = tmp_path_factory.mktemp("tasks")
    write_tasks(documents(Path(random_models.__file__)), folder, Shape(questions=30, context=60, answer=20, page=300))
    held_out = yaml.safe_load((folder / "held_out.yaml").read_text())
    held_out["metric_list"].append({"metric": "word_perplexity"})
    (folder / "held_out.yaml").write_text(yaml.safe_dump(held_out))
    return folder


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> tuple[HubModel, Any]:
    from transformers import AutoTokenizer

    path = random_models.folder("llama", tmp_path_factory.mktemp("llama"))
    loaded = load(path)
    assert isinstance(loaded, HubModel)
    return loaded, AutoTokenizer.from_pretrained(path)


@pytest.fixture(scope="module")
def found(model: tuple[HubModel, Any], tasks: Path) -> dict[str, TaskResult]:
    return {result.task: result for result in evaluate(*model, Ask(NAMES, tasks, limit=24)).tasks}


def by_the_harness(model: tuple[HubModel, Any], folder: Path, limit: int) -> dict[str, Any]:
    """`simple_evaluate` as its documentation calls it, on the same files with absolute paths."""
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    forms = [yaml.safe_load((folder / f"{name}.yaml").read_text()) for name in NAMES]
    for form in forms:
        form["dataset_kwargs"] = {
            "data_files": {"test": str(folder / f"{form['task']}.jsonl")},
            "cache_dir": str(folder / ".cache"),
        }
    wrapped = HFLM(pretrained=model[0].hf, tokenizer=model[1], batch_size=4, backend="causal")
    manager = TaskManager(include_defaults=False)
    done = simple_evaluate(wrapped, tasks=forms, task_manager=manager, limit=limit, bootstrap_iters=0)
    assert done is not None
    return done


def test_numbers_are_the_harnesss_own(model: tuple[HubModel, Any], tasks: Path, found: dict[str, TaskResult]) -> None:
    done = by_the_harness(model, tasks, 24)
    seen = 0
    for name, result in found.items():
        assert result.n == 24
        assert result.left_out == ()
        for cost, value in result.values.items():
            metric, turned = HARNESS[cost]
            assert value == pytest.approx(turned(done["results"][name][metric]), rel=1e-5), cost
            assert METRICS[cost].role == "cost"
            seen += 1
        samples = sorted(done["samples"][name], key=lambda sample: sample["doc_id"])
        for kind in ("doc_hash", "prompt_hash", "target_hash"):
            assert [bytes(row).hex() for row in result.vectors[kind]] == [sample[kind] for sample in samples]
    assert seen == len(HARNESS)
    errors = found["continuation"].vectors["task_error/acc"]
    assert errors.tolist() == [1 - s["acc"] for s in sorted(done["samples"]["continuation"], key=lambda s: s["doc_id"])]


def test_a_tasks_cost_follows_from_its_documents(found: dict[str, TaskResult]) -> None:
    one = found["held_out"]
    bits, size = one.vectors["task_bits_per_byte"], one.vectors["task_bits_per_byte/weight"]
    assert one.values["task_bits_per_byte"] == pytest.approx((bits * size).sum() / size.sum(), rel=1e-12)
    per_word, words = one.vectors["task_perplexity/word"], one.vectors["task_perplexity/word/weight"]
    assert one.values["task_perplexity/word"] == pytest.approx(exp((np.log(per_word) * words).sum() / words.sum()))
    for result in found.values():
        for name, (low, high) in result.intervals.items():
            assert low <= result.values[name] <= high
            assert low < high


def test_intervals_agree_with_scipys_bootstrap(found: dict[str, TaskResult]) -> None:
    values = found["held_out"].vectors["task_bits_per_byte"]
    weights = found["held_out"].vectors["task_bits_per_byte/weight"]

    def statistic(v: np.ndarray, w: np.ndarray, axis: int) -> np.ndarray:
        return (v * w).sum(axis) / w.sum(axis)

    theirs = stats.bootstrap(
        (values, weights), statistic, paired=True, method="percentile", n_resamples=9999, rng=1
    ).confidence_interval
    width = theirs.high - theirs.low
    assert found["held_out"].intervals["task_bits_per_byte"] == pytest.approx(
        (theirs.low, theirs.high), abs=0.1 * width
    )


def test_an_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    generator = np.random.default_rng(3)
    trials, n, right = 200, 100, 0.7
    covered = 0
    for seed in range(trials):
        answers = (generator.random(n) < right).astype(np.float64)
        _, low, high = weighted_mean_interval(answers, np.ones(n), seed)
        covered += low <= right <= high
    # Three standard deviations of a count, around 94 %: what percentile intervals reach with 100 documents.
    assert abs(covered / trials - 0.94) < 3 * (0.94 * 0.06 / trials) ** 0.5


def test_an_interval_is_of_the_seed_and_of_more_than_one_document() -> None:
    values, weights = np.arange(9.0), np.arange(1.0, 10.0)
    assert weighted_mean_interval(values, weights, 1) == weighted_mean_interval(values, weights, 1)
    assert weighted_mean_interval(values, weights, 1) != weighted_mean_interval(values, weights, 2)
    assert weighted_mean_interval(values[:1], weights[:1], 0) == (0.0, -np.inf, np.inf)
    with pytest.raises(ValueError, match="at least one value"):
        weighted_mean_interval(np.zeros(0), np.zeros(0), 0)


def test_the_live_model_is_what_is_scored(
    model: tuple[HubModel, Any], tasks: Path, found: dict[str, TaskResult]
) -> None:
    """A hook that rounds what leaves a layer changes the score, and taking it off changes it back."""
    layer: nn.Module = model[0].hf.model.layers[0].mlp  # type: ignore[union-attr]
    quantizer = build("int2/token")
    handle = layer.register_forward_hook(lambda _m, _i, x: quantizer.roundtrip(x))
    ask = Ask(("held_out",), tasks, limit=24)
    try:
        (changed,) = evaluate(*model, ask).tasks
    finally:
        handle.remove()
    (again,) = evaluate(*model, ask).tasks
    bits = found["held_out"].values["task_bits_per_byte"]
    assert abs(changed.values["task_bits_per_byte"] - bits) > 0.01
    assert again.values["task_bits_per_byte"] == pytest.approx(bits, rel=1e-6)
    ends = found["held_out"].intervals["task_bits_per_byte"]
    assert again.intervals["task_bits_per_byte"] == pytest.approx(ends, rel=1e-6)


def test_nothing_is_asked_of_the_network_said_or_left_behind(
    model: tuple[HubModel, Any], tasks: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("the network was asked")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    before = {path: path.stat().st_mtime_ns for path in tasks.rglob("*")}
    random.seed(5)
    np.random.seed(5)
    torch.manual_seed(5)
    streams = random.random(), np.random.random(), float(torch.rand(()))
    random.seed(5)
    np.random.seed(5)
    torch.manual_seed(5)
    evaluate(*model, Ask(NAMES, tasks, limit=2))
    assert (random.random(), np.random.random(), float(torch.rand(()))) == streams
    assert tuple(capfd.readouterr()) == ("", "")
    assert not list(tmp_path.rglob("*"))
    assert {path: path.stat().st_mtime_ns for path in tasks.rglob("*")} == before


def test_digests_are_of_task_and_documents_and_not_of_where_they_lie(
    model: tuple[HubModel, Any], tasks: Path, tmp_path: Path
) -> None:
    for path in tasks.glob("*.*"):
        if path.is_file():
            (tmp_path / path.name).write_bytes(path.read_bytes())
    here, there = (evaluate(*model, Ask(("continuation",), place, limit=3)).tasks[0] for place in (tasks, tmp_path))
    assert (here.task_digest, here.documents_digest) == (there.task_digest, there.documents_digest)
    form = (tmp_path / "continuation.yaml").read_text()
    (tmp_path / "continuation.yaml").write_text(form.replace("target_delimiter: ''", "target_delimiter: ' '"))
    lines = (tmp_path / "continuation.jsonl").read_text().splitlines()
    (tmp_path / "continuation.jsonl").write_text("\n".join(lines[1:]))
    other = evaluate(*model, Ask(("continuation",), tmp_path, limit=3)).tasks[0]
    assert other.task_digest != here.task_digest
    assert other.documents_digest != here.documents_digest
    assert here.version == "1.0"


def test_groups_tags_and_metrics_of_other_kinds(model: tuple[HubModel, Any], tasks: Path, tmp_path: Path) -> None:
    form = yaml.safe_load((tasks / "continuation.yaml").read_text())
    data = {"test": str(tasks / "continuation.jsonl")}
    metrics = [{"metric": "acc"}, {"metric": "brier_score"}]
    for name in ("one", "two"):
        made = {**form, "task": name, "tag": "both", "dataset_kwargs": {"data_files": data}, "metric_list": metrics}
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump(made))
    (tmp_path / "group.yaml").write_text(yaml.safe_dump({"group": "all", "task": ["one", "two"]}))
    for name in ("both", "all"):
        done = evaluate(*model, Ask((name,), tmp_path, limit=4)).tasks
        assert [result.task for result in done] == ["one", "two"]
        assert {result.left_out for result in done} == {("brier_score",)}
        assert [set(result.values) for result in done] == [{"task_error/acc", "error_rate"}] * 2


def test_text_without_spaces_has_a_cost_all_the_same(model: tuple[HubModel, Any], tmp_path: Path) -> None:
    """A page is then one word, and e to the power of its nats no number."""
    (tmp_path / "text.txt").write_text("".join(chr(97 + i * i * i // 7 % 26) for i in range(4000)))
    write_tasks(documents(tmp_path / "text.txt"), tmp_path, Shape(questions=4, context=40, answer=10))
    (one,) = evaluate(*model, Ask(("held_out",), tmp_path)).tasks
    assert set(one.values) == {"task_bits_per_byte", "task_perplexity/byte"}
    assert 0 < one.values["task_bits_per_byte"] < 20


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch, tasks: Path) -> None:
    monkeypatch.setitem(sys.modules, "lm_eval.models.huggingface", None)
    with pytest.raises(MissingPackage, match="pip install 'lm-eval"):
        evaluate(nn.Linear(1, 1), None, Ask(NAMES, tasks))


def test_what_is_missing_is_named(
    model: tuple[HubModel, Any], tasks: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(BadData, match="no such folder; expected one with task files"):
        evaluate(*model, Ask(NAMES, tmp_path / "nowhere"))
    (tmp_path / "continuation.yaml").write_text((tasks / "continuation.yaml").read_text())
    (tmp_path / "held_out.yaml").write_text((tasks / "held_out.yaml").read_text())
    (tmp_path / "held_out.jsonl").write_text((tasks / "held_out.jsonl").read_text())
    assert evaluate(*model, Ask(("held_out",), tmp_path, limit=1)).tasks  # the others' data are not asked for
    with pytest.raises(BadData, match=r"data of a task are missing: .*continuation\.jsonl"):
        evaluate(*model, Ask(("continuation",), tmp_path))
    # Listing the harness's own tasks takes ten seconds; here it has one.
    from lm_eval.tasks import TaskManager
    from lm_eval.tasks._index import TaskIndex

    own = Path(__import__("lm_eval").__file__).parent / "tasks"
    read = TaskIndex._iter_yaml_files
    few = sorted((own / "hellaswag").glob("*.yaml"))
    monkeypatch.setattr(TaskIndex, "_iter_yaml_files", lambda root: few if root == own else read(root))
    assert "hellaswag" in TaskManager().all_tasks
    with pytest.raises(
        UnknownName, match=r"no task 'continuaton'; did you mean 'continuation'\? .*has continuation, held_out"
    ):
        evaluate(*model, Ask(("continuaton",), tasks))
    (tmp_path / "continuation.yaml").write_text("task: [")
    with pytest.raises(UnknownName, match=r"has held_out; no task could be read from continuation\.yaml"):
        evaluate(*model, Ask(("continuation",), tmp_path))
    with pytest.raises(ValueError, match="at least one task, document"):
        Ask(NAMES, limit=0)
    with pytest.raises(UnknownName, match=r"no task 'helaswag'; did you mean 'hellaswag'\?"):
        evaluate(*model, Ask(("helaswag",)))


def test_a_real_model_knows_how_stories_go_on(tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    path = real.babyllama()
    story = (
        "Once upon a time there was a little girl named Lily . She liked to play in the park with her friends . One "
        "day she saw a big red ball . She wanted to play with it , but it was too high up in a tree . "
    )
    others = (
        "The cat was sad . He had lost his toy . His mom said do not cry , we will find it . They looked "
        "under the bed . "
    )
    (tmp_path / "story.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in (story, others)))
    write_tasks(documents(tmp_path / "story.jsonl"), tmp_path / "tasks", Shape(questions=4, context=40, answer=10))
    model = load(path)
    results = evaluate(model, AutoTokenizer.from_pretrained(path), Ask(NAMES, tmp_path / "tasks")).tasks
    assert results[0].values["task_error/acc"] <= 0.5
    assert 0.5 < results[1].values["task_bits_per_byte"] < 3
