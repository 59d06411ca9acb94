"""Does the network care? White noise of a fixed size at one place, no quantizer, and what it does to the loss."""

from collections.abc import Iterator, Sequence

from qbench.report.budget import SCOPES
from qbench.report.study import depth, grids, lines
from qbench.report.study.crossing import Crossing, Pair
from qbench.report.study.depth import Metric
from qbench.report.study.form import Figure, Section, Variant
from qbench.report.study.levels import Level, level, words
from qbench.report.tables import Table
from qbench.report.view import Arm, Row, View, by_seed, place
from qbench.report.words import listed, number

SENSITIVITY = "noise/sensitivity"


def section(seen: View, where: Crossing) -> Section | None:
    """None where no noise was tried."""
    rows = [row for row in seen.select("noise") if SENSITIVITY in row.values]
    places = _places(rows)
    if not places:
        return None
    levels = sorted({row.values["noise/snr_db"] for row in rows if "noise/snr_db" in row.values})
    maps = tuple(one for name in places if (one := _map(seen, where, name)))
    told = f" The noise lies {listed([f'{snr:g} dB' for snr in levels])} below each tensor." if levels else ""
    return Section(
        name="noise",
        title="Does the network care?",
        link="Noise",
        about=(
            "A quantizer's cost is its error times the network's sensitivity to errors there. This is the second "
            "factor alone: white noise, no quantizer; loss increase over the noise's relative power, "
            f"{seen.nats}.{told}"
        ),
        said=(*filter(None, (_exponents(seen),)), *grids.lost(seen, where), *_alone(seen, where, places)),
        maps=((f"Sensitivity, {seen.nats}, by place", maps),) if maps else (),
        figures=_by_depth(seen, where, places),
    )


def _places(rows: Sequence[Row]) -> list[str]:
    """Scopes first, then classes of sites."""
    scopes = dict.fromkeys(row.scope for row in rows if row.scope)
    known = [name for name in SCOPES if name in scopes]
    sites = dict.fromkeys(_class(row) for row in rows if not row.scope)
    return [*known, *(name for name in scopes if name not in known), *sites]


def _class(row: Row) -> str:
    return row.scope or place(row.site)[1]


def _of(seen: View, arm: Arm, name: str) -> list[Row]:
    return [row for row in seen.select("noise", arm=arm.name) if _class(row) == name]


def _levels(seen: View, where: Crossing, name: str) -> dict[Pair, Level]:
    found = {pair: level(by_seed(_of(seen, arm, name), SENSITIVITY)) for pair, arm in where.main.items()}
    return {pair: one for pair, one in found.items() if one is not None}


def _alone(seen: View, where: Crossing, places: Sequence[str]) -> Iterator[str]:
    """One number makes no map."""
    for name in places:
        found = _levels(seen, where, name)
        if len(found) == 1:
            yield from (f"{name}, {where.title(where.main[pair])} alone: {words(one)}." for pair, one in found.items())


def _map(seen: View, where: Crossing, name: str) -> Table | None:
    title = f"{name}: {SCOPES[name]}" if name in SCOPES else f"{name}, one layer at a time, mean"
    return grids.crossed_map(
        where, _levels(seen, where, name), grids.Look(title=title, scale="logarithmic", apart=grids.apart(seen, where))
    )


def _exponents(seen: View) -> str:
    """Whether the loss follows the noise's power, which the factor rests on."""
    found = [row.values["noise/exponent"] for row in seen.select("noise") if "noise/exponent" in row.values]
    if not found:
        return ""
    middle = sorted(found)[len(found) // 2]
    return f"The increase grows as the noise's power to the {number(middle, 2)} (median); 1 is what the factor assumes."


def _by_depth(seen: View, where: Crossing, places: Sequence[str]) -> tuple[Figure, ...]:
    metric = Metric(name=SENSITIVITY, title=f"sensitivity, {seen.nats}", scale="logarithmic")
    found = {
        name: chart
        for name in places
        if (chart := depth.chart(seen, where, metric, lambda arm, name=name: _of(seen, arm, name)))
        and max(map(len, chart.marks.values())) > 1
    }
    if not found:
        return ()
    return (
        Figure(
            name="noise",
            title="Sensitivity by depth",
            label="Site",
            variants=tuple(Variant(name=name, panels=lines.panels(one, where)) for name, one in found.items()),
            tables=tuple(lines.table(one, where) for one in list(found.values())[:1]),
        ),
    )
