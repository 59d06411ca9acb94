"""The page as a file: complete, honest about gaps, inert, and the same every time."""

import re
import subprocess
import sys
from functools import cache
from html.parser import HTMLParser
from pathlib import Path

import pytest
from fake_run import failing, keep, quickstart

from qbench.report import page
from qbench.results.record import Closing
from qbench.results.run import Run

EVIL = "<script>alert(1)</script>"


@cache
def full() -> Run:
    return quickstart()


@cache
def html() -> str:
    return page.render(full())


def what(cell: Closing) -> str:
    return cell.spec["measurement"]["what"]


def text(source: str) -> str:
    """What a reader sees or hears: no markup, no data, no code."""
    source = re.sub(r"<(script|style).*?</\1>", " ", source, flags=re.S)
    return re.sub(r"\s+", " ", re.sub(r"<[^>]*>", " ", source))


def test_the_same_run_gives_the_same_bytes(tmp_path: Path) -> None:
    first = page.build(quickstart(), tmp_path / "new" / "a.html").read_bytes()
    assert first == page.build(quickstart(), tmp_path / "b.html").read_bytes()


def test_a_quickstart_fits_in_300_kilobytes() -> None:
    assert sum(len(attempt.records) for attempt in full().cells.values()) > 8000
    assert len(html().encode()) < 300_000


def test_the_answer_has_a_line_for_every_claim() -> None:
    answer = text(html()[: html().index("<main>")])
    claims = re.findall(r"claim: (.*)", str(full().manifest["sessions"][0]["suite"]))
    assert len(claims) == 12
    for claim in claims:
        assert claim in answer
    assert answer.count("n = 3)") == 12
    assert "4 factors together" in answer


def test_nothing_is_loaded_from_anywhere() -> None:
    class Loads(HTMLParser):
        found: list[str]

        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            names = {name: value or "" for name, value in attrs}
            self.found += [v for k, v in names.items() if k in ("src", "srcset", "action", "data", "style")]
            self.found += [v for k, v in names.items() if k.endswith("href") and not v.startswith("#")]
            self.found += [k for k in names if k.startswith("on")]
            assert tag not in ("link", "img", "iframe", "object", "base", "form")

    loads = Loads()
    loads.found = []
    loads.feed(html())
    assert loads.found == []
    assert "default-src 'none'" in html()
    assert "@import" not in html()
    assert not re.search(r"url\((?!#)", html())


def test_identifiers_are_unique_and_every_chart_says_what_it_shows() -> None:
    identifiers = re.findall(r'\bid="([^"]+)"', html())
    assert len(identifiers) == len(set(identifiers))
    charts = re.findall(r'<svg class="chart".*?</svg>', html(), flags=re.S)
    assert len(charts) > 20
    for chart in charts:
        assert re.search(r"<title[^>]*>\S.*?</title><desc[^>]*>\S.*?</desc>", chart, flags=re.S)


def test_names_from_records_are_inert() -> None:
    evil = quickstart((0, 1), {"residual": EVIL, "residual-free": '"><img src=x onerror=alert(1)>'})
    source = page.render(failing(evil, lambda cell: what(cell) == "shape", f"ValueError: {EVIL} </script>"))
    assert EVIL not in source
    assert "<img" not in source
    assert source.count("<script") == source.count("</script>") == 2
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in source


def test_one_seed_decides_nothing() -> None:
    source = page.render(quickstart((0,)))
    assert "No answer yet" in text(source)
    assert text(source).count("one seed, no interval") >= 12
    arms = re.search(r'<section id="arms">.*?<tbody>(.*?)</tbody>', source, flags=re.S)
    assert arms
    assert "1.6" in arms[1]
    assert "±" not in arms[1]


def test_of_many_arms_one_seed_is_a_point(monkeypatch: pytest.MonkeyPatch) -> None:
    """All seeds of fifty arms are megabytes that hide each other."""
    whole = page.render(quickstart())
    monkeypatch.setattr(page, "MANY", 1)
    few = page.render(quickstart())
    assert "of every arm and seed is a point" in whole
    assert "of every arm, with its first seed, is a point" in few
    assert len(few) < len(whole)


def test_failures_are_shown_with_their_reasons() -> None:
    source = text(page.render(failing(full(), lambda cell: what(cell) == "loss", "RuntimeError: out of memory")))
    assert "RuntimeError: out of memory" in source
    assert "could not be measured" in source
    assert "No loss was measured" in source
    assert "not measured for residual and residual-free" in source.lower()


def test_warnings_and_arms_that_learned_nothing_are_named() -> None:
    assert "stuck at unigram" in text(html())
    assert "residual-free (no recipe) learned nothing" in text(html())


def test_provenance_names_code_data_machine_and_cost() -> None:
    source = text(html())
    for fact in (
        "0123456789ab, with uncommitted changes",
        "sha256:9f31c0aa77",
        "AMD EPYC",
        "torch 2.13.0",
        "4 min 11 s",
    ):
        assert fact in source
    assert "another comparison group" in source
    assert "suite: quickstart" in source


@pytest.mark.parametrize(
    ("kept", "says"),
    [
        (lambda cell: what(cell) == "training", "No loss was measured"),
        (lambda cell: what(cell) == "loss", "The shape of no activation"),
        (lambda cell: cell.spec["arm"] == "calibration", "nothing to plot"),
        (lambda cell: cell.spec["arm"] != "calibration", "No calibration tensors"),
        (lambda cell: cell.spec["arm"] == "residual", "not measured for residual-free"),
        (lambda cell: False, "There are no cells"),
    ],
    ids=["training only", "losses only", "calibration only", "no calibration", "one arm", "empty"],
)
def test_what_is_missing_is_said_in_plain_sentences(kept, says: str) -> None:
    assert says.lower() in text(page.render(keep(full(), kept))).lower()


def test_a_run_without_a_manifest_is_still_reported() -> None:
    from dataclasses import replace

    source = text(page.render(replace(full(), manifest={"schema": 1, "sessions": []})))
    assert "This suite states no claims" in source
    assert "522 points" in source


def test_the_report_never_loads_torch() -> None:
    code = "import sys, qbench.report.page, qbench.report.figures; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[1], check=False).returncode == 0
