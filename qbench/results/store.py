"""The store: one writer appends each finished cell to records.jsonl in one durable step."""

import os
import sys
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from errno import ENOSPC
from pathlib import Path

from qbench.results.files import CannotWrite, cannot_write, make_folder, sync_folder
from qbench.results.lines import RECORDS, closings, encode, scan
from qbench.results.private import scrub
from qbench.results.record import Attempt, Closing, Record, Status, stored

LOCK = ".lock"
TORN = "records.torn"  # what a repair takes off the end of records.jsonl is kept here


class FolderInUse(RuntimeError):
    """Another process writes to this run folder."""


class Store:
    """The only writer of a run folder; `Store.open` gives one.

    `settled` maps each cell to the status of its last attempt; `repaired` says what was mended, if anything.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        with cannot_write(path):
            self._handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | getattr(os, "O_BINARY", 0), 0o644)
            sync_folder(path.parent)
        try:
            log = scan(path)
            with cannot_write(path):
                self.repaired = _repair(path, self._handle, log.sound)
        except BaseException:
            self.close()
            raise
        self.settled: dict[str, Status] = {cell: one.closing.status for cell, one in log.attempts.items()}
        self._attempts = {cell: one.closing.attempt for cell, one in log.attempts.items()}

    @classmethod
    @contextmanager
    def open(cls, folder: str | Path) -> Generator["Store", None, None]:
        """Hold `folder` for writing, created where missing, its last line repaired where a crash tore it.

        Raises FolderInUse where another process holds it, CannotWrite where nothing can be stored there, and
        BadRecords where the file is damaged in a way that no crash explains.
        """
        folder = Path(folder)
        make_folder(folder)
        with _locked(folder):
            store = cls(folder / RECORDS)
            try:
                yield store
            finally:
                store.close()

    def append(self, closing: Closing, records: Sequence[Record]) -> Attempt:
        """Store one attempt at a cell, its closing line last, by one write and one fsync; what was stored is returned.

        Counts records and attempts; takes paths and names out of the error, the log and the warnings. After CannotWrite
        the file is as it was before; ValueError and TypeError, for what is no JSON, come before anything is written.
        """
        strays = [record.cell for record in records if record.cell != closing.cell]
        if strays:
            raise ValueError(f"a record of cell {strays[0]} cannot stand in cell {closing.cell}")
        attempt = self._attempts.get(closing.cell, 0) + 1
        closing = _public(replace(closing, records=len(records), attempt=attempt))
        self._write(encode(closing, records))
        self._attempts[closing.cell], self.settled[closing.cell] = attempt, closing.status
        return Attempt(closing, tuple(map(stored, records)))

    def close(self) -> None:
        """No append succeeds afterwards; closing twice is harmless."""
        if self._handle >= 0:
            os.close(self._handle)
            self._handle = -1

    def _write(self, data: bytes) -> None:
        with cannot_write(self._path):
            if self._handle < 0:
                raise CannotWrite(f"{self._path} is closed for writing")
            before = os.fstat(self._handle).st_size
            try:
                if os.write(self._handle, data) < len(data):
                    raise OSError(ENOSPC, os.strerror(ENOSPC))
                os.fsync(self._handle)
            except BaseException:
                self._withdraw(before)
                raise

    def _withdraw(self, size: int) -> None:
        try:
            os.ftruncate(self._handle, size)
        except OSError:
            self.close()  # nothing may follow a torn line; the next opener repairs it


def settled(folder: str | Path) -> Mapping[str, Status]:
    """The status of each cell's last finished attempt, from the closing lines alone: fast, and needs no lock."""
    path = Path(folder) / RECORDS
    return {closing.cell: closing.status for closing in closings(path)} if path.exists() else {}


def _public(closing: Closing) -> Closing:
    return replace(
        closing,
        error=scrub(closing.error),
        log=tuple(map(scrub, closing.log)),
        warnings=tuple(map(scrub, closing.warnings)),
    )


def _repair(path: Path, handle: int, sound: int) -> str:
    """Move what follows the last closing line to records.torn; what was moved, in words."""
    tail = path.read_bytes()[sound:]
    if not tail:
        return ""
    with (path.parent / TORN).open("ab") as torn:
        torn.write(tail if tail.endswith(b"\n") else tail + b"\n")
        torn.flush()
        os.fsync(torn.fileno())
    os.ftruncate(handle, sound)
    os.fsync(handle)
    return f"an unfinished cell at the end of {RECORDS} ({len(tail)} bytes) was moved to {TORN}; it will be run again"


@contextmanager
def _locked(folder: Path) -> Generator[None, None, None]:
    """Hold the folder's lock, which the kernel releases when this process, and its forks, are gone.

    It is flock's where there is fcntl, and msvcrt's on the first byte of the file on Windows. The file stays:
    deleting it would let two processes lock two files of one name.
    """
    path = folder / LOCK
    with cannot_write(path):
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        with cannot_write(path):
            try:
                _take(handle)
            except (BlockingIOError, PermissionError) as error:
                raise FolderInUse(
                    f"{folder} is in use by another qbench run; wait for it or name another folder"
                ) from error
        try:
            yield
        finally:
            _leave(handle)
    finally:
        os.close(handle)


if sys.platform == "win32":
    import msvcrt

    def _take(handle: int) -> None:
        msvcrt.locking(handle, msvcrt.LK_NBLCK, 1)

    def _leave(handle: int) -> None:
        msvcrt.locking(handle, msvcrt.LK_UNLCK, 1)
else:
    import fcntl

    def _take(handle: int) -> None:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)

    def _leave(handle: int) -> None:
        # Explicit, because a forked worker that is still alive shares the lock.
        fcntl.flock(handle, fcntl.LOCK_UN)
