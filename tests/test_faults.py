"""What machines do to a run: kill it, fill its disk, crowd it. What was measured stays, and the next run goes on."""

import os
import random
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from tiny import CALIBRATION, CELLS, PER_ARM, SECOND_ARM, SUITE, Bench, alive, statuses, values, workers

from qbench.results.run import read

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="looks at processes through /proc")

PLUGIN = """
from __future__ import annotations
from dataclasses import dataclass
from qbench.quant.catalog import Row
from qbench.quant.spelling import parse

@dataclass
class Size:  # where a plugin's module cannot be looked up, this fails
    bits: int

QUANTIZERS = {"mine": Row(parse(f"int{Size(5).bits}/tensor"), "one of ours")}
"""
IN_THE_WORKER = "\nimport os, sys\nif 'torch' in sys.modules:\n    "
MINE = SUITE.replace("[int4/tensor]", "[mine]")


def until(happened: Callable[[], object], process: "subprocess.Popen[str] | None" = None, seconds: float = 60) -> None:
    """Wait for something, not longer than `seconds` and than the process lives."""
    end = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < end, f"it did not happen in {seconds} s"
        assert process is None or process.poll() is None, process.stderr and process.stderr.read()
        time.sleep(0.002)


def size(bench: Bench) -> int:
    path = bench.out / "records.jsonl"
    return path.stat().st_size if path.exists() else 0


def kill(process: "subprocess.Popen[str]") -> list[int]:
    """Kill -9 a run; the workers that it had at that moment."""
    process.send_signal(signal.SIGSTOP)
    left = workers(process.pid)
    process.kill()
    process.communicate()
    return left


@pytest.mark.slow
def test_a_run_killed_at_twenty_moments_ends_as_if_it_had_not_been(first_run: Bench, tmp_path: Path) -> None:
    chance = random.Random(7)
    whole = values(first_run.out)
    bench, left, kills, unfinished = Bench.new(tmp_path / "0"), list[int](), 0, 0
    while kills < 20:
        process = bench.start("run", bench.suite, "--out", bench.out, "--workers", "2", stderr=subprocess.DEVNULL)
        grown = size(bench) + chance.randint(1, 150_000) if kills % 2 else sys.maxsize
        end = time.monotonic() + chance.uniform(0.1, 4.0)  # the last part of a second is spent in training
        while process.poll() is None and time.monotonic() < end and size(bench) < grown:
            time.sleep(0.001)
        if process.poll() is None:
            left += kill(process)
            kills += 1
            if size(bench):
                unfinished += read(bench.out).unfinished > 0
                assert values(bench.out).items() <= whole.items()
        else:
            assert (process.communicate()[0], process.returncode)[1] == 0
            assert values(bench.out) == whole
            bench = Bench.new(tmp_path / str(kills))
    assert bench.run().returncode == 0
    assert values(bench.out) == whole
    done = read(bench.out)
    assert done.superseded == 0  # nothing that was stored is measured again
    assert all(done.evidence(row["samples"]) for row in done.records(metric="loss", what="loss"))
    assert left
    until(lambda: not any(map(alive, left)))


def test_workers_do_not_outlive_their_parent(warm: Bench) -> None:
    """Not even one that says nothing, and so finds no pipe broken."""
    plugin = warm.home / "plugin.py"
    plugin.write_text(PLUGIN + IN_THE_WORKER + "import time; open('asleep', 'w').close(); time.sleep(1000)")
    process = warm.start("run", warm.suite, "--out", warm.out, "--plugin", plugin, "--workers", "1")
    until((warm.home / "asleep").exists, process)
    left = kill(process)
    assert len(left) == 1
    until(lambda: not any(map(alive, left)), seconds=10)


def test_a_killed_worker_costs_only_its_own_cells(warm: Bench, first_run: Bench) -> None:
    process = warm.start("run", warm.suite, "--out", warm.out, "--workers", "1")
    until(lambda: workers(process.pid), process)
    first = workers(process.pid)
    until(lambda: set(workers(process.pid)) - set(first), process)  # the calibration arm has its own
    os.kill(workers(process.pid)[0], signal.SIGKILL)
    _, err = process.communicate()
    assert process.returncode == 4
    assert "failed: residual/0, training" in err
    assert err.count("killed by signal 9 (out of memory?)") == 1  # once for the group, not for each cell
    assert statuses(warm.out, "residual") == ["failed"] * PER_ARM
    assert {closing.error for closing in read(warm.out).failed} == {
        "the worker was killed by signal 9 (out of memory?)"
    }
    assert statuses(warm.out, "residual-free") == ["measured"] * PER_ARM
    assert warm.session()["cells"] == {"measured": CELLS - PER_ARM, "failed": PER_ARM}
    failed = warm.qbench("show", warm.out, read(warm.out).failed[0].cell)
    assert "failed, attempt 1" in failed.stdout
    assert "error: the worker was killed by signal 9" in failed.stdout

    assert set(warm.plan()) == {closing.cell for closing in read(warm.out).failed}
    again = warm.run()
    assert again.returncode == 0, again.stderr
    assert values(warm.out) == values(first_run.out)
    assert {a.closing.attempt for a in read(warm.out).cells.values() if a.closing.spec["arm"] == "residual"} == {2}
    assert read(warm.out).superseded == PER_ARM


def test_a_worker_that_exits_says_so(warm: Bench) -> None:
    plugin = warm.home / "plugin.py"
    plugin.write_text(PLUGIN + IN_THE_WORKER + "print('so long', flush=True); os._exit(3)")
    warm.suite.write_text(MINE)
    options = ["--plugin", plugin, "--only", warm.find("residual/0  loss, int5/tensor", "--plugin", plugin)]
    done = warm.run(*options)
    assert (done.returncode, "Traceback" in done.stderr) == (4, False)
    (closing,) = read(warm.out).failed
    assert closing.error == "the worker exited with code 3 before it had answered: so long"
    assert closing.log == ("so long",)


def test_a_plugin_brings_a_quantizer_and_is_part_of_the_cells_name(warm: Bench) -> None:
    """Its row is a name for a spec; cells and records have the spec's own spelling."""
    plugin = warm.home / "plugin.py"
    plugin.write_text(PLUGIN)
    warm.suite.write_text(MINE)
    refused = warm.run()
    assert (refused.returncode, "'mine'" in refused.stderr) == (2, True)
    cell = warm.find("residual/0  loss, int5/tensor @ boundaries", "--plugin", plugin)
    done = warm.run("--plugin", plugin, "--only", cell)
    assert done.returncode == 0, done.stderr
    (row,) = read(warm.out).records(metric="levels")
    assert (row["cell"], row["quantizer"], row["bits_per_value"]) == (cell, "int5/tensor", 5 + 32 / (8 * 16 * 16))
    assert warm.session()["cost"]["models_trained"] == 0
    assert warm.session()["options"]["plugin"] == ["./plugin.py"]
    plugin.write_text(PLUGIN + "# changed\n")
    assert cell not in warm.plan("--plugin", plugin)
    assert len(warm.plan("--plugin", plugin)) == CELLS


def test_a_torn_last_line_is_kept_aside_and_run_again(finished: Bench, first_run: Bench) -> None:
    path = finished.out / "records.jsonl"
    whole = path.read_bytes()
    path.write_bytes(whole[:-7])
    last = whole.rstrip(b"\n").rpartition(b"\n")[2]
    assert len(finished.plan()) == 1
    done = finished.run()
    assert done.returncode == 0, done.stderr
    assert "an unfinished cell at the end of records.jsonl" in done.stderr
    assert values(finished.out) == values(first_run.out)
    assert last[:-6] in (finished.out / "records.torn").read_bytes()


def test_the_second_writer_is_turned_away(warm: Bench) -> None:
    first, second = warm.find("residual/0  loss, W4A8"), warm.find("calibration/0  shape")
    process = warm.start("run", warm.suite, "--out", warm.out, "--only", first)
    until((warm.out / "manifest.json").exists, process)
    done = warm.run("--only", second, "--quiet")
    assert (done.returncode, done.stdout) == (4, "")
    assert done.stderr == f"qbench: {warm.out} is in use by another qbench run; wait for it or name another folder\n"
    process.communicate()
    assert process.returncode == 0
    assert list(read(warm.out).cells) == [first]


def test_a_full_disk_ends_the_run_and_loses_nothing(warm: Bench, first_run: Bench) -> None:
    def full() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (90_000, 90_000))

    warm.suite.write_text(SUITE.replace(SECOND_ARM, ""))
    done = warm.run("--workers", "1", "--quiet", preexec_fn=full)
    assert (done.returncode, done.stdout) == (4, "")
    assert done.stderr.startswith(f"qbench: cannot write {warm.out}/records.jsonl: ")
    assert done.stderr.endswith("; what was stored before is intact\n")
    assert len(done.stderr.splitlines()) == 1
    whole = values(first_run.out)
    assert CALIBRATION <= len(values(warm.out)) < CALIBRATION + PER_ARM
    assert values(warm.out).items() <= whole.items()
    assert read(warm.out).unfinished == 0
    assert warm.session()["finished"]
    assert warm.run().returncode == 0
    assert len(values(warm.out)) == CALIBRATION + PER_ARM
    assert values(warm.out).items() <= whole.items()


def test_ctrl_c_stops_everything_and_spoils_nothing(warm: Bench) -> None:
    process = warm.start("run", warm.suite, "--out", warm.out, "--workers", "1", start_new_session=True)
    until(lambda: size(warm), process)
    left = workers(process.pid)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does, to the workers too
    _, err = process.communicate()
    if process.returncode == 0:
        pytest.skip("the run was over before the signal came: this machine is busy")
    assert process.returncode == 130
    assert err.endswith("qbench: stopped; what was measured is stored, and the same command goes on from there\n")
    assert "Traceback" not in err
    assert set(statuses(warm.out)) <= {"measured"}  # an append that was under way is withdrawn, even the first
    assert warm.session()["finished"]
    assert not any(map(alive, left))


def test_text_too_short_for_its_windows_is_refused_before_anything_is_trained(tmp_path: Path) -> None:
    bench = Bench.new(tmp_path, SUITE.replace(SECOND_ARM, ""))
    (tmp_path / "words.txt").write_text("a few words\n" * 20)
    done = bench.run()
    assert (done.returncode, done.stdout, len(done.stderr.splitlines())) == (4, "", 1)
    assert "windows of 16 tokens from the" in done.stderr
    assert "give more text or a shorter context" in done.stderr
    assert not bench.out.exists()


def test_a_quantizer_that_does_not_fit_costs_no_other_cell(warm: Bench, first_run: Bench) -> None:
    """All tensor cells of a kind share one pass; this rotation is larger than the model is wide."""
    turned = "int4/tensor+hadamard:32"
    warm.suite.write_text(SUITE.replace(SECOND_ARM, "").replace("int4/token, ", f"int4/token, {turned}, "))
    done = warm.run()
    assert done.returncode == 4
    (failed,) = read(warm.out).failed
    assert failed.spec["measurement"]["quantizer"] == turned
    assert "rotation" in failed.error
    found, usual = values(warm.out), values(first_run.out)
    assert len(found) == CALIBRATION + PER_ARM + 2  # the rotation fits the calibration tensors
    assert found.keys() - usual.keys() == {
        cell for cell, one in found.items() if one["spec"]["measurement"].get("quantizer") == turned
    }
    assert all(found[cell] == usual[cell] for cell in found.keys() & usual.keys())


def test_text_that_changes_under_way_is_noticed(warm: Bench) -> None:
    plugin = warm.home / "plugin.py"
    plugin.write_text(PLUGIN + IN_THE_WORKER + "open('words.txt', 'a').write('more')")
    done = warm.run("--plugin", plugin, "--only", warm.find("residual/0  training", "--plugin", plugin))
    assert done.returncode == 4
    (closing,) = read(warm.out).failed
    assert closing.error == "BadData: text:words.txt changed while the run was under way; start it again"


def test_the_python_interface_runs_and_resumes(warm: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    import qbench as qb

    monkeypatch.setenv("QBENCH_CACHE", str(warm.cache))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    warm.suite.write_text(SUITE.replace(SECOND_ARM, ""))
    done = qb.run(warm.suite, out=warm.out, workers=2)
    assert len(done.cells) == CALIBRATION + PER_ARM
    assert done.failed == ()
    stamp = (warm.out / "records.jsonl").stat().st_mtime_ns
    assert qb.run(warm.suite, out=warm.out).cells == done.cells
    assert (warm.out / "records.jsonl").stat().st_mtime_ns == stamp
