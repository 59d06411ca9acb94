"""Files that are there whole or not at all, also after a crash or on a full disk."""

import os
import sys
from collections.abc import Generator
from contextlib import contextmanager, suppress
from glob import escape
from pathlib import Path
from time import time

ABANDONED = 3600.0  # seconds after which nobody is still writing a draft


class CannotWrite(OSError):
    """A result cannot be stored; what was stored before is intact."""


@contextmanager
def cannot_write(path: Path) -> Generator[None, None, None]:
    """Turn any OSError inside into a CannotWrite that says where and why in a plain sentence."""
    try:
        yield
    except CannotWrite:
        raise
    except OSError as error:
        raise CannotWrite(
            f"cannot write {path}: {error.strerror or error}; what was stored before is intact"
        ) from error


def make_folder(folder: Path) -> None:
    """Create `folder` and its parents where missing, so that they survive a crash; CannotWrite where that fails."""
    with cannot_write(folder):
        missing = [place for place in (folder, *folder.parents) if not place.exists()]
        folder.mkdir(parents=True, exist_ok=True)
        for place in missing:
            sync_folder(place.parent)


def sync_folder(folder: Path) -> None:
    """Make the names in `folder` durable: fsync of a file does not cover its directory entry."""
    if sys.platform == "win32":  # directories cannot be opened there; NTFS journals its names
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def whole(path: Path) -> Generator[Path, None, None]:
    """A temporary path beside `path` that takes its place at the end, and leaves no trace after an error.

    What a writer that was killed has left is swept by the next one. CannotWrite where `path` is a folder.
    """
    if not path.name or path.is_dir():
        raise CannotWrite(f"cannot write {path}: it is a folder; name a file")
    draft = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    _sweep(path)
    try:
        yield draft
        with cannot_write(path):
            _sync_file(draft)
            draft.replace(path)
            sync_folder(path.parent)
    finally:
        draft.unlink(missing_ok=True)


def write_whole(path: Path, data: bytes) -> None:
    """Replace `path` by `data` in one step; CannotWrite, with the old content intact, where that fails."""
    with whole(path) as draft, cannot_write(path):
        draft.write_bytes(data)


def _sweep(path: Path) -> None:
    """By age and not by process: the other writer may be on another machine."""
    for draft in path.parent.glob(f".{escape(path.name)}.*.tmp"):
        with suppress(OSError):  # swept by another writer, or not ours to sweep
            if time() - draft.stat().st_mtime > ABANDONED:
                draft.unlink()


def _sync_file(path: Path) -> None:
    handle = os.open(path, os.O_RDWR)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
