"""Numbers of a row in words: its rank, its value and its cost, each with how sure it is."""

from math import inf, isfinite

from qbench.report.leaderboard.answers import Answer
from qbench.report.leaderboard.entries import Entry
from qbench.report.leaderboard.groups import Group
from qbench.report.leaderboard.ranks import spoken
from qbench.report.words import decimals_of, fixed, number

NONE = "—"
FINEST = 5  # decimals; less than a hundred-thousandth of a nat is no cost to anybody
UNITS = {"loss": "loss, nats a token", "error_rate": "error rate"}
SIGNS = {"none": "○", "small": "◐", "sure": "●", "unknown": "?"}


def rank(row: Entry) -> str:
    return spoken(row.rank) if row.rank is not None else NONE


def amount(value: float | None) -> str:
    return NONE if value is None else number(value)


def value(row: Entry) -> str:
    return _within(row.value, row.low, row.high)


def cost(row: Entry) -> str:
    """The increase over nothing quantized; a sign, because few bits now and then help."""
    if row.increase is None:
        return NONE
    return f"{'+' if row.increase > 0 else ''}{_within(row.increase, *row.reach)}"


def sign(answer: Answer) -> str:
    return SIGNS[answer.surety]


def budget(most: float) -> str:
    return "any bits" if most == inf else f"≤ {most:g} bits"


def unit(group: Group) -> str:
    return UNITS.get(group.metric, group.metric)


def size(count: int | None) -> str:
    """
    >>> size(713952 * 4), size(999), size(None)
    ('2.86 MB', '999 B', '—')
    """
    if count is None:
        return NONE
    power = max(at for at in range(5) if at == 0 or count >= 1000**at)
    return f"{number(count / 1000**power)} {('B', 'kB', 'MB', 'GB', 'TB')[power]}"


def _within(middle: float, low: float, high: float) -> str:
    """
    >>> _within(0.02664, 0.02294, 0.03034), _within(1.296, -inf, inf), _within(-5e-8, -1e-6, 1e-6)
    ('0.027 ± 0.004', '1.296 ± ?', '0.00000 ± 0.00000')
    """
    if not (isfinite(low) and isfinite(high)):
        return f"{number(middle, 4)} ± ?"
    reach = max(high - middle, middle - low)
    decimals = min(decimals_of(reach), FINEST) if reach > 0 else FINEST
    return f"{fixed(middle, decimals)} ± {fixed(reach, decimals)}"
