"""Cells about residual additions: what stream and branch say about the kurtosis of their sum, all in one pass."""

from collections.abc import Callable
from time import perf_counter
from typing import Any

import torch
from torch import Tensor

from qbench.capture.joints import adds, watching_adds
from qbench.capture.places import NoScope, names, places, unnamed
from qbench.metrics.joint import AddSums, measure_add, merge_adds
from qbench.results.record import Record
from qbench.suite.answer import Answer
from qbench.suite.cells import Cell
from qbench.suite.specimen import Specimen


def adds_answer(cell: Cell, specimen: Specimen) -> Answer:
    """One record for each addition, by the name of its sum; none where a model has no skip connections.

    Raises NoScope where nobody knows what the places of the model are called.
    """
    start = perf_counter()
    known = names(specimen.model)
    if known is None:
        raise NoScope(f"its additions are not known; {unnamed(specimen.model)}")
    found: dict[str, AddSums] = {}

    def visit(total: str, stream: Tensor, y: Tensor, branch: Tensor | None) -> None:
        sums = measure_add(stream, y, branch)
        found[total] = merge_adds(found[total], sums) if total in found else sums

    run: Callable[[Tensor], Any] = getattr(specimen.model, "hidden", specimen.model)  # nobody looks at logits
    with torch.no_grad(), watching_adds(places(specimen.model), adds(known), visit):
        for x in specimen.inputs:
            run(x)
    n = sum(len(x) for x in specimen.inputs)
    records = tuple(
        Record(cell=cell.id, kind="activation", site=total, values=sums.values(), n=n) for total, sums in found.items()
    )
    odd = [total for total, sums in found.items() if not sums.plain]
    warnings = (f"what joins the stream is no multiple of the branch's output at {', '.join(odd)}",) if odd else ()
    return Answer(cell, records, warnings=warnings, seconds=perf_counter() - start)
