"""Models on disk: safetensors with the spec inside, written whole or not at all."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from safetensors.torch import save as to_bytes
from torch import Tensor

from qbench.models.spec import ModelSpec
from qbench.models.transformer import Transformer
from qbench.results.files import make_folder, write_whole

FORMAT = "qbench.transformer/1"
NAMED = 4  # weights that a message names


class BadCheckpoint(ValueError):
    """The file is not a checkpoint of ours, or was damaged."""


def save(model: Transformer, path: Path, meta: Mapping[str, str]) -> None:
    """Write weights, spec and `meta` to `path`; readers see the old file or the new one, never a part.

    Raises ValueError where `meta` uses one of our own keys, `format` and `spec`, CannotWrite where it cannot be stored.
    """
    own = {"format": FORMAT, "spec": json.dumps(model.spec.stored(), sort_keys=True)}
    if taken := own.keys() & meta.keys():
        raise ValueError(f"checkpoint metadata may not use {', '.join(sorted(taken))}")
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    make_folder(path.parent)
    write_whole(path, to_bytes(state, {**meta, **own}))


def load(path: Path) -> tuple[Transformer, dict[str, str]]:
    """The model, on the CPU, bit for bit as it was saved, and its `meta`.

    Raises BadCheckpoint where the file is wrong; where memory or the disk is, what they raise.
    """
    meta = _metadata(path)
    if meta.pop("format", None) != FORMAT:
        raise BadCheckpoint(f"{path.name}: not a checkpoint of the kind {FORMAT}")
    try:
        spec = ModelSpec(**json.loads(meta.pop("spec")))
    except (KeyError, TypeError, ValueError) as error:
        raise BadCheckpoint(f"{path.name}: no spec of a model: {error}") from error
    model, weights = Transformer(spec), _weights(path)
    wanted, found = ({name: x.shape for name, x in those.items()} for those in (model.state_dict(), weights))
    if wrong := sorted(name for name in {*wanted, *found} if wanted.get(name) != found.get(name)):
        raise BadCheckpoint(f"{path.name}: spec and weights do not belong together: {', '.join(wrong[:NAMED])}")
    model.load_state_dict(weights)
    return model, meta


def digest(source: Path | Mapping[str, Tensor]) -> str:
    """SHA-256 of names, types, shapes and values: equal for a state dict and for a file that holds it."""
    state = load_file(source) if isinstance(source, Path) else source
    total = hashlib.sha256()
    for name in sorted(state):
        tensor = state[name].detach().cpu().contiguous()
        total.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        total.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return total.hexdigest()


def _weights(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except SafetensorError as error:
        raise BadCheckpoint(f"{path.name}: {error}") from error


def _metadata(path: Path) -> dict[str, str]:
    try:
        with safe_open(path, framework="pt") as file:
            return dict(file.metadata() or {})
    except SafetensorError as error:
        raise BadCheckpoint(f"{path.name}: {error}") from error
