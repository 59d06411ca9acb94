"""The arguments of every command."""

import argparse

Command = argparse.ArgumentParser


def suite(command: Command) -> None:
    command.add_argument("suite", help="a suite file, or the name of a shipped one (qbench ls suites)")
    _set(command, "override a key or a param, as in --set steps=50")
    command.add_argument("--profile", metavar="NAME", help="one of the suite's profiles")
    _plugin(command)


def _set(command: Command, what: str) -> None:
    command.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", dest="overrides", help=what)


def _plugin(command: Command) -> None:
    command.add_argument(
        "--plugin",
        action="append",
        default=[],
        metavar="FILE.py",
        help="quantizers, models or data of your own",
    )


def run(command: Command) -> None:
    suite(command)
    _running(command)


def _running(command: Command) -> None:
    command.add_argument("--out", metavar="DIR", help="where records go (default: results/<suite>)")
    command.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    command.add_argument("--workers", type=int, metavar="N", help="model groups at once (default: one per core or GPU)")
    command.add_argument("--only", metavar="CELL", help="answer only the cells whose id starts with CELL")
    command.add_argument("--dry-run", action="store_true", help="print cells, models and an estimate; train nothing")
    command.add_argument("--quiet", action="store_true", help="print errors only")
    _trust(command)


def probe(command: Command) -> None:
    command.add_argument("model", help="a model's folder, or its name on the hub")
    command.add_argument("--revision", metavar="COMMIT", help="of a model on the hub")
    command.add_argument("--weights-only", action="store_true", help="stream the weights; never load the model")
    _judged(command)


def compare(command: Command) -> None:
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
    _set(command, "override a key of the suite")
    command.add_argument("--profile", metavar="NAME", help="one of the suite's profiles")
    _plugin(command)
    _running(command)


def reference(command: Command) -> None:
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


def ls(command: Command) -> None:
    command.add_argument("what", choices=WHAT)
    command.add_argument("model", nargs="?", help="sites: a model's folder, or the name of an architecture of ours")
    _plugin(command)


def report(command: Command) -> None:
    command.add_argument("folder", help="a run folder, or a file that qbench pack wrote")
    command.add_argument(
        "--out", metavar="FILE", help="where the page goes (default: <folder>/report.html, or beside the pack)"
    )
    command.add_argument("--figures", action="store_true", help="also write the charts as SVG and PNG (matplotlib)")


def export(command: Command) -> None:
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


def import_(command: Command) -> None:
    command.add_argument(
        "files", nargs="+", metavar="FILE", help="results_*.json of lm_eval, or samples of any runtime (*.jsonl)"
    )
    command.add_argument("--out", metavar="DIR", required=True, help="the run folder that they are added to")


def show(command: Command) -> None:
    command.add_argument("folder", help="a run folder")
    command.add_argument("cell", nargs="?", help="a cell id, or the beginning of one (default: list the cells)")


def demo(command: Command) -> None:
    command.add_argument(
        "--out", metavar="DIR", default="qbench-demo", help="where the page goes (default: %(default)s)"
    )


def leaderboard(command: Command) -> None:
    command.add_argument("action", choices=("build", "check"))
    command.add_argument("folders", nargs="+", metavar="DIR", help="a run with a submission.yaml, or a folder of them")
    command.add_argument("--out", metavar="SITE", help="build: the folder of the site")
    command.add_argument("--format", choices=("text", "markdown"), default="text", help="check: for a pull request")


def reproduce(command: Command) -> None:
    command.add_argument("folder", help="a submission: a run folder with a submission.yaml")
    command.add_argument("--sample", default="5%", metavar="SHARE", help="of its losses (default: 5%%)")
    command.add_argument("--by", required=True, metavar="WHO", help="who measures again; stands in the label")
    command.add_argument("--seed", type=int, metavar="N", help="of the choice (default: a random one, printed)")
    command.add_argument("--suite", metavar="FILE", help="its suite, where that names files beside it")
    command.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    _set(command, "override a key of its suite, as in --set model=./folder")


def gate(command: Command) -> None:
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


def baseline(command: Command) -> None:
    command.add_argument("action", choices=("accept",))
    command.add_argument("run", help="a run folder, or a file that qbench pack wrote")
    command.add_argument("--owner", required=True, help="who answers for it")
    command.add_argument("--reason", required=True, help="why it may be what others are compared with")
    command.add_argument("--lock", metavar="FILE", default="baseline.lock.json", help="(default: %(default)s)")
    command.add_argument("--policy", metavar="POLICY", help="accept only what passes this policy")
    command.add_argument("--baseline", metavar="RUN", help="with --policy: the last accepted run")
    command.add_argument("--anchor", metavar="RUN", help="with --policy: the run that never changes")


def pack(command: Command) -> None:
    command.add_argument("run", help="a run folder")
    command.add_argument("--out", metavar="FILE", help="where the file goes (default: RUN.qbench.zip)")


def no_arguments(_command: Command) -> None:
    return
