"""Packed weights that are described one by one: the schemes of compressed-tensors and torchao. No torch."""

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from types import MappingProxyType
from typing import Any

from safetensors import safe_open

from qbench.models.packed import FLOATS, Config, Layout, Packed, grouped, need, of, read_bytes
from qbench.models.stored import BadModel, StoredTensor

_PACKED = ("weight_packed", "weight_shape", "weight_scale", "weight_zero_point", "weight_global_scale", "weight_g_idx")
_NAIVE = ("weight", "weight_scale", "weight_zero_point", "weight_g_idx")
_ALIASES: Mapping[str, str] = MappingProxyType(
    {"nvfp4-pack-quantized": "nvfp4", "mxfp4-pack-quantized": "mxfp4", "mxfp8-quantized": "mxfp8e4m3"}
)


def compressed_tensors(config: Config, tensors: Layout) -> Iterator[Packed]:
    """`config_groups`: schemes with targets, which are names, `re:` patterns or classes; the first that fits counts.

    Whether a weight is quantized at all is read off the file. Which class a module has is not: a class fits any
    module that has codes, `Embedding` those alone whose name says so.
    """
    for ending, known in ((".weight_packed", _PACKED), (".weight", _NAIVE)):
        stems = [name.removesuffix(ending) for name in tensors if name.endswith(ending)]
        for stem in stems:
            if f"{stem}.weight_scale" in tensors:
                yield _compressed(config, stem, of(tensors, f"{stem}.", *known))


def _compressed(config: Config, stem: str, parts: dict[str, StoredTensor]) -> Packed:
    scheme = _scheme(config, stem)
    how = scheme["weights"]
    packing = str(scheme.get("format") or config.get("format"))
    codes = parts.get("weight_packed") or parts["weight"]
    if packing == "pack-quantized":
        need(parts, stem, "weight_packed", "weight_shape")
        shape = _integers(parts["weight_shape"])
    else:
        shape = (*codes.shape[:-1], codes.shape[-1] * (2 if codes.name.endswith("_packed") else 1))
    bits = int(how["num_bits"])
    grid = f"int{bits}" + (".middle" if how.get("symmetric", True) else ".asym")
    if how.get("type") == "float":
        grid = {4: "e2m1", 8: "e4m3"}.get(bits, f"float{bits}")
    return Packed(
        name=f"{stem}.weight",
        packing=packing,
        parts=parts,
        shape=shape,
        grid=grid,
        bits=bits,
        group=grouped(shape, parts["weight_scale"], _said(how)),
        scale=parts["weight_scale"].dtype,
        alias=_ALIASES.get(packing, ""),
        note="columns in the order of their activations" if "weight_g_idx" in parts else "",
        activations=inputs(scheme.get("input_activations")),
    )


def _integers(tensor: StoredTensor) -> tuple[int, ...]:
    """The values of a short tensor of int32 or int64, which are little-endian in every safetensors file."""
    raw, size = read_bytes(tensor), tensor.bytes // max(tensor.values, 1)
    return tuple(int.from_bytes(raw[at : at + size], "little") for at in range(0, len(raw), size))


def _said(how: Mapping[str, Any]) -> tuple[int, int]:
    """Rows and columns that share a scale, 0 for all, by `strategy`."""
    match how.get("strategy"):
        case "group" | "tensor_group":
            return 1, int(how["group_size"])
        case "block":
            rows, columns = how["block_structure"]
            return int(rows), int(columns)
        case "channel":
            return 1, 0
        case _:
            return 0, 0


def inputs(how: Mapping[str, Any] | None) -> str:
    """A quantizer's name for `input_activations`, and whether its scales are stored.

    >>> inputs({"num_bits": 8, "type": "int", "strategy": "token", "symmetric": True, "dynamic": True})
    'int8.middle/token'
    """
    if not how:
        return ""
    bits = int(how.get("num_bits", 8))
    grid = f"int{bits}" + (".middle" if how.get("symmetric", True) else ".asym")
    if how.get("type") == "float":
        grid = {4: "e2m1", 8: "e4m3"}.get(bits, f"float{bits}")
    strategy = str(how.get("strategy") or "tensor")
    size = how.get("group_size")
    name = f"{grid}/block:{size}" if strategy in ("group", "tensor_group") else f"{grid}/{strategy}"
    name = {"e2m1/block:16": "nvfp4", "e2m1/block:32": "mxfp4"}.get(name, name)
    return name if how.get("dynamic") else f"{name} with a stored scale"


def _scheme(config: Config, stem: str) -> Mapping[str, Any]:
    """The scheme of a module: one that names it, else one whose pattern fits, else one for its class."""
    groups = [group for group in dict(config.get("config_groups") or {}).values() if isinstance(group, Mapping)]
    quantizing = [group for group in groups if group.get("weights")]
    for fits in _FITS:
        for group in quantizing:
            if any(fits(target, stem) for target in group.get("targets") or ()):
                return group
    targets = [target for group in groups for target in group.get("targets") or ()]
    raise BadModel(f"{stem} has codes, but no group of quantization_config targets it; targets are {targets}")


_FITS: tuple[Callable[[str, str], bool], ...] = (
    lambda target, stem: target == stem,
    lambda target, stem: target.startswith("re:") and re.match(target[3:], stem) is not None,
    lambda target, stem: target.isidentifier() and ("embed" in stem.lower() or target != "Embedding"),
)

# How many codes one element of `qdata` holds, and the grid, by the class of torchao that the file names.
_CLASSES: Mapping[str, Callable[[Mapping[str, Any], str], tuple[str, int, int]]] = MappingProxyType(
    {
        "Int8Tensor": lambda _said, _dtype: ("int8", 8, 1),
        "Float8Tensor": lambda _said, dtype: (FLOATS.get(dtype, dtype), 8, 1),
        "IntxUnpackedToInt8Tensor": lambda said, _dtype: (_word(said["target_dtype"]), _bits(said["target_dtype"]), 1),
        "Int4Tensor": lambda _said, _dtype: ("int4", 4, 2),
        "Int4PlainInt32Tensor": lambda _said, _dtype: ("int4", 4, 8),
        "Int4TilePackedTo4dTensor": lambda _said, _dtype: ("int4", 4, 8),
        "MXTensor": lambda said, _dtype: _MX[_word(said["elem_dtype"])],
        "NVFP4Tensor": lambda _said, _dtype: ("nvfp4", 4, 2),
    }
)
_MX: Mapping[str, tuple[str, int, int]] = MappingProxyType(
    {
        "float8_e4m3fn": ("mxfp8e4m3", 8, 1),
        "float8_e5m2": ("mxfp8e5m2", 8, 1),
        "fp6_e2m3": ("mxfp6e2m3", 6, 1),
        "fp6_e3m2": ("mxfp6e3m2", 6, 1),
        "float4_e2m1fn_x2": ("mxfp4", 4, 2),
    }
)


def torchao(config: Config, tensors: Layout) -> Iterator[Packed]:
    """X._weight_qdata and its companions; the class of each and its settings are metadata of the shards.

    Symmetric integers store zero points that are all 0: whether they are is read off `quant_type`.
    """
    variant = ".asym" if "ASYMMETRIC" in json.dumps(config.get("quant_type")) else ".full"
    for name, entry in _metadata(tensors.values()).items():
        if entry["_type"] not in ("Tensor", "torch.Tensor"):
            stem, _, last = name.rpartition(".")
            parts = of(tensors, f"{stem}._{last}_", *entry["_tensor_data_names"])
            if parts:
                yield _tensor(name, entry, parts, variant)


def _tensor(name: str, entry: Mapping[str, Any], parts: dict[str, StoredTensor], variant: str) -> Packed:
    need(parts, name, *entry["_tensor_data_names"])
    kind, said = str(entry["_type"]), entry["_data"]
    if kind not in _CLASSES:
        raise BadModel(f"{name} is torchao's {kind}; known: {', '.join(_CLASSES)}")
    qdata = parts["qdata"]
    grid, bits, codes = _CLASSES[kind](said, qdata.dtype)
    shape = tuple(said.get("shape") or (*qdata.shape[:-1], qdata.shape[-1] * codes))
    block = said.get("block_size", 0)
    sizes = (1, block) if isinstance(block, int) else tuple(block)[-2:]
    rows, columns = (0 if size == most > 1 else size for size, most in zip(sizes, shape[-2:], strict=True))
    return Packed(
        name=name,
        packing="torchao",
        parts=parts,
        shape=shape,
        grid=grid + (variant if grid.startswith("int") else ""),
        bits=bits,
        group=(rows, columns),
        scale=next(tensor.dtype for part, tensor in parts.items() if part.startswith("scale")),
        alias=grid if grid.startswith(("mxfp", "nvfp")) else "",
        activations=_torchao_inputs(said),
        said=entry,
    )


def _torchao_inputs(said: Mapping[str, Any]) -> str:
    """A quantizer's name where torchao's settings have one, else its own words."""
    if isinstance(words := said.get("activation_quantization"), str):
        return {"int8_asym_per_token": "int8.asym/token", "int8_sym_per_token": "int8.middle/token"}.get(words, words)
    if not (kwargs := said.get("act_quant_kwargs")):
        return ""
    grid = {"QuantizeTensorToInt8Kwargs": "int8.middle", "QuantizeTensorToFloat8Kwargs": "e4m3"}.get(kwargs["_type"])
    granularity = dict(kwargs["_data"].get("granularity") or {}).get("_type")
    size = {"PerRow": "token", "PerTensor": "tensor"}.get(str(granularity))
    return f"{grid}/{size}" if grid and size else str(kwargs["_type"])


def _metadata(tensors: Iterable[StoredTensor]) -> dict[str, dict[str, Any]]:
    """torchao's description of each weight, from the metadata of all shards. Raises BadModel where there is none."""
    found: dict[str, dict[str, Any]] = {}
    shards = sorted({tensor.shard for tensor in tensors})
    for shard in shards:
        with safe_open(shard, framework="numpy") as file:
            said = file.metadata() or {}
        found |= {name: json.loads(text) for name, text in said.items() if "_type" in text}
    if not found:
        raise BadModel(
            f"{shards[0].parent}: quantized by torchao, but no shard says how; save it again by transformers"
        )
    return found


def _word(dtype: Any) -> str:
    """int4, of {"_type": "torch.dtype", "_data": "int4"} or of "int4"."""
    return str(dtype["_data"] if isinstance(dtype, Mapping) else dtype)


def _bits(dtype: Any) -> int:
    return int(_word(dtype).removeprefix("int"))
