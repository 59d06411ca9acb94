"""Seeds as a random effect: what another training run would have given, not only other windows."""

from collections.abc import Sequence
from math import inf, sqrt
from typing import NamedTuple

import numpy as np

from qbench.stats.correlated import Array, numbers
from qbench.stats.interval import student_t_below, student_t_quantile

MANY = 1000.0  # degrees of freedom, which are as good as infinitely many


class Effect(NamedTuple):
    """An estimate over seeds, its standard error with its degrees of freedom, and the spread of the seeds' own means.

    `seed_sd` is what seeds add to the noise of their windows, at least 0.
    """

    estimate: float
    standard_error: float
    freedom: float
    seed_sd: float
    seeds: int

    def bound(self, level: float) -> float:
        """Where the true effect stays below with confidence `level`; infinite for a single seed."""
        if self.seeds < 2:
            return inf if level > 0.5 else -inf
        return self.estimate + student_t_quantile(level, max(1, int(self.freedom))) * self.standard_error

    def below(self, value: float) -> float:
        """The confidence level whose bound is `value`; one half for a single seed."""
        if self.seeds < 2 or (self.standard_error == 0 and value == self.estimate):
            return 0.5
        if self.standard_error == 0:
            return float(value > self.estimate)
        return student_t_below((value - self.estimate) / self.standard_error, max(1, int(self.freedom)))


def seeds_effect(by_seed: Sequence[float] | Sequence[Sequence[float]] | Sequence[Array]) -> Effect:
    """The mean difference over training seeds, each with one number or with one for each window.

    Windows are the same for every seed, so both are random and crossed: the variance of the grand mean is
    (MS_seeds + MS_windows - MS_rest) / (S W), with Satterthwaite's (1946) degrees of freedom. One number for each seed
    makes it Student's t. Raises ValueError where seeds have different windows, or a value is not finite.
    """
    rows = [numbers(np.atleast_1d(np.asarray(row, dtype=np.float64))) for row in by_seed]
    if not rows or len({row.size for row in rows}) > 1:
        raise ValueError(f"seeds are measured on the same windows, found {sorted({row.size for row in rows})} of them")
    table = np.stack(rows)
    seeds, windows = table.shape
    if seeds < 2:
        return Effect(float(table.mean()), 0.0, 0.0, 0.0, seeds)
    by, across = table.mean(1), table.mean(0)
    of_seeds = windows * float(by.var(ddof=1))
    if windows < 2:
        return Effect(float(by.mean()), sqrt(of_seeds / seeds), seeds - 1, sqrt(of_seeds), seeds)
    of_windows = seeds * float(across.var(ddof=1))
    rest = float(((table - by[:, None] - across + table.mean()) ** 2).sum()) / ((seeds - 1) * (windows - 1))
    # Where the sum is small by chance, seeds alone or windows alone bound it from below.
    square = max(of_seeds + of_windows - rest, of_seeds, of_windows)
    parts = of_seeds**2 / (seeds - 1) + of_windows**2 / (windows - 1) + rest**2 / ((seeds - 1) * (windows - 1))
    freedom = min(square**2 / parts, MANY) if parts > 0 else seeds - 1.0
    spread = sqrt(max(of_seeds - rest, 0.0) / windows)
    return Effect(float(table.mean()), sqrt(square / table.size), freedom, spread, seeds)
