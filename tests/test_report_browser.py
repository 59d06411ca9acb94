"""The page in a real browser: its script runs under its own policy, every record is a point, nothing overflows."""

import re
import struct
import zlib
from pathlib import Path

import pytest
from browser import chromium
from fake_run import quickstart

from qbench.report import factors, page

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(chromium.BINARY is None, reason="needs Chromium, and found none on the path"),
]

PROBE = """
const said = {};
const choose = (name, value) => {
  const select = document.querySelector('[data-for="' + name + '"]');
  select.value = value; select.dispatchEvent(new Event("change"));
};
const marks = (selector) => document.querySelectorAll(selector + " .series use").length;
said.points = {};
for (const option of document.querySelectorAll('[data-for="cloud"] option')) {
  choose("cloud", option.value);
  said.points[option.value] = marks("#cloud-chart");
}
said.summary = document.getElementById("cloud-summary").textContent;
said.increase = marks('[data-variant="loss increase"]');
said.absolute = marks('[data-variant="absolute loss"]');
choose("course", "mlp.hidden");
const shown = [...document.querySelectorAll('[data-figure="course"] .variant')].filter((variant) => !variant.hidden);
said.course = shown.map((variant) => variant.dataset.variant);
document.querySelector('[data-toggle="0"]').click();
said.off = document.querySelectorAll('[data-arm="0"]:not(.off)').length;
const files = {};
URL.createObjectURL = (blob) => { files.last = blob; return "#"; };
said.width = document.documentElement.scrollWidth - document.documentElement.clientWidth;
// A real Blob is read asynchronously, which a busy machine may not finish within the browser's virtual time.
window.Blob = class { constructor(parts) { this.content = parts.join(""); } };
said.csv = {};
for (const button of document.querySelectorAll("[data-csv]")) {
  button.click();
  said.csv[button.dataset.csv] = files.last.content;
}
"""


@pytest.fixture(scope="module")
def source() -> str:
    return page.render(quickstart())


@pytest.fixture(scope="module")
def said(source: str, tmp_path_factory: pytest.TempPathFactory) -> dict:
    folder = tmp_path_factory.mktemp("probe")
    return chromium.asked(source, PROBE, folder / "page.html", folder / "profile")


def test_the_console_stays_silent(source: str, tmp_path: Path) -> None:
    path = tmp_path / "page.html"
    path.write_text(source)
    assert chromium.dump(path, tmp_path / "profile").console == []


def test_a_script_that_is_not_the_pages_own_does_not_run(source: str, tmp_path: Path) -> None:
    path = tmp_path / "page.html"
    path.write_text(source.replace("</body>", "<script>document.title = 'taken'</script></body>"))
    seen = chromium.dump(path, tmp_path / "profile")
    assert "<title>taken</title>" not in seen.dom
    assert any("Content Security Policy" in line for line in seen.console)


def test_every_record_is_a_point_for_every_quantizer(said: dict) -> None:
    assert len(said["points"]) == 15
    assert set(said["points"].values()) == {522}


def test_arms_drawn_alike_have_each_point_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(factors, "MANY", 4)
    said = chromium.asked(page.render(quickstart()), PROBE, tmp_path / "page.html", tmp_path / "profile")
    assert set(said["points"].values()) == {522}
    assert said["off"] == 0


def test_every_treatment_of_every_arm_is_a_point(said: dict) -> None:
    assert said["increase"] == 4 * 19
    assert said["absolute"] == 3 * 19  # an arm that learned nothing is left out


def test_selectors_and_legend_work(said: dict) -> None:
    assert said["course"] == ["mlp.hidden"]
    assert said["off"] == 0
    assert list(said["points"])[-1] in said["summary"]


def test_csv_has_a_line_for_every_record(said: dict) -> None:
    lines = {name: text.strip().split("\r\n") for name, text in said["csv"].items()}
    assert len(lines["cloud"]) == 1 + 522
    assert len(lines["depth"]) == 1 + 522
    assert len(lines["budget"]) == 1 + 10 * 20
    assert lines["budget"][0] == "arm,seed,treatment,bits_per_value,loss,loss_increase"
    assert lines["growth"][0] == "site,arm,step,excess_kurtosis,least_seed,largest_seed"


@pytest.mark.parametrize("width", [380, 1200])
def test_nothing_is_wider_than_the_window(source: str, tmp_path: Path, width: int) -> None:
    path = tmp_path / "page.html"
    path.write_text(source)
    wide = path.with_name("frame.html")
    # A frame of that width, because headless windows have a least width of their own.
    measure = "document.title = frames[0].document.documentElement.scrollWidth"
    wide.write_text(f'<iframe src="page.html" width="{width}" height="900" onload="{measure}"></iframe>')
    dom = chromium.dump(wide, tmp_path / "profile", "--allow-file-access-from-files").dom
    assert re.search(r"<title>(\d+)</title>", dom)[1] == str(width)  # type: ignore[index]


@pytest.mark.parametrize(("scheme", "darker"), [("0", True), ("1", False)], ids=["dark", "light"])
def test_the_page_follows_the_readers_colour_scheme(source: str, tmp_path: Path, scheme: str, darker: bool) -> None:
    path = tmp_path / "page.html"
    path.write_text(source)
    flags = (f"--blink-settings=preferredColorScheme={scheme}", "--window-size=1200,300")
    shot = chromium.screenshot(path, tmp_path / "profile", tmp_path / "shot.png", *flags)
    assert (sum(first_pixel(shot)) < 200) == darker


def first_pixel(path: Path) -> tuple[int, ...]:
    """Red, green and blue of the top left corner of a PNG of eight bits a channel."""
    data, parts, at = path.read_bytes(), [], 8
    while at < len(data):
        size, kind = struct.unpack(">I4s", data[at : at + 8])
        parts += [data[at + 8 : at + 8 + size]] if kind == b"IDAT" else []
        at += 12 + size
    # The first pixel of the first row has no neighbours, so no filter changes it.
    return tuple(zlib.decompress(b"".join(parts))[1:4])
