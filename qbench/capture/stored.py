"""Which tensors of a checkpoint's files are weight matrices, and what they are called. No torch here."""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from qbench.capture.families import layout, weight_site
from qbench.models.folder import BadModel, Folder, StoredTensor

FLOATS = ("F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2")  # what weights are stored as
_SCALES = ("_scale", "_scale_inv")  # beside a weight whose codes mean nothing without them


@dataclass(frozen=True, slots=True)
class Entry:
    """A matrix [out, in] in a file: the tensor it is, or which part of a stack; `transposed` where kept as [in, out].

    `name` is that of its site, or the tensor's own in a family that has no names.
    """

    name: str
    tensor: StoredTensor
    shape: tuple[int, int]
    part: int = 0
    transposed: bool = False


def entries(folder: Folder) -> tuple[Mapping[str, Entry], Mapping[str, str]]:
    """The matrices by name, in the order of the files, and why each other tensor is none.

    A stack of experts is a matrix for each. Raises BadModel where two have one name.
    """
    matrices: dict[str, Entry] = {}
    others: dict[str, str] = {}
    names = {tensor.name for tensor in folder.tensors}
    for tensor in sorted(folder.tensors, key=lambda tensor: (tensor.shard.name, tensor.start)):
        found = _entries(tensor, names, folder)
        if isinstance(found, str):
            others[tensor.name] = found
            continue
        for entry in found:
            if entry.name in matrices:
                both = f"{matrices[entry.name].tensor.name} and {tensor.name}"
                raise BadModel(f"{tensor.shard}: {both} are both {entry.name}; expected one of them")
            matrices[entry.name] = entry
    return MappingProxyType(matrices), MappingProxyType(others)


def _entries(tensor: StoredTensor, names: set[str], folder: Folder) -> list[Entry] | str:
    """The matrices that a tensor holds, or why it holds none."""
    model = layout(folder.config)
    site = tensor.name if model is None else weight_site(tensor.name, folder.config)
    stacked = len(tensor.shape) == 3 and ("*" in site if site and model else "expert" in tensor.name)
    reasons = (
        (tensor.dtype not in FLOATS, f"{tensor.dtype}: codes, not values"),
        (any(tensor.name + end in names for end in _SCALES), "codes that belong to scales: quantized elsewhere"),
        (len(tensor.shape) != 2 and not stacked, f"{len(tensor.shape)}-D"),
        (not tensor.values, "empty"),
        (site is None, "in no named place"),
    )
    if reason := next((reason for applies, reason in reasons if applies), None):
        return reason
    turned = model is not None and model.transposed and (site or "").startswith("blocks.")
    rows, width = tensor.shape[-2:]
    shape = (width, rows) if turned else (rows, width)
    return [Entry(name, tensor, shape, i, turned) for i, name in enumerate(_each(site or "", tensor.shape, stacked))]


def _each(site: str, shape: tuple[int, ...], stacked: bool) -> list[str]:
    if not stacked:
        return [site]
    return [site.replace("*", str(i)) if "*" in site else f"{site}.{i}" for i in range(shape[0])]
