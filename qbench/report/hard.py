"""Which tensors are hard to quantize: maps by layer and site, and the worst ones with what makes them so."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, median

from qbench.report.tables import NONE, Table
from qbench.report.view import Row, View, place
from qbench.report.words import fixed, listed, number

WORST = 10
SHADE_DB, SHADES = 3.0, 7  # half a bit each
# In the order of the forward pass; what is not here comes after it.
ORDER = (
    *("attn.in", "attn.q", "attn.k", "attn.v", "attn.context", "attn.out", "mid"),
    *("mlp.in", "mlp.router", "mlp.pre", "mlp.up", "mlp.hidden", "mlp.out", "out"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Hard:
    """One kind of tensor under one quantizer: the map, the worst, and what the map says in a sentence."""

    name: str
    map: Table
    worst: Table
    summary: str


def hard(seen: View, kind: str, first: str = "") -> list[Hard]:
    """For every model and quantizer that tensors of this kind were tried with, `first` of them first."""
    found: dict[str, list[Row]] = {}
    arms = {row.arm for row in seen.select("error", kind=kind)}
    for row in seen.select("error", kind=kind):
        if "error_db" in row.values:
            found.setdefault(f"{row.arm}: {row.quantizer}" if len(arms) > 1 else row.quantizer, []).append(row)
    names = sorted(found, key=lambda name: name != first)
    shapes = {(row.arm, row.site): row for row in seen.select("shape", kind=kind)}
    return [_hard(name, found[name], shapes) for name in names]


def _hard(name: str, rows: Sequence[Row], shapes: Mapping[tuple[str, str], Row]) -> Hard:
    worst = sorted(rows, key=lambda row: -row.values["error_db"])[:WORST]
    return Hard(name=name, map=_map(name, rows), worst=_worst(name, worst, shapes), summary=_summary(rows, worst))


def site_class(site: str) -> str:
    """
    >>> site_class("blocks.3.mlp.experts.17.up"), site_class("logits")
    ('mlp.experts.*.up', 'logits')
    """
    return re.sub(r"(?<=\.)\d+(?=\.)", "*", place(site)[1])


def _map(name: str, rows: Sequence[Row]) -> Table:
    """Layers down, sites across."""
    cells = _cells(rows)
    columns = sorted(dict.fromkeys(site for _, site in cells), key=_order)
    layers = sorted({layer for layer, _ in cells})
    grid = [[cells.get((layer, site)) for site in columns] for layer in layers]
    apart = [f"{row.site} {_sqnr(row)}" for row in rows if place(row.site)[0] is None]
    return Table(
        caption=f"{name}: SQNR in dB, more is better",
        columns=("layer", *columns),
        rows=tuple((str(layer), *map(_sqnr, line)) for layer, line in zip(layers, grid, strict=True)),
        shades=tuple(tuple(map(shade, line)) for line in grid),
        note=f"Outside the blocks: {listed(apart)}." if apart else "",
    )


def _cells(rows: Sequence[Row]) -> dict[tuple[int, str], Row]:
    """By layer and class of sites; of several experts the worst."""
    found: dict[tuple[int, str], Row] = {}
    for row in sorted(rows, key=lambda row: row.values["error_db"]):
        layer = place(row.site)[0]
        if layer is not None:
            found[layer, site_class(row.site)] = row
    return found


def _sqnr(row: Row | None) -> str:
    return NONE if row is None else fixed(-row.values["error_db"], 1)


def _order(site: str) -> tuple[int, str]:
    return (ORDER.index(site) if site in ORDER else len(ORDER), site)


def shade(row: Row | None) -> int | None:
    """How many half bits the tensor's shape costs; None where that is not known."""
    loss = None if row is None else row.values.get("shape_loss_db")
    return None if loss is None else min(max(round(loss / SHADE_DB), 0), SHADES)


def _worst(name: str, rows: Sequence[Row], shapes: Mapping[tuple[str, str], Row]) -> Table:
    return Table(
        caption=f"The {len(rows)} hardest under {name}",
        columns=("tensor", "SQNR, dB", "lost to shape, dB", "kurtosis", "crest, dB"),
        rows=tuple(
            (
                row.site,
                _sqnr(row),
                _value(row, "shape_loss_db"),
                _value(shapes.get((row.arm, row.site)), "excess_kurtosis/tensor"),
                _value(shapes.get((row.arm, row.site)), "crest_db"),
            )
            for row in rows
        ),
        note="SQNR is signal over error; kurtosis is 0 for Gaussian data; crest is the largest value over the rms.",
    )


def _value(row: Row | None, name: str) -> str:
    return NONE if row is None or name not in row.values else number(row.values[name])


def _summary(rows: Sequence[Row], worst: Sequence[Row]) -> str:
    best = max(-row.values["error_db"] for row in rows)
    lost = max((row.values.get("shape_loss_db", 0.0) for row in rows), default=0.0)
    shaped = (
        f" The shape of a tensor costs at most {number(lost, 2)} dB ({number(lost / 6.02, 2)} bits)."
        if lost > 0
        else ""
    )
    return (
        f"Hardest: {worst[0].site}, {fixed(-worst[0].values['error_db'], 1)} dB; "
        f"the easiest has {fixed(best, 1)} dB.{shaped}"
    )


def by_format(seen: View, kind: str) -> Table | None:
    """What each quantizer does to all tensors of a kind together; None where there are none."""
    found: dict[tuple[str, str], list[Row]] = {}
    for row in seen.select("error", kind=kind):
        if "error_db" in row.values:
            found.setdefault((row.arm, row.quantizer), []).append(row)
    if not found:
        return None
    several = len({arm for arm, _ in found}) > 1
    return Table(
        caption=f"What each format does to all {len(next(iter(found.values())))} tensors, most bits first",
        columns=("format", "bits a value", "signal over error, dB", "the worst", "where"),
        rows=tuple(
            (f"{arm}: {name}" if several else name, *_of_format(rows))
            for (arm, name), rows in sorted(found.items(), key=lambda item: -_bits(item[1]))
        ),
        words=(4,),
        note="The middle of all tensors and the worst of them; 6 dB are one bit.",
    )


def _bits(rows: Sequence[Row]) -> float:
    return fmean(row.bits or 0.0 for row in rows)


def _of_format(rows: Sequence[Row]) -> tuple[str, ...]:
    worst = max(rows, key=lambda row: row.values["error_db"])
    middle = fixed(-median(row.values["error_db"] for row in rows), 1)
    return number(_bits(rows)), middle, fixed(-worst.values["error_db"], 1), worst.site


def headline(seen: View) -> str:
    """Of a run that looked at weights alone: which are hard, and where."""
    rows = [row for row in seen.select("error", kind="weight") if "shape_loss_db" in row.values]
    if not rows:
        return "No weight was quantized."
    worst = max(rows, key=lambda row: row.values["shape_loss_db"])
    lost = worst.values["shape_loss_db"]
    if not any(shade(row) for row in rows):
        return (
            f"No weight is hard: in no format does the shape of a tensor cost a quarter of a bit. Most: {worst.site} "
            f"under {worst.quantizer}, {number(lost, 2)} dB."
        )
    first = f"The hardest weight is {worst.site}: under {worst.quantizer} its shape costs {number(lost, 2)} dB"
    often = sum(shade(row) not in (None, 0) for row in rows)
    rest = (
        f"{often} of {len(rows)} pairs of a tensor and a format lose a quarter of a bit or more to the tensor's shape"
    )
    return f"{first}, {number(lost / 6.02, 2)} bits. {rest[0].upper()}{rest[1:]}."
