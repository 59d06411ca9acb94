"""Tables of the page: numbers already in words, ready for a reader, a screen reader or a CSV file."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from qbench.report.budget import Floors, floors
from qbench.report.factors import quantized
from qbench.report.panels import Mark, Panel
from qbench.report.view import UNQUANTIZED, Arm, Row, View, by_seed, deviation, place
from qbench.report.words import fixed, number, spread

NONE = "–"
MOST_TREATMENTS = 4
KNOWN_KURTOSIS: Mapping[str, str] = {"gaussian": "0", "laplace": "3", "uniform": "−1.2"}
CALIBRATED = ("int8/tensor", "int4/tensor", "int4/token", "int4/block:32", "mxfp4")


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """`groups` are (heading, number of columns) above `columns`; `foot` rows are the noise floors."""

    caption: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    foot: tuple[tuple[str, ...], ...] = ()
    groups: tuple[tuple[str, int], ...] = ()
    styles: tuple[int, ...] = ()  # the arm of each row, where a row is an arm
    note: str = ""
    words: tuple[int, ...] = ()  # columns that hold text rather than numbers
    shades: tuple[tuple[int | None, ...], ...] = ()  # of each row's cells but the first, darker for worse
    marked: tuple[int, ...] = ()  # rows to look at first
    kind: str = ""  # how it is laid out: "claims" have long words in their first column


def arms(run: View, treatments: Sequence[str]) -> Table:
    """Wiring by optimizer: full-precision loss, and for each key treatment the loss and its increase."""
    chosen = _key_treatments(run, treatments)
    wanted = [(UNQUANTIZED, "loss"), *((name, metric) for name in chosen for metric in ("loss", "loss_increase"))]
    measured = [arm for arm in run.arms if run.select("loss", arm=arm.name)]
    limits = [floors(run, metric, [name]) for name, metric in wanted]
    return Table(
        caption=f"Loss in {run.nats.replace('/', ' per ')}: mean ± standard deviation over seeds",
        groups=(("", 4), ("full precision", 1), *((name, 2) for name in chosen)),
        columns=("arm", "wiring", "optimizer", "seeds", "loss", *(["loss", "increase"] * len(chosen))),
        rows=tuple((*_who(arm), *(_over_seeds(run, arm, *column) for column in wanted)) for arm in measured),
        foot=tuple(
            (label, "", "", "", *(_floor(getattr(one, name)) for one in limits)) for name, label in FLOORS.items()
        ),
        styles=tuple(arm.style for arm in measured),
    )


FLOORS: Mapping[str, str] = {
    "numerical": "numerical floor: nothing quantized, another batch size or float64",
    "window": "window floor: standard error over evaluation windows",
    "seed": "seed floor: standard deviation over seeds, all arms",
}


def _who(arm: Arm) -> tuple[str, ...]:
    training = arm.training or {}
    inside = quantized(training)
    optimizer = str(training.get("optimizer", NONE)) + (f"; inside: {inside}" if inside else "")
    return arm.name, str(arm.model.get("wiring", NONE)), optimizer, str(len(arm.seeds))


def _key_treatments(run: View, asked: Sequence[str]) -> list[str]:
    """Those that the suite's claims are about; where there are none, the first ones measured."""
    there = list(dict.fromkeys(row.treatment for row in run.select("loss")))
    names = [name for name in dict.fromkeys(asked) if name in there] or there
    return [name for name in names if name != UNQUANTIZED][:MOST_TREATMENTS]


def _over_seeds(run: View, arm: Arm, treatment: str, metric: str) -> str:
    values = by_seed(run.select("loss", arm=arm.name, treatment=treatment), metric).values()
    return spread(fmean(values), deviation(values)) if values else NONE


def _floor(value: float | None) -> str:
    return NONE if value is None else number(value, 2)


def noise(limits: Floors, unit: str) -> str:
    """The three floors in one line, for under a chart or a table."""
    parts = [f"{name} {_floor(getattr(limits, name))}" for name in FLOORS]
    return f"Noise floors, {unit}: {', '.join(parts)}."


def calibration(run: View) -> Table | None:
    """Tensors with known moments: measured against expected; None where none were measured."""
    shapes = {row.site: row for row in run.calibration("shape")}
    if not shapes:
        return None
    errors = {(row.site, row.quantizer): row for row in run.calibration("error")}
    there = list(dict.fromkeys(quantizer for _, quantizer in errors))
    quantizers = [name for name in CALIBRATED if name in there] or there[:5]
    return Table(
        caption="Tensors with known moments, through the same measurement",
        groups=(("", 1), ("excess kurtosis", 2), *((name, 2) for name in quantizers)),
        columns=("data", "measured", "expected", *(["SQNR, dB", "over Gaussian"] * len(quantizers))),
        rows=tuple(
            (site, *_moments(site, row), *(cell for q in quantizers for cell in _quantized(errors.get((site, q)))))
            for site, row in shapes.items()
        ),
        note=_gaussian_note(errors, quantizers),
    )


def _moments(site: str, row: Row) -> tuple[str, str]:
    """Kurtosis measured and expected; for Gaussian data with the deviation that samples of its size have."""
    measured = row.values.get("excess_kurtosis/tensor")
    deviation = row.values.get("gaussian/sd/excess_kurtosis/tensor")
    known = KNOWN_KURTOSIS.get(site, NONE)
    if site == "gaussian" and deviation:
        known = f"{known} ± {number(deviation, 2)}"
    return NONE if measured is None else number(measured), known


def _quantized(row: Row | None) -> tuple[str, str]:
    """SQNR, and how far it lies above what Gaussian data of this format and block size would show."""
    if row is None or "error_db" not in row.values:
        return NONE, NONE
    loss = row.values.get("shape_loss_db")
    gain = NONE if loss is None else fixed(-loss, 2)
    return fixed(-row.values["error_db"], 1), gain if gain.startswith(("−", NONE)) else f"+{gain}"


def _gaussian_note(errors: Mapping[tuple[str, str], Row], quantizers: Sequence[str]) -> str:
    losses = [
        abs(row.values["shape_loss_db"])
        for q in quantizers
        if (row := errors.get(("gaussian", q))) and "shape_loss_db" in row.values
    ]
    if not losses:
        return ""
    return f"Gaussian data lies within {number(max(losses), 2)} dB of its closed form in every format shown."


def of_budgets(panels: Sequence[Panel], unit: str) -> Table:
    """What a chart of losses shows, for those who do not see it."""
    rows = [
        (series.name, panel.name, mark.label, number(mark.x), number(mark.y), _between(mark))
        for panel in panels
        for series in panel.series
        for mark in series.marks
    ]
    columns = ("arm", "scope", "quantizer", "bits per value", "loss increase", "seeds span")
    return Table(caption=f"Loss increase, {unit}: mean over seeds", columns=columns, rows=tuple(rows))


def _between(mark: Mark) -> str:
    return NONE if mark.low is None or mark.high is None else f"{number(mark.low)} to {number(mark.high)}"


def of_course(panel: Panel) -> Table:
    """What a chart along layers or steps shows: one row for each arm, one column for each place."""
    places = sorted({mark.x for series in panel.series for mark in series.marks})
    rows: list[tuple[str, ...]] = []
    for series in panel.series:
        here = {mark.x: number(mark.y) for mark in series.marks}
        rows.append((series.name, *(here.get(x, NONE) for x in places)))
    columns = (panel.x.title, *(f"{x:g}" for x in places))
    return Table(caption=f"Excess kurtosis, {panel.title}: mean over seeds", columns=columns, rows=tuple(rows))


def of_cloud(panel: Panel) -> Table:
    """The cloud by arm and class of sites: how many points, mean kurtosis, mean SQNR."""
    rows: list[tuple[str, ...]] = []
    for series in panel.series:
        groups: dict[str, list[Mark]] = {}
        for mark in series.marks:
            groups.setdefault(place(mark.label)[1], []).append(mark)
        for name, marks in groups.items():
            means = number(fmean(mark.x for mark in marks)), fixed(fmean(mark.y for mark in marks), 1)
            rows.append((series.name, name, str(len(marks)), *means))
    columns = ("arm", "sites", "points", "mean excess kurtosis", "mean SQNR, dB")
    return Table(caption=f"{panel.name}, averaged over layers and seeds", columns=columns, rows=tuple(rows))
