"""The parts that quantizers are composed of, and which of them fit together."""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType


@dataclass(frozen=True, slots=True)
class Family:
    """What may be combined with one kind of grid; the first entry of a tuple is the default."""

    bits: tuple[int, ...]
    variants: tuple[str, ...]
    rules: tuple[str, ...]
    revision: int  # raised by hand when the same name starts to give other numbers
    fitted: bool = False  # the levels are fitted to each tensor and stored with it
    zero: bool = True  # zero is a level, so that values can be rounded toward it


@dataclass(frozen=True, slots=True)
class Storage:
    """How scales are stored: `bits` each, `inner` more for every 256 of them, `tensor` more for the whole tensor."""

    bits: int
    inner: int = 0
    tensor: int = 0
    mantissa: int = 0  # where it is so short that the scale's own rounding matters


EXPONENT_RULES = ("pow2", "rceil", "ceil", "even")  # whose scale is a power of two
RANGE_RULES = ("absmax", "mse", "percentile", "clip", "l2")  # which follow the range or the norm of the group
RULE_REVISIONS: Mapping[str, int] = MappingProxyType({"percentile": 2})  # of those that gave other numbers before
ARGUMENT: Mapping[str, tuple[float, float]] = MappingProxyType({"percentile": (0, 100), "clip": (0, 1e6)})

_FLOAT = ("narrow",), (*RANGE_RULES[:1], "rms", *RANGE_RULES[1:], *EXPONENT_RULES)
_INTEGER = ("absmax", "rms", *EXPONENT_RULES[:3], *RANGE_RULES[1:])
_MANY = tuple(range(1, 9))

FAMILIES: Mapping[str, Family] = MappingProxyType(
    {
        "int": Family(_MANY[1:], ("narrow", "full", "asym", "middle"), _INTEGER, revision=1),
        "uniform": Family(_MANY, ("narrow",), ("rms", "absmax"), revision=1, zero=False),
        "ternary": Family((2,), ("narrow",), ("meanabs", "absmax", "rms", "clip", "mse", "l2"), revision=1),
        "binary": Family((1,), ("narrow",), ("meanabs",), revision=1, zero=False),
        "e4m3": Family((8,), *_FLOAT, revision=1),
        "e5m2": Family((8,), *_FLOAT, revision=1),
        "e2m3": Family((6,), *_FLOAT, revision=1),
        "e3m2": Family((6,), *_FLOAT, revision=1),
        "e2m1": Family((4,), *_FLOAT, revision=1),
        "ocpint8": Family((8,), ("narrow",), ("absmax", *EXPONENT_RULES[:3]), revision=1),
        "nf4": Family((4,), ("narrow",), ("absmax", "rms", "mse", "percentile"), revision=1),
        "bnbfp4": Family((4,), ("narrow",), ("absmax", "rms", "mse", "percentile"), revision=1),
        "dynamic": Family((8,), ("signed", "unsigned"), ("absmax",), revision=1),
        "lloyd": Family(_MANY, ("gauss", "laplace"), ("rms", "absmax"), revision=1, zero=False),
        "kmeans": Family(_MANY, ("narrow",), ("none", "absmax", "rms"), revision=1, fitted=True, zero=False),
        "quantile": Family(_MANY, ("narrow",), ("none", "absmax", "rms"), revision=1, fitted=True, zero=False),
    }
)
STORAGES: Mapping[str, Storage] = MappingProxyType(
    {
        "fp32": Storage(32),
        "bf16": Storage(16),
        "fp16": Storage(16),
        "e8m0": Storage(8),
        "e4m3": Storage(8, mantissa=3),
        "e4m3.fp32": Storage(8, tensor=32, mantissa=3),
        "double": Storage(8, inner=32, tensor=32),
    }
)
TWO_LEVEL = ("e4m3.fp32", "double")  # scales that have a scale of their own
ROUNDINGS = ("nearest", "rtz", "sr:SEED")

_FLOATS = {"mxfp8e4m3": "e4m3", "mxfp8e5m2": "e5m2", "mxfp6e2m3": "e2m3", "mxfp6e3m2": "e3m2", "mxfp4": "e2m1"}
_MX = {name: (grid, EXPONENT_RULES) for name, grid in _FLOATS.items()} | {"mxint8": ("ocpint8", EXPONENT_RULES[:3])}
ALIASES: Mapping[str, str] = MappingProxyType(
    {
        name + ("" if rule == "pow2" else f".{rule}"): f"{grid}/block:32/{rule}/scale:e8m0"
        for name, (grid, rules) in _MX.items()
        for rule in rules
    }
    | {"nvfp4": "e2m1/block:16/scale:e4m3.fp32"}
)
# What people write for formats that have several meanings.
MEANT: Mapping[str, str] = MappingProxyType(
    {
        "fp4": "e2m1 (OCP, NVIDIA) or bnbfp4 (bitsandbytes)",
        "fp6": "e2m3 or e3m2",
        "fp8": "e4m3 or e5m2",
        "mxfp6": "mxfp6e2m3 or mxfp6e3m2",
        "mxfp8": "mxfp8e4m3 or mxfp8e5m2",
        "dynamic8": "dynamic",
    }
)
