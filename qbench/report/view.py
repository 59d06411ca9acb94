"""Records joined with what was asked: the rows that every table and chart is made of."""

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from operator import attrgetter
from statistics import fmean, stdev
from typing import Any, get_args

from qbench.metrics.catalog import METRICS
from qbench.models.spec import Wiring
from qbench.report import factors, twins, words
from qbench.results.record import Closing, Record
from qbench.results.run import Run, part

CALIBRATION = "calibration"
UNQUANTIZED = "unquantized"
WIRINGS: Mapping[str, Wiring] = {name: name for name in get_args(Wiring)}


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One record and the parts of its cell's spec that a reader selects by."""

    arm: str
    seed: int
    what: str
    values: Mapping[str, float]
    kind: str = ""
    site: str = ""
    scope: str = ""
    quantizer: str = ""
    treatment: str = ""
    slice: str = ""
    step: int | None = None
    bits: float | None = None
    intervals: Mapping[str, tuple[float, float]] = field(default_factory=dict[str, tuple[float, float]])
    n: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Arm:
    """One model of the suite: what it is, how it was trained, with which seeds.

    `style` says how it is drawn, `drawn_as` what a legend calls that style where arms are not crossed.
    """

    name: str
    style: int
    drawn_as: str
    model: Mapping[str, Any]
    training: Mapping[str, Any] | None
    seeds: tuple[int, ...]

    @property
    def layers(self) -> int:
        return int(self.model.get("layers", 0))

    @property
    def wiring(self) -> Wiring:
        """What its sites are called by; models from elsewhere have none of ours."""
        return WIRINGS.get(str(self.model.get("wiring")), "residual")


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """A run as the report reads it; `rows` leave out what failed, `cells` do not."""

    arms: tuple[Arm, ...]
    rows: tuple[Row, ...]
    cells: tuple[Closing, ...]
    manifest: Mapping[str, Any]
    index: "Index" = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "index", Index(self.rows))

    def select(self, what: str, **wanted: object) -> list[Row]:
        """Rows of the trained arms measured as `what`, whose fields equal `wanted`."""
        arms = {arm.name for arm in self.arms}
        rows = self.index.of(what, wanted.get("arm"))
        return [row for row in matching(rows, what, wanted) if row.arm in arms]

    def calibration(self, what: str) -> list[Row]:
        """Rows of the tensors with known moments."""
        arms = {arm.name for arm in self.arms}
        return [row for row in matching(self.index.of(what), what, {}) if row.arm not in arms]

    @property
    def nats(self) -> str:
        """What its losses are in: `nats/token`, or `nats/image` where models read images."""
        return words.nats(arm.model for arm in self.arms)

    def unit(self, metric: str) -> str:
        """Of a metric of this run; the catalog's is that of language models."""
        return METRICS[metric].unit.replace(words.PER_TOKEN, self.nats)

    def arm(self, name: str) -> Arm | None:
        return next((arm for arm in self.arms if arm.name == name), None)

    def of(self, arms: Iterable[Arm]) -> "View":
        """The same run with these arms alone."""
        found = replace(self, arms=tuple(arms))
        object.__setattr__(found, "index", self.index)
        return found


class Index:
    """Rows by what was measured and of which arm, made when first asked for: a study has some hundred thousand."""

    def __init__(self, rows: Sequence[Row]) -> None:
        self._rows = rows
        self._found: dict[tuple[str, object], list[Row]] = {}

    def of(self, what: str, arm: object = None) -> list[Row]:
        """In the order in which they were measured; those of all arms without one."""
        if not self._found:
            for row in self._rows:
                for key in ((row.what, None), (row.what, row.arm)):
                    self._found.setdefault(key, []).append(row)
        return self._found.get((what, arm), [])


def matching(rows: Iterable[Row], what: str, wanted: Mapping[str, object]) -> list[Row]:
    """Those whose fields equal `wanted`; without a `slice` in it, those of no slice."""
    wanted = {"what": what, "slice": "", **wanted}
    fields, found = attrgetter(*wanted), tuple(wanted.values())
    return [row for row in rows if fields(row) == found]


def view(run: Run, first: Sequence[str] = ()) -> View:
    """The records of `run` with their cells; arms named in `first` come first, the rest as they were measured.

    Workers finish in any order, so without `first` two runs of one suite may order, and colour, their arms differently.
    """
    rows = [
        _row(record, attempt.closing.spec)
        for attempt in run.cells.values()
        if attempt.closing.status == "measured"
        for record in attempt.records
    ]
    cells = tuple(attempt.closing for attempt in run.cells.values())
    arms = _arms(cells, first)
    return View(arms=arms, rows=tuple(twins.with_increase(rows, arms)), cells=cells, manifest=run.manifest)


def is_calibration(spec: Mapping[str, Any]) -> bool:
    return part(spec, "model").get("arch") == CALIBRATION


def _row(record: Record, spec: Mapping[str, Any]) -> Row:
    measurement = part(spec, "measurement")
    return Row(
        arm=str(spec.get("arm", "")),
        seed=int(spec.get("seed") or 0),
        what=str(measurement.get("what", "")),
        values=record.values,
        kind=record.kind or str(measurement.get("kind", "")),
        site=record.site,
        scope=record.scope,
        quantizer=record.quantizer or str(measurement.get("quantizer", "")),
        treatment=str(part(spec, "measurement", "treatment").get("name", "")),
        step=record.step,
        slice=record.slice,
        bits=record.bits_per_value,
        intervals=record.intervals,
        n=record.n,
    )


def _arms(cells: Sequence[Closing], first: Sequence[str]) -> tuple[Arm, ...]:
    specs: dict[str, list[Mapping[str, Any]]] = {name: [] for name in first}
    for cell in cells:
        if not is_calibration(cell.spec):
            specs.setdefault(str(cell.spec.get("arm", "")), []).append(cell.spec)
    measured = [(name, sorted(found, key=_is_trial)) for name, found in specs.items() if found]
    known = factors.factors({n: (found[0].get("model") or {}, found[0].get("training") or {}) for n, found in measured})
    gathered = factors.gathered([*known.values()])
    return tuple(
        Arm(
            name=name,
            style=style,
            drawn_as=known[name].model if gathered else name,
            model=found[0].get("model") or {},
            training=found[0].get("training"),
            seeds=tuple(sorted({int(spec.get("seed") or 0) for spec in found})),
        )
        for style, (name, found) in zip(factors.styles([*known.values()]), measured, strict=True)
    )


def _is_trial(spec: Mapping[str, Any]) -> bool:
    """Whether a cell tries a learning rate: it may not be the one that the arm was trained with."""
    return part(spec, "measurement").get("what") == "trial"


def place(site: str) -> tuple[int | None, str]:
    """The layer and the class of a site.

    >>> place("blocks.3.mlp.hidden"), place("logits")
    ((3, 'mlp.hidden'), (None, 'logits'))
    """
    head, _, rest = site.partition(".")
    layer, _, name = rest.partition(".")
    return (int(layer), name) if head == "blocks" and layer.isdigit() else (None, site)


def by_seed(rows: Iterable[Row], metric: str) -> dict[int, float]:
    """For each seed, the mean of `metric` over its rows: sites are averaged within a seed first."""
    values: dict[int, list[float]] = defaultdict(list)
    for row in rows:
        if metric in row.values:
            values[row.seed].append(row.values[metric])
    return {seed: fmean(found) for seed, found in sorted(values.items())}


def deviation(values: Collection[float]) -> float | None:
    """Standard deviation over seeds; one seed has none."""
    return stdev(values) if len(values) > 1 else None
