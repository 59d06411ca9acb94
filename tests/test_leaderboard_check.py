"""What may not enter the leaderboard: every way we know to send something broken, false or harmful."""

import json
import os
import re
from collections.abc import Callable
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from submissions import Made, make, sign

from qbench.report.leaderboard import hostile, reproduction
from qbench.report.leaderboard.check import Checked, as_markdown, as_text, check
from qbench.results import digest, evidence
from qbench.results.run import read

SMALL = Made(arms=("residual",), quantizers=("int4/token",), seeds=(0, 1))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return make(tmp_path / "ada-1", SMALL)


def ask(folder: Path, change: Callable[[list[str]], list[str]]) -> None:
    """Other cells in the manifest."""
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["sessions"][-1]["asked"] = change(manifest["sessions"][-1]["asked"])
    (folder / "manifest.json").write_text(json.dumps(manifest))


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "records.jsonl").read_text().splitlines()]


def store(folder: Path, rows: list[dict[str, Any]]) -> Checked:
    """With the digests of the new lines: a liar who knows how to use sha256sum."""
    (folder / "records.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return check(sign(folder))


def test_a_sound_submission_is_accepted(folder: Path) -> None:
    found = check(folder)
    assert found.faults == ()
    assert (found.accepted, found.label) == (True, "self-attested")
    assert as_text([found]) == "ada-1: accepted, self-attested\n"


def test_without_evidence_the_label_says_so(folder: Path) -> None:
    for path in (folder / "evidence").iterdir():
        path.unlink()
    (folder / "evidence").rmdir()
    assert check(folder).label == "self-attested, no evidence"


@pytest.mark.parametrize("name", ["growth", "wiring", "leaderboard/quickstart"])
def test_this_projects_own_runs_may_enter(name: str) -> None:
    found = check(Path(__file__).parents[1] / "results" / name)
    assert (found.faults, found.label) == ((), "self-attested")


# What is said when one line of the records is changed and the digests are made to fit.
def _loss(rows: list[dict[str, Any]]) -> dict[str, Any]:
    return next(row for row in rows if row["line"] == "record" and row.get("quantizer"))


def lower(rows: list[dict[str, Any]]) -> None:
    _loss(rows)["values"]["loss"] -= 0.01


def entropy(rows: list[dict[str, Any]]) -> None:
    _loss(rows)["values"]["bits_per_byte"] = 0.1


def nothing(rows: list[dict[str, Any]]) -> None:
    _loss(rows)["values"]["loss"] = 0.0


def few_bits(rows: list[dict[str, Any]]) -> None:
    _loss(rows)["bits_per_value"] = 3.9


def free_scales(rows: list[dict[str, Any]]) -> None:
    _loss(rows)["bits_per_value"] = 4.0


def no_increase(rows: list[dict[str, Any]]) -> None:
    _loss(rows)["values"]["loss_increase"] = 0.0


def no_error(rows: list[dict[str, Any]]) -> None:
    _loss(rows)["values"]["kld"] = 0.0


def twice(rows: list[dict[str, Any]]) -> None:
    at = rows.index(_loss(rows))
    rows.insert(at, dict(rows[at]))
    rows[at + 2]["records"] += 1


def dropped(rows: list[dict[str, Any]]) -> None:
    del rows[:2]


def failed(rows: list[dict[str, Any]]) -> None:
    rows[1]["status"] = "failed"


def edited(rows: list[dict[str, Any]]) -> None:
    rows[1]["spec"]["model"]["layers"] = 99


def other_device(rows: list[dict[str, Any]]) -> None:
    rows[1]["spec"]["device"] = "cuda:H100"


def other_samples(rows: list[dict[str, Any]]) -> None:
    rows[0]["samples"] = "0" * 16


def climbs(rows: list[dict[str, Any]]) -> None:
    rows[0]["samples"] = "../../secret"


def narrow(rows: list[dict[str, Any]]) -> None:
    mean = rows[0]["values"]["loss"]
    rows[0]["intervals"]["loss"] = [mean - 1e-4, mean + 1e-4]


def small_increase(rows: list[dict[str, Any]]) -> None:
    _loss(rows)["values"]["loss_increase"] = 0.001


def unproven(rows: list[dict[str, Any]]) -> None:
    del rows[0]["samples"]


def empty(rows: list[dict[str, Any]]) -> None:
    rows[0]["values"] = {}


def fewer_named(rows: list[dict[str, Any]]) -> None:
    _loss(rows).update(quantizer="int2/token", bits_per_value=2.5)


def infinite(rows: list[dict[str, Any]]) -> None:
    rows[0]["values"]["loss"] = 1e999


def many_bits(rows: list[dict[str, Any]]) -> None:
    _loss(rows)["bits_per_value"] = 1e308


def many_bits_in_all(rows: list[dict[str, Any]]) -> None:
    _loss(rows)["values"]["bits_per_value/model"] = 1e308


def many_bytes(rows: list[dict[str, Any]]) -> None:
    _loss(rows)["values"]["bytes/model"] = 1e300


def great_divergence(rows: list[dict[str, Any]]) -> None:
    _loss(rows)["values"]["kld"] = 1e308


def high_floor(rows: list[dict[str, Any]]) -> None:
    rows[0]["values"]["floor/window"] = 1e308


def great_loss(rows: list[dict[str, Any]]) -> None:
    rows[0]["values"]["loss"] = 1e308


def wide(rows: list[dict[str, Any]]) -> None:
    rows[0]["intervals"]["loss"][1] = 1e308


def backwards(rows: list[dict[str, Any]]) -> None:
    rows[0]["intervals"]["loss"].reverse()


def many_samples(rows: list[dict[str, Any]]) -> None:
    rows[0]["n"] = 2**53 - 1


def deep(rows: list[dict[str, Any]]) -> None:
    inner: dict[str, Any] = {}
    rows[1]["spec"]["model"] = inner
    for _ in range(200):
        inner["a"] = {}
        inner = inner["a"]


def wrong_type(rows: list[dict[str, Any]]) -> None:
    rows[1]["spec"]["seed"] = ["x"]


def older_schema(rows: list[dict[str, Any]]) -> None:
    rows[1]["schema"] = 0


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lower, "the mean of its evidence is"),
        (entropy, "below the entropy of text"),
        (nothing, "below what any model reaches"),
        (few_bits, "int4/token stores at least 4"),
        (free_scales, "int4/token stores at least 4.00003"),
        (no_increase, "loss_increase is exactly 0"),
        (no_error, "kld is exactly 0"),
        (twice, "1 records are of the same place"),
        (dropped, "cells are missing"),
        (failed, "failed"),
        (edited, "not named by the hash of its spec"),
        (other_device, "not named by the hash of its spec"),
        (other_samples, "is missing; copy the evidence"),
        (climbs, "named by 16 hex digits"),
        (narrow, "the interval of loss is narrower than its 16 windows give"),
        (small_increase, "an increase of 0.001, but the losses differ by"),
        (unproven, "a loss without the evidence"),
        (empty, "a measured loss without a number"),
        (fewer_named, "int4/token stores at least 4"),
        (infinite, "records.jsonl:1"),
        (many_bits, "a value cannot have 1e+308 bits"),
        (many_bits_in_all, "bits_per_value/model cannot be 1e+308"),
        (many_bytes, "bytes/model cannot be 1e+300"),
        (great_divergence, "kld cannot be 1e+308"),
        (high_floor, "floor/window cannot be 1e+308"),
        (great_loss, "loss cannot be 1e+308"),
        (wide, "the interval of loss cannot be"),
        (backwards, "the interval of loss cannot be"),
        (many_samples, "samples are more than anybody has measured"),
        (deep, "nested too deeply"),
        (wrong_type, "seed"),
        (older_schema, "schema 0, this qbench reads schema 1"),
    ],
    ids=lambda value: value.__name__ if callable(value) else "",
)
def test_false_records_are_refused(folder: Path, change: Callable[[list[dict[str, Any]]], None], said: str) -> None:
    rows = lines(folder)
    change(rows)
    found = store(folder, rows)
    assert not found.accepted
    assert said in "\n".join(found.faults)
    assert all("\n" not in fault and str(folder) not in fault for fault in found.faults)


def test_a_cost_is_what_its_windows_cost(folder: Path) -> None:
    """Of a loaded model the evidence holds the increase of every window too."""
    rows = lines(folder)
    row = _loss(rows)
    losses = read(folder).evidence(row["samples"])["loss"]
    right = losses - losses.mean() + row["values"]["loss_increase"]
    row["samples"] = evidence.save(folder, {"loss": losses, "loss_increase": right})
    assert store(folder, rows).accepted
    row["samples"] = evidence.save(folder, {"loss": losses, "loss_increase": right + 0.01})
    assert any("loss_increase is" in fault and "mean of its evidence" in fault for fault in store(folder, rows).faults)


def test_a_seed_that_is_missing_is_named(folder: Path) -> None:
    rows = lines(folder)
    gone = next(r for r in rows if r["line"] == "cell" and r["spec"]["seed"] == 1 and r["records"])
    rows = [row for row in rows if row["cell"] != gone["cell"]]
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["sessions"][-1]["asked"].remove(gone["cell"])
    (folder / "manifest.json").write_text(json.dumps(manifest))
    assert "lacks the seeds [1]" in "\n".join(store(folder, rows).faults)


def test_a_copied_seed_is_a_copy(folder: Path) -> None:
    rows = lines(folder)
    own = [row for row in rows if row["line"] == "record" and not row.get("quantizer")]
    own[1] |= {name: own[0][name] for name in ("values", "intervals", "samples")}
    assert "the very same numbers" in "\n".join(store(folder, rows).faults)


@pytest.mark.parametrize("name", ["other", "int4/token"])
def test_the_same_cell_under_another_name_is_no_seed(folder: Path, name: str) -> None:
    """Measured twice, the treatment renamed: its copies would narrow the interval of the row."""
    rows = lines(folder)
    end = next(row for row in rows if row["line"] == "cell" and row["spec"]["measurement"]["treatment"]["assign"])
    record = next(row for row in rows if row["line"] == "record" and row["cell"] == end["cell"])
    measurement = end["spec"]["measurement"]
    treatment = measurement["treatment"] | {"name": name, "scope": "elsewhere"}
    spec = end["spec"] | {"measurement": measurement | {"treatment": treatment}}
    cell = digest.of(spec)[:16]
    rows += [record | {"cell": cell}, end | {"cell": cell, "spec": spec, "question": "0" * 16}]
    ask(folder, lambda asked: [*asked, cell])
    found = store(folder, rows)
    assert any(fault.startswith("residual, int4/token: seed 0 was measured by ") for fault in found.faults)


def test_a_copied_seed_is_a_copy_under_any_name(folder: Path) -> None:
    rows = lines(folder)
    ends = [row for row in rows if row["line"] == "cell" and row["spec"]["measurement"]["treatment"]["assign"]]
    own = [row for row in rows if row["line"] == "record" and row.get("quantizer")]
    ends[1]["spec"]["measurement"]["treatment"]["name"] = "other"
    ends[1]["question"] = "0" * 16
    own[1] |= {name: own[0][name] for name in ("values", "intervals", "samples")}
    assert "the very same numbers" in "\n".join(store(folder, rows).faults)


def test_evidence_of_a_type_that_numpy_lacks_is_a_fault(folder: Path) -> None:
    header = json.dumps({"loss": {"dtype": "BF16", "shape": [16], "data_offsets": [0, 32]}}).encode()
    data = len(header).to_bytes(8, "little") + header + bytes(32)
    name = digest.of_bytes(data)[:16]
    (folder / "evidence" / f"{name}.safetensors").write_bytes(data)
    rows = lines(folder)
    rows[0]["samples"] = name
    assert "vectors of type 'BF16', which numpy does not have" in "\n".join(store(folder, rows).faults)


def test_edited_files_are_not_what_was_submitted(folder: Path) -> None:
    path = folder / "records.jsonl"
    path.write_bytes(path.read_bytes().replace(b'"seconds":0.0', b'"seconds":0.1', 1))
    (fault,) = check(folder).faults
    right = re.search("records.jsonl: ([0-9a-f]{64})", fault)
    assert right
    text = (folder / "submission.yaml").read_text()
    (folder / "submission.yaml").write_text(re.sub("records.jsonl: [0-9a-f]{64}", right[0], text))
    assert check(folder).accepted  # the fault says how to mend it


def test_an_older_manifest_says_what_to_do(folder: Path) -> None:
    manifest = json.loads((folder / "manifest.json").read_text())
    del manifest["sessions"][-1]["asked"]
    (folder / "manifest.json").write_text(json.dumps(manifest))
    assert "run the suite again with this qbench" in "\n".join(check(sign(folder)).faults)


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("who: Ada", "who: &a Ada", "anchor"),
        ("who: Ada", "who: !!python/object:os.system ls", "tag"),
        ("who: Ada", "who: Ada\nwho: Eve", "given twice"),
        ("who: Ada", "whom: Ada", "unknown key"),
        ("submission: 1", "submission: 2", "upgrade qbench-suite"),
        ("who: Ada", f"who: {'A' * 500}", "at most 120 characters"),
        ("https://example.org", "javascript:alert(1)//", "https://"),
        ("licence: Apache-2.0", 'licence: "\\u202eevil"', "control characters"),
        ("licence: Apache-2.0", 'note: "\\ud800"', "submission.yaml"),
        ("licence: Apache-2.0\n", "", "licence is missing"),
        ("licence: Apache-2.0", "licence: MIT\nprovenance: reproduced", "no reproduced.json"),
        ("licence: Apache-2.0", "licence: MIT\nprovenance: proven", "allowed"),
        ("records.jsonl:", "../records.jsonl:", "digests are"),
    ],
    ids=lambda value: value[:20],
)
def test_submission_yaml_says_what_is_wrong_where(folder: Path, old: str, new: str, said: str) -> None:
    path = folder / "submission.yaml"
    path.write_text(path.read_text().replace(old, new))
    found = check(folder)
    assert not found.accepted
    assert said in "\n".join(found.faults)


def test_a_submission_without_digests_is_told_what_they_are(folder: Path) -> None:
    path = folder / "submission.yaml"
    path.write_text(path.read_text().partition("digests:")[0])
    found = check(folder)
    assert not found.accepted
    wanted = [sha256((folder / name).read_bytes()).hexdigest() for name in ("records.jsonl", "manifest.json")]
    assert [fault.rpartition(": ")[2] for fault in found.faults] == wanted
    lines = "".join(f"  {fault.partition('digests: ')[2]}\n" for fault in found.faults)
    path.write_text(f"{path.read_text()}digests:\n{lines}")
    assert check(folder).accepted


def test_a_yaml_bomb_is_refused_before_it_grows(folder: Path) -> None:
    bomb = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
        f"{b}: &{b} [{', '.join([f'*{a}'] * 9)}]\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True)
    )
    (folder / "submission.yaml").write_text(bomb)
    assert "anchor" in "\n".join(check(folder).faults)


def link_records(folder: Path) -> None:
    (folder / "records.jsonl").rename(folder.parent / "elsewhere")
    (folder / "records.jsonl").symlink_to(folder.parent / "elsewhere")


def link_evidence(folder: Path) -> None:
    (folder / "evidence").rename(folder.parent / "evidence")
    (folder / "evidence").symlink_to(folder.parent / "evidence")


def link_one(folder: Path) -> None:
    path = next((folder / "evidence").iterdir())
    path.unlink()
    path.symlink_to("/etc/passwd")


def pipe(folder: Path) -> None:
    (folder / "manifest.json").unlink()
    os.mkfifo(folder / "manifest.json")


def program(folder: Path) -> None:
    (folder / "plugin.py").write_text("raise SystemExit")


def long_line(folder: Path) -> None:
    with (folder / "records.jsonl").open("ab") as file:
        file.write(b'{"line":"record","cell":"' + b"a" * (hostile.LARGEST_LINE + 1) + b'"}\n')


def huge_file(folder: Path) -> None:
    with (folder / "records.jsonl").open("ab") as file:
        file.truncate(2**33)  # sparse: eight gigabytes that take no room


def many_lines(folder: Path) -> None:
    with (folder / "records.jsonl").open("ab") as file:
        file.write(b"{}\n" * (hostile.MOST_LINES + 1))


def not_utf8(folder: Path) -> None:
    (folder / "submission.yaml").write_bytes(b"who: \xff\n")


def damaged(folder: Path) -> None:
    path = next((folder / "evidence").iterdir())
    path.write_bytes(path.read_bytes()[:-1] + b"\x00")


def deep_manifest(folder: Path) -> None:
    (folder / "manifest.json").write_text("[" * 100_000 + "]" * 100_000)
    sign(folder)


def nested_manifest(folder: Path) -> None:
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["sessions"][0]["options"] = json.loads("[" * 20 + "]" * 20)
    (folder / "manifest.json").write_text(json.dumps(manifest))
    sign(folder)


def odd_manifest(folder: Path) -> None:
    (folder / "manifest.json").write_text('{"schema": 1, "sessions": [7]}')
    sign(folder)


@pytest.mark.parametrize(
    ("harm", "said"),
    [
        (link_records, "records.jsonl is a symbolic link"),
        (link_evidence, "evidence is a symbolic link"),
        (link_one, "is a symbolic link"),
        (pipe, "manifest.json is not a plain file"),
        (program, "plugin.py is no part of a submission"),
        (long_line, "a line of more than"),
        (huge_file, "bytes; at most"),
        (many_lines, "more than 300000 lines"),
        (not_utf8, "byte 5 is not UTF-8"),
        (damaged, "holds other data than was recorded"),
        (deep_manifest, "manifest.json: nested"),
        (nested_manifest, "nested more than 12 levels"),
        (odd_manifest, "manifest.json: 0"),
    ],
    ids=lambda value: value.__name__ if callable(value) else "",
)
def test_harmful_folders_are_refused(folder: Path, harm: Callable[[Path], None], said: str) -> None:
    harm(folder)
    found = check(folder)
    assert not found.accepted
    assert said in "\n".join(found.faults)


def test_a_folder_with_a_strange_name_is_refused(tmp_path: Path) -> None:
    folder = make(tmp_path / "<b>", SMALL)
    assert "a submission is named by" in check(folder).faults[0]


def test_markdown_holds_what_a_submission_says_as_code(folder: Path) -> None:
    evil = "` @everyone <img src=x onerror=alert(1)>"
    text = (folder / "submission.yaml").read_text()
    (folder / "submission.yaml").write_text(text.replace("licence:", f'"{evil}": 1\nlicence:'))
    found = as_markdown([check(folder)])
    assert "@everyone" in found
    spans = re.findall("``.*?``", found)
    assert all("@everyone" not in part for part in re.split("``.*?``", found))
    assert len(spans) == 2


def test_the_name_of_a_cell_is_no_markup(folder: Path) -> None:
    evil = "x\n\n# Approved\n[click](https://evil.example) <img src=x> @everyone\n"
    rows = lines(folder)
    old = rows[0]["cell"]
    rows[0] |= {"cell": evil, "samples": ""}
    rows[1]["cell"] = evil
    ask(folder, lambda asked: [evil if cell == old else cell for cell in asked])
    checked = store(folder, rows)
    assert all("\n" not in fault and len(fault) <= 400 for fault in checked.faults)
    assert any("a loss without the evidence" in fault for fault in checked.faults)
    text = as_markdown([checked])
    assert all(line.startswith(("- ``", "### ``")) for line in text.splitlines() if line)
    assert not re.search("evil|Approved|@everyone", "".join(re.split("``.*?``", text)))


def test_a_label_is_no_markup(folder: Path) -> None:
    found = replace(check(folder), label="reproduced by [x](https://evil.example), 1 of 2 cells")
    text = as_markdown([found])
    assert found.accepted
    assert "evil" in text
    assert "evil" not in "".join(re.split("``.*?``", text))


# Reproduction


@pytest.fixture
def reproduced(folder: Path) -> Path:
    run = read(folder)
    chosen = reproduction.sample(run, 0.5, seed=1)
    again = [
        reproduction.Again(cell=one.closing.cell, was=v, found=v + 1e-7, floor=1e-6, kind="numerical")
        for one in chosen
        if (v := reproduction.value(one)) is not None
    ]
    reproduction.write(folder, again, {"by": "Eve", "date": "2026-01-01", "commit": ""}, of=4)
    (folder / "submission.yaml").write_text((folder / "submission.yaml").read_text() + "provenance: reproduced\n")
    return folder


def test_a_reproduction_is_named(reproduced: Path) -> None:
    found = check(reproduced)
    assert (found.faults, found.label) == ((), "reproduced by Eve, 2 of 4 cells")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"records": "0" * 64}, "about other records"),
        ({"of": 40}, "counts of cells"),
        ({"by": ""}, "by:"),
        ({"more": 1}, "more:"),
        ({"cells": []}, "cells"),
    ],
    ids=lambda value: str(value)[:20],
)
def test_a_label_that_proves_nothing_is_refused(reproduced: Path, change: dict[str, Any], said: str) -> None:
    path = reproduced / "reproduced.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    found = check(reproduced)
    assert not found.accepted
    assert said in "\n".join(found.faults)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"found": 1.0}, "does not agree"),
        ({"found": 1.0, "floor": 10.0}, "claims a noise floor"),
        ({"was": 1.0}, "not what the records hold"),
        ({"cell": "f" * 16}, "not what the records hold"),
    ],
    ids=lambda value: str(value)[:20],
)
def test_a_reproduced_cell_has_to_agree(reproduced: Path, change: dict[str, Any], said: str) -> None:
    path = reproduced / "reproduced.json"
    found = json.loads(path.read_text())
    found["cells"][0] |= change
    path.write_text(json.dumps(found))
    assert said in "\n".join(check(reproduced).faults)


def test_the_seed_floor_is_two_draws_apart(folder: Path) -> None:
    """Two draws of one normal differ by a normal of variance 2: 95 % of differences lie within 1.96 root-2 sd."""
    run = read(folder)
    one = reproduction.ranked(run)[0]
    values = [reproduction.value(c) for c in reproduction.ranked(run) if c.closing.question == one.closing.question]
    a, b = (float(v or 0) for v in values)
    reach, kind = reproduction.floor(run, one, same_weights=False)
    assert kind == "seed"
    assert reach == pytest.approx(2 * abs(a - b))  # the sd of two values is |a - b| / root 2
    assert reproduction.floor(run, one, same_weights=True) == (pytest.approx(2e-6), "numerical")


def test_the_sample_is_a_share_and_the_same_for_a_seed(folder: Path) -> None:
    run = read(folder)
    chosen = [{one.closing.cell for one in reproduction.sample(run, 0.5, seed)} for seed in range(20)]
    assert {len(cells) for cells in chosen} == {2}
    assert set.union(*chosen) == set(run.cells)
    assert {one.closing.cell for one in reproduction.sample(run, 0.5, 3)} == chosen[3]
