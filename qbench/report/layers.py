"""Sensitivity: what one layer alone costs, beside the noise of its measurement, and which layers to leave alone."""

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from markupsafe import Markup

from qbench.capture.exclude import SYNTAXES, Exclusion, Linears, exclusion
from qbench.report.svg import number as coordinate
from qbench.report.tables import NONE, Table
from qbench.report.verdict import nats, signed
from qbench.report.view import Row, View
from qbench.report.words import counted, number

FIRST, FISHER = "loss_increase/first_order", "loss_increase/fisher"
NUMBERS = {"loss_increase": "loss increase", "floor/window": "standard error", FIRST: "by the gradient"}
CORRELATIONS = {"rank_correlation/first_order": "the gradient", "rank_correlation/fisher": "squared gradients"}
TRANSPOSED = "transposed"  # a record that names the layers which keep their matrix as [in, out]
STANDS_OUT = 2.0  # standard errors
MOST_KEPT = 8
WIDTH, HEIGHT, MIDDLE = 220, 18, 9


@dataclass(frozen=True, slots=True, kw_only=True)
class Layers:
    """One sweep: its table with bars, what it says in a sentence, and the list to exclude in every syntax.

    `first` is the group that costs most alone, its nats with two standard errors, and how many of the groups stand
    out; empty where none was measured exactly. `most_kept` is how many groups the list names where more stand out.
    """

    name: str
    first: tuple[str, ...]
    most: float
    most_kept: int
    table: Table
    summary: str
    excluded: tuple[tuple[str, str], ...]


def sweeps(seen: View) -> list[Layers]:
    """Every sweep of every model, in the suite's order."""
    found: dict[str, list[Row]] = {}
    arms = {row.arm for row in seen.select("sensitivity")}
    for row in seen.select("sensitivity"):
        found.setdefault(f"{row.arm}: {row.quantizer}" if len(arms) > 1 else row.quantizer, []).append(row)
    return [_layers(name, rows) for name, rows in found.items()]


def _layers(name: str, rows: Sequence[Row]) -> Layers:
    units = [row for row in rows if row.site and row.site != TRANSPOSED]
    exact = sorted(
        (row for row in units if "loss_increase" in row.values), key=lambda row: -row.values["loss_increase"]
    )
    guessed = sorted((row for row in units if row not in exact), key=lambda row: -row.values.get(FISHER, 0.0))
    clear = [row for row in exact if stands_out(row)]
    listing = _listing(rows, units, clear[:MOST_KEPT])
    return Layers(
        name=name,
        first=_first(exact, len(clear)),
        most=exact[0].values["loss_increase"] if exact else 0.0,
        most_kept=MOST_KEPT if len(clear) > MOST_KEPT else 0,
        table=_table(name, exact, guessed),
        summary=_summary(exact, guessed, clear) + _ranking(rows),
        excluded=tuple((tool, spell(listing)) for tool, spell in SYNTAXES.items()) if clear else (),
    )


def _first(exact: Sequence[Row], clear: int) -> tuple[str, ...]:
    if not exact:
        return ()
    values = exact[0].values
    cost = f"{signed(values['loss_increase'])} \u00b1 {nats(2 * values.get('floor/window', 0.0))}"
    return exact[0].site, cost, f"{clear} of {len(exact)}"


def headline(seen: View) -> str:
    """Of a run that looked at single layers alone: which one, under which format, costs most."""
    worst = max(sweeps(seen), key=lambda one: one.most, default=None)
    if worst is None or not worst.first:
        return "No layer was measured alone."
    site, cost, clear = worst.first
    return f"Alone, {site} costs most: {cost} nats under {worst.name}, where {clear} groups of layers stand out."


def _listing(rows: Sequence[Row], units: Sequence[Row], clear: Sequence[Row]) -> Exclusion:
    """The modules of the units that stand out, and what else a list has to name."""
    outside = [name for row in rows if not row.site for name in row.scope.split()]
    turned = [name for row in rows if row.site == TRANSPOSED for name in row.scope.split()]
    inside = [name for row in units for name in row.scope.split()]
    linears = Linears(tuple(dict.fromkeys(inside)), tuple(outside), tuple(turned))
    return exclusion((name for row in clear for name in row.scope.split()), linears)


def stands_out(row: Row) -> bool:
    """Its increase is more than two standard errors above none."""
    return row.values["loss_increase"] > STANDS_OUT * row.values.get("floor/window", 0.0)


def _summary(exact: Sequence[Row], guessed: Sequence[Row], clear: Sequence[Row]) -> str:
    if not exact:
        return f"{counted(len(guessed), 'layer group')} ranked by gradients; none was measured exactly."
    first = exact[0]
    top = f"Alone, {first.site} costs most: {number(first.values['loss_increase'], 2)} nats"
    told = f"{counted(len(clear), 'group')} of {len(exact)} measured exactly cost more than two standard errors"
    rest = f"; {len(guessed)} more were only ranked by gradients" if guessed else ""
    return f"{top}. {told}{rest}."


def _ranking(rows: Sequence[Row]) -> str:
    """Whether the gradients put layers in the order that they have."""
    summary = next((row.values for row in rows if not row.site), {})
    said = [f"{words} {number(summary[name], 2)}" for name, words in CORRELATIONS.items() if name in summary]
    return f" Rank correlation of the exact costs with {' and '.join(said)}." if said else ""


def _table(name: str, exact: Sequence[Row], guessed: Sequence[Row]) -> Table:
    reach = max(
        (abs(row.values["loss_increase"]) + 2 * row.values.get("floor/window", 0.0) for row in exact), default=1
    )
    low = min((row.values["loss_increase"] - 2 * row.values.get("floor/window", 0.0) for row in exact), default=0.0)
    span = min(low, 0.0), reach or 1.0
    names = [metric for metric in NUMBERS if any(metric in row.values for row in (*exact, *guessed))]
    return Table(
        caption=f"Loss increase with {name} in one group of layers alone, nats; bars are two standard errors",
        columns=("reads", "", *(NUMBERS[metric] for metric in names), "modules"),
        rows=(
            *((row.site, bar(row, span), *_numbers(row, names), _modules(row)) for row in exact),
            *((row.site, "not measured exactly", *_numbers(row, names), _modules(row)) for row in guessed),
        ),
        words=(1, 2 + len(names)),
        marked=tuple(i for i, row in enumerate(exact) if stands_out(row)),
    )


def _numbers(row: Row, names: Sequence[str]) -> tuple[str, ...]:
    return tuple(nats(row.values[name]) if name in row.values else NONE for name in names)


def _modules(row: Row) -> str:
    """What the modules are called, said once where they share a parent."""
    names = row.scope.split()
    parent = names[0].rpartition(".")[0] if names else ""
    if len(names) > 1 and all(name.rpartition(".")[0] == parent for name in names):
        return f"{parent}.{{{', '.join(name.rpartition('.')[2] for name in names)}}}"
    return ", ".join(names)


def bar(row: Row, span: tuple[float, float]) -> Markup:
    """The increase from none, with two standard errors to both sides."""
    value, error = row.values["loss_increase"], 2 * row.values.get("floor/window", 0.0)
    places = [_across(x, span) for x in (0.0, value, value - error, value + error)]
    zero, _, low, high = (coordinate(x) for x in places)
    left, width = coordinate(min(places[:2])), coordinate(abs(places[1] - places[0]))
    tone = "clear" if stands_out(row) else "within"
    words = escape(f"{number(value, 2)} ± {number(error, 2)}")
    return Markup(
        f'<svg class="bar {tone}" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{words}">'
        f'<rect x="{left}" y="4" width="{width}" height="10"/><path class="whisker" d="M{low} {MIDDLE}H{high}"/>'
        f'<path class="zero" d="M{zero} 0V{HEIGHT}"/></svg>'
    )


def _across(value: float, span: tuple[float, float]) -> float:
    low, high = span
    return 4 + (value - low) / (high - low) * (WIDTH - 8)
