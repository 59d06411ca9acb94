"""Where the numbers come from: suite, code, versions, machine, data and cost, from the manifest and the cells."""

from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from qbench.names import repeated
from qbench.report import speed
from qbench.report.view import View, is_calibration
from qbench.report.words import counted, duration, listed
from qbench.results.run import Run, part

STDLIB = (
    "The text is this Python's own standard library: another Python patch release is another data digest, "
    "and so another comparison group."
)
KINDS: Mapping[str, str] = {"trial": "choosing learning rates", "training": "training"}
MEASURING = "measuring"


def suite_text(run: Run) -> str:
    return str(run.session.get("suite", ""))


def suite(run: Run) -> Mapping[str, Any]:
    """The suite as plain data: an old one that today's schema refuses can still be reported."""
    raw = yaml.safe_load(suite_text(run) or "{}")
    return raw if isinstance(raw, dict) else {}


def compared(asked: Mapping[str, Any]) -> list[str]:
    """The arms that the suite's claims compare, in the order of its file."""
    return [str(name) for claim in claims(asked) for name in claim["between"]]


def claims(asked: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The claims of the suite, each written out."""
    return [one for entry in asked.get("effects") or [] for one in repeated(entry)]


def facts(run: Run, seen: View) -> list[tuple[str, str]]:
    """Label and value, in reading order; what is not known is left out."""
    session = run.session
    found = [
        ("suite", _suites(seen)),
        ("cells", _cells(seen, run)),
        ("seeds", listed([str(seed) for seed in sorted({seed for arm in seen.arms for seed in arm.seeds})])),
        ("data", _data(seen)),
        ("qbench", _revision(part(session, "revisions").get("qbench"))),
        ("suite file", _revision(part(session, "revisions").get("suite"))),
        ("versions", listed([f"{name} {version}" for name, version in part(session, "versions").items()])),
        ("machine", _machine(session)),
        ("device", listed(sorted({str(cell.spec.get("device", "")) for cell in seen.cells} - {""}))),
        ("options", ", ".join(f"{name} {value}" for name, value in part(session, "options").items() if value)),
        ("sessions", _sessions(run.manifest.get("sessions") or [])),
        ("cost", _cost(run.manifest.get("sessions") or [], seen)),
        ("training speed", speed.told([row.values for row in seen.rows if row.what == "training"])),
    ]
    return [(label, value) for label, value in found if value]


def _suites(seen: View) -> str:
    names = {
        f"{cell.spec.get('suite')} version {cell.spec.get('version')}" for cell in seen.cells if "suite" in cell.spec
    }
    return listed(sorted(names))


def _cells(seen: View, run: Run) -> str:
    counts = {
        status: sum(cell.status == status for cell in seen.cells) for status in ("measured", "failed", "unsupported")
    }
    parts = [f"{n} {status}" for status, n in counts.items() if n or status == "measured"]
    parts.append(counted(len(seen.rows), "record"))
    parts += [counted(run.superseded, "earlier attempt")] if run.superseded else []
    parts += [f"{counted(run.unfinished, 'record')} of unfinished cells left out"] if run.unfinished else []
    return ", ".join(parts)


def _data(seen: View) -> str:
    data = {
        (str(part(cell.spec, "data").get("name", "")), str(part(cell.spec, "data").get("digest", "")))
        for cell in seen.cells
        if not is_calibration(cell.spec)
    }
    texts = [f"{name}, digest {digest}" for name, digest in sorted(data) if name]
    return f"{listed(texts)}. {STDLIB}" if any(name == "stdlib" for name, _ in data) else listed(texts)


def _revision(revision: Any) -> str:
    if not isinstance(revision, Mapping) or not revision.get("commit"):
        return ""
    return f"commit {revision['commit'][:12]}{', with uncommitted changes' if revision.get('dirty') else ''}"


def _machine(session: Mapping[str, Any]) -> str:
    machine = part(session, "machine")
    named = [str(machine[name]) for name in ("cpu", "system", "architecture") if machine.get(name)]
    cores = [counted(machine["cores"], "core")] if machine.get("cores") else []
    threads = [f"{counted(session['threads'], 'thread')} per process"] if session.get("threads") else []
    return ", ".join([*named[:1], *cores, *threads, *named[1:], *map(str, session.get("gpus") or [])])


def _sessions(sessions: Sequence[Mapping[str, Any]]) -> str:
    if not sessions:
        return ""
    last = sessions[-1]
    end = f"finished {last['finished']}" if last.get("finished") else "the last one was not finished"
    suites = {str(session.get("suite", "")) for session in sessions}
    changed = "; the suite's text changed between them" if len(suites) > 1 else ""
    return f"{len(sessions)}, started {sessions[0].get('started', 'at an unknown time')}, {end}{changed}"


def _cost(sessions: Sequence[Mapping[str, Any]], seen: View) -> str:
    """Of the sessions that came to their end, of every cell that is kept, and of the models, whoever trained them."""
    costs = [part(session, "cost") for session in sessions]
    parts = [
        f"{duration(total)} {words}"
        for name, words in (("cpu_seconds", "of processor time"), ("wall_seconds", "on the clock"))
        if (total := sum(cost.get(name) or 0.0 for cost in costs))
    ]
    stopped = sum(not session.get("finished") for session in sessions)
    parts += [f"{counted(stopped, 'session')} that did not finish left out"] if stopped else []
    memory = max((cost.get("peak_rss_bytes") or 0 for cost in costs), default=0)
    parts += [f"at most {memory / 2**20:.0f} MiB of memory"] if memory else []
    return ". ".join(filter(None, (", ".join(parts), _of_cells(seen), _of_models(seen))))


def _of_cells(seen: View) -> str:
    spent = dict.fromkeys((*KINDS.values(), MEASURING), 0.0)
    for cell in seen.cells:
        spent[KINDS.get(str(part(cell.spec, "measurement").get("what")), MEASURING)] += cell.seconds
    told = [f"{duration(seconds)} {kind}" for kind, seconds in spent.items() if seconds >= 1]
    return f"The cells one after another: {listed(told)}" if told else ""


def _of_models(seen: View) -> str:
    """A model that a run found in the cache cost it nothing, but has cost somebody this."""
    trained = sum(
        row.values.get("cpu_seconds", 0.0) for row in seen.rows if row.what == "training" and row.step is None
    )
    return (
        f"All models took {duration(trained)} of processor time when they were trained, here or in an earlier run"
        if trained
        else ""
    )
