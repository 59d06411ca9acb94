"""Data sets by name: the formats of the hub in folders here, and the hub itself as far as it is asked."""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
from fake_hub import COMMIT, serving
from PIL import Image

from qbench.data import hub_text, kept, vision
from qbench.data.catalog import load, located, split, stored_name
from qbench.data.documents import documents
from qbench.data.text import BadData
from qbench.names import UnknownName

RANDOM = np.random.default_rng(0)
TEXTS = [f"document number {i}\nof two lines, {'long ' * (i % 7)}\n" for i in range(140)]


def parquet(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    datasets.Dataset.from_list(list(rows)).to_parquet(str(path))


def jsonl(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def rows(start: int, end: int) -> list[dict[str, Any]]:
    return [{"id": i, "text": text} for i, text in enumerate(TEXTS[start:end])]


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of data sets, each as it would lie on the hub."""
    datasets.disable_progress_bars()
    root = tmp_path_factory.mktemp("sets")
    for name, write in (("parquet", parquet), ("jsonl", jsonl)):
        for part, (start, end) in {"train": (0, 100), "validation": (100, 120), "test": (120, 140)}.items():
            write(root / name / f"{part}-00000-of-00001.{name}", rows(start, end))
    parquet(root / "whole" / "data.parquet", rows(0, 140))
    jsonl(root / "leaky" / "train.jsonl", rows(0, 100))
    jsonl(root / "leaky" / "test.jsonl", rows(97, 120))
    for shard in range(2):
        parquet(root / "shards" / f"train-0000{shard}-of-00002.parquet", rows(70 * shard, 70 * shard + 70))
    (root / "lines").mkdir()
    (root / "lines" / "train.txt").write_text("".join(f"line {i}\n" for i in range(2000)))
    for part, n in (("train", 24), ("test", 6)):
        for label in ("cat", "dog"):
            for i in range(n):
                path = root / "pictures" / part / label / f"{i:02}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(RANDOM.integers(0, 256, (6, 5, 3), dtype=np.uint8)).save(path)
    made = datasets.load_dataset("imagefolder", data_dir=str(root / "pictures"), cache_dir=str(root / ".cache"))
    for part, found in made.items():
        path = root / "picture-rows" / f"{part}-00000-of-00001.parquet"
        path.parent.mkdir(exist_ok=True)
        found.to_parquet(str(path))
    return root


def contents(split_: np.ndarray) -> list[str]:
    return split_.tobytes().decode().split("\0")


@pytest.mark.parametrize("form", ["parquet", "jsonl"])
def test_published_splits_stay_as_they_are(sets: Path, form: str) -> None:
    found = load(f"hf-text:{sets / form}")
    assert contents(found.train) == TEXTS[:100]
    assert contents(found.tune) == TEXTS[100:120]
    assert contents(found.test) == TEXTS[120:]
    assert (found.name, found.detail) == (f"hf-text:{form}", "")


def test_the_format_is_no_part_of_the_text(sets: Path) -> None:
    assert load(f"hf-text:{sets}/parquet").digest == load(f"hf-text:{sets}/jsonl").digest
    assert load(f"hf-text:{sets}/parquet").digest != load(f"hf-text:{sets}/whole").digest


def test_a_single_split_is_cut_by_content(sets: Path) -> None:
    found = load(f"hf-text:{sets}/whole")
    parts = [contents(part) for part in (found.train, found.tune, found.test)]
    assert [len(part) for part in parts] == [126, 7, 7]
    assert sorted(chain.from_iterable(parts)) == sorted(TEXTS)
    one = load(f"hf-text:{sets}/parquet?split=train")
    assert sorted(contents(one.train) + contents(one.tune) + contents(one.test)) == sorted(TEXTS[:100])


def test_a_missing_split_is_cut_from_train_and_a_leak_is_told(sets: Path) -> None:
    found = load(f"hf-text:{sets}/leaky")
    assert contents(found.test) == TEXTS[97:120]
    assert (len(contents(found.train)), len(contents(found.tune))) == (95, 5)
    assert found.detail == "3 of 23 test documents are in train too, as published"


def test_of_several_texts_it_is_the_one_called_text(tmp_path: Path) -> None:
    jsonl(tmp_path / "train.jsonl", [{"title": f"title {i}", "text": text} for i, text in enumerate(TEXTS)])
    found = load(f"hf-text:{tmp_path}")
    assert set(contents(found.train)) <= set(TEXTS)
    assert all(title.startswith("title ") for title in contents(load(f"hf-text:{tmp_path}?column=title").train))


def test_lines_are_one_text(sets: Path) -> None:
    found = load(f"hf-text:{sets}/lines?rows=lines")
    whole = b"".join(part.tobytes() for part in (found.train, found.tune, found.test))
    assert whole.decode() == (sets / "lines" / "train.txt").read_text()
    assert found.train.tobytes().endswith(b"\n")
    assert len(found.train) / len(whole) == pytest.approx(0.9, abs=0.01)


def test_no_more_is_read_than_wanted_and_the_cut_is_told(sets: Path) -> None:
    found = load(f"hf-text:{sets}/parquet?bytes=100")
    assert b"".join(found.train.tobytes().split(b"\0")) == "".join(TEXTS).encode()[:100]
    assert found.detail == "train: the first 100 bytes; validation: the first 100 bytes; test: the first 100 bytes"


def test_a_cut_leaves_no_half_character(tmp_path: Path) -> None:
    jsonl(tmp_path / "train.jsonl", [{"text": "ä" * 30}, {"text": "x" * 900}])
    found = load(f"hf-text:{tmp_path}?bytes=31&rows=lines")
    whole = b"".join(part.tobytes() for part in (found.train, found.tune, found.test))
    assert whole.decode() == "ä" * 15 + "\n"


def test_loaded_models_are_judged_on_its_test_split(sets: Path) -> None:
    found = documents(f"hf-text:{sets}/parquet")
    assert [document.text for document in found] == TEXTS[120:]
    assert {document.slice for document in found} == {"hf-text:parquet"}  # nobody's folders


@pytest.mark.parametrize("form", ["pictures", "picture-rows"])
def test_pictures_are_those_of_the_folder(sets: Path, form: str) -> None:
    found = vision.load(f"hf-images:{sets / form}")
    plain = vision.load(f"images:{sets}/pictures/train")
    assert found.classes == plain.classes == ("cat", "dog")
    np.testing.assert_array_equal(found.pixels[:48], plain.pixels)
    np.testing.assert_array_equal(found.labels[:48], plain.labels)
    assert np.bincount(found.place).tolist() == [46, 2, 12]
    assert (found.place[48:] == 2).all()
    assert (found.name, found.detail) == (f"hf-images:{form}", "")
    assert found.digest == vision.load(f"hf-images:{sets}/pictures").digest


def test_fewer_pictures_and_one_split_of_them(sets: Path) -> None:
    few = vision.load(f"hf-images:{sets}/pictures?images=30")
    assert len(few) == 42
    assert few.detail == "train: the first 30 images"
    one = vision.load(f"hf-images:{sets}/pictures?split=test")
    assert np.bincount(one.place).tolist() == [9, 1, 2]


def test_labels_may_be_words_or_numbers(tmp_path: Path) -> None:
    pictures = [Image.fromarray(RANDOM.integers(0, 256, (4, 4), dtype=np.uint8)) for _ in range(30)]
    for name, labels in (("words", ["b", "a", "c"]), ("numbers", [2, 0, 1])):
        found = [{"seen": picture, "what": labels[i % 3]} for i, picture in enumerate(pictures)]
        parquet(tmp_path / name / "data.parquet", found)
        images = vision.load(f"hf-images:{tmp_path / name}?label=what")
        assert images.pixels.shape == (30, 1, 4, 4)
        assert images.classes == (("a", "b", "c") if name == "words" else ("0", "1", "2"))
        assert images.labels[:3].tolist() == ([1, 0, 2] if name == "words" else [2, 0, 1])


def test_hidden_labels_are_refused(tmp_path: Path) -> None:
    picture = Image.fromarray(np.zeros((4, 4), np.uint8))
    parquet(tmp_path / "train.parquet", [{"image": picture, "label": i % 2} for i in range(5)])
    parquet(tmp_path / "test.parquet", [{"image": picture, "label": -1}] * 3)
    with pytest.raises(BadData, match=r"label -1; expected classes: leave out a split without, \?split=train"):
        vision.load(f"hf-images:{tmp_path}")


@pytest.mark.parametrize(
    ("picture", "label", "said"),
    [
        (None, 1, "train, row 1: found no picture; leave this one out"),
        (np.full((4, 4), 40_000, np.uint16), 1, "train, row 1: its values are no bytes (Pillow's mode I;16)"),
        (np.zeros((20, 20), np.uint8), 1, "train, row 1: cannot be read as a picture: Image size (400 pixels) exceeds"),
        (np.zeros((4, 4), np.uint8), 7_000_000, "label 7000000, and 2 different ones in all; expected numbers from 0"),
        (np.zeros((4, 4), np.uint8), 2**40, "label 1099511627776, and 2 different ones in all"),
    ],
)
def test_a_row_without_a_picture_or_a_class_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, picture: np.ndarray | None, label: int, said: str
) -> None:
    made = [Image.fromarray(np.zeros((4, 4), np.uint8)), None if picture is None else Image.fromarray(picture)]
    parquet(tmp_path / "data.parquet", [{"image": one, "label": i * label} for i, one in enumerate(made)])
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(BadData) as found:
        vision.load(f"hf-images:{tmp_path}")
    assert said in str(found.value)
    assert "\n" not in str(found.value)


def test_a_damaged_file_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "train.parquet").write_bytes(b"PAR1 and nothing else")
    (tmp_path / "pictures" / "cat").mkdir(parents=True)
    (tmp_path / "pictures" / "cat" / "1.png").write_bytes(b"no picture")
    for ask in (f"hf-text:{tmp_path}", f"hf-images:{tmp_path}/pictures"):
        with pytest.raises(BadData) as found:
            (load if ask.startswith("hf-text") else vision.load)(ask)
        assert "\n" not in str(found.value)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("text:{}/nowhere", "no such folder"),
        ("text:{}/parquet?split=dev", "no split 'dev'; it has train, validation, test"),
        ("text:{}/parquet?config=en", "BuilderConfig 'en' not found. Available: ['default']"),
        ("text:{}/parquet?column=body", "column 'body': expected text, found no such column, but id, text"),
        ("text:{}/parquet?column=id", "column 'id': expected text, found int"),
        ("text:{}/picture-rows", "which column is the text? say ?column=NAME; it has image, label"),
        ("images:{}/parquet", "which column is the picture? say ?image=NAME; it has id, text"),
        ("images:{}/pictures?label=kind", "which column is the label? say ?label=NAME; it has image, label"),
    ],
)
def test_what_is_not_there_is_named(sets: Path, name: str, said: str) -> None:
    asked = f"hf-{name.format(sets)}"
    with pytest.raises(BadData) as found:
        (load if asked.startswith("hf-text") else vision.load)(asked)
    assert said in str(found.value)
    assert "\n" not in str(found.value)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("hf-text:owner/name", "pin the revision, hf-text:owner/name@COMMIT"),
        ("hf-text:owner/name@main", "found main"),
        ("hf-text:owner/na me", "expected owner/name@COMMIT on the hub, or a folder such as ./owner/na me"),
        ("hf-text:./here?colum=text", "no setting 'colum'; did you mean 'column'?"),
        ("hf-text:./here?column", "expected settings such as config=VALUE with '&' between, found 'column'"),
        ("hf-text:./here?rows=words", "rows is documents or lines, found 'words'"),
        ("hf-text:./here?bytes=0", "bytes is a whole number from 1"),
        ("hf-images:./here?images=few", "images is a whole number from 1"),
        ("hf-images:owner/name@123", "found 123"),
    ],
)
def test_a_name_that_makes_no_sense_is_known_before_anything_is_read(name: str, said: str) -> None:
    with pytest.raises(UnknownName) as found:
        split(name)
    assert said in str(found.value)


def test_names_keep_no_folders_and_follow_their_suite() -> None:
    assert stored_name("hf-text:/home/ada/set?column=body") == "hf-text:set?column=body"
    assert stored_name(f"hf-text:owner/name@{COMMIT}") == f"hf-text:owner/name@{COMMIT}"
    assert located("hf-images:./set?split=train", "/suites/{}".format) == "hf-images:/suites/./set?split=train"
    assert located("dyck:k=8", "/suites/{}".format) == "dyck:k=8"


def test_without_a_network_it_says_so_at_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setenv("QBENCH_CACHE", str(tmp_path))
    with pytest.raises(BadData, match=r"owner/name: the hub is out of reach \(offline\?\), and nothing of this commit"):
        load(f"hf-text:owner/name@{COMMIT}")


def test_without_the_library_it_says_which(monkeypatch: pytest.MonkeyPatch, sets: Path) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ImportError, match="pip install datasets"):
        load(f"hf-text:{sets}/parquet")


def test_a_damaged_copy_is_read_again(monkeypatch: pytest.MonkeyPatch, sets: Path, tmp_path: Path) -> None:
    monkeypatch.setenv("QBENCH_CACHE", str(tmp_path))
    made = kept.Kept({"x": np.arange(3)}, {"digest": "d"})
    assert kept.kept("name", lambda: made) is made
    (file,) = (tmp_path / "data").iterdir()
    again = kept.kept("name", lambda: pytest.fail("kept, and read again"))
    assert (again.arrays["x"].tolist(), again.said["digest"]) == ([0, 1, 2], "d")
    file.write_bytes(file.read_bytes()[:-1])
    assert kept.kept("name", lambda: made) is made


HUB = """
import sys
from qbench.data import catalog, vision
for name in sys.argv[1:]:
    try:
        found = (vision if name.startswith("hf-images") else catalog).load(name)
    except ValueError as error:
        print("error", error)
    else:
        print(found.digest, found.name)
"""


def ask(hub: str, home: Path, *names: str) -> list[str]:
    """What another process finds, whose hub is at `hub`."""
    here = {"HF_ENDPOINT": hub, "HF_HOME": str(home / "hf"), "QBENCH_CACHE": str(home / "qbench")}
    search = os.pathsep.join([str(Path(hub_text.__file__).parents[2]), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, **here, "PYTHONPATH": search, "NO_PROXY": "127.0.0.1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", HUB, *names], env=environment, capture_output=True, text=True, check=True, timeout=120
    )
    return done.stdout.splitlines()


def test_from_the_hub_at_one_commit_then_without_it(sets: Path, tmp_path: Path) -> None:
    text, pictures, short = (
        f"hf-text:owner/parquet@{COMMIT}",
        f"hf-images:owner/picture-rows@{COMMIT}",
        f"hf-text:owner/shards@{COMMIT}?bytes=2000",
    )
    same = [load(f"hf-text:{sets}/parquet").digest, vision.load(f"hf-images:{sets}/picture-rows").digest]
    with serving(sets) as (hub, asked):
        first, second, third, other, nowhere = ask(
            hub, tmp_path, text, pictures, short, f"hf-text:owner/parquet@{'0' * 40}", f"hf-text:owner/no@{COMMIT}"
        )
    assert [first.split(), second.split()] == [[same[0], text], [same[1], pictures]]
    assert third.endswith(short)
    assert other == f"error hf-text:owner/parquet: the hub has no commit {'0' * 40} of it"
    assert nowhere.startswith("error hf-text:owner/no: the hub shows you no such data set")
    files = [line for line in asked if "/resolve/" in line]
    assert all(COMMIT in line for line in files)
    assert any("train-00000-of-00002" in line for line in files)
    assert not any("train-00001-of-00002" in line for line in files)  # streamed: no more than is wanted
    assert ask("http://127.0.0.1:9", tmp_path, text, pictures, short) == [first, second, third]
