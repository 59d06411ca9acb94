"""What else a suite asked of a model: tasks of the lm-evaluation-harness, optimizers with few bits of state."""

from qbench.metrics.catalog import METRICS
from qbench.report.tables import NONE, Table
from qbench.report.verdict import megabytes
from qbench.report.view import View
from qbench.report.words import fixed, number

STATE_BITS = ("bits_per_value/state",)


def tasks(seen: View) -> Table | None:
    """Every number of every task, with its interval over documents; None where there are no tasks.

    The error rate is one of the others under a name for all tasks, so it is left out.
    """
    found = [(row, name) for row in seen.select("task") for name in row.values if METRICS[name].role == "cost"]
    rows = [(row, name) for row, name in found if name != "error_rate"]
    if not rows:
        return None
    several = len({row.arm for row, _ in rows}) > 1
    return Table(
        caption="Tasks of the lm-evaluation-harness: costs, lower is better",
        columns=("task", "measure", "value", "95 % interval", "documents"),
        rows=tuple(
            (
                f"{row.arm}: {row.site}" if several else row.site,
                METRICS[name].meaning,
                number(row.values[name]),
                " to ".join(number(end) for end in row.intervals.get(name, ())) or NONE,
                fixed(row.n, 0),
            )
            for row, name in rows
        ),
        words=(1,),
    )


def optimizers(seen: View) -> Table | None:
    """Low-bit state beside the same rule with full state; None where none was tried."""
    rows = seen.select("optimizer")
    if not rows:
        return None
    return Table(
        caption="Optimizers with few bits of state, after a few steps",
        columns=("optimizer", "bits a number of state", "state", "loss, beyond full state's"),
        rows=tuple(
            (
                row.quantizer,
                next((number(row.values[name]) for name in STATE_BITS if name in row.values), NONE),
                megabytes(row.values["bytes/state"]) if "bytes/state" in row.values else NONE,
                number(row.values["loss_increase"], 2) if "loss_increase" in row.values else NONE,
            )
            for row in rows
        ),
    )
