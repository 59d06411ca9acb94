"""A training that was cut off goes on where it was: its snapshot, kept beside where its weights will be."""

from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic
from typing import Any

from qbench.train import snapshot
from qbench.train.snapshot import BadSnapshot, History
from qbench.train.trainer import Trainer

SECONDS = 20.0  # from one snapshot to the next, at least
SHARE = 0.02  # of the time, at most, that goes into them


@dataclass(slots=True)
class Resumable:
    """Keeps a training and its log `rows` in the file `path`, every so often by the clock.

    When that is changes nothing about the result: a continued training ends where an uninterrupted one does.
    """

    path: Path
    rows: list[Any]
    _next: float = field(init=False, default=0.0)

    def resume(self, trainer: Trainer) -> History:
        """Bring trainer and rows to where the file left them; a file that is damaged, or of another kind, is gone.

        Raises OSError where it cannot be read now: that says nothing about the file.
        """
        self._next = monotonic() + SECONDS
        try:
            history = snapshot.load(trainer, self.path)
        except FileNotFoundError:
            return History()
        except BadSnapshot:
            self.drop()
            return History()
        self.rows[:] = history.notes
        return history

    def keep(self, trainer: Trainer, history: History) -> None:
        """Write the file where it is time. Raises CannotWrite: what cannot be kept now could not be at the end."""
        start = monotonic()
        if start < self._next:
            return
        history.notes = self.rows
        snapshot.save(trainer, history, self.path)
        took = monotonic() - start
        self._next = start + max(SECONDS, took / SHARE)

    def drop(self) -> None:
        """The training is over, and its weights are kept."""
        self.path.unlink(missing_ok=True)
