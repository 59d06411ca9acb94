"""Checkpoints that somebody else quantized: what their quantization_config says and what their files hold. No torch."""

from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from types import MappingProxyType
from typing import Any

from qbench.models import packed, packed_schemes
from qbench.models.packed import Config, Layout, Packed
from qbench.models.stored import BadModel


@dataclass(frozen=True, slots=True)
class Method:
    """A value of `quant_method`.

    Args:
        read: the weights that a file holds; None for a method that only its own package can read.
        packages: what transformers loads it with, as it is called where it is installed from.
        modules: the same, as they are imported.
    """

    read: Callable[[Config, Layout], Iterator[Packed]] | None
    packages: tuple[str, ...] = ()
    modules: tuple[str, ...] = ()


def _only(*packages: str, modules: tuple[str, ...] = ()) -> Method:
    return Method(None, packages, modules or tuple(name.replace("-", "_") for name in packages))


# Packages: what transformers 5.23 asks for in the validate_environment of each of its quantizers.
METHODS: Mapping[str, Method] = MappingProxyType(
    {
        "compressed-tensors": Method(
            packed_schemes.compressed_tensors, ("compressed-tensors",), ("compressed_tensors",)
        ),
        "gptq": Method(packed.gptq, ("gptqmodel", "optimum"), ("gptqmodel", "optimum")),
        "awq": Method(packed.awq, ("gptqmodel",), ("gptqmodel",)),
        "fp8": Method(packed.fp8, ("accelerate",), ("accelerate",)),
        "fbgemm_fp8": Method(packed.fp8, ("fbgemm-gpu",), ("fbgemm_gpu",)),
        "bitsandbytes": Method(packed.bitsandbytes, ("bitsandbytes",), ("bitsandbytes",)),
        "torchao": Method(packed_schemes.torchao, ("torchao",), ("torchao",)),
        "aqlm": _only("aqlm"),
        "auto-round": _only("auto-round"),
        "bitnet": _only("accelerate"),
        "eetq": _only("kernels"),
        "fouroversix": _only("fouroversix"),
        "fp_quant": _only("fp_quant"),
        "higgs": _only("flute-kernel", "fast_hadamard_transform", modules=("flute", "fast_hadamard_transform")),
        "hqq": _only("hqq"),
        "mxfp4": _only("accelerate", "kernels"),
        "quanto": _only("optimum-quanto", modules=("optimum.quanto",)),
        "quark": _only("amd-quark", modules=("quark",)),
        "sinq": _only("sinq"),
        "spqr": _only("spqr_quant"),
        "vptq": _only("vptq"),
    }
)
# Packings that decode.py has a row for; the rest goes through transformers.
DECODED = (
    *("pack-quantized", "int-quantized", "float-quantized", "naive-quantized"),
    *("nvfp4-pack-quantized", "mxfp4-pack-quantized", "mxfp8-quantized"),
    *("gptq", "gptq_v2", "awq", "fp8", "bitsandbytes 4-bit", "bitsandbytes 8-bit", "torchao"),
)
# Tensors that say how activations are quantized when the model runs; decoded weights do without them.
_RUNTIME = tuple(
    f"{what}_{part}"
    for what in ("input", "output", "activation", "q", "k", "v")
    for part in ("scale", "zero_point", "global_scale", "scale_ub")
)


@dataclass(frozen=True, slots=True)
class Group:
    """Weights that are stored the same way.

    `format` is a quantizer's name where `ours`, else words; `stored_bits` is what the files hold for one parameter:
    codes, scales, zero points, group indices, maps and tables over the number of decoded values.
    """

    format: str
    ours: bool
    bits: int
    group: str
    symmetric: bool
    scale: str
    activations: str
    weights: tuple[str, ...]
    values: int
    bytes: int

    @property
    def stored_bits(self) -> float:
        return 8 * self.bytes / self.values


@dataclass(frozen=True, slots=True, kw_only=True)
class Finished:
    """What a quantized checkpoint is.

    Args:
        method: `quant_method` as its quantization_config spells it.
        packages: what transformers needs to load it.
        weights: the quantized ones, by name; empty for a method that cannot be read here.
        groups: the same, summed up.
        left: matrices that are stored in floating point.
        spared: the modules that the config says were left alone, in its own words: `ignore` and the like.
        cache: how keys and values are quantized when the model runs; empty for not at all.
        runtime: stored scales of activations, keys and values, by name.
        refusal: why the weights cannot be decoded here; empty where they can.
    """

    method: str
    packages: tuple[str, ...]
    weights: Mapping[str, Packed] = field(repr=False)
    groups: tuple[Group, ...]
    left: tuple[str, ...] = field(repr=False)
    spared: tuple[str, ...]
    cache: str
    runtime: tuple[str, ...] = field(repr=False)
    refusal: str

    @property
    def decodable(self) -> bool:
        return not self.refusal


def quantization(config: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The quantization_config of a config.json, or of its part for text; None for a plain model.

    compression_config is what compressed-tensors called it before it was merged into transformers.
    """
    for part in (config, config.get("text_config")):
        for key in ("quantization_config", "compression_config"):
            if isinstance(part, Mapping) and isinstance(part.get(key), Mapping) and part[key]:
                return part[key]
    return None


def finished(config: Mapping[str, Any], layout: Layout) -> Finished | None:
    """Read a checkpoint's quantization_config against its stored tensors; None for a plain model.

    Of the files only a few bytes are read: shapes and block sizes that are stored as tensors, metadata of shards.

    Args:
        config: config.json.
        layout: `folder.layout`.

    Raises:
        BadModel: an unknown method; tensors that do not belong together; a config without the keys of its method.
    """
    said = quantization(config)
    if said is None:
        return None
    name = _method(said)
    method = METHODS[name]
    try:
        found = list(method.read(said, layout)) if method.read else []
    except (KeyError, TypeError, ValueError) as error:
        if isinstance(error, BadModel):
            raise
        raise BadModel(f"quantization_config of {name} cannot be read: {type(error).__name__}: {error}") from error
    weights = {weight.name: weight for weight in sorted(found, key=lambda weight: weight.name)}
    used = {part.name for weight in weights.values() for part in weight.parts.values()}
    runtime = tuple(n for n in layout if n not in used and n.rpartition(".")[2] in _RUNTIME)
    return Finished(
        method=name,
        packages=method.packages,
        weights=MappingProxyType(weights),
        groups=_groups(list(weights.values())),
        left=tuple(n for n, t in layout.items() if t.floating and len(t.shape) > 1 and n not in used),
        spared=tuple(_spared(said)),
        cache=packed_schemes.inputs(said.get("kv_cache_scheme")),
        runtime=runtime,
        refusal=next(_refusals(name, said, list(weights.values())), "") or _leftover(layout, used),
    )


def _method(said: Mapping[str, Any]) -> str:
    """`quant_method`; what was saved before there was such a key is told by the keys that it has."""
    name = str(said.get("quant_method") or ("bitsandbytes" if "load_in_4bit" in said or "load_in_8bit" in said else ""))
    if name not in METHODS:
        raise BadModel(f"quantization_config has the quant_method {name!r}; known: {', '.join(METHODS)}")
    return name


def _refusals(name: str, said: Config, weights: Sequence[Packed]) -> Iterator[str]:
    """Why plain weights would not be the model, or cannot be had."""
    if METHODS[name].read is None:
        yield f"the codes of {name} are not decoded here"
    if dict(said.get("transform_config") or {}).get("config_groups"):
        yield "its transform_config rotates activations when the model runs, which plain weights would not"
    version = said.get("version", said.get("format", "gemm"))
    if name == "awq" and str(version).lower() != "gemm":
        yield f"only the gemm version of awq is decoded here, not {version}"
    kind = said.get("checkpoint_format", "gptq")
    if name == "gptq" and kind not in ("gptq", "gptq_v2"):
        yield f"only the formats gptq and gptq_v2 are decoded here, not {kind}"
    if smoothed := [weight.name for weight in weights if "act_pre_scale" in weight.parts]:
        yield f"{len(smoothed)} layers scale their inputs when the model runs, which plain weights would not"
    if unknown := sorted({weight.packing for weight in weights if weight.packing not in DECODED}):
        yield f"the packing {', '.join(unknown)} is not decoded here"
    if not weights:
        yield f"no tensor of its files has the names that {name} gives to codes"


def _leftover(layout: Layout, used: Container[str]) -> str:
    """Small floats are codes: without a scale that was found they are no weights."""
    codes = [n for n, t in layout.items() if n not in used and t.dtype.startswith(("F4", "F6", "F8")) and t.values > 1]
    return f"{len(codes)} tensors are codes to which no scales were found: {', '.join(codes[:3])}" if codes else ""


def _spared(said: Mapping[str, Any]) -> Iterator[str]:
    for key in ("ignore", "modules_to_not_convert", "llm_int8_skip_modules", "ignored_layers"):
        yield from map(str, said.get(key) or ())


def _groups(weights: Sequence[Packed]) -> tuple[Group, ...]:
    def key(weight: Packed) -> tuple[str, ...]:
        return weight.format, weight.activations, weight.packing

    return tuple(_sum(list(same)) for _, same in groupby(sorted(weights, key=key), key=key))


def _sum(same: Sequence[Packed]) -> Group:
    first = same[0]
    return Group(
        format=first.format,
        ours=bool(first.quantizer),
        bits=first.bits,
        group=first.granularity,
        symmetric=first.symmetric,
        scale=first.scale,
        activations=first.activations,
        weights=tuple(weight.name for weight in same),
        values=sum(weight.values for weight in same),
        bytes=sum(weight.bytes for weight in same),
    )
