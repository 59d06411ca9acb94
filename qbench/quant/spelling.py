"""The spelled names of quantizers, read back into specs."""

import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from qbench.names import suggestion
from qbench.quant.family import ALIASES, FAMILIES, MEANT, ROUNDINGS
from qbench.quant.group import GRANULARITIES
from qbench.quant.spec import QuantizerName, QuantizerSpec, check, unknown

_SIZED = tuple(name for name, family in FAMILIES.items() if len(family.bits) > 1)
_PLAIN = tuple(name for name, family in FAMILIES.items() if len(family.bits) == 1)
# Bits and MX modes folded, because the full list fills a screen.
_FAMILIES = (
    *(f"{name}{FAMILIES[name].bits[0]}..{FAMILIES[name].bits[-1]}" for name in _SIZED),
    *_PLAIN,
    *(alias for alias in ALIASES if "." not in alias),
)
_VARIANT = r"(?:\.(?P<variant>[a-z]+))?"
_GRID = re.compile(
    rf"(?:(?P<sized>{'|'.join(_SIZED)})(?P<bits>[1-9][0-9]{{0,2}})|(?P<plain>{'|'.join(_PLAIN)})){_VARIANT}"
)
_N = "[1-9][0-9]{0,8}"
_WRAPPERS: Mapping[str, tuple[re.Pattern[str], type[int] | type[float] | type[bool]]] = MappingProxyType(
    {
        "smooth": (re.compile(r"smooth:([01]?\.?[0-9]{1,6})"), float),
        "hadamard": (re.compile(rf"hadamard(?::({_N}))?"), int),
        "rht": (re.compile(rf"rht:(0|{_N})"), int),
        "static": (re.compile("(static)"), bool),
    }
)
_SPELLINGS = ("smooth:POWER", "hadamard", "hadamard:N", "rht:SEED", "static")


def parse(name: str) -> QuantizerSpec:
    """The spec that `name` spells; printing it again gives the canonical name. Raises QuantizerName.

    >>> parse("mxfp4") == QuantizerSpec(grid="e2m1", granularity="block:32", rule="pow2", scale="e8m0")
    True
    >>> parse("binary/token/min")
    Traceback (most recent call last):
    qbench.quant.spec.QuantizerName: 'binary/token/min': scale rule 'min'; allowed: meanabs
    """
    try:
        return _read(name)
    except QuantizerName as error:
        raise QuantizerName(f"{name!r}: {error}") from None


def _read(name: str) -> QuantizerSpec:
    base, *wrappers = name.split("+")
    grid, *rest = _expand(base)
    parts = _read_grid(grid)
    if not rest:
        raise QuantizerName(f"no granularity; write {grid}/G with G one of {', '.join(GRANULARITIES)}")
    parts |= {"granularity": rest[0]} | _read_options(rest[1:])
    family = FAMILIES[parts["grid"]]
    if "rule" in parts:
        check("scale rule", parts["rule"].partition(":")[0], family.rules)
    return QuantizerSpec(**parts, **_read_wrappers(wrappers))


def _expand(base: str) -> list[str]:
    """The parts of a name, an alias replaced by what it stands for."""
    first, *rest = base.split("/")
    if first not in ALIASES:
        return [first, *rest]
    if any(_kind(part) != "rounding" for part in rest):
        raise QuantizerName(
            f"{first} is complete and takes only a rounding and wrappers; its parts are {ALIASES[first]}"
        )
    return [*ALIASES[first].split("/"), *rest]


def _kind(part: str) -> str:
    if part.startswith("scale:"):
        return "scale"
    return "rounding" if part in ROUNDINGS or part.startswith("sr:") else "rule"


def _read_options(options: list[str]) -> dict[str, str]:
    found: dict[str, str] = {}
    order = ("rule", "scale", "rounding")
    for part in options:
        kind = _kind(part)
        if any(later in found for later in order[order.index(kind) :]):
            raise QuantizerName(f"{part!r} is out of place; the order is grid/granularity/rule/scale:storage/rounding")
        found[kind] = part.removeprefix("scale:")
    return found


def _read_grid(text: str) -> dict[str, Any]:
    found = _GRID.fullmatch(text)
    if found is None:
        if text in MEANT:
            raise QuantizerName(f"grid {text!r} has several meanings or another name; write {MEANT[text]}")
        raise QuantizerName(f"grid {text!r}{suggestion(text, _grid_names())} allowed: {', '.join(_FAMILIES)}")
    grid = found["sized"] or found["plain"]
    bits = int(found["bits"]) if found["bits"] else FAMILIES[grid].bits[0]
    return {"grid": grid, "bits": bits, "variant": found["variant"] or ""}


def _read_wrappers(texts: list[str]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for text in texts:
        word = text.partition(":")[0]
        pattern, kind = _WRAPPERS.get(word, (None, int))
        match = pattern.fullmatch(text) if pattern else None
        if match is None:
            raise unknown("wrapper", text, _SPELLINGS)
        if word in found:
            raise QuantizerName(f"the wrapper {word} is given twice")
        if "static" in found:
            raise QuantizerName("static comes last: the scale is that of whatever was done before")
        if word == "smooth" and found:
            raise QuantizerName("smoothing comes before a rotation")
        found[word] = kind(match[1] or 0)
    return found


def _grid_names() -> list[str]:
    return [*(f"{name}{bits}" for name in _SIZED for bits in FAMILIES[name].bits), *_PLAIN, *ALIASES]
