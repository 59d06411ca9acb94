"""What the base install does without torch: validate, list, demo, report, export. Torch is forbidden."""

import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

FORBID = "import sys; sys.modules['torch'] = None; from qbench.cli.main import main; sys.exit(main(sys.argv[1:]))"


def qbench(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", FORBID, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base") / "demo"
    done = qbench("demo", "--out", folder)
    assert done.returncode == 0, done.stderr
    return folder


def test_the_demo_is_a_page_of_real_records(demo: Path) -> None:
    page = (demo / "report.html").read_text()
    assert "Does what crosses a block boundary survive low bits better" in page
    assert len(page) < 350_000
    assert (demo / "records.jsonl").stat().st_size > 1_000_000


@pytest.mark.parametrize("suite", ["quickstart", "growth", "wiring"])
def test_shipped_suites_validate(suite: str) -> None:
    done = qbench("validate", suite)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("what", ["suites", "models", "quantizers", "metrics", "data"])
def test_ls(what: str) -> None:
    done = qbench("ls", what)
    assert done.returncode == 0
    assert len(done.stdout.splitlines()) >= 2


def test_report_and_export_need_no_torch(demo: Path, tmp_path: Path) -> None:
    page = tmp_path / "again.html"
    assert qbench("report", demo, "--out", page).returncode == 0
    assert page.read_bytes() == (demo / "report.html").read_bytes()
    for name in ("csv", "jsonl", "parquet"):
        assert qbench("export", demo, "--format", name, "--out", tmp_path / f"table.{name}").returncode == 0
    latex = qbench("export", demo, "--format", "latex", "--where", "scope=boundaries")
    assert latex.returncode == 0, latex.stderr
    assert r"\toprule" in latex.stdout


@pytest.mark.skipif(find_spec("torch") is not None, reason="torch is installed here")
def test_run_says_which_extra_it_needs(tmp_path: Path) -> None:
    done = qbench("run", "quickstart", "--out", tmp_path / "out")
    assert done.returncode == 4
    assert "pip install 'qbench-suite[run]'" in done.stderr
    assert "Traceback" not in done.stderr
