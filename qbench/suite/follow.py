"""Cells about flow, each answered alone: noise, additions, errors from block to block."""

from collections.abc import Callable, Generator, Iterable, Mapping

from qbench.suite.adds import adds_answer
from qbench.suite.answer import Answer, Subject, attempt
from qbench.suite.cells import Cell
from qbench.suite.flow import flow_answer
from qbench.suite.losses import assignment
from qbench.suite.noise import noise_answer
from qbench.suite.specimen import Specimen

FOLLOWED: Mapping[str, Callable[[Cell, Specimen], Answer]] = {
    "noise": noise_answer,
    "adds": adds_answer,
    "flow": flow_answer,
}


def followed(cells: Iterable[Cell], specimen: Callable[[Cell], Specimen]) -> Generator[Answer, None, None]:
    """The answers of those cells that are about flow."""
    for cell in cells:
        if answer := FOLLOWED.get(cell.measurement.what):
            yield from attempt([cell], lambda cell=cell, answer=answer: [answer(cell, specimen(cell))])


def of_trained(cell: Cell, subject: Subject) -> Specimen:
    """A model that was trained here, with the windows that a cell asks for."""
    asked = cell.measurement
    return Specimen(
        model=subject.model,
        scoring=subject.reader.scoring,
        batches=subject.batches(asked.split, asked.windows),
        inputs=subject.inputs(asked.split, asked.windows),
        assignment=lambda: assignment(cell, subject),
    )
