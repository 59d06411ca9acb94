"""What an arm reaches: the mean over its seeds with Student's t interval, and how it is written."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import floor, isfinite, log10

from markupsafe import Markup

from qbench.report.panels import Mark
from qbench.report.words import SUPERSCRIPT, THIN, decimals_of, fixed, number
from qbench.stats.interval import mean_interval

MOST_DECIMALS = 4  # of a mean beside its interval; beyond, zeros would fill a cell and hide both


@dataclass(frozen=True, slots=True)
class Level:
    """`seeds` are the values by seed; `low` and `high` are None for a single seed, which has no spread."""

    seeds: Mapping[int, float]
    mean: float
    low: float | None
    high: float | None

    @property
    def reach(self) -> float | None:
        return None if self.high is None else self.high - self.mean

    def flipped(self) -> "Level":
        """With the other sign."""
        low = None if self.high is None else -self.high
        high = None if self.low is None else -self.low
        return Level({seed: -value for seed, value in self.seeds.items()}, -self.mean, low, high)

    def mark(self, x: float, label: str = "", told: bool = False) -> Mark:
        return Mark(x=x, y=self.mean, low=self.low, high=self.high, label=label, told=told)


def level(seeds: Mapping[int, float]) -> Level | None:
    """None where there is no seed."""
    if not seeds:
        return None
    mean, low, high = mean_interval([*seeds.values()])
    return Level(seeds, mean, low if isfinite(low) else None, high if isfinite(high) else None)


def words(found: Level, digits: int = 3) -> str:
    """
    >>> words(Level({}, 2e-7, -6.8e-6, 7.2e-6)), words(Level({}, 3.1e-5, 2.5e-5, 3.7e-5))
    ('0 ± 7×10⁻⁶', '3.1×10⁻⁵ ± 0.6×10⁻⁵')
    >>> words(Level({0: 1.0, 1: 1.2}, 1.1, 0.95, 1.25)), words(Level({0: 1.5}, 1.5, None, None))
    ('1.10 ± 0.15', '1.50')
    """
    if found.reach is None:
        return number(found.mean, digits)
    if not found.reach:
        return f"{number(found.mean, digits)} ± 0"
    decimals = decimals_of(found.reach)
    if decimals > MOST_DECIMALS:
        power = floor(log10(max(abs(found.mean), found.reach)))
        return f"{_scaled(found.mean, power, decimals)} ± {_scaled(found.reach, power, decimals)}"
    return f"{fixed(found.mean, decimals)} ± {fixed(found.reach, decimals)}"


def _scaled(value: float, power: int, decimals: int) -> str:
    """In units of a power of ten that a mean and its interval share."""
    text = fixed(value / 10.0**power, max(0, decimals + power))
    return f"{text}×10{str(power).translate(SUPERSCRIPT)}" if text.strip("0.") else "0"


def stacked(found: Level) -> Markup:
    """For a narrow cell: the interval below the mean."""
    mean, _, reach = words(found).partition(" ± ")
    below = Markup('<small class="how">±{}{}</small>').format(THIN, reach) if reach else Markup("")
    return Markup("{}{}").format(mean, below)


def positive(levels: Iterable[Level]) -> bool:
    """Whether a logarithm shows them all."""
    return all(one.mean > 0 for one in levels)
