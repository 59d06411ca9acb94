"""Two runs compared: what is paired, what is refused and why, and what the verdict rests on."""

import json
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.stats import binomtest

from qbench.cli.main import ERROR, GOOD, USAGE, main
from qbench.gate.compare import Comparison, How, NoCost, NothingToCompare, compare
from qbench.gate.rows import Row, adjusted
from qbench.names import UnknownName
from qbench.report import compared
from qbench.results import digest, evidence
from qbench.results.lines import encode
from qbench.results.record import Closing, Record
from qbench.results.store import Store
from qbench.stats.paired import proportion_noninferior

PLAIN: dict[str, Any] = {"name": "unquantized", "scope": "", "assign": {}}
W4 = {"name": "W4", "scope": "weights", "assign": {"weight:weights": "int4/token"}}
N = 512
LOSS = np.random.default_rng(0).lognormal(0.5, 0.5, N)


def spec(**changed: Any) -> dict[str, Any]:
    model = {"arch": "pretrained", "model_type": "llama", "tokenizer": "t" * 64} | changed.pop("model", {})
    measurement = {"what": "loss", "windows": N, "split": "all", "treatment": PLAIN} | changed.pop("measurement", {})
    data = {"name": "text:a.txt", "digest": "d" * 64} | changed.pop("data", {})
    base = {"suite": "s", "version": 1, "arm": "model", "seed": 0, "training": None, "device": "cpu", "torch": "2.13"}
    return base | {"model": model, "measurement": measurement, "data": data, "revisions": {"measure": 2}} | changed


def question(one: Mapping[str, Any]) -> str:
    return digest.of([one["data"], one["measurement"], one["revisions"]])[:16]


class Folder:
    """A run folder that is written cell by cell."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def add(self, one: dict[str, Any], vectors: Mapping[str, np.ndarray], **record: Any) -> "Folder":
        cell = digest.of(one)[:16]
        samples = evidence.save(self.path, vectors) if vectors else ""
        floor = {"floor/numerical": 1e-6} if one["measurement"].get("treatment") == PLAIN else {}
        values = {name: float(v.mean()) for name, v in vectors.items() if v.dtype.kind == "f"} | floor
        n = len(next(iter(vectors.values()))) if vectors else 0
        whole = Record(cell=cell, **{"values": values, "n": n, "samples": samples, **record})
        with Store.open(self.path) as store:
            store.append(Closing(cell=cell, question=question(one), status="measured", spec=one), [whole])
        return self


def pair(tmp_path: Path, vectors: np.ndarray, **changed: Any) -> tuple[Path, Path]:
    """A baseline and a candidate whose loss is `vectors`, or whose spec has changed."""
    Folder(tmp_path / "a").add(spec(), {"loss": LOSS})
    Folder(tmp_path / "b").add(spec(**changed), {"loss": vectors})
    return tmp_path / "a", tmp_path / "b"


def only(found: Comparison) -> Row:
    assert len(found.rows) == 1
    return found.rows[0]


NOISE = np.random.default_rng(1).normal(0, 0.02, N)


def test_a_worse_candidate_regressed_and_the_swap_improved(tmp_path: Path) -> None:
    a, b = pair(tmp_path, LOSS + 0.01 + NOISE)
    worse, better = only(compare(a, b)), only(compare(b, a))
    expected = 0.01 + NOISE.mean()
    assert worse.difference == pytest.approx(expected, abs=1e-8)
    assert (worse.verdict, better.verdict) == ("regressed", "improved")
    error = NOISE.std(ddof=1) / N**0.5
    assert worse.low is not None
    assert worse.high is not None
    assert expected - 4 * error < worse.low < expected - 1.5 * error
    assert expected + 1.5 * error < worse.high < expected + 4 * error
    assert worse.low == pytest.approx(-(better.high or 0), rel=0.1)
    assert (worse.n, worse.seeds, worse.floor) == (N, 1, 1e-6)


def test_pairing_by_window_sees_what_two_means_cannot(tmp_path: Path) -> None:
    shift = 0.01
    assert shift < LOSS.std() / N**0.5  # well within the noise of either mean
    assert only(compare(*pair(tmp_path, LOSS + shift + NOISE / 10))).verdict == "regressed"


@pytest.mark.parametrize(
    ("vectors", "note"),
    [
        (LOSS, "the same numbers"),
        (LOSS + NOISE - NOISE.mean() + 1e-4, ""),
        (LOSS + 5e-7 + NOISE / 1e7, "within the noise floor"),
    ],
    ids=["equal", "no difference", "below the floor"],
)
def test_no_evidence(tmp_path: Path, vectors: np.ndarray, note: str) -> None:
    row = only(compare(*pair(tmp_path, vectors)))
    assert (row.verdict, row.note) == ("no evidence", note)


def test_few_windows_conclude_nothing_however_large_the_difference(tmp_path: Path) -> None:
    few = {"measurement": {"windows": 16}}
    Folder(tmp_path / "a").add(spec(**few), {"loss": LOSS[:16]})
    Folder(tmp_path / "b").add(spec(**few), {"loss": LOSS[:16] + 5 + NOISE[:16]})
    row = only(compare(tmp_path / "a", tmp_path / "b"))
    assert (row.verdict, row.p) == ("no evidence", None)
    assert "too few" in row.note or "fewer" in row.note


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"data": {"name": "text:b.txt", "digest": "e" * 64}}, "the data differ: text:a.txt (dddddddd) and text:b.txt"),
        ({"model": {"tokenizer": "u" * 64}}, "the tokenizers differ (tttttttt and uuuuuuuu)"),
        ({"measurement": {"windows": 64}}, "the windows differ: 512 of all and 64 of all"),
        ({"seed": 1}, "the other run has no seed 0"),
        ({"revisions": {"measure": 1}}, "measured by another revision (measure 2 and measure 1)"),
    ],
    ids=["data", "tokenizer", "windows", "seed", "revision"],
)
def test_what_cannot_be_compared_is_refused_with_the_reason(tmp_path: Path, changed: Any, reason: str) -> None:
    with pytest.raises(NothingToCompare, match="have no cell that may be compared") as refusal:
        compare(*pair(tmp_path, LOSS, **changed))
    assert reason in str(refusal.value)


@pytest.mark.parametrize("metric", ["loss_increase", "loss"])
def test_another_quantizer_scope_is_refused_and_the_rest_compared(tmp_path: Path, metric: str) -> None:
    other = {"name": "W4", "scope": "linear", "assign": {"weight:blocks.*.mlp.in": "int4/token"}}
    a, b = pair(tmp_path, LOSS + 0.01)
    Folder(a).add(spec(measurement={"treatment": W4}), {metric: LOSS})
    Folder(b).add(spec(measurement={"treatment": other}), {metric: LOSS})
    found = compare(a, b)
    assert [one.reason for one in found.refused] == [
        "the quantizer scopes differ: weight:weights and weight:blocks.*.mlp.in",
        "the quantizer scopes differ: weight:blocks.*.mlp.in and weight:weights",
    ]
    assert len(found.rows) == 1


def test_other_sites_under_the_same_patterns_are_refused_for_one_architecture_only(tmp_path: Path) -> None:
    asked = {"what": "error", "kind": "weight", "sites": ["all"], "quantizer": "int4/token"}
    for name, site, wiring in (("a", "x", "r"), ("b", "y", "r"), ("c", "x", "free")):
        one = spec(model={"wiring": wiring}, measurement=asked)
        Folder(tmp_path / name).add(one, {}, values={"error_db": -20.0}, site=site)
    with pytest.raises(NothingToCompare, match="the sites differ: x, y in one run only"):
        compare(tmp_path / "a", tmp_path / "b", How(metrics=("error_db",)))
    row = only(compare(tmp_path / "a", tmp_path / "c", How(metrics=("error_db",))))
    assert row.verdict == "no evidence"
    assert "nothing says how far it varies" in row.note


def test_treatments_that_touched_another_number_of_sites_are_refused(tmp_path: Path) -> None:
    a, b = pair(tmp_path, LOSS + 0.01)
    for folder, touched in ((a, 8.0), (b, 7.0)):
        values = {"loss": float(LOSS.mean()), "sites_touched": touched}
        Folder(folder).add(spec(measurement={"treatment": W4}), {"loss": LOSS}, values=values)
    found = compare(a, b)
    assert {one.reason for one in found.refused} == {"the sites differ: the treatments touched another number of them"}
    assert [row.question for row in found.rows] == ["loss, unquantized"]


def test_the_increase_of_a_treatment_is_paired_with_its_own_unquantized_model(tmp_path: Path) -> None:
    """A worse model whose quantization costs less: both are seen, by arithmetic done here."""
    rng = np.random.default_rng(2)
    costs = {"a": 0.1 + rng.normal(0, 0.02, N), "b": 0.05 + rng.normal(0, 0.02, N)}
    base = {"a": LOSS, "b": LOSS + 0.2 + NOISE}
    for name in "ab":
        folder = Folder(tmp_path / name).add(spec(), {"loss": base[name]})
        treated = base[name] + costs[name]
        values = {"loss": float(treated.mean()), "loss_increase": float(costs[name].mean())}
        folder.add(spec(measurement={"treatment": W4}), {"loss": treated}, values=values)
    rows = {(row.question, row.metric): row for row in compare(tmp_path / "a", tmp_path / "b").rows}
    increase = rows["loss, W4", "loss_increase"]
    assert increase.verdict == "improved"
    each = costs["b"] - costs["a"]
    middle = ((increase.low or 0) + (increase.high or 0)) / 2
    assert middle == pytest.approx(each.mean(), abs=each.std() / N**0.5)
    assert rows["loss, W4", "loss"].verdict == "regressed"
    assert rows["loss, unquantized", "loss"].verdict == "regressed"


def items(wrong: np.ndarray, order: np.ndarray) -> dict[str, np.ndarray]:
    hashes = np.stack([np.frombuffer(bytes([i % 251, i // 251] * 16), np.uint8) for i in range(len(wrong))])
    return {"task_error/acc": wrong[order], "doc_hash": hashes[order]}


TASK = {"measurement": {"what": "task", "options": {"name": "t"}, "treatment": None}}


def test_items_are_paired_by_what_they_are_and_tested_exactly(tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    wrong = (rng.random(400) < 0.3).astype(float)
    flips = rng.random(400) < 0.1
    other = np.where(flips, 1.0, wrong)
    Folder(tmp_path / "a").add(spec(**TASK), items(wrong, np.arange(400)))
    Folder(tmp_path / "b").add(spec(**TASK), items(other, rng.permutation(400)))
    row = only(compare(tmp_path / "a", tmp_path / "b"))
    worse, better = int((other > wrong).sum()), int((wrong > other).sum())
    assert row.p == pytest.approx(binomtest(worse, worse + better).pvalue, rel=1e-9)
    assert row.difference == pytest.approx((worse - better) / 400)
    assert row.verdict == "regressed"
    expected = proportion_noninferior(wrong, other, 0.0, alpha=0.025)
    assert (row.low, row.high, row.method) == (expected.low, expected.high, expected.method)


def test_other_items_do_not_pair(tmp_path: Path) -> None:
    wrong = np.zeros(401)
    Folder(tmp_path / "a").add(spec(**TASK), items(wrong, np.arange(400)))
    Folder(tmp_path / "b").add(spec(**TASK), items(wrong + 1, np.arange(1, 401)))
    row = only(compare(tmp_path / "a", tmp_path / "b"))
    assert row.verdict == "no evidence"
    assert row.note.startswith("the items differ: 399 of 400 and 400 are the same")


def shifts(shift: float, spread: float) -> list[np.ndarray]:
    """What four trainings add to the loss of each window."""
    rng = np.random.default_rng(int(1000 * shift) + 7)
    return [shift + rng.normal(0, spread) + rng.normal(0, 0.02, N) for _ in range(4)]


def trained(folder: Path, shift: float, spread: float) -> Path:
    for seed, added in enumerate(shifts(shift, spread)):
        one = spec(seed=seed, training={"lr": 0.1}, model={"arch": "residual"})
        Folder(folder).add(one, {"loss": LOSS + added})
    return folder


def test_seeds_that_disagree_are_no_evidence_though_windows_agree(tmp_path: Path) -> None:
    base = trained(tmp_path / "a", 0.0, 0.0)
    steady = only(compare(base, trained(tmp_path / "b", 0.05, 0.0)))
    shaky = only(compare(base, trained(tmp_path / "c", 0.05, 0.2)))
    assert (steady.verdict, steady.seeds) == ("regressed", 4)
    assert shaky.verdict == "no evidence"
    means = [float(v.mean()) for v in shifts(0.05, 0.2)]
    assert ((shaky.low or 0) + (shaky.high or 0)) / 2 == pytest.approx(
        np.mean(means) - np.mean([v.mean() for v in shifts(0.0, 0.0)]), abs=1e-6
    )
    assert (shaky.seed_sd or 0) > 0.05 > 10 * (steady.seed_sd or 0)


def test_many_rows_are_judged_together() -> None:
    row = Row(
        arms=("m", "m"), question="q", kind="", site="", scope="", quantizer="", metric="loss", unit="", a=1.0, b=2.0,
        difference=1.0, low=0.5, high=1.5, p=0.02,
    )  # fmt: skip
    assert [one.verdict for one in adjusted([row])] == ["regressed"]
    assert {one.verdict for one in adjusted([row] * 3)} == {"no evidence"}
    strong = replace(row, p=0.01)
    assert [one.verdict for one in adjusted([strong, row, replace(row, p=0.6, low=-1.0)])] == [
        "regressed",
        "regressed",
        "no evidence",
    ]


def test_models_of_other_names_are_named_or_refused(tmp_path: Path) -> None:
    Folder(tmp_path / "a").add(spec(arm="x"), {"loss": LOSS}).add(spec(arm="y"), {"loss": LOSS + 1 + NOISE})
    with pytest.raises(UnknownName, match="'z'"):
        compare(tmp_path / "a", tmp_path / "a", How(arms={"x": "z"}))
    assert only(compare(tmp_path / "a", tmp_path / "a", How(arms={"x": "y"}))).verdict == "regressed"
    Folder(tmp_path / "b").add(spec(arm="v"), {"loss": LOSS}).add(spec(arm="w"), {"loss": LOSS})
    with pytest.raises(NothingToCompare, match="a has x, y, b has v, w"):
        compare(tmp_path / "a", tmp_path / "b")


def test_a_metric_that_is_no_cost_is_refused(tmp_path: Path) -> None:
    a, b = pair(tmp_path, LOSS)
    with pytest.raises(NoCost, match="neither better nor worse"):
        compare(a, b, How(metrics=("rms",)))


def test_a_metric_that_no_pair_has_is_no_silence(tmp_path: Path) -> None:
    a, b = pair(tmp_path, LOSS)
    with pytest.raises(NothingToCompare, match="1 cells may be compared, but none has kld in both runs"):
        compare(a, b, How(metrics=("kld",)))


def test_the_model_of_all_rows_stands_in_the_headline_and_several_in_a_column(tmp_path: Path) -> None:
    for name, shift in (("a", 0.0), ("b", 0.5)):
        for model in "xy":
            Folder(tmp_path / name).add(spec(arm=model), {"loss": LOSS + shift})
    both = compare(tmp_path / "a", tmp_path / "b").json()
    one = compare(tmp_path / "a", tmp_path / "b", How(arms={"x": "y"})).json()
    assert compared.headline(both).startswith("A a, B b: 2 regressed")
    assert compared.headline(one).startswith("A a (x), B b (y): 1 regressed")
    assert [row[1] for row in compared.table(both)] == ["model", "x", "y"]
    assert compared.table(one)[0] == [name for name in compared.HEAD if name != "model"]
    assert {len(row) for row in compared.table(one)} == {len(compared.HEAD) - 1}
    assert compared.table(one)[1][compared.table(one)[0].index("B − A")].startswith("0.500")


def test_another_device_is_a_caution(tmp_path: Path) -> None:
    found = compare(*pair(tmp_path, LOSS, device="cuda"))
    assert found.cautions == ("measured with different devices: cpu and cuda",)


HOSTILE = "<script>alert(1)</script>|`x`\n# h"


def test_every_format_says_the_same_and_runs_nothing(tmp_path: Path) -> None:
    Folder(tmp_path / "a").add(spec(arm=HOSTILE), {"loss": LOSS})
    Folder(tmp_path / "b").add(spec(arm=HOSTILE), {"loss": LOSS + 0.5 + NOISE / 10})
    document = compare(tmp_path / "a", tmp_path / "b").json()
    assert json.loads(compared.json(document))["verdicts"] == {"regressed": 1, "improved": 0, "no evidence": 0}
    page, marked = compared.html(document), compared.markdown(document)
    assert "<script" not in page
    assert "&lt;script&gt;" in page
    assert "\\<script\\>" in marked
    assert "\n# h" not in marked
    for text in (page, marked, compared.text(document)):
        assert "regressed" in text
        assert "0.50" in text
    header, _, line = marked.splitlines()[2:5]
    assert line.replace("\\|", "").count("|") == header.count("|")


def run(*arguments: object) -> int:
    try:
        return main([str(one) for one in arguments])
    except SystemExit as stop:
        return int(stop.code or 0)


def test_the_command_takes_runs_or_models_and_refuses_what_does_not_apply(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    a, b = pair(tmp_path, LOSS + 0.01)
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    assert run("compare", a, b, "--out", tmp_path / "c.html") == GOOD
    assert (tmp_path / "c.html").read_text().startswith("<!doctype html>")
    assert run("compare", a, b, "--format", "json") == GOOD
    for arguments, sentence in (
        ((a, tmp_path / "model"), "is a run and"),
        ((a, b, "--data", "text:x"), "--data does not apply to two runs"),
        ((a, b, "--set", "windows=3"), "--set does not apply to two runs"),
        ((tmp_path / "model", tmp_path / "model", "--metric", "loss"), "--metric does not apply to two models"),
        ((a, b, "--arm", "x"), "expected A=B"),
        ((a, b, "--out", "c.pdf"), "known endings: json, md, html, txt"),
        ((a, b, "--metric", "rms"), "is no cost"),
    ):
        capsys.readouterr()
        assert run("compare", *arguments) == USAGE, arguments
        assert sentence in capsys.readouterr().err
    Folder(tmp_path / "other").add(spec(data={"digest": "e" * 64}), {"loss": LOSS})
    assert run("compare", a, tmp_path / "other") == ERROR


def test_damaged_evidence_is_an_error_and_no_verdict(tmp_path: Path) -> None:
    a, b = pair(tmp_path, LOSS + 0.01)
    file = next((b / "evidence").iterdir())
    file.write_bytes(file.read_bytes()[:-8] + bytes(8))
    assert run("compare", a, b) == ERROR
    file.unlink()
    assert run("compare", a, b) == ERROR


def large(folder: Path, shift: float) -> Path:
    """100,000 records: tensors mostly, and 40 treatments."""
    rng = np.random.default_rng(int(shift * 10))
    written: list[bytes] = []

    def write(one: dict[str, Any], records: list[Record]) -> None:
        cell, asked = digest.of(one)[:16], question(one)
        closing = Closing(cell=cell, question=asked, status="measured", spec=one, records=len(records))
        written.append(encode(closing, [replace(record, cell=cell) for record in records]))

    for i in range(1000):
        tensors = {"what": "error", "kind": "weight", "sites": [str(i)], "treatment": None}
        records = [Record(cell="", values={"error_db": -1.0}, site=f"s{j}", kind="weight") for j in range(100)]
        write(spec(measurement=tensors), records)
    for i in range(41):
        treatment = {"name": f"T{i}", "scope": "", "assign": {f"weight:{i}": "int4/token"} if i else {}}
        vectors = {name: LOSS + shift + rng.normal(0, 0.1, N) for name in ("loss", "kld", "error_rate")}
        values = {name: float(vector.mean()) for name, vector in vectors.items()}
        record = Record(cell="", values=values, n=N, samples=evidence.save(folder, vectors))
        write(spec(measurement={"treatment": treatment}), [record])
    (folder / "records.jsonl").write_bytes(b"".join(written))
    return folder


def test_a_hundred_thousand_records_take_less_than_two_seconds(tmp_path: Path) -> None:
    a, b = large(tmp_path / "a", 0.0), large(tmp_path / "b", 0.1)
    command = [sys.executable, "-m", "qbench.cli.main", "compare", str(a), str(b), "--format", "json"]
    began = time.perf_counter()
    before = _children()
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    seconds, wall = _children() - before, time.perf_counter() - began
    print(f"{seconds:.2f} s of CPU, {wall:.2f} s")
    assert len(json.loads(done.stdout)["rows"]) == 123
    assert seconds < 2


def _children() -> float:
    import resource

    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime
