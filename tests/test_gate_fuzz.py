"""Whatever a policy or a run holds, the gate gives a verdict or names the mistakes, and never passes what is bad."""

import json
import random
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
from gates import HEAD, TODAY, changed, looked, policy, run

from qbench.gate.baseline import UNREADABLE, against
from qbench.gate.outputs import to_junit, to_markdown, to_text
from qbench.gate.policy import BadPolicy, Policy, load, shipped
from qbench.gate.source import opened
from qbench.gate.verdict import judge

ODD: list[Any] = [None, True, -1, 0, 1, 10**17, 1e300, -0.0, "", "x" * 300, "\u202e", "<b>", [], {}, [[]], {"a": 1}]
ODD_TEXT = [
    "~",
    "true",
    "-1",
    "0",
    "1e3",
    ".inf",
    ".nan",
    "[]",
    "{}",
    "&a x",
    "*a",
    "!!x 1",
    "'",
    "{",
    "9" * 30,
    "1e-9",
]
ODD_TEXT += [
    "loss",
    "kld",
    "perplexity",
    "bits_per_value",
    "previous",
    "warn",
    "[512]",
    "2026-13-01",
    "\t",
    "é",
    "\x00",
]
TEXTS = [path.read_text() for path in shipped().values()]


def mutated_text(rng: random.Random, text: str) -> str:
    lines = text.split("\n")
    for _ in range(rng.randint(1, 3)):
        i = rng.randrange(len(lines))
        kind = rng.randrange(5)
        if kind == 0:
            key, colon, _ = lines[i].partition(":")
            lines[i] = f"{key}{colon} {rng.choice(ODD_TEXT)}"
        elif kind == 1:
            del lines[i]
            lines = lines or [""]
        elif kind == 2:
            lines.insert(i, rng.choice(lines))
        elif kind == 3:
            at = rng.randrange(len(lines[i]) + 1)
            lines[i] = lines[i][:at] + rng.choice(ODD_TEXT) + lines[i][at + rng.randint(0, 3) :]
        else:
            lines[i] = " " * rng.randint(0, 3) + lines[i]
    return "\n".join(lines)


def test_mutated_policies_are_mistakes_or_never_pass_a_bad_run(tmp_path: Path) -> None:
    rng = random.Random(0)
    bad = run(np.full(512, 0.5), suite="deploy-lm")
    place = changed(bad, lambda c: c.vectors["0" * 16].update(loss=np.full(512, np.nan))).write(tmp_path / "bad")
    seen = Counter[str]()
    with opened(place) as source:
        for i in range(2500):
            path = tmp_path / f"{i % 7}.yaml"
            path.write_text(mutated_text(rng, TEXTS[i % len(TEXTS)]), encoding="utf-8", errors="replace")
            try:
                one = load(path)
            except BadPolicy as error:
                assert str(path) in str(error)  # noqa: PT017
                seen["mistakes"] += 1
                continue
            found = judge(one, source, today=TODAY)
            assert found.status in ("ERROR", "FAIL", "INCONCLUSIVE")
            assert found.exit_code in (0, 1, 3, 4)
            seen[found.status] += 1
    assert min(seen["mistakes"], seen["ERROR"]) > 100, seen  # both kinds were tried


def mutated_line(rng: random.Random, line: dict[str, Any]) -> dict[str, Any]:
    place: Any = line
    while True:
        keys = list(place) if isinstance(place, dict) else list(range(len(place)))
        key = rng.choice(keys)
        if isinstance(place[key], dict | list) and place[key] and rng.random() < 0.7:
            place = place[key]
            continue
        kind = rng.randrange(4)
        if kind == 0 and isinstance(place, dict):
            del place[key]
        elif kind == 1 and isinstance(place, dict):
            place[rng.choice(["x", "slice", "site", "cell", key])] = place[key]
        elif kind == 2 and isinstance(place[key], int | float):
            place[key] = place[key] * rng.choice([-1, 0, 0.5, 2, 1e9])
        else:
            place[key] = rng.choice(ODD)
        return line


def mutated_records(rng: random.Random, records: bytes) -> bytes:
    lines = records.decode().splitlines()
    for _ in range(rng.randint(1, 3)):
        i = rng.randrange(len(lines))
        kind = rng.randrange(6)
        if kind < 3:
            try:
                lines[i] = json.dumps(mutated_line(rng, json.loads(lines[i])))
            except (ValueError, IndexError, TypeError):
                lines[i] = lines[i][:-1]
        elif kind == 3:
            del lines[i]
            lines = lines or [""]
        elif kind == 4:
            lines.insert(i, rng.choice(lines))
        else:
            at = rng.randrange(len(lines[i]) + 1)
            lines[i] = lines[i][:at] + rng.choice(['"', "}", "NaN", "1e999", "\x00", "é"]) + lines[i][at + 1 :]
    return ("\n".join(lines) + "\n").encode()


def fuzz(one: Policy, place: Path, tries: int, mutate: Callable[[random.Random, bytes], bytes]) -> Counter[str]:
    """Verdicts over mutations of a run's records; a run that cannot be read counts as unreadable."""
    rng, seen = random.Random(1), Counter[str]()
    records, manifest = (place / "records.jsonl").read_bytes(), (place / "manifest.json").read_bytes()
    for i in range(tries):
        (place / "records.jsonl").write_bytes(mutate(rng, records))
        (place / "manifest.json").write_bytes(mutate(rng, manifest) if i % 10 == 0 else manifest)
        with ExitStack() as stack:
            try:
                source = stack.enter_context(opened(place))
            except UNREADABLE as error:
                assert str(error)  # noqa: PT017
                seen["unreadable"] += 1
                continue
            found = judge(one, source, against(one, {}, stack, source), TODAY)
        assert found.status != "PASS", (place / "records.jsonl").read_text()
        for writer in (to_text, to_markdown, to_junit):
            assert writer(found)
        seen[found.status] += 1
    return seen


def test_mutated_records_never_pass_and_never_crash(tmp_path: Path) -> None:
    rules = "  - {metric: loss, margin: 0.05}\n"
    one = policy(tmp_path, rules, HEAD.replace("[512, 2048]", "[64]"))
    noise = np.random.default_rng(0).normal(0.2, 0.1, 64)
    seen = fuzz(one, run(noise).write(tmp_path / "run"), 2500, mutated_records)
    assert min(seen["unreadable"], seen["ERROR"], seen["FAIL"]) > 50, seen


def test_mutated_looks_never_pass_and_never_crash(tmp_path: Path) -> None:
    """What two looks measured, put together wrongly, is no evidence."""
    noise = np.random.default_rng(0).normal(0.2, 0.1, 160)
    draft = looked((64, 160), noise)
    one = policy(
        tmp_path, "  - {metric: loss, margin: 0.05, worst_slice: true}\n", HEAD.replace("512, 2048", "64, 160")
    )
    seen = fuzz(one, draft.write(tmp_path / "run"), 800, mutated_records)
    assert min(seen["unreadable"], seen["ERROR"], seen["FAIL"]) > 20, seen
