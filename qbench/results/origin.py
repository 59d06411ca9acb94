"""Origin: manifest.json says where the numbers of a run folder come from, one session per `run` on it.

No host names, user names or absolute paths; a session without `finished` was killed.
"""

import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any, TypedDict, Unpack

from qbench.results.files import make_folder, write_whole
from qbench.results.private import scrub, scrub_paths
from qbench.results.record import unread

MANIFEST = "manifest.json"
SCHEMA = 1
DISTRIBUTIONS = (
    "qbench-suite",
    "torch",
    "numpy",
    "safetensors",
    "pytorch-optimizer",
    "triton",
    "torchao",
    "transformers",
)


class BadManifest(ValueError):
    """A manifest is not what qbench writes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What one session was asked to do, and on what.

    `suite` is the text of the suite file, `cells` are the ids of all its cells; `data` and `models` map names to
    digests.
    """

    suite: str
    cells: Sequence[str] = ()
    options: Mapping[str, Any] = field(default_factory=dict[str, Any])
    seeds: Sequence[int] = ()
    data: Mapping[str, str] = field(default_factory=dict[str, str])
    models: Mapping[str, str] = field(default_factory=dict[str, str])
    device: str = "cpu"
    gpus: Sequence[str] = ()
    threads: int = 1


@dataclass(frozen=True, slots=True)
class Began:
    """A session under way: its place in the manifest, and the clocks when it began."""

    number: int
    wall: float
    cpu_seconds: float


class Found(TypedDict, total=False):
    """What is known at the end only: digests, such as those of trained weights, and costs this process cannot see."""

    data: Mapping[str, str]
    models: Mapping[str, str]
    cost: Mapping[str, float]


def begin(folder: str | Path, asked: Asked) -> Began:
    """Add a session to the manifest of `folder`; CannotWrite where it cannot be stored."""
    make_folder(Path(folder))
    sessions = [session | {"asked": []} for session in read(folder)["sessions"]]  # only the last list matters
    began = Began(len(sessions), time.monotonic(), _cpu_seconds())
    _write(folder, [*sessions, _asked(asked) | {"started": _now(), "finished": None, "cells": {}, "cost": {}}])
    return began


def finish(folder: str | Path, began: Began, cells: Mapping[str, int], **found: Unpack[Found]) -> None:
    """Complete the session with what it cost, what it found, and how many cells ended in which status."""
    sessions = list(read(folder)["sessions"])
    session = dict(sessions[began.number])
    digests = {name: session[name] | dict(found.get(name, {})) for name in ("data", "models")}
    cost = {
        "cpu_seconds": round(_cpu_seconds() - began.cpu_seconds, 3),
        "wall_seconds": round(time.monotonic() - began.wall, 3),
        "peak_rss_bytes": peak_rss(),
        **found.get("cost", {}),
    }
    sessions[began.number] = session | digests | {"finished": _now(), "cells": dict(cells), "cost": cost}
    _write(folder, sessions)


def read(folder: str | Path) -> dict[str, Any]:
    """The manifest, `{"schema": 1, "sessions": [...]}`, empty where there is none yet; BadManifest where damaged."""
    path = Path(folder) / MANIFEST
    if not path.exists():
        return {"schema": SCHEMA, "sessions": []}
    try:
        manifest = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise BadManifest(
            f"{path}: not JSON ({error}); restore it, or delete it to go on without its history"
        ) from error
    if not isinstance(manifest, dict) or not isinstance(manifest.get("sessions"), list):
        raise BadManifest(f'{path}: "sessions" must be a list')
    if manifest.get("schema") != SCHEMA:
        raise BadManifest(f"{path}: {unread(manifest.get('schema'), SCHEMA)}")
    for number, session in enumerate(manifest["sessions"]):
        if fault := _fault(session):
            raise BadManifest(f"{path}: session {number + 1}: {fault}")
    return manifest


def _fault(session: Any) -> str:
    """What a session has that qbench does not write; keys that are missing, or not known, are let be."""
    if not isinstance(session, dict):
        return f"{str(session)[:80]!r} is no session"
    wrong = [name for name, value in session.items() if name in _OF_SESSION and not _OF_SESSION[name](value)]
    return f"{wrong[0]} cannot be {str(session[wrong[0]])[:80]!r}" if wrong else ""


def _is_map(value: Any) -> bool:
    return isinstance(value, dict)


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_number(value: Any) -> bool:
    return value is None or (type(value) in (int, float) and abs(value) < 2**63)


def _are(kind: type) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, list) and all(type(one) is kind for one in value)


def _is_cost(value: Any) -> bool:
    return isinstance(value, dict) and all(map(_is_number, value.values()))


def _is_time(value: Any) -> bool:
    try:
        _ = value is None or datetime.fromisoformat(value).timestamp()
    except (TypeError, ValueError, OverflowError, OSError):
        return False
    return True


def _are_revisions(value: Any) -> bool:
    return isinstance(value, dict) and all(
        one is None or (isinstance(one, dict) and isinstance(one.get("commit", ""), str)) for one in value.values()
    )


_OF_SESSION: Mapping[str, Callable[[Any], bool]] = {
    **dict.fromkeys(("asked", "gpus"), _are(str)),
    **dict.fromkeys(("suite", "device"), _is_text),
    **dict.fromkeys(("options", "data", "models", "versions", "machine", "cells"), _is_map),
    **dict.fromkeys(("started", "finished"), _is_time),
    "seeds": _are(int),
    "threads": _is_number,
    "revisions": _are_revisions,
    "cost": _is_cost,
}


def versions() -> dict[str, str]:
    """Python and the installed packages that numbers depend on, none of them imported."""
    found = {"python": platform.python_version()}
    for name in DISTRIBUTIONS:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def machine() -> dict[str, Any]:
    """The processor and the system, without the machine's name; `cores` are those this process may use."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {"cpu": _cpu_model(), "cores": cores, "system": platform.system(), "architecture": platform.machine()}


def revision(file: Path) -> dict[str, Any] | None:
    """Commit of the git checkout that tracks `file`, and whether it has changes; None where there is none."""
    if not _git(file.parent, "ls-files", file.name):
        return None
    commit = _git(file.parent, "rev-parse", "--verify", "HEAD")
    return (
        {"commit": commit, "dirty": bool(_git(file.parent, "status", "--porcelain", "--untracked-files=no"))}
        if commit
        else None
    )


def _asked(asked: Asked) -> dict[str, Any]:
    parts = asdict(asked) | {"suite": scrub_paths(asked.suite), "options": _scrubbed(asked.options)}
    parts["asked"] = list(parts.pop("cells"))
    return parts | {
        "versions": versions(),
        "revisions": {"qbench": revision(Path(__file__))},
        "machine": machine(),
    }


def _scrubbed(value: Any) -> Any:
    if isinstance(value, str | Path):
        text = Path(scrub(str(value)))
        return f".../{text.name}" if text.is_absolute() else scrub(str(value))
    if isinstance(value, Mapping):
        return {str(name): _scrubbed(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [_scrubbed(part) for part in value]
    return value


def _write(folder: str | Path, sessions: Sequence[Mapping[str, Any]]) -> None:
    text = json.dumps({"schema": SCHEMA, "sessions": sessions}, indent=1, sort_keys=True, allow_nan=False)
    write_whole(Path(folder) / MANIFEST, f"{text}\n".encode())


def _git(folder: Path, *command: str) -> str:
    """What git prints, nothing where it fails: no git, no checkout, or one that is not ours to read."""
    quiet = os.environ | {"GIT_OPTIONAL_LOCKS": "0", "LC_ALL": "C"}
    try:
        done = subprocess.run(
            ["git", *command], cwd=folder, env=quiet, capture_output=True, text=True, timeout=10, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(errors="replace").splitlines()
    except OSError:  # not Linux
        return platform.processor()
    named = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return named[0] if named else platform.processor()


def _cpu_seconds() -> float:
    """Of this process and of its finished children."""
    return sum(os.times()[:4])


def peak_rss() -> int | None:
    """Largest resident memory in bytes of this process so far; None on Windows.

    Linux's `ru_maxrss` begins with the memory of the process that started this one; `VmHWM` counts from this program's
    start, where the kernel has it.
    """
    if sys.platform == "win32":
        return None
    status = Path("/proc/self/status")
    for line in status.read_text().splitlines() if status.exists() else ():
        if line.startswith("VmHWM:"):
            return 1024 * int(line.split()[1])
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
