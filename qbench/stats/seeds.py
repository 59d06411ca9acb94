"""Seeds as a random effect: what another training run would have given, not only other windows."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf, sqrt

import numpy as np

from qbench.stats.correlated import Array, Units, numbers, spread, units
from qbench.stats.skewed import Skewed, Widest

MANY = 1000.0  # degrees of freedom, which are as good as infinitely many


@dataclass(frozen=True, slots=True, eq=False)
class Effect:
    """An estimate over seeds, its standard error with its degrees of freedom, and the spread of the seeds' own means.

    `seed_sd` is what seeds add to the noise of their windows, at least 0. `across` are the windows' means over seeds
    in blocks of neighbours, None where each seed has one number; `common` is the share of the variance that windows
    have in common, which more seeds would not lessen.
    """

    estimate: float
    standard_error: float
    freedom: float
    seed_sd: float
    seeds: int
    across: Units | None = None
    common: float = 0.0

    @property
    def share(self) -> float:
        """How much of the standard error windows alone would have, 0 to 1; 0 without windows."""
        alone = self.across.standard_error if self.across is not None else 0.0
        return alone / self.standard_error if alone else 0.0

    @property
    def bounds(self) -> Widest:
        """Bounds of the effect of training again; of at least two seeds.

        Seeds are taken as normal, windows are not: the skewness of a sum of independent parts is that of each part
        times its share of the standard error to the third power, and only so much is corrected and stretched.
        """
        freedom = max(1, int(self.freedom))
        plain = Skewed(self.estimate, self.standard_error, freedom)
        if self.across is None or not self.share:
            return Widest((plain,), inf)
        k = Skewed.of(self.across).k * self.share**3
        corrected = Skewed(self.estimate, self.standard_error, freedom, k)
        return Widest((plain, corrected), self.across.independent, self.share)


def seeds_effect(
    by_seed: Sequence[float] | Sequence[Sequence[float]] | Sequence[Array], block: int | None = None
) -> Effect:
    """The mean difference over training seeds, each with one number or with one for each window.

    Windows are the same for every seed, so both are random and crossed: the variance of the grand mean is
    (MS_seeds + MS_windows - MS_rest) / (S W), with Satterthwaite's (1946) degrees of freedom; W counts blocks of
    `block` neighbours (None: as the means over seeds call for). One number for each seed makes it Student's t. Raises
    ValueError where seeds have different windows, or a value is not finite.
    """
    rows = [numbers(np.atleast_1d(np.asarray(row, dtype=np.float64))) for row in by_seed]
    if not rows or len({row.size for row in rows}) > 1:
        raise ValueError(f"seeds are measured on the same windows, found {sorted({row.size for row in rows})} of them")
    table = np.stack(rows)
    if len(rows) < 2:
        return Effect(float(table.mean()), 0.0, 0.0, 0.0, 1)
    if table.shape[1] < 2:
        return _lone(table[:, 0])
    across = units(table.mean(0), block)
    return _crossed(np.stack([units(row, across.block).parts for row in rows]), across)


def _lone(by: Array) -> Effect:
    sd = spread(by)
    return Effect(float(by.mean()), sd / sqrt(by.size), by.size - 1.0, sd, by.size)


def _crossed(table: Array, across: Units) -> Effect:
    """Two-way analysis of variance of [seeds, blocks] with one value a cell."""
    seeds, blocks = table.shape
    by, over = table.mean(1), table.mean(0)
    of_seeds = blocks * spread(by) ** 2
    if blocks < 2:
        return Effect(across.mean, sqrt(of_seeds / seeds), seeds - 1.0, sqrt(of_seeds), seeds, across)
    of_blocks = seeds * spread(over) ** 2
    rest = float(((table - by[:, None] - over + table.mean()) ** 2).sum()) / ((seeds - 1) * (blocks - 1))
    # Where the sum is small by chance, seeds alone or windows alone bound it from below.
    square = max(of_seeds + of_blocks - rest, of_seeds, of_blocks)
    parts = of_seeds**2 / (seeds - 1) + of_blocks**2 / (blocks - 1) + rest**2 / ((seeds - 1) * (blocks - 1))
    freedom = min(square**2 / parts, MANY) if parts > 0 else seeds - 1.0
    own = sqrt(max(of_seeds - rest, 0.0) / blocks)
    common = max(of_blocks - rest, 0.0) / square if square > 0 else 0.0
    return Effect(across.mean, sqrt(square / table.size), freedom, own, seeds, across, common)
