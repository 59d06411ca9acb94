"""Learning rates that a suite chooses by itself: each is tried with the first seed, and judged on the tuning split.

The test split has no say. What was chosen is part of the cells that follow, so the trials are answered before those are
known: a run has two stages.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping

from qbench.results.record import Attempt
from qbench.suite.cells import Cell
from qbench.suite.value import Arm


def chosen(arms: Iterable[Arm], cells: Iterable[Cell], answered: Mapping[str, Attempt]) -> dict[str, float]:
    """The rate of each arm all of whose trials among `cells` are answered, and of those that take it over.

    The one with the lowest loss on the tuning split, the lower rate where two are equal; a trial that diverged has no
    loss. An arm all of whose trials diverged gets its lowest rate, and its models will say so.
    """
    losses: dict[str, dict[float, float | None]] = defaultdict(dict)
    for cell in cells:
        if cell.measurement.what == "trial":
            attempt = answered.get(cell.id)
            rate = float((cell.training or {})["lr"])
            if attempt is not None and attempt.closing.status == "measured":
                losses[cell.arm][rate] = attempt.records[0].values.get("loss")
    found: dict[str, float] = {}
    arms = tuple(arms)
    for arm in arms:
        tried = losses[arm.name]
        if arm.rates and tried.keys() >= set(arm.rates):
            found[arm.name] = min((loss, rate) for rate, loss in _known(tried).items())[1]
    return found | {arm.name: found[arm.rate_of] for arm in arms if arm.rate_of in found}


def undecided(arms: Iterable[Arm], rates: Mapping[str, float]) -> tuple[str, ...]:
    """The arms whose rate is not known yet."""
    return tuple(arm.name for arm in arms if (arm.rates or arm.rate_of) and arm.name not in rates)


def _known(tried: Mapping[float, float | None]) -> dict[float, float]:
    return {rate: loss for rate, loss in tried.items() if loss is not None} or {min(tried): 0.0}
