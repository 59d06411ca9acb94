"""Formats in plain words: what is quantized, and how, for readers who do not know how qbench spells it."""

from collections.abc import Mapping
from types import MappingProxyType

from qbench.names import UnknownName
from qbench.quant.catalog import quantizer_spec
from qbench.quant.spec import QuantizerName, QuantizerSpec

SCOPES: Mapping[str, str] = MappingProxyType(
    {
        "weight:weights": "weights",
        "activation:linear": "inputs of linear layers",
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
_GROUPS: Mapping[str, str] = MappingProxyType(
    {"tensor": "one scale", "token": "a scale a token", "channel": "a scale a channel"}
)


def quantizer(name: str) -> str:
    """
    >>> quantizer("int4.asym/block:32"), quantizer("nvfp4"), quantizer("int8/tensor+static")[-30:]
    ('4-bit integers with zero points, a scale for every 32', '4-bit floats (e2m1), a scale for every 16', 'one scale fixed by calibration')
    """
    try:
        spec = quantizer_spec(name)
    except (QuantizerName, UnknownName):  # a plugin's, which the reader of a page need not have
        return name
    words = _GRIDS.get(spec.grid, f"{spec.bits}-bit {spec.grid}").format(bits=spec.bits)
    words += " with zero points" if spec.variant == "asym" else ""
    return f"{words}, {_scale(spec)}{_mixed(spec)}"


def treatment(assign: Mapping[str, str]) -> str:
    """
    >>> treatment({"weight:weights": "int8/channel"})
    'weights: 8-bit integers, a scale a channel'
    """
    parts = [f"{SCOPES.get(key, key.replace(':', ' '))}: {quantizer(name)}" for key, name in assign.items()]
    return "; ".join(sorted(parts, key=lambda text: not text.startswith("weights")))


def _scale(spec: QuantizerSpec) -> str:
    words = f"a scale for every {spec.block}" if spec.block else _GROUPS.get(spec.granularity, spec.granularity)
    return f"{words} fixed by calibration" if spec.static else words


def _mixed(spec: QuantizerSpec) -> str:
    rotated = spec.hadamard is not None or spec.rht is not None
    return ", after a Hadamard rotation" * rotated + ", after smoothing" * (spec.smooth is not None)
