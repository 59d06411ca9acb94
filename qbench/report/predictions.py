"""The statistics of changed predictions of one format, in the order that users of llama.cpp know."""

from collections.abc import Mapping, Sequence

from qbench.evaluate.block import block
from qbench.report.formats import Format
from qbench.report.verdict import label
from qbench.stats.interval import student_t_quantile


def blocks(found: Sequence[Format], setting: str) -> dict[str, str]:
    """The text of every format that has a KLD and a perplexity, by its name."""
    several = len({one.arm for one in found}) > 1
    return {
        label(one, several): block(one.values, errors(one), f"{label(one, several)}: {setting}")
        for one in found
        if {"kld", "perplexity", "perplexity_ratio"} <= one.values.keys()
    }


def errors(one: Format) -> Mapping[str, float]:
    """Standard errors over windows, from the 95 % intervals that are stored."""
    if one.row.n < 2:
        return {}
    reach = student_t_quantile(0.975, one.row.n - 1)
    return {name: (high - low) / 2 / reach for name, (low, high) in one.row.intervals.items()}
