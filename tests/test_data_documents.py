"""Documents: what is read, under which slice, and what is said when it cannot be."""

import json
from pathlib import Path

import pytest

from qbench.data import catalog
from qbench.data.catalog import Source
from qbench.data.documents import Document, digest, documents
from qbench.data.text import BadData, Corpus, stdlib, text
from qbench.names import UnknownName


def written(path: Path, content: str | bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def lines(*rows: object) -> str:
    return "\n".join(json.dumps(row) for row in rows)


def test_a_file_is_one_document_and_one_slice(tmp_path: Path) -> None:
    path = written(tmp_path / "val.txt", "Grüße\r\nan alle\n")
    expected = (Document("val.txt", "Grüße\r\nan alle\n", "val.txt"),)
    assert documents(path) == documents(f"text:{path}") == expected


def test_each_file_of_a_folder_is_a_slice_in_an_order_of_names(tmp_path: Path) -> None:
    for name in ("b.txt", "a/z.py", ".git/config", "empty.txt", ".hidden"):
        written(tmp_path / name, "" if name == "empty.txt" else f"text of {name}")
    found = documents(tmp_path)
    assert [(d.name, d.slice, d.text) for d in found] == [(n, n, f"text of {n}") for n in ("a/z.py", "b.txt")]


def test_each_line_of_jsonl_is_a_document_with_its_own_slice(tmp_path: Path) -> None:
    rows = ({"text": "one", "slice": "chat", "language": "de"}, {"text": "zwei", "language": "de"}, {"text": "three"})
    path = written(tmp_path / "mix.jsonl", lines(*rows) + "\n\n")
    assert documents(path) == (
        Document("mix.jsonl:1", "one", "chat"),
        Document("mix.jsonl:2", "zwei", "de"),
        Document("mix.jsonl:3", "three", "mix.jsonl"),
    )
    assert documents(tmp_path) == documents(path)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", "it is empty"),
        (b"caf\xe9 au lait", "not UTF-8 at byte 3 \\(0xe9\\); convert it"),
    ],
)
def test_what_is_no_text_is_refused(tmp_path: Path, content: str | bytes, said: str) -> None:
    with pytest.raises(BadData, match=said):
        documents(written(tmp_path / "a.txt", content))


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("{", "line 2: Expecting"),
        ('{"txt": "a", "id": 1}', 'line 2: found keys id, txt; expected one JSON object a line with the key "text"'),
        ('{"text": ""}', "line 2: found keys text"),
        ('{"text": 3}', "line 2: found keys text"),
        ("[1]", "line 2: found list"),
        ('{"text": "a", "slice": 3}', "line 2: the slice is a int"),
        ('{"text": "\\ud83d"}', "line 2: half a surrogate pair"),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, line: str, said: str) -> None:
    with pytest.raises(BadData, match=said):
        documents(written(tmp_path / "a.jsonl", '{"text": "good"}\n' + line))


def test_what_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadData, match="no such file or folder"):
        documents(tmp_path / "nowhere")
    with pytest.raises(BadData, match="no text in 0 files"):
        documents(tmp_path)
    with pytest.raises(UnknownName, match="no data 'wikitext'"):
        documents("wikitext")


def test_the_standard_library_is_the_split_that_training_leaves_alone() -> None:
    found = documents("stdlib")
    assert "\0".join(d.text for d in found).encode() == stdlib().test.tobytes()
    sizes: dict[str, int] = {}
    for document in found:
        sizes[document.slice] = sizes.get(document.slice, 0) + len(document.text)
        assert document.slice in ("stdlib", document.name.split("/")[0])
    assert len(sizes) > 1
    assert all(size >= 2**15 for name, size in sizes.items() if name != "stdlib")


def test_a_plugin_s_data_is_judged_on_its_test_split(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "many"
    for i in range(40):
        written(folder / f"{i}.txt", f"text number {i}\n" * 3)

    def corpus(_: str) -> Corpus:
        return text(folder)

    monkeypatch.setitem(catalog._ROWS, "mine", Source(corpus, "a plugin's"))
    found = documents("mine")
    assert {d.slice for d in found} == {"mine"}
    assert "\0".join(d.text for d in found).encode() == corpus("").test.tobytes()


def test_the_digest_sees_text_slice_and_order() -> None:
    one, other = Document("a", "text", "s"), Document("b", "more", "s")
    digests = {
        digest(given)
        for given in (
            [one, other],
            [other, one],
            [one],
            [Document("a", "text", "t"), other],
            [Document("a", "tex", "s")],
        )
    }
    assert len(digests) == 5
