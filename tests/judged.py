"""Suites over models from elsewhere, answered in this process: what a worker does, without starting one."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from json import dumps, loads
from pathlib import Path
from typing import Any

from qbench.results.record import Record
from qbench.suite.answer import Answer
from qbench.suite.cells import Cell
from qbench.suite.device import find
from qbench.suite.engine import Message
from qbench.suite.pretrained import Machine, pretrained_answers
from qbench.suite.run import plan
from qbench.suite.schema import load
from qbench.suite.worker import untrained

HEAD = "suite: judged\nversion: 1\nquestion: What does it cost?\n"


def answered(home: Path, text: str, only: str = "", arm: str = "") -> dict[str, Answer]:
    """ "arm: title" -> answer, of the suite `text`, whose paths start from `home`; known tensors aside.

    `only` keeps cells whose title contains it, `arm` those of one arm.
    """
    path = home / "judged.yaml"
    path.write_text(HEAD + text)
    cells = plan(load(path), home / "run", find("cpu"), 1).cells
    wanted = [c for c in cells if c.pretrained and only in c.title and arm in ("", c.arm)]
    found: dict[str, Answer] = {}
    for name in dict.fromkeys(cell.arm for cell in wanted):
        for done in pretrained_answers([c for c in wanted if c.arm == name], Machine("cpu")):
            found[f"{name}: {done.cell.title}"] = done
    assert len(found) == len(wanted)
    return found


def whole(answer: Answer) -> Record:
    """The record of all data; the answer must be there."""
    assert answer.status == "measured", answer.error
    (record,) = (record for record in answer.records if not record.slice)
    return record


def slices(answer: Answer) -> Mapping[str, Mapping[str, float]]:
    return {record.slice: record.values for record in answer.records if record.slice}


def at(answer: Answer, site: str) -> Mapping[str, float]:
    """The values of a site."""
    assert answer.status == "measured", answer.error
    (record,) = (record for record in answer.records if record.site == site and not record.slice)
    return record.values


def work(tasks: Sequence[Mapping[str, Any]], _slots: Sequence[object]) -> Iterator[Message]:
    """Stands in for `engine.work`: the same messages, from this process."""
    for number, task in enumerate(tasks):
        group = [Cell.from_json(raw) for raw in loads(dumps(task))["cells"]]
        wanted = [cell for cell in group if cell.id in set(task["wanted"])]
        for done in _answers(wanted, task):
            vectors = {name: vector.tolist() for name, vector in done.vectors.items()}
            body = asdict(done) | {"cell": done.cell.id, "vectors": vectors}
            yield Message(number, "cell", loads(dumps(body)))
        yield Message(number, "end", {})


def _answers(cells: Sequence[Cell], task: Mapping[str, Any]) -> Iterator[Answer]:
    if cells and cells[0].pretrained:
        yield from pretrained_answers(cells, Machine(task["device"], task["trust_remote_code"]))
        return
    yield from untrained(cells)
