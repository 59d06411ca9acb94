"""The `qbench` command: quick to answer, exact in what it writes, and plain about every mistake."""

import csv
import io
import json
import os
import pty
import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from time import perf_counter

import pytest
from tiny import ARMS, SUITE, Bench

from qbench.cli.main import COMMANDS
from qbench.data.catalog import SOURCES
from qbench.metrics.catalog import METRICS
from qbench.models.catalog import MODELS
from qbench.quant.catalog import QUANTIZERS
from qbench.quant.kernels import KERNELS
from qbench.results.export import COLUMNS
from qbench.results.run import read

Command = Callable[..., tuple[int, str, str]]


@pytest.fixture
def without(tmp_path: Path) -> Callable[..., Path]:
    """A folder that makes importing the named modules an error."""

    def make(*modules: str) -> Path:
        (tmp_path / "without").mkdir()
        for name in modules:
            (tmp_path / "without" / f"{name}.py").write_text(f"raise AssertionError('{name} was imported')\n")
        return tmp_path / "without"

    return make


def test_help_is_instant(first_run: Bench, without: Callable[..., Path]) -> None:
    folder = without("torch", "numpy", "pydantic", "yaml", "rich", "jinja2", "duckdb")
    times: list[float] = []
    for arguments in (["--help"], *([name, "--help"] for name in COMMANDS)):
        start = perf_counter()
        done = first_run.qbench(*arguments, first=folder)
        times.append(perf_counter() - start)
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout.startswith("usage: qbench")
    assert min(times) < 0.2


def test_help_names_every_command(command: Command) -> None:
    code, out, _ = command("--help")
    assert code == 0
    for name, (text, _, _) in COMMANDS.items():
        assert re.search(rf"^    {name}\s", out, re.MULTILINE)
        assert text[:40] in " ".join(out.split())
    assert command() == (2, out, "")


@pytest.mark.parametrize("suite", ["quickstart", "growth"])
def test_a_shipped_suite_is_good_and_needs_no_torch(first_run: Bench, without: Callable[..., Path], suite: str) -> None:
    done = first_run.qbench("validate", suite, first=without("torch"))
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(f"{suite}: good; ")


SHIPPED = (
    *("quickstart", "growth", "wiring", "theory", "recipe", "procedural"),
    *("study-lm", "study-vision", "train-quantized"),
    *("deploy-lm", "deploy-vision", "weights", "kv", "sensitivity", "compare", "compare-saved"),
)


@pytest.mark.parametrize(
    ("what", "names"),
    [
        ("suites", SHIPPED),
        ("models", MODELS),
        ("quantizers", QUANTIZERS),
        ("metrics", METRICS),
        ("data", SOURCES),
        ("kernels", KERNELS),
    ],
)
def test_ls_has_a_line_for_each(command: Command, what: str, names: Sequence[str]) -> None:
    code, out, err = command("ls", what)
    assert (code, err) == (0, "")
    listed = [line.split("  ")[0] for line in out.splitlines()]
    assert set(listed) - {"name", ""} == set(names)  # a head, and a note below
    assert all(len(line.split()) > 1 for line in out.splitlines())


def test_ls_loads_no_torch(first_run: Bench, without: Callable[..., Path]) -> None:
    folder = without("torch")
    for what in ("models", "quantizers", "metrics", "data"):
        assert first_run.qbench("ls", what, first=folder).returncode == 0


def test_doctor_finds_what_a_run_needs(command: Command) -> None:
    code, out, err = command("doctor")
    assert (code, err) == (0, "")
    assert "ok       torch " in out
    assert " cores" in out


def test_doctor_says_when_nothing_can_be_written(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir("/proc")
    code, out, _ = command("doctor")
    assert (code, "no       this folder can be written" in out) == (4, True)


def test_version(command: Command) -> None:
    code, out, err = command("--version")
    assert (code, err) == (0, "")
    assert out.startswith("qbench ")


def test_show_has_the_question_and_every_number(command: Command, first_run: Bench) -> None:
    for cell, attempt in read(first_run.out).cells.items():
        code, out, err = command("show", first_run.out, cell[:12])
        assert (code, err) == (0, "")
        assert out.startswith(f"cell {cell}: measured, attempt 1, ")
        start, end = out.index("\n{"), out.index("\n}\n")
        assert json.loads(out[start : end + 2]) == attempt.closing.spec
        numbers = out[end + 3 :].splitlines()
        assert len(numbers) == sum(len(record.values) for record in attempt.records)


def test_show_without_a_cell_lists_them(command: Command, first_run: Bench) -> None:
    code, out, err = command("show", first_run.out)
    assert (code, err) == (0, "")
    assert [line.split()[0] for line in out.splitlines()] == list(read(first_run.out).cells)
    assert "training" in out


def test_the_four_formats_say_the_same(command: Command, first_run: Bench, tmp_path: Path) -> None:
    import duckdb

    _, text, err = command("export", first_run.out)
    assert err == ""
    header, *rows = csv.reader(io.StringIO(text))
    assert tuple(header) == tuple(COLUMNS)
    assert " ".join(COLUMNS) == (
        "suite model wiring optimizer seed step kind site scope quantizer slice bits_per_value metric unit value "
        "low high n status samples_digest record_id"
    )
    expected = sum(1 for _ in read(first_run.out).records())
    assert len(rows) == expected
    lines = [json.loads(line) for line in command("export", first_run.out, "--format", "jsonl")[1].splitlines()]
    assert [list(line.values()) for line in lines] == [_typed(row) for row in rows]
    for ending in ("csv", "jsonl", "parquet"):
        assert command("export", first_run.out, "--format", ending, "--out", f"t.{ending}") == (0, f"t.{ending}\n", "")
    assert (tmp_path / "t.csv").read_bytes().decode() == text
    with duckdb.connect() as database:
        table = database.read_parquet(str(tmp_path / "t.parquet"))
        assert table.columns == list(COLUMNS)
        assert [list(row) for row in table.fetchall()] == [list(line.values()) for line in lines]


def _typed(row: Sequence[str]) -> list[object]:
    """A line of the CSV with its numbers as numbers; apostrophes that disarm formulas taken off."""
    types = {"BIGINT": int, "DOUBLE": float}
    out: list[object] = []
    for text, kind in zip(row, COLUMNS.values(), strict=True):
        out.append((types[kind](text) if text else None) if kind in types else text)
    return out


def test_latex_has_a_row_for_each_model(command: Command, first_run: Bench, tmp_path: Path) -> None:
    options = ["--format", "latex", "--metric", "loss_increase", "--where", "scope=boundaries"]
    code, out, err = command("export", first_run.out, *options)
    assert (code, err) == (0, "")
    assert [line.split(" & ")[0] for line in out.splitlines() if " & " in line] == ["model", *ARMS]
    assert command("export", first_run.out, *options, "--out", "t.tex") == (0, "t.tex\n", "")
    assert (tmp_path / "t.tex").read_text() == out


def test_a_page_built_again_is_the_same_to_the_byte(
    first_run: Bench, tmp_path: Path, without: Callable[..., Path]
) -> None:
    page = (first_run.out / "report.html").read_bytes()
    done = first_run.qbench("report", first_run.out, "--out", tmp_path / "again.html", first=without("torch"))
    assert (done.returncode, done.stdout, done.stderr) == (0, f"{tmp_path}/again.html\n", "")
    assert (tmp_path / "again.html").read_bytes() == page


def test_the_page_of_a_pack_is_that_of_its_folder(first_run: Bench, tmp_path: Path) -> None:
    assert first_run.qbench("pack", first_run.out, "--out", tmp_path / "tiny.qbench.zip").returncode == 0
    done = first_run.qbench("report", tmp_path / "tiny.qbench.zip", "--figures")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[0] == str(tmp_path / "tiny.html")
    assert (tmp_path / "tiny.html").read_bytes() == (first_run.out / "report.html").read_bytes()
    assert list((tmp_path / "tiny" / "figures").glob("*.svg"))


@pytest.mark.parametrize("arguments", [["ls", "models"], ["export", "run"]], ids=["before", "midway"])
def test_a_reader_that_goes_away_is_no_error(first_run: Bench, arguments: Sequence[str]) -> None:
    process = first_run.start(*arguments)
    assert process.stdout
    assert process.stderr
    if arguments[0] == "export":
        process.stdout.read(10)
    process.stdout.close()
    assert process.stderr.read() == ""
    process.stderr.close()
    assert process.wait() == 0


def test_names_with_brackets_survive_a_terminal(tmp_path: Path) -> None:
    """The live display has a markup of its own, in which [/x] closes a style that nobody opened."""
    arm = "a [b] [/x]"
    bench = Bench.new(tmp_path, SUITE.replace("name: residual,", f'name: "{arm}",'))
    cell = bench.find(f"{arm}/0  training", "--profile", "short")
    seen = _on_a_terminal(bench, ["run", bench.suite, "--out", bench.out, "--profile", "short", "--only", cell])
    assert "1 cells measured" in seen
    assert f"  {arm}/0 " in seen  # its bar
    assert f"{arm}/0: stuck at unigram" in seen
    assert "Traceback" not in seen


def _on_a_terminal(bench: Bench, arguments: Sequence[str | Path]) -> str:
    """What the command shows where its standard error is a terminal."""
    ours, theirs = pty.openpty()
    process = bench.start(*arguments, stdout=theirs, stderr=theirs)
    os.close(theirs)
    seen = b""
    while True:
        try:
            part = os.read(ours, 4096)
        except OSError:  # how Linux says that the other end is closed
            break
        if not part:
            break
        seen += part
    os.close(ours)
    assert process.wait() == 0, seen.decode()
    return seen.decode()


def test_the_module_runs_as_a_script() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "qbench.cli.main", "frobnicate"],
        capture_output=True,
        text=True,
        check=False,
        cwd=Path(__file__).parents[1],
    )
    assert done.returncode == 2
