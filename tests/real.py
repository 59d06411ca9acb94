"""The real checkpoint and texts that some tests use, or the test skipped where they are absent."""

import os
from pathlib import Path

import pytest

SHARED = Path(__file__).parents[1].parent / "shared" / "data"


def babyllama() -> Path:
    """The folder of a small trained Llama: QBENCH_BABYLLAMA, or shared data beside the repository."""
    return _there(Path(os.environ.get("QBENCH_BABYLLAMA", SHARED / "models" / "babyllama-105")))


def text(name: str) -> Path:
    """A text file of the shared data."""
    return _there(SHARED / "text" / name)


def mnist() -> Path:
    """The folder of MNIST's four files."""
    return _there(SHARED / "vision")


def _there(path: Path) -> Path:
    if not path.exists():
        pytest.skip(f"{path} is not here")
    return path
