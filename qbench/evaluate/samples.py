"""The open format for numbers from any runtime: a line about the run, then a line for each window or item."""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import isfinite
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from qbench.evaluate.documents import error_rate
from qbench.evaluate.imported import PLAIN, BadSamples, Imported, hashed, public
from qbench.metrics.catalog import METRICS
from qbench.names import suggestion
from qbench.results import digest
from qbench.results.record import Record
from qbench.stats.bootstrap import weighted_mean_interval

SCHEMA = 1
# What is a mean over windows or items; perplexities and quantiles are not, and follow from these.
OF_WINDOWS = ("loss", "loss_increase", "error_rate", "bits_per_byte", "kld", "kld/reverse", "top1_changed", "flips")
OF_ITEMS = tuple(name for name in METRICS if name.startswith("task_error/"))
LONGEST = 1 << 20  # bytes of a line
SHOWN = 20  # mistakes in an error
MOST = 1e30  # a value or a weight, so that no sum of them overflows
Texts = Mapping[str, Any]
_HEADER: Mapping[str, tuple[type, ...]] = {
    "line": (str,),
    "schema": (int,),
    "model": (dict,),
    "data": (dict,),
    "runtime": (str,),
    "task": (str,),
    "device": (str,),
    "bits_per_value": (int, float),
}
_REQUIRED = ("schema", "model", "data", "runtime")
_NAMED: Mapping[str, tuple[str, ...]] = {
    "model": ("name", "digest", "tokenizer", "quantization"),
    "data": ("name", "digest"),
}
_ITEM = ("line", "id", "values", "weight", "slice")


@dataclass(slots=True)
class Items:
    """What the lines said so far, and what was wrong with them."""

    ids: dict[str, int] = field(default_factory=dict[str, int])
    values: list[Mapping[str, float]] = field(default_factory=list[Mapping[str, float]])
    weights: list[float] = field(default_factory=list[float])
    slices: list[str] = field(default_factory=list[str])
    mistakes: list[str] = field(default_factory=list[str])


def read(path: str | Path) -> Imported:
    """The file as one cell. Raises BadSamples with the line of every mistake, OSError where it cannot be read."""
    path, header, found = Path(path), dict[str, Any](), Items()
    for number, line in _lines(path):
        wrong = _header(line, header) if number == 1 else _item(line, number, found, bool(header.get("task")))
        found.mistakes += [f"{path.name}:{number}: {one}" for one in wrong]
        if len(found.mistakes) >= SHOWN or (number == 1 and wrong):
            break
    if not found.mistakes and not found.values:
        found.mistakes.append(f"{path.name}: no items; a run without evidence is no run")
    if found.mistakes:
        raise BadSamples("\n".join(found.mistakes[:SHOWN]))
    return _cell(header, found)


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    with path.open("rb") as file:
        number = 0
        while line := file.readline(LONGEST + 1):
            number += 1
            if line.strip():
                yield number, line
            if len(line) > LONGEST:
                return  # what follows is the rest of this line


def _object(line: bytes) -> dict[str, Any] | str:
    if len(line) > LONGEST:
        return f"longer than {LONGEST} bytes"
    try:
        raw = json.loads(line)
    except (ValueError, RecursionError) as error:
        return f"not a line of JSON ({error})"
    return cast(dict[str, Any], raw) if isinstance(raw, dict) else "a line is a JSON object"


def _header(line: bytes, header: dict[str, Any]) -> list[str]:
    raw = _object(line)
    if isinstance(raw, str):
        return [raw]
    if raw.get("line") != "run":
        return ['the first line is about the run: {"line": "run", "schema": 1, "model": ..., "data": ...}']
    if raw.get("schema") != SCHEMA:
        return [f"schema {raw.get('schema')!r}; this qbench reads schema {SCHEMA}"]
    wrong = [
        f"no field {name!r}{suggestion(name, _HEADER)} known: {', '.join(_HEADER)}"
        for name in raw
        if name not in _HEADER
    ]
    wrong += [f"{name} is missing" for name in _REQUIRED if name not in raw]
    for name, kinds in _HEADER.items():
        if name in raw and (not isinstance(raw[name], kinds) or isinstance(raw[name], bool)):
            wrong.append(f"{name} cannot be {str(raw[name])[:80]!r}")
    bits = raw.get("bits_per_value", 0)
    if isinstance(bits, int | float) and not (isinstance(bits, bool) or (_number(bits) and bits >= 0)):
        wrong.append(f"bits_per_value is a number from 0, found {str(bits)[:80]}")
    for name, known in _NAMED.items():
        wrong += _names(name, raw.get(name), known)
    header.update(raw)
    return wrong


def _names(name: str, part: Any, known: Sequence[str]) -> list[str]:
    if not isinstance(part, dict):
        return []
    fields = cast(dict[str, Any], part)
    wrong = [
        f"{name} has no {one!r}{suggestion(one, known)} known: {', '.join(known)}" for one in fields if one not in known
    ]
    wrong += [
        f"{name}.{one} is text, found {str(value)[:80]!r}"
        for one, value in fields.items()
        if not isinstance(value, str)
    ]
    return wrong if fields.get("name") else [*wrong, f"{name}.name is missing"]


def _item(line: bytes, number: int, found: Items, is_task: bool) -> list[str]:
    raw = _object(line)
    if isinstance(raw, str):
        return [raw]
    wrong = [
        f"no field {name!r}{suggestion(name, _ITEM)} known: {', '.join(_ITEM)}" for name in raw if name not in _ITEM
    ]
    name, values, weight = raw.get("id"), raw.get("values"), raw.get("weight", 1)
    if raw.get("line") != "item" or not isinstance(name, str) or not isinstance(values, dict) or not values:
        return [*wrong, 'an item is {"line": "item", "id": "...", "values": {"loss": 2.31}}']
    if name in found.ids:
        wrong.append(f"id {name[:80]!r} stands in line {found.ids[name]} already")
    if not _number(weight) or weight <= 0:
        wrong.append(f"a weight is above 0, found {str(weight)[:80]}")
    wrong += _values(cast(dict[str, Any], values), found, OF_ITEMS if is_task else OF_WINDOWS)
    if not isinstance(raw.get("slice", ""), str):
        wrong.append("slice is text")
    if not wrong:
        found.ids[name] = number
        found.values.append(cast(dict[str, float], values))
        found.weights.append(float(weight))
        found.slices.append(str(raw.get("slice", "")))
    return wrong


def _values(values: Mapping[str, Any], found: Items, known: Sequence[str]) -> list[str]:
    wrong = [
        f"no metric {one!r}{suggestion(one, known)} known: {', '.join(known)}" for one in values if one not in known
    ]
    wrong += [
        f"{one} is a finite number, found {str(value)[:80]}" for one, value in values.items() if not _number(value)
    ]
    wrong += [
        f"{one} is a share from 0 to 1, found {value}"
        for one, value in values.items()
        if _number(value) and one in METRICS and METRICS[one].unit == "1" and not 0 <= value <= 1
    ]
    if found.values and values.keys() != found.values[0].keys():
        wrong.append(f"every item has the same metrics: {', '.join(found.values[0])}")
    return wrong


def _number(value: Any) -> bool:
    """Finite, and no integer that is larger than any float."""
    return isinstance(value, int | float) and not isinstance(value, bool) and -MOST <= value <= MOST


def _cell(header: Mapping[str, Any], items: Items) -> Imported:
    found, task = _ordered(items), header.get("task", "")
    weights = np.array(found.weights)
    each = {name: np.array([float(one[name]) for one in found.values]) for name in found.values[0]}
    if right := error_rate(each):
        each["error_rate"] = each[right]
    vectors: dict[str, NDArray[Any]] = {**each, "doc_hash": hashed(list(found.ids))}
    if (weights != 1).any():
        vectors |= {f"{name}/weight": weights for name in each}
    if all(found.slices):
        names = list(dict.fromkeys(found.slices))
        vectors["slice"] = np.array([names.index(name) for name in found.slices])
    digested = digest.of(sorted(found.ids))
    windows: dict[str, Any] = {"what": "loss", "windows": len(weights), "split": "all", "treatment": dict(PLAIN)}
    return Imported(
        model={name: public(value) for name, value in header["model"].items()},
        data={"name": public(header["data"]["name"]), "digest": header["data"].get("digest") or digested},
        measurement={"what": "task", "options": {"name": task}} if task else windows,
        runtime=header["runtime"],
        records=[replace(one, site=task) for one in _records(each, found, header.get("bits_per_value"))],
        vectors={f"{task}/{name}": vector for name, vector in vectors.items()} if task else vectors,
        device=header.get("device", ""),
    )


def _ordered(found: Items) -> Items:
    """By id, numbers as numbers: every run has one order, in which neighbours are as good as always neighbours."""
    names = list(found.ids)
    order = sorted(range(len(names)), key=lambda i: _natural(names[i]))
    return Items(
        ids={names[i]: found.ids[names[i]] for i in order},
        values=[found.values[i] for i in order],
        weights=[found.weights[i] for i in order],
        slices=[found.slices[i] for i in order],
    )


def _natural(name: str) -> tuple[tuple[int, str, str], ...]:
    """
    >>> sorted(["w10", "w9", "w07", "w9a"], key=_natural)
    ['w07', 'w9', 'w9a', 'w10']
    """
    parts = [(part, part.lstrip("0") if i % 2 else part) for i, part in enumerate(re.split("([0-9]+)", name))]
    return tuple((len(short) if i % 2 else 0, short, part) for i, (part, short) in enumerate(parts))


def _records(each: Mapping[str, NDArray[np.float64]], found: Items, bits: float | None) -> list[Record]:
    weights, labels = np.array(found.weights), np.array(found.slices, dtype=object)
    slices = [name for name in dict.fromkeys(found.slices) if name]
    of_slices = [
        {name: float(np.average(v[labels == one], weights=weights[labels == one])) for name, v in each.items()}
        for one in slices
    ]
    values, intervals = dict[str, float](), dict[str, tuple[float, float]]()
    for name, vector in each.items():
        values[name], *ends = weighted_mean_interval(vector, weights, seed=0)
        intervals[name] = (ends[0], ends[1])
        if len(slices) > 1 and f"{name}/worst_slice" in METRICS:
            values[f"{name}/worst_slice"] = max(one[name] for one in of_slices)
    if "loss" in each and len(weights) > 1:
        values["floor/window"] = float(each["loss"].std(ddof=1) / len(weights) ** 0.5)
    finite = {name: ends for name, ends in intervals.items() if all(map(isfinite, ends))}
    whole = Record(cell="", values=values, intervals=finite, n=len(weights), bits_per_value=bits)
    return [whole, *(Record(cell="", values=part, slice=name) for name, part in zip(slices, of_slices, strict=True))]
