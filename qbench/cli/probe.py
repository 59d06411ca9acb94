"""`qbench probe`, `compare` and `reference`: what can this model be shipped in, and what does it cost?"""

import argparse
from collections.abc import Mapping
from pathlib import Path, PurePath

from qbench.cli.main import GOOD, UsageError
from qbench.cli.run import run
from qbench.models.fetch import fetch
from qbench.models.folder import look

# The shipped suite that asks what a release engineer asks, by what a model is for.
SUITES: Mapping[str, str] = {
    "causal-lm": "deploy-lm",
    "masked-lm": "deploy-lm",
    "image-classification": "deploy-vision",
}


def probe(options: argparse.Namespace) -> int:
    """Run the suite for models of this kind, or for weights alone, and write its page."""
    folder = look(fetch(options.model, options.revision).path)
    options.suite = "weights" if options.weights_only else SUITES[folder.task or "causal-lm"]
    given = {"model": options.model, "data": options.data, "revision": options.revision}
    return _run(options, given, f"probe-{PurePath(options.model).name}")


def compare(options: argparse.Namespace) -> int:
    """A model against its base, or against a saved reference of it."""
    saved = Path(options.base).is_file()
    options.suite = "compare-saved" if saved else "compare"
    if saved and options.data:
        raise UsageError("a saved reference has its own texts; --data goes with two models")
    if not saved and not options.data and look(fetch(options.base).path).task == "image-classification":
        options.data = "digits"
    given = {"base": options.base, "candidate": options.candidate, "data": options.data}
    return _run(options, given, f"compare-{PurePath(options.candidate).name}")


def reference(options: argparse.Namespace) -> int:
    """Save what candidates are compared with, so that only one model has to be in memory."""
    from qbench.suite.reference import save

    if options.windows < 1:
        raise UsageError(f"--windows {options.windows}: expected at least 1")
    out = Path(options.out or f"{PurePath(options.model).name}.reference.safetensors")
    saved = save(options.model, options.data, out, windows=options.windows, trust=options.trust_remote_code)
    print(f"{out}: {saved}")
    return GOOD


def _run(options: argparse.Namespace, given: Mapping[str, str | None], name: str) -> int:
    """Run the suite with what was given on the command line laid over it; an own --set goes last."""
    options.overrides = [f"{key}={_quoted(value)}" for key, value in given.items() if value] + options.overrides
    options.out = options.out or str(Path("results") / name)
    return run(options)


def _quoted(value: str) -> str:
    """As YAML text, whatever is in it."""
    escaped = value.replace("'", "''")
    return f"'{escaped}'"
