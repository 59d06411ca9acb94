"""A comparison of two runs for readers: for a terminal, as Markdown, as one HTML page. The JSON is the evidence."""

import re
from collections.abc import Mapping, Sequence
from json import dumps
from typing import Any

from qbench.report import assets
from qbench.report.words import number, with_unit

SHOWN = 40  # rows in a terminal
HEAD = ("", "model", "question", "metric", "A", "B", "B − A", "95 % interval", "noise floor", "n", "note")
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
    rows = [HEAD, *map(cells, document["rows"][:SHOWN])]
    widths = [max(len(row[i]) for row in rows) for i in range(len(HEAD) - 1)]
    lines = ["  ".join([*(c.ljust(w) for c, w in zip(row, widths, strict=False)), row[-1]]).rstrip() for row in rows]
    left = len(document["rows"]) - SHOWN
    more = [f"and {left} more rows; --format md, html or json has all"] if left > 0 else []
    return "\n".join([headline(document), "", *lines, *more, "", *_asides(document), ABOUT]) + "\n"


def markdown(document: Document) -> str:
    """All rows as a table, for a pull request; text from the runs is escaped."""
    rows = ["| " + " | ".join(map(_inert, row)) + " |" for row in (HEAD, *map(cells, document["rows"]))]
    rows.insert(1, "| " + " | ".join("-" * len(HEAD)) + " |")
    asides = [f"- {_inert(line)}" for line in _asides(document)]
    return "\n".join([f"**{_inert(headline(document))}**", "", *rows, "", *asides, "", ABOUT]) + "\n"


def html(document: Document) -> str:
    """One page that loads nothing and runs nothing."""
    from jinja2 import Environment

    page = Environment(autoescape=True, trim_blocks=True).from_string(assets.read("compared.html"))
    style = assets.read("page.css")
    rows = [(STYLES[row["verdict"]], cells(row)) for row in document["rows"]]
    return page.render(
        head=HEAD,
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
    return f"A {document['a']['run']}, B {document['b']['run']}: {told}"


def cells(row: Mapping[str, Any]) -> Sequence[str]:
    """One row as text, a column each of HEAD."""
    of = row["arms"]
    return (
        MARKS[row["verdict"]],
        of[0] if of[0] == of[1] else f"{of[0]} → {of[1]}",
        " ".join(filter(None, (row["question"], row["site"]))),
        row["metric"],
        number(row["a"], 4),
        with_unit(number(row["b"], 4), row["unit"]),
        number(row["difference"]),
        _interval(row["low"], row["high"]),
        number(row["floor"], 2) if row["floor"] else "",
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
