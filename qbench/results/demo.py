"""The run that ships with qbench: real records, to see a page without measuring anything."""

import gzip
from pathlib import Path

from qbench.results.files import CannotWrite, make_folder, write_whole
from qbench.results.lines import RECORDS
from qbench.results.origin import MANIFEST

FILES = (MANIFEST, RECORDS)
_SOURCE = Path(__file__).parents[1] / "demo"


def unpack(folder: Path) -> Path:
    """Write the run into `folder` and return it; CannotWrite where that fails, and where another run is there."""
    make_folder(folder)
    contents = {name: gzip.decompress((_SOURCE / f"{name}.gz").read_bytes()) for name in FILES}
    records = folder / RECORDS
    if records.exists() and records.read_bytes() != contents[RECORDS]:
        raise CannotWrite(f"{folder} holds the records of another run, which the demo would replace; name another")
    for name, content in contents.items():
        write_whole(folder / name, content)
    return folder


def pack(folder: Path) -> None:
    """Make the run in `folder` the one that ships. The same run gives the same bytes."""
    _SOURCE.mkdir(exist_ok=True)
    for name in FILES:
        (_SOURCE / f"{name}.gz").write_bytes(gzip.compress((folder / name).read_bytes(), mtime=0))
