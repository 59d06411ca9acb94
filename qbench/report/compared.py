"""A comparison of two runs for readers: for a terminal, as Markdown, as one HTML page. The JSON is the evidence."""

import re
from collections.abc import Mapping, Sequence
from json import dumps
from typing import Any

from qbench.report import assets
from qbench.report.words import number, with_unit

SHOWN = 40  # rows in a terminal
HEAD = ("", "model", "question", "metric", "B − A", "95 % interval", "noise floor", "A", "B", "n", "note")
WORDS = 4  # the first columns are words, and so is the last
MARKS: Mapping[str, str] = {"regressed": "▲ regressed", "improved": "▼ improved", "no evidence": "· no evidence"}
ABOUT = (
    "Lower is better; B − A above 0 is worse. Verdicts hold for all rows together (Holm, 5 %) and beyond the noise "
    "floor; intervals are those of each row alone."
)
STYLES: Mapping[str, str] = {"regressed": "contradicted", "improved": "supported", "no evidence": "undecided"}

Document = Mapping[str, Any]


def json(document: Document) -> str:
    """The document itself."""
    return dumps(document, indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def text(document: Document) -> str:
    """Aligned columns, the decided rows first; the rest is counted."""
    rows = table(document)[: SHOWN + 1]
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]) - 1)]
    lines = ["  ".join([*(c.ljust(w) for c, w in zip(row, widths, strict=False)), row[-1]]).rstrip() for row in rows]
    left = len(document["rows"]) - SHOWN
    more = [f"and {left} more rows; --format md, html or json has all"] if left > 0 else []
    return "\n".join([headline(document), "", *lines, *more, "", *_asides(document), ABOUT]) + "\n"


def markdown(document: Document) -> str:
    """All rows as a table, for a pull request; text from the runs is escaped."""
    found = table(document)
    rows = ["| " + " | ".join(map(_inert, row)) + " |" for row in found]
    rows.insert(1, "| " + " | ".join("-" * len(found[0])) + " |")
    asides = [f"- {_inert(line)}" for line in _asides(document)]
    return "\n".join([f"**{_inert(headline(document))}**", "", *rows, "", *asides, "", ABOUT]) + "\n"


def html(document: Document) -> str:
    """One page that loads nothing and runs nothing."""
    from jinja2 import Environment

    page = Environment(autoescape=True, trim_blocks=True).from_string(assets.read("compared.html"))
    style = f"{assets.read('page.css')}\n.w {{ text-align: left; }}\n"
    head, *found = table(document)
    rows = [(STYLES[row["verdict"]], one) for row, one in zip(document["rows"], found, strict=True)]
    return page.render(
        head=head,
        words=[*(head.index(name) for name in HEAD[:WORDS] if name in head), len(head) - 1],
        rows=rows,
        headline=headline(document),
        asides=_asides(document),
        about=ABOUT,
        a=document["a"],
        b=document["b"],
        style=style,
        style_hash=assets.digest(style),
    )


def headline(document: Document) -> str:
    counts = document["verdicts"]
    told = ", ".join(f"{count} {name}" for name, count in counts.items())
    models = next(iter(_models(document))) if len(_models(document)) == 1 else ("", "")
    names = [
        f"{side.upper()} {document[side]['run']}{f' ({model})' if model else ''}"
        for side, model in zip("ab", models, strict=True)
    ]
    return f"{', '.join(names)}: {told}"


def table(document: Document) -> Sequence[Sequence[str]]:
    """The head and all rows; a model that all rows are of stands in the headline."""
    rows = [HEAD, *map(cells, document["rows"])]
    if len(_models(document)) > 1:
        return rows
    return [[*row[:1], *row[2:]] for row in rows]


def _models(document: Document) -> set[tuple[str, str]]:
    return {(row["arms"][0], row["arms"][1]) for row in document["rows"]}


def cells(row: Mapping[str, Any]) -> Sequence[str]:
    """One row as text, a column each of HEAD."""
    of = row["arms"]
    return (
        MARKS[row["verdict"]],
        of[0] if of[0] == of[1] else f"{of[0]} → {of[1]}",
        " ".join([row["question"], *([row["site"]] if row["site"] not in row["question"] else [])]),
        row["metric"],
        with_unit(number(row["difference"]), row["unit"]),
        _interval(row["low"], row["high"]),
        number(row["floor"], 2) if row["floor"] else "",
        number(row["a"], 4),
        number(row["b"], 4),
        _counts(row),
        row["note"],
    )


def _interval(low: float | None, high: float | None) -> str:
    if low is None and high is None:
        return ""
    return f"{'−∞' if low is None else number(low)} to {'∞' if high is None else number(high)}"


def _counts(row: Mapping[str, Any]) -> str:
    told = [str(row["n"])] if row["n"] else []
    return " × ".join([*told, f"{row['seeds']} seeds"] if row["seeds"] > 1 else told)


def _asides(document: Document) -> list[str]:
    refused = [
        f"not compared: {one['cells']} {'cell' if one['cells'] == 1 else 'cells'} of {one['run'].upper()}, "
        f"such as {one['example']}: {one['reason']}"
        for one in document["refused"]
    ]
    return [*refused, *(f"caution: {one}" for one in document["cautions"])]


def _inert(cell: str) -> str:
    """Text that Markdown shows as it is."""
    return re.sub(r"([\\`*_\[\]<>|~#&!])", r"\\\1", " ".join(cell.split()))
