"""What a gate reads of a run: a folder or a packed file, its digest, and only the cells that a policy may ask about."""

import io
import json
import lzma
import re
import zipfile
import zlib
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from qbench.results import digest, origin
from qbench.results.evidence import EVIDENCE
from qbench.results.files import write_whole
from qbench.results.lines import RECORDS, selected
from qbench.results.origin import MANIFEST
from qbench.results.record import Closing
from qbench.results.run import NoRun, Run, arm, part

JUDGED = ("loss", "kernel", "task")
LARGEST_ENTRY = 2**30  # bytes of one file in a pack
LARGEST_PACK = 2**32  # bytes of all of them
MOST_ENTRIES = 200_000
_ENTRY = re.compile(rf"{re.escape(RECORDS)}|{re.escape(MANIFEST)}|{EVIDENCE}/[0-9a-f]{{16}}\.safetensors")
_EPOCH = (1980, 1, 1, 0, 0, 0)  # the same run gives the same bytes
# What a damaged pack may raise, by what it is damaged in and how it was compressed.
_DAMAGED = (
    zipfile.BadZipFile,
    NotImplementedError,
    RuntimeError,
    EOFError,
    ValueError,
    zlib.error,
    lzma.LZMAError,
    OSError,
)


class BadPack(ValueError):
    """A file is no packed run."""


@dataclass(frozen=True, slots=True)
class Source:
    """A run to be judged: `name` as the user gave it, `records` the digest of its records, which hold its evidence's.

    `asked` are the cells that the last session was asked for, None where no manifest says which.
    """

    name: str
    run: Run
    records: str
    asked: frozenset[str] | None

    @property
    def digest(self) -> str:
        """Of the records, and of what was asked for: a cell cannot leave an accepted run by its manifest."""
        return digest.of([self.records, None if self.asked is None else sorted(self.asked)])

    @property
    def gone(self) -> int:
        """How many cells were asked for and have no attempt."""
        return sum(cell not in self.run.cells for cell in self.asked or ())


@contextmanager
def opened(path: str | Path) -> Generator[Source, None, None]:
    """The run in a folder, or in a file that `pack` wrote. Raises NoRun, BadPack, BadRecords, BadManifest, OSError."""
    path = Path(path)
    with unpacked(path) as folder:
        yield _source(folder, path.name or str(path))


@contextmanager
def unpacked(path: Path) -> Generator[Path, None, None]:
    """Where the files of a run lie: its folder, or one that a pack is unpacked into for as long as it is needed."""
    if path.is_dir():
        yield path
        return
    if not path.is_file():
        raise NoRun(f"{path}: no such folder or file; name what `qbench run` or `qbench pack` wrote")
    with TemporaryDirectory(prefix="qbench-") as folder:
        _unpack(path, Path(folder))
        yield Path(folder)


def pack(folder: Path, out: Path) -> Path:
    """One file with the records of a run and the evidence that they name; the same run gives the same bytes.

    Raises NoRun where there are no records, CannotWrite where `out` cannot be written.
    """
    if not (folder / RECORDS).is_file():
        raise NoRun(f"{folder} holds no {RECORDS}; name the folder that `qbench run` wrote")
    run = Run(folder=folder, cells=selected(folder / RECORDS, lambda _: True), manifest=origin.read(folder))
    named = {record.samples for cell in run.cells.values() for record in cell.records if record.samples}
    files = (f"{EVIDENCE}/{name}.safetensors" for name in sorted(named))
    # Records may come from elsewhere, and name any file of this machine.
    names = [RECORDS, MANIFEST, *filter(_ENTRY.fullmatch, files)]
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w", zipfile.ZIP_DEFLATED, compresslevel=6) as file:
        for name in names:
            if (folder / name).is_file():  # what is missing here is missing for the gate, which says so
                entry = zipfile.ZipInfo(name, _EPOCH)
                entry.compress_type = zipfile.ZIP_DEFLATED
                file.writestr(entry, (folder / name).read_bytes())
    write_whole(out, data.getvalue())
    return out


def _source(folder: Path, name: str) -> Source:
    records = folder / RECORDS
    if not records.is_file():
        raise NoRun(f"{name} holds no {RECORDS}; name what `qbench run` or `qbench pack` wrote")
    run = Run(folder=folder, cells=selected(records, _judged), manifest=origin.read(folder))
    asked = frozenset(run.session.get("asked") or ()) or None
    return Source(name, _current(run, asked), digest.of_bytes(records.read_bytes()), asked)


def _current(run: Run, asked: frozenset[str] | None) -> Run:
    """The cells that were asked for, and those that failed where none of these answers in their place.

    A folder also keeps the cells of earlier suites; but that a cell failed is not undone by no longer asking for it.
    """
    if asked is None:
        return run
    answered = {_question(cell.closing) for name, cell in run.cells.items() if name in asked}
    failed = {
        name
        for name, cell in run.cells.items()
        if cell.closing.status != "measured" and _judged(cell.closing) and _question(cell.closing) not in answered
    }
    return run.only(asked | failed)


def _judged(closing: Closing) -> bool:
    what = part(closing.spec, "measurement").get("what")
    return isinstance(what, str) and what in JUDGED


def _question(closing: Closing) -> str:
    """What a cell answers, by the names that people give it: the same in another version of its suite."""
    asked = part(closing.spec, "measurement")
    names = (part(asked, "treatment").get("name"), part(asked, "options").get("name"), asked.get("what"))
    return str([arm(closing.spec), closing.spec.get("seed"), part(asked, "passage").get("look"), *names])


def _unpack(path: Path, folder: Path) -> None:
    try:
        with zipfile.ZipFile(path) as file:
            entries = file.infolist()
            if len(entries) > MOST_ENTRIES:
                raise BadPack(f"{path.name}: {len(entries)} files in it; expected at most {MOST_ENTRIES}")
            size = 0
            for entry in entries:
                size += _extract(file, entry, folder, path.name)
                if size > LARGEST_PACK:
                    raise BadPack(f"{path.name}: its files are larger than {LARGEST_PACK} bytes together")
    except _DAMAGED as error:
        if isinstance(error, BadPack) or (isinstance(error, OSError) and error.errno is not None):
            raise  # what the system says, such as a full disk, is not about the pack
        raise BadPack(f"{path.name} is no packed run ({error}); qbench pack RUN makes one") from error


def _extract(file: zipfile.ZipFile, entry: zipfile.ZipInfo, folder: Path, name: str) -> int:
    """Write one entry, and return its size; nothing but the names of a run, so that no entry can leave the folder."""
    if not _ENTRY.fullmatch(entry.filename):
        raise BadPack(f"{name}: holds {entry.filename[:80]!r}, which is no part of a run; qbench pack RUN makes one")
    with file.open(entry) as stream:
        data = stream.read(LARGEST_ENTRY + 1)
    if len(data) > LARGEST_ENTRY:
        raise BadPack(f"{name}: {entry.filename} is larger than {LARGEST_ENTRY} bytes")
    place = folder / entry.filename
    place.parent.mkdir(exist_ok=True)
    return place.write_bytes(data)


def canonical(value: Any) -> str:
    """JSON for people and machines, the same for the same value."""
    return json.dumps(value, indent=1, sort_keys=True, allow_nan=False) + "\n"
