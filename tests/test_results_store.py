"""What is stored is read back; what a crash, a full disk or a second writer does is told in words."""

import json
import os
import string
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from qbench.results import store as store_module
from qbench.results.files import CannotWrite
from qbench.results.lines import BadRecords, encode, scan
from qbench.results.record import STATUSES, Attempt, Closing, Record, rounded, stored
from qbench.results.run import read
from qbench.results.store import FolderInUse, Store, settled

SPEC = {"suite": "s", "arm": "residual", "seed": 0, "measurement": {"what": "shape"}}
NUMBER = st.floats(width=64) | st.integers(-(10**6), 10**6).map(float)
TEXT = st.text(max_size=8)
VALUES = st.dictionaries(TEXT, NUMBER, max_size=4)


def closing(cell: str = "c0", **fields: object) -> Closing:
    return Closing(**({"cell": cell, "question": f"q-{cell}", "status": "measured", "spec": SPEC} | fields))  # type: ignore[arg-type]


def records(cell: str = "c0", count: int = 3) -> list[Record]:
    return [
        Record(cell=cell, values={"rms": i + 1 / 3}, site=f"blocks.{i}.out", kind="activation") for i in range(count)
    ]


def cell_records(cell: str) -> st.SearchStrategy[list[Record]]:
    one = st.builds(
        Record,
        cell=st.just(cell),
        values=VALUES,
        kind=TEXT,
        site=TEXT,
        scope=TEXT,
        quantizer=TEXT,
        bits_per_value=st.none() | NUMBER,
        step=st.none() | st.integers(0, 2**40),
        intervals=st.dictionaries(TEXT, st.tuples(NUMBER, NUMBER), max_size=2),
        n=st.integers(0, 2**40),
        samples=TEXT,
    )
    return st.lists(one, max_size=4)


CLOSINGS = st.builds(
    Closing,
    cell=st.just("c"),
    question=TEXT,
    status=st.sampled_from(STATUSES),
    spec=st.dictionaries(TEXT, st.none() | st.booleans() | NUMBER.filter(lambda x: abs(x) < 1e300) | TEXT, max_size=3),
    seconds=st.floats(0, 1e6),
    error=st.text(string.ascii_letters + '\n"\\', max_size=8),
    warnings=st.lists(st.text(string.ascii_letters, max_size=4), max_size=2).map(tuple),
)


@settings(max_examples=60, deadline=None)
@given(CLOSINGS, cell_records("c"))
def test_what_is_appended_is_read_back(
    tmp_path_factory: pytest.TempPathFactory, end: Closing, own: list[Record]
) -> None:
    folder = tmp_path_factory.mktemp("run")
    with Store.open(folder) as store:
        kept = store.append(end, own)
    assert read(folder).cells == {"c": kept}
    assert kept.records == tuple(map(stored, own))
    assert kept.closing.records == len(own)
    assert (kept.closing.spec, kept.closing.status, kept.closing.error) == (end.spec, end.status, end.error)


@given(VALUES)
def test_stored_numbers_agree_to_nine_digits_and_are_finite(values: dict[str, float]) -> None:
    kept = stored(Record(cell="c", values=values)).values
    assert kept == {name: pytest.approx(x, rel=5e-9) for name, x in values.items() if abs(x) < float("inf")}
    assert rounded(kept) == kept


def test_an_infinite_interval_is_no_interval() -> None:
    record = Record(
        cell="c", values={"loss": 1.0}, intervals={"loss": (0.5, float("inf")), "rms": (0, 1)}, bits_per_value=0
    )
    assert stored(record).intervals == {"rms": (0, 1)}
    assert stored(record).bits_per_value == 0


def test_every_closing_line_stands_on_its_own(tmp_path: Path) -> None:
    with Store.open(tmp_path) as store:
        store.append(closing(), records())
    lines = [json.loads(line) for line in (tmp_path / "records.jsonl").read_text().splitlines()]
    assert [line["line"] for line in lines] == ["record", "record", "record", "cell"]
    assert lines[-1]["schema"] == 1
    assert lines[0] == {
        "line": "record", "cell": "c0", "kind": "activation", "site": "blocks.0.out", "values": {"rms": 0.333333333}
    }  # fmt: skip


def test_a_later_attempt_supersedes_and_is_counted(tmp_path: Path) -> None:
    with Store.open(tmp_path) as store:
        store.append(closing(status="failed", error="out of memory"), records(count=1))
        store.append(closing("c1"), [])
        assert store.settled == {"c0": "failed", "c1": "measured"}
    with Store.open(tmp_path) as store:
        assert (store.settled, store.repaired) == ({"c0": "failed", "c1": "measured"}, "")
        assert store.append(closing(), records()).closing.attempt == 2
        assert store.append(closing(), records()).closing.attempt == 3
    run = read(tmp_path)
    assert run.cells["c0"] == Attempt(closing(records=3, attempt=3), tuple(map(stored, records())))
    assert (run.superseded, run.unfinished) == (2, 0)
    assert settled(tmp_path) == {"c0": "measured", "c1": "measured"}


def test_one_write_and_one_fsync_for_each_cell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    write, fsync = os.write, os.fsync
    with Store.open(tmp_path) as store:
        monkeypatch.setattr(os, "write", lambda handle, data: calls.append("write") or write(handle, data))
        monkeypatch.setattr(os, "fsync", lambda handle: calls.append("fsync") or fsync(handle))
        for i in range(3):
            store.append(closing(f"c{i}"), records(f"c{i}", 50))
    assert calls == ["write", "fsync"] * 3


def test_the_folder_itself_is_made_durable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[str] = []
    fsync = os.fsync
    monkeypatch.setattr(
        os, "fsync", lambda handle: synced.append(os.readlink(f"/proc/self/fd/{handle}")) or fsync(handle)
    )
    with Store.open(tmp_path / "a" / "b"):
        pass
    assert {str(tmp_path), str(tmp_path / "a"), str(tmp_path / "a" / "b")} <= set(synced)


@pytest.mark.parametrize("call", ["write", "fsync"])
@pytest.mark.parametrize(
    "error", [OSError(28, "No space left on device"), KeyboardInterrupt()], ids=["full", "interrupt"]
)
def test_a_failed_append_leaves_no_trace(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str, error: BaseException
) -> None:
    write = os.write

    def fail(handle: int, data: bytes = b"") -> int:
        if data:
            write(handle, data[:100])
        raise error

    with Store.open(tmp_path) as store:
        store.append(closing(), records())
        before = (tmp_path / "records.jsonl").read_bytes()
        with monkeypatch.context() as patch:
            patch.setattr(os, call, fail)
            with pytest.raises(CannotWrite if isinstance(error, OSError) else KeyboardInterrupt):
                store.append(closing("c1"), records("c1"))
        assert (tmp_path / "records.jsonl").read_bytes() == before
        assert store.append(closing("c1"), records("c1")).closing.attempt == 1  # space was made: the run goes on
    assert list(read(tmp_path).cells) == ["c0", "c1"]


def test_a_short_write_is_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write = os.write
    with Store.open(tmp_path) as store:
        with monkeypatch.context() as patch:
            patch.setattr(os, "write", lambda handle, data: write(handle, data[:10]))
            with pytest.raises(
                CannotWrite, match=r"cannot write .*records.jsonl: No space left on device; what was stored"
            ):
                store.append(closing(), records())
        assert (tmp_path / "records.jsonl").read_bytes() == b""


def test_nothing_follows_a_line_that_could_not_be_withdrawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> int:
        raise OSError(5, "Input/output error")

    write = os.write
    with Store.open(tmp_path) as store:
        store.append(closing(), records())
        with monkeypatch.context() as patch:
            patch.setattr(os, "write", lambda handle, data: write(handle, data[:10]))
            patch.setattr(os, "ftruncate", broken)
            with pytest.raises(CannotWrite):
                store.append(closing("c1"), records("c1"))
        with pytest.raises(CannotWrite, match="closed for writing"):
            store.append(closing("c2"), records("c2"))
    with Store.open(tmp_path) as store:
        assert "10 bytes" in store.repaired
    assert list(read(tmp_path).cells) == ["c0"]


def test_bad_values_are_refused_before_anything_is_written(tmp_path: Path) -> None:
    with Store.open(tmp_path) as store:
        for end, own in [
            (closing(spec={"lr": float("nan")}), records()),
            (closing(spec={"x": {1, 2}}), records()),
            (closing("c1"), records("c0")),
        ]:
            with pytest.raises((ValueError, TypeError)):
                store.append(end, own)
        assert (tmp_path / "records.jsonl").read_bytes() == b""
        assert store.settled == {}


def test_a_torn_end_is_repaired_wherever_it_tears(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda handle: None)  # hundreds of folders, and no crash here
    whole = encode(closing(records=3), records())
    last = encode(closing("c1", records=3), records("c1"))
    for cut in range(len(last) + 1):
        folder = tmp_path / str(cut)
        folder.mkdir()
        (folder / "records.jsonl").write_bytes(whole + last[:cut])
        cells = ["c0", "c1"] if cut == len(last) else ["c0"]
        assert list(read(folder).cells) == list(settled(folder)) == cells
        with Store.open(folder) as store:
            assert list(store.settled) == cells
            assert bool(store.repaired) == (0 < cut < len(last))
            store.append(closing("c1"), records("c1"))
        run = read(folder)
        assert list(run.cells) == ["c0", "c1"]
        assert run.unfinished == 0
        if store.repaired:
            assert (folder / "records.torn").read_bytes().rstrip(b"\n") == last[:cut].rstrip(b"\n")


def test_a_file_torn_in_its_first_cell_counts_what_is_lost(tmp_path: Path) -> None:
    (tmp_path / "records.jsonl").write_bytes(encode(closing(records=3), records())[:-10])
    run = read(tmp_path)
    assert (run.cells, run.unfinished) == ({}, 3)
    assert scan(tmp_path / "records.jsonl").torn > 0


def test_one_writer_at_a_time(tmp_path: Path) -> None:
    with Store.open(tmp_path) as first:
        with pytest.raises(FolderInUse, match="in use by another qbench run"), Store.open(tmp_path):
            pass
        first.append(closing(), records())  # the second did no harm
    with Store.open(tmp_path) as second:
        assert second.settled == {"c0": "measured"}


def test_the_lock_is_given_back_after_an_error(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), Store.open(tmp_path):
        raise ZeroDivisionError
    (tmp_path / "records.jsonl").write_text("not ours\n")
    for _ in range(2):
        with pytest.raises(BadRecords), Store.open(tmp_path):
            pass
    assert (tmp_path / "records.jsonl").read_text() == "not ours\n"


def test_a_closed_store_stores_nothing(tmp_path: Path) -> None:
    with Store.open(tmp_path) as store:
        pass
    with pytest.raises(CannotWrite, match="closed"):
        store.append(closing(), [])


def test_a_place_that_cannot_be_written_is_said_at_once(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "taken" / "records.jsonl").mkdir(parents=True)
    for folder in (
        tmp_path / "file",
        tmp_path / "file" / "below",
        tmp_path / "taken",
        Path("/proc/qbench"),
        Path("/proc/1"),
    ):
        with pytest.raises(CannotWrite, match="cannot write"), Store.open(folder):
            pass


def test_errors_of_the_caller_stay_the_callers(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no such weights") as caught, Store.open(tmp_path):
        raise FileNotFoundError("no such weights")
    assert not isinstance(caught.value, CannotWrite)


def test_nothing_private_is_stored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    end = closing(
        status="failed",
        error=f"FileNotFoundError: {tmp_path}/secret/weights.pt",
        log=(f'File "{json.__file__}", line 3', f"in {Path.home()}/models/x", "int4/token at blocks.3/out, rms 1/2"),
        warnings=("see /data/private/place.txt",),
    )
    with Store.open(tmp_path / "run") as store:
        kept = store.append(end, []).closing
    text = (tmp_path / "run" / "records.jsonl").read_text()
    assert kept.error == "FileNotFoundError: ./secret/weights.pt"
    assert kept.log[0] == 'File "lib/json/__init__.py", line 3'
    assert kept.log[1:] == ("in ~/models/x", "int4/token at blocks.3/out, rms 1/2")
    assert kept.warnings == ("see .../place.txt",)
    assert str(tmp_path) not in text
    assert f"{Path.home()}/" not in text


GOOD = encode(closing(records=3), records()) + encode(closing("c1", status="failed", error="x"), [])
ODD = [b"NaN", b"1e999", b"-1", b"null", b"[]", b"{}", b'"', b"\n", b"9" * 30, b"true", b"\xff", b"\x00", b'"\\ud800"']
CUT = st.tuples(st.integers(0, len(GOOD) - 1), st.integers(0, 20), st.binary(max_size=20) | st.sampled_from(ODD))
MUTATIONS = st.lists(CUT, min_size=1, max_size=4)


def read_or_explained(folder: Path, data: bytes) -> None:
    """Finite numbers come out, or BadRecords with file and line; anything else fails the test."""
    path = folder / "records.jsonl"
    path.write_bytes(data)
    try:
        assert all(abs(row["value"]) < float("inf") for row in read(folder).records())
    except BadRecords as error:
        said = str(error)
    else:
        return
    number = said.removeprefix(f"{path}:").partition(":")[0]
    assert 1 <= int(number) <= data.count(b"\n"), said


@settings(max_examples=300, deadline=None)
@given(MUTATIONS)
def test_a_damaged_file_is_read_or_explained(
    tmp_path_factory: pytest.TempPathFactory, cuts: list[tuple[int, int, bytes]]
) -> None:
    data = GOOD
    for start, length, new in cuts:
        data = data[:start] + new + data[start + length :]
    read_or_explained(tmp_path_factory.mktemp("fuzz"), data)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.binary(max_size=40), max_size=5).map(b"\n".join))
@example(b"[" * 100_000 + b"\n")
@example(
    b'{"line":"cell","schema":1,"cell":"c","question":"q","status":"measured","spec":{},"records":'
    + b"9" * 5000
    + b"}\n"
)
def test_random_bytes_are_read_or_explained(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    read_or_explained(tmp_path_factory.mktemp("fuzz"), data)


CELL = {"line": "cell", "schema": 1, "cell": "c", "question": "q", "status": "measured", "spec": {}, "records": 1}
RECORD = {"line": "record", "cell": "c", "values": {"rms": 1}}
SAID = [
    (RECORD, CELL | {"schema": 2}, 2, "written with schema 2, this qbench reads schema 1; upgrade qbench-suite"),
    (RECORD, {k: v for k, v in CELL.items() if k != "schema"}, 2, "written with schema None"),
    (RECORD, CELL | {"status": "fine"}, 2, "status 'fine' is none of measured, failed, unsupported"),
    (RECORD, CELL | {"records": 2}, 2, "cell c closes over 2 records"),
    (RECORD | {"cell": "other"}, CELL, 2, "cell c closes over 1 records"),
    (RECORD | {"values": {"rms": None}}, CELL, 1, "rms cannot be 'None'"),
    (RECORD | {"values": {"rms": True}}, CELL, 1, "rms cannot be 'True'"),
    (RECORD | {"step": -1}, CELL, 1, "step cannot be '-1'"),
    (RECORD | {"colour": 1}, CELL, 1, "unknown field 'colour'; known: cell"),
    ({"line": "record", "cell": "c"}, CELL, 1, "no values"),
    (RECORD | {"intervals": {"rms": [1]}}, CELL, 1, "an interval is [low, high], found [1]"),
    (RECORD, CELL | {"spec": {"lr": float("nan")}}, 2, "not a line of JSON (NaN is not a number)"),
    (RECORD, CELL | {"log": [1]}, 2, "lines of text expected"),
    (RECORD, CELL | {"spec": {"seed": []}}, 2, "seed cannot be '[]'"),
    (RECORD, CELL | {"spec": {"seed": "x"}}, 2, "seed cannot be 'x'"),
    (RECORD, CELL | {"spec": {"seed": True}}, 2, "seed cannot be 'True'"),
    (RECORD, CELL | {"spec": {"arm": "\ud800"}}, 2, "cell c: its spec holds half a character ('\\ud800')"),
    (RECORD, CELL | {"spec": {"a": [{"\udcff": 1}]}}, 2, "cell c: its spec holds half a character ('\\udcff')"),
    (RECORD | {"line": "weather"}, CELL, 1, '"line" must be "record" or "cell"'),
]  # fmt: skip


@pytest.mark.parametrize(("record", "end", "line", "said"), SAID, ids=[said for *_, said in SAID])
def test_damage_is_named_with_its_line(tmp_path: Path, record: dict, end: dict, line: int, said: str) -> None:
    path = tmp_path / "records.jsonl"
    path.write_text(json.dumps(record) + "\n" + json.dumps(end) + "\n")
    with pytest.raises(BadRecords) as caught:
        read(tmp_path)
    assert str(caught.value).startswith(f"{path}:{line}: {said}")


@pytest.mark.parametrize("number", ["NaN", "-Infinity", "1e999", "1" + "0" * 400, "9" * 5000])
@pytest.mark.parametrize("field", ["values", "bits_per_value", "n", "intervals", "seconds"])
def test_what_no_float_can_hold_is_refused(tmp_path: Path, number: str, field: str) -> None:
    value = {"values": f'{{"rms":{number}}}', "intervals": f'{{"rms":[0,{number}]}}'}.get(field, number)
    line = CELL | {"records": 0, "seconds": 0} if field == "seconds" else RECORD
    text = json.dumps(line)[:-1] + f', "{field}": {value}}}\n'
    (tmp_path / "records.jsonl").write_text(text)
    with pytest.raises(BadRecords, match=r"records\.jsonl:1: "):
        read(tmp_path)


def test_lines_in_another_spelling_are_read(tmp_path: Path) -> None:
    (tmp_path / "records.jsonl").write_text(
        json.dumps(dict(reversed(RECORD.items()))) + "\n" + json.dumps(CELL, indent=None) + "\n"
    )
    assert settled(tmp_path) == {"c": "measured"}
    assert read(tmp_path).cells["c"].records == (Record(cell="c", values={"rms": 1.0}),)


def test_records_of_a_killed_run_in_the_middle_are_ignored_and_counted(tmp_path: Path) -> None:
    """Two files joined by hand, the first of them torn after a whole line."""
    torn = encode(closing("c0", records=3), records()).splitlines(keepends=True)[:2]
    (tmp_path / "records.jsonl").write_bytes(b"".join(torn) + encode(closing("c1", records=3), records("c1")))
    run = read(tmp_path)
    assert (list(run.cells), run.unfinished) == (["c1"], 2)
    assert len(run.cells["c1"].records) == 3


def test_settled_reads_no_records(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Store.open(tmp_path) as store:
        for i in range(10):
            store.append(closing(f"c{i}"), records(f"c{i}", 50))
    parsed: list[object] = []
    loads = json.loads
    monkeypatch.setattr(json, "loads", lambda *a, **k: parsed.append(a) or loads(*a, **k))
    assert len(settled(tmp_path)) == len(parsed) == 10


def test_an_empty_place_has_nothing_settled(tmp_path: Path) -> None:
    assert settled(tmp_path / "nowhere") == {}
    assert store_module.LOCK == ".lock"


def test_what_could_not_be_read_back_is_not_written() -> None:
    for spec in ({"arm": "\ud800"}, {"seed": "x"}):
        with pytest.raises(ValueError, match=r"half a character|seed cannot be"):
            encode(replace(closing(), spec=spec), [])


def test_messages_are_text_that_a_page_can_hold(tmp_path: Path) -> None:
    """They quote names of files, which need not be UTF-8."""
    line = CELL | {
        "records": 0,
        "status": "failed",
        "error": "no \udcff",
        "log": ["\ud800"],
        "warnings": ["\ud800", "é"],
    }
    (tmp_path / "records.jsonl").write_text(json.dumps(line) + "\n")
    end = read(tmp_path).cells["c"].closing
    assert (end.error, end.log, end.warnings) == ("no \\udcff", ("\\ud800",), ("\\ud800", "é"))
