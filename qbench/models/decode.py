"""Codes that other libraries stored, decoded to the weights that these libraries compute with."""

import os
from collections.abc import Callable, Generator, Mapping
from contextlib import ExitStack
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import MappingProxyType

import torch
from safetensors import safe_open
from torch import Tensor

from qbench.models.finished import Finished, finished
from qbench.models.folder import Folder, MissingPackage, layout, look
from qbench.models.packed import Packed
from qbench.models.stored import BadModel, StoredTensor
from qbench.models.unpack import spread, unpack

# The parts of a weight as they are stored -> the weight [out, in].
Decoder = Callable[[Packed, Mapping[str, Tensor]], Tensor]


def compressed_integers(weight: Packed, parts: Mapping[str, Tensor]) -> Tensor:
    """Rows of `bits`-bit codes in int32, offset by half their range; zero points the same way, along the first axis.

    Sources: `pack_quantized/helpers.py` and `_dequantize` of compressed-tensors 0.20, against which it is tested.
    """
    out, wide = weight.shape
    half = 2 ** (weight.bits - 1)
    zeros = None
    if "weight_zero_point" in parts:
        packed = parts["weight_zero_point"]
        zeros = unpack(packed.T, weight.bits, out).T.short() - half if packed.dtype == torch.int32 else packed
    codes = unpack(parts["weight_packed"], weight.bits, wide).short() - half
    return _affine(weight, parts, codes, zeros)


def compressed_naive(weight: Packed, parts: Mapping[str, Tensor]) -> Tensor:
    """int8 or float8 values as they are, and zero points where there are any."""
    return _affine(weight, parts, parts["weight"], parts.get("weight_zero_point"))


def _affine(weight: Packed, parts: Mapping[str, Tensor], codes: Tensor, zeros: Tensor | None) -> Tensor:
    """(code - zero) * scale, all in the type of the scales, as compressed-tensors has it."""
    scales, order = parts["weight_scale"], parts.get("weight_g_idx")
    values = codes.to(scales.dtype)
    if order is not None and order.min() >= 0:  # the group of each column; -1 was written for none
        columns = order.long()
        values = values if zeros is None else values - zeros.to(scales.dtype)[:, columns]
        return values * scales[:, columns]
    if zeros is not None:
        values = values - spread(zeros.to(scales.dtype), weight.shape, weight.sizes)
    return values * spread(scales, weight.shape, weight.sizes)


def four_bit_floats(weight: Packed, parts: Mapping[str, Tensor]) -> Tensor:
    """Two e2m1 codes to a byte, the first one in the low bits, in blocks under 8-bit scales; exact, in float32.

    The e4m3 scales of nvfp4 are divided by `weight_global_scale`; those of mxfp4 are exponents. compressed-tensors
    rounds the product to bfloat16, and is equal where that is done.
    """
    codes = unpack(parts["weight_packed"].flatten(0, -2), 4, weight.shape[-1])
    values = torch.tensor(_E2M1)[codes.long()].reshape(weight.shape)
    scales = _exponents(parts["weight_scale"])
    if "weight_global_scale" in parts:
        scales = scales / parts["weight_global_scale"].float()
    return values * spread(scales, weight.shape, weight.sizes)


_POSITIVE = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
_E2M1 = (*_POSITIVE, *(-value for value in _POSITIVE))


def compressed_mxfp8(weight: Packed, parts: Mapping[str, Tensor]) -> Tensor:
    """float8 values in blocks of 32 under stored exponents."""
    return parts["weight"].float() * spread(_exponents(parts["weight_scale"]), weight.shape, weight.sizes)


def fp8(weight: Packed, parts: Mapping[str, Tensor]) -> Tensor:
    """float8 values times one factor for each tile, in float32.

    Source: `Fp8Dequantize` of transformers 5.23, which rounds the product to the type of the model.
    """
    return parts["weight"].float() * spread(_exponents(parts["scale"]), weight.shape, weight.sizes)


def _exponents(scales: Tensor) -> Tensor:
    """Scales in float32; bytes stand for powers of two, biased by 127."""
    return (scales.float() - 127).exp2() if scales.dtype == torch.uint8 else scales.float()


def gptq(weight: Packed, parts: Mapping[str, Tensor]) -> Tensor:
    """(code - zero) * scale in the type of the scales, the group of each input by `g_idx`.

    What is stored as a zero point is one less, modulo the number of codes, up to and without `gptq_v2`. Taken from the
    source of gptqmodel (`nn_modules/qlinear/torch.py`, `convert_gptq_v1_to_v2_format`); no checkpoint of theirs was at
    hand to try it on. A zero point of 0, which version 1 cannot hold, wraps around here.
    """
    out, wide = weight.shape
    scales = parts["scales"]  # [groups, out]
    codes = unpack(parts["qweight"].T, weight.bits, wide)
    zeros = unpack(parts["qzeros"], weight.bits, out).short()  # [groups, out]
    if weight.packing == "gptq":
        zeros = (zeros + 1) % 2**weight.bits
    order = parts["g_idx"].long() if "g_idx" in parts else torch.arange(wide) // weight.sizes[1]
    return (codes.short() - zeros[order].T).to(scales.dtype) * scales[order].T


def awq(weight: Packed, parts: Mapping[str, Tensor]) -> Tensor:
    """(code - zero) * scale in the type of the scales; eight codes to an int32, in the order 0, 2, 4, 6, 1, 3, 5, 7.

    Without zero points codes are offset by 8. Taken from the source of AutoAWQ (`WQLinear_GEMM`) and tested against
    the converter in compressed-tensors 0.20; no checkpoint of theirs was at hand to try it on.
    """
    out, _ = weight.shape
    scales = parts["scales"]  # [groups, out]
    codes = _deinterleave(unpack(parts["qweight"], 4, out)).short()  # [in, out]
    zeros = _deinterleave(unpack(parts["qzeros"], 4, out)).short() if "qzeros" in parts else torch.full_like(scales, 8)
    order = torch.arange(len(codes)) // weight.sizes[1]
    return ((codes - zeros[order]).to(scales.dtype) * scales[order]).T


def _deinterleave(codes: Tensor) -> Tensor:
    return codes.unflatten(1, (-1, 8))[..., [0, 4, 1, 5, 2, 6, 3, 7]].flatten(1)


def bitsandbytes_4bit(weight: Packed, parts: Mapping[str, Tensor]) -> Tensor:
    """Levels times absmax of flat blocks; two codes to a byte, the first one in the high bits.

    The absmax of double quantization are themselves 8-bit codes in blocks, around a stored offset. Rounded to the
    type that the weight had when it was quantized. Tested against bitsandbytes 0.50.
    """
    said = weight.said
    raw = parts["weight"].contiguous().view(torch.uint8).flatten()
    codes = torch.stack((raw >> 4, raw & 15), -1).flatten()[: weight.values]
    absmax = parts["absmax"]
    if "nested_absmax" in parts:
        offset = torch.tensor(float(said["nested_offset"]))
        absmax = _levels(parts["nested_quant_map"], absmax, parts["nested_absmax"], said["nested_blocksize"]) + offset
    values = _levels(parts["quant_map"], codes, absmax, said["blocksize"])
    return values.to(getattr(torch, said["dtype"])).view(weight.shape)


def _levels(levels: Tensor, codes: Tensor, absmax: Tensor, block: int) -> Tensor:
    return levels.float()[codes.long()] * absmax.float().repeat_interleave(block)[: codes.numel()]


def bitsandbytes_8bit(weight: Packed, parts: Mapping[str, Tensor]) -> Tensor:
    """Rows of int8 times their absmax over 127, as `int8_vectorwise_dequant` of bitsandbytes has it."""
    return parts["weight"] * parts["SCB"].view(-1, 1) * 7.874015718698502e-3


def torchao(weight: Packed, parts: Mapping[str, Tensor]) -> Tensor:
    """What torchao's own tensor gives; raises MissingPackage where torchao is not installed."""
    os.environ.setdefault("TORCHAO_FORCE_SKIP_LOADING_SO_FILES", "1")  # else it complains about its CUDA libraries
    if find_spec("torchao") is None:
        raise MissingPackage(f"{weight.name} was quantized by torchao; pip install torchao")
    utilities = import_module("torchao.prototype.safetensors.safetensors_utils")
    tensor: Tensor = utilities.object_from_dict({**weight.said, "_data": {**weight.said["_data"], **parts}})
    return tensor.dequantize()


DECODERS: Mapping[str, Decoder] = MappingProxyType(
    {
        "pack-quantized": compressed_integers,
        "int-quantized": compressed_naive,
        "float-quantized": compressed_naive,
        "naive-quantized": compressed_naive,
        "nvfp4-pack-quantized": four_bit_floats,
        "mxfp4-pack-quantized": four_bit_floats,
        "mxfp8-quantized": compressed_mxfp8,
        "gptq": gptq,
        "gptq_v2": gptq,
        "awq": awq,
        "fp8": fp8,
        "bitsandbytes 4-bit": bitsandbytes_4bit,
        "bitsandbytes 8-bit": bitsandbytes_8bit,
        "torchao": torchao,
    }
)


def decode(weight: Packed, parts: Mapping[str, Tensor]) -> Tensor:
    """The weight [out, in] of its parts as they are stored, in the type that its library computes it in.

    Raises BadModel where the parts do not fit together.
    """
    try:
        return DECODERS[weight.packing](weight, parts)
    except (IndexError, RuntimeError) as error:
        shapes = ", ".join(f"{part} {list(tensor.shape)}" for part, tensor in parts.items())
        raise BadModel(f"{weight.name}: {weight.packing} codes that do not fit together: {shapes}: {error}") from error


def decoded_state(source: str | Path | Folder) -> Generator[tuple[str, Tensor], None, None]:
    """Every tensor of a plain checkpoint, decoded where it is stored as codes: shard by shard, one at a time.

    Scales of activations are left out; a weight comes with the shard that holds the first of its parts.

    Raises: BadModel where it is damaged, is not quantized or cannot be decoded here; MissingPackage for torchao.
    """
    folder = source if isinstance(source, Folder) else look(source)
    tensors = layout(folder)
    what = finished(folder.config, tensors)
    if what is None or what.refusal:
        raise BadModel(f"{folder.path}: {what.refusal if what else 'no quantization_config: load it as it is'}")
    with ExitStack() as stack:
        files = {shard: stack.enter_context(safe_open(shard, framework="pt")) for shard in folder.shards}
        for name in _leading(what, tensors):
            if name not in what.weights:
                yield name, files[tensors[name].shard].get_tensor(name)
                continue
            weight = what.weights[name]
            parts = {part: files[stored.shard].get_tensor(stored.name) for part, stored in weight.parts.items()}
            yield name, decode(weight, parts)


def _leading(what: Finished, tensors: Mapping[str, StoredTensor]) -> Generator[str, None, None]:
    """Names of the plain checkpoint in the order in which the files have them."""
    owner = {part.name: weight.name for weight in what.weights.values() for part in weight.parts.values()}
    seen = set(what.runtime)
    for stored in sorted(tensors.values(), key=lambda tensor: (tensor.shard.name, tensor.start)):
        name = owner.get(stored.name, stored.name)
        if name not in seen:
            seen.add(name)
            yield name
