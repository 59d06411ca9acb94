"""A model stopped earlier: what quantizing it costs at the loss of the one that it is compared with.

A worse model is less sensitive. Arms that were also trained on shorter full schedules give a line of increases over
losses in full precision; between two schedules the logarithm of the increase is taken as linear in the loss.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import exp, log
from typing import Any

from qbench.report import effects, troubles
from qbench.report.study.crossing import Crossing, Pair
from qbench.report.view import UNQUANTIZED, Arm, View, by_seed
from qbench.report.words import listed, number
from qbench.stats.interval import Interval, ratio_interval

Point = tuple[float, float]  # loss in full precision, increase


@dataclass(frozen=True, slots=True, kw_only=True)
class Equal:
    """The longer-trained arm stopped where the other one ends: both increases there, and their ratio over seeds.

    `other` ends at `loss`; `stopped` is of the arm with several schedules. `reason` says why there is no number.
    """

    treatment: str
    stopped: Pair
    other: Pair
    loss: float
    increases: tuple[float, float] | None = None
    at_end: Interval | None = None
    ratio: Interval | None = None
    n: int = 0
    reason: str = ""


def points(seen: View, arm: Arm, treatment: str) -> dict[int, Point]:
    """By seed, where both are known."""
    plain = by_seed(seen.select("loss", arm=arm.name, treatment=UNQUANTIZED), "loss")
    costs = effects.per_seed(seen, arm.name, {"treatment": treatment, "metric": "loss_increase"})
    return {seed: (plain[seed], costs[seed]) for seed in sorted(plain.keys() & costs.keys())}


def comparisons(seen: View, where: Crossing, treatment: str) -> list[Equal]:
    """Every architecture of an optimizer against each that has several schedules, stopped at the first one's loss."""
    lost = troubles.in_words(seen)
    found: list[Equal] = []
    for stopped, arms in where.schedules.items():
        if len(arms) < 2:
            continue
        curves = [points(seen, arm, treatment) for arm in arms]
        for other, arm in where.main.items():
            ends = points(seen, arm, treatment)
            if other != stopped and other[1] == stopped[1] and ends and any(curves):
                nothing = [lost[one.name] for one in (arm, *arms) if one.name in lost]
                found.append(_equal(treatment, (stopped, curves), (other, ends), nothing))
    return found


def _equal(
    treatment: str,
    stopped: tuple[Pair, Sequence[Mapping[int, Point]]],
    other: tuple[Pair, Mapping[int, Point]],
    nothing: Sequence[str],
) -> Equal:
    (pair, curves), (against, ends) = stopped, other
    loss = sum(point[0] for point in ends.values()) / len(ends)
    about: dict[str, Any] = {"treatment": treatment, "stopped": pair, "other": against, "loss": loss}
    if nothing:
        return Equal(**about, reason=f"learned nothing: {listed(nothing)}")
    lacking = [seed for seed in ends if any(seed not in curve for curve in curves)]
    if lacking:
        return Equal(**about, reason=f"no loss of every schedule in {_seeds(lacking)}")
    read = {seed: between([curve[seed] for curve in curves], ends[seed][0]) for seed in ends}
    costs, theirs = [cost for cost in read.values() if cost is not None], [point[1] for point in ends.values()]
    ratio = ratio_interval(costs, theirs) if len(costs) == len(theirs) else None
    if ratio is None:
        return Equal(**about, reason=_reason(curves, ends))
    return Equal(
        **about,
        increases=(sum(costs) / len(costs), sum(theirs) / len(theirs)),
        at_end=ratio_interval([curves[0][seed][1] for seed in ends], theirs),
        ratio=ratio,
        n=len(costs),
    )


def between(curve: Sequence[Point], loss: float) -> float | None:
    """The increase where a curve has this loss, linear in the logarithm; None outside the curve: nothing is guessed.

    >>> round(between([(1.0, 0.1), (2.0, 0.4)], 1.5), 6), between([(1.0, 0.1), (2.0, 0.4)], 2.1)
    (0.2, None)
    """
    for (low, first), (high, last) in pairwise(sorted(curve)):
        if low <= loss <= high and first > 0 and last > 0 and high > low:
            return exp(log(first) + (loss - low) / (high - low) * (log(last) - log(first)))
    return None


def _reason(curves: Sequence[Mapping[int, Point]], ends: Mapping[int, Point]) -> str:
    """Why there is no number although every seed has every schedule."""
    losses = {seed: [curve[seed][0] for curve in curves] for seed in ends}
    above = [seed for seed, found in losses.items() if ends[seed][0] > max(found)]
    below = [seed for seed, found in losses.items() if ends[seed][0] < min(found)]
    if above:
        return f"its shortest ends at {number(max(max(losses[seed]) for seed in above))}{_some(above, ends)}"
    if below:
        return f"it ends at {number(min(min(losses[seed]) for seed in below))} at best{_some(below, ends)}"
    flat = [seed for seed, found in losses.items() if min(found) == max(found)]
    if flat:
        return f"its schedules end at one loss{_some(flat, ends)}"
    costs = {seed: [ends[seed][1], *(curve[seed][1] for curve in curves)] for seed in ends}
    return f"an increase is zero or negative{_some([seed for seed, of in costs.items() if min(of) <= 0], ends)}"


def _some(seeds: Sequence[int], every: Iterable[int]) -> str:
    """Where a reason does not hold for all seeds, for which it does."""
    return "" if set(seeds) == set(every) else f" in {_seeds(seeds)}"


def _seeds(seeds: Sequence[int]) -> str:
    return f"seed{'s' * (len(seeds) > 1)} {listed([str(seed) for seed in sorted(seeds)])}"
