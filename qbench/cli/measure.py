"""`qbench gate --model`: the cells that a policy needs, run on a model before the gate; needs the run extra."""

import argparse
import sys
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path, PurePath

from qbench.cli.main import UsageError
from qbench.gate.cells import needed
from qbench.gate.policy import Policy
from qbench.results.record import Closing
from qbench.suite.cells import Cell
from qbench.suite.device import MissingExtra, find
from qbench.suite.run import Cost, execute, plan
from qbench.suite.schema import load


def measure(policy: Policy, options: argparse.Namespace) -> Path:
    """The run folder. A further look measures only the windows that it adds to what the folder already holds.

    Raises MissingExtra, which names the extra, where a package is not there; UsageError where no cell is needed.
    """
    _expect_packages()
    if not 1 <= options.look <= len(policy.windows):
        raise UsageError(f"--look {options.look}: the policy plans {len(policy.windows)} looks, at {policy.windows}")
    overrides = [("model", _quoted(options.model)), ("evaluate.windows", str(list(policy.windows)))]
    overrides += [("evaluate.look", str(options.look))] if options.look > 1 else []
    overrides += [("data", _quoted(options.data))] if options.data else []
    suite = load(policy.suite, overrides=tuple(overrides))
    out = Path(options.run or Path("results") / f"gate-{PurePath(options.model).name}")
    planned = plan(suite, out, find(options.device), 1)
    cells = tuple(cell for cell in planned.cells if needed(policy, _closing(cell)))
    if not cells:
        raise UsageError(f"suite {policy.suite} has no cell that a rule of {policy.name} is about")
    ids = {cell.id for cell in cells}
    planned = replace(planned, cells=cells, done=planned.done & ids, trust_remote_code=options.trust_remote_code)
    for step in execute(planned, Cost(), {"policy": policy.name}):
        if step.cell is not None:
            print(f"{step.cell.title}: {step.status} {step.error}".rstrip(), file=sys.stderr)
    return out


def _expect_packages() -> None:
    for name in ("torch", "transformers"):
        try:
            version(name)
        except PackageNotFoundError:
            raise MissingExtra(f"gate --model needs {name}: pip install 'qbench-suite[run]'") from None


def _closing(cell: Cell) -> Closing:
    return Closing(cell=cell.id, question=cell.question_id, status="measured", spec=cell.spec())


def _quoted(value: str) -> str:
    """As YAML text, whatever is in it."""
    escaped = value.replace("'", "''")
    return f"'{escaped}'"
