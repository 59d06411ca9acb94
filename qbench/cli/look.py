"""`qbench validate`, `ls`, `show` and `doctor`: look at things, change nothing."""

import argparse
import json
import os
import shutil
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryFile

from qbench.cli.main import ERROR, GOOD, UsageError
from qbench.results.record import Closing
from qbench.results.run import arm, part, read

Table = Iterable[Sequence[str]]


def validate(options: argparse.Namespace) -> int:
    """0 when the suite can be run as written; otherwise every mistake is printed and the exit code is 2."""
    from qbench.cli.run import load_suite
    from qbench.suite.plugins import install
    from qbench.suite.value import UNQUANTIZED

    install([Path(plugin) for plugin in options.plugin])
    suite = load_suite(options)
    treatments = sum(treatment.name != UNQUANTIZED for treatment in suite.treatments)
    stacks = f", {len(suite.stacks)} stacks of random layers" if suite.stacks else ""
    print(f"{options.suite}: good; {len(suite.arms)} models, {treatments} treatments{stacks}")
    return GOOD


def ls(options: argparse.Namespace) -> int:
    from qbench.suite.plugins import install

    install([Path(plugin) for plugin in options.plugin])
    if (options.what == "sites") != (options.model is not None):
        raise UsageError("a model goes with sites, as in qbench ls sites ./my-llama")
    _print_table(_sites(options.model) if options.model else LISTS[options.what]())
    return GOOD


def show(options: argparse.Namespace) -> int:
    """A cell's spec, how it ended, its numbers and the tail of its log; without a cell, one line for each."""
    run = read(options.folder)
    if options.cell is None:
        _print_table([_listed(attempt.closing) for attempt in run.cells.values()])
        return GOOD
    attempt = run.cell(options.cell)
    closing = attempt.closing
    print(f"cell {closing.cell}: {closing.status}, attempt {closing.attempt}, {closing.seconds:.2f} s")
    for label, lines in (("error", [closing.error]), ("warning", closing.warnings), ("log", closing.log)):
        for line in filter(None, lines):
            print(f"{label}: {line}")
    print(json.dumps(closing.spec, indent=2))
    _print_table(
        [
            (
                record.site or record.scope or "model",
                record.quantizer,
                "" if record.step is None else f"step {record.step}",
                name,
                f"{value:.6g}",
            )
            for record in attempt.records
            for name, value in record.values.items()
        ]
    )
    return GOOD


def _listed(closing: Closing) -> Sequence[str]:
    spec = closing.spec
    asked = part(spec, "measurement")
    what = [asked.get(name, "") for name in ("what", "kind", "quantizer")] + [part(asked, "treatment").get("name", "")]
    return closing.cell, closing.status, f"{arm(spec)}/{spec.get('seed')}", " ".join(filter(None, what))


def doctor(_options: argparse.Namespace) -> int:
    """What this machine can run; 4 where the main job could not run."""
    from qbench.suite.device import gpu_names

    wanted = {"torch": "run", "safetensors": "", "duckdb": "", "matplotlib": "figures"}
    of_run = ("pytorch-optimizer", "transformers", "torchao", "bitsandbytes", "lm-eval", "scikit-learn")
    wanted |= dict.fromkeys(of_run, "run")
    missing: list[str] = []
    for name, extra in wanted.items():
        try:
            print(f"ok       {name} {metadata.version(name)}")
        except metadata.PackageNotFoundError:
            missing.append(name)
            print(f"missing  {name}: pip install 'qbench-suite{f'[{extra}]' if extra else ''}'")
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    print(f"ok       {cores} cores; one worker with one thread each is fastest")
    print(f"ok       GPU {', '.join(gpu_names())}" if gpu_names() else "none     GPU; the main job needs none")
    free = shutil.disk_usage(Path.cwd()).free / 2**30
    print(f"{'ok      ' if free > 1 else 'low     '} {free:.0f} GB free here")
    writable = _writable(Path.cwd())
    print(f"{'ok      ' if writable else 'no      '} this folder can be written")
    compiler = shutil.which("c++") or shutil.which("g++")
    print(f"{'ok      ' if compiler else 'none    '} C++ compiler for compiled kernels")
    return ERROR if "torch" in missing or not writable or find_spec("duckdb") is None else GOOD


def _writable(folder: Path) -> bool:
    """Found out by writing: what permissions say, a read-only disk and the superuser do not obey."""
    try:
        with TemporaryFile(dir=folder):
            return True
    except OSError:
        return False


def _sites(model: str) -> Table:
    """Each place and each matrix of a model, by the names that a suite uses."""
    from qbench.capture.families import site_names
    from qbench.capture.sites import of
    from qbench.models.catalog import MODELS
    from qbench.models.folder import look

    if model in MODELS:
        names = of(MODELS[model].spec)
    else:
        folder = look(model)
        names = site_names(folder.config)
        if names is None:
            from qbench.suite.found import weight_names

            print(f"{folder.model_type} is no family that qbench knows: weights go by their names in the file,")
            print("activations by the names of the model's own modules")
            return [("weight", name) for name in weight_names(folder)]
    return [*(("activation", site) for site in names.sites), *(("weight", name) for name in names.weights)]


def _kernels() -> Table:
    from qbench.quant.kernels import KERNELS

    return [(name, row.weight, row.activation, row.meaning) for name, row in KERNELS.items()]


def _suites() -> Table:
    from qbench.suite.shipped import shipped

    return [(suite.name, suite.question) for suite in shipped()]


def _models() -> Table:
    from qbench.models.catalog import MODELS

    return [(name, row.description) for name, row in MODELS.items()]


def _quantizers() -> Table:
    from qbench.quant.catalog import QUANTIZERS
    from qbench.quant.table import facts, marked
    from qbench.stats.density import LAPLACE, NORMAL

    head = ("name", "bits/value", "SQNR dB Gauss", "Laplace", "what", "source")
    rows = [
        (
            name,
            f"{(found := facts(row)).bits:.3f}",
            marked(found.gauss_db, found, NORMAL),
            marked(found.laplace_db, found, LAPLACE),
            row.meaning,
            row.source,
        )
        for name, row in QUANTIZERS.items()
    ]
    return [head, *rows, ("", "", "", "", "of 1024 x 1024 values; ~ by simulation, all others by integration", "")]


def _metrics() -> Table:
    from qbench.metrics.catalog import METRICS

    return [(name, row.unit, row.role, row.meaning, row.source) for name, row in METRICS.items()]


def _data() -> Table:
    from qbench.data.catalog import SOURCES

    return [(name, row.meaning) for name, row in SOURCES.items()]


def _policies() -> Table:
    from qbench.gate.policy import load, shipped

    return [("policy", "suite", "what it promises")] + [
        (name, f"{found.suite} {found.suite_version}", found.note)
        for name, found in ((name, load(path)) for name, path in shipped().items())
    ]


LISTS: Mapping[str, Callable[[], Table]] = {
    "suites": _suites,
    "policies": _policies,
    "models": _models,
    "quantizers": _quantizers,
    "kernels": _kernels,
    "metrics": _metrics,
    "data": _data,
}


def _print_table(rows: Table) -> None:
    """Aligned columns; the last one is left as long as it is."""
    table = [tuple(row) for row in rows]
    if not table:
        return
    widths = [max(len(row[column]) for row in table) for column in range(len(table[0]) - 1)]
    for row in table:
        cells = [text.ljust(width) for text, width in zip(row, widths, strict=False)]
        sys.stdout.write("  ".join([*cells, row[-1]]).rstrip() + "\n")
