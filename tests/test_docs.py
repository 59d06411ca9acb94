"""The how-to pages cannot rot: their code runs, and what it is said to give is what it gives."""

import re
from pathlib import Path

import pytest
from notebook import Notebook

import qbench
from qbench.results.demo import unpack
from qbench.suite.schema import load

ROOT = Path(__file__).parents[1]
PAGES = sorted(ROOT.glob("docs/*.md"))
CLAIM = re.compile(r"^(?P<code>\S.*?)  # = (?P<value>.+)$", re.MULTILINE)


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", page.read_text(), re.MULTILINE | re.DOTALL)


def claims(source: str) -> list[tuple[str, str | None]]:
    """The block as cells: each line `expression  # = value` ends one, with its value."""
    cells: list[tuple[str, str | None]] = []
    start = 0
    for found in CLAIM.finditer(source):
        cells.append((source[start : found.start()] + found["code"], found["value"]))
        start = found.end()
    return [*cells, (source[start:], None)]


def check(source: str, book: Notebook) -> list[str]:
    """What a block gives where it says that it gives something else."""
    wrong: list[str] = []
    for code, expected in claims(source):
        value = book.cell(code)
        if expected is not None and repr(value) != expected:
            wrong.append(f"{code.splitlines()[-1]} gives {value!r}, not {expected}")
    return wrong


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_python_of_a_page_runs_from_top_to_bottom(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    unpack(tmp_path / "results" / "quickstart")
    book = Notebook()
    assert [wrong for block in blocks(page, "python") for wrong in check(block, book)] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_whole_suite_on_a_page_is_valid(page: Path, tmp_path: Path) -> None:
    for i, block in enumerate(blocks(page, "yaml")):
        if re.search(r"^suite:", block, re.MULTILINE):
            file = tmp_path / f"{i}.yaml"
            file.write_text(block)
            assert load(file).arms


def test_the_page_of_the_interface_shows_every_name() -> None:
    page = ROOT / "docs" / "interface.md"
    code = "".join(blocks(page, "python"))
    assert len(code.splitlines()) > 40
    text = page.read_text()
    assert [name for name in qbench.__all__ if f"qb.{name}(" not in text] == []
    assert [
        name for name in ("encode", "decode", "roundtrip", "fake", "bits_per_value") if f".{name}(" not in code
    ] == []


def test_a_wrong_claim_is_found() -> None:
    assert check("a = 2\na * a  # = 4\nb = 3\nb  # = 4\n", Notebook()) == ["b gives 3, not 4"]
    with pytest.raises(NameError):
        check("nothing\n", Notebook())
