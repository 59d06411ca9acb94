"""What the lm-evaluation-harness says of each document of a task, as costs; no torch and no harness needed."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import exp, inf
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qbench.stats.bootstrap import weighted_mean_interval

Floats = NDArray[np.float64]
# Their metric, our cost. Shares are turned round: what was right becomes what was wrong.
SHARES: Mapping[str, str] = {
    name: f"task_error/{name}" for name in ("acc", "acc_norm", "acc_bytes", "acc_mutual_info", "exact_match", "f1")
}
WEIGHED: Mapping[str, tuple[str, bool]] = {  # whether the cost is the exponential of the mean
    "bits_per_byte": ("task_bits_per_byte", False),
    "byte_perplexity": ("task_perplexity/byte", True),
    "word_perplexity": ("task_perplexity/word", True),
    "perplexity": ("task_perplexity/target", True),
}
RIGHT = tuple(name for name in SHARES.values() if name != "task_error/f1")  # of which a document has one or none
MEANS = {"mean", "nanmean"}  # aggregations under which a share is the mean of its documents


@dataclass(frozen=True, slots=True)
class Costs:
    """One cost of a task with its 95 % bootstrap interval over documents.

    `vectors`: the cost of each document [N] under `name`, and `<name>/weight` [N] where documents count unequally.
    """

    name: str
    value: float
    interval: tuple[float, float]
    vectors: Mapping[str, Floats]


def error_rate(metrics: Iterable[str]) -> str | None:
    """Which of a task's costs is its error rate: the first that counts right and wrong documents; None without one.

    >>> error_rate(["task_error/f1", "task_error/acc_norm", "task_error/acc"])
    'task_error/acc_norm'
    """
    return next((name for name in metrics if name in RIGHT), None)


def error_rates(costs: Sequence[Costs]) -> list[Costs]:
    """The error rate under the name that is the same for every task, so that one rule can be about all of them."""
    right = error_rate(one.name for one in costs)
    return [
        replace(one, name="error_rate", vectors={"error_rate": one.vectors[one.name]} if one.vectors else {})
        for one in costs
        if one.name == right
    ]


def costs_of(metric: str, items: Sequence[Any], how: str, seed: int) -> Costs | None:
    """The cost behind one of the harness's metrics; `how` names its aggregation over documents.

    None where the metric is not one of ours, or is no mean over all documents.
    """
    found = _costs(metric, items, how)
    if found is None:
        return None
    name, each, weights, exponential = found
    value, low, high = (_exp(end) if exponential else end for end in weighted_mean_interval(each, weights, seed))
    vectors = {name: np.array([_exp(cost) for cost in each]) if exponential else each}
    if metric in WEIGHED:
        vectors[f"{name}/weight"] = weights
    return Costs(name, value, (low, high), vectors)


def _costs(metric: str, items: Sequence[Any], how: str) -> tuple[str, Floats, Floats, bool] | None:
    """Name, cost of each document, weights, and whether the task's cost is their mean's exponential."""
    if any(item is None for item in items):
        return None
    if metric in WEIGHED:
        name, exponential = WEIGHED[metric]
        pairs = np.array([item if isinstance(item, tuple | list) else (item, 1) for item in items], dtype=np.float64)
        nats = -pairs[:, 0] / pairs[:, 1]
        return name, nats if exponential else nats / np.log(2), pairs[:, 1], exponential
    numeric = all(isinstance(item, int | float | np.number | np.bool_) and 0 <= item <= 1 for item in items)
    if metric in SHARES and how in MEANS and numeric:
        return SHARES[metric], 1 - np.array(items, dtype=np.float64), np.ones(len(items)), False
    return None


def _exp(nats: float) -> float:
    return exp(nats) if nats < 700 else inf
