"""Tasks made from any text, in the file format of the lm-evaluation-harness: they need no network and no benchmark.

`continuation`: which of four passages really follows? `held_out`: how many bits does a byte of the text cost?
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from qbench.data.documents import Document
from qbench.data.text import BadData
from qbench.results.files import make_folder, write_whole

CHOICES = 4
VERSION = 1.0  # of the way questions are made; another way is another version


@dataclass(frozen=True, slots=True)
class Shape:
    """`questions` of `context` characters and continuations of `answer` characters; pages of `page` characters."""

    questions: int = 200
    context: int = 200
    answer: int = 40
    page: int = 2000
    seed: int = 0

    def __post_init__(self) -> None:
        if min(self.questions, self.context, self.answer, self.page) < 1:
            raise ValueError(f"expected at least one question of at least one character, found {self}")


def write_tasks(documents: Sequence[Document], folder: Path, shape: Shape | None = None) -> tuple[str, ...]:
    """Write both tasks into `folder`, as YAML and JSON lines beside it; their names. The same text, the same files.

    Questions are evenly spaced over the text; right and wrong continuations are cut in the same way (at a space where
    one is near) and have the same number of characters, so that neither gives anything away.

    Raises:
        BadData: the text has too few different passages.
        CannotWrite: the folder cannot be written.
    """
    shape = shape or Shape()
    make_folder(folder)
    questions = _questions(documents, shape)
    pages = [
        {"page": document.text[start : start + shape.page]}
        for document in documents
        for start in range(0, len(document.text), shape.page)
        if document.text[start : start + shape.page].strip()
    ]
    for name, rows, task in (("continuation", questions, _CONTINUATION), ("held_out", pages, _HELD_OUT)):
        data = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        form: dict[str, Any] = {
            "task": name,
            "dataset_path": "json",
            "dataset_kwargs": {"data_files": {"test": f"{name}.jsonl"}},
            "test_split": "test",
            **task,
            "metadata": {"version": VERSION},
        }
        write_whole(folder / f"{name}.jsonl", data.encode())
        write_whole(folder / f"{name}.yaml", yaml.safe_dump(form, sort_keys=False).encode())
    return "continuation", "held_out"


_SHARES = [{"metric": name, "aggregation": "mean", "higher_is_better": True} for name in ("acc", "acc_norm")]
_CONTINUATION: Mapping[str, Any] = {
    "output_type": "multiple_choice",
    "doc_to_text": "{{context}}",
    "doc_to_choice": "{{choices}}",
    "doc_to_target": "label",
    "target_delimiter": "",
    "metric_list": _SHARES,
}
_HELD_OUT: Mapping[str, Any] = {
    "output_type": "loglikelihood_rolling",
    "doc_to_text": "",
    "doc_to_target": "{{page}}",
    # Per word there is no number for text without spaces: a page would be one word of some thousand nats.
    "metric_list": [{"metric": name} for name in ("bits_per_byte", "byte_perplexity")],
}


def _questions(documents: Sequence[Document], shape: Shape) -> list[dict[str, Any]]:
    passages = _passages(documents, shape)
    if len({answer for _, answer in passages}) < CHOICES or len(passages) < shape.questions:
        raise BadData(
            f"{shape.questions} questions need as many passages of {shape.context + shape.answer} characters and "
            f"{CHOICES} different continuations; this text has {len(passages)}: give more text or fewer questions"
        )
    random = np.random.default_rng(shape.seed)
    questions: list[dict[str, Any]] = []
    for at in (np.arange(shape.questions) * (len(passages) - 1) // max(shape.questions - 1, 1)).tolist():
        context, right = passages[at]
        wrong: list[str] = []
        while len(wrong) < CHOICES - 1:
            other = passages[random.integers(len(passages))][1]
            if other not in (right, *wrong):
                wrong.append(other)
        label = int(random.integers(CHOICES))
        choices = [*wrong[:label], right, *wrong[label:]]
        questions.append({"context": context, "choices": choices, "label": label})
    return questions


def _passages(documents: Sequence[Document], shape: Shape) -> list[tuple[str, str]]:
    """Different contexts with what follows them, one after the other through the text."""
    found: dict[bytes, tuple[str, str]] = {}
    for document in documents:
        text = " ".join(document.text.split())
        start = 0
        while (middle := _cut(text, start + shape.context, shape.answer)) + shape.answer <= len(text):
            context, answer = text[start:middle], text[middle : middle + shape.answer]
            found.setdefault(sha256(f"{context}{answer}".encode()).digest(), (context, answer))
            start = middle + shape.answer
    return list(found.values())


def _cut(text: str, earliest: int, within: int) -> int:
    """The next space, or `earliest` itself where none is near: not every script has spaces."""
    space = text.find(" ", earliest, earliest + within)
    return space if space >= 0 else earliest
