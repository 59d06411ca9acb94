"""The site: only comparable rows rank together, ties are ties, nothing sent runs, equal input gives equal bytes."""

import csv
import io
import json
import random
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import duckdb
import pytest
from submissions import Made, make, sign

from qbench.report.leaderboard import plausible, site, tables
from qbench.report.leaderboard.board import Board, board, refused
from qbench.report.leaderboard.check import Checked, check
from qbench.report.leaderboard.entries import Entry, entries
from qbench.report.leaderboard.front import front
from qbench.report.leaderboard.ranks import ranks, spoken

EVIL = "<script>alert(1)</script><img src=x onerror=alert(2)>"


def made(tmp_path: Path, **submissions: Made | tuple[Made, str]) -> Board:
    checks = []
    for name, one in submissions.items():
        what, extra = one if isinstance(one, tuple) else (one, "")
        checks.append(check(make(tmp_path / name.replace("_", "-"), what, extra)))
    assert [one.faults for one in checks] == [()] * len(checks)
    assert refused(checks) == {}
    return board(checks)


@pytest.fixture(scope="module")
def four(tmp_path_factory: pytest.TempPathFactory) -> Board:
    folder = tmp_path_factory.mktemp("four")
    return made(
        folder,
        ada=Made(model="a"),
        bob=Made(model="b", who="Bob", level=1.9),
        eve=Made(model=EVIL, who=EVIL, arms=(EVIL, '"><b>', "=cmd()"), level=2.1),
        old=Made(model="o", version=2),
    )


# Ranks


def brute(intervals: list[tuple[float, float]]) -> list[tuple[int, int]]:
    """By definition: count the rows that are surely better, and those that are surely worse."""
    return [
        (1 + sum(other[1] < low for other in intervals), len(intervals) - sum(other[0] > high for other in intervals))
        for low, high in intervals
    ]


def test_ranks_are_what_counting_says() -> None:
    chance = random.Random(0)
    for _ in range(300):
        found = [
            (low, low + chance.choice([0.0, 0.1, 1.0, float("inf")]))
            for low in (round(chance.uniform(0, 3), 1) for _ in range(chance.randint(1, 12)))
        ]
        assert ranks(found) == brute(found)


def test_a_row_without_an_interval_may_be_anywhere() -> None:
    infinite = (float("-inf"), float("inf"))
    assert [spoken(rank) for rank in ranks([(1, 2), (3, 4), infinite])] == ["1–2", "2–3", "1–3"]


# Groups


def test_rows_rank_only_beside_comparable_ones(tmp_path: Path) -> None:
    small = Made(arms=("residual",), quantizers=("int4/token",))
    variants = {
        "base": small,
        "version": Made(arms=small.arms, quantizers=small.quantizers, version=2),
        "device": Made(arms=small.arms, quantizers=small.quantizers, device="cuda:H100"),
        "data": Made(arms=small.arms, quantizers=small.quantizers, data="e" * 64),
        "windows": Made(arms=small.arms, quantizers=small.quantizers, windows=32),
        "same": Made(arms=small.arms, quantizers=("int8/token",), model="other"),
    }
    found = made(tmp_path, **variants)
    together = [sorted({row.submission for row in rows}) for rows in found.groups.values()]
    assert sorted(together) == sorted(
        [["base", "same"]] * 2 + [[n] for n in ("version", "device", "data", "windows")] * 2
    )
    assert {row.rank[1] for row in found.rows if row.submission not in ("base", "same") and row.rank} == {1}


def test_a_row_states_its_evidence(four: Board) -> None:
    row = next(r for r in four.rows if r.model == "a: residual" and r.quantizer == "int4/token")
    assert (row.seeds, row.n, row.bits) == ((0, 1, 2), 48, 4.5)
    assert row.value == pytest.approx(2 + 0.1 + 0.02, abs=0.01)  # the mean over seeds 0, 1, 2
    assert row.low < row.value < row.high
    assert row.seed_floor == pytest.approx(0.02, abs=0.01)
    assert row.numerical_floor == 2e-7
    assert row.window_floor
    assert row.increase == pytest.approx(0.1, abs=0.01)
    assert len(row.date) == 10


def test_the_front_is_what_nothing_beats(four: Board) -> None:
    for rows in four.groups.values():
        found = front(rows)
        for one in rows:
            beaten = any(
                other.bits <= one.bits
                and other.value <= one.value
                and (other.bits, other.value) != (one.bits, one.value)
                for other in rows
                if other.bits is not None and one.bits is not None
            )
            assert (one in found) == (one.bits is not None and not beaten)


# Corrections

SUPERSEDES = "supersedes:\n  - {submission: ada, reason: the old one had a bug}\n"


def test_superseded_rows_stay_without_a_rank(tmp_path: Path) -> None:
    found = made(tmp_path, ada=Made(model="a"), ada_2=(Made(model="a", level=1.8), SUPERSEDES), bob=Made(model="b"))
    old = [row for row in found.rows if row.submission == "ada"]
    assert old
    assert {(row.rank, row.superseded) for row in old} == {(None, "ada-2")}
    for rows in found.groups.values():
        ranked = [row for row in rows if row.rank]
        assert max(row.rank[1] for row in ranked if row.rank) == len(ranked)
        assert rows[: len(ranked)] == tuple(ranked)
    page = site.contents(found)["corrections.html"].decode()
    assert "the old one had a bug" in page
    assert "ada-2" in page


def test_nobody_supersedes_what_is_somebody_elses(tmp_path: Path) -> None:
    checks = [check(make(tmp_path / "ada", Made())), check(make(tmp_path / "mal", Made(who="Mal"), SUPERSEDES))]
    assert refused(checks) == {"mal": "cannot supersede ada, which is not by Mal"}


def test_two_submissions_cannot_replace_each_other(tmp_path: Path) -> None:
    """Nor in a circle; who says to be the same author may be somebody else."""
    ring = {"ada": "eve", "eve": "bob", "bob": "ada", "old": "ada", "new": "old"}
    checks = [
        check(make(tmp_path / name, Made(), f"supersedes:\n  - {{submission: {target}, reason: better}}\n"))
        for name, target in ring.items()
    ]
    assert refused(checks) == {
        name: f"cannot supersede {ring[name]}, which supersedes it" for name in ("ada", "eve", "bob")
    }


# Numbers that no check foresaw


def test_one_submission_that_gives_no_rows_stops_nobody_else(
    command: Callable[..., tuple[int, str, str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("ada", "bad"):
        make(tmp_path / "in" / name, Made(model=name))

    def failing(checked: Checked) -> list[Entry]:
        if checked.name == "bad":
            raise OverflowError("too\nlarge")
        return entries(checked)

    monkeypatch.setattr("qbench.report.leaderboard.board.entries", failing)
    code, out, err = command("leaderboard", "build", "in", "--out", "site")
    assert (code, out) == (1, "site/index.html: 10 rows in 2 groups\n")
    assert err == "bad: no rows can be made of it: OverflowError: too\ufffdlarge\n"


def largest(folder: Path) -> Path:
    """Every number of every row as large as it may be."""
    lines = [json.loads(line) for line in (folder / "records.jsonl").read_text().splitlines()]
    for line in lines:
        if line["line"] == "record":
            line |= {"samples": "", "bits_per_value": plausible.MOST_BITS, "n": plausible.MOST_SAMPLES}
            line["values"] = {name: high for name, (_, high) in plausible.ENDS.items() if name != "loss_increase"}
            line["values"] |= {"error_rate": 1.0}
            line["intervals"] = {"loss": [-plausible.LARGEST, plausible.LARGEST]}
    (folder / "records.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    shutil.rmtree(folder / "evidence")
    return sign(folder)


@pytest.mark.parametrize("seeds", [(0,), (0, 1)])
def test_the_largest_numbers_that_are_let_in_fit_into_every_table(tmp_path: Path, seeds: tuple[int, ...]) -> None:
    found = check(largest(make(tmp_path / "ada", Made(seeds=seeds))))
    found = replace(found, faults=tuple(fault for fault in found.faults if "very same numbers" not in fault))
    assert found.faults == ()
    made = board([found])
    assert {row.value for row in made.rows} == {plausible.LARGEST}
    assert "rows.parquet" in site.contents(made)


# The files


class Links(HTMLParser):
    """Where a page leads, what it loads, and what it could run."""

    def __init__(self) -> None:
        super().__init__()
        self.links: list[str] = []
        self.tags: list[str] = []
        self.handlers: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        for name, value in attrs:
            if name.startswith("on") or name == "style":
                self.handlers.append(name)
            if name in ("href", "src"):
                self.links.append(value or "")


def test_pages_hold_no_handler_and_lead_nowhere_that_is_not_there(four: Board) -> None:
    files = site.contents(four)
    for name, content in files.items():
        if not name.endswith(".html"):
            continue
        page = Links()
        page.feed(content.decode())
        assert page.handlers == [], name
        assert "img" not in page.tags, name
        assert page.tags.count("script") == (2 if name == "index.html" else 0), name
        for link in page.links:
            if link.startswith(("#", "data:,", "https://example.org/")):
                continue
            here = Path("site", name).parent
            target = (here / link).as_posix()
            while ".." in target:
                target = re.sub(r"[^/]+/\.\./", "", target, count=1)
            target, _, place = target.removeprefix("site/").partition("#")
            assert target in files, f"{name} leads to {link}"
            assert not place or f'id="{place}"'.encode() in files[target], f"{name} leads to {link}"


def test_what_was_sent_is_shown_as_text(four: Board) -> None:
    for name, content in site.contents(four).items():
        if name.endswith(".html"):
            assert b"<script>alert" not in content, name
            assert b"<img" not in content, name
            assert b"default-src 'none'" in content, name
            assert b"unsafe" not in content, name


def test_no_name_leaves_the_folder() -> None:
    for name in ("../../etc/passwd", "..", "", "/", "a" * 500, "\u202e", "con", "%2e%2e"):
        assert re.fullmatch(r"models/[a-z0-9-]{0,20}-[0-9a-f]{6}\.html", site.address("model", name)), name
    assert site.address("model", "a b") != site.address("model", "a-b")


def test_csv_json_and_parquet_hold_the_same_rows(four: Board, tmp_path: Path) -> None:
    files = site.contents(four)
    path = tmp_path / "rows.parquet"
    path.write_bytes(files["rows.parquet"])
    of_parquet = duckdb.sql(f"select * from read_parquet('{path}')").fetchall()
    found = json.loads(files["rows.json"])
    of_json = [tuple(w[v] if w else v for v, w in zip(row, found["words"], strict=True)) for row in found["rows"]]
    assert of_parquet == of_json
    head, *of_csv = csv.reader(io.StringIO(files["rows.csv"].decode()))
    assert head == found["columns"] == list(tables.COLUMNS)
    assert [[cell.removeprefix("'") for cell in row] for row in of_csv] == [
        ["" if value is None else str(value) for value in row] for row in of_json
    ]
    assert len(of_json) == len(four.rows)


def test_a_spreadsheet_runs_nothing(tmp_path: Path) -> None:
    found = made(tmp_path, calc=Made(model="=cmd|'/c calc'!A1", arms=("residual",)))
    rows = csv.reader(io.StringIO(site.contents(found)["rows.csv"].decode()))
    assert not any(cell.startswith(("=", "+", "@")) for row in rows for cell in row)


def test_the_same_input_gives_the_same_bytes(tmp_path: Path) -> None:
    for name in ("ada", "bob"):
        make(tmp_path / "in" / name, Made(model=name))
    code = "import sys; from qbench.cli.main import main; sys.exit(main(sys.argv[1:]))"
    for out, order in (("x", ("ada", "bob")), ("y", ("bob", "ada"))):
        folders = [str(tmp_path / "in" / name) for name in order]
        command = [sys.executable, "-c", code, "leaderboard", "build", *folders, "--out", str(tmp_path / out)]
        subprocess.run(command, check=True, capture_output=True)
    files = {p.relative_to(tmp_path / "x"): p.read_bytes() for p in (tmp_path / "x").rglob("*") if p.is_file()}
    assert files == {p.relative_to(tmp_path / "y"): p.read_bytes() for p in (tmp_path / "y").rglob("*") if p.is_file()}
    assert len(files) > 10


@pytest.mark.parametrize("versions", [1, 20], ids=["one group", "twenty groups"])
def test_500_rows_fit_in_a_megabyte(tmp_path: Path, versions: int) -> None:
    """Everything together: pages, style, script and the rows as data."""
    arms = [f"arm number {i}" for i in range(100 // versions)]
    sent = {f"s{i}": Made(model="a model", arms=arms, seeds=(0,), version=i) for i in range(versions)}
    found = made(tmp_path, **sent)
    assert len(found.rows) == 500
    assert sum(map(len, site.contents(found).values())) < 1_000_000


def test_100_000_records_take_under_ten_seconds(tmp_path: Path) -> None:
    folders = [make(tmp_path / f"s{i}", Made(model=f"m{i}", filler=1650)) for i in range(2)]
    records = sum(path.read_bytes().count(b'{"line":"record"') for path in tmp_path.glob("*/records.jsonl"))
    assert records > 98_000
    # In a process of its own: this one's peak is that of all tests before.
    program = f"""
import time
from pathlib import Path
from qbench.results.origin import peak_rss
from qbench.report.leaderboard import site
from qbench.report.leaderboard.board import board
from qbench.report.leaderboard.check import check
folders, out = {[str(folder) for folder in folders]!r}, Path({str(tmp_path / "site")!r})
site.build(board([check(Path(folder)) for folder in folders]), out)
print(time.process_time(), peak_rss())
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    seconds, peak = map(float, done.stdout.split())
    assert seconds < 10
    assert peak < 2**30


def test_a_new_build_removes_old_pages_and_touches_nothing_else(tmp_path: Path, four: Board) -> None:
    out = tmp_path / "site"
    site.build(four, out)
    (out / "CNAME").write_text("example.org")
    site.build(made(tmp_path / "in", ada=Made(model="a")), out)
    assert (out / "CNAME").exists()
    assert len(list(out.glob("models/*.html"))) == 2
    other = tmp_path / "other"
    other.mkdir()
    (other / "thesis.tex").write_text("years of work")
    with pytest.raises(site.NotOurs, match="holds other files"):
        site.build(four, other)


def test_a_link_in_the_site_is_replaced_and_not_followed(tmp_path: Path, four: Board) -> None:
    out, outside = tmp_path / "site", tmp_path / "precious"
    site.build(four, out)
    outside.write_text("precious")
    (out / "rows.csv").unlink()
    (out / "rows.csv").symlink_to(outside)
    site.build(four, out)
    assert outside.read_text() == "precious"
    assert not (out / "rows.csv").is_symlink()


# The command


def test_the_command_checks_and_builds(command: Callable[..., tuple[int, str, str]], tmp_path: Path) -> None:
    make(tmp_path / "in" / "ada", Made(model="a"))
    bad = make(tmp_path / "in" / "bad", Made(model="b"))
    assert command("leaderboard", "check", "in/ada") == (0, "ada: accepted, self-attested\n", "")
    (bad / "records.jsonl").write_text("")
    code, out, _ = command("leaderboard", "check", "in")
    assert code == 1
    assert out.startswith("ada: accepted, self-attested\nbad: records.jsonl is not the file")
    code, out, _ = command("leaderboard", "check", "in", "--format", "markdown")
    assert (code, out[:15]) == (1, "### `` ada ``: ")
    code, out, err = command("leaderboard", "build", "in", "--out", "site")
    assert (code, out) == (1, "site/index.html: 10 rows in 2 groups\n")
    assert err.startswith("bad: ")
    assert command("leaderboard", "build", "in/bad", "--out", "none")[0] == 4
    assert not Path("none").exists()
    assert command("leaderboard", "build", "in")[0] == 2
    for name in ("records.jsonl", "manifest.json"):
        other = tmp_path / "in" / f"no-{name.partition('.')[0]}"
        other.mkdir()
        (other / name).write_text("")
        code, out, _ = command("leaderboard", "check", "in")
        assert f"{other.name}: submission.yaml is missing\n" in out
    (tmp_path / "in" / "notes").mkdir()
    assert "notes" not in command("leaderboard", "check", "in")[1]
    assert command("leaderboard", "check", "nowhere")[0] == 2


def test_a_folder_that_is_a_link_is_refused_and_harms_nobody(
    command: Callable[..., tuple[int, str, str]], tmp_path: Path
) -> None:
    make(tmp_path / "in" / "ada", Made(model="a"))
    (tmp_path / "in" / "eve").symlink_to("ada")
    link = "eve: is a symbolic link; a submission is a folder of its own\n"
    assert command("leaderboard", "check", "in") == (1, f"ada: accepted, self-attested\n{link}", "")
    assert command("leaderboard", "check", "in/eve") == (1, link, "")


def test_the_order_within_a_group_is_by_value(four: Board) -> None:
    def value(row: Entry) -> float:
        return row.value

    for rows in four.groups.values():
        assert list(rows) == sorted(rows, key=value)
