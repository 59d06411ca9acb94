"""A weight as another library stores it: the tensors that belong to it, and the grid of its codes. No torch."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from math import prod
from types import MappingProxyType
from typing import Any

from qbench.models.stored import BadModel, StoredTensor

Layout = Mapping[str, StoredTensor]
Config = Mapping[str, Any]
# How the scales of a quantizer's name are spelled, by the type that they are stored in.
_SCALES: Mapping[str, str] = MappingProxyType(
    {"F32": "", "BF16": "/scale:bf16", "F16": "/scale:fp16", "F8_E4M3": "/scale:e4m3", "double": "/scale:double"}
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Packed:
    """One quantized weight.

    Args:
        name: what a plain checkpoint calls it: `model.layers.0.mlp.up_proj.weight`.
        packing: how its codes are stored: a row of `decode.DECODERS`.
        parts: its stored tensors, by what the packing calls them.
        shape: of the decoded weight, [out, in].
        grid: the codes, as a quantizer's name begins: int4.full, e4m3, nf4.
        bits: of one code.
        group: rows and columns of values that share a scale; 0 for all that there are.
        scale: the type that scales are stored in: F16; `double` for scales that are quantized themselves.
        alias: the format's own name, where `grid`, `group` and `scale` have one together: mxfp4.
        note: what the format has that no quantizer's name says.
        activations: how the inputs of the layer are quantized when the model runs; empty for not at all.
        said: what its library stored about it, as a table.
    """

    name: str
    packing: str
    parts: Mapping[str, StoredTensor]
    shape: tuple[int, ...]
    grid: str
    bits: int
    group: tuple[int, int]
    scale: str
    alias: str = ""
    note: str = ""
    activations: str = ""
    said: Mapping[str, Any] = field(default_factory=dict[str, Any], repr=False)

    @property
    def values(self) -> int:
        return prod(self.shape)

    @property
    def bytes(self) -> int:
        """Codes, scales, zero points and whatever else the weight cannot be decoded without."""
        return sum(part.bytes for part in self.parts.values())

    @property
    def symmetric(self) -> bool:
        return not self.grid.endswith(".asym")

    @property
    def sizes(self) -> tuple[int, int]:
        """Rows and columns of values that share a scale."""
        return self.group[0] or self.shape[-2], self.group[1] or self.shape[-1]

    @property
    def granularity(self) -> str:
        """As quantizers spell it: tensor, channel, block:N or tile:RxC."""
        rows, columns = self.group
        if columns:
            return f"block:{columns}" if rows == 1 else f"tile:{self.sizes[0]}x{columns}"
        return "channel" if rows == 1 else "tensor"

    @property
    def quantizer(self) -> str:
        """The quantizer of ours whose grid, groups and stored scales are these; empty where there is none.

        The scales themselves were chosen by whoever made the checkpoint: quantizing again gives other ones.
        """
        if self.note or (self.scale not in _SCALES and not self.alias):
            return ""
        return self.alias or f"{self.grid}/{self.granularity}{_SCALES[self.scale]}"

    @property
    def format(self) -> str:
        """The quantizer's name, or else words."""
        words = f"{self.grid} codes, {self.granularity}, {self.scale} scales" + (f", {self.note}" if self.note else "")
        return self.quantizer or words


def of(tensors: Layout, stem: str, *parts: str) -> dict[str, StoredTensor]:
    """The stored tensors `stem` + part that there are, by part."""
    return {part: tensors[stem + part] for part in parts if stem + part in tensors}


def need(parts: Mapping[str, StoredTensor], stem: str, *names: str) -> None:
    """Raise BadModel where a weight cannot be decoded because one of its tensors is missing."""
    if absent := [name for name in names if name not in parts]:
        shard = next(iter(parts.values())).shard
        raise BadModel(
            f"{shard}: {stem} has {', '.join(sorted(parts))} and no {', '.join(absent)}; copy the model again"
        )


def endings(tensors: Layout, ending: str) -> Iterator[str]:
    """What stands before `ending`, for each name that has it."""
    return (name.removesuffix(ending) for name in tensors if name.endswith(ending))


def grouped(shape: tuple[int, ...], scales: StoredTensor, said: tuple[int, int]) -> tuple[int, int]:
    """Rows and columns that share a scale, 0 for all: as the config has it, where the file has so many scales.

    Where it has not, what divides rows and columns evenly. Raises BadModel where nothing does.
    """
    *lead, out, wide = shape
    rows, columns = said[0] or out, said[1] or wide
    if prod(lead) * -(-out // rows) * -(-wide // columns) == scales.values:
        return said
    down, across = scales.shape[-2:] if len(scales.shape) > 1 else (scales.values, 1)
    if not down or not across or out % down or wide % across:
        found = f"{scales.shard}: {scales.name} is {list(scales.shape)}"
        raise BadModel(f"{found}, which does not divide a weight {list(shape)} evenly; copy the model again")
    return (0 if down == 1 else out // down), (0 if across == 1 else wide // across)


def read_json(tensor: StoredTensor) -> dict[str, Any]:
    """A table that is stored as the bytes of a tensor, as bitsandbytes does. Raises BadModel."""
    try:
        return dict(json.loads(read_bytes(tensor)))
    except (TypeError, ValueError) as error:
        raise BadModel(f"{tensor.shard}: {tensor.name} is not a table in JSON ({error}); copy the file again") from None


def read_bytes(tensor: StoredTensor) -> bytes:
    with tensor.shard.open("rb") as file:
        file.seek(tensor.start)
        return file.read(tensor.bytes)


def gptq(config: Config, tensors: Layout) -> Iterator[Packed]:
    """qweight [in * bits / 32, out], qzeros [groups, out * bits / 32], both int32; scales [groups, out]; g_idx [in].

    Bits are read off the shapes, because gptqmodel's `dynamic` may give each module its own.
    """
    for stem in endings(tensors, ".qweight"):
        parts = of(tensors, f"{stem}.", "qweight", "qzeros", "scales", "g_idx")
        need(parts, stem, "qzeros", "scales")
        out = parts["scales"].shape[-1]
        bits = parts["qzeros"].shape[-1] * 32 // max(out, 1) or int(config.get("bits", 4))
        shape = (out, parts["qweight"].shape[0] * 32 // bits)
        yield Packed(
            name=f"{stem}.weight",
            packing="gptq_v2" if config.get("checkpoint_format") == "gptq_v2" else "gptq",
            parts=parts,
            shape=shape,
            grid=f"int{bits}" + (".full" if config.get("sym", True) else ".asym"),
            bits=bits,
            group=(1, _columns(shape[1], parts["scales"].shape[0], int(config.get("group_size", -1)))),
            scale=parts["scales"].dtype,
            note="columns in the order of their activations" if config.get("desc_act") else "",
        )


def awq(config: Config, tensors: Layout) -> Iterator[Packed]:
    """qweight [in, out / 8], qzeros [groups, out / 8], both int32 and interleaved; scales [groups, out]."""
    for stem in endings(tensors, ".qweight"):
        parts = of(tensors, f"{stem}.", "qweight", "qzeros", "scales")
        need(parts, stem, "scales", *(["qzeros"] if config.get("zero_point", True) else []))
        shape = (parts["scales"].shape[-1], parts["qweight"].shape[0])
        yield Packed(
            name=f"{stem}.weight",
            packing="awq",
            parts=parts,
            shape=shape,
            grid="int4.asym" if "qzeros" in parts else "int4.full",
            bits=4,
            group=(1, _columns(shape[1], parts["scales"].shape[0], int(config.get("group_size", 128)))),
            scale=parts["scales"].dtype,
        )


def fp8(config: Config, tensors: Layout) -> Iterator[Packed]:
    """weight [out, in] in float8 and weight_scale_inv, one factor for each tile; fbgemm calls it weight_scale."""
    tile = config.get("weight_block_size")
    said = (int(tile[0]), int(tile[1])) if tile else (0, 0)
    # What quantizers call dynamic here is one scale for every 128 inputs of a token, or for the token.
    dynamic = f"e4m3/block:{tile[1]}" if tile else "e4m3/token"
    static = "e4m3/tensor with a stored scale"
    for factor in ("weight_scale_inv", "weight_scale"):
        for stem in endings(tensors, f".{factor}"):
            parts = of(tensors, f"{stem}.", "weight", factor)
            need(parts, stem, "weight")
            weight, scale = parts["weight"], parts[factor]
            yield Packed(
                name=weight.name,
                packing="fp8",
                parts={"weight": weight, "scale": scale},
                shape=weight.shape,
                grid=FLOATS.get(weight.dtype, weight.dtype),
                bits=8,
                group=grouped(weight.shape, scale, said),
                scale=scale.dtype,
                activations=static if config.get("activation_scheme") == "static" else dynamic,
            )


FLOATS: Mapping[str, str] = MappingProxyType({"F8_E4M3": "e4m3", "F8_E5M2": "e5m2"})


def bitsandbytes(_config: Config, tensors: Layout) -> Iterator[Packed]:
    """4 bits: bytes of two codes, absmax of flat blocks, the levels, and shape and block size as JSON; 8 bits: rows."""
    for kind, grid in (("nf4", "nf4"), ("fp4", "bnbfp4")):
        state = f".quant_state.bitsandbytes__{kind}"
        for stem in endings(tensors, state):
            found = of(tensors, stem, "", ".absmax", ".quant_map", ".nested_absmax", ".nested_quant_map", state)
            parts = {part.removeprefix(".") or "weight": tensor for part, tensor in found.items()}
            need(parts, stem, "weight", "absmax", "quant_map")
            said = read_json(parts[state.removeprefix(".")])
            shape, block = tuple(said["shape"]), int(said["blocksize"])
            yield Packed(
                name=stem,
                packing="bitsandbytes 4-bit",
                parts=parts,
                shape=shape,
                grid=grid,
                bits=4,
                group=(1, block),
                scale="double" if "nested_absmax" in parts else parts["absmax"].dtype,
                note=f"blocks of {block} run across the ends of rows" if shape[-1] % block else "",
                said=said,
            )
    for stem in endings(tensors, ".SCB"):
        parts = of(tensors, f"{stem}.", "weight", "SCB", "weight_format")
        need(parts, stem, "weight")
        if "weight_format" in parts and any(read_bytes(parts["weight_format"])):
            raise BadModel(f"{stem} is stored in the order of a GPU's tiles; save it again by bitsandbytes >= 0.45")
        shape = parts["weight"].shape
        # Outlier channels of the activations stay in 16 bits, which no quantizer's name says.
        inputs = "int8/token, outlier channels in 16 bits"
        yield Packed(
            name=f"{stem}.weight",
            packing="bitsandbytes 8-bit",
            parts=parts,
            shape=shape,
            grid="int8",
            bits=8,
            group=(1, 0),
            scale=parts["SCB"].dtype,
            activations=inputs,
        )


def _columns(wide: int, groups: int, said: int) -> int:
    """Columns that share a scale, 0 for all: as the config has it, where the file has so many groups."""
    if groups == 1 and said <= 0:
        return 0
    return said if said > 0 and -(-wide // said) == groups else -(-wide // max(groups, 1))
