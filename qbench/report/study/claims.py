"""Claims side by side: one row for what is claimed, one column for each optimizer that it is asked of."""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from markupsafe import Markup

from qbench.report import effects, summary
from qbench.report.budget import Floors, floors
from qbench.report.effects import Effect, Verdict
from qbench.report.factors import without
from qbench.report.study.crossing import Crossing
from qbench.report.tables import NONE, Table
from qbench.report.view import View
from qbench.report.words import counted, listed, number, with_unit

PAIRED = "loss_increase"
MARKS: Mapping[Verdict, str] = {"supported": "✓", "contradicted": "✗", "undecided": "?"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """What is claimed of one pair of arms after another; `by` holds the answers, by optimizer or by architecture."""

    label: str
    between: tuple[str, str]
    by: Mapping[str, Effect]

    @property
    def verdicts(self) -> Counter[Verdict]:
        return Counter(effect.verdict for effect in self.by.values())


@dataclass(frozen=True, slots=True, kw_only=True)
class Claims:
    """Claims within an optimizer, claims within an architecture, and those that stand alone."""

    of_architectures: tuple[Claim, ...]
    of_optimizers: tuple[Claim, ...]
    alone: tuple[Effect, ...]

    @property
    def every(self) -> tuple[Claim, ...]:
        return (*self.of_architectures, *self.of_optimizers)


def claims(where: Crossing, found: Sequence[Effect], asked: Sequence[Mapping[str, Any]]) -> Claims:
    """Effects of one measure, one comparison and one pair of architectures (or optimizers) are one claim."""
    rows: dict[str, dict[tuple[Any, ...], list[tuple[str, Effect]]]] = {"": defaultdict(list), "o": defaultdict(list)}
    alone: list[Effect] = []
    for effect, claim in zip(found, asked, strict=True):
        a, b = (where.known.get(name) for name in effect.arms)
        what = (
            repr([sorted(measure.items(), key=str) for _, measure in effects.pairs(claim)]),
            effect.compare,
            str(claim["thesis"]),
        )
        if a is None or b is None:
            alone.append(effect)
        elif a.optimizer == b.optimizer:
            key = (*what, a.architecture, b.architecture, *(_variant(where, name) for name in effect.arms))
            rows[""][key].append((a.optimizer, effect))
        elif a.architecture == b.architecture:
            key = (*what, a.optimizer, b.optimizer, *(_variant(where, name) for name in effect.arms))
            rows["o"][key].append((a.architecture, effect))
        else:
            alone.append(effect)
    return Claims(
        of_architectures=tuple(_claim(where, cells) for cells in rows[""].values()),
        of_optimizers=tuple(_claim(where, cells) for cells in rows["o"].values()),
        alone=tuple(alone),
    )


def _variant(where: Crossing, name: str) -> tuple[int, str]:
    """Which of the schedules of its pair an arm has, and what it had inside: the same ones make one row."""
    known = where.known[name]
    same = [arm.name for arm in where.schedules.get((known.architecture, known.optimizer), ())]
    return (same.index(name) if name in same else -1), known.quantized


def _claim(where: Crossing, cells: Sequence[tuple[str, Effect]]) -> Claim:
    first = cells[0][1]
    a, b = (where.known[name] for name in first.arms)
    within = a.optimizer == b.optimizer
    names = [without(effect.claim, [name] if not within else ()) for name, effect in cells]
    between = (a.architecture, b.architecture) if within else (a.optimizer, b.optimizer)
    inside = ["", ""] if a.quantized == b.quantized else [f", {one.quantized or 'nothing'} inside" for one in (a, b)]
    under = ["", ""] if first.sides == first.arms else [f", {treatment}" for treatment in first.treatments]
    steps = [_steps(where, [effect.arms[i] for _, effect in cells]) for i in (0, 1)]
    one, two = (f"{between[i]}{steps[i]}{inside[i]}{under[i]}" for i in (0, 1))
    return Claim(label=Counter(names).most_common(1)[0][0], between=(one, two), by=dict(cells))


def _steps(where: Crossing, names: Sequence[str]) -> str:
    """The steps of arms that are one schedule of their pairs, where it is not the longest."""
    shorter = sorted({where.known[name].steps for name in names if _variant(where, name)[0] > 0})
    return f", {listed([str(steps) for steps in shorter], 'or')} steps" if shorter else ""


def table(seen: View, where: Crossing, found: Claims) -> Table | None:
    """The matrix: verdict, size and interval for each optimizer."""
    columns = [name for name in where.optimizers if any(name in claim.by for claim in found.of_architectures)]
    return _table(seen, found.of_architectures, columns, "Claims by optimizer")


def of_optimizers(seen: View, where: Crossing, found: Claims) -> Table | None:
    columns = [name for name in where.architectures if any(name in claim.by for claim in found.of_optimizers)]
    return _table(seen, found.of_optimizers, columns, "Claims about optimizers, by architecture")


def _table(seen: View, rows: Sequence[Claim], columns: Sequence[str], caption: str) -> Table | None:
    if not rows:
        return None
    return Table(
        caption=f"{caption}: effect, and its 95 % interval over seeds",
        columns=("claim", *columns, "floors"),
        rows=tuple(
            (_head(claim), *(_cell(claim.by.get(name)) for name in columns), _floors(seen, claim)) for claim in rows
        ),
        words=(len(columns) + 1,),
    )


def _head(claim: Claim) -> Markup:
    first = next(iter(claim.by.values()))
    how = "÷" if first.compare == "ratio" else "−"
    unit = f", {first.unit}" if first.compare == "difference" and first.unit not in ("", "1") else ""
    below = f"{claim.between[0]} {how} {claim.between[1]}{unit}"
    return Markup('{}<small class="how">{}</small>').format(claim.label, below)


def _cell(effect: Effect | None) -> Markup | str:
    if effect is None:
        return NONE
    below = effects.interval(effect) if effect.low is not None else effect.reason
    return Markup(
        '<span class="verdict {0}"><span class="mark {0}" aria-hidden="true">{1}</span>'
        '<span class="vh">{0}: </span> {2}</span><small class="how">{3}</small>'
    ).format(effect.verdict, MARKS[effect.verdict], effects.magnitude(replace(effect, unit="")), below)


def _floors(seen: View, claim: Claim) -> Markup | str:
    """Of claims about loss increases, which are paired by window; the windows of an absolute loss say how hard they
    are, not how far two models differ.
    """
    effect = next(iter(claim.by.values()))
    if effect.metric != PAIRED or not effect.treatment:
        return NONE
    named = _named(floors(seen, PAIRED, [effect.treatment]), seen.nats)
    return Markup('<small class="how">{}</small>').format(named) if named else NONE


def _named(limits: Floors, unit: str) -> str:
    named = {"window": limits.window, "seed": limits.seed}
    known = ", ".join(f"{name} {number(value, 2)}" for name, value in named.items() if value is not None)
    return with_unit(known, unit) if known else ""


def answers(found: Claims) -> list[tuple[str, str, str, Sequence[tuple[str, str]]]]:
    """How each claim holds, most telling first: class of the mark, heading, mark, and (claim, what was measured)."""
    groups: dict[str, list[Claim]] = {name: [] for name in PATTERNS}
    for claim in found.every:
        groups[pattern(claim)].append(claim)
    said: list[tuple[str, str, str, Sequence[tuple[str, str]]]] = [
        (tone, heading, mark, [(claim.label, outcome(claim)) for claim in groups[name]])
        for name, (tone, heading, mark) in PATTERNS.items()
    ]
    alone = [
        (MARKED[v], f"{summary.VERDICTS[v]} (a single comparison)", MARKS[v], of) for v, of in _alone(found).items()
    ]
    return [one for one in (*said, *alone) if one[3]]


MARKED: Mapping[Verdict, str] = {"supported": "supported", "contradicted": "contradicted", "undecided": "undecided"}
PATTERNS: Mapping[str, tuple[str, str, str]] = {
    "all": ("supported", "Supported wherever it was asked", "✓"),
    "some": ("supported", "Supported in part, contradicted nowhere", "✓"),
    "mixed": ("undecided", "It depends", "±"),
    "against": ("contradicted", "Contradicted in part, supported nowhere", "✗"),
    "none": ("contradicted", "Contradicted wherever it was asked", "✗"),
    "open": ("undecided", "Undecided", "?"),
}


def pattern(claim: Claim) -> str:
    """Which of PATTERNS the verdicts make."""
    n = claim.verdicts
    yes, no, unclear = n["supported"], n["contradicted"], n["undecided"]
    if yes and no:
        return "mixed"
    if yes:
        return "some" if unclear else "all"
    if no:
        return "against" if unclear else "none"
    return "open"


def outcome(claim: Claim) -> Markup:
    """A chip for each answer: `✓ AdamW 3.5× 2.9 to 4.1`."""
    return _chips(claim.by)


def _chips(by: Mapping[str, Effect]) -> Markup:
    chips = [
        Markup(
            '<li><span class="mark {0}" aria-hidden="true">{1}</span><span class="vh">{0} </span> {2} <b>{3}</b> '
            "<small>{4}</small></li>"
        ).format(effect.verdict, MARKS[effect.verdict], name, *_short(effect))
        for name, effect in by.items()
    ]
    return Markup('<ul class="outs">{}</ul>').format(Markup("").join(chips))


def _short(effect: Effect) -> tuple[str, str]:
    if effect.value is None:
        return "", effect.reason
    return effects.magnitude(replace(effect, unit="")), effects.interval(
        effect
    ) if effect.low is not None else effect.reason


def _alone(found: Claims) -> dict[Verdict, list[tuple[str, str]]]:
    return {
        verdict: [
            (f"{effect.claim} ({' against '.join(effect.arms)})", _chips({"": effect}))
            for effect in found.alone
            if effect.verdict == verdict
        ]
        for verdict in summary.VERDICTS
    }


COUNTED: Mapping[str, str] = {
    "all": "supported wherever asked",
    "some": "supported in part",
    "mixed": "supported here and contradicted there",
    "against": "contradicted in part",
    "none": "contradicted wherever asked",
    "open": "undecided",
}


ALONE: Mapping[Verdict, str] = {"supported": "all", "contradicted": "none", "undecided": "open"}


def headline(found: Claims, effects_: Sequence[Effect]) -> str:
    """How many claims hold wherever they were asked, and in how many ways they were asked."""
    if not found.every:
        return summary.headline(effects_)
    kinds = Counter([*(pattern(claim) for claim in found.every), *(ALONE[effect.verdict] for effect in found.alone)])
    parts = [
        f"{kinds[name]} {'is' if kinds[name] == 1 else 'are'} {words}" for name, words in COUNTED.items() if kinds[name]
    ]
    return f"Of {counted(kinds.total(), 'claim')}{_asked(found)} {listed(parts)}."


def _asked(found: Claims) -> str:
    ways = {
        "optimizer by optimizer": len(found.of_architectures),
        "architecture by architecture": len(found.of_optimizers),
        "of one pair of arms": len(found.alone),
    }
    told = {how: many for how, many in ways.items() if many}
    if len(told) == 1:
        return f", asked {next(iter(told))},"
    return f" ({', '.join(f'{many} asked {how}' for how, many in told.items())}),"


def chance(effects_: Sequence[Effect]) -> str:
    """What to mind where many intervals of 95 % are read at once."""
    decided = [effect for effect in effects_ if effect.verdict != "undecided"]
    asked = sum(effect.low is not None for effect in effects_)
    if asked < 10:
        return ""
    return (
        f"{asked} comparisons have an interval and {len(decided)} are decided; were there no effects at all, "
        f"about {max(1, round(asked * 0.05))} would be."
    )
