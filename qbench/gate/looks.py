"""Cells that each measured a part of growing data, put together: a further look adds windows to those of the first."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from qbench.results.record import Attempt, Closing
from qbench.results.run import part
from qbench.stats.looks import Places, added

MOST_WINDOWS = 10**7  # of a text: hundreds of millions of tokens in the shortest windows


class Problem(Exception):
    """Why there is no evidence to judge; `missing` where something is not there, and not merely wrong."""

    def __init__(self, text: str, *, missing: bool = False) -> None:
        super().__init__(text)
        self.missing = missing


def question(closing: Closing) -> str:
    """What a cell asks, the same for every look at growing data; its own question where nothing was planned to grow."""
    asked = part(closing.spec, "measurement")
    passage = part(asked, "passage")
    if "looks" not in passage:
        return closing.question
    treatment = {"assign": part(asked, "treatment").get("assign")}
    alike = {**asked, "windows": None, "passage": {**passage, "look": None}, "treatment": treatment}
    return json.dumps([part(closing.spec, "data").get("digest"), alike], sort_keys=True, default=str)


def in_order(cells: Sequence[Attempt], name: str) -> tuple[Attempt, ...]:
    """The cells of one model, seed and question, look by look. Raises Problem where one is missing, or there twice."""
    by_look = sorted(cells, key=lambda cell: _look(cell.closing.spec, name))
    looks = [_look(cell.closing.spec, name) for cell in by_look]
    if len(set(looks)) < len(looks):
        seed = by_look[0].closing.spec.get("seed")
        raise Problem(f"{name}: two cells answer it with seed {seed}; the folder holds two versions of the model")
    if looks != list(range(1, len(looks) + 1)):
        gone = sorted({*range(1, looks[-1])} - {*looks})[:5]
        raise Problem(f"{name}: look {', '.join(map(str, gone))} is missing; a further one adds to it", missing=True)
    return tuple(by_look)


def order(cells: Sequence[Attempt], lengths: Sequence[int], name: str) -> Places:
    """Where the windows of each cell, one cell after the other, stand in the text. Raises Problem for wrong lengths."""
    looks = part(cells[-1].closing.spec, "measurement", "passage").get("looks")
    if looks is None:
        return np.arange(sum(lengths))
    try:
        # Before any place is: a plan may name more windows than there is memory for.
        if looks[-1] > MOST_WINDOWS:
            raise ValueError(f"{looks[-1]} windows are more than {MOST_WINDOWS}")
        places = [added(tuple(looks), i + 1) for i in range(len(cells))]
    except (ValueError, TypeError, IndexError, KeyError, MemoryError) as error:
        raise Problem(f"{name}: its plan of looks is none ({error})"[:300]) from error
    if [len(one) for one in places] != list(lengths):
        raise Problem(f"{name}: {list(lengths)} windows, where its looks add {[len(one) for one in places]}")
    return np.argsort(np.concatenate(places))


def _look(spec: Mapping[str, Any], name: str) -> int:
    """From 1."""
    found = part(spec, "measurement", "passage").get("look", 1)
    if not isinstance(found, int) or isinstance(found, bool) or found < 1:
        raise Problem(f"{name}: the look {str(found)[:40]!r} is no number from 1")
    return found
