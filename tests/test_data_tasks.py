"""Tasks made of text: the same text, the same questions, and nothing but the text to answer them from."""

import json
from collections import Counter
from pathlib import Path

import pytest
import yaml

from qbench.data.documents import Document
from qbench.data.tasks import Shape, write_tasks
from qbench.data.text import BadData

WORDS = ("the", "quick", "brown", "fox", "jumps", "over", "lazy", "dogs", "while", "wizards", "hex", "a", "toad", "odd")
SMALL = Shape(questions=40, context=30, answer=12, page=100)


def text(seed: int, words: int = 800) -> str:
    made, state = [], seed
    for i in range(words):
        state = (state * 1103515245 + 12345) % 2**31
        made.append(WORDS[(state >> 16) % len(WORDS)] + ("\n" if i % 9 == 8 else ""))
    return " ".join(made)


DOCUMENTS = (Document("a", text(1), "a"), Document("b", text(2), "b"))


def rows(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_the_right_continuation_follows_and_the_wrong_ones_do_not(tmp_path: Path) -> None:
    assert write_tasks(DOCUMENTS, tmp_path, SMALL) == ("continuation", "held_out")
    plain = [" ".join(document.text.split()) for document in DOCUMENTS]
    questions = rows(tmp_path / "continuation.jsonl")
    assert len(questions) == 40
    for question in questions:
        context, choices, label = (question[key] for key in ("context", "choices", "label"))
        assert isinstance(context, str)
        assert isinstance(choices, list)
        assert isinstance(label, int)
        assert len(set(choices)) == 4
        assert {len(choice) for choice in choices} == {12}
        assert {choice[0] for choice in choices} == {" "}
        assert any(context + choices[label] in each for each in plain)
        assert all(any(choice in each for each in plain) for choice in choices)
    # Where the right one stands says nothing about which it is.
    assert min(Counter(question["label"] for question in questions)[place] for place in range(4)) >= 4
    sources = [next(i for i, each in enumerate(plain) if q["context"] in each) for q in questions]  # type: ignore[operator]
    assert Counter(sources)[0] == pytest.approx(20, abs=2)


def test_pages_are_the_whole_text(tmp_path: Path) -> None:
    write_tasks(DOCUMENTS, tmp_path, SMALL)
    pages = [str(row["page"]) for row in rows(tmp_path / "held_out.jsonl")]
    assert "".join(pages) == "".join(document.text for document in DOCUMENTS)
    assert max(map(len, pages)) == 100


def test_the_same_text_makes_the_same_files(tmp_path: Path) -> None:
    for name, seed in (("one", 0), ("two", 0), ("other", 1)):
        write_tasks(DOCUMENTS, tmp_path / name, Shape(40, 30, 12, 100, seed))
    one, two, other = (
        {p.name: p.read_bytes() for p in (tmp_path / name).iterdir()} for name in ("one", "two", "other")
    )
    assert one == two
    assert {name for name in one if one[name] != other[name]} == {"continuation.jsonl"}
    form = yaml.safe_load(one["continuation.yaml"])
    assert form["dataset_kwargs"] == {"data_files": {"test": "continuation.jsonl"}}  # the folder can be moved


def test_text_without_spaces_makes_questions_too(tmp_path: Path) -> None:
    write_tasks((Document("a", text(1).replace(" ", "").replace("\n", ""), "a"),), tmp_path, SMALL)
    for question in rows(tmp_path / "continuation.jsonl"):
        assert len(str(question["context"])) == 30


def test_too_little_text_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadData, match="200 questions need as many passages of 240 characters"):
        write_tasks(DOCUMENTS, tmp_path)
    with pytest.raises(BadData, match="this text has 0"):
        write_tasks((Document("a", "word " * 3, "a"),), tmp_path, SMALL)
    with pytest.raises(BadData, match="4 different continuations"):
        write_tasks((Document("a", "word " * 500, "a"),), tmp_path, SMALL)
    assert not list(tmp_path.iterdir())
    with pytest.raises(ValueError, match="at least one question"):
        Shape(questions=0)
