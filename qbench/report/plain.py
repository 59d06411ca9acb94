"""Formats in plain words: what is quantized, and how, for readers who do not know how qbench spells it."""

from collections.abc import Mapping
from types import MappingProxyType

from qbench.names import UnknownName
from qbench.quant.catalog import quantizer_spec
from qbench.quant.spec import QuantizerName, QuantizerSpec

SCOPES: Mapping[str, str] = MappingProxyType(
    {
        "weight:weights": "weights",
        "activation:linear": "inputs",
        "activation:kv": "keys and values",
        "activation:keys": "keys",
        "activation:values": "values",
        "activation:boundaries": "block boundaries",
        "activation:interior": "block boundaries but the last",
        "activation:middle": "the middle block boundary",
    }
)
_GRIDS: Mapping[str, str] = MappingProxyType(
    {
        "int": "{bits}-bit integers",
        "ocpint8": "8-bit integers",
        "e4m3": "8-bit floats (e4m3)",
        "e5m2": "8-bit floats (e5m2)",
        "e2m3": "6-bit floats (e2m3)",
        "e3m2": "6-bit floats (e3m2)",
        "e2m1": "4-bit floats (e2m1)",
        "nf4": "4-bit NormalFloat",
        "bnbfp4": "4-bit floats of bitsandbytes",
    }
)


def quantizer(name: str) -> str:
    """
    >>> quantizer("int4.asym/block:32"), quantizer("nvfp4"), quantizer("int8/tensor+static")
    ('4-bit integers with zero points per 32', '4-bit floats (e2m1) per 16', '8-bit integers per tensor, calibrated')
    """
    try:
        spec = quantizer_spec(name)
    except (QuantizerName, UnknownName):  # a plugin's, which the reader of a page need not have
        return name
    words = _GRIDS.get(spec.grid, f"{spec.bits}-bit {spec.grid}").format(bits=spec.bits)
    words += " with zero points" if spec.variant == "asym" else ""
    return f"{words} per {spec.block or spec.granularity}{_mixed(spec)}"


def treatment(assign: Mapping[str, str]) -> str:
    """
    >>> treatment({"weight:weights": "int8/channel"})
    'weights: 8-bit integers per channel'
    """
    parts = [f"{SCOPES.get(key, key.replace(':', ' '))}: {quantizer(name)}" for key, name in assign.items()]
    return "; ".join(sorted(parts, key=lambda text: not text.startswith("weights")))


def _mixed(spec: QuantizerSpec) -> str:
    rotated = spec.hadamard is not None or spec.rht is not None
    words = {"rotated": rotated, "smoothed": spec.smooth is not None, "calibrated": spec.static}
    return "".join(f", {word}" for word, there in words.items() if there)
