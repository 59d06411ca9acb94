"""Cells about noise: what white noise at a place, or at all places of a scope, does to the loss of a model.

It costs one pass that is kept, and for each site or scope and each level two passes a pair, from the first block that
has noise on. A scope is one group however many places it has; so is a class of sites, such as `blocks.*.mlp.hidden`.
"""

from collections.abc import Iterator, Mapping, Sequence
from time import perf_counter
from typing import Any

import numpy as np

from qbench.capture.places import places, select
from qbench.evaluate.noise import Group, Noise, Response, responses, slope
from qbench.results.record import Record
from qbench.suite.answer import Answer
from qbench.suite.cells import Cell
from qbench.suite.losses import standard_error
from qbench.suite.specimen import Specimen


def noise_answer(cell: Cell, specimen: Specimen) -> Answer:
    """For each scope, then for each site, one record for each level."""
    start = perf_counter()
    asked = cell.measurement.options
    there = places(specimen.model)
    scopes = {name: select(specimen.model, "activation", name) for name in asked.get("scopes", ())}
    alone = [site for pattern in cell.measurement.sites for site in select(specimen.model, "activation", pattern)]
    sites = {site: (site,) for site in alone}
    groups: dict[str, Group] = {name: {site: there[site] for site in group} for name, group in (scopes | sites).items()}
    levels = [Noise(float(snr), int(asked.get("pairs", 1))) for snr in asked["snr_db"]]
    found = responses(specimen.model, groups, specimen.batches, levels, specimen.scoring)
    records = [record for name in scopes for record in _records(cell, found[name], {"scope": name})]
    records += [record for name in sites for record in _records(cell, found[name], {"site": name})]
    return Answer(cell, tuple(records), seconds=perf_counter() - start, vectors=_vectors(found))


def _records(cell: Cell, levels: Sequence[Response], where: Mapping[str, Any]) -> Iterator[Record]:
    exponent = {"noise/exponent": slope(levels)} if len(levels) > 1 else {}
    for one in levels:
        values = {
            "noise/snr_db": one.noise.snr_db,
            "noise/increase": one.increase.estimate,
            "noise/sensitivity": one.sensitivity.estimate,
            "floor/window": standard_error(one.increases),
            **exponent,
        }
        ends = {"noise/increase": one.increase, "noise/sensitivity": one.sensitivity}
        intervals = {name: (interval.low, interval.high) for name, interval in ends.items()}
        n = len(one.increases)
        yield Record(cell=cell.id, kind="activation", **where, values=values, intervals=intervals, n=n)


def _vectors(found: Mapping[str, Sequence[Response]]) -> dict[str, np.ndarray]:
    return {
        f"{name}/{one.noise.snr_db:g} dB/noise/increase": one.increases
        for name, levels in found.items()
        for one in levels
    }
