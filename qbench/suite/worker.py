"""The process that answers one model group: reads a task on standard input, says what it finds in JSON lines."""

import json
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from threading import Thread
from time import process_time
from typing import Any, TextIO

import torch

from qbench.results.origin import peak_rss
from qbench.suite.answer import FAULTS, Answer, Subject, attempt, failed, together, training_answer, trial_answer
from qbench.suite.cells import WATCHING, Cell
from qbench.suite.follow import followed, of_trained
from qbench.suite.losses import loss_answers
from qbench.suite.plugins import install
from qbench.suite.prepare import prepare
from qbench.suite.stacks import stack_answer
from qbench.suite.tensors import feed_calibration, feeder, passes, tensor_answers


class Wire:
    """Where messages go: the real standard output, which nothing else may print to."""

    def __init__(self) -> None:
        self._out: TextIO = os.fdopen(os.dup(1), "w", buffering=1)
        os.dup2(2, 1)  # what libraries print becomes part of the log

    def say(self, event: str, **body: Any) -> None:
        self._out.write(json.dumps({"event": event, **body}) + "\n")

    def answer(self, done: Answer) -> None:
        self.say(
            "cell",
            cell=done.cell.id,
            status=done.status,
            records=[asdict(record) for record in done.records],
            error=done.error,
            warnings=done.warnings,
            seconds=done.seconds,
            vectors={name: vector.tolist() for name, vector in done.vectors.items()},
        )


def answers(cells: Sequence[Cell], group: Sequence[Cell], device: str, wire: Wire) -> Iterator[Answer]:
    """Answer `cells` of a group of one arm and seed, whose training cell is needed even where it is settled."""
    training = next((cell for cell in group if cell.measurement.what in WATCHING), None)
    if training is None:
        yield from untrained(cells)
        return
    start = process_time()
    try:
        prepared = prepare(training, device, lambda done, of: wire.say("progress", done=done, of=of))
    except FAULTS as error:  # without a model no cell can be answered
        yield from (failed(cell, error) for cell in cells)
        return
    seconds = process_time() - start
    wire.say("prepared", digest=prepared.digest, cached=prepared.cached, cpu_seconds=seconds)
    if training in cells:
        answer = trial_answer if training.measurement.what == "trial" else training_answer
        yield answer(training, prepared.log, seconds)
    subject = Subject(prepared.model, training.model_spec(), prepared.reader, device)
    for part in passes(cells):
        yield from together(part, partial(tensor_answers, feeder(subject)))
    losses = [cell for cell in cells if cell.measurement.what == "loss"]
    if losses:
        yield from attempt(losses, partial(loss_answers, losses, subject))
    yield from followed(cells, lambda cell: of_trained(cell, subject))


def untrained(cells: Sequence[Cell]) -> Iterator[Answer]:
    """Tensors with known moments, and random stacks."""
    for part in passes(cells):
        yield from together(part, partial(tensor_answers, feed_calibration(part[0])))
    for cell in cells:
        if cell.stack:
            yield from attempt([cell], lambda cell=cell: [stack_answer(cell)])


def follow_parent() -> None:
    """Stop when standard input ends: the parent is gone, and nobody would store an answer."""

    def wait() -> None:
        while os.read(0, 1):  # not sys.stdin: a lock held at exit would be an error
            pass
        os._exit(1)

    Thread(target=wait, daemon=True).start()


def main() -> None:
    wire = Wire()
    task: Mapping[str, Any] = json.loads(sys.stdin.buffer.readline())
    follow_parent()
    torch.set_num_threads(1)
    if task["device"] == "cuda":  # on a CPU with one thread, sums have one order anyway
        torch.use_deterministic_algorithms(mode=True)
    install([Path(plugin) for plugin in task["plugins"]])
    startup = process_time()
    group = [Cell.from_json(raw) for raw in task["cells"]]
    ids = set(task["wanted"])
    wanted = [cell for cell in group if cell.id in ids]
    if group[0].pretrained:
        from qbench.suite.pretrained import Machine, pretrained_answers

        found = pretrained_answers(wanted, Machine(task["device"], task["trust_remote_code"]))
    else:
        found = answers(wanted, group, task["device"], wire)
    for done in found:
        wire.answer(done)
    wire.say("end", cpu_seconds=process_time(), startup_cpu_seconds=startup, peak_rss=peak_rss() or 0)


if __name__ == "__main__":
    main()
