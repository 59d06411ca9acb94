"""The page of a model from elsewhere in a real browser: silent, no wider than a phone, with selectors that work."""

import re
from pathlib import Path

import pytest
from browser import chromium
from fake_probe import compared, images, probe, weights_only

from qbench.report import page

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(chromium.BINARY is None, reason="needs Chromium, and found none on the path"),
]
RUNS = {"probe": probe, "compared": compared, "weights only": weights_only, "images": images}
LOOK = """
const said = {};
const shown = (figure) => [...document.querySelectorAll('[data-figure="' + figure + '"] .variant')]
  .filter((one) => !one.hidden).map((one) => one.dataset.variant);
said.first = {}; said.last = {};
for (const select of document.querySelectorAll("[data-for]")) {
  said.first[select.dataset.for] = shown(select.dataset.for);
  select.selectedIndex = select.options.length - 1; select.dispatchEvent(new Event("change"));
  said.last[select.dataset.for] = [shown(select.dataset.for), select.value];
}
said.marks = document.querySelectorAll("#front-0 .series use").length;
said.focusable = [...document.querySelectorAll(".scroll, pre")].every((one) => one.tabIndex === 0);
const files = {};
URL.createObjectURL = (blob) => { files.last = blob; return "#"; };
// A real Blob is read asynchronously, which a busy machine may not finish within the browser's virtual time.
window.Blob = class { constructor(parts) { this.content = parts.join(""); } };
said.csv = {};
for (const button of document.querySelectorAll("[data-csv]")) {
  button.click();
  said.csv[button.dataset.csv] = files.last.content;
}
"""


@pytest.fixture(scope="module")
def said(tmp_path_factory: pytest.TempPathFactory) -> dict:
    folder = tmp_path_factory.mktemp("probe")
    return chromium.asked(page.render(probe()), LOOK, folder / "page.html", folder / "profile")


def test_selectors_show_one_variant_each(said: dict) -> None:
    assert set(said["first"]) == {"front", "weights", "activations", "predictions"}
    assert said["first"]["predictions"] == ["int6/block:32"]
    for shown, chosen in said["last"].values():
        assert shown == [chosen]


def test_every_format_is_a_mark(said: dict) -> None:
    assert said["marks"] == 8


def test_what_scrolls_can_be_reached_by_keyboard(said: dict) -> None:
    assert said["focusable"]


def test_csv_has_a_line_for_every_format_and_layer(said: dict) -> None:
    formats, layers = (said["csv"][name].strip().split("\r\n") for name in ("formats", "layers"))
    assert len(formats) == 1 + 8
    assert formats[0].startswith("model,format,kind,verdict,bytes,bits_per_value,kld,")
    assert formats[1].startswith("model,int8/channel,weights,safe,1010000,8.25,0.0005,")
    assert len(layers) == 1 + 4


@pytest.mark.parametrize("name", RUNS)
def test_the_console_stays_silent_and_a_phone_is_wide_enough(name: str, tmp_path: Path) -> None:
    path = tmp_path / "page.html"
    path.write_text(page.render(RUNS[name]()))
    wide = path.with_name("frame.html")
    # A frame of that width, because headless windows have a least width of their own.
    measure = "document.title = frames[0].document.documentElement.scrollWidth"
    wide.write_text(f'<iframe src="page.html" width="380" height="900" onload="{measure}"></iframe>')
    seen = chromium.dump(wide, tmp_path / "profile", "--allow-file-access-from-files")
    assert seen.console == []
    found = re.search(r"<title>(\d+)</title>", seen.dom)
    assert found
    assert found[1] == "380"
