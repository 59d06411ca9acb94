"""`qbench gate --model`: the cells that a policy needs, run on a model before the gate; needs the run extra."""

import argparse
import sys
from dataclasses import replace
from pathlib import Path, PurePath

from qbench.cli.main import UsageError
from qbench.gate.cells import needed
from qbench.gate.policy import Policy
from qbench.results.record import Closing
from qbench.suite.cells import Cell
from qbench.suite.device import find
from qbench.suite.run import Cost, execute, plan
from qbench.suite.schema import load


def measure(policy: Policy, options: argparse.Namespace) -> Path:
    """The run folder. The windows are those of the look: measured ones of the same look are not measured again.

    Raises MissingExtra, which names the extra, where there is no torch; UsageError where no cell is needed.
    """
    if not 1 <= options.look <= len(policy.windows):
        raise UsageError(f"--look {options.look}: the policy plans {len(policy.windows)} looks, at {policy.windows}")
    overrides = [("model", _quoted(options.model)), ("windows", str(policy.windows[options.look - 1]))]
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


def _closing(cell: Cell) -> Closing:
    return Closing(cell=cell.id, question=cell.question_id, status="measured", spec=cell.spec())


def _quoted(value: str) -> str:
    """As YAML text, whatever is in it."""
    escaped = value.replace("'", "''")
    return f"'{escaped}'"
