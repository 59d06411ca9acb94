"""`gate --model` measures what a policy needs and no more, a further look only the windows that it adds."""

import json
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import numpy as np
import pytest
from libraries import library
from random_models import folder

from qbench.cli import measure as module
from qbench.cli.main import main
from qbench.gate.source import opened
from qbench.results.run import part
from qbench.stats.looks import added

library("transformers")
LOOKS = (40, 90)
POLICY = """\
policy: first
version: 1
suite: {name: deploy-lm, version: 1}
windows: [40, 90]
against: unquantized
rules:
  - {name: W8, metric: loss, scope: weights, quantizer: int8/channel, margin: 0.05}
  - {name: KV8, metric: kld, format: KV8, margin: 0.05}
"""


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("model")
    folder("llama", place)
    (place / "text.txt").write_text("".join(f"{n * n * 7919 % 100003:05d} and {n}, " for n in range(1500)))
    (place / "policy.yaml").write_text(POLICY)
    return place


def gate(home: Path, look: int, out: Path) -> int:
    return main(
        [
            *("gate", str(home / "policy.yaml"), "--model", str(home / "llama"), "--look", str(look)),
            *("--data", f"text:{home / 'text.txt'}", "--run", str(out), "--device", "cpu", "--out", str(out / "v")),
        ]
    )


def test_a_further_look_measures_only_what_it_adds(home: Path, capfd: pytest.CaptureFixture[str]) -> None:
    out = home / "run"
    assert gate(home, 1, out) == 3  # 40 windows are fewer than any rule takes
    first = capfd.readouterr()
    assert sorted(first.err.splitlines()) == [
        f"loss, {name}: measured" for name in ("KV8", "int8/channel @ weights", "unquantized")
    ]
    assert "INCONCLUSIVE  run" in first.out
    records = (out / "records.jsonl").read_bytes()
    assert gate(home, 2, out) == 0
    assert len(capfd.readouterr().err.splitlines()) == 3
    assert (out / "records.jsonl").read_bytes().startswith(records)  # nothing was measured a second time
    found = json.loads((out / "v" / "verdict.json").read_text())
    assert [rule["findings"][0]["n"] for rule in found["results"]] == [90, 90]
    assert gate(home, 2, out) == 0
    assert capfd.readouterr().err == ""
    with opened(out) as source:
        plain: dict[int, np.ndarray] = {}
        for one in source.run.cells.values():
            if not part(one.closing.spec, "measurement", "treatment").get("assign"):
                look = part(one.closing.spec, "measurement", "passage")["look"]
                plain[look] = source.run.evidence(one.records[0].samples)["loss"]
    # No window of the second look is one of the first: the numbers of all are those of 90 different places.
    assert [len(plain[look]) for look in (1, 2)] == [40, 50]
    together = np.zeros(90)
    for look in (1, 2):
        together[added(LOOKS, look)] = plain[look]
    assert len(np.unique(together)) == 90
    assert together == pytest.approx(_at_once(home), abs=1e-6)


def test_a_kernel_is_gated_by_its_windows(home: Path, capfd: pytest.CaptureFixture[str]) -> None:
    library("torchao")
    rules = "".join(
        f"  - {{name: {metric}, metric: {metric}, format: torchao/int8-weight-only, margin: {margin}}}\n"
        for metric, margin in (("loss", 0.05), ("kld", 1e-9))
    )
    head = POLICY[: POLICY.index("rules:")].replace("[40, 90]", "[90]")
    (home / "kernels.yaml").write_text(f"{head}rules:\n{rules}")
    typed = ["gate", str(home / "kernels.yaml"), "--model", str(home / "llama"), "--data", f"text:{home / 'text.txt'}"]
    assert main([*typed, "--run", str(home / "kernel"), "--device", "cpu", "--out", str(home / "kernel" / "v")]) == 1
    assert "torchao/int8-weight-only: measured" in capfd.readouterr().err
    found = json.loads((home / "kernel" / "v" / "verdict.json").read_text())["results"]
    assert [rule["status"] for rule in found] == ["PASS", "FAIL"]
    assert [rule["findings"][0]["n"] for rule in found] == [90, 90]


def _at_once(home: Path) -> np.ndarray:
    """The losses of all windows, measured by the ordinary suite."""
    from qbench.suite.device import find
    from qbench.suite.run import Cost, execute, plan
    from qbench.suite.schema import load

    model, data = str(home / "llama"), f"text:{home / 'text.txt'}"
    suite = load("deploy-lm", overrides=(("model", model), ("data", data), ("windows", "90")))
    planned = plan(suite, home / "once", find("cpu"), 1)
    wanted = next(cell for cell in planned.cells if cell.title == "loss, unquantized")
    for _ in execute(planned.only(wanted.id), Cost(), {}):
        pass
    with opened(home / "once") as source:
        done = source.run.cells[wanted.id]
        return source.run.evidence(done.records[0].samples)["loss"]


@pytest.mark.parametrize("absent", ["torch", "transformers"])
def test_a_missing_package_is_named_with_its_extra(
    home: Path, absent: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def version(name: str) -> str:
        if name == absent:
            raise PackageNotFoundError(name)
        return "1"

    monkeypatch.setattr(module, "version", version)
    assert gate(home, 1, home / "none") == 4
    assert capsys.readouterr().err == f"qbench: gate --model needs {absent}: pip install 'qbench-suite[run]'\n"


def test_a_model_that_is_not_there_is_a_mistake(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["gate", str(home / "policy.yaml"), "--model", str(home / "nowhere")]) == 2
    assert "no folder" in capsys.readouterr().err
