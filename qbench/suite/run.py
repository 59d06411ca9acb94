"""The main job: a suite in, records out. The parent process stores; workers measure; nothing here loads torch."""

from collections import Counter
from collections.abc import Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from qbench.names import UnknownName
from qbench.results import origin
from qbench.results.record import Attempt, Closing, Status
from qbench.results.run import NoRun, Run, read
from qbench.results.store import Store, settled
from qbench.suite import material, plugins, rates
from qbench.suite.cells import Cell, Environment
from qbench.suite.closing import answered, failed
from qbench.suite.device import Choice, Device, find, torch_version
from qbench.suite.engine import work
from qbench.suite.expand import expand, groups
from qbench.suite.found import data_digest, versions
from qbench.suite.found import find as find_models
from qbench.suite.schema import Suite, load


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What a run would do: all cells, those still to be answered, and where.

    `undecided` are the arms whose learning rate is still to be chosen: their cells are known when its trials are over,
    and stand here with a rate that is not meant. `narrowed` is a plan of which only a few cells are wanted.
    """

    suite: Suite
    out: Path
    device: Device
    workers: int
    cells: tuple[Cell, ...]
    done: frozenset[str]
    undecided: tuple[str, ...] = ()
    plugin_files: tuple[Path, ...] = ()
    trust_remote_code: bool = False
    narrowed: bool = False

    @property
    def groups(self) -> list[tuple[Cell, ...]]:
        """Model groups that still have something to answer; each goes to one worker."""
        return [group for group in groups(self.cells) if any(cell.id not in self.done for cell in group)]

    @property
    def trials(self) -> tuple[Cell, ...]:
        """What has to be answered before the other cells are known; none where they are."""
        return tuple(cell for cell in self.cells if self.undecided and cell.measurement.what == "trial")

    @property
    def todo(self) -> int:
        return len(self.cells) - len(self.done)

    @property
    def data_digest(self) -> str:
        return next((cell.data_digest for cell in self.cells if cell.data_digest), "")

    def only(self, start: str) -> "Plan":
        """The same plan with all cells done but those whose id starts with `start`; UnknownName where none does."""
        wanted = {cell.id for cell in self.trials or self.cells if cell.id.startswith(start)}
        if not wanted:
            first = "; trials of learning rates come first" if self.undecided else ""
            raise UnknownName(f"no cell starts with {start!r}; qbench run --dry-run lists them{first}")
        done = self.done | ({cell.id for cell in self.cells} - wanted)
        return replace(self, done=done, narrowed=True)


@dataclass(slots=True)
class Cost:
    """What a run took; kept in the manifest."""

    cpu_seconds: float = 0.0
    training_cpu_seconds: float = 0.0
    startup_cpu_seconds: float = 0.0
    peak_rss: int = 0
    trained: int = 0
    from_cache: int = 0
    models: dict[str, str] = field(default_factory=dict[str, str])  # "arm/seed" -> digest of the trained weights

    @property
    def measuring_cpu_seconds(self) -> float:
        return self.cpu_seconds - self.training_cpu_seconds - self.startup_cpu_seconds

    def add(self, other: "Cost") -> None:
        """Take in what another stage of the same run took."""
        self.cpu_seconds += other.cpu_seconds
        self.training_cpu_seconds += other.training_cpu_seconds
        self.startup_cpu_seconds += other.startup_cpu_seconds
        self.peak_rss = max(self.peak_rss, other.peak_rss)
        self.trained += other.trained
        self.from_cache += other.from_cache
        self.models |= other.models

    def shares(self) -> dict[str, float]:
        names = ("training_cpu_seconds", "measuring_cpu_seconds", "startup_cpu_seconds")
        seconds = {name: round(float(getattr(self, name)), 2) for name in names}
        return {**seconds, "models_trained": self.trained, "peak_rss_bytes": self.peak_rss}


@dataclass(frozen=True, slots=True)
class Step:
    """One thing that happened: training progress (`share` of a model group), or a cell that ended."""

    group: str
    share: float = 0.0
    cell: Cell | None = None
    status: Status | None = None
    error: str = ""
    warnings: tuple[str, ...] = ()


def group_name(cell: Cell) -> str:
    """What the group of a cell is called: its arm and seed, and the learning rate that is tried."""
    rate = f" at {(cell.training or {})['lr']:g}" if cell.measurement.what == "trial" else ""
    return f"{cell.arm}/{cell.seed}{rate}"


def plan(suite: Suite, out: Path, device: Device, workers: int, plugin_files: Sequence[Path] = ()) -> Plan:
    """Expand `suite` and look up what `out` already holds; reads files, writes nothing.

    Raises BadData where the models cannot read the data, or more of it is asked for than there is: better now than
    after the training.
    """
    environment = Environment(
        data_digest=data_digest(suite.data) if suite.pretrained else material.digest(suite),
        torch_version=torch_version(),
        device=device.cls,
        plugins_digest=plugins.digest(plugin_files),
        libraries=versions(),
    )
    if suite.pretrained:
        environment = _with_models(environment, suite)
    cells = tuple(expand(suite, environment))
    if any(arm.rates for arm in suite.arms):
        environment = replace(environment, rates=rates.chosen(suite.arms, cells, _answered(out)))
        cells = tuple(expand(suite, environment))
    return Plan(
        suite=suite,
        out=out,
        device=device,
        workers=workers,
        cells=cells,
        done=_over(cells, settled(out)),
        undecided=rates.undecided(suite.arms, environment.rates),
        plugin_files=tuple(plugin_files),
    )


def _over(cells: Iterable[Cell], known: Mapping[str, Status]) -> frozenset[str]:
    """Cells that need no further attempt: what this kind of machine cannot do, it cannot do the next time."""
    return frozenset(cell.id for cell in cells if known.get(cell.id) in ("measured", "unsupported"))


def _answered(out: Path) -> Mapping[str, Attempt]:
    """The trials that a folder holds, by cell, and how other cells ended; nothing where there is no run yet."""
    try:
        return read(out, only={"trial"}).cells
    except NoRun:
        return {}


def _with_models(environment: Environment, suite: Suite) -> Environment:
    """With the models from elsewhere, and what else they are measured with."""
    include = suite.tasks.include if suite.tasks else ""
    return replace(
        environment,
        found=find_models(suite),
        calibration_digest=data_digest(suite.calibration.data) if suite.calibration else "",
        tasks_digest=data_digest(f"text:{include}") if include else "",
    )


def execute(plan: Plan, cost: Cost, options: Mapping[str, Any]) -> Generator[Step, None, None]:
    """Answer what is still open, storing each cell as it comes; `cost` is filled on the way.

    Where learning rates are to be chosen, their trials come first, then the cells that are known by then. Raises
    FolderInUse and CannotWrite; what was stored before stays.
    """
    if plan.undecided:
        tried = {cell.id for cell in plan.trials}
        waiting = frozenset(cell.id for cell in plan.cells if cell.id not in tried)
        yield from _execute(replace(plan, done=plan.done | waiting), cost, options)
        if plan.narrowed:
            return
        plan = _decided(plan)
    yield from _execute(plan, cost, options)


def _decided(before: Plan) -> Plan:
    """The same plan with the rates that its folder knows by now; arms that have none, of failed trials, stay open."""
    again = plan(before.suite, before.out, before.device, before.workers, before.plugin_files)
    waiting = frozenset(cell.id for cell in again.cells if cell.arm in again.undecided)
    return replace(again, done=again.done | waiting, trust_remote_code=before.trust_remote_code)


def _execute(plan: Plan, cost: Cost, options: Mapping[str, Any]) -> Generator[Step, None, None]:
    with Store.open(plan.out) as store:
        if store.repaired:
            yield Step("", warnings=(store.repaired,))
        plan = replace(plan, done=plan.done | _over(plan.cells, store.settled))  # another run may have been faster
        began, own = origin.begin(plan.out, _asked(plan, options)), Cost()  # a session has its own cost, not the run's
        try:
            yield from _answers(plan, store, own)
        finally:
            cost.add(own)
            states = Counter(store.settled.get(cell.id, "open") for cell in plan.cells)
            origin.finish(plan.out, began, states, models=own.models, cost=own.shares())


def _asked(plan: Plan, options: Mapping[str, Any]) -> origin.Asked:
    suite = plan.suite
    return origin.Asked(
        suite=suite.text,
        cells=[cell.id for cell in plan.cells],
        options=options,
        seeds=sorted({cell.seed for cell in plan.cells if cell.training or cell.pretrained or cell.stack}),
        data={suite.data_name: plan.data_digest} if suite.arms else {},
        device=plan.device.cls,
        gpus=[plan.device.cls.partition(":")[2]] if plan.device.kind == "cuda" else [],
    )


def _answers(plan: Plan, store: Store, cost: Cost) -> Generator[Step, None, None]:
    open_groups = plan.groups
    names = [group_name(group[0]) for group in open_groups]
    pending = [{cell.id: cell for cell in group if cell.id not in plan.done} for group in open_groups]
    tasks = [_task(plan, group, wanted) for group, wanted in zip(open_groups, pending, strict=True)]
    messages = work(tasks, plan.device.slots(plan.workers))
    try:
        for message in messages:
            name, wanted = names[message.task], pending[message.task]
            if message.event == "progress":
                yield Step(name, message.body["done"] / message.body["of"])
            elif message.event == "prepared":
                _note_model(cost, name, message.body)
            elif message.event == "cell":
                cell = wanted.pop(message.body["cell"])
                yield _step(answered(store, plan.out, cell, message), cell)
            else:
                cost.cpu_seconds += message.body.get("cpu_seconds", 0.0)
                cost.startup_cpu_seconds += message.body.get("startup_cpu_seconds", 0.0)
                cost.peak_rss = max(cost.peak_rss, message.body.get("peak_rss", 0))
                reason = message.body.get("reason", "the worker ended without answering this cell")
                for cell in wanted.values():
                    yield _step(failed(store, cell, reason, message.log), cell)
    finally:
        messages.close()


def _task(plan: Plan, group: Iterable[Cell], wanted: Mapping[str, Cell]) -> dict[str, Any]:
    return {
        "device": plan.device.kind,
        "plugins": [str(path.resolve()) for path in plan.plugin_files],
        "trust_remote_code": plan.trust_remote_code,
        "cells": [cell.to_json() for cell in group],
        "wanted": list(wanted),
    }


def _step(closing: Closing, cell: Cell) -> Step:
    return Step(group_name(cell), cell=cell, status=closing.status, error=closing.error, warnings=closing.warnings)


def _note_model(cost: Cost, name: str, body: Mapping[str, Any]) -> None:
    cost.models[name] = body["digest"]
    cost.training_cpu_seconds += body["cpu_seconds"]
    cost.from_cache += bool(body["cached"])
    cost.trained += not body["cached"]


def run(
    suite: str | Path, *, out: str | Path | None = None, workers: int = 1, device: Choice = "auto", profile: str = ""
) -> Run:
    """Answer a suite (a file, or the name of a shipped one) and return what its folder then holds.

    Cells that are already there are not run again; cells that fail are in `.failed`. Raises BadSuite, MissingExtra,
    NoDevice, FolderInUse, CannotWrite.
    """
    loaded = load(suite, profile=profile or None)
    folder = Path(out or Path("results") / loaded.name)
    planned = plan(loaded, folder, find(device), workers)
    if planned.todo:
        for _ in execute(planned, Cost(), {"workers": workers}):
            pass
    return read(folder)
