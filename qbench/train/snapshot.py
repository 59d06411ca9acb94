"""A training that was cut off, continued to the bit: weights, optimizer states and losses so far, in one file.

Tensors are stored as safetensors, everything else as JSON beside them; there is no pickle. Nothing is drawn from a
global generator in a training, so there is no other state. On another device or version the last bits may differ.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol, cast

from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_bytes
from torch import Tensor

from qbench.capture.write import Seen
from qbench.results.files import make_folder, write_whole
from qbench.train.trainer import Trainer

FORMAT = "qbench.training/2"


class BadSnapshot(ValueError):
    """The file is no snapshot of this training."""


@dataclass(slots=True)
class History:
    """Losses and gradient norms of the steps so far, process seconds, and wall seconds and tokens but for the first.

    `notes` are whatever whoever keeps snapshots wants to find again beside them, as JSON.
    """

    curve: list[float] = field(default_factory=list[float])
    norms: list[float] = field(default_factory=list[float])
    seconds: float = 0.0
    wall: float = 0.0
    tokens: int = 0
    notes: list[Any] = field(default_factory=list[Any])


class Keeper(Protocol):
    """What keeps a training: called at its beginning, and after each step, when that has been observed."""

    def resume(self, trainer: Trainer) -> History: ...
    def keep(self, trainer: Trainer, history: History) -> None: ...


@dataclass(frozen=True, slots=True)
class Snapshots:
    """A training writes `path` after every `every` steps, and begins there where the file is its own.

    `of` is what it is beyond its specs, such as its seed and its data: a file with another is of another training.
    """

    path: Path
    every: int = 100
    of: str = ""

    def resume(self, trainer: Trainer) -> History:
        """Bring `trainer` to where the file left it; a training of which there is no file yet begins."""
        return load(trainer, self.path, self.of) if self.path.exists() else History()

    def keep(self, trainer: Trainer, history: History) -> None:
        if trainer.steps % self.every == 0:
            save(trainer, history, self.path, self.of)


def save(trainer: Trainer, history: History, path: Path, of: str = "") -> None:
    """Write the training to `path`; readers see the old file or the new one, never a part. Raises CannotWrite."""
    tensors: dict[str, Tensor] = {}
    states = [one.state_dict() for one in trainer.optimizers]
    body = {
        "of": _identity(trainer, of),
        "steps": trainer.steps,
        "engagement": {place: asdict(seen) for place, seen in trainer.inside.engagement.places.items()},
        "history": asdict(history),
        "model": _packed(dict(trainer.model.state_dict()), "model", tensors),
        "optimizers": _packed(states, "optimizers", tensors),
    }
    stored = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    make_folder(path.parent)
    write_whole(path, to_bytes(stored, {"format": FORMAT, "body": json.dumps(body)}))


def load(trainer: Trainer, path: Path, of: str = "") -> History:
    """Bring `trainer`, fresh from the same model and training specs, to where `path` left it. Raises BadSnapshot."""
    body, tensors = _read(path)
    if body["of"] != _identity(trainer, of):
        raise BadSnapshot(f"{path.name} is of another training: delete it, or train with the same specs, seed and data")
    trainer.model.load_state_dict(_unpacked(body["model"], tensors))
    for one, state in zip(trainer.optimizers, _unpacked(body["optimizers"], tensors), strict=True):
        one.load_state_dict(state)
    trainer.steps = body["steps"]
    trainer.inside.engagement.places |= {place: Seen(**seen) for place, seen in body["engagement"].items()}
    return History(**body["history"])


def _identity(trainer: Trainer, of: str) -> dict[str, Any]:
    stored = {"model": asdict(trainer.model.spec), "training": asdict(trainer.training), "of": of}
    return json.loads(json.dumps(stored))  # tuples become lists, as in the file


def _read(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    try:
        with safe_open(path, framework="pt") as file:
            meta = dict(file.metadata() or {})
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (no mapping)
    except SafetensorError as error:
        raise BadSnapshot(f"{path.name}: {error}") from error
    if meta.get("format") != FORMAT:
        raise BadSnapshot(f"{path.name}: not a snapshot of the kind {FORMAT}")
    return json.loads(meta["body"]), tensors


def _packed(value: Any, place: str, tensors: dict[str, Tensor]) -> Any:
    """`value` as JSON, its tensors moved to `tensors`; keys keep their type (torch numbers its parameters)."""
    if isinstance(value, Tensor):
        tensors[place] = value
        return {"tensor": place}
    if isinstance(value, Mapping):
        items = cast(Mapping[Any, Any], value).items()
        return {"items": [[key, _packed(one, f"{place}.{key}", tensors)] for key, one in items]}
    if isinstance(value, list | tuple):
        kind = "tuple" if isinstance(value, tuple) else "list"
        return {kind: [_packed(one, f"{place}.{i}", tensors) for i, one in enumerate(cast(list[Any], value))]}
    return value


def _unpacked(value: Any, tensors: Mapping[str, Tensor]) -> Any:
    if not isinstance(value, dict):
        return value
    ((kind, body),) = cast(dict[str, Any], value).items()
    if kind == "tensor":
        return tensors[body]
    if kind == "items":
        return {key: _unpacked(one, tensors) for key, one in body}
    parts = [_unpacked(one, tensors) for one in body]
    return tuple(parts) if kind == "tuple" else parts
