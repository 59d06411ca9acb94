"""The `qbench` command: which arguments there are, and what exit code an error becomes."""

import argparse
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from typing import NoReturn

GOOD, NO, USAGE, INCONCLUSIVE, ERROR = range(5)
INTERRUPTED = 130  # as a shell reports a process that Ctrl-C ended

# Errors by the module and name of their class, so that nothing is imported to print a message.
EXIT_CODES = {
    "BadSuite": USAGE,
    "BadPolicy": USAGE,
    "NotAccepted": NO,
    "UnknownName": USAGE,
    "QuantizerName": USAGE,
    "BadPlugin": USAGE,
    "UsageError": USAGE,
    "BadTable": USAGE,
    "NoSuchCell": USAGE,
    "NoCost": USAGE,
    "NoRun": ERROR,
    "NothingToCompare": ERROR,
    "BadData": ERROR,
    "BadModel": ERROR,
    "BadReference": ERROR,
    "MissingPackage": ERROR,
    "MissingExtra": ERROR,
    "NoDevice": ERROR,
    "FolderInUse": ERROR,
    "CannotWrite": ERROR,
    "BadRecords": ERROR,
    "BadManifest": ERROR,
    "BadPack": ERROR,
    "BadLock": ERROR,
    "BadEvidence": ERROR,
    "BadSamples": ERROR,
    "NotOurs": ERROR,
    "OSError": ERROR,  # a file that cannot be read or written
}


class UsageError(Exception):
    """The command line asks for something that does not fit together."""


class Parser(argparse.ArgumentParser):
    """Prints what was wrong and how to see the options; exits with 2."""

    def error(self, message: str) -> NoReturn:
        self.exit(USAGE, f"qbench: {message}\n  try: {self.prog} --help\n")


Command = argparse.ArgumentParser
Commands = Mapping[str, tuple[str, str, Callable[[Command], None]]]


def _suite(command: Command) -> None:
    command.add_argument("suite", help="a suite file, or the name of a shipped one (qbench ls suites)")
    command.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        dest="overrides",
        help="override a key or a param, as in --set steps=50",
    )
    command.add_argument("--profile", metavar="NAME", help="one of the suite's profiles")
    _plugin(command)


def _plugin(command: Command) -> None:
    command.add_argument(
        "--plugin",
        action="append",
        default=[],
        metavar="FILE.py",
        help="quantizers, models or data of your own",
    )


def _run(command: Command) -> None:
    _suite(command)
    _running(command)


def _running(command: Command) -> None:
    command.add_argument("--out", metavar="DIR", help="where records go (default: results/<suite>)")
    command.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    command.add_argument("--workers", type=int, metavar="N", help="model groups at once (default: one per core or GPU)")
    command.add_argument("--only", metavar="CELL", help="answer only the cells whose id starts with CELL")
    command.add_argument("--dry-run", action="store_true", help="print cells, models and an estimate; train nothing")
    command.add_argument("--quiet", action="store_true", help="print errors only")
    _trust(command)


def _probe(command: Command) -> None:
    command.add_argument("model", help="a model's folder, or its name on the hub")
    command.add_argument("--revision", metavar="COMMIT", help="of a model on the hub")
    command.add_argument("--weights-only", action="store_true", help="stream the weights; never load the model")
    _judged(command)


def _compare(command: Command) -> None:
    command.add_argument(
        "base", help="a run folder or pack; or the model before it was quantized, or a saved reference"
    )
    command.add_argument("candidate", help="a run folder or pack; or the model as somebody quantized it")
    command.add_argument(
        "--metric", action="append", default=[], metavar="NAME", help="runs: what to compare (default: the main costs)"
    )
    command.add_argument(
        "--arm", action="append", default=[], metavar="A=B", help="runs: models that belong together (default: by name)"
    )
    command.add_argument("--format", choices=("text", "json", "md", "html"), help="runs: how (default: text)")
    command.add_argument(
        "--minimum", type=int, metavar="N", help="runs: fewest windows that conclude anything (default: 64)"
    )
    _judged(command)


def _judged(command: Command) -> None:
    command.add_argument("--data", metavar="DATA", help="what it is judged on, such as text:val.txt (qbench ls data)")
    command.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", dest="overrides", help="override a key of the suite"
    )
    command.add_argument("--profile", metavar="NAME", help="one of the suite's profiles")
    _plugin(command)
    _running(command)


def _reference(command: Command) -> None:
    command.add_argument("action", choices=("save",))
    command.add_argument("model", help="a model's folder")
    command.add_argument("--data", metavar="DATA", default="stdlib", help="what it is judged on (default: %(default)s)")
    command.add_argument("--windows", type=int, default=64, metavar="N", help="of text (default: %(default)s)")
    command.add_argument("--out", metavar="FILE", help="where it goes (default: <model>.reference.safetensors)")
    _trust(command)


def _trust(command: Command) -> None:
    command.add_argument(
        "--trust-remote-code", action="store_true", help="run the code that a model brings; only of those you trust"
    )


WHAT = ("suites", "policies", "models", "quantizers", "kernels", "metrics", "data", "sites")


def _ls(command: Command) -> None:
    command.add_argument("what", choices=WHAT)
    command.add_argument("model", nargs="?", help="sites: a model's folder, or the name of an architecture of ours")
    _plugin(command)


def _report(command: Command) -> None:
    command.add_argument("folder", help="a run folder")
    command.add_argument("--out", metavar="FILE", help="where the page goes (default: <folder>/report.html)")
    command.add_argument("--figures", action="store_true", help="also write the charts as SVG and PNG (matplotlib)")


def _export(command: Command) -> None:
    command.add_argument("folder", help="a run folder")
    formats = ("csv", "parquet", "jsonl", "latex", "every-eval-ever", "model-card")
    command.add_argument("--format", choices=formats, default="csv")
    command.add_argument("--organization", help="every-eval-ever: who measured (default: unknown)")
    command.add_argument(
        "--relationship",
        choices=("first_party", "third_party", "collaborative", "other"),
        help="every-eval-ever: what that organization is to the model (default: other)",
    )
    command.add_argument(
        "--out", metavar="FILE", help="where the table goes (default: standard output, parquet into the folder)"
    )
    command.add_argument("--rows", help="latex: the column whose values become rows (default: model)")
    command.add_argument("--cols", help="latex: the column whose values become columns (default: quantizer)")
    command.add_argument("--metric", help="latex: the number in the cells (default: loss_increase)")
    command.add_argument(
        "--where",
        action="append",
        default=[],
        metavar="COLUMN=VALUE",
        help="latex: keep only lines of the table that have this value",
    )


def _import(command: Command) -> None:
    command.add_argument(
        "files", nargs="+", metavar="FILE", help="results_*.json of lm_eval, or samples of any runtime (*.jsonl)"
    )
    command.add_argument("--out", metavar="DIR", required=True, help="the run folder that they are added to")


def _show(command: Command) -> None:
    command.add_argument("folder", help="a run folder")
    command.add_argument("cell", nargs="?", help="a cell id, or the beginning of one (default: list the cells)")


def _demo(command: Command) -> None:
    command.add_argument(
        "--out", metavar="DIR", default="qbench-demo", help="where the page goes (default: %(default)s)"
    )


def _leaderboard(command: Command) -> None:
    command.add_argument("action", choices=("build", "check"))
    command.add_argument("folders", nargs="+", metavar="DIR", help="a run with a submission.yaml, or a folder of them")
    command.add_argument("--out", metavar="SITE", help="build: the folder of the site")
    command.add_argument("--format", choices=("text", "markdown"), default="text", help="check: for a pull request")


def _reproduce(command: Command) -> None:
    command.add_argument("folder", help="a submission: a run folder with a submission.yaml")
    command.add_argument("--sample", default="5%", metavar="SHARE", help="of its losses (default: 5%%)")
    command.add_argument("--by", required=True, metavar="WHO", help="who measures again; stands in the label")
    command.add_argument("--seed", type=int, metavar="N", help="of the choice (default: a random one, printed)")
    command.add_argument("--suite", metavar="FILE", help="its suite, where that names files beside it")
    command.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    command.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        dest="overrides",
        help="override a key of its suite, as in --set model=./folder",
    )


def _gate(command: Command) -> None:
    command.add_argument("policy", help="a policy file, or the name of a shipped one (qbench ls policies)")
    command.add_argument("--candidate", metavar="RUN", help="a run folder, or a file that qbench pack wrote")
    command.add_argument("--baseline", metavar="RUN", help="the last accepted run, for rules against: previous")
    command.add_argument("--anchor", metavar="RUN", help="the run that never changes, for rules against: anchor")
    command.add_argument("--replay", nargs="+", metavar="RUN", help="say how often the policy would have failed these")
    command.add_argument("--self-test", action="store_true", help="forge evidence in many ways; each must be blocked")
    command.add_argument("--keep", metavar="DIR", help="self-test: where the forged runs stay")
    command.add_argument("--format", choices=("text", "json", "md", "junit"), default="text")
    command.add_argument("--out", metavar="DIR", help="where verdict.json, junit.xml and summary.md go")
    _measured_first(command)


def _measured_first(command: Command) -> None:
    command.add_argument("--model", metavar="MODEL", help="run the cells that the policy needs on this model first")
    command.add_argument("--data", metavar="DATA", help="with --model: what it is judged on, such as text:val.txt")
    command.add_argument("--look", type=int, metavar="K", default=1, help="with --model: which planned look this is")
    command.add_argument(
        "--run", metavar="DIR", help="with --model: where its records go (default: results/gate-MODEL)"
    )
    command.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    _trust(command)


def _baseline(command: Command) -> None:
    command.add_argument("action", choices=("accept",))
    command.add_argument("run", help="a run folder, or a file that qbench pack wrote")
    command.add_argument("--owner", required=True, help="who answers for it")
    command.add_argument("--reason", required=True, help="why it may be what others are compared with")
    command.add_argument("--lock", metavar="FILE", default="baseline.lock.json", help="(default: %(default)s)")
    command.add_argument("--policy", metavar="POLICY", help="accept only what passes this policy")
    command.add_argument("--baseline", metavar="RUN", help="with --policy: the last accepted run")
    command.add_argument("--anchor", metavar="RUN", help="with --policy: the run that never changes")


def _pack(command: Command) -> None:
    command.add_argument("run", help="a run folder")
    command.add_argument("--out", metavar="FILE", help="where the file goes (default: RUN.qbench.zip)")


def _no_arguments(_command: Command) -> None:
    return


# Command -> what it does, the function that does it (module:function in qbench.cli), its arguments.
COMMANDS: Commands = {
    "run": ("run a suite; the same command again resumes it", "run:run", _run),
    "probe": ("say what a model can be shipped in, and what that costs", "probe:probe", _probe),
    "compare": ("compare two run folders, or a quantized model with its base", "compare_runs:compare", _compare),
    "reference": ("save a model's answers, to compare candidates with", "probe:reference", _reference),
    "validate": ("check a suite file and print every mistake in it", "look:validate", _suite),
    "ls": ("list what a suite may name", "look:ls", _ls),
    "report": ("rebuild the page of a run folder", "publish:report", _report),
    "export": (
        "write a run folder as a table, as LaTeX, as a model card, or for every_eval_ever",
        "publish:export",
        _export,
    ),
    "import": ("turn results of lm_eval or of any runtime into a run folder", "bring:bring", _import),
    "show": ("print one cell: what was asked, how it ended, its log; without a cell, list them", "look:show", _show),
    "demo": ("build a page from real records that ship with qbench", "publish:demo", _demo),
    "leaderboard": ("check submitted runs, and make a static site of them", "leaderboard:leaderboard", _leaderboard),
    "reproduce": ("measure random cells of a submission again, and label it", "reproduce:reproduce", _reproduce),
    "gate": ("say whether a run passes a policy: PASS, FAIL, INCONCLUSIVE or ERROR", "gate:gate", _gate),
    "baseline": ("accept a run as what later ones are compared with", "gate:baseline", _baseline),
    "pack": ("put a run into one file, for a gate that runs elsewhere", "gate:pack", _pack),
    "doctor": ("say what this machine can run, and what is missing", "look:doctor", _no_arguments),
}


def parser() -> argparse.ArgumentParser:
    root = Parser(prog="qbench", description="How cheaply can a model's tensors be stored and sent, and at what cost?")
    root.add_argument("--version", action="store_true", help="print the version and exit")
    commands = root.add_subparsers(dest="command", metavar="COMMAND", parser_class=Parser)
    for name, (text, _, add_arguments) in COMMANDS.items():
        add_arguments(commands.add_parser(name, help=text, description=text[0].upper() + text[1:] + "."))
    return root


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code; a user's mistake is a line on standard error, never a traceback."""
    root = parser()
    options = root.parse_args(arguments)
    if options.version:
        print(f"qbench {_version()}")
        return GOOD
    if not options.command:
        root.print_help()
        return USAGE
    module, _, function = COMMANDS[options.command][1].partition(":")
    command: Callable[[argparse.Namespace], int] = getattr(import_module(f"qbench.cli.{module}"), function)
    try:
        code = command(options)
        sys.stdout.flush()  # here, where its errors are caught
        return code
    except KeyboardInterrupt:
        return _explain("stopped; what was measured is stored, and the same command goes on from there", INTERRUPTED)
    except BrokenPipeError:
        # The reader of our output went away, as `head` does; what is still to be flushed goes nowhere.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return GOOD
    except Exception as error:
        code = next((EXIT_CODES[kind.__name__] for kind in type(error).__mro__ if kind.__name__ in EXIT_CODES), None)
        if code is None:
            raise
        return _explain(error, code)


def _version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("qbench-suite")
    except PackageNotFoundError:
        return "(a source checkout that is not installed)"


def _explain(error: Exception | str, code: int) -> int:
    # Mistakes in a suite start with file:line:col, which editors can follow only at the start of a line.
    print(error if type(error).__name__ in ("BadSuite", "BadPolicy") else f"qbench: {error}", file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())
