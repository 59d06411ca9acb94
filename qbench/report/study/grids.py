"""Architecture by optimizer: small maps of what was reached, in absolute terms, with intervals and the best marked."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import log
from typing import Any, Literal

from markupsafe import Markup

from qbench.report import axes, effects, troubles
from qbench.report.payload import Rows, packed, short
from qbench.report.study.crossing import Crossing, Pair
from qbench.report.study.form import Section
from qbench.report.study.levels import Level, level, stacked
from qbench.report.tables import NONE, Table
from qbench.report.view import UNQUANTIZED, View
from qbench.stats.interval import difference_interval

SHADES = 7
LAST = "last"  # stands for the output of the last block, whose number is the arm's
MOST = 6  # treatments that have maps
PLAIN = {"treatment": UNQUANTIZED, "metric": "loss"}
TREATMENTS = (
    *("int4/tensor @ boundaries", "int4/tensor @ interior", "int3/tensor @ middle", "int4/token @ boundaries"),
    *("int4/tensor @ linear", "int4/token @ linear", "int4/channel @ weights"),
)
Scale = Literal["linear", "logarithmic", "kurtosis"]
SCALED: Mapping[Scale, Callable[[float], float]] = {
    "linear": float,
    "logarithmic": lambda value: log(max(value, 1e-6)),
    "kurtosis": axes.log_kurtosis,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Quantity:
    """A number of each arm and seed, as `effects.per_seed` reads it; lower is better where it is `ranked`."""

    title: str
    measure: Mapping[str, Any]
    scale: Scale = "linear"
    ranked: bool = False
    flipped: bool = False  # shown with the other sign: a signal over its error instead of the error


def _shape(title: str, sites: str, axis: str = "tensor", kind: str = "activation") -> Quantity:
    measure = {"kind": kind, "sites": [sites], "metric": f"excess_kurtosis/{axis}"}
    return Quantity(title=f"Kurtosis: {title}", measure=measure, scale="kurtosis")


SHAPES = (
    _shape("interior boundaries", "interior"),
    _shape("interior boundaries, per token", "interior", "token"),
    _shape("the last block's output", LAST),
    _shape("MLP hidden", "blocks.*.mlp.hidden"),
    _shape("attention context", "blocks.*.attn.context"),
    _shape("gradients at interior boundaries", "interior", kind="gradient"),
)


def section(seen: View, where: Crossing, claims: Sequence[Mapping[str, Any]]) -> Section | None:
    """Every quantity that at least two arms have; None where there is none."""
    maps = [
        (heading, tuple(table for one in found if (table := _map(seen, where, one)) is not None))
        for heading, found in groups(seen, claims).items()
    ]
    filled = tuple((heading, tables) for heading, tables in maps if tables)
    if not where.crossed or not filled:
        return None
    return Section(
        name="arms",
        title="Architecture by optimizer",
        link="Architecture × optimizer",
        about=(
            "Each map crosses both factors, so that neither stands for the other. Below each mean is half of its 95 % "
            "interval over seeds; the darker, the worse within a map. Increases stand beside absolute losses: a worse "
            "model is less sensitive, so a small increase alone is no merit."
        ),
        said=(
            "Framed: the lowest mean of a map of losses. ≈: not told from it by its own seeds, paired, at 95 %.",
            *lost(seen, where),
        ),
        maps=filled,
    )


def lost(seen: View, where: Crossing) -> tuple[str, ...]:
    found = troubles.in_words(seen.of(where.main.values()))
    return (f"Learned nothing, and so neither shaded nor best: {', '.join(found.values())}.",) if found else ()


def apart(seen: View, where: Crossing) -> tuple[Pair, ...]:
    """Those of which a seed learned nothing."""
    found = troubles.learned_nothing(seen)
    return tuple(pair for pair, arm in where.main.items() if arm.name in found)


def groups(seen: View, claims: Sequence[Mapping[str, Any]]) -> dict[str, list[Quantity]]:
    """By heading: full precision first, then each key treatment with what it costs and how large its error is."""
    found = {"In full precision": [Quantity(title=f"Loss, {seen.nats}", measure=PLAIN, ranked=True), *SHAPES]}
    return found | {f"With {name}": _of_treatment(seen, name) for name in treatments(seen, claims)}


def treatments(seen: View, claims: Sequence[Mapping[str, Any]]) -> list[str]:
    """Those that the claims are about, then the usual ones, as far as they were measured."""
    asked = [str(claim["measure"]["treatment"]) for claim in claims if "treatment" in claim["measure"]]
    there = {row.treatment for row in seen.select("loss")}
    return [name for name in dict.fromkeys([*asked, *TREATMENTS]) if name in there and name != UNQUANTIZED][:MOST]


def _of_treatment(seen: View, name: str) -> list[Quantity]:
    quantizer, _, scope = name.partition(" @ ")
    kind = next((row.kind for row in seen.select("loss", treatment=name)), "")
    error = {"kind": kind, "sites": [scope], "quantizer": quantizer, "metric": "error_db"}
    known = bool(scope and kind) and any(seen.select("error", kind=kind, quantizer=quantizer))
    return [
        Quantity(title=f"Loss, {seen.nats}", measure={"treatment": name, "metric": "loss"}, ranked=True),
        Quantity(
            title=f"Loss increase, {seen.nats}",
            measure={"treatment": name, "metric": "loss_increase"},
            scale="logarithmic",
        ),
        *([Quantity(title="Signal over error there (SQNR), dB", measure=error, flipped=True)] if known else []),
    ]


def _map(seen: View, where: Crossing, quantity: Quantity) -> Table | None:
    look = Look(
        title=quantity.title,
        scale=quantity.scale,
        ranked=quantity.ranked,
        apart=apart(seen, where),
        flipped=quantity.flipped,
    )
    return crossed_map(where, levels_of(seen, where, quantity), look)


@dataclass(frozen=True, slots=True, kw_only=True)
class Look:
    """How a map is drawn; pairs `apart` are neither shaded nor ranked."""

    title: str
    scale: Scale = "linear"
    ranked: bool = False
    apart: tuple[Pair, ...] = ()
    flipped: bool = False


def crossed_map(where: Crossing, levels: Mapping[Pair, Level], look: Look) -> Table | None:
    """Architectures down, optimizers across; None for fewer than two levels."""
    if len(levels) < 2:
        return None
    counted = {pair: one for pair, one in levels.items() if pair not in look.apart}
    best = min(counted, key=lambda pair: counted[pair].mean, default=None) if look.ranked else None
    optimizers = [name for name in where.optimizers if any(pair[1] == name for pair in levels)]
    architectures = [name for name in where.architectures if any(pair[0] == name for pair in levels)]
    grid = [[(name, optimizer) for optimizer in optimizers] for name in architectures]
    shown = {pair: one.flipped() for pair, one in levels.items()} if look.flipped else levels
    return Table(
        caption=look.title,
        columns=("", *optimizers),
        rows=tuple(
            (name, *(_cell(shown.get(pair), counted, pair, best) for pair in line))
            for name, line in zip(architectures, grid, strict=True)
        ),
        shades=tuple(tuple(_shade(counted, pair, look.scale) for pair in line) for line in grid),
    )


def levels_of(seen: View, where: Crossing, quantity: Quantity) -> dict[Pair, Level]:
    """By architecture and optimizer, of the longest schedules."""
    found = {pair: level(_per_seed(seen, arm.name, quantity)) for pair, arm in where.main.items()}
    return {pair: one for pair, one in found.items() if one is not None}


def _per_seed(seen: View, arm: str, quantity: Quantity) -> dict[int, float]:
    measure = dict(quantity.measure)
    if measure.get("sites") == [LAST]:
        found = seen.arm(arm)
        measure["sites"] = [f"blocks.{found.layers - 1}.out"] if found and found.layers else []
    return effects.per_seed(seen, arm, measure)


def _cell(one: Level | None, counted: Mapping[Pair, Level], pair: Pair, best: Pair | None) -> str:
    if one is None:
        return NONE
    if pair == best:
        return Markup('<b class="best">{}<span class="vh"> best</span></b>').format(stacked(one))
    if best is not None and pair in counted and _tied(one, counted[best]):
        near = Markup('<span class="near">≈<span class="vh"> not told from the best: </span></span>')
        return near + stacked(one)
    return stacked(one)


def _tied(one: Level, best: Level) -> bool:
    seeds = sorted(one.seeds.keys() & best.seeds.keys())
    if len(seeds) < 2:
        return False
    return difference_interval([one.seeds[s] for s in seeds], [best.seeds[s] for s in seeds]).low <= 0


def _shade(counted: Mapping[Pair, Level], pair: Pair, scale: Scale) -> int | None:
    if pair not in counted:
        return None
    places = {at: SCALED[scale](abs(one.mean) if scale == "kurtosis" else one.mean) for at, one in counted.items()}
    low, high = min(places.values()), max(places.values())
    return round((places[pair] - low) / (high - low) * SHADES) if high > low else 0


def sheet(seen: View, where: Crossing, claims: Sequence[Mapping[str, Any]]) -> Rows:
    """The same as a CSV file."""
    rows = [
        [
            heading,
            one.title,
            *pair,
            *(None if v is None else short(v) for v in (found.mean, found.low, found.high)),
            len(found.seeds),
        ]
        for heading, found_ in groups(seen, claims).items()
        for one in found_
        for pair, found in levels_of(seen, where, one).items()
    ]
    return packed(["shown", "quantity", "architecture", "optimizer", "mean", "low", "high", "seeds"], rows)
