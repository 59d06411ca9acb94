"""The leaderboard in a real browser: sort, filter, search, pages, keyboard, dark, narrow; nothing sent runs."""

from pathlib import Path

import pytest
from browser import chromium
from submissions import Made, make
from test_report_browser import first_pixel

from qbench.report.leaderboard import site, spoken
from qbench.report.leaderboard.board import Board, board
from qbench.report.leaderboard.check import check
from qbench.report.leaderboard.front import front

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(chromium.BINARY is None, reason="needs Chromium, and found none on the path"),
]

EVIL = "<script>document.title='taken'</script><img src=x onerror=document.title=1>"
PROBE = """
const said = {};
const lines = () => [...document.querySelectorAll("#table tbody tr")];
const heads = [...document.querySelectorAll("#table thead button")];
const at = (title) => heads.findIndex((head) => head.textContent === title);
const cells = (title) => lines().map((row) => row.children[at(title)].textContent);
const set = (id, value) => {
  const field = document.getElementById(id);
  if (field.type === "checkbox") field.checked = value; else field.value = value;
  field.dispatchEvent(new Event("input", { bubbles: true }));
};
said.heads = heads.map((head) => head.textContent);
said.answer = document.querySelector(".answers").getBoundingClientRect().top;
said.answers = document.querySelector(".answers tbody").innerText;
said.first = cells("Rank");
set("group", "");
said.all = document.getElementById("count").textContent;
said.shown = lines().length;
said.at = document.getElementById("at").textContent;
document.getElementById("after").click();
said.next = lines().length;
said.end = document.getElementById("after").disabled;
document.getElementById("before").click();
said.back = document.getElementById("at").textContent;
heads[at("Value")].click();
said.up = cells("Value").map(parseFloat);
said.sorted = heads[at("Value")].parentElement.getAttribute("aria-sort");
heads[at("Value")].click();
said.down = cells("Value").map(parseFloat);
heads[at("Cost")].click();
said.least = cells("Cost")[0];
heads[at("Cost")].click();
said.last = cells("Cost")[0];
set("search", "INT4/block bob");
said.found = [...new Set(cells("Format"))];
said.models = [...new Set(cells("Model"))];
set("search", "no such thing");
said.none = document.getElementById("count").textContent;
set("search", "onerror");
said.evil = cells("Model");
set("search", "");
set("front", true);
said.front = [document.getElementById("count").textContent, cells("Rank")];
set("front", false);
set("label", document.querySelectorAll("#label option")[1].value);
said.labels = [...new Set(cells("Provenance"))];
said.links = [...document.querySelectorAll("#table tbody a")].map((a) => a.getAttribute("href"));
said.named = lines().every((row) => [...row.children].every((cell, i) => cell.dataset.l === said.heads[i]));
said.tabs = [...document.querySelectorAll("a, button, input, select, summary, .scroll")].every((e) => e.tabIndex === 0);
heads[0].focus();
said.focused = document.activeElement === heads[0];
said.outline = getComputedStyle(heads[0]).outlineStyle;
said.live = document.getElementById("count").getAttribute("aria-live");
said.scripts = document.querySelectorAll("#table script, #table img").length;
said.requests = performance.getEntriesByType("resource").map((entry) => entry.name);
"""


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Board:
    folder = tmp_path_factory.mktemp("in")
    sent = {
        "ada": Made(model="ada", arms=[f"arm {i}" for i in range(9)], seeds=(0,)),
        "bob": Made(model="bob", arms=[f"arm {i}" for i in range(6)], seeds=(0,)),
        "eve": Made(model=EVIL, who=EVIL, arms=(EVIL,), seeds=(0,)),
    }
    return board([check(make(folder / name, one)) for name, one in sent.items()])


@pytest.fixture(scope="module")
def out(made: Board, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("out") / "site"
    site.build(made, folder)
    return folder


@pytest.fixture(scope="module")
def said(out: Path, tmp_path_factory: pytest.TempPathFactory) -> dict:
    """What the probe found on the first page."""
    path = out / "probe.html"
    found = chromium.asked((out / "index.html").read_text(), PROBE, path, tmp_path_factory.mktemp("profile"))
    path.unlink()
    return found


def test_the_first_group_is_shown_by_rank(said: dict) -> None:
    best = [int(rank.split("–")[0]) for rank in said["first"]]
    assert best == sorted(best)
    assert best[0] == 1


def test_rows_come_in_pages(said: dict) -> None:
    assert (said["all"], said["shown"], said["at"]) == ("80 rows", 50, "page 1 of 2")
    assert (said["next"], said["end"], said["back"]) == (30, True, "page 1 of 2")


def test_the_first_screen_answers(said: dict, made: Board) -> None:
    """Above the fold of a laptop: model, format, bits, cost and its interval."""
    assert said["answer"] < 450
    best = min((r for r in made.rows if r.bits and r.bits <= 3.5), key=lambda r: r.value)
    words = (best.model, best.quantizer, f"{best.bits:.2f} bits", spoken.cost(best))
    assert all(word in said["answers"] for word in words)


def test_a_row_shows_all_that_it_rests_on(said: dict) -> None:
    assert set(said["heads"]) >= {"Rank", "Bits", "Value", "Cost", "n", "Seeds", "Seed floor", "Window floor", "Bytes"}
    assert set(said["heads"]) >= {"Model", "Format", "Date", "Commit", "Provenance", "Group"}
    assert said["named"]


def test_the_front_can_be_shown_alone(said: dict, made: Board) -> None:
    count, ranks = said["front"]
    best = [row for rows in made.groups.values() for row in front(rows)]
    assert count == f"{len(best)} rows"
    assert all(rank.endswith("◎") for rank in ranks)


def test_columns_sort_both_ways(said: dict) -> None:
    assert said["up"] == sorted(said["up"])
    assert said["down"] == sorted(said["down"], reverse=True)
    assert said["up"] != said["down"]
    assert said["sorted"] == "ascending"
    # Rows that have no cost stand last, either way.
    assert said["last"].startswith("+0.6")
    assert said["least"] != "—"


def test_search_and_filter_narrow_the_rows(said: dict) -> None:
    assert said["found"] == ["int4/block:32"]
    assert sorted(said["models"]) == [f"bob: arm {i}" for i in range(6)]
    assert said["none"] == "0 rows"
    assert said["labels"] == ["self-attested"]


def test_links_lead_to_pages_that_are_there(said: dict, out: Path) -> None:
    assert len(said["links"]) == 150
    assert all((out / link).is_file() for link in said["links"])


def test_what_was_sent_stays_text(said: dict) -> None:
    assert said["evil"]
    assert all("<script>" in name and "onerror" in name for name in said["evil"])
    assert said["scripts"] == 0


def test_it_works_from_the_keyboard_and_is_read_out(said: dict) -> None:
    assert (said["tabs"], said["focused"], said["live"]) == (True, True, "polite")
    assert said["outline"] != "none"


def test_nothing_but_its_own_style_is_fetched(said: dict) -> None:
    assert [request for request in said["requests"] if not request.endswith("/style.css")] == []


def test_every_kind_of_page_is_silent_and_untaken(out: Path, tmp_path: Path) -> None:
    pages = [out / "index.html", out / "corrections.html"]
    pages += [next(path for path in sorted((out / kind).iterdir())) for kind in ("groups", "models", "quantizers")]
    pages += [path for path in (out / "models").iterdir() if "script" in path.name][:1]
    for page in pages:
        seen = chromium.dump(page, tmp_path / "profile")
        assert seen.console == [], page
        assert "· qbench leaderboard</title>" in seen.dom, page


def test_an_injected_script_does_not_run(out: Path, tmp_path: Path) -> None:
    page = out / "injected.html"
    page.write_text(
        (out / "index.html").read_text().replace("</body>", "<script>document.title='taken'</script></body>")
    )
    seen = chromium.dump(page, tmp_path / "profile")
    page.unlink()
    assert "<title>taken</title>" not in seen.dom
    assert any("Content Security Policy" in line for line in seen.console)


def test_a_group_draws_its_front(made: Board, out: Path) -> None:
    drawn = 0
    for group, rows in made.groups.items():
        text = (out / "groups" / f"{group.id}.html").read_text()
        best = front(rows)
        assert text.count("<circle") == (len(best) if len([r for r in rows if r.bits]) > 1 else 0)
        drawn += bool(best)
    assert drawn


@pytest.mark.parametrize("kind", ["index.html", "groups", "models"])
def test_nothing_is_wider_than_a_telephone(out: Path, tmp_path: Path, kind: str) -> None:
    page = out / kind if kind.endswith("html") else next(iter(sorted((out / kind).iterdir())))
    wide = out / f"frame-{kind.removesuffix('.html')}.html"
    # A frame of that width, because headless windows have a least width of their own.
    measure = (
        "const inner = frames[0].document; document.title = [inner.documentElement.scrollWidth, "
        "[...inner.querySelectorAll('.whole')].every((e) => e.scrollWidth <= e.clientWidth)].join(' ')"
    )
    wide.write_text(f'<iframe src="{page.relative_to(out)}" width="380" height="900" onload="{measure}"></iframe>')
    dom = chromium.dump(wide, tmp_path / "profile", "--allow-file-access-from-files").dom
    wide.unlink()
    assert "<title>380 true</title>" in dom


@pytest.mark.parametrize(("scheme", "darker"), [("0", True), ("1", False)], ids=["dark", "light"])
def test_pages_follow_the_readers_colour_scheme(out: Path, tmp_path: Path, scheme: str, darker: bool) -> None:
    flags = (f"--blink-settings=preferredColorScheme={scheme}", "--window-size=1200,300")
    shot = chromium.screenshot(out / "index.html", tmp_path / "profile", tmp_path / "shot.png", *flags)
    assert (sum(first_pixel(shot)) < 200) == darker
