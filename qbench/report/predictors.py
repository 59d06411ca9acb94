"""Which statistic of the tensors predicts what quantizing them costs: the question, asked of the records of a run."""

from collections import defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from math import isfinite, nan
from statistics import fmean

import numpy as np
from numpy.typing import NDArray

from qbench.capture.sites import SiteNames, recorded, resolve
from qbench.names import UnknownName
from qbench.report.troubles import stuck
from qbench.report.view import Arm, Row, View, place
from qbench.stats.rank import FEWEST, Comparison, Table, compare

COST = "loss_increase"
SENSITIVITY = "noise/sensitivity"

Key = tuple[str, int]  # arm and seed
Site = str


@dataclass(frozen=True, slots=True)
class Observation:
    """One treatment of activations in one run: what it cost, the sites that it quantizes, and what is known of them.

    `shapes` and `errors` hold the metrics of each site, the latter with this treatment's quantizer; `noise` the
    sensitivity of each site, or under the name of the scope that of all sites at once; `flow` is R behind the last
    block, NaN where it was not measured.
    """

    run: Key
    scope: str
    quantizer: str
    cost: float
    sites: tuple[Site, ...]
    shapes: Mapping[Site, Mapping[str, float]]
    errors: Mapping[Site, Mapping[str, float]]
    noise: Mapping[str, float]
    flow: float = nan

    def mean(self, metric: str) -> float:
        """Of a shape metric over the sites; NaN unless all have it."""
        return _mean([self.shapes.get(site, {}).get(metric, nan) for site in self.sites])

    @property
    def error(self) -> float:
        """The mean over the sites of the error's power relative to the tensor's."""
        return _mean([self._power(site) for site in self.sites])

    @property
    def predicted_cost(self) -> float:
        """Noise sensitivity times error: of the scope as a whole where it was measured, else summed over its sites."""
        if self.scope in self.noise:
            return self.noise[self.scope] * self.error
        return sum(self.noise.get(site, nan) * self._power(site) for site in self.sites)

    def _power(self, site: Site) -> float:
        return self.errors.get(site, {}).get("relative_error", nan) ** 2


PREDICTORS: Mapping[str, Callable[[Observation], float]] = {
    "excess kurtosis per token": lambda one: one.mean("excess_kurtosis/token"),
    "excess kurtosis per channel": lambda one: one.mean("excess_kurtosis/channel"),
    "excess kurtosis per tensor": lambda one: one.mean("excess_kurtosis/tensor"),
    "crest": lambda one: one.mean("crest_db"),
    "error": lambda one: one.error,
    "R behind the last block": lambda one: one.flow,
    "noise sensitivity × error": lambda one: one.predicted_cost,
}


def predictors(
    seen: Sequence[Observation], by_scope: bool = False, among: Collection[str] = tuple(PREDICTORS)
) -> Comparison | None:
    """How well each of PREDICTORS `among` these that was measured orders the loss increases seen, the best first.

    Ranks are taken within a quantizer, over all its treatments, arms and seeds, or with `by_scope` within one scope of
    a quantizer, where only arms and seeds differ. An arm is resampled with all its seeds: they share what makes arms
    differ, so three seeds are no three models. Where there is one arm, its seeds are resampled. Predictors that no
    observation has are left out; None where fewer than three have all others.
    """
    columns = _columns(seen, among)
    complete = np.isfinite(np.array([*columns.values()])).all(0) if columns else np.zeros(0, bool)
    if complete.sum() < FEWEST:
        return None
    cost = np.array([one.cost for one in seen])
    strata = [(one.quantizer, one.scope if by_scope else "") for one in seen]
    arms = [one.run[0] for one in seen]
    several = len({arms[i] for i in np.flatnonzero(complete)}) > 1
    return compare(Table(columns, cost, arms if several else [one.run for one in seen], strata))


def incomplete(seen: Sequence[Observation], among: Collection[str] = tuple(PREDICTORS)) -> dict[str, list[Observation]]:
    """Observations that are not ranked, by the first of PREDICTORS `among` these that they lack and others have."""
    columns = _columns(seen, among)
    found: dict[str, list[Observation]] = {}
    for at, one in enumerate(seen):
        lacks = next((name for name, column in columns.items() if not isfinite(column[at])), None)
        if lacks is not None:
            found.setdefault(lacks, []).append(one)
    return found


def _columns(seen: Sequence[Observation], among: Collection[str]) -> dict[str, NDArray[np.float64]]:
    """Each predictor of every observation [N], of those predictors that any observation has."""
    columns = {name: np.array([of(one) for one in seen]) for name, of in PREDICTORS.items() if name in among}
    return {name: column for name, column in columns.items() if np.isfinite(column).any()}


def observations(run: View, names: Callable[[Arm], SiteNames] | None = None) -> list[Observation]:
    """Every treatment of activations with one quantizer and a scope or a site, joined with what else is known.

    Shapes and errors are those measured after training, on the same kind of tensor. Runs that learned nothing have
    nothing to lose and are left out, one seed at a time.
    """
    lost = stuck(run)
    shapes = _by_site(run.select("shape", kind="activation", step=None), lambda row: "")
    errors = _by_site(run.select("error", kind="activation", step=None), lambda row: row.quantizer)
    noise = _noise(run)
    flow = _last_errors(run)
    found: list[Observation] = []
    for row in run.select("loss", kind="activation"):
        arm = run.arm(row.arm)
        where = row.scope or row.site
        sites = _sites(where, (names or own_names)(arm)) if arm is not None and row.quantizer else ()
        key = (row.arm, row.seed)
        if COST not in row.values or not sites or key in lost:
            continue
        found.append(
            Observation(
                run=key,
                scope=where,
                quantizer=row.quantizer,
                cost=row.values[COST],
                sites=sites,
                shapes=shapes[*key, ""],
                errors=errors[*key, row.quantizer],
                noise=noise[key],
                flow=flow.get((*key, where, row.quantizer), (-1, nan))[1],
            )
        )
    return found


def own_names(arm: Arm) -> SiteNames:
    return recorded(arm.model)


def _sites(where: str, names: SiteNames) -> tuple[Site, ...]:
    """What a scope, a pattern or a site selects; nothing where it is none of this model's activations."""
    try:
        return resolve(where, "activation", names) if where else ()
    except UnknownName:
        return ()


def _by_site(
    rows: Sequence[Row], of: Callable[[Row], str]
) -> defaultdict[tuple[str, int, str], dict[Site, Mapping[str, float]]]:
    found: defaultdict[tuple[str, int, str], dict[Site, Mapping[str, float]]] = defaultdict(dict)
    for row in rows:
        found[row.arm, row.seed, of(row)][row.site] = row.values
    return found


def _noise(run: View) -> defaultdict[Key, dict[str, float]]:
    """The sensitivity of each site or scope, averaged over the levels of noise that were tried."""
    levels: defaultdict[Key, defaultdict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for row in run.select("noise"):
        if SENSITIVITY in row.values:
            levels[row.arm, row.seed][row.scope or row.site].append(row.values[SENSITIVITY])
    found: defaultdict[Key, dict[str, float]] = defaultdict(dict)
    for key, of in levels.items():
        found[key] = {name: fmean(each) for name, each in of.items()}
    return found


def _last_errors(run: View) -> dict[tuple[str, int, str, str], tuple[int, float]]:
    """R behind the last block by arm, seed, scope and quantizer, with the number of that block."""
    found: dict[tuple[str, int, str, str], tuple[int, float]] = {}
    for row in run.select("flow"):
        block, inside = place(f"{row.site}.")
        if block is None or inside or "flow/error" not in row.values:
            continue
        key = (row.arm, row.seed, row.scope, row.quantizer)
        found[key] = max(found.get(key, (-1, nan)), (block, row.values["flow/error"]), key=lambda pair: pair[0])
    return found


def _mean(values: Sequence[float]) -> float:
    return fmean(values) if values else nan
