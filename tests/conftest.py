"""Options and fixtures that all tests share."""

import os
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
from tiny import Bench

from qbench.cli.main import main

os.environ.setdefault("OMP_NUM_THREADS", "1")
# Compiled once, and not anew in the empty cache of every test.
os.environ.setdefault("QBENCH_KERNELS", str(Path(tempfile.gettempdir()) / f"qbench-kernels-{os.getuid()}"))


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--update-golden", action="store_true", help="rewrite tests/golden; say why in the commit")


@pytest.fixture(scope="session")
def first_run(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    """A tiny suite, run once with two workers into `.out`; copy it before you change anything."""
    bench = Bench.new(tmp_path_factory.mktemp("first"))
    done = bench.run("--workers", "2")
    (bench.home / "said.txt").write_text(done.stdout)
    assert done.returncode == 0, done.stderr
    return bench


@pytest.fixture
def warm(first_run: Bench, tmp_path_factory: pytest.TempPathFactory) -> Bench:
    """A folder of one's own in which the models are trained already and nothing is measured."""
    bench = Bench.new(tmp_path_factory.mktemp("warm"))
    (bench.cache).symlink_to(first_run.cache)
    return bench


@pytest.fixture
def finished(first_run: Bench, tmp_path_factory: pytest.TempPathFactory) -> Bench:
    """A copy of the first run, to change."""
    return first_run.copy(tmp_path_factory.mktemp("finished"))


@pytest.fixture
def command(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Callable[..., tuple[int, str, str]]:
    """`command(*arguments)` in this process and an empty folder: exit code, what was printed, what was complained."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("QBENCH_CACHE", str(tmp_path / "cache"))

    def call(*arguments: str | Path) -> tuple[int, str, str]:
        try:
            code = main([*map(str, arguments)])
        except SystemExit as stop:  # argparse
            code = stop.code if isinstance(stop.code, int) else 1
        said = capsys.readouterr()
        return code, said.out, said.err

    return call
