"""A finished run as a value: its cells, its records as flat rows, its failures, its manifest."""

from collections import Counter
from collections.abc import Container, Iterator, Mapping
from dataclasses import dataclass, replace
from difflib import get_close_matches
from functools import cache, partial
from html import escape
from pathlib import Path
from typing import Any, TypedDict, Unpack

from qbench.names import matches
from qbench.results import origin
from qbench.results.lines import RECORDS, scan, selected
from qbench.results.record import STATUSES, Attempt, Closing


class NoRun(FileNotFoundError):
    """A folder holds no records."""


class NoSuchCell(LookupError):
    """No cell of a run, or more than one, is called so."""


class Row(TypedDict):
    """One number and all that it belongs to; `arm` is the name of the model in its suite."""

    suite: str
    arm: str
    wiring: str
    optimizer: str
    seed: int | None
    what: str
    treatment: str
    step: int | None
    kind: str
    site: str
    scope: str
    quantizer: str
    slice: str
    bits_per_value: float | None
    metric: str
    value: float
    low: float | None
    high: float | None
    n: int
    samples: str
    cell: str


class Where(TypedDict, total=False):
    """What to keep: `site` is a pattern, `blocks.*.out` or `blocks.**`, everything else is compared as it is."""

    suite: str | None
    arm: str | None
    wiring: str | None
    optimizer: str | None
    seed: int | None
    what: str | None
    treatment: str | None
    step: int | None
    kind: str | None
    site: str | None
    scope: str | None
    quantizer: str | None
    metric: str | None
    cell: str | None


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Run:
    """What a run folder holds. `cells` has the last attempt at each cell, by cell id, in the order they finished.

    `superseded` counts earlier attempts, `unfinished` records that a killed process left without a closing line.
    """

    folder: Path
    cells: Mapping[str, Attempt]
    manifest: Mapping[str, Any]
    superseded: int = 0
    unfinished: int = 0

    def records(self, **where: Unpack[Where]) -> Iterator[Row]:
        """Every number measured as a flat row; keep those that match all of `where`, where None matches everything."""
        _refuse_unknown(where)
        equal = {name: value for name, value in where.items() if value is not None and name not in ("site", "metric")}
        pattern = where.get("site") or "**"
        selected = cache(partial(matches, pattern))  # a run has many records and few sites
        return (
            row
            for attempt in self.cells.values()
            for row in rows(attempt, where.get("metric"))
            if selected(row["site"]) and all(row[name] == value for name, value in equal.items())
        )

    def frame(self, **where: Unpack[Where]) -> Any:
        """`records` as a pandas DataFrame; ImportError where pandas is not installed."""
        try:
            from pandas import DataFrame
        except ImportError as error:
            raise ImportError("frame() needs pandas: pip install pandas, or iterate over records()") from error
        return DataFrame(self.records(**where), columns=list(Row.__annotations__))

    @property
    def failed(self) -> tuple[Closing, ...]:
        """Closing lines of the cells that were not measured, unsupported ones included."""
        closings = (attempt.closing for attempt in self.cells.values())
        return tuple(closing for closing in closings if closing.status != "measured")

    def cell(self, start: str) -> Attempt:
        """The one cell whose id starts with `start`; NoSuchCell where there is none or more than one."""
        found = [cell for cell in self.cells if cell.startswith(start)]
        if len(found) != 1:
            some = f"{len(found)} cells start" if found else "no cell starts"
            raise NoSuchCell(
                f"{some} with {start!r} in {self.folder}, which holds {len(self.cells)} cells; "
                f"`qbench show {self.folder}` lists them"
            )
        return self.cells[found[0]]

    def only(self, cells: Container[str]) -> "Run":
        """The same run with these cells only: a folder also keeps the cells of a suite's earlier versions."""
        return replace(self, cells={cell: attempt for cell, attempt in self.cells.items() if cell in cells})

    @property
    def session(self) -> Mapping[str, Any]:
        """The last session on the folder; empty where no manifest tells of one."""
        return (self.manifest.get("sessions") or [{}])[-1]

    @property
    def current(self) -> "Run":
        """The cells that the last session's suite has; all of them where no manifest says which those are."""
        asked = self.session.get("asked")
        return self.only(frozenset(asked)) if asked else self

    def evidence(self, samples: str) -> dict[str, Any]:
        """The vectors behind a row, by its `samples`; BadEvidence where they are missing or damaged."""
        from qbench.results import evidence

        return evidence.load(self.folder, samples)

    def __repr__(self) -> str:
        counts = Counter(attempt.closing.status for attempt in self.cells.values())
        return f"Run({str(self.folder)!r}: {', '.join(f'{counts[status]} {status}' for status in STATUSES)})"

    def _repr_html_(self) -> str:
        """Cells by arm and status, for a notebook."""
        counts = Counter((arm(attempt.closing.spec), attempt.closing.status) for attempt in self.cells.values())
        head = "".join(f"<th>{escape(text)}</th>" for text in ("model", *STATUSES))
        body = "".join(
            f"<tr><td>{escape(name)}</td>{''.join(f'<td>{counts[name, status]}</td>' for status in STATUSES)}</tr>"
            for name in dict.fromkeys(name for name, _ in counts)
        )
        caption = f"<caption>{escape(str(self.folder))}: {len(self.cells)} cells</caption>"
        return f"<table>{caption}<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def read(folder: str | Path, only: Container[Any] | None = None) -> Run:
    """The run stored in `folder`, also while it is being written; of cells that measure nothing of `only`, the ends.

    Raises NoRun where there are no records, BadRecords and BadManifest, with the place, where a file is damaged.
    """
    folder = Path(folder)
    if not (folder / RECORDS).exists():
        raise NoRun(f"{folder} holds no {RECORDS}; name the folder that `qbench run` wrote")
    manifest = origin.read(folder)
    if only is not None:
        wanted = selected(folder / RECORDS, lambda closing: part(closing.spec, "measurement").get("what") in only)
        return Run(folder=folder, cells=wanted, manifest=manifest)
    log = scan(folder / RECORDS)
    return Run(
        folder=folder, cells=log.attempts, manifest=manifest, superseded=log.superseded, unfinished=log.unfinished
    )


def opened(folder: str | Path, *, everything: bool = False) -> Run:
    """The cells that the last session's suite has; with `everything`, those of earlier suites and profiles too."""
    run = read(folder)
    return run if everything else run.current


def rows(attempt: Attempt, metric: str | None = None) -> Iterator[Row]:
    """The numbers of one cell, or only those of one metric; none where the cell was not measured."""
    # What a failed cell had measured before it failed is kept in the file, but it is not a result.
    if attempt.closing.status != "measured":
        return
    shared = common(attempt.closing)
    for record in attempt.records:
        base = shared | {name: getattr(record, name) for name in _OF_RECORD}
        for name, value in record.values.items():
            if metric in (None, name):
                low, high = record.intervals.get(name, (None, None))
                yield Row(**base, metric=name, value=value, low=low, high=high)


def arm(spec: Mapping[str, Any]) -> str:
    """The name of the model in its suite, from a cell's spec."""
    return str(spec.get("arm", ""))


def part(spec: Mapping[str, Any], *names: str) -> Mapping[str, Any]:
    """A nested part of a cell's spec, empty where the cell has none (`training` of an untrained model is null)."""
    for name in names:
        inner = spec.get(name)
        spec = inner if isinstance(inner, Mapping) else {}
    return spec


def common(closing: Closing) -> dict[str, Any]:
    """The columns that all rows of a cell share."""
    spec = closing.spec
    return {
        "suite": str(spec.get("suite", "")),
        "arm": arm(spec),
        "wiring": str(part(spec, "model").get("wiring", "")),
        "optimizer": str(part(spec, "training").get("optimizer", "")),
        "seed": spec.get("seed"),
        "what": str(part(spec, "measurement").get("what", "")),
        "treatment": str(part(spec, "measurement", "treatment").get("name", "")),
        "cell": closing.cell,
    }


def _refuse_unknown(where: Mapping[str, object]) -> None:
    for name in where:
        if name not in Where.__annotations__:
            near = get_close_matches(name, Where.__annotations__, n=1)
            hint = f"did you mean {near[0]!r}? " if near else ""
            raise TypeError(f"records have no {name!r}; {hint}known: {', '.join(Where.__annotations__)}")


_OF_RECORD = ("step", "kind", "site", "scope", "quantizer", "slice", "bits_per_value", "n", "samples")
