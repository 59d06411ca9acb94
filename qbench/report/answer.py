"""The answer of a probe for a terminal: the verdicts in a screen's lines, and where the page is."""

from collections.abc import Sequence

from qbench.report import conditions, hard, layers, pareto, probe, verdict
from qbench.report.formats import CLASSES, Format, formats
from qbench.report.view import View, view
from qbench.report.words import THIN, counted
from qbench.results.run import Run

MOST = 14  # formats that are listed
PAGE = "report.html"


def lines(run: Run) -> list[str]:
    """At most 20 lines: the headline, the formats worth a look, what went wrong, the page; none for trained models."""
    seen = view(run)
    if not probe.is_probe(seen):
        return []
    found = formats(seen)
    failed = counted(len(run.failed), "cell") + " could not be measured; the page says why" if run.failed else ""
    said = [
        probe.headline(seen, found),
        conditions.sentence(seen),
        *(_table(found) if found else _tensors(seen) or _sweeps(seen)),
        failed,
        f"page: {run.folder / PAGE}",
    ]
    return [_plain(line) for line in said if line]


def _table(found: Sequence[Format]) -> list[str]:
    """The formats worth a look; the rest by number."""
    shown = worth(found)[:MOST]
    if not shown:
        return []
    several = len({one.arm for one in found}) > 1
    left = len(found) - len(shown)
    head = ("format", "verdict", "files", "KLD", "loss", "same top p")
    rest = [f"  and {counted(left, 'format')} more on the page"] if left else []
    return [*_aligned([head, *(_row(one, several) for one in shown)]), *rest]


def _tensors(seen: View) -> list[str]:
    """What formats do to weights, where no loss was measured."""
    table = hard.by_format(seen, "weight")
    return _aligned([table.columns, *table.rows[:MOST]]) if table else []


def _sweeps(seen: View) -> list[str]:
    """What layers cost alone, where nothing else was measured."""
    rows = [(one.name, *one.first) for one in layers.sweeps(seen) if one.first]
    return _aligned([("format", "costs most", "alone, nats", "groups that cost"), *rows]) if rows else []


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Columns of one width, the first one to the left."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return [
        "  "
        + "  ".join([row[0].ljust(widths[0]), *(cell.rjust(w) for cell, w in zip(row[1:], widths[1:], strict=True))])
        for row in rows
    ]


def worth(found: Sequence[Format]) -> list[Format]:
    """Without those that another format of the same parts of the model beats in both size (or bits) and KLD.

    Where files change, in the order given; else the whole cache before its halves, least KLD first.
    """
    groups: dict[tuple[int, bool, tuple[str, ...]], list[Format]] = {}
    for one in found:
        if "kld" in one.values:
            parts = () if one.bytes or one.whole_cache else tuple(one.assign)
            groups.setdefault((CLASSES.index(one.kind), not one.whole_cache, parts), []).append(one)
    return [one for key in sorted(groups) for one in _best(groups[key])]


def _best(same: Sequence[Format]) -> list[Format]:
    sizes = [(one.bytes or one.row.bits or 0.0, one.values["kld"]) for one in same]
    chosen = set(pareto.front(sizes))
    kept = [one for i, one in enumerate(same) if i in chosen]
    return kept if any(one.bytes for one in kept) else sorted(kept, key=lambda one: one.values["kld"])


def _row(one: Format, several: bool) -> tuple[str, ...]:
    values = one.values
    same = verdict.share(1 - values["top1_changed"]) if "top1_changed" in values else ""
    files = verdict.megabytes(one.bytes) if one.bytes else "as now"
    return (
        verdict.label(one, several),
        one.tier,
        files,
        verdict.nats(values["kld"]),
        verdict.signed(values["loss_increase"]),
        same,
    )


def _plain(line: str) -> str:
    """With ordinary spaces, which every terminal and every pipe has."""
    return line.replace(THIN, " ").replace("\u00a0", " ")
