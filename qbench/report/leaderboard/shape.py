"""A submitted run read and checked against the shape of what qbench writes, so that later code can rely on it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, get_args

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, TypeAdapter, ValidationError

from qbench.report.leaderboard.hostile import plain, read_json, shallow
from qbench.results.lines import BadRecords
from qbench.results.origin import MANIFEST, BadManifest
from qbench.results.record import Closing
from qbench.results.run import Run
from qbench.results.run import read as read_run
from qbench.suite.cells import What

MOST_CELLS = 20_000
SHOWN = 20  # faults of one kind; the rest are counted
_WHAT = get_args(What)


class _Part(BaseModel):
    """Only the keys that a leaderboard reads; others may be there."""

    model_config = ConfigDict(extra="ignore", strict=True, frozen=True)


def _listed(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _known(value: str) -> str:
    if value not in _WHAT:
        raise ValueError(f"allowed: {', '.join(_WHAT)}")
    return value


Short = Annotated[str, Field(max_length=300)]
Hex = Annotated[str, Field(pattern="^[0-9a-f]{0,64}$")]
Count = Annotated[int, Field(ge=0, lt=2**53)]


class _Treatment(_Part):
    name: Short
    scope: Short
    assign: dict[Short, Short]


class _Measurement(_Part):
    what: Annotated[str, BeforeValidator(_known)]
    windows: Count = 0
    split: Short = ""
    passage: dict[str, Any] = {}
    options: dict[str, Any] = {}
    treatment: _Treatment | None = None


class _Data(_Part):
    name: Short
    digest: Hex


class _Spec(_Part):
    suite: Annotated[str, Field(min_length=1, max_length=64)]
    version: Count
    arm: Short
    model: dict[str, Any]
    training: dict[str, Any] | None
    seed: Count
    data: _Data
    device: Short
    plugins: Short = ""
    measurement: _Measurement
    revisions: dict[str, Any]


class _Revision(_Part):
    commit: Short
    dirty: bool = False


class _Revisions(_Part):
    qbench: _Revision | None = None


class _Session(_Part):
    asked: Annotated[tuple[Short, ...], BeforeValidator(_listed), Field(max_length=MOST_CELLS)] = ()
    suite: Annotated[str, Field(max_length=1_000_000)]
    started: Short
    finished: Short | None
    device: Short = ""
    seeds: Annotated[tuple[Count, ...], BeforeValidator(_listed)] = ()
    options: dict[str, Any] = {}
    revisions: _Revisions = _Revisions()


_SESSIONS = TypeAdapter(Annotated[tuple[_Session, ...], BeforeValidator(_listed), Field(min_length=1, max_length=1000)])


def read(folder: Path) -> tuple[Run | None, list[str]]:
    """The cells that the last session asked for, and no faults; or None and what is wrong."""
    wrong = _manifest(folder)
    if wrong:
        return None, wrong
    try:
        run = read_run(folder).current
    except (BadRecords, BadManifest) as error:
        return None, [plain(str(error).replace(f"{folder}/", ""))]
    if len(run.cells) > MOST_CELLS:
        return None, [f"{len(run.cells)} cells; at most {MOST_CELLS}"]
    faults = [fault for attempt in run.cells.values() if (fault := _spec(attempt.closing))]
    return (None, some(faults)) if faults else (run, [])


def some(faults: list[str]) -> list[str]:
    """The first of many, and how many more there are."""
    left = len(faults) - SHOWN
    return [*faults[:SHOWN], f"and {left} more like these"] if left > 0 else faults


def _manifest(folder: Path) -> list[str]:
    try:
        manifest = read_json(folder / MANIFEST)
        _SESSIONS.validate_python(manifest.get("sessions") if isinstance(manifest, Mapping) else None)
    except ValidationError as error:
        return some([f"{MANIFEST}: {_fault(error)}"])
    except ValueError as error:
        return [f"{MANIFEST}: {plain(str(error))}"]
    return []


def _spec(closing: Closing) -> str:
    if not shallow(closing.spec):
        return f"cell {plain(closing.cell, 20)}: its spec is nested too deeply"
    try:
        _Spec.model_validate(dict(closing.spec))
    except ValidationError as error:
        return f"cell {plain(closing.cell, 20)}: {_fault(error)}"
    return ""


def _fault(error: ValidationError) -> str:
    first = error.errors(include_url=False, include_context=False, include_input=False)[0]
    return plain(f"{'.'.join(map(str, first['loc']))}: {first['msg']}")
