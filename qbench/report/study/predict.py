"""Which statistic of the tensors predicts what quantizing them costs: rank correlations, and two clouds of points."""

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from math import isfinite

from markupsafe import Markup

from qbench.report import axes
from qbench.report.panels import Mark, Panel, Series
from qbench.report.predictors import PREDICTORS, Observation, incomplete, observations, predictors
from qbench.report.study.bars import bar
from qbench.report.study.crossing import Crossing
from qbench.report.study.form import Figure, Section, Variant
from qbench.report.tables import NONE, Table
from qbench.report.troubles import in_words
from qbench.report.view import View
from qbench.report.words import counted, fixed, listed, number
from qbench.stats.interval import Interval
from qbench.stats.rank import Comparison, Correlation

FLOW = "R behind the last block"  # known of fewer treatments than all others
PLAIN = tuple(name for name in PREDICTORS if name != FLOW)
SHAPE = "excess kurtosis per tensor"
SENSITIVE = "noise sensitivity × error"
UNASKED: Mapping[str, str] = {"error": "the tensors' error", SENSITIVE: "noise sensitivity"}  # what one needs for it
FEW = 8  # groups, from which resampling them says something of others
FIRST = ("int4/tensor", "int3/tensor", "int4/token", "int4/block:32", "mxfp4")
MOST = 2  # quantizers that have clouds
SCOPES = ("boundaries", "interior", "middle", "linear")
KNEE = 1e-3  # nats, within which an increase is drawn on a straight axis


def section(seen: View, where: Crossing) -> Section | None:
    """None where fewer than three treatments have what it takes."""
    plain = seen.of(where.main.values())
    every = observations(plain)
    overall = predictors(every, among=PLAIN)
    within = predictors(every, by_scope=True, among=PLAIN)
    flowed = predictors(every) if any(isfinite(one.flow) for one in every) else None
    if overall is None:
        return None
    found = {
        "ranked within a quantizer, over all places and arms": (overall, PLAIN),
        "ranked within a quantizer and a place, where only arms and seeds differ": (within, PLAIN),
        "where the error was followed through the network, ranked within a quantizer": (flowed, tuple(PREDICTORS)),
    }
    tables = [_table(how, one, _group(every, among)) for how, (one, among) in found.items() if one is not None]
    places = {name: _by_place([one for one in every if one.quantizer == name]) for name in _first(every)}
    return Section(
        name="predictors",
        title="What predicts the cost",
        link="Predictors",
        about=_about(overall, _group(every, PLAIN)),
        said=(*_said(overall, within), *_turns(places), *_left_out(every)),
        cautions=tuple(_cautions(plain, overall, _group(every, PLAIN))),
        tables=(*tables, *(_places(name, of) for name, of in places.items() if len(of) > 1)),
        figures=_clouds(plain, overall, every),
    )


def _group(every: Sequence[Observation], among: Collection[str]) -> str:
    """What is resampled as a whole, as `predictors` does it."""
    left = {id(one) for found in incomplete(every, among).values() for one in found}
    return "arm" if len({one.run[0] for one in every if id(one) not in left}) > 1 else "run"


def _about(overall: Comparison, group: str) -> str:
    how = "arms with their seeds" if group == "arm" else "the runs of the one arm"
    noise = (
        " Noise sensitivity is itself a loss increase, measured with white noise on windows of the same split: it says "
        "how much the network cares, and is no statistic of a tensor."
    )
    return (
        "Spearman's rank correlation of each statistic with the loss increase, over treatments of activations. "
        f"Intervals resample {how}.{noise * (SENSITIVE in overall.correlations)}"
    )


def _cautions(seen: View, overall: Comparison, group: str) -> list[str]:
    """What learned nothing has nothing to lose; and few groups are no sample to draw from."""
    found = [f"Without what learned nothing: {listed(lost)}."] if (lost := [*in_words(seen).values()]) else []
    if overall.groups < FEW:
        found.append(f"With no more than {counted(overall.groups, group)} to resample, intervals are too narrow.")
    return found


def _left_out(every: Sequence[Observation]) -> list[str]:
    """Treatments that are in no rank, since one of the statistics was not asked for where they quantize."""
    said: list[str] = []
    for lacks, found in incomplete(every, PLAIN).items():
        scopes: dict[str, dict[str, None]] = {}
        for one in found:
            scopes.setdefault(one.quantizer, {})[one.scope] = None
        alike: dict[tuple[str, ...], list[str]] = {}
        for quantizer, at in scopes.items():
            alike.setdefault(tuple(sorted(at)), []).append(quantizer)
        names = "; ".join(f"{listed(quantizers)} at {listed(at)}" for at, quantizers in alike.items())
        many = sum(map(len, scopes.values()))
        said.append(
            f"Not ranked: {counted(many, 'treatment')} ({counted(len(found), 'observation')}) without "
            f"{UNASKED.get(lacks, lacks)} there: {names}."
        )
    return said


def _said(overall: Comparison, within: Comparison | None) -> list[str]:
    said = [f"Over all places and arms {_best(overall)}."]
    if within is not None:
        said.append(f"Between arms at one place {_best(within)}.")
    return said


def _first(every: Sequence[Observation]) -> list[str]:
    """Quantizers that are looked at one by one: the first of FIRST, else the first there are."""
    there = list(dict.fromkeys(one.quantizer for one in every))
    return ([name for name in FIRST if name in there] or there)[:MOST]


def _by_place(treated: Sequence[Observation]) -> dict[str, Comparison]:
    """Of one quantizer, each scope alone: only arms and seeds differ, and no other format's noise is ranked with it."""
    scopes = [scope for scope in SCOPES if any(one.scope == scope for one in treated)]
    found = {scope: predictors([one for one in treated if one.scope == scope], among=PLAIN) for scope in scopes}
    return {scope: one for scope, one in found.items() if one is not None}


def _places(quantizer: str, found: Mapping[str, Comparison]) -> Table:
    names = [name for name in PLAIN if any(name in one.correlations for one in found.values())]
    runs = counted(next(iter(found.values())).n, "run")
    return Table(
        caption=f"Spearman's ρ with the loss increase under {quantizer}, each place alone; {runs} each",
        columns=("statistic", *found),
        rows=tuple((name, *(_rho(one.correlations.get(name)) for one in found.values())) for name in names),
    )


def _rho(found: Correlation | None) -> Markup | str:
    if found is None or not isfinite(found.rho.estimate):
        return NONE
    rho = found.rho
    below = f"{fixed(rho.low, 2)} to {fixed(rho.high, 2)}" if isfinite(rho.low) else ""
    return Markup('{}<small class="how">{}</small>').format(fixed(rho.estimate, 2), below)


def _turns(places: Mapping[str, Mapping[str, Comparison]]) -> list[str]:
    """Where kurtosis goes with the cost at one place and against it at another: pooled ranks hide both."""
    said: list[str] = []
    for quantizer, found in places.items():
        rhos = {scope: one.correlations[SHAPE].rho for scope, one in found.items() if SHAPE in one.correlations}
        up = [f"{scope} ({_interval(rho)})" for scope, rho in rhos.items() if rho.low > 0]
        down = [f"{scope} ({_interval(rho)})" for scope, rho in rhos.items() if rho.high < 0]
        if up and down:
            said.append(
                f"Under {quantizer}, arms with heavier tails lose more at {listed(up)} and less at {listed(down)}."
            )
    return said


def _interval(rho: Interval) -> str:
    return f"ρ = {fixed(rho.estimate, 2)}, {fixed(rho.low, 2)} to {fixed(rho.high, 2)}"


def _best(found: Comparison) -> str:
    (first, best), *others = found.correlations.items()
    rho = best.rho
    kurtosis = dict(others).get(SHAPE)
    beside = f"; {SHAPE}: {fixed(kurtosis.rho.estimate, 2)}" if kurtosis else ""
    return (
        f"{first} orders the costs best: ρ = {fixed(rho.estimate, 2)} ({fixed(rho.low, 2)} to {fixed(rho.high, 2)}), "
        f"ahead of all others in {round(100 * best.best)} % of resamples{beside}"
    )


def _table(how: str, found: Comparison, group: str) -> Table:
    return Table(
        caption=(
            f"Spearman's ρ with the loss increase, {how}; "
            f"{counted(found.n, 'observation')} of {counted(found.groups, group)}"
        ),
        columns=("statistic", "ρ", "95 % interval", "", "first in"),
        rows=tuple(
            (
                name,
                fixed(one.rho.estimate, 2) if isfinite(one.rho.estimate) else "undefined",
                f"{fixed(one.rho.low, 2)} to {fixed(one.rho.high, 2)}" if isfinite(one.rho.low) else "",
                bar(one.rho, (-1.0, 1.0)) if isfinite(one.rho.estimate) else Markup(""),
                f"{round(100 * one.best)} %",
            )
            for name, one in found.correlations.items()
        ),
        words=(3,),
    )


def _clouds(seen: View, found: Comparison, every: Sequence[Observation]) -> tuple[Figure, ...]:
    best = next(iter(found.correlations))
    shown = [name for name in dict.fromkeys((best, SHAPE)) if name in found.correlations]
    often = Counter(one.quantizer for one in every)
    order = [*(name for name in FIRST if name in often), *(name for name, _ in often.most_common())]
    quantizers = list(dict.fromkeys(order))[:MOST]
    variants = [
        Variant(
            name=quantizer,
            panels=tuple(
                _cloud(seen, (name, quantizer), [one for one in every if one.quantizer == quantizer]) for name in shown
            ),
        )
        for quantizer in quantizers
    ]
    filled = tuple(one for one in variants if any(panel.points for panel in one.panels))
    if not filled:
        return ()
    figure = Figure(
        name="predictors",
        title="Loss increase against a statistic",
        label="Quantizer",
        variants=filled,
        caption="A point is one place of one arm and seed.",
    )
    return (figure,)


def _cloud(seen: View, named: tuple[str, str], every: Sequence[Observation]) -> Panel:
    name, quantizer = named
    points = [(one, PREDICTORS[name](one)) for one in every]
    points = [(one, x) for one, x in points if isfinite(x)]
    values = [x for _, x in points]
    across = axes.kurtosis if "kurtosis" in name else axes.logarithmic if min(values, default=0) > 0 else axes.linear
    series = [
        Series(
            name=arm.name,
            style=arm.style,
            marks=tuple(Mark(x=x, y=one.cost, label=one.scope) for one, x in points if one.run[0] == arm.name),
        )
        for arm in seen.arms
    ]
    return Panel(
        name=f"{name} {quantizer}",
        title=f"{name}, {quantizer}",
        summary=f"Loss increase with {quantizer} against {name}: {number(len(points), 6)} points.",
        x=across(name, values),
        y=axes.signed_log(f"loss increase, {seen.nats}", [one.cost for one, _ in points], KNEE),
        series=tuple(one for one in series if one.marks),
    )
