"""What a safetensors file says about itself: names, types, shapes and offsets, without one value read."""

import json
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from types import MappingProxyType
from typing import Any

# Bits of one value by the format's names of types: huggingface.co/docs/safetensors, and its source for F4 to F8.
BITS: Mapping[str, int] = MappingProxyType(
    {
        "F4": 4,
        **dict.fromkeys(("F6_E2M3", "F6_E3M2"), 6),
        **dict.fromkeys(("BOOL", "U8", "I8", "F8_E4M3", "F8_E5M2", "F8_E8M0", "F8_E4M3FNUZ", "F8_E5M2FNUZ"), 8),
        **dict.fromkeys(("U16", "I16", "F16", "BF16"), 16),
        **dict.fromkeys(("U32", "I32", "F32"), 32),
        **dict.fromkeys(("U64", "I64", "F64", "C64"), 64),
    }
)
LONGEST_HEADER = 100_000_000  # the format's own limit


class BadModel(ValueError):
    """The files are no model that can be read here; one line says which file, what is wrong and what to do."""


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """One tensor of a shard; `start` and `end` are bytes of the whole file, header included."""

    name: str
    shard: Path
    dtype: str  # as the format spells it: F32, BF16, F8_E4M3, ...
    shape: tuple[int, ...]
    start: int
    end: int

    @property
    def values(self) -> int:
        return prod(self.shape)

    @property
    def bytes(self) -> int:
        return self.end - self.start

    @property
    def floating(self) -> bool:
        return self.dtype.startswith(("F", "BF"))


def header(shard: Path) -> tuple[StoredTensor, ...]:
    """The tensors of a safetensors file in the order of their offsets. Raises BadModel where the file is damaged."""
    size = shard.stat().st_size
    with shard.open("rb") as file:
        begin = file.read(8)
        if begin.startswith(b"version "):
            raise BadModel(f"{shard}: a Git LFS pointer and not the weights; run: git lfs pull")
        length = struct.unpack("<Q", begin)[0] if len(begin) == 8 else size
        if length > min(size - 8, LONGEST_HEADER):
            raise BadModel(f"{shard}: {size} bytes hold no safetensors header; cut short, or not a safetensors file")
        entries = _parsed(shard, file.read(length))
    tensors = tuple(sorted((_tensor(shard, length + 8, *entry) for entry in entries.items()), key=lambda t: t.start))
    promised = max((tensor.end for tensor in tensors), default=length + 8)
    if promised != size:
        raise BadModel(
            f"{shard}: {size} bytes, where its header promises {promised}; "
            "the file was cut short or damaged: copy it again"
        )
    return tensors


def _parsed(shard: Path, text: bytes) -> dict[str, Any]:
    try:
        entries = json.loads(text)
    except ValueError as error:
        raise BadModel(f"{shard}: the safetensors header is not JSON ({error}); copy the file again") from None
    if not isinstance(entries, dict):
        raise BadModel(f"{shard}: the safetensors header is a {type(entries).__name__}, expected a table of tensors")
    return {str(name): entry for name, entry in entries.items() if name != "__metadata__"}


def _tensor(shard: Path, base: int, name: str, entry: Any) -> StoredTensor:
    try:
        dtype, shape = str(entry["dtype"]), tuple(int(length) for length in entry["shape"])
        start, end = (int(offset) for offset in entry["data_offsets"])
    except (KeyError, OverflowError, TypeError, ValueError):
        raise BadModel(f"{shard}: the header's entry of {name} has no dtype, shape and data_offsets") from None
    if dtype not in BITS:
        raise BadModel(f"{shard}: {name} has the unknown type {dtype}; known: {', '.join(BITS)}")
    if min(shape, default=0) < 0 or start < 0 or (end - start) * 8 != prod(shape) * BITS[dtype]:
        raise BadModel(f"{shard}: {name} is {dtype} {list(shape)}, which {end - start} bytes do not hold")
    return StoredTensor(name, shard, dtype, shape, base + start, base + end)
