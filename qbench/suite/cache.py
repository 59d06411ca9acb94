"""Trained weights and their logs, kept between runs under the key of their training."""

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qbench.models.checkpoint import BadCheckpoint, load, save
from qbench.models.transformer import Transformer
from qbench.results.files import make_folder, write_whole

VARIABLE = "QBENCH_CACHE"


def folder() -> Path:
    """`QBENCH_CACHE`, or `qbench` in the user's cache folder."""
    default = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "qbench"
    return Path(os.environ.get(VARIABLE) or default)


@dataclass(frozen=True, slots=True)
class Entry:
    """What one training left behind: weights of the last step, a log for each set of logged steps, checkpoints.

    A training under way keeps a snapshot there too.
    """

    key: str

    @property
    def path(self) -> Path:
        return folder() / "models" / self.key

    def model(self, step: int | None = None) -> Transformer | None:
        """The trained model (or its state after `step`), or None where it is not cached, or what is there is damaged.

        Raises OSError or MemoryError where it cannot be read now: that says nothing about the file.
        """
        file = self._weights(step)
        try:
            return load(file)[0] if file.exists() else None
        except BadCheckpoint:
            file.unlink(missing_ok=True)  # half-written by a full disk or another version: train again
            return None

    def log(self, key: str) -> list[dict[str, Any]] | None:
        file = self.path / f"log-{key}.json"
        try:
            return json.loads(file.read_text()) if file.exists() else None
        except ValueError:
            return None

    def keep(self, model: Transformer, step: int | None = None) -> None:
        save(model, self._weights(step), {"training": self.key})

    def keep_log(self, key: str, log: list[dict[str, Any]]) -> None:
        make_folder(self.path)
        write_whole(self.path / f"log-{key}.json", json.dumps(log).encode())

    def snapshot(self, key: str) -> Path:
        """Where a training that logs what `key` says is kept until it is over."""
        return self.path / f"training-{key}.safetensors"

    def _weights(self, step: int | None) -> Path:
        return self.path / ("model.safetensors" if step is None else f"step-{step}.safetensors")
