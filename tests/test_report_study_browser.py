"""A study's page in a real browser: silent, never wider than a phone, and whole architectures can be switched off."""

import re
from pathlib import Path

import pytest
from browser import chromium
from fake_study import study

from qbench.report import page
from qbench.report.study import sections
from qbench.report.study.crossing import crossing
from qbench.report.view import view

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(chromium.BINARY is None, reason="needs Chromium, and found none on the path"),
]

PROBE = """
const said = {};
const every = (selector) => [...document.querySelectorAll(selector)];
const shown = () => every("[data-arm]").filter((group) => !group.classList.contains("off")).length;
said.all = shown();
document.querySelector('[data-toggle="c0"]').click();
said.without = shown();
said.blue = every(".series.a0").filter((group) => !group.classList.contains("off")).length;
document.querySelector('[data-toggle="c0"]').click();
document.querySelector('[data-toggle="m1"]').click();
said.muon = every('[data-shape="1"]').filter((group) => !group.classList.contains("off")).length;
document.querySelector('[data-toggle="m1"]').click();
said.again = shown();
said.hidden = [];
for (const select of every("[data-for]")) {
  const last = select.options[select.options.length - 1].value;
  select.value = last; select.dispatchEvent(new Event("change"));
  const variants = every('[data-figure="' + select.dataset.for + '"] .variant').filter((one) => !one.hidden);
  if (select.dataset.for !== "cloud" && (variants.length !== 1 || variants[0].dataset.variant !== last))
    said.hidden.push(select.dataset.for);
}
const files = {};
URL.createObjectURL = (blob) => { files.last = blob; return "#"; };
window.Blob = class { constructor(parts) { this.content = parts.join(""); } };
said.csv = {};
for (const button of every("[data-csv]")) {
  button.click();
  said.csv[button.dataset.csv] = files.last.content.trim().split("\\r\\n").length;
  if (button.dataset.csv === "growth") said.growth = files.last.content.trim().split("\\r\\n");
}
said.first = files.last.content.slice(0, 80);
"""


@pytest.fixture(scope="module")
def source() -> str:
    return page.render(study())


@pytest.fixture(scope="module")
def said(source: str, tmp_path_factory: pytest.TempPathFactory) -> dict:
    folder = tmp_path_factory.mktemp("probe")
    return chromium.asked(source, PROBE, folder / "page.html", folder / "profile")


def test_architectures_and_optimizers_can_be_switched_off(said: dict) -> None:
    assert said["all"] > said["without"] > 0
    assert said["blue"] == said["muon"] == 0
    assert said["again"] == said["all"]


def test_every_picker_shows_one_variant(said: dict) -> None:
    assert said["hidden"] == []


def test_every_file_has_rows(said: dict) -> None:
    assert {"budget", "matrix", "equal", "growth", "rates", "flow-0", "theory"} <= said["csv"].keys()
    assert all(lines > 10 for lines in said["csv"].values())


def test_a_file_has_the_rows_that_its_columns_were_folded_from(said: dict) -> None:
    seen = view(study())
    rows = sections.sheets(sections.first(seen, crossing(seen), ()))["growth"]
    words = rows["words"]
    spelled = [[known[at] if known else at for known, at in zip(words, row, strict=True)] for row in rows["rows"]]
    read = [line.split(",") for line in said["growth"]]
    assert read[0] == rows["columns"]
    assert len(read) == 1 + len(spelled)
    for line, row in zip(read[1:], spelled, strict=True):
        assert line[:3] == row[:3]
        assert [float(text) if text else None for text in line[3:]] == row[3:]


@pytest.mark.parametrize("width", [360, 768, 1200])
def test_nothing_is_wider_than_the_window(source: str, tmp_path: Path, width: int) -> None:
    path = tmp_path / "page.html"
    path.write_text(source)
    wide = path.with_name("frame.html")
    measure = "document.title = frames[0].document.documentElement.scrollWidth"
    wide.write_text(f'<iframe src="page.html" width="{width}" height="900" onload="{measure}"></iframe>')
    dom = chromium.dump(wide, tmp_path / "profile", "--allow-file-access-from-files").dom
    assert re.search(r"<title>(\d+)</title>", dom)[1] == str(width)  # type: ignore[index]
