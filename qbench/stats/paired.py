"""Is the second worse than the first, window by window? Non-inferiority with a margin, and the intervals behind it."""

from collections.abc import Sequence
from dataclasses import replace
from math import inf, sqrt
from typing import TypedDict, Unpack

import numpy as np

from qbench.stats.correlated import Array, Units, design_effect, numbers, units
from qbench.stats.decision import Decision, Evidence, Rule, Status, decide, level_of_look
from qbench.stats.discordant import Exact, Flags, Score, mcnemar, sign_test
from qbench.stats.interval import Interval, student_t_quantile
from qbench.stats.resample import resampled
from qbench.stats.seeds import seeds_effect
from qbench.stats.skewed import Skewed, Widest

__all__ = [
    "Decision",
    "Exact",
    "Interval",
    "Options",
    "Status",
    "bootstrap_interval",
    "design_effect",
    "holm",
    "level_of_look",
    "mcnemar",
    "noninferior",
    "proportion_noninferior",
    "seeds_interval",
    "seeds_noninferior",
    "sign_test",
    "t_interval",
]

WINDOWS = 64  # windows below which nothing is concluded, unless told otherwise
FLOOR = 32  # and below which no rule can go: bounds do not hold their level on lognormal values
BLOCKS = 16  # likewise, blocks of windows that are correlated
ITEMS = 100  # with right and wrong answers
SEEDS = 3

BySeed = Sequence[float] | Sequence[Sequence[float]] | Sequence[Array]


class Options(TypedDict, total=False):
    """How to decide: one-sided `alpha` over all looks; `minimum` values below which nothing is concluded.

    `look` of `looks` planned looks at growing data (None: no end planned). For windows also their `block` length
    (None: from the data, at least 2) and the `seed` of the bootstrap.
    """

    alpha: float
    minimum: int
    look: int
    looks: int | None
    block: int | None
    seed: int


def noninferior(differences: Sequence[float] | Array, margin: float, **how: Unpack[Options]) -> Decision:
    """Is the mean of `differences` (candidate minus baseline of a cost, one for each window) below `margin`?

    Passes where the upper one-sided bound is below the margin, fails where the lower one is above it. Of BCa block
    bootstrap, Student's t and t corrected for skewness the widest bound counts. From 32 windows on it holds its level
    on lognormal differences of skewness 6, from 64 also where neighbours are correlated by 0.4. With skewness 33 a
    level of 0.05 is 0.07 in truth. A catastrophe too rare to be among the windows stays unseen by any method
    (R. Bahadur, L. Savage 1956). Raises ValueError for no or non-finite differences.
    """
    found = numbers(differences)
    level = _level(how)
    grouped = units(found, how.get("block"))
    rule = Rule(
        margin=margin,
        level=level,
        minimum=max(how.get("minimum", WINDOWS), FLOOR, BLOCKS * grouped.block),
        things="windows",
        method=f"widest of BCa, t and skewness-corrected t over blocks of {grouped.block}",
    )
    if len(grouped.sums) < 2:
        return decide(_alone(grouped.mean, found.size), rule)
    bounds = _bounds(grouped, how.get("seed", 0))
    evidence = Evidence(
        estimate=grouped.mean,
        low=bounds.low(level),
        high=bounds.high(level),
        n=found.size,
        effective_n=found.size / max(1.0, design_effect(found, grouped.block)),
        standard_error=grouped.standard_error,
        p_pass=bounds.p_above(margin),
        p_fail=bounds.p_below(margin),
        identical=not found.any(),
    )
    return decide(evidence, rule)


def proportion_noninferior(wrong_a: Flags, wrong_b: Flags, margin: float, **how: Unpack[Options]) -> Decision:
    """Is b's error rate less than `margin` above a's? Items are right (0) or wrong (1), in pairs.

    Tango's score test with a correction for continuity, so that it errs on the safe side. Raises ValueError where
    lengths differ, a value is neither, or the margin is not between -1 and 1.
    """
    level = _level(how)
    found = Score.of(wrong_a, wrong_b)
    interval = found.interval(level)
    evidence = Evidence(
        estimate=interval.estimate,
        low=interval.low,
        high=interval.high,
        n=found.n,
        effective_n=found.n,
        standard_error=found.standard_error,
        p_pass=found.p_above(margin),
        p_fail=found.p_below(margin),
    )
    minimum = max(how.get("minimum", ITEMS), FLOOR)
    return decide(
        evidence, Rule(margin=margin, level=level, minimum=minimum, things="items", method="score test of paired rates")
    )


def seeds_noninferior(by_seed: BySeed, margin: float, **how: Unpack[Options]) -> Decision:
    """Is the mean difference over training seeds below `margin`? One number, or one for each window, a seed.

    `n` counts seeds, which are a random effect: the answer is about training again. Windows are a random effect too,
    common to all seeds, so fewer than 32 of them conclude nothing; lone numbers do not show theirs. Raises ValueError
    where seeds have different windows or values are not finite.
    """
    level = _level(how)
    effect = seeds_effect(by_seed, how.get("block"))
    rule = Rule(
        margin=margin,
        level=level,
        minimum=max(how.get("minimum", SEEDS), 2),
        things="seeds",
        method="t over seeds as a random effect, corrected for skewed windows",
    )
    if effect.seeds < 2:
        return decide(_alone(effect.estimate, 1), rule)
    bounds, windows = effect.bounds, effect.across
    evidence = Evidence(
        estimate=effect.estimate,
        low=bounds.low(level),
        high=bounds.high(level),
        n=effect.seeds,
        effective_n=effect.seeds,
        standard_error=effect.standard_error,
        p_pass=bounds.p_above(margin),
        p_fail=bounds.p_below(margin),
        identical=not any(np.any(row) for row in by_seed),
        stays=effect.common,
    )
    if windows is not None and windows.sizes.sum() < max(FLOOR, BLOCKS * windows.block):
        return _too_few(evidence, rule, windows)
    return decide(evidence, rule)


def t_interval(differences: Sequence[float] | Array, confidence: float = 0.95) -> Interval:
    """The mean difference of independent pairs with its paired t interval; infinite ends for a single one."""
    found = numbers(differences)
    mean = float(found.mean())
    if found.size == 1:
        return Interval(mean, -inf, inf)
    reach = student_t_quantile((1 + confidence) / 2, found.size - 1) * float(found.std(ddof=1)) / sqrt(found.size)
    return Interval(mean, mean - reach, mean + reach)


def bootstrap_interval(
    differences: Sequence[float] | Array, confidence: float = 0.95, *, block: int | None = None, seed: int = 0
) -> Interval:
    """The mean difference with its BCa block bootstrap interval; `block` neighbours stay together (None: from data).

    Stretched as the bounds of `noninferior` are, because few skewed values hide their tail. One block has no ends.
    """
    found = units(differences, block)
    if len(found.sums) < 2:
        return Interval(found.mean, -inf, inf)
    bounds = Widest((resampled(found, seed),), found.independent)
    return Interval(found.mean, bounds.low((1 - confidence) / 2), bounds.high((1 - confidence) / 2))


def seeds_interval(by_seed: BySeed, confidence: float = 0.95) -> Interval:
    """The mean difference over seeds as a random effect; infinite ends for a single seed."""
    effect = seeds_effect(by_seed)
    if effect.seeds < 2:
        return Interval(effect.estimate, -inf, inf)
    bounds = effect.bounds
    return Interval(effect.estimate, bounds.low((1 - confidence) / 2), bounds.high((1 - confidence) / 2))


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjusted p-values in the given order: rejecting those below alpha errs once in 1 / alpha policies at most.

    S. Holm, A Simple Sequentially Rejective Multiple Test Procedure (1979).

    >>> [round(p, 3) for p in holm([0.04, 0.01, 0.03])]
    [0.06, 0.03, 0.06]
    """
    if any(not 0 <= p <= 1 for p in p_values):
        raise ValueError(f"p-values are between 0 and 1, found {list(p_values)}")
    adjusted, highest = [0.0] * len(p_values), 0.0
    for rank, place in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[place]))
        adjusted[place] = highest
    return adjusted


def _level(how: Options) -> float:
    return level_of_look(how.get("alpha", 0.05), how.get("look", 1), how.get("looks", 1))


def _bounds(found: Units, seed: int) -> Widest:
    """At least two units."""
    plain = Skewed(found.mean, found.standard_error, len(found.sums) - 1)
    return Widest((resampled(found, seed), plain, Skewed.of(found)), found.independent)


def _too_few(found: Evidence, rule: Rule, windows: Units) -> Decision:
    """Seeds whose common windows cannot be trusted: more seeds would not help, so windows are counted."""
    least = max(FLOOR, BLOCKS * windows.block)
    return decide(
        replace(found, n=int(windows.sizes.sum())), replace(rule, minimum=least, things="windows of each seed")
    )


def _alone(estimate: float, n: int) -> Evidence:
    """A single value or block: its spread cannot be known."""
    return Evidence(
        estimate=estimate, low=-inf, high=inf, n=n, effective_n=1, standard_error=0.0, p_pass=1.0, p_fail=1.0
    )
