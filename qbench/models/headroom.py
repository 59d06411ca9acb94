"""Whether a model's weights fit the memory that is free. No torch here."""

from math import prod
from pathlib import Path

from qbench.models.finished import finished
from qbench.models.folder import BadModel, Folder, layout
from qbench.models.stored import StoredTensor

BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
_KNOWN_LIMITS = (  # of a container: the limit, and what of it is in use
    ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
    ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes"),
)


def expect_room(folder: Folder, dtype: str) -> None:
    """Raises BadModel, with both numbers, where the weights in `dtype` ("auto": as stored) exceed the free memory."""
    needed, free = bytes_in_memory(folder, dtype), free_memory()
    if free is not None and needed > free:
        raise BadModel(
            f"{folder.path}: {gigabytes(needed)} of weights as {dtype}, and {gigabytes(free)} of memory are free; "
            "load it in a smaller dtype or with a device map, or look at its weights only"
        )


def bytes_in_memory(folder: Folder, dtype: str) -> int:
    """Bytes of all weights once loaded: floats and decoded weights in `dtype`, everything else as it is stored."""
    what = finished(folder.config, layout(folder))
    packed = what.weights.values() if what else ()
    parts = {tensor.name for weight in packed for tensor in weight.parts.values()}
    decoded = sum(prod(weight.shape) for weight in packed) * BYTES.get(dtype, 4)
    return decoded + sum(_bytes(tensor, dtype) for tensor in folder.tensors if tensor.name not in parts)


def free_memory() -> int | None:
    """Bytes that can be taken without swapping, by the kernel and by the container's limit; None where neither says."""
    known = [free for free in (_available(), *map(_left, _KNOWN_LIMITS)) if free is not None]
    return min(known, default=None)


def gigabytes(count: int) -> str:
    """
    >>> gigabytes(13_476_000_000)
    '13.48 GB'
    """
    return f"{count / 1e9:.2f} GB"


def _bytes(tensor: StoredTensor, dtype: str) -> int:
    return tensor.values * BYTES[dtype] if tensor.floating and dtype in BYTES else tensor.bytes


def _available() -> int | None:
    path = Path("/proc/meminfo")
    lines = path.read_text().splitlines() if path.is_file() else ()
    kilobytes = (line.split()[1] for line in lines if line.startswith("MemAvailable:"))
    return next((int(count) * 1024 for count in kilobytes), None)


def _left(limit: tuple[str, str]) -> int | None:
    most, used = map(Path, limit)
    if not (most.is_file() and used.is_file()):
        return None
    text = most.read_text().strip()
    return max(0, int(text) - int(used.read_text())) if text.isdigit() else None  # "max" is no limit
