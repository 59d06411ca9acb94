"""Thousands of damaged submissions: never an exception, and never accepted where the damage touches what counts."""

import json
import random
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from submissions import Made, make, sign

from qbench.report.leaderboard.board import board
from qbench.report.leaderboard.check import check
from qbench.report.leaderboard.site import contents
from qbench.report.leaderboard.submission import Submission

SMALL = Made(arms=("residual",), quantizers=("int4/token",), seeds=(0, 1), windows=4)
ODD: list[Any] = [None, True, -1, 0, 1e308, 10**400, "", "\u202e", "../..", "a" * 5000, [], {}, [[]], {"a": {"b": 1}}]


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = make(tmp_path_factory.mktemp("good") / "ada", SMALL)
    assert check(folder).accepted
    return folder


def damaged(data: bytes, chance: random.Random) -> bytes:
    """One to four random edits of bytes: changed, cut, doubled, exchanged."""
    content = bytearray(data)
    for _ in range(chance.randint(1, 4)):
        at = chance.randrange(len(content) or 1)
        size = chance.choice([1, 1, 3, 40])
        part = content[at : at + size]
        content[at : at + size] = chance.choice(
            [bytes(chance.randrange(256) for _ in part), b"", part * 2, part[::-1], b"\n", b'"', b"&a ", b"{"]
        )
    return bytes(content)


@pytest.mark.parametrize("name", ["records.jsonl", "manifest.json"])
def test_damaged_bytes_are_never_accepted(good: Path, tmp_path: Path, name: str) -> None:
    folder = shutil.copytree(good, tmp_path / "ada")
    data, chance = (good / name).read_bytes(), random.Random(name)
    for _ in range(600):
        now = damaged(data, chance)
        (folder / name).write_bytes(now)
        assert check(folder).accepted == (now == data)


def test_damaged_submission_files_never_raise(good: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(good, tmp_path / "ada")
    data, chance = (good / "submission.yaml").read_bytes(), random.Random(1)
    digests = yaml.safe_load(data)["digests"]
    for _ in range(700):
        (folder / "submission.yaml").write_bytes(damaged(data, chance))
        found = check(folder)
        assert found.accepted != bool(found.faults)
        if found.accepted:
            # Read by another parser: what still is accepted claims the same files, and only words for people differ.
            told = yaml.safe_load((folder / "submission.yaml").read_bytes())
            assert (told["submission"], told["digests"]) == (1, digests)
            assert told.get("provenance", "self-attested") == "self-attested"
            assert set(told) <= set(Submission.model_fields)
        assert all(len(fault) <= 400 and "\n" not in fault for fault in found.faults)


def places(value: Any) -> list[tuple[Any, Any]]:
    """Every place in a JSON value: its container and its key."""
    if isinstance(value, dict):
        return [place for key in value for place in ((value, key), *places(value[key]))]
    if isinstance(value, list):
        return [place for i in range(len(value)) for place in ((value, i), *places(value[i]))]
    return []


def test_odd_values_in_records_never_raise_and_never_pass_where_they_count(good: Path, tmp_path: Path) -> None:
    """With digests that fit. What identifies a cell, its numbers and its counts may not change unnoticed."""
    folder = shutil.copytree(good, tmp_path / "ada")
    lines = (good / "records.jsonl").read_text().splitlines()
    chance, accepted = random.Random(2), []
    for _ in range(900):
        at = chance.randrange(len(lines))
        row = json.loads(lines[at])
        holder, key = chance.choice(places(row))
        before = holder[key]
        holder[key] = chance.choice(ODD)
        changed = json.dumps(row)
        (folder / "records.jsonl").write_text("".join(f"{line}\n" for line in [*lines[:at], changed, *lines[at + 1 :]]))
        if check(sign(folder)).accepted and holder[key] != before:
            accepted.append(key)
    # Costs of a run and words for people may be anything of their type; a wider interval or more bits help nobody.
    harmless = {"seconds", "error", "attempt", "question", "log", "warnings", "kind", "scope", "quantizer"}
    harmless |= {"floor/window", "floor/numerical", "bits_per_byte", "bits_per_value", "intervals", 0, 1}
    assert set(accepted) <= harmless


def test_odd_values_in_manifests_never_raise(good: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(good, tmp_path / "ada")
    text, chance = (good / "manifest.json").read_text(), random.Random(3)
    for _ in range(700):
        manifest = json.loads(text)
        holder, key = chance.choice(places(manifest))
        holder[key] = chance.choice(ODD)
        (folder / "manifest.json").write_text(json.dumps(manifest))
        found = check(sign(folder))
        if found.accepted and chance.random() < 0.05:
            contents(board([found]))
