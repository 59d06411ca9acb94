"""What two numbers, and the windows behind them, say together: regressed, improved or no evidence."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from math import isfinite
from typing import Literal

import numpy as np

from qbench.gate.pairs import Numbers, Vector
from qbench.stats import paired
from qbench.stats.seeds import seeds_effect

ALPHA = 0.05  # two-sided, over all rows
Verdict = Literal["regressed", "improved", "no evidence"]
COUNTED = ("bits", "B")  # units of what is counted and not sampled


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One metric of one question, `difference` is b minus a; `low` and `high` its 95 % interval, None where unknown.

    `floor` is the numerical noise floor, `seed_sd` the spread of the seeds' differences beyond that of their windows.
    `p` is two-sided, `adjusted` for all rows by Holm; `n` counts windows or items of each seed, 0 for lone numbers.
    """

    arms: tuple[str, str]
    question: str
    kind: str
    site: str
    scope: str
    quantizer: str
    metric: str
    unit: str
    a: float
    b: float
    difference: float
    low: float | None = None
    high: float | None = None
    floor: float | None = None
    seed_sd: float | None = None
    p: float | None = None
    adjusted: float | None = None
    n: int = 0
    seeds: int = 1
    verdict: Verdict = "no evidence"
    method: str = ""
    note: str = ""


def decided(row: Row, ours: Sequence[Numbers], minimum: int | None) -> Row:
    """The row with what the statistics say; the verdict of one that has a p-value waits for all the others.

    `ours` has the numbers of each seed; fewer than `minimum` windows conclude nothing.
    """
    vectors = [one.differences for one in ours if one.differences is not None]
    if row.unit in COUNTED and not vectors:
        return replace(row, verdict=_sign(row.difference), method="counted, not sampled")
    if len(vectors) < len(ours):
        vectors = [np.array([one.b - one.a]) for one in ours]
        if len(ours) == 1:
            return replace(row, note=f"{ours[0].missing}: nothing says how far it varies")
    row = replace(row, n=len(vectors[0]) if len(vectors[0]) > 1 else 0)
    if len({len(one) for one in vectors}) > 1:
        return replace(row, note="the seeds were measured on different windows")
    if not any(one.any() for one in vectors):
        return replace(row, low=0.0, high=0.0, note="the same numbers")
    return _tested(row, vectors, ours[0].binary, minimum)


def _tested(row: Row, vectors: Sequence[Vector], binary: Vector | None, minimum: int | None) -> Row:
    """Bounds at half of ALPHA on either side, and a p-value where there are enough windows, items or seeds for one."""
    options: paired.Options = {"alpha": ALPHA / 2}
    if minimum is not None and len(vectors) == 1:  # of windows, not of seeds
        options["minimum"] = minimum
    if len(vectors) > 1:
        found = paired.seeds_noninferior(vectors, 0.0, **options)
        row = replace(row, seed_sd=seeds_effect(vectors).seed_sd)
    elif binary is not None:
        found = paired.proportion_noninferior(binary[0], binary[1], 0.0, **options)
    else:
        found = paired.noninferior(vectors[0], 0.0, **options)
    low, high = (end if isfinite(end) else None for end in (found.low, found.high))
    row = replace(row, low=low, high=high, method=found.method)
    if found.n < found.minimum:
        return replace(row, note=found.note)
    exact = paired.mcnemar(binary[0], binary[1]).p if binary is not None and len(vectors) == 1 else None
    p = 2 * min(found.p_pass, found.p_fail) if exact is None else exact
    return replace(row, p=min(1.0, max(0.0, p)))


def adjusted(rows: Sequence[Row]) -> Iterator[Row]:
    """The verdicts, of all rows that have a p-value together: one of many would be beyond its interval by chance."""
    tested = [i for i, row in enumerate(rows) if row.p is not None]
    holm = dict(zip(tested, paired.holm([rows[i].p or 0.0 for i in tested]), strict=True))
    for i, row in enumerate(rows):
        yield _judged(replace(row, adjusted=holm[i])) if i in holm else row


def _judged(row: Row) -> Row:
    floor = row.floor or 0.0
    beyond = [end is not None and end > floor for end in (row.low, None if row.high is None else -row.high)]
    if not any(beyond):
        return replace(row, note="" if not row.floor or abs(row.difference) > floor else "within the noise floor")
    if row.adjusted is None or row.adjusted >= ALPHA:
        return replace(row, note="beyond its own interval, but so is one of many by chance")
    return replace(row, verdict="regressed" if beyond[0] else "improved")


def _sign(difference: float) -> Verdict:
    return "regressed" if difference > 0 else "improved" if difference < 0 else "no evidence"
