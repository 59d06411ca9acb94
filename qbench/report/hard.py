"""Which tensors are hard to quantize: maps by layer and site, and the worst ones with what makes them so."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from qbench.report.tables import NONE, Table
from qbench.report.view import Row, View, place
from qbench.report.words import fixed, number

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
    """Layers down, sites across; of several experts the worst."""
    cells: dict[tuple[int | None, str], Row] = {}
    for row in rows:
        key = place(row.site)[0], site_class(row.site)
        if key not in cells or row.values["error_db"] > cells[key].values["error_db"]:
            cells[key] = row
    columns = sorted(dict.fromkeys(site for _, site in cells), key=_order)
    layers = sorted({layer for layer, _ in cells}, key=lambda layer: (layer is None, layer or 0))
    grid = [[cells.get((layer, site)) for site in columns] for layer in layers]
    return Table(
        caption=f"{name}: signal over error in dB, more is better",
        columns=("layer", *columns),
        rows=tuple(
            ("–" if layer is None else str(layer), *(NONE if row is None else fixed(-row.values["error_db"], 1) for row in line))
            for layer, line in zip(layers, grid, strict=True)
        ),
        shades=tuple(tuple(shade(row) for row in line) for line in grid),
    )


def _order(site: str) -> tuple[int, str]:
    return (ORDER.index(site) if site in ORDER else len(ORDER), site)


def shade(row: Row | None) -> int | None:
    """How many half bits the tensor's shape costs; None where that is not known."""
    loss = None if row is None else row.values.get("shape_loss_db")
    return None if loss is None else min(max(round(loss / SHADE_DB), 0), SHADES)


def _worst(name: str, rows: Sequence[Row], shapes: Mapping[tuple[str, str], Row]) -> Table:
    return Table(
        caption=f"The {len(rows)} hardest under {name}",
        columns=("tensor", "signal over error, dB", "lost to its shape, dB", "excess kurtosis", "crest, dB"),
        rows=tuple(
            (
                row.site,
                fixed(-row.values["error_db"], 1),
                _value(row, "shape_loss_db"),
                _value(shapes.get((row.arm, row.site)), "excess_kurtosis/tensor"),
                _value(shapes.get((row.arm, row.site)), "crest_db"),
            )
            for row in rows
        ),
    )


def _value(row: Row | None, name: str) -> str:
    return NONE if row is None or name not in row.values else number(row.values[name])


def _summary(rows: Sequence[Row], worst: Sequence[Row]) -> str:
    best = max(-row.values["error_db"] for row in rows)
    lost = max((row.values.get("shape_loss_db", 0.0) for row in rows), default=0.0)
    shaped = f" The shape of a tensor costs at most {number(lost, 2)} dB ({number(lost / 6.02, 2)} bits)." if lost > 0 else ""
    return (
        f"Hardest: {worst[0].site}, {fixed(-worst[0].values['error_db'], 1)} dB; "
        f"the easiest has {fixed(best, 1)} dB.{shaped}"
    )
