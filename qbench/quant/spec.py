"""A quantizer as a torch-free value, and its spelled name.

    grid / granularity [/ rule] [/ scale:storage] [+hadamard[:size]]

`int4/token` is symmetric and narrow (-7..7), absmax, fp32 scale, nearest-even; whatever differs is spelled.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import prod
from types import MappingProxyType

from qbench.names import suggestion


class QuantizerName(ValueError):
    """No quantizer is spelled like this; the message says what is allowed."""


@dataclass(frozen=True, slots=True)
class Family:
    """What may be combined with one kind of grid; the first entry of a tuple is the default."""

    bits: tuple[int, ...]
    variants: tuple[str, ...]
    rules: tuple[str, ...]
    revision: int  # raised by hand when the same name starts to give other numbers


FAMILIES: Mapping[str, Family] = MappingProxyType(
    {
        "int": Family(tuple(range(2, 9)), ("narrow", "full", "asym"), ("absmax", "rms", "pow2"), revision=1),
        "e2m1": Family((4,), ("narrow",), ("absmax", "pow2"), revision=1),
        "lloyd": Family(tuple(range(1, 9)), ("narrow",), ("rms", "absmax"), revision=1),
    }
)
SCALE_BITS: Mapping[str, int] = MappingProxyType({"fp32": 32, "bf16": 16, "fp16": 16, "e8m0": 8})
GRANULARITIES = ("tensor", "token", "channel", "block:N")
ALIASES: Mapping[str, str] = MappingProxyType({"mxfp4": "e2m1/block:32/pow2/scale:e8m0"})

_BLOCK = re.compile(r"block:([1-9][0-9]{0,8})")
_HADAMARD = re.compile(r"hadamard(?::([1-9][0-9]{0,8}))?")
_GRID = re.compile(r"(?P<family>int|lloyd)(?P<bits>[1-9][0-9]{0,2})(?:\.(?P<variant>[a-z]+))?|(?P<plain>e2m1)")


@dataclass(frozen=True, slots=True, kw_only=True)
class QuantizerSpec:
    """One point of grid x granularity x scale rule x scale storage x rotation; `str` spells it.

    `variant` `narrow` gives up the most negative code so that Q(-x) = -Q(x), `full` keeps it, `asym` stores a zero
    point. `rule` may be left empty for the grid's own: absmax, and rms for `lloyd`. `hadamard` is the number of
    neighbours mixed before quantizing; 0 stands for the largest power of two that divides the last axis.
    Raises QuantizerName when the parts do not fit together.

    >>> str(QuantizerSpec(grid="int", bits=4, granularity="block:32", hadamard=32))
    'int4/block:32+hadamard:32'
    """

    grid: str = "int"
    bits: int = 4
    variant: str = "narrow"
    granularity: str = "tensor"
    rule: str = ""
    scale: str = "fp32"
    hadamard: int | None = None

    def __post_init__(self) -> None:
        family = FAMILIES.get(self.grid)
        if family is None:
            raise _unknown("grid", self.grid, FAMILIES)
        object.__setattr__(self, "rule", self.rule or family.rules[0])
        _check("bits of the grid", self.bits, family.bits)
        _check("variant of the grid", self.variant, family.variants)
        _check("scale rule", self.rule, family.rules)
        _check("scale storage", self.scale, SCALE_BITS)
        if self.granularity not in GRANULARITIES[:3] and not _BLOCK.fullmatch(self.granularity):
            raise _unknown("granularity", self.granularity, GRANULARITIES)
        if (self.rule == "pow2") != (self.scale == "e8m0"):
            raise QuantizerName("pow2 and scale:e8m0 go together: an exponent is all that either of them can hold")
        if self.variant == "asym" and self.rule != "absmax":
            raise QuantizerName(f"asym spans the smallest to the largest value; it has no rule {self.rule!r}")
        size = self.hadamard
        if size is not None and (size < 0 or size == 1 or size & (size - 1)):
            raise QuantizerName(f"a Hadamard rotation mixes a power of two of neighbours, found {size}")

    def __str__(self) -> str:
        family = FAMILIES[self.grid]
        parts = [self._grid_name, self.granularity]
        parts += [self.rule] if self.rule != family.rules[0] else []
        parts += [f"scale:{self.scale}"] if self.scale != "fp32" else []
        name = _SHORT.get("/".join(parts), "/".join(parts))
        if self.hadamard is None:
            return name
        return f"{name}+hadamard" + (f":{self.hadamard}" if self.hadamard else "")

    @property
    def block(self) -> int | None:
        """Values that share a scale, where the spec fixes it: `block:32` has 32."""
        found = _BLOCK.fullmatch(self.granularity)
        return int(found[1]) if found else None

    @property
    def revision(self) -> str:
        """What enters a cell's identity: numbers of another revision are not the same measurement.

        >>> parse("int4/token").revision
        'int@1'
        """
        return f"{self.grid}@{FAMILIES[self.grid].revision}"

    @property
    def _grid_name(self) -> str:
        name = f"{self.grid}{self.bits}" if len(FAMILIES[self.grid].bits) > 1 else self.grid
        return name if self.variant == "narrow" else f"{name}.{self.variant}"


def parse(name: str) -> QuantizerSpec:
    """The spec that `name` spells; printing it again gives the canonical name.

    >>> parse("mxfp4") == QuantizerSpec(grid="e2m1", granularity="block:32", rule="pow2", scale="e8m0")
    True
    >>> parse("int4/token/min")
    Traceback (most recent call last):
    qbench.quant.spec.QuantizerName: 'int4/token/min': scale rule 'min'; allowed: absmax, rms, pow2
    """
    try:
        return _parse(name)
    except QuantizerName as error:
        raise QuantizerName(f"{name!r}: {error}") from None


def bits_per_value(spec: QuantizerSpec, shape: Iterable[int], channel_axis: int = -1) -> float:
    """Stored bits (codes, scales, zero points, padding of short blocks) over values, for a tensor of this shape.

    >>> bits_per_value(parse("mxfp4"), (8, 64)), bits_per_value(parse("mxfp4"), (8, 33))
    (4.25, 8.242424242424242)
    """
    sizes = tuple(shape) or (1,)
    values = prod(sizes)
    if not values:
        return 0.0
    groups, codes = _groups(spec, sizes, channel_axis), values
    if spec.block:
        codes = groups * spec.block
    zero_point = spec.bits if spec.variant == "asym" else 0
    return (codes * spec.bits + groups * (SCALE_BITS[spec.scale] + zero_point)) / values


def _groups(spec: QuantizerSpec, sizes: tuple[int, ...], channel_axis: int) -> int:
    rows = prod(sizes[:-1])
    if spec.block:
        return rows * -(-sizes[-1] // spec.block)
    return {"tensor": 1, "token": rows, "channel": sizes[channel_axis]}[spec.granularity]


def _parse(name: str) -> QuantizerSpec:
    base, plus, wrapper = name.partition("+")
    grid, *rest = ALIASES.get(base, base).split("/")
    family, bits, variant = _parse_grid(grid)
    if not rest:
        raise QuantizerName(f"no granularity; write {grid}/G with G one of {', '.join(GRANULARITIES)}")
    granularity, *options = rest
    rule = options.pop(0) if options and not options[0].startswith("scale:") else ""
    scale = options.pop(0).removeprefix("scale:") if options and options[0].startswith("scale:") else "fp32"
    if options:
        raise QuantizerName(f"{options[0]!r} is out of place; the order is grid/granularity/rule/scale:storage")
    if rule and rule not in FAMILIES[family].rules:
        raise _unknown("scale rule", rule, FAMILIES[family].rules)
    hadamard = _parse_wrapper(wrapper) if plus else None
    return QuantizerSpec(
        grid=family, bits=bits, variant=variant, granularity=granularity, rule=rule, scale=scale, hadamard=hadamard
    )


def _parse_grid(text: str) -> tuple[str, int, str]:
    if text in ALIASES:
        raise QuantizerName(f"{text} is complete and takes only +hadamard; its parts are {ALIASES[text]}")
    found = _GRID.fullmatch(text)
    if found is None:
        raise _unknown("grid", text, (*_grid_names(), *ALIASES))
    if found["plain"]:
        return found["plain"], FAMILIES[found["plain"]].bits[0], "narrow"
    return found["family"], int(found["bits"]), found["variant"] or "narrow"


def _parse_wrapper(text: str) -> int:
    found = _HADAMARD.fullmatch(text)
    if found is None:
        raise _unknown("wrapper", text, ("hadamard", "hadamard:N"))
    return int(found[1] or 0)


def _grid_names() -> list[str]:
    many = [f"{name}{bits}" for name, family in FAMILIES.items() if len(family.bits) > 1 for bits in family.bits]
    return [*many, *(name for name, family in FAMILIES.items() if len(family.bits) == 1)]


def _check(what: str, found: object, allowed: Iterable[object]) -> None:
    if found not in tuple(allowed):
        raise _unknown(what, found, allowed)


def _unknown(what: str, found: object, allowed: Iterable[object]) -> QuantizerName:
    names = [str(name) for name in allowed]
    return QuantizerName(f"{what} {str(found)!r}{suggestion(str(found), names)} allowed: {', '.join(names)}")


_SHORT: Mapping[str, str] = MappingProxyType({spelled: name for name, spelled in ALIASES.items()})
