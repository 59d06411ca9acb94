"""Cells about errors: how that of a treatment grows from block to block and through each matrix.

Every block runs four times on every window, as it is and quantized, on what the clean and the quantized model give it.
"""

from time import perf_counter
from typing import Any

from qbench.evaluate.propagation import propagation
from qbench.evaluate.units import units
from qbench.results.record import Record
from qbench.suite.answer import Answer, single
from qbench.suite.cells import Cell
from qbench.suite.specimen import Specimen


def flow_answer(cell: Cell, specimen: Specimen) -> Answer:
    """One record for each block, `blocks.3`, and for each matrix, in the order of the forward pass."""
    start = perf_counter()
    treatment = cell.measurement.treatment
    assert treatment is not None
    at, of = specimen.assignment()
    parts = units(specimen.model, specimen.inputs[0])
    found = propagation(specimen.model, specimen.inputs, parts, at, of)
    kind, quantizer = single(treatment.assign)
    n = sum(len(x) for x in specimen.inputs)
    named: dict[str, Any] = {"cell": cell.id, "kind": kind, "scope": treatment.scope, "quantizer": quantizer, "n": n}
    records = tuple(Record(**named, site=site, values=values) for site, values in found.values().items())
    outside = (f"outside the blocks, and no part of this: {', '.join(found.left_out)}",) if found.left_out else ()
    return Answer(cell, records, warnings=(*found.warnings, *outside), seconds=perf_counter() - start)
