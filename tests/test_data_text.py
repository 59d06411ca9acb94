"""Texts: splits that share nothing and lose nothing, stable digests, errors that teach."""

import json
import os
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from qbench.data.catalog import SOURCES, digest, load
from qbench.data.text import BadData, Corpus, stdlib, text, unigram_entropy
from qbench.names import UnknownName


def folder(path: Path, files: dict[str, bytes]) -> Path:
    for name, content in files.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(content)
    return path


def documents(corpus: Corpus) -> list[Counter[bytes]]:
    return [Counter(split.tobytes().split(b"\0")) for split in (corpus.train, corpus.tune, corpus.test)]


PROSE = b"".join(b"line %d of some prose\n" % i for i in range(400))
MANY = {f"{i % 3}/{i}.txt": b"text number %d\n" % i for i in range(200)}


@pytest.fixture(scope="module")
def python() -> Corpus:
    return stdlib()


def test_standard_library_is_about_ten_megabytes_split_90_5_5(python: Corpus) -> None:
    sizes = np.array([len(python.train), len(python.tune), len(python.test)])
    assert 7e6 < sizes.sum() < 15e6
    assert sizes / sizes.sum() == pytest.approx([0.9, 0.05, 0.05], abs=0.03)
    assert python.detail == f"Python {sys.version.split()[0]}"


def test_standard_library_is_code_and_not_its_tests(python: Corpus) -> None:
    train, tune, test = (split.tobytes() for split in (python.train, python.tune, python.test))
    whole = train + tune + test
    assert b"class OrderedDict(dict):" in whole
    assert whole.count(b"\nimport unittest\n") < 20
    assert str(Path(np.__file__).parent).encode() not in whole
    assert b"\nbuild_time_vars = {" not in whole  # nothing of how this interpreter was built


def test_standard_library_holds_no_document_on_two_sides(python: Corpus) -> None:
    train, tune, test = documents(python)
    assert not train.keys() & tune.keys() | train.keys() & test.keys() | tune.keys() & test.keys()
    assert sum(map(len, (train, tune, test))) > 500


def test_digests_are_stable_between_calls(python: Corpus) -> None:
    again = stdlib()
    assert again.digest == python.digest == digest("stdlib")
    assert np.array_equal(again.test, python.test)


def test_splits_cover_a_folder_and_share_nothing(tmp_path: Path) -> None:
    corpus = text(folder(tmp_path, MANY))
    train, tune, test = documents(corpus)
    assert train + tune + test == Counter(MANY.values())
    assert [len(split) for split in (train, tune, test)] == [180, 10, 10]


def test_identical_files_stay_together(tmp_path: Path) -> None:
    copies = {f"copy/{name}": content for name, content in MANY.items()}
    train, tune, test = documents(text(folder(tmp_path, MANY | copies)))
    assert set((train + tune + test).values()) == {2}
    assert len(train) + len(tune) + len(test) == 200


def test_splits_do_not_depend_on_file_names(tmp_path: Path) -> None:
    renamed = {f"x{name}": content for name, content in MANY.items()}
    a, b = text(folder(tmp_path / "a", MANY)), text(folder(tmp_path / "b", renamed))
    assert documents(a) == documents(b)
    assert a.digest != b.digest  # the order of documents may differ


@pytest.mark.parametrize("copies", [1, 3, 19, 40])
def test_few_different_files_are_each_cut_by_position(tmp_path: Path, copies: int) -> None:
    corpus = text(folder(tmp_path, {f"{i:02}.txt": PROSE for i in range(copies)}))
    train, tune, test = documents(corpus)
    (start,), (middle,), (end,) = train, tune, test
    assert start + middle + end == PROSE
    assert set(train.values()) == set(tune.values()) == set(test.values()) == {copies}
    assert start.endswith(b"prose\n")
    assert middle.endswith(b"prose\n")


def test_a_file_is_cut_at_line_ends_after_90_and_95_percent(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_bytes(PROSE)
    corpus = text(tmp_path / "notes.txt")
    parts = [split.tobytes() for split in (corpus.train, corpus.tune, corpus.test)]
    assert b"".join(parts) == PROSE
    assert all(part.endswith(b"\n") for part in parts)
    assert [len(part) / len(PROSE) for part in parts] == pytest.approx([0.9, 0.05, 0.05], abs=0.011)
    assert corpus.name == "text:notes.txt"


@given(content=st.binary(min_size=60, max_size=400))
def test_any_file_of_some_length_is_cut_whole(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    path = tmp_path_factory.mktemp("any") / "file"
    path.write_bytes(content)
    corpus = text(path)
    assert b"".join(split.tobytes() for split in (corpus.train, corpus.tune, corpus.test)) == content
    assert len(corpus.train) >= 0.88 * len(content) - 1


def test_digest_follows_content_and_not_place(tmp_path: Path) -> None:
    a, b = folder(tmp_path / "a", MANY), folder(tmp_path / "b", MANY)
    assert text(a).digest == text(b).digest
    (b / "0/0.txt").write_bytes(b"another")
    assert text(a).digest != text(b).digest


def test_order_is_by_name_whatever_the_file_system_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder(tmp_path, MANY)
    expected = text(tmp_path)
    walk = os.walk
    monkeypatch.setattr(os, "walk", lambda top: ((root, dirs, sorted(files)[::-1]) for root, dirs, files in walk(top)))
    found = text(tmp_path)
    assert found.digest == expected.digest
    assert np.array_equal(found.train, expected.train)


def test_a_file_too_small_to_cut_leaves_no_stray_separator(tmp_path: Path) -> None:
    train, tune, test = documents(text(folder(tmp_path, {"a": b"x", "b": PROSE})))
    assert (len(train), len(tune), len(test)) == (1, 1, 2)


def test_hidden_and_empty_files_are_left_out(tmp_path: Path) -> None:
    plain = text(folder(tmp_path / "a", MANY))
    more = text(folder(tmp_path / "b", MANY | {".git/config": b"secret", ".hidden": b"secret", "empty": b""}))
    assert more.digest == plain.digest


def test_splits_are_read_only(tmp_path: Path) -> None:
    corpus = text(folder(tmp_path, MANY))
    with pytest.raises(ValueError, match="read-only"):
        corpus.train[0] = 0


@pytest.mark.parametrize(
    ("files", "complaint"),
    [
        (None, "no such file or folder; expected a text file or a folder"),
        ({}, "nothing to read in 0 files"),
        ({"a": b"", "b": b""}, "nothing to read in 2 files"),
        ({"a": b"too short"}, "tune split has 0 bytes; expected at least 2"),
    ],
)
def test_unusable_text_is_refused(tmp_path: Path, files: dict[str, bytes] | None, complaint: str) -> None:
    path = tmp_path / "data"
    if files is not None:
        path.mkdir()
        folder(path, files)
    with pytest.raises(BadData, match=complaint) as caught:
        text(path)
    assert "data" in str(caught.value)


def test_an_unreadable_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "dangling.txt").symlink_to(tmp_path / "nowhere")
    with pytest.raises(BadData, match=r"dangling.txt: No such file .*; expected a readable text file"):
        text(tmp_path)


def test_unigram_entropy_is_the_entropy_of_the_counts(python: Corpus) -> None:
    assert unigram_entropy(python.test) == pytest.approx(stats.entropy(np.bincount(python.test)), rel=1e-12)
    assert unigram_entropy(np.zeros(9, np.uint8)) == 0
    with pytest.raises(BadData, match="empty split"):
        unigram_entropy(np.zeros(0, np.uint8))


def test_catalog_loads_by_name(tmp_path: Path, python: Corpus) -> None:
    (tmp_path / "a:b.txt").write_bytes(PROSE)
    name = f"text:{tmp_path / 'a:b.txt'}"
    assert load(name).digest == digest(name) == text(tmp_path / "a:b.txt").digest
    assert load("stdlib").name == "stdlib"


@pytest.mark.parametrize("name", ["stdlb", "stdlib:3.11", "text", "txt:notes", ""])
def test_unknown_names_are_answered_with_the_known(name: str) -> None:
    with pytest.raises(UnknownName, match=f"no data '{name}'.*known: {', '.join(sorted(SOURCES))}"):
        load(name)


def test_a_text_without_a_path_is_not_the_current_folder() -> None:
    with pytest.raises(UnknownName, match="no data 'text:'; did you mean 'text:PATH'"):
        load("text:")


def test_each_line_of_a_jsonl_file_is_a_document(tmp_path: Path) -> None:
    """A model learns what the lines say, and no braces and keys: the same as of files with those contents."""
    said = [f'text "{i}" \u00e9\nand more\n' for i in range(40)]
    lines = "".join(json.dumps({"text": one, "language": "en"}) + "\n" for one in said)
    (tmp_path / "set.jsonl").write_text(lines, "utf-8")
    files = folder(tmp_path / "files", {f"{i}.txt": one.encode() for i, one in enumerate(said)})
    below = folder(tmp_path / "below", {"deep/set.jsonl": lines.encode()})
    wanted = documents(text(files))
    for place in (tmp_path / "set.jsonl", below):
        assert documents(text(place)) == wanted
        assert text(place).digest != text(files).digest
    (tmp_path / "set.jsonl").write_text(lines + '{"body": "x"}\n', "utf-8")
    with pytest.raises(
        BadData, match=r"set\.jsonl line 41: found keys body; expected one JSON object a line with the key"
    ):
        text(tmp_path / "set.jsonl")


def test_what_is_for_calibration_is_not_trained_on() -> None:
    with pytest.raises(BadData, match=r"stdlib-tune is what loaded models are calibrated on.*; train on stdlib"):
        load("stdlib-tune")
