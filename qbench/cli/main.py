"""The `qbench` command: which arguments there are, and what exit code an error becomes."""

import argparse
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from io import TextIOWrapper
from typing import NoReturn

from qbench.cli import arguments

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


ONLY_PRINT = ("ls", "export", "show")  # commands of which a reader may have seen enough


class UsageError(Exception):
    """The command line asks for something that does not fit together."""


class Parser(argparse.ArgumentParser):
    """Prints what was wrong and how to see the options; exits with 2."""

    def error(self, message: str) -> NoReturn:
        self.exit(USAGE, f"qbench: {message}\n  try: {self.prog} --help\n")


Command = argparse.ArgumentParser
Commands = Mapping[str, tuple[str, str, Callable[[Command], None]]]


# Command -> what it does, the function that does it (module:function in qbench.cli), its arguments.
COMMANDS: Commands = {
    "run": ("run a suite; the same command again resumes it", "run:run", arguments.run),
    "probe": ("say what a model can be shipped in, and what that costs", "probe:probe", arguments.probe),
    "compare": (
        "compare two run folders, or a quantized model with its base",
        "compare_runs:compare",
        arguments.compare,
    ),
    "reference": ("save a model's answers, to compare candidates with", "probe:reference", arguments.reference),
    "validate": ("check a suite file and print every mistake in it", "look:validate", arguments.suite),
    "ls": ("list what a suite may name", "look:ls", arguments.ls),
    "report": ("rebuild the page of a run folder", "publish:report", arguments.report),
    "export": (
        "write a run folder as a table, as LaTeX, as a model card, or for every_eval_ever",
        "publish:export",
        arguments.export,
    ),
    "import": ("turn results of lm_eval or of any runtime into a run folder", "bring:bring", arguments.import_),
    "show": (
        "print one cell: what was asked, how it ended, its log; without a cell, list them",
        "look:show",
        arguments.show,
    ),
    "demo": ("build a page from real records that ship with qbench", "publish:demo", arguments.demo),
    "leaderboard": (
        "check submitted runs, and make a static site of them",
        "leaderboard:leaderboard",
        arguments.leaderboard,
    ),
    "reproduce": (
        "measure random cells of a submission again, and label it",
        "reproduce:reproduce",
        arguments.reproduce,
    ),
    "gate": ("say whether a run passes a policy: PASS, FAIL, INCONCLUSIVE or ERROR", "gate:gate", arguments.gate),
    "baseline": ("accept a run as what later ones are compared with", "gate:baseline", arguments.baseline),
    "pack": ("put a run into one file, for a gate that runs elsewhere", "gate:pack", arguments.pack),
    "doctor": ("say what this machine can run, and what is missing", "look:doctor", arguments.no_arguments),
}


def parser() -> argparse.ArgumentParser:
    root = Parser(prog="qbench", description="How cheaply can a model's tensors be stored and sent, and at what cost?")
    root.add_argument("--version", action="store_true", help="print the version and exit")
    commands = root.add_subparsers(dest="command", metavar="COMMAND", parser_class=Parser)
    for name, (text, _, add_arguments) in COMMANDS.items():
        add_arguments(commands.add_parser(name, help=text, description=text[0].upper() + text[1:] + "."))
    return root


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code; a user's mistake is a line on standard error, never a traceback.

    A traceback, of a mistake in qbench, ends with ERROR: 1 is an answer of the gate.
    """
    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # no name in a run may stop what is said of it
    root = parser()
    options = root.parse_args(arguments)
    if options.version:
        print(f"qbench {_version()}")
        return GOOD
    if not options.command:
        root.print_help()
        return USAGE
    code = GOOD if options.command in ONLY_PRINT else ERROR
    try:
        code = _command(options.command)(options)
        sys.stdout.flush()  # here, where its errors are caught
    except KeyboardInterrupt:
        return _explain("stopped; what was measured is stored, and the same command goes on from there", INTERRUPTED)
    except BrokenPipeError:
        # The reader of our output went away, as `head` does; what is still to be flushed goes nowhere. The answer
        # stays what it was, and where there was none yet, somebody who waits for one has to see that.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except Exception as error:
        known = next((EXIT_CODES[kind.__name__] for kind in type(error).__mro__ if kind.__name__ in EXIT_CODES), None)
        if known is None:
            import traceback

            traceback.print_exc()
            return ERROR
        return _explain(error, known)
    return code


def _command(name: str) -> Callable[[argparse.Namespace], int]:
    module, _, function = COMMANDS[name][1].partition(":")
    return getattr(import_module(f"qbench.cli.{module}"), function)


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
