"""The matrices of a checkpoint where they lie in its shards: mapped, read in runs of rows, and never a model."""

from collections.abc import Generator, Iterable, Mapping
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from types import MappingProxyType

import torch
from torch import Tensor

from qbench.capture.stored import Entry, entries
from qbench.models.folder import BadModel, Folder, look

RUN = 2**20  # values of a run of rows, of which plain formats keep a dozen copies in float32
# What weights are stored as. fp8 is read as float32, which holds it exactly.
FLOATS: Mapping[str, torch.dtype] = MappingProxyType(
    {
        "F64": torch.float64,
        "F32": torch.float32,
        "F16": torch.float16,
        "BF16": torch.bfloat16,
        "F8_E4M3": torch.float8_e4m3fn,
        "F8_E5M2": torch.float8_e5m2,
    }
)


@dataclass(frozen=True, slots=True)
class StoredMatrix:
    """A weight matrix [out, in] in a file, whichever way round it is kept there.

    `name` is that of its site, or the tensor's own in a family that has no names. `offset` is the byte of the file at
    which it begins, `transposed` where it is kept as [in, out].
    """

    name: str
    tensor: str
    shard: Path
    offset: int
    dtype: torch.dtype
    shape: tuple[int, int]
    transposed: bool = False

    @property
    def values(self) -> int:
        return prod(self.shape)

    @property
    def bytes(self) -> int:
        return self.values * self.dtype.itemsize

    def view(self) -> Tensor:
        """The values [out, in]: pages of the file, which the system may drop and read again. Not to be written to.

        A matrix that does not begin at a multiple of its item size, as in some old files, is copied.
        """
        mapped = torch.from_file(str(self.shard), shared=False, size=self.shard.stat().st_size, dtype=torch.uint8)
        raw = mapped[self.offset : self.offset + self.bytes]
        if self.offset % self.dtype.itemsize:
            raw = raw.clone()
        stored = raw.view(self.dtype)
        return stored.view(self.shape[::-1]).T if self.transposed else stored.view(self.shape)

    def runs(self, dtype: torch.dtype | None = None, multiple: int = 1) -> Generator[Tensor, None, None]:
        """The matrix from its first row to its last, in contiguous runs of whole rows of about RUN values.

        Args:
            dtype: that of the runs; by default as stored, and float32 for fp8.
            multiple: every run but the last has a multiple of so many rows.
        """
        whole, dtype = self.view(), self.read_as(dtype)
        step = max(1, RUN // max(self.shape[1], 1) // multiple) * multiple
        for start in range(0, self.shape[0], step):
            yield whole[start : start + step].to(dtype).contiguous()

    def read_as(self, dtype: torch.dtype | None) -> torch.dtype:
        """The type of the values that are measured."""
        return dtype or (torch.float32 if self.dtype.itemsize == 1 else self.dtype)


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """What a folder keeps, in the order of its files: matrices, and why each other tensor is none."""

    path: Path
    matrices: Mapping[str, StoredMatrix] = field(repr=False)
    others: Mapping[str, str] = field(repr=False)
    largest: int  # bytes of the largest tensor

    def pick(self, names: Iterable[str]) -> tuple[StoredMatrix, ...]:
        """These matrices in the order of the files; raises BadModel where one is not there."""
        wanted = set(names)
        if missing := wanted - self.matrices.keys():
            raise BadModel(f"{self.path}: no matrix {', '.join(sorted(missing))}; it has {', '.join(self.matrices)}")
        return tuple(matrix for name, matrix in self.matrices.items() if name in wanted)


def checkpoint(source: str | Path | Folder) -> Checkpoint:
    """The matrices of a folder of safetensors files, of any size; reads headers only.

    A stack of experts is a matrix for each. Raises BadModel: files missing, damaged or cut short, a type that is
    unknown, no matrix at all, or two under one name.
    """
    folder = source if isinstance(source, Folder) else look(source)
    found, others = entries(folder)
    if not found:
        raise BadModel(f"{folder.path}: none of its {len(others)} tensors is a weight matrix that can be measured")
    largest = max(tensor.bytes for tensor in folder.tensors)
    return Checkpoint(folder.path, MappingProxyType({n: _matrix(e) for n, e in found.items()}), others, largest)


def _matrix(entry: Entry) -> StoredMatrix:
    tensor, dtype = entry.tensor, FLOATS[entry.tensor.dtype]
    offset = tensor.start + entry.part * prod(entry.shape) * dtype.itemsize
    return StoredMatrix(entry.name, tensor.name, tensor.shard, offset, dtype, entry.shape, entry.transposed)
