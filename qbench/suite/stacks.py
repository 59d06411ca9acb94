"""Cells about random stacks: the kurtosis behind each layer beside what closed forms say. No model and no data."""

from time import perf_counter

from qbench.evaluate.stack import Stack
from qbench.evaluate.theory import through
from qbench.results.record import Record
from qbench.suite.answer import Answer
from qbench.suite.cells import Cell


def stack_answer(cell: Cell) -> Answer:
    """One record for what goes in, `layer.0`, and for what leaves each layer."""
    start = perf_counter()
    stack = Stack(**{name: value for name, value in cell.model.items() if name != "arch"})
    records = tuple(
        Record(cell=cell.id, kind="activation", site=f"layer.{one.layers}", values=one.values, n=stack.rows)
        for one in through(stack, cell.seed)
    )
    return Answer(cell, records, seconds=perf_counter() - start)
