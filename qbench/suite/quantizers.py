"""Lists of quantizers in a suite file: names, and grids that stand for many."""

from collections.abc import Callable, Iterator
from functools import partial
from itertools import product
from math import prod
from typing import Any

from qbench.quant.catalog import quantizer_spec
from qbench.quant.spec import FAMILIES, QuantizerName, QuantizerSpec
from qbench.suite.findings import Findings, Path
from qbench.suite.form import Quantizers

_AXES = ("grid", "variant", "bits", "granularity", "rule", "scale")


def count(entries: tuple[Quantizers, ...]) -> int:
    """Quantizers of a list, without making them."""
    return sum(prod(len(getattr(entry, axis)) or 1 for axis in _AXES) for entry in entries)


def names(entries: tuple[Quantizers, ...], findings: Findings, path: Path) -> tuple[str, ...]:
    """Canonical names of the quantizers in the list at `path`; what does not exist, or comes twice, is a mistake."""
    found: dict[str, None] = {}
    for i, entry in enumerate(entries):
        for make in _makers(entry):
            if findings.enough:
                break
            try:
                name = str(make())
            except QuantizerName as error:
                findings.add((*path, i), str(error) + _several(entry))
                continue
            if name in found:
                findings.add((*path, i), f"{name} is given twice")
            found[name] = None
    return tuple(found)


def name(text: str, findings: Findings, path: Path) -> str:
    """The canonical name of the quantizer named at `path`; `text` itself, and a mistake, where there is none."""
    try:
        return str(quantizer_spec(text))
    except QuantizerName as error:
        findings.add(path, str(error))
        return text


def _several(entry: Quantizers) -> str:
    names = [name.strip() for name in (entry.name or "").split(",")]
    return f"; if these are {len(names)} quantizers, write a list: [{', '.join(names)}]" if len(names) > 1 else ""


def _makers(entry: Quantizers) -> Iterator[Callable[[], QuantizerSpec]]:
    if entry.name is not None:
        yield partial(quantizer_spec, entry.name)
        return
    axes = {axis: getattr(entry, axis) for axis in _AXES if getattr(entry, axis)}
    for values in product(*axes.values()):
        yield partial(_point, **dict(zip(axes, values, strict=True)))


def _point(**parts: Any) -> QuantizerSpec:
    family = FAMILIES.get(parts["grid"])
    if family is not None and "bits" not in parts:
        if len(family.bits) > 1:
            raise QuantizerName(f"grid {parts['grid']!r} needs bits; allowed: {', '.join(map(str, family.bits))}")
        parts["bits"] = min(family.bits)
    return QuantizerSpec(**parts)
