"""Files that are there whole or not at all."""

import os
from pathlib import Path
from time import time

import pytest

from qbench.results.files import ABANDONED, CannotWrite, whole, write_whole


def test_what_a_killed_writer_left_is_swept_and_what_another_writes_is_not(tmp_path: Path) -> None:
    path = tmp_path / "model[1].safetensors"
    left, busy, others = (tmp_path / f".{name}.7.tmp" for name in (path.name, f"{path.name}.x", "model1.safetensors"))
    for draft in (left, busy, others):
        draft.write_bytes(b"half")
    now = time()
    os.utime(left, (now - ABANDONED - 60, now - ABANDONED - 60))
    os.utime(others, (now - ABANDONED - 60, now - ABANDONED - 60))
    write_whole(path, b"all")
    assert path.read_bytes() == b"all"
    assert sorted(tmp_path.iterdir()) == sorted([path, busy, others])


def test_an_error_leaves_the_old_file_and_no_draft(tmp_path: Path) -> None:
    path = tmp_path / "records"
    write_whole(path, b"old")
    with pytest.raises(RuntimeError, match="halfway"):
        _fail_halfway(path)
    assert [*tmp_path.iterdir()] == [path]
    assert path.read_bytes() == b"old"
    with pytest.raises(CannotWrite, match="what was stored before is intact"):
        write_whole(tmp_path / "no folder" / "file", b"")


def _fail_halfway(path: Path) -> None:
    with whole(path) as draft:
        draft.write_bytes(b"new")
        raise RuntimeError("halfway")


def test_a_folder_is_no_file_to_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for path in (Path(), Path("/"), Path(".."), tmp_path):
        with pytest.raises(CannotWrite, match="it is a folder; name a file"):
            write_whole(path, b"")
    assert list(tmp_path.iterdir()) == []
