"""Random cells measured again, compared with the noise floors: what `qbench reproduce` writes and a check believes."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from math import ceil, isfinite, sqrt
from pathlib import Path
from random import Random
from statistics import stdev
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from qbench.report.leaderboard.hostile import REPRODUCED, plain, read_json
from qbench.report.leaderboard.submission import SCHEMA, digest
from qbench.results.files import write_whole
from qbench.results.lines import RECORDS
from qbench.results.record import Attempt
from qbench.results.run import Run, arm, part

VERSION = 1
NUMERICAL = 10.0  # times the numerical floor: another machine adds in another order, in every operation
LEAST = 1e-6  # nats, where no numerical floor was measured
METRIC = "loss"


@dataclass(frozen=True, slots=True, kw_only=True)
class Again:
    """One cell measured again; it agrees where the two differ by no more than `floor`."""

    cell: str
    was: float
    found: float
    floor: float
    kind: Literal["numerical", "seed", "window"]

    @property
    def agrees(self) -> bool:
        return abs(self.was - self.found) <= self.floor


class _Again(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)
    cell: Annotated[str, Field(max_length=32)]
    was: float
    found: float
    floor: Annotated[float, Field(ge=0)]
    kind: Literal["numerical", "seed", "window"]


class Reproduction(BaseModel):
    """The file's form. `records` is the digest of what was reproduced: another file has no claim to the label."""

    model_config = ConfigDict(extra="forbid", strict=True)
    reproduced: Literal[1]
    by: Annotated[str, Field(min_length=1, max_length=120)]
    date: Annotated[str, Field(max_length=40)]
    commit: Annotated[str, Field(max_length=64)] = ""
    records: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
    of: Annotated[int, Field(ge=1)]
    cells: Annotated[list[_Again], Field(min_length=1, max_length=10_000)]

    @property
    def label(self) -> str:
        return f"reproduced by {plain(self.by, 60)}, {len(self.cells)} of {self.of} cells"


def schema() -> dict[str, Any]:
    """The form of reproduced.json as JSON Schema."""
    return {"$schema": SCHEMA, "$id": "reproduced.json", **Reproduction.model_json_schema()}


def sample(run: Run, share: float, seed: int) -> list[Attempt]:
    """A random `share` of the measured losses, at least one; ValueError where there is none."""
    found = sorted(ranked(run), key=lambda one: one.closing.cell)
    if not found:
        raise ValueError(f"{run.folder} holds no measured loss, so there is nothing to measure again")
    return Random(seed).sample(found, min(len(found), max(1, ceil(share * len(found)))))


def ranked(run: Run) -> list[Attempt]:
    return [
        one
        for one in run.cells.values()
        if part(one.closing.spec, "measurement").get("what") == METRIC
        and one.closing.status == "measured"
        and value(one) is not None
    ]


def value(attempt: Attempt) -> float | None:
    """The loss of a cell as a whole."""
    return next((one.values[METRIC] for one in attempt.records if METRIC in one.values and not one.slice), None)


def floor(run: Run, attempt: Attempt, same_weights: bool) -> tuple[float, Literal["numerical", "seed", "window"]]:
    """How far a second measurement may lie from the first, in nats.

    The same weights may differ by the order of summation only. Weights that were trained again on another machine are
    another draw of the seed: two of them differ by the square root of two standard deviations, and 95 % of them by
    twice that. With one seed the window floor has to do.
    """
    baseline = [one for one in ranked(run) if _as_they_are(one) and arm(one.closing.spec) == arm(attempt.closing.spec)]
    floors = [_floors(one) for one in baseline]
    if same_weights:
        known = [found["floor/numerical"] for found in floors if "floor/numerical" in found]
        return max(NUMERICAL * max(known, default=0.0), LEAST), "numerical"
    question = attempt.closing.question
    spread = [
        v
        for one in ranked(run)
        if one.closing.question == question
        and arm(one.closing.spec) == arm(attempt.closing.spec)
        and (v := value(one)) is not None
    ]
    if len(spread) > 1:
        return 2 * sqrt(2) * stdev(spread), "seed"
    return max((found.get("floor/window", 0.0) for found in floors), default=0.0), "window"


def _as_they_are(attempt: Attempt) -> bool:
    return not part(attempt.closing.spec, "measurement", "treatment").get("assign")


def _floors(attempt: Attempt) -> Mapping[str, float]:
    return next((one.values for one in attempt.records if not one.slice), {})


def write(folder: Path, cells: Sequence[Again], facts: Mapping[str, str], of: int) -> Path:
    """Store what was found beside the run; `facts` are by, date and commit."""
    made = {"reproduced": VERSION, **facts, "records": digest(folder / RECORDS), "of": of}
    path = folder / REPRODUCED
    text = json.dumps(made | {"cells": [asdict(one) for one in cells]}, indent=1, sort_keys=True, allow_nan=False)
    write_whole(path, f"{text}\n".encode())
    return path


def read(folder: Path, run: Run) -> tuple[Reproduction | None, list[str]]:
    """What was reproduced, or why the label cannot stand."""
    path = folder / REPRODUCED
    if not path.exists():
        return None, [f"says that it was reproduced, but there is no {REPRODUCED}; run `qbench reproduce`"]
    try:
        found = Reproduction.model_validate(read_json(path))
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        return None, [plain(f"{REPRODUCED}: {'.'.join(map(str, first['loc']))}: {first['msg']}")]
    except ValueError as error:
        return None, [plain(f"{REPRODUCED}: {error}")]
    faults = _contradictions(found, folder, run)
    return (None, faults) if faults else (found, [])


def _contradictions(found: Reproduction, folder: Path, run: Run) -> list[str]:
    if found.records != digest(folder / RECORDS):
        return [f"{REPRODUCED} is about other records than {RECORDS} holds; run `qbench reproduce` again"]
    ours = {one.closing.cell: one for one in ranked(run)}
    faults: list[str] = []
    for one in found.cells:
        name, cell = f"{REPRODUCED}: cell {plain(one.cell, 20)}", ours.get(one.cell)
        if cell is None or value(cell) != one.was or not isfinite(one.found):
            faults.append(f"{name} is not what the records hold")
        elif one.floor > max(floor(run, cell, same_weights)[0] for same_weights in (True, False)) * (1 + 1e-9):
            faults.append(f"{name} claims a noise floor of {one.floor:.3g}, more than the run's")
        elif abs(one.was - one.found) > one.floor:
            faults.append(f"{name} does not agree: {one.was:.6g}, then {one.found:.6g}")
    if len({one.cell for one in found.cells}) != len(found.cells) or found.of != len(ours):
        faults.append(f"{REPRODUCED}: its counts of cells are not those of the run")
    return faults
