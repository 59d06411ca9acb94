"""`qbench run`: a suite in, records and a page out, with progress and the time left."""

import argparse
import os
import sys
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import replace
from pathlib import Path
from time import perf_counter

from qbench.cli.main import ERROR, GOOD, UsageError
from qbench.cli.progress import Bar, Display, Lines, Silent, weight
from qbench.results.run import Run
from qbench.suite.cells import Cell
from qbench.suite.device import Device, find
from qbench.suite.plugins import install
from qbench.suite.run import Cost, Plan, execute, plan
from qbench.suite.schema import Suite, load

AFTER = "(after its trials)"  # where a dry run has no id to print


def run(options: argparse.Namespace) -> int:
    """Answer the suite's open cells; 0 when all are measured, 4 when any failed."""
    plugins = [Path(plugin) for plugin in options.plugin]
    install(plugins)
    suite = load_suite(options)
    device = find(options.device)
    out = Path(options.out or Path("results") / suite.name)
    planned = plan(suite, out, device, _workers(options, device), plugins)
    planned = replace(planned, trust_remote_code=options.trust_remote_code)
    if options.only:
        planned = planned.only(options.only)
    if options.dry_run:
        return _dry_run(planned)
    if not planned.todo:
        which = f"cells that start with {options.only}" if options.only else f"{len(planned.cells)} cells"
        print(f"{out}: all {which} are there; nothing to run")
        _say_again(out)
        return GOOD
    return _carry_out(planned, options)


def load_suite(options: argparse.Namespace) -> Suite:
    overrides: list[tuple[str, str]] = []
    for text in options.overrides:
        key, equals, value = text.partition("=")
        if not equals:
            raise UsageError(f"--set {text}: expected KEY=VALUE, as in --set seeds=[0]")
        overrides.append((key, value))
    return load(options.suite, overrides=tuple(overrides), profile=options.profile)


def _workers(options: argparse.Namespace, device: Device) -> int:
    if options.workers is not None and options.workers < 1:
        raise UsageError(f"--workers {options.workers}: expected at least 1")
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return options.workers or (cores if device.kind == "cpu" else device.count)


def _carry_out(planned: Plan, options: argparse.Namespace) -> int:
    from qbench.report import answer
    from qbench.report.page import build
    from qbench.results.run import read

    quiet = options.quiet
    display: Display = Silent() if quiet else Bar(planned) if sys.stderr.isatty() else Lines(planned)
    kept = {
        k: v for k, v in vars(options).items() if k in ("suite", "overrides", "profile", "device", "only", "plugin")
    }
    cost, start, states = Cost(), perf_counter(), Counter[str]()
    answered: list[str] = []
    with display:
        for step in execute(planned, cost, kept | {"workers": planned.workers}):
            states.update([step.status] if step.status else [])
            answered += [step.cell.id] if step.cell else []
            display.show(step)
    current = read(planned.out).current
    page = build(current, planned.out / "report.html")
    if not quiet:
        _summary(planned, cost, perf_counter() - start, states)
        print_speed(current, answered)
        print("\n".join(answer.lines(current) or [f"page: {page}"]))
    return ERROR if states["failed"] else GOOD


def _say_again(out: Path) -> None:
    """The answer of a probe that is there already."""
    from qbench.report import answer
    from qbench.results.run import read

    for line in answer.lines(read(out).current):
        print(line)


def _summary(planned: Plan, cost: Cost, wall: float, states: Counter[str]) -> None:
    failed = f", {states['failed']} FAILED (qbench show {planned.out} CELL says why)" if states["failed"] else ""
    cannot = (
        f", {states['unsupported']} that this machine or model has no way to answer" if states["unsupported"] else ""
    )
    print(f"{planned.out}: {states['measured']} cells measured{cannot}{failed}")
    print(
        f"cost: {wall:.0f} s wall on {planned.workers} workers, {cost.cpu_seconds:.0f} CPU seconds "
        f"({cost.training_cpu_seconds:.0f} training {cost.trained} models, {cost.measuring_cpu_seconds:.0f} measuring, "
        f"{cost.startup_cpu_seconds:.0f} starting), peak memory {cost.peak_rss / 2**20:.0f} MB per worker"
    )
    budget = planned.suite.budget.cpu_seconds
    if budget and cost.cpu_seconds > budget:
        print(f"over budget: the suite allows {budget:.0f} CPU seconds")


def print_speed(current: Run, answered: Sequence[str]) -> None:
    """How fast the models of this run were trained, whenever that was."""
    found = [record for cell in answered if cell in current.cells for record in current.cells[cell].records]
    from qbench.report import speed

    line = speed.told([record.values for record in found])
    if line:
        print(f"training speed of a model: {line}")


def _dry_run(planned: Plan) -> int:
    """What would be run. Cells of an arm whose learning rate is not chosen have no id before it is."""
    open_cells = [cell for cell in planned.cells if cell.id not in planned.done]
    for cell in open_cells:
        waits = cell.arm in planned.undecided and cell.measurement.what != "trial"
        print(f"{AFTER if waits else cell.id}  {cell.arm}/{cell.seed}  {cell.title}")
    tried = {(arm.name, arm.seeds[0]) for arm in planned.suite.arms if arm.rates}
    seconds = sum(weight(cell) for cell in open_cells if not _cached(cell, tried))
    models = sum(group[0].training is not None and not _cached(group[0], tried) for group in planned.groups)
    print(
        f"{len(planned.cells)} cells, {len(open_cells)} to run; {models} models; about {seconds:.0f} CPU seconds, "
        f"{seconds / planned.workers / 60:.1f} minutes on {planned.workers} workers"
    )
    return GOOD


def _cached(cell: Cell, tried: Collection[tuple[str, int]]) -> bool:
    """Whether a training is one of the trials of its arm, from which its model is taken."""
    return cell.measurement.what == "training" and (cell.arm, cell.seed) in tried
