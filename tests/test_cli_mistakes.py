"""Whatever a user gets wrong is told in a line, with the right exit code, and leaves nothing behind."""

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from tiny import CELLS, SUITE, Bench

Command = Callable[..., tuple[int, str, str]]

MISTAKES: Sequence[tuple[str, int, str]] = [  # arguments, exit code, what the message must say
    ("frobnicate", 2, "invalid choice: 'frobnicate'"),
    ("run", 2, "required: suite"),
    ("run no-such-suite", 2, "no-such-suite: no such file, and no shipped suite of that name"),
    ("run quikstart", 2, "did you mean 'quickstart'?"),
    ("run quickstart --frob", 2, "unrecognized arguments: --frob"),
    ("run quickstart --workers 0", 2, "--workers 0: expected at least 1"),
    ("run quickstart --workers -3", 2, "--workers -3: expected at least 1"),
    ("run quickstart --workers many", 2, "invalid int value: 'many'"),
    ("run quickstart --device tpu", 2, "invalid choice: 'tpu'"),
    ("run quickstart --only xyz --dry-run", 2, "no cell starts with 'xyz'"),
    ("run quickstart --set seeds", 2, "--set seeds: expected KEY=VALUE"),
    ("run quickstart --set sedes=[1]", 2, "sedes"),
    ("run quickstart --set seeds=[", 2, "seeds"),
    ("run quickstart --profile smok", 2, "did you mean 'smoke'?"),
    ("run quickstart --plugin none.py", 2, "none.py: No such file or directory"),
    ("run quickstart --set data=text:/nowhere/a.txt", 2, "no file or folder '/nowhere/a.txt'"),
    ("run .", 2, "a folder, not a file"),
    ("validate no-such-suite", 2, "no-such-suite: no such file"),
    ("ls", 2, "required: what"),
    ("ls frogs", 2, "invalid choice: 'frogs'"),
    ("ls models --plugin none.py", 2, "none.py: No such file or directory"),
    ("report nowhere", 4, "nowhere holds no records.jsonl"),
    ("export nowhere", 4, "nowhere holds no records.jsonl"),
    ("show nowhere 12", 4, "nowhere holds no records.jsonl"),
    ("show RUN zz", 2, "no cell starts with 'zz'"),
    ("show RUN ''", 2, f"{CELLS} cells start with ''"),
    ("export RUN --rows site", 2, "--rows is for --format latex; csv has the whole table"),
    ("export RUN --format xml", 2, "invalid choice: 'xml'"),
    ("export RUN --format csv --out a.parquet", 2, "--format csv is written to a file that ends in .csv"),
    ("export RUN --format csv --out no/a.csv", 4, "cannot write no/a.csv: No such file or directory"),
    ("export RUN --format latex --out no/a.tex", 4, "cannot write no/a.tex: No such file or directory"),
    ("export RUN --format parquet --out no/a.parquet", 4, "cannot write no/a.parquet: No such file or directory"),
    ("export RUN --format latex --rows sight", 2, "no column 'sight'; known: suite, model"),
    ("export RUN --format latex --cols sight", 2, "no column 'sight'"),
    ("export RUN --format latex --metric los", 2, "no metric 'los'; did you mean 'loss'?"),
    ("export RUN --format latex --where scope", 2, "--where scope: expected COLUMN=VALUE"),
    ("export RUN --format latex --where scop=middle", 2, "no column 'scop'"),
    ("export RUN --format latex --where scope=nowhere", 2, "nowhere"),
    ("report RUN --out /proc/page.html", 4, "/proc/page.html"),
    ("demo --out /proc/demo", 4, "/proc/demo"),
    ("demo --out RUN", 4, "holds the records of another run"),
]


@pytest.mark.parametrize(("line", "code", "said"), MISTAKES, ids=[line for line, _, _ in MISTAKES])
def test_a_mistake_is_told_in_a_line(command: Command, first_run: Bench, line: str, code: int, said: str) -> None:
    arguments = [str(first_run.out) if word == "RUN" else word.strip("'") for word in line.split(" ")]
    found, out, err = command(*arguments)
    assert (found, out) == (code, "")
    assert said in err
    assert "Traceback" not in err
    place = err.partition(": ")[0]  # the place in a suite or on the command line comes first: editors follow it
    assert place == "qbench" or place.partition("=")[0] in line or place.startswith("--profile")
    assert len(err.splitlines()) <= 2


def test_a_failed_command_leaves_nothing_behind(command: Command, tmp_path: Path) -> None:
    for line, _, _ in MISTAKES:
        if line.startswith("run"):
            command(*line.split())
    assert list(tmp_path.iterdir()) == []


PLUGINS: Sequence[tuple[str, str]] = [
    ("QUANTIZERS = [1]", "QUANTIZERS maps names to rows, found a list"),
    ("QUANTIZERS = {'q': 1}", "QUANTIZERS['q']: expected a Row, found a int"),
    ("QUANTIZERS = {7: 1}", "QUANTIZERS[7]: a name is text"),
    ("from qbench.quant.catalog import QUANTIZERS", "QUANTIZERS['int8/tensor']: the name is taken"),
    ("answer = 42", "defines none of QUANTIZERS, MODELS, SOURCES"),
    ("def f(:", "SyntaxError"),
    ("1 / 0", "ZeroDivisionError: division by zero"),
    ("import sys; sys.exit(0)", "SystemExit: 0"),
    ("import no_such_module", "ModuleNotFoundError: No module named 'no_such_module'"),
    ("\x00", "null bytes"),
]


@pytest.mark.parametrize(("source", "said"), PLUGINS, ids=[said for _, said in PLUGINS])
def test_a_broken_plugin_is_told_in_a_line(command: Command, tmp_path: Path, source: str, said: str) -> None:
    (tmp_path / "broken.py").write_text(source)
    for arguments in (["run", "quickstart", "--dry-run"], ["ls", "quantizers"], ["validate", "quickstart"]):
        code, out, err = command(*arguments, "--plugin", "broken.py")
        assert (code, out) == (2, "")
        assert err.startswith("qbench: broken.py: ")
        assert said in err
        assert len(err.splitlines()) == 1


def test_a_plugin_is_a_python_file(command: Command, tmp_path: Path) -> None:
    (tmp_path / "rows.txt").write_text("QUANTIZERS = {}")
    assert command("ls", "models", "--plugin", "rows.txt")[2] == ("qbench: rows.txt: expected a Python file, FILE.py\n")
    assert command("ls", "models", "--plugin", ".")[2] == "qbench: .: Is a directory\n"


def test_every_mistake_of_a_suite_is_printed_with_its_place(command: Command, tmp_path: Path) -> None:
    text = (
        SUITE.replace("text:words.txt", "text:lost.txt").replace("int8/tensor", "int8/tensr").replace("mxfp4", "mxpf4")
    )
    (tmp_path / "bad.yaml").write_text(text)
    code, out, err = command("validate", "bad.yaml")
    assert (code, out) == (2, "")
    for line, said in ((6, "no file or folder 'lost.txt'"), (13, "'mxpf4'"), (14, "'int8/tensr'")):
        assert any(f"bad.yaml:{line}:" in row and said in row for row in err.splitlines()), err
    assert command("run", "bad.yaml")[::2] == (2, err)


@pytest.mark.parametrize("place", ["taken", "taken/below", "/proc/run", "/proc/run/below"])
def test_a_folder_that_cannot_be_written_is_told_before_anything_runs(
    command: Command, first_run: Bench, tmp_path: Path, place: str
) -> None:
    (tmp_path / "taken").write_text("a file")
    code, out, err = command("run", first_run.suite, "--out", place, "--quiet")
    assert (code, out) == (4, "")
    assert err.startswith(f"qbench: cannot write {place}")
    assert len(err.splitlines()) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["taken"]


def test_a_damaged_run_folder_is_told_in_a_line(command: Command, finished: Bench) -> None:
    manifest, records = finished.out / "manifest.json", finished.out / "records.jsonl"
    text = records.read_text()
    records.write_text(text.replace('"line"', '"lime"', 1))
    for arguments in (
        ["report", finished.out],
        ["export", finished.out],
        ["run", finished.suite, "--out", finished.out],
    ):
        code, out, err = command(*arguments)
        assert (code, out) == (4, "")
        assert err.startswith(f"qbench: {records}:1: ")
    records.write_text(text)
    manifest.write_text("{")
    code, out, err = command("report", finished.out)
    assert (code, out) == (4, "")
    assert err.startswith(f"qbench: {manifest}: not JSON")


@pytest.mark.parametrize("text", ["", "too short"])
def test_text_that_cannot_be_split_is_told_before_anything_runs(command: Command, tmp_path: Path, text: str) -> None:
    bench = Bench.new(tmp_path)
    (tmp_path / "words.txt").write_text(text)
    code, out, err = command("run", bench.suite)
    assert (code, out, len(err.splitlines())) == (4, "", 1)
    assert "expected" in err
