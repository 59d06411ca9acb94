"""One long table, the same in every format, safe to open."""

import csv
import io
import json
import os
import shutil
from pathlib import Path
from zipfile import ZipFile

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qbench.cli.main import main
from qbench.results import digest
from qbench.results.export import COLUMNS, lines, save, write_csv, write_jsonl
from qbench.results.files import CannotWrite
from qbench.results.record import Attempt, Closing, Record
from qbench.results.run import Run, read
from qbench.results.store import Store

HEADER = (
    "suite,model,wiring,optimizer,seed,step,kind,site,scope,quantizer,slice,bits_per_value,metric,unit,value,low,high,n,status,"
    "samples_digest,record_id"
)
RELEASE = Path(__file__).parents[1] / "results" / "releases" / "release-2.qbench.zip"
UNITS = {"loss": "nats/token", "rms": "1"}
TREATMENT = {
    "name": "int4/token @ boundaries",
    "scope": "boundaries",
    "assign": {"activation:boundaries": "int4/token"},
}


def closing(
    cell: str, arm: str = "residual", status: str = "measured", training: object = None, **measurement: object
) -> Closing:
    spec = {
        "suite": "s", "arm": arm, "seed": 0, "model": {"wiring": "residual"},
        "training": training or {"optimizer": "muon"}, "measurement": measurement,
    }  # fmt: skip
    return Closing(cell=cell, question="q", status=status, spec=spec)  # type: ignore[arg-type]


def run_of(*attempts: tuple[Closing, list[Record]]) -> Run:
    cells = {end.cell: Attempt(end, tuple(own)) for end, own in attempts}
    return Run(folder=Path("r"), cells=cells, manifest={})


LOSS = Record(
    cell="d", kind="activation", scope="boundaries", quantizer="int4/token", bits_per_value=4.25,
    values={"loss": 2.5}, intervals={"loss": (2.25, 2.75)}, n=128, samples="00ff",
)  # fmt: skip


def test_every_column_in_its_place() -> None:
    (line,) = lines(run_of((closing("d", what="loss", treatment=TREATMENT), [LOSS])), UNITS)
    name = digest.of(["d", "activation", "", "int4/token", None, "loss"])[:16]
    assert ",".join(line) == ",".join(COLUMNS) == HEADER
    assert list(line.values()) == [
        "s", "residual", "residual", "muon", 0, None, "activation", "", "boundaries", "int4/token", "", 4.25, "loss",
        "nats/token", 2.5, 2.25, 2.75, 128, "measured", "00ff", name,
    ]  # fmt: skip
    stream = io.StringIO()
    write_csv([line], stream)
    assert stream.getvalue() == (
        f"{HEADER}\r\ns,residual,residual,muon,0,,activation,,boundaries,int4/token,,4.25,loss,"
        f"nats/token,2.5,2.25,2.75,128,measured,00ff,{name}\r\n"
    )


def test_a_cell_that_was_not_measured_is_one_line_without_a_value() -> None:
    failed = closing("f", status="failed", what="loss", treatment=TREATMENT)
    table = list(lines(run_of((failed, [LOSS])), UNITS))
    assert len(table) == 1
    assert {name: table[0][name] for name in ("status", "value", "metric", "low", "n", "seed")} == {
        "status": "failed", "value": None, "metric": "", "low": None, "n": 0, "seed": 0,
    }  # fmt: skip
    assert [table[0][name] for name in ("kind", "scope", "quantizer")] == ["activation", "boundaries", "int4/token"]
    error = closing("f", status="unsupported", what="error", kind="gradient", quantizer="mxfp4")
    (line,) = lines(run_of((error, [])), UNITS)
    assert [line[name] for name in ("status", "kind", "scope", "quantizer")] == ["unsupported", "gradient", "", "mxfp4"]


def test_what_has_no_single_quantizer_goes_by_its_treatment() -> None:
    several = {
        "name": "W4A8",
        "scope": "",
        "assign": {"weight:weights": "int4/channel", "activation:linear": "int8/token"},
    }
    plain = {"name": "unquantized", "scope": "", "assign": {}}
    loss = [Record(cell="", values={"loss": 1.0})]
    run = run_of(
        (closing("a", what="loss", treatment=several), loss),
        (closing("b", what="loss", treatment=plain), loss),
        (closing("c", status="failed", what="loss", treatment=several), []),
    )
    assert sorted(line["quantizer"] for line in lines(run, UNITS)) == ["W4A8", "W4A8", "unquantized"]


def test_order_is_that_of_the_question_not_of_the_clock(tmp_path: Path) -> None:
    cells = [
        (
            closing(f"{arm}{i}", arm=arm, what="shape", kind=kind),
            [Record(cell=f"{arm}{i}", site="embed", values={"rms": i, "loss": 1})],
        )
        for arm in ("b", "a")
        for i, kind in enumerate(("weight", "activation"))
    ]
    forward, backward = list(lines(run_of(*cells), UNITS)), list(lines(run_of(*reversed(cells)), UNITS))
    assert forward == backward
    assert [line["model"] for line in forward] == ["a"] * 4 + ["b"] * 4
    assert len({line["record_id"] for line in forward}) == 8


FIELDS = st.text(max_size=10) | st.sampled_from(
    ["=1+1", "-2", "+x", "@SUM(A1)", "\tx", "\rx", '"', "a,b", "a\nb", "'=x", "β"]
)
NUMBERS = st.floats(allow_nan=False, allow_infinity=False)
TABLES = st.lists(
    st.fixed_dictionaries(
        {
            name: {"VARCHAR": FIELDS, "BIGINT": st.none() | st.integers(0, 2**53), "DOUBLE": st.none() | NUMBERS}[kind]
            for name, kind in COLUMNS.items()
        }
    ),
    max_size=4,
)


@settings(max_examples=60, deadline=None)
@given(TABLES)
def test_csv_says_the_same_and_nothing_in_it_is_a_formula(table: list[dict]) -> None:
    stream = io.StringIO(newline="")
    write_csv(table, stream)
    back = list(csv.DictReader(io.StringIO(stream.getvalue(), newline="")))
    assert len(back) == len(table)
    for line, read_back in zip(table, back, strict=True):
        for name, kind in COLUMNS.items():
            text = read_back[name]
            if kind == "VARCHAR":
                assert text[:1] not in set("=+-@\t\r")
                assert text.removeprefix("'") == line[name].removeprefix("'")
            else:
                assert (float(text) if text else None) == line[name]


@settings(max_examples=60, deadline=None)
@given(TABLES)
def test_jsonl_says_the_same(table: list[dict]) -> None:
    stream = io.StringIO()
    write_jsonl(table, stream)
    assert [json.loads(line) for line in stream.getvalue().split("\n")[:-1]] == table


def stored_run(folder: Path) -> Run:
    with Store.open(folder) as store:
        store.append(closing("d", what="loss", treatment=TREATMENT), [LOSS])
        odd = [Record(cell="x", site="=cmd|' /C calc'!A0\ud800", step=0, values={"rms": -0.1, "tiny": 5e-324 * 2**60})]
        store.append(closing("x", arm='-b, "c"\nd', what="shape", kind="gradient"), odd)
        store.append(closing("f", status="failed", what="loss", treatment=TREATMENT), [])
    return read(folder)


def test_parquet_holds_the_same_table_in_types(tmp_path: Path) -> None:
    duckdb = pytest.importorskip("duckdb")
    run = stored_run(tmp_path / "r")
    for name in ("a.parquet", "b.parquet"):
        save(run, tmp_path / name, UNITS)
    assert (tmp_path / "a.parquet").read_bytes() == (tmp_path / "b.parquet").read_bytes()
    relation = duckdb.read_parquet(str(tmp_path / "a.parquet"))
    assert dict(zip(relation.columns, map(str, relation.types), strict=True)) == dict(COLUMNS)
    expected = [tuple(line.values()) for line in lines(run, UNITS)]
    assert relation.fetchall() == expected
    assert len(expected) == 4
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.parquet", "b.parquet", "r"]


@pytest.mark.parametrize("ending", ["csv", "jsonl", "parquet"])
def test_each_format_is_written_whole_or_not_at_all(tmp_path: Path, ending: str) -> None:
    run = stored_run(tmp_path / "r")
    out = tmp_path / "out" / f"t.{ending}"
    with pytest.raises(CannotWrite, match="cannot write"):
        save(run, out, UNITS)
    out.parent.mkdir()
    out.write_text("old")

    class Broken(dict[str, str]):
        def get(self, *_: object) -> str:  # type: ignore[override]
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        save(run, out, Broken())
    assert out.read_text() == "old"
    save(run, out, UNITS)
    assert out.stat().st_size > 100
    assert list(out.parent.iterdir()) == [out]


def test_an_unknown_format_teaches(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"cannot tell the format of t\.xlsx; known endings: csv, jsonl, parquet"):
        save(run_of(), tmp_path / "t.xlsx", UNITS)


def test_an_empty_run_is_an_empty_table(tmp_path: Path) -> None:
    duckdb = pytest.importorskip("duckdb")
    for ending in ("csv", "jsonl", "parquet"):
        save(run_of(), tmp_path / f"t.{ending}", UNITS)
    assert (tmp_path / "t.csv").read_bytes() == f"{HEADER}\r\n".encode()
    assert (tmp_path / "t.jsonl").read_text() == ""
    assert duckdb.read_parquet(str(tmp_path / "t.parquet")).columns == list(COLUMNS)


def test_a_table_that_was_left_half_written_is_swept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Parquet is made of a draft as text, which a killed writer leaves too."""
    pytest.importorskip("duckdb")
    import duckdb

    run = stored_run(tmp_path / "r")

    def killed(**_: object) -> None:
        (draft,) = [path for path in tmp_path.iterdir() if path.name != "r"]
        left = shutil.copy(draft, tmp_path / draft.name.replace(f".{os.getpid()}.", ".7."))
        os.utime(left, (0, 0))
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(duckdb, "connect", killed)
        with pytest.raises(KeyboardInterrupt):
            save(run, tmp_path / "t.parquet", UNITS)
    assert len(list(tmp_path.iterdir())) == 2
    save(run, tmp_path / "t.parquet", UNITS)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["r", "t.parquet"]


@pytest.mark.parametrize("out", [".", "/", "folder"])
@pytest.mark.parametrize("command", [["report"], ["export", "--format", "model-card"]], ids=" ".join)
def test_a_folder_as_the_file_is_said(
    tmp_path: Path, command: list[str], out: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("folder").mkdir()
    stored_run(Path("run"))
    assert main([command[0], "run", *command[1:], "--out", out]) == 4
    assert capsys.readouterr().err == f"qbench: cannot write {out}: it is a folder; name a file\n"


@pytest.mark.parametrize("name", ["run.zip", "run.qbench.zip"])
def test_figures_of_a_pack_stand_in_a_folder_beside_it(tmp_path: Path, name: str) -> None:
    shutil.copy(RELEASE, tmp_path / name)
    assert main(["report", str(tmp_path / name), "--figures"]) == 0
    assert {path.name for path in tmp_path.iterdir()} == {name, "run.html", "run"}
    assert list((tmp_path / "run" / "figures").glob("*.svg"))


def test_a_run_with_slices_is_a_table_for_a_paper(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with ZipFile(RELEASE) as pack:
        pack.extractall(tmp_path)
    assert main(["export", str(tmp_path), "--format", "latex"]) == 0
    assert "toprule" in capsys.readouterr().out


@pytest.mark.parametrize("session", ["x", {"asked": 5}, {"finished": "yesterday"}])
@pytest.mark.parametrize(
    "command", [["report"], ["show"], ["export"], ["export", "--format", "every-eval-ever"]], ids=" ".join
)
def test_an_odd_manifest_is_said(
    tmp_path: Path, command: list[str], session: object, capsys: pytest.CaptureFixture[str]
) -> None:
    stored_run(tmp_path)
    (tmp_path / "manifest.json").write_text(json.dumps({"schema": 1, "sessions": [session]}))
    assert main([command[0], str(tmp_path), *command[1:]]) == 4
    assert "manifest.json: session 1: " in capsys.readouterr().err
