"""The page's data: what its script needs to move the cloud and to write CSV files, as compact JSON."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from itertools import groupby
from typing import Any

from qbench.report.axes import Axis
from qbench.report.charts import Clouds
from qbench.report.panels import Panel
from qbench.report.svg import Frame
from qbench.report.tables import Table
from qbench.report.view import View

DIGITS = "0123456789abcdefghijklmnopqrstuvwxyz"
Rows = Mapping[str, Any]  # {"columns": [...], "words": [...], "rows": [[...], ...]}, or folded by column


def text(value: Any) -> str:
    """JSON that no text inside can end early, inside a <script> element."""
    compact = json.dumps(value, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return compact.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")


def points(run: View, found: Clouds) -> dict[str, Any]:
    """Columns over all activation sites of all arms and seeds, whether quantized or not."""
    arms = [arm.name for arm in run.arms]
    sites = list(dict.fromkeys(site for _, _, site in found.kurtosis))
    where = {site: index for index, site in enumerate(sites)}
    return {
        "arms": arms,
        "style": [arm.style for arm in run.arms],
        "sites": sites,
        "arm": [arms.index(arm) for arm, _, _ in found.kurtosis],
        "seed": [seed for _, seed, _ in found.kurtosis],
        "site": [where[site] for _, _, site in found.kurtosis],
        "kurtosis": [short(k) for k in found.kurtosis.values()],
    }


def cloud(found: Clouds, frame: Frame) -> dict[str, Any] | None:
    """For each quantizer the SQNRs of all points, and its axis; None where nothing was quantized."""
    if not found.panels:
        return None
    first = next(iter(found.panels.values()))
    return {
        "first": first.name,
        "frame": asdict(frame),
        "x": {"low": first.x.low, "high": first.x.high},
        "quantizers": {name: _cloud_of(panel, len(found.kurtosis)) for name, panel in found.panels.items()},
    }


def _cloud_of(panel: Panel, size: int) -> dict[str, Any]:
    sqnr: list[float | None] = [None] * size
    for series in panel.series:
        for mark in series.marks:
            if mark.index is not None:
                sqnr[mark.index] = mark.y
    rule = next((rule for rule in panel.rules if rule.axis == "y"), None)
    return {
        "sqnr": "".join(map(triple, sqnr)),
        **_axis(panel.y),
        "gaussian": rule.at if rule else None,
        "label": rule.label if rule else "",
        "summary": panel.summary,
    }


def triple(decibels: float | None) -> str:
    """A hundredth of a dB in three characters: base 36, from -100 dB; the page holds ten thousand of them.

    >>> triple(0.0), triple(39.52), triple(None)
    ('7ps', 'ark', '---')
    """
    if decibels is None:
        return "---"
    count = min(max(round(decibels * 100) + 10_000, 0), 36**3 - 1)
    return _digits(count, 3)


def _digits(count: int, width: int) -> str:
    return "".join(DIGITS[count // 36**place % 36] for place in reversed(range(width)))


def _axis(axis: Axis) -> dict[str, Any]:
    return {"low": axis.low, "high": axis.high, "ticks": axis.ticks}


def short(value: float, digits: int = 5) -> float:
    """As many digits as a spreadsheet can use."""
    return float(f"{value:.{digits}g}")


def losses(run: View) -> Rows:
    """Every loss measured, one row for each arm, seed and treatment."""
    rows = [
        [row.arm, row.seed, row.treatment, row.bits, *(_value(row.values, name) for name in ("loss", "loss_increase"))]
        for row in run.select("loss")
    ]
    return packed(["arm", "seed", "treatment", "bits_per_value", "loss", "loss_increase"], rows)


def _value(values: Mapping[str, float], name: str) -> float | None:
    return short(values[name], 7) if name in values else None


def courses(panels: Mapping[str, Panel]) -> Rows:
    """Kurtosis by training step for every class of sites: mean, least and largest over seeds."""
    rows = [
        [name, series.name, *(None if v is None else short(v) for v in (mark.x, mark.y, mark.low, mark.high))]
        for name, panel in panels.items()
        for series in panel.series
        for mark in series.marks
    ]
    return packed(["site", "arm", "step", "excess_kurtosis", "least_seed", "largest_seed"], rows)


def packed(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> Rows:
    """Rows with their texts replaced by places in `words`, which has a list for each column of texts.

    >>> packed(["arm", "seed"], [["a", 0], ["b", 0], ["a", 1]])
    {'columns': ['arm', 'seed'], 'words': [['a', 'b'], None], 'rows': [[0, 0], [1, 0], [0, 1]]}
    """
    words = [
        list(dict.fromkeys(found)) if (found := [row[i] for row in rows]) and isinstance(found[0], str) else None
        for i in range(len(columns))
    ]
    places = [{word: at for at, word in enumerate(known)} if known else None for known in words]
    coded = [[known[v] if known else v for known, v in zip(places, row, strict=True)] for row in rows]
    return {"columns": list(columns), "words": words, "rows": coded}


def folded(rows: Rows) -> Rows:
    """The same by column, each in the shortest of three ways: its values, runs of them, or places in a list of them.

    >>> folded(packed(["arm", "x"], [["a", 1.5], ["a", 2.5], ["a", 3.5]]))
    {'columns': ['arm', 'x'], 'folded': [{'runs': ['a', 3]}, {'values': [1.5, 2.5, 3.5]}]}
    """
    columns = list(zip(*rows["rows"], strict=True)) or [()] * len(rows["columns"])
    spelled = (
        [known[at] for at in column] if known else list(column)
        for known, column in zip(rows["words"], columns, strict=True)
    )
    return {"columns": rows["columns"], "folded": [_folded(column) for column in spelled]}


def _folded(column: Sequence[Any]) -> dict[str, Any]:
    known = {value: at for at, value in enumerate(dict.fromkeys(column))}
    width = 1 if len(known) <= len(DIGITS) else 2 if len(known) <= len(DIGITS) ** 2 else 3
    ways: tuple[dict[str, Any], ...] = (
        {"values": list(column)},
        {"runs": [part for value, run in groupby(column) for part in (value, sum(1 for _ in run))]},
        {"known": [*known], "width": width, "at": "".join(_digits(known[value], width) for value in column)},
    )
    return min(ways, key=lambda way: len(text(way)))


def of_table(table: Table) -> Rows:
    """A table as it is printed, floors below."""
    heads = [group for group, span in table.groups for _ in range(span)]
    columns = [f"{head} {column}".strip() for head, column in zip(heads, table.columns, strict=True)]
    return packed(columns, [*table.rows, *table.foot])
