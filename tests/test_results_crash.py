"""Real processes, killed, out of disk or in each other's way: what was finished stays."""

import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from qbench.results.run import read
from qbench.results.store import FolderInUse, Store

RECORDS_PER_CELL = 40

# Prints the number of a cell only after `append` has returned, that is, after the cell is said to be durable.
WRITER = f"""
import itertools, sys
from qbench.results.record import Closing, Record
from qbench.results.store import Store
with Store.open(sys.argv[1]) as store:
    print("open", flush=True)
    for i in itertools.count(len(store.settled)):
        cell = f"c{{i}}"
        records = [Record(cell=cell, values={{"rms": i + j / 7}}, site=str(j)) for j in range({RECORDS_PER_CELL})]
        store.append(Closing(cell=cell, question="q", status="measured", spec={{"seed": i}}), records)
        print(i, flush=True)
"""
FULL_DISK = """
import resource, signal, sys
from qbench.results.files import CannotWrite
from qbench.results.record import Closing, Record
from qbench.results.store import Store
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, resource.RLIM_INFINITY))
with Store.open(sys.argv[1]) as store:
    try:
        for i in range(1000):
            records = [Record(cell=f"c{i}", values={"rms": j / 7}) for j in range(30)]
            store.append(Closing(cell=f"c{i}", question="q", status="measured", spec={}), records)
    except CannotWrite as error:
        print(i, error)
"""
WITH_WORKER = """
import os, sys, time
from qbench.results.store import Store
with Store.open(sys.argv[1]):
    worker = os.fork()
    if not worker:
        time.sleep(60)
try:
    with Store.open(sys.argv[1]):
        print("free")
finally:
    os.kill(worker, 9)
"""

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="SIGKILL and resource limits are POSIX")


@contextmanager
def writer(folder: Path) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen([sys.executable, "-c", WRITER, str(folder)], stdout=subprocess.PIPE, text=True)
    assert process.stdout
    try:
        assert process.stdout.readline() == "open\n"
        yield process
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def test_kill_9_costs_at_most_the_cell_under_way(tmp_path: Path) -> None:
    waits = random.Random(0)
    done = 0
    for _ in range(16):
        with writer(tmp_path) as process:
            time.sleep(waits.uniform(0.0, 0.03))
            process.send_signal(signal.SIGKILL)
            assert process.stdout
            printed = process.stdout.read().split()
        with Store.open(tmp_path) as store:  # the lock died with its holder
            now = len(store.settled)
        run = read(tmp_path)
        assert done + len(printed) <= now <= done + len(printed) + 1
        assert list(run.cells) == [f"c{i}" for i in range(now)]
        assert all(len(one.records) == RECORDS_PER_CELL for one in run.cells.values())
        assert run.cells[f"c{now - 1}"].records[1].values["rms"] == pytest.approx(now - 1 + 1 / 7, rel=1e-8)
        assert run.unfinished == run.superseded == 0
        done = now
    assert done >= 16


def test_a_second_process_is_refused_until_the_first_is_gone(tmp_path: Path) -> None:
    with writer(tmp_path) as process:
        with pytest.raises(FolderInUse, match="in use"), Store.open(tmp_path):
            pass
        second = subprocess.run(
            [sys.executable, "-c", WRITER, str(tmp_path)], capture_output=True, text=True, check=False
        )
        assert "FolderInUse" in second.stderr
        assert read(tmp_path).unfinished >= 0  # readers need no lock
        process.kill()
        process.wait()
        with Store.open(tmp_path):
            pass


def test_a_worker_that_lives_on_does_not_keep_the_folder(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", WITH_WORKER, str(tmp_path)], capture_output=True, text=True, check=False
    )
    assert (done.stdout, done.stderr) == ("free\n", "")


def test_a_full_disk_keeps_every_earlier_cell(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", FULL_DISK, str(tmp_path)], capture_output=True, text=True, check=True, timeout=60
    )
    failed_at, said = done.stdout.strip().split(" ", 1)
    assert 0 < int(failed_at) < 100
    assert said.startswith(f"cannot write {tmp_path}/records.jsonl: ")
    assert said.endswith("what was stored before is intact")
    run = read(tmp_path)
    assert (len(run.cells), run.unfinished) == (int(failed_at), 0)
    assert (tmp_path / "records.jsonl").read_bytes().endswith(b"}\n")
    with Store.open(tmp_path) as store:
        assert store.repaired == ""
