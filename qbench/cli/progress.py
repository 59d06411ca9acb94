"""Progress of a run: how much is done, how long it will take, and what went wrong."""

import sys
from collections import Counter
from collections.abc import Iterable
from time import perf_counter
from typing import TYPE_CHECKING, Protocol

from qbench.suite.cells import WATCHING, Cell
from qbench.suite.run import Plan, Step, group_name

if TYPE_CHECKING:
    from rich.progress import TaskID

# CPU seconds of one cell of the quick configuration (QUICK), by what it measures: for the estimate and the time left.
SECONDS = {
    "training": 16.0,
    "trial": 16.0,
    "shape": 0.5,
    "error": 0.15,
    "loss": 0.25,
    "noise": 2.0,
    "adds": 0.5,
    "flow": 0.8,
}
QUICK_STEPS, QUICK_BATCH, QUICK_SIZE = 500, 8, 12 * 6 * 64**2 * 64
# Forward passes of a model from elsewhere that one cell takes, and what a core does in a second.
FORWARDS = {
    "shape": 3.0,
    "error": 0.5,
    "outliers": 2.0,
    "loss": 1.2,
    "kernel": 8.0,
    "sensitivity": 20.0,
    "task": 10.0,
    "noise": 40.0,
    "adds": 2.0,
    "flow": 8.0,
}
FLOPS = 2e10


def weight(cell: Cell) -> float:
    """About how many CPU seconds a cell takes."""
    if cell.pretrained:
        asked = cell.measurement
        tokens = asked.windows * int(asked.passage.get("context", 256))
        return 0.05 + FORWARDS.get(asked.what, 0.0) * 2 * cell.model["parameters"] * tokens / FLOPS
    if cell.training is None:
        return 0.1
    spec, training = cell.model_spec(), cell.training_spec()
    size = 12 * spec.layers * spec.width**2 * spec.context / QUICK_SIZE
    training_share = training.steps * training.batch / (QUICK_STEPS * QUICK_BATCH)
    share = training_share if cell.measurement.what in WATCHING else 1.0
    # Small models cost more than their size says: much of the time is calls, not arithmetic.
    return SECONDS[cell.measurement.what] * share * max(0.3, size) ** 0.8


class Display(Protocol):
    """Shows the steps of a run as they happen."""

    def __enter__(self) -> "Display": ...
    def __exit__(self, *_: object) -> None: ...
    def show(self, step: Step) -> None: ...


class Silent:
    """Shows failures only."""

    def __init__(self) -> None:
        self._said: set[tuple[str, str]] = set()

    def __enter__(self) -> "Silent":
        return self

    def __exit__(self, *_: object) -> None:
        return

    def show(self, step: Step) -> None:
        if step.status == "failed" and step.cell and (step.group, step.error) not in self._said:
            self._said.add((step.group, step.error))  # what fails a whole model group is said once
            print(f"failed: {step.group}, {step.cell.title} ({step.cell.id}): {step.error}", file=sys.stderr)


class Work:
    """How much of a run is done, in the units of `weight`, and from that the time left."""

    def __init__(self, cells: Iterable[Cell]) -> None:
        self.weights = {cell.id: weight(cell) for cell in cells}
        self.training = {group_name(c): weight(c) for c in cells if c.measurement.what in WATCHING}
        self.total = sum(self.weights.values())
        self.start = perf_counter()
        self._done = 0.0
        self._shares: dict[str, float] = {}

    def note(self, step: Step) -> None:
        if step.cell:
            self._done += weight(step.cell)
            if step.cell.measurement.what in WATCHING:
                self._shares.pop(step.group, None)
        elif step.group in self.training:
            self._shares[step.group] = step.share * self.training[step.group]

    @property
    def share(self) -> float:
        return min(1.0, (self._done + sum(self._shares.values())) / self.total) if self.total else 1.0

    @property
    def left(self) -> str:
        """Time left, extrapolated from the work done so far."""
        if self.share < 0.02:
            return "time left unknown yet"
        seconds = (perf_counter() - self.start) * (1 - self.share) / self.share
        return f"{int(seconds // 60)}:{int(seconds % 60):02d} left"


class Lines(Silent):
    """Plain lines for logs: what there is to do, each failure once, each warning, and how far it is.

    How far it is stands there when a step comes ten seconds or later after the last time.
    """

    EVERY = 10.0

    def __init__(self, planned: Plan) -> None:
        super().__init__()
        open_cells = [cell for cell in planned.cells if cell.id not in planned.done]
        self._work = Work(open_cells)
        self._cells, self._of, self._last = 0, len(open_cells), perf_counter()
        print(
            f"{planned.out}: {self._of} of {len(planned.cells)} cells to run on {planned.workers} workers",
            file=sys.stderr,
        )

    def show(self, step: Step) -> None:
        self._work.note(step)
        self._cells += step.cell is not None
        super().show(step)
        for warning in step.warnings:
            print(f"{step.group}: {warning}".removeprefix(": "), file=sys.stderr)
        now = perf_counter()
        if now - self._last > self.EVERY:
            self._last = now
            done = f"{self._cells} of {self._of} cells"
            print(f"{self._work.share:4.0%}  {done}, {self._work.left}", file=sys.stderr, flush=True)


class Bar:
    """A live bar for the whole, with the time left, and one for each model that is under way: what is over goes."""

    def __init__(self, planned: Plan) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn

        open_cells = [cell for cell in planned.cells if cell.id not in planned.done]
        self._work, self._cells, self._of = Work(open_cells), 0, len(open_cells)
        # Without markup: names and errors may hold brackets.
        description = TextColumn("{task.description}", markup=False)
        columns = (description, BarColumn(), TextColumn("{task.fields[note]}", markup=False))
        self._progress = Progress(*columns, console=Console(stderr=True))
        self._all = self._progress.add_task(planned.suite.name, total=1.0, note="")
        self._models: dict[str, TaskID] = {}
        self._open = Counter(map(group_name, open_cells))

    def __enter__(self) -> "Bar":
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def show(self, step: Step) -> None:
        self._work.note(step)
        self._cells += step.cell is not None
        if step.status == "failed" and step.cell:
            self._say(f"failed: {step.group}, {step.cell.title}: {step.error}", "red")
        for warning in step.warnings:
            self._say(f"{step.group}: {warning}".removeprefix(": "), "yellow")
        if step.group and not step.cell:
            self._train(step)
        elif step.cell:
            self._answered(step.group)
        note = f"{self._cells} of {self._of} cells, {self._work.left}"
        self._progress.update(self._all, completed=self._work.share, note=note)

    def _say(self, text: str, style: str) -> None:
        self._progress.console.print(text, style=style, markup=False, highlight=False)

    def _answered(self, group: str) -> None:
        self._open[group] -= 1
        if group not in self._models:
            return
        if self._open[group] > 0:
            self._progress.update(self._models[group], completed=1.0, note="measuring")
        else:
            self._progress.remove_task(self._models.pop(group))

    def _train(self, step: Step) -> None:
        if step.group not in self._models:
            self._models[step.group] = self._progress.add_task(f"  {step.group}", total=1.0, note="")
        task = self._models[step.group]
        self._progress.update(task, completed=step.share, note=f"training {step.share:.0%}", visible=True)
