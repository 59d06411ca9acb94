r"""LaTeX: one metric of a run as a booktabs table, mean and interval over seeds.

Needs \usepackage{booktabs} in the paper, and nothing else.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from math import floor, log10
from statistics import fmean

from qbench.results.export import COLUMNS, Line

Interval = Callable[[Sequence[float]], tuple[float, float]]
Place = tuple[str, str]  # row and column

# Columns over which nobody may average by accident; sites and seeds are averaged on purpose.
_APART = ("suite", "model", "wiring", "optimizer", "step", "kind", "scope", "quantizer")
_ESCAPES = {
    **{sign: rf"\{sign}" for sign in "&%$#_{}"},
    **{"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"},
    **{"<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}", '"': r"\textquotedbl{}"},
    **{"\n": " ", "\r": " "},
}


class BadTable(ValueError):
    """The table asked for would be empty, or would mix numbers that do not belong together."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """What stands where: `rows` and `cols` are columns of the export, `where` keeps lines that have these values.

    `ranked` marks the lowest number of each column in bold; only a cost is ranked, a description of the data is not.
    """

    rows: str = "model"
    cols: str = "quantizer"
    metric: str = "loss_increase"
    where: Mapping[str, str] = field(default_factory=dict[str, str])
    ranked: bool = True

    def __post_init__(self) -> None:
        unknown = [name for name in (self.rows, self.cols, *self.where) if name not in COLUMNS]
        if unknown:
            raise BadTable(f"no column {unknown[0]!r}; known: {', '.join(COLUMNS)}")


@dataclass(frozen=True, slots=True)
class Entry:
    """The mean over seeds, None where all failed; its interval where there are two or more; what was counted."""

    mean: float | None
    low: float | None
    high: float | None
    seeds: int
    failed: int
    sites: int


def table(lines: Iterable[Line], layout: Layout, interval: Interval) -> str:
    """The table as LaTeX source.

    `lines` as from `export.lines`; `interval` gives the 95 % interval of a mean from two or more values, one per seed.
    Values at several sites are averaged within a seed first. The lowest mean of a column is bold only where its whole
    interval lies below all others of the column; a single seed has no interval and is never bold.
    Raises BadTable where nothing matches, and where the lines of one entry differ in something that is no seed or site.
    """
    entries = _entries(lines, layout, interval)
    rows, cols = (sorted({key[i] for key in entries}) for i in (0, 1))
    bold = {_clear_winner(entries, col) for col in cols} if layout.ranked else set[Place]()
    same = len({entry.seeds for entry in entries.values() if entry.seeds}) == 1
    body = [
        [escape(row), *(_shown(entries.get((row, col)), bold=(row, col) in bold, same=same) for col in cols)]
        for row in rows
    ]
    source = [
        rf"\begin{{tabular}}{{l{'r' * len(cols)}}}",
        r"\toprule",
        " & ".join(map(escape, [layout.rows, *cols])) + r" \\",
        r"\midrule",
        *(" & ".join(cells) + r" \\" for cells in body),
        r"\bottomrule",
        rf"\multicolumn{{{len(cols) + 1}}}{{l}}{{\footnotesize {_note(entries, layout, same=same)}}} \\",
        r"\end{tabular}",
    ]
    return "\n".join(source) + "\n"


def escape(text: str) -> str:
    r"""Text as LaTeX prints it.

    >>> print(escape("50% of blocks_{0}"))
    50\% of blocks\_\{0\}
    """
    return "".join(_ESCAPES.get(sign, sign) for sign in text)


def _entries(lines: Iterable[Line], layout: Layout, interval: Interval) -> dict[Place, Entry]:
    # A slice's number stands beside that of the whole, of which it is a part; only who asks for slices sees them.
    sliced = "slice" in (layout.rows, layout.cols, *layout.where)
    wanted = [
        line
        for line in lines
        if (sliced or not line["slice"]) and all(_text(line[name]) == value for name, value in layout.where.items())
    ]
    measured = [line for line in wanted if line["status"] == "measured" and line["metric"] == layout.metric]
    if not measured:
        asked = ", ".join(f"{name}={value}" for name, value in layout.where.items()) or "no condition"
        raise BadTable(f"no {layout.metric} was measured with {asked}")
    # Cells that failed name no metric; those of the same kind and scope would have been in this table.
    asked_at = {(line["kind"], line["scope"]) for line in measured}
    lost = [one for one in wanted if one["status"] != "measured" and (one["kind"], one["scope"]) in asked_at]
    by_place = _grouped(measured, layout)
    lost_at = _grouped(lost, layout)
    return {
        place: _entry(by_place.get(place, []), lost_at.get(place, []), layout, interval)
        for place in by_place.keys() | lost_at.keys()
    }


def _grouped(lines: Iterable[Line], layout: Layout) -> dict[Place, list[Line]]:
    found: dict[Place, list[Line]] = defaultdict(list)
    for line in lines:
        found[_text(line[layout.rows]), _text(line[layout.cols])].append(line)
    return found


def _entry(measured: Sequence[Line], lost: Sequence[Line], layout: Layout, interval: Interval) -> Entry:
    for name in _APART:
        seen = sorted({_text(line[name]) for line in measured})
        if len(seen) > 1:
            place = f"{layout.rows}={measured[0][layout.rows]}, {layout.cols}={measured[0][layout.cols]}"
            raise BadTable(
                f"{place} mixes {name} {' and '.join(map(repr, seen))}; choose one: --where {name}={seen[0]}"
            )
    by_seed: dict[object, dict[str, float]] = defaultdict(dict)
    for line in measured:
        if line["site"] in by_seed[line["seed"]]:
            raise BadTable(
                f"two cells measured {line['model']}, seed {line['seed']}: does the run hold two versions of it?"
            )
        by_seed[line["seed"]][line["site"]] = line["value"]
    values = [fmean(sites.values()) for sites in by_seed.values()]
    low, high = interval(values) if len(values) > 1 else (None, None)
    sites = max(map(len, by_seed.values()), default=0)
    failed = len({line["seed"] for line in lost})
    return Entry(fmean(values) if values else None, low, high, len(values), failed, sites)


def _clear_winner(entries: Mapping[Place, Entry], col: str) -> Place | None:
    """The lowest entry of a column, if its whole interval is below every other interval."""
    column = sorted(
        (entry.mean, place) for place, entry in entries.items() if place[1] == col and entry.mean is not None
    )
    if len(column) < 2:
        return None
    best, *others = (entries[place] for _, place in column)
    clear = best.high is not None and all(one.low is not None and best.high < one.low for one in others)
    return column[0][1] if clear else None


def _shown(entry: Entry | None, *, bold: bool, same: bool) -> str:
    if entry is None or entry.mean is None:
        return "--" if entry is None else "failed"
    half = None if entry.low is None or entry.high is None else (entry.high - entry.low) / 2
    marks = (r"^{\dagger}" if entry.failed else "") + ("" if same else rf"_{{n={entry.seeds}}}")
    return f"${_number(entry.mean, half, bold=bold)}{marks}$"


def _number(mean: float, half: float | None, *, bold: bool) -> str:
    """The mean to the second digit of its half-width, to three digits where there is none."""
    largest = max(abs(mean), half or 0.0)
    power = floor(log10(largest)) if largest else 0
    shift = 0 if -3 <= power < 5 else power
    digit = floor(log10(half)) - 1 if half else power - 2
    places = max(0, shift - digit)
    text = f"{mean / 10.0**shift:.{places}f}"
    text = rf"\mathbf{{{text}}}" if bold else text
    if half is not None:
        text += rf" \pm {half / 10.0**shift:.{places}f}"
    return text if shift == 0 else rf"({text}) \times 10^{{{shift}}}"


def _note(entries: Mapping[Place, Entry], layout: Layout, *, same: bool) -> str:
    seeds = max(entry.seeds for entry in entries.values())
    over = f"{seeds} seeds" if same else "n seeds"
    sites = max(entry.sites for entry in entries.values())
    parts = [
        "; ".join(
            escape(text) for text in (layout.metric, *(f"{name} {value}" for name, value in layout.where.items()))
        ),
        *([f"each seed the mean of its sites, up to {sites}"] if sites > 1 else []),
        "one seed, no interval" if seeds == 1 else rf"mean $\pm$ 95\,\% interval over {over}",
        *([r"$\dagger$ other seeds failed"] if any(entry.failed for entry in entries.values()) else []),
        *(["bold: lowest, its interval below all others"] if layout.ranked else []),
    ]
    return "; ".join(parts)


def _text(value: object) -> str:
    return "" if value is None else str(value)
