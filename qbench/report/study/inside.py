"""Training with quantizers inside: how much worse a model becomes that never saw full precision."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from qbench.report import troubles
from qbench.report.study.bars import bar
from qbench.report.study.crossing import Crossing
from qbench.report.study.form import Section
from qbench.report.study.levels import Level, level, words
from qbench.report.tables import NONE, Table
from qbench.report.view import UNQUANTIZED, Arm, View, by_seed
from qbench.report.words import listed, number
from qbench.results.run import part
from qbench.stats.interval import Interval, difference_interval

KINDS: Mapping[str, str] = {
    "activation": "forward, activations of",
    "gradient": "backward, gradients at",
    "weight": "weights of",
    "state": "optimizer's state,",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Trained:
    """An arm with quantizers inside, beside the arm that is the same without; `increase` is paired by seed."""

    arm: Arm
    without: Level | None
    inside: Level
    increase: Interval | None
    n: int


def section(seen: View, where: Crossing) -> Section | None:
    """None where no arm had quantizers inside its training."""
    found = [one for arm, twin in where.inside if (one := trained(seen, arm, twin)) is not None]
    if not found:
        return None
    lost = troubles.learned_nothing(seen).keys()
    return Section(
        name="inside",
        title="Trained with quantizers inside",
        link="Quantized training",
        about=(
            "These arms had quantizers in every training step: in the forward pass, in the backward pass, on weights "
            "or on the optimizer's state, as the row says. The loss is that of the trained model on the test split; "
            "where the same quantizers were also on in that evaluation, a second row says so."
        ),
        said=tuple(_said(where, [one for one in found if not _pair(where, one) & lost])),
        cautions=tuple(_cautions(seen, where, found)),
        tables=(_table(where, found, seen),),
    )


def _pair(where: Crossing, one: Trained) -> set[str]:
    """The names of the arm and of its twin."""
    return {arm.name for pair in where.inside if pair[0].name == one.arm.name for arm in pair if arm is not None}


def _cautions(seen: View, where: Crossing, found: Sequence[Trained]) -> Iterator[str]:
    named = {name for one in found for name in _pair(where, one)}
    lost = [words_ for name, words_ in troubles.in_words(seen).items() if name in named]
    if lost:
        yield f"Learned nothing, and so called neither the least nor the best, nor are their twins: {listed(lost)}."
    missing = [arm.name for arm, _ in where.inside if not any(one.arm.name == arm.name for one in found)]
    if missing:
        yield f"Without a loss, and so not in the table: {listed(missing)}."


def losses(seen: View, arm: Arm) -> dict[int, float]:
    """On the test split without quantizers; where that was not measured, the loss that training ended with."""
    plain = by_seed(seen.select("loss", arm=arm.name, treatment=UNQUANTIZED), "loss")
    return plain or by_seed([r for r in seen.select("training", arm=arm.name, step=None) if not r.site], "loss")


def trained(seen: View, arm: Arm, twin: Arm | None) -> Trained | None:
    with_, without = losses(seen, arm), losses(seen, twin) if twin else {}
    return _paired(arm, with_, without)


def _paired(arm: Arm, with_: Mapping[int, float], without: Mapping[int, float]) -> Trained | None:
    inside = level(with_)
    if inside is None:
        return None
    both = sorted(with_.keys() & without.keys())
    increase = difference_interval([with_[s] for s in both], [without[s] for s in both]) if both else None
    return Trained(arm=arm, without=level(without), inside=inside, increase=increase, n=len(both))


def still_on(seen: View, arm: Arm) -> str:
    """The treatment that is what the arm had inside its forward pass, "" where none was measured."""
    inside: Mapping[str, str] = (arm.training or {}).get("quantized") or {}
    forward = {where: how for where, how in inside.items() if where.startswith(("activation:", "weight:"))}
    for cell in seen.cells:
        treatment = part(cell.spec, "measurement", "treatment")
        if forward and cell.spec.get("arm") == arm.name and dict(part(treatment, "assign")) == forward:
            return str(treatment.get("name", ""))
    return ""


def _said(where: Crossing, found: list[Trained]) -> list[str]:
    """For each kind of quantizers the arm that loses least and the one that ends best."""
    kinds = dict.fromkeys(where.known[one.arm.name].quantized for one in found)
    said: list[str] = []
    for kind in kinds:
        rows = [one for one in found if where.known[one.arm.name].quantized == kind and one.increase]
        if len(rows) > 1:
            least = min(rows, key=lambda one: one.increase.estimate if one.increase else 0.0)
            best = min(rows, key=lambda one: one.inside.mean)
            assert least.increase is not None
            said.append(
                f"{spelled(least.arm)}: {where.title(least.arm)} loses least ({_signed(least.increase.estimate)}); "
                f"{where.title(best.arm)} ends best, at {words(best.inside)}."
            )
    return said


def _table(where: Crossing, found: list[Trained], seen: View) -> Table:
    rows: list[tuple[str, ...]] = []
    styles: list[int] = []
    increases = [one.increase for one in found if one.increase]
    reach = max((abs(one.estimate) for one in increases), default=1.0) * 1.6 or 1.0
    for one in found:
        for name, row in (("", one), (still_on(seen, one.arm), _evaluated(seen, one))):
            if row is not None:
                rows.append(_row(where, row, name, reach))
                styles.append(one.arm.style)
    return Table(
        caption=f"Loss, {seen.nats}: mean ± half of the 95 % interval over seeds; the increase is paired by seed",
        columns=("arm", "inside the training", "without", "with", "increase", "", "seeds"),
        rows=tuple(rows),
        styles=tuple(styles),
        words=(1, 5),
    )


def _evaluated(seen: View, one: Trained) -> Trained | None:
    name = still_on(seen, one.arm)
    values = by_seed(seen.select("loss", arm=one.arm.name, treatment=name), "loss") if name else {}
    return _paired(one.arm, values, one.without.seeds if one.without else {})


def _row(where: Crossing, one: Trained, on: str, reach: float) -> tuple[str, ...]:
    kind = spelled(one.arm) + (f"; evaluated with {on}" if on else "")
    without = words(one.without) if one.without else NONE
    levels = where.title(one.arm), kind, without, words(one.inside)
    if one.increase is None:
        return *levels, NONE, "", str(one.n)
    inside = f"{_signed(one.increase.low)} to {_signed(one.increase.high)}" if one.n > 1 else "one seed, no interval"
    told = Markup('<b>{}</b><small class="how">{}</small>').format(_signed(one.increase.estimate), inside)
    return *levels, told, bar(one.increase, (-reach / 4, reach)) if one.n > 1 else "", str(one.n)


def spelled(arm: Arm) -> str:
    """What was quantized, in words: `gradients at boundaries: int4/tensor`."""
    inside: Mapping[str, str] = (arm.training or {}).get("quantized") or {}
    parts: list[str] = []
    for key, quantizer in inside.items():
        kind, _, place = key.partition(":")
        what = "weights" if key == "weight:weights" else f"{KINDS.get(kind, kind)} {place}"
        parts.append(f"{what}: {quantizer}")
    return ", ".join(parts)


def _signed(value: float) -> str:
    return f"+{number(value, 2)}" if value > 0 else number(value, 2)
