"""A quantizer as a torch-free value.

Its name is spelled

    grid / granularity [/ rule] [/ scale:storage] [/ rounding] [+wrapper ...]

`int4/token` is symmetric and narrow (-7..7), absmax, fp32 scale, nearest-even; whatever differs is spelled.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from math import prod
from types import MappingProxyType

from qbench.names import suggestion
from qbench.quant.family import (
    ALIASES,
    ARGUMENT,
    EXPONENT_RULES,
    FAMILIES,
    ROUNDINGS,
    RULE_REVISIONS,
    STORAGES,
    TWO_LEVEL,
)
from qbench.quant.group import GRANULARITIES, Group, group


class QuantizerName(ValueError):
    """No quantizer is spelled like this; the message says what is allowed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class QuantizerSpec:
    """One point of grid x granularity x scale rule x scale storage x rounding x wrappers; `str` spells it.

    Args:
        grid, bits, variant: which levels. `narrow` integers give up the most negative code so that Q(-x) = -Q(x),
            `full` keep it, `middle` keep it and map the largest magnitude between the outermost two, `asym` store a
            zero point. An empty variant is the grid's own.
        granularity: which values share a scale, see `quant.group`.
        rule: how a scale is chosen, see `quant.scale`. Empty for the grid's own: absmax, or rms for `lloyd`.
        scale: how it is stored.
        rounding: `nearest` with ties to even, `rtz` toward zero, `sr:SEED` stochastic.
        smooth: divide each channel by its largest magnitude to this power first.
        hadamard: mix this many neighbours first; 0 stands for the largest power of two that divides the last axis.
        rht: flip signs at random by this seed, then mix the whole last axis.
        static: the scale (and zero point) was chosen from a calibration set and is not stored with each tensor.

    Raises QuantizerName when the parts do not fit together.

    >>> str(QuantizerSpec(grid="int", bits=4, granularity="block:32", hadamard=32))
    'int4/block:32+hadamard:32'
    """

    grid: str = "int"
    bits: int = 4
    variant: str = ""
    granularity: str = "tensor"
    rule: str = ""
    scale: str = "fp32"
    rounding: str = "nearest"
    smooth: float | None = None
    hadamard: int | None = None
    rht: int | None = None
    static: bool = False

    def __post_init__(self) -> None:
        family = FAMILIES.get(self.grid)
        if family is None:
            raise unknown("grid", self.grid, FAMILIES)
        object.__setattr__(self, "variant", self.variant or family.variants[0])
        object.__setattr__(self, "rule", _rule(self.rule or family.rules[0]))
        check("bits of the grid", self.bits, family.bits)
        check("variant of the grid", self.variant, family.variants)
        check("scale rule", self.rule_word, family.rules)
        check("scale storage", self.scale, STORAGES)
        try:
            object.__setattr__(self, "granularity", str(group(self.granularity)))
        except ValueError:
            raise unknown("granularity", self.granularity, GRANULARITIES) from None
        for is_wrong, lesson in _MISFITS:
            if is_wrong(self):
                raise QuantizerName(lesson.format(self=self))
        _check_rounding(self.rounding)

    def __str__(self) -> str:
        family = FAMILIES[self.grid]
        grid = f"{self.grid}{self.bits}" if len(family.bits) > 1 else self.grid
        parts = [grid if self.variant == family.variants[0] else f"{grid}.{self.variant}", self.granularity]
        parts += [self.rule] if self.rule != family.rules[0] else []
        parts += [f"scale:{self.scale}"] if self.scale != "fp32" else []
        name = _SHORT.get("/".join(parts), "/".join(parts))
        name += f"/{self.rounding}" if self.rounding != ROUNDINGS[0] else ""
        name += f"+smooth:{self.smooth:g}" if self.smooth is not None else ""
        name += f"+rht:{self.rht}" if self.rht is not None else ""
        if self.hadamard is not None:
            name += "+hadamard" + (f":{self.hadamard}" if self.hadamard else "")
        return f"{name}+static" if self.static else name

    @property
    def group(self) -> Group:
        """Which values share a scale."""
        return group(self.granularity)

    @property
    def block(self) -> int | None:
        """Values that share a scale on the last axis, where the spec fixes it: `block:32` has 32."""
        return self.group.sizes[0] if self.group.kind == "block" and self.group.axis == -1 else None

    @property
    def rule_word(self) -> str:
        """The scale rule without its argument."""
        return self.rule.partition(":")[0]

    @property
    def rule_argument(self) -> float:
        """The number after the colon, 0 where there is none."""
        return float(self.rule.partition(":")[2] or 0)

    @property
    def seed(self) -> int | None:
        """Of stochastic rounding."""
        return int(self.rounding.removeprefix("sr:")) if self.rounding.startswith("sr:") else None

    @property
    def fitted(self) -> bool:
        """The levels belong to one tensor and are stored with it."""
        return FAMILIES[self.grid].fitted

    @property
    def wrapped(self) -> bool:
        """The tensor is transformed before it is quantized, and back after."""
        return not (self.smooth is None and self.hadamard is None and self.rht is None)

    @property
    def revision(self) -> str:
        """What enters a cell's identity: numbers of another revision are not the same measurement.

        >>> QuantizerSpec().revision
        'int@1'
        """
        rule = RULE_REVISIONS.get(self.rule_word)
        return f"{self.grid}@{FAMILIES[self.grid].revision}" + (f"+{self.rule_word}@{rule}" if rule else "")


def bits_per_value(
    spec: QuantizerSpec, shape: Iterable[int], channel_axis: int = -1, *, calibrated: bool = False
) -> float:
    """Stored bits over values, for a tensor of this shape.

    Counts codes, scales, zero points, the scales of scales, fitted levels (fp32), smoothing factors (fp32, unless
    `calibrated`: then they belong to the quantizer, as its grid does, and as everything static), padding of short
    blocks, and whole bytes.

    >>> bits_per_value(QuantizerSpec(bits=4, granularity="token", scale="bf16"), (8, 64))
    4.25
    """
    sizes = tuple(shape) or (1,)
    if not prod(sizes):
        return 0.0
    groups, codes = spec.group.counts(sizes, channel_axis)
    storage = STORAGES[spec.scale]
    stored = 8 * packed_bytes(codes, spec)
    if spec.rule != "none" and not spec.static:
        stored += groups * storage.bits + -(-groups // 256) * storage.inner + storage.tensor
    if spec.variant == "asym" and not spec.static:
        stored += 8 * packed_bytes(groups, spec)
    if spec.fitted:
        stored += 32 * 2**spec.bits
    if spec.smooth is not None and not (calibrated or spec.static):
        stored += 32 * sizes[-1]
    return stored / prod(sizes)


def packed_bytes(codes: int, spec: QuantizerSpec) -> int:
    """Bytes of this many codes: bits side by side, and five ternary digits to a byte because 3^5 < 256."""
    return -(-codes // 5) if spec.grid == "ternary" else -(-codes * spec.bits // 8)


def check(what: str, found: object, allowed: Iterable[object]) -> None:
    if found not in tuple(allowed):
        raise unknown(what, found, allowed)


def unknown(what: str, found: object, allowed: Iterable[object]) -> QuantizerName:
    names = [str(name) for name in allowed]
    return QuantizerName(f"{what} {str(found)!r}{suggestion(str(found), names)} allowed: {', '.join(names)}")


def _rule(text: str) -> str:
    """The rule with its number in canonical form."""
    word, colon, number = text.partition(":")
    if word not in ARGUMENT:
        return text
    low, high = ARGUMENT[word]
    try:
        value = float(number)
    except ValueError:
        value = low
    if not colon or not low < value <= high:
        raise QuantizerName(f"{word} needs a number above {low:g} and at most {high:g}, as in {word}:{high:g}")
    return f"{word}:{value:.12g}"


def _check_rounding(text: str) -> None:
    word, colon, seed = text.partition(":")
    good = (word == "sr" and seed.isascii() and seed.isdigit() and len(seed) < 10) if colon else word in ROUNDINGS[:2]
    if not good or (colon and str(int(seed)) != seed):
        raise unknown("rounding", text, ROUNDINGS)


_SHORT: Mapping[str, str] = MappingProxyType({spelled: name for name, spelled in ALIASES.items()})


def _is_two_power(size: int) -> bool:
    return size >= 0 and size != 1 and not size & (size - 1)


_EXPONENTS = ", ".join(EXPONENT_RULES)
# What does not fit together, and why.
_MISFITS: tuple[tuple[Callable[[QuantizerSpec], bool], str], ...] = (
    (
        lambda s: (s.rule in EXPONENT_RULES) != (s.scale == "e8m0"),
        f"the rules {_EXPONENTS} and scale:e8m0 go together: an exponent is all that either of them can hold",
    ),
    (
        lambda s: s.variant == "asym" and s.rule != "absmax",
        "asym spans the smallest to the largest value; it has no rule '{self.rule}'",
    ),
    (
        lambda s: s.scale in TWO_LEVEL and (s.rule != "absmax" or s.variant == "asym"),
        "scale:{self.scale} scales the scales by their own range, which is defined for symmetric absmax only",
    ),
    (
        lambda s: s.rule == "none" and (s.granularity != "tensor" or s.scale != "fp32"),
        "levels fitted to a tensor need no scale: write {self.grid}{self.bits}/tensor, or add the rule absmax or rms",
    ),
    (
        lambda s: s.rounding == "rtz" and not FAMILIES[s.grid].zero,
        "{self.grid} has no level 0 to round toward",
    ),
    (
        lambda s: s.smooth is not None and not 0 < s.smooth <= 1,
        "smoothing divides by a power of the largest magnitude above 0 and at most 1, found {self.smooth}",
    ),
    (
        lambda s: s.hadamard is not None and not _is_two_power(s.hadamard),
        "a Hadamard rotation mixes a power of two of neighbours, found {self.hadamard}",
    ),
    (
        lambda s: s.hadamard is not None and s.rht is not None,
        "one rotation is enough: hadamard or rht, not both",
    ),
    (
        lambda s: s.static and s.granularity not in ("tensor", "channel"),
        "a scale fixed before belongs to the whole tensor or to a channel; {self.granularity} has one for every token",
    ),
    (
        lambda s: s.static and (s.fitted or s.rule == "l2" or s.scale in TWO_LEVEL),
        "static fixes a scale for each group: not fitted levels, scales of scales, or a norm that grows with the data",
    ),
)
