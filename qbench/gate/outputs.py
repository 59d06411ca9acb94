"""A verdict as files: JSON is the evidence; JUnit, Markdown and the lines on a terminal are projections of it."""

import json
import re
from dataclasses import asdict
from math import isfinite
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from qbench.gate.finding import Finding, Result, Verdict
from qbench.results.files import make_folder, write_whole

SCHEMA = 1
LARGEST_SUMMARY = 1_000_000  # bytes; a CI service shows 1 MiB
LONGEST = 500  # characters shown of anything that a run or a policy says
_NOT_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
_MARKDOWN = re.compile(r"([\\`*_{}\[\]<>()#+!|~&@])")
_LINK = re.compile(r"(:(?=//)|www(?=\.))", re.IGNORECASE)  # where GitHub makes a link of plain text
_WORD_JOINER = "&#8288;"  # invisible, and no part of an address
SIGNS = {"PASS": "✅", "FAIL": "❌", "INCONCLUSIVE": "❔", "ERROR": "⛔"}


def to_json(verdict: Verdict) -> str:
    """The evidence, as docs/schemas/verdict.json describes it."""
    return json.dumps(_plain({"schema": SCHEMA, **asdict(verdict), "exit_code": verdict.exit_code}), indent=1) + "\n"


def to_junit(verdict: Verdict) -> str:
    """One testcase a rule: failed is a failure, without evidence an error, what only warns is skipped."""
    suite = ElementTree.Element("testsuite", {"name": _xml(f"qbench gate {verdict.policy['name']}")})
    counts = {"tests": len(verdict.results), "failures": 0, "errors": 0, "skipped": 0}
    for result in verdict.results:
        case = ElementTree.SubElement(
            suite, "testcase", {"classname": _xml(f"qbench.{verdict.policy['name']}"), "name": _xml(result.rule)}
        )
        tag = _tag(result)
        if tag:
            counts[{"failure": "failures", "error": "errors", "skipped": "skipped"}[tag]] += 1
            node = ElementTree.SubElement(case, tag, {"message": _xml(said(result)), "type": result.status})
            node.text = _xml("\n".join(line for finding in result.findings for line in _lines(result, finding)))
    for name, count in counts.items():
        suite.set(name, str(count))
    return '<?xml version="1.0" encoding="utf-8"?>\n' + ElementTree.tostring(suite, encoding="unicode") + "\n"


def to_markdown(verdict: Verdict) -> str:
    """For a CI step summary: one line a rule, then what to do; always below the size that services show."""
    policy = verdict.policy
    head = [f"## {SIGNS[verdict.status]} {verdict.status}: {_md(verdict.candidate['name'])}", ""]
    head.append(
        f"Policy {_md(policy['name'])} version {policy['version']}{_provisional(verdict)}, digest `{_short(policy)}`; "
        f"candidate digest `{_short(verdict.candidate)}`."
    )
    head += ["", "| | rule | effect | bounds | margin | n | detectable | why |", "| - | - | - | - | - | - | - | - |"]
    kept, size = head, 0
    for i, result in enumerate(verdict.results):
        row = _row(result)
        size += len(row.encode())
        if size > LARGEST_SUMMARY // 2:
            kept.append(f"\nand {len(verdict.results) - i} more rules: verdict.json has them all")
            break
        kept.append(row)
    todo = [f"- {_md(result.rule)}: {_md(result.shown.todo)}" for result in verdict.results if _open(result)]
    kept += ["", "### What to do next", "", *todo[:200]] if todo else []
    kept += ["", *(f"> {_md(note)}" for note in verdict.notes[:50])]
    return "\n".join(kept) + "\n"


def to_text(verdict: Verdict) -> str:
    """For a terminal: the verdict first, then each rule with its numbers and what to do."""
    lines = [
        f"{verdict.status}  {verdict.candidate['name']}  policy {verdict.policy['name']} "
        f"version {verdict.policy['version']}{_provisional(verdict)}"
    ]
    for result in verdict.results:
        mark = "waived" if result.waived else result.status
        lines.append(f"  {mark:<12}  {result.rule}{' (warns only)' if result.tier == 'warn' else ''}: {said(result)}")
        shown = result.shown
        if shown.effect is not None:
            lines.append(f"                {numbers(result, shown)}")
        if _open(result) and shown.todo:
            lines.append(f"                next: {shown.todo}")
    lines += [f"  note: {note}" for note in verdict.notes]
    return "".join(f"{_one_line(line)}\n" for line in lines)


WRITERS = {"verdict.json": to_json, "junit.xml": to_junit, "summary.md": to_markdown}
FORMATS = {"text": to_text, "json": to_json, "junit": to_junit, "md": to_markdown}


def write(verdict: Verdict, folder: Path) -> list[Path]:
    """All files of a verdict; CannotWrite where one cannot be written."""
    make_folder(folder)
    paths: list[Path] = []
    for name, writer in WRITERS.items():
        write_whole(folder / name, writer(verdict).encode("utf-8", "replace"))
        paths.append(folder / name)
    return paths


def said(result: Result) -> str:
    """Why a rule ended as it did, in one line."""
    if result.waived:
        return f"{result.status}, waived {result.waived}"
    shown = result.shown
    more = f" ({shown.label}{f', {len(result.findings)} cases' if len(result.findings) > 1 else ''})"
    return (result.reason or shown.reason or result.status) + (more if shown.label != result.rule else "")


def numbers(result: Result, finding: Finding) -> str:
    """
    >>> found = Finding(label="x", status="PASS", effect=0.01, low=0.0, high=0.02, margin=0.05, n=512)
    >>> numbers(Result(rule="r", metric="loss", unit="nats", against="", tier="", status="PASS", findings=()), found)
    'effect +0.01 nats, bounds [0, 0.02], margin 0.05, n 512'
    """
    if finding.effect is None:
        return ""
    parts = [
        f"effect {finding.effect:+.4g} {result.unit}".rstrip(),
        _bounds(finding),
        f"margin {_number(finding.margin)}",
    ]
    parts += [f"n {finding.n}"] if finding.n else []
    parts += [f"{finding.seeds} seeds"] if finding.seeds > 1 else []
    parts += [f"detectable {finding.minimum_detectable:.3g}"] if finding.minimum_detectable is not None else []
    return ", ".join(parts)


def _bounds(finding: Finding) -> str:
    return f"bounds [{_number(finding.low)}, {_number(finding.high)}]"


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"


def _tag(result: Result) -> str:
    if result.job == "green":
        return ""
    if result.job == "yellow":
        return "skipped"
    return "error" if result.status == "ERROR" else "failure"


def _open(result: Result) -> bool:
    return result.status != "PASS" and not result.waived


def _row(result: Result) -> str:
    shown = result.shown
    sign = "🟡" if result.job == "yellow" else SIGNS[result.status]
    effect = "" if shown.effect is None else f"{shown.effect:+.4g} {result.unit}".rstrip()
    bounds = "" if shown.low is None else f"{_number(shown.low)} … {_number(shown.high)}"
    n = f"{shown.n} × {shown.seeds}" if shown.seeds > 1 else str(shown.n or "")
    cells = [f"{sign} {result.status}", _md(result.rule), effect, bounds, _number(shown.margin), n]
    return f"| {' | '.join([*cells, _number(shown.minimum_detectable), _md(said(result))])} |"


def _lines(result: Result, finding: Finding) -> list[str]:
    return [
        f"{finding.status} {finding.label}: {finding.reason}",
        *filter(None, [numbers(result, finding), finding.todo]),
    ]


def _provisional(verdict: Verdict) -> str:
    return " (provisional margins)" if verdict.policy.get("provisional") else ""


def _short(about: Any) -> str:
    return str(about.get("digest", ""))[:16] or "none"


def _one_line(text: str) -> str:
    """Nothing that a record says may move the cursor or start another line."""
    return "".join(c if c.isprintable() else " " for c in text)


def _md(text: Any) -> str:
    """Text that stays text: no HTML, no table, no link, no mention."""
    kept = _MARKDOWN.sub(r"\\\1", _one_line(str(text))[:LONGEST]).replace("\\<", "&lt;").replace("\\>", "&gt;")
    return _LINK.sub(f"\\1{_WORD_JOINER}", kept)


def _xml(text: str) -> str:
    return _NOT_XML.sub("�", text)[: 20 * LONGEST]


def _plain(value: Any) -> Any:
    """As JSON, which has no infinity: a bound that does not exist is null."""
    if isinstance(value, dict):
        return {str(key): _plain(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(part) for part in value]
    return None if isinstance(value, float) and not isfinite(value) else value
