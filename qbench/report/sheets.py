"""CSV files that the page of a probe offers: the numbers behind its first table and its bars, as measured."""

from collections.abc import Mapping, Sequence

from qbench.report.formats import Format
from qbench.report.payload import Rows, packed, short
from qbench.report.view import View

COSTS = ("kld", "kld/p99", "loss", "loss_increase", "perplexity_ratio", "error_rate", "top1_changed", "flips")
SENSITIVITY = ("loss_increase", "floor/window", "loss_increase/first_order", "loss_increase/fisher")


def sheets(seen: View, found: Sequence[Format]) -> dict[str, Rows]:
    """By the name that a button asks for."""
    return {"formats": _formats(found), "layers": _layers(seen)}


def _formats(found: Sequence[Format]) -> Rows:
    rows = [
        [one.arm, one.name, one.kind, one.tier, one.bytes or None, one.row.bits, *_numbers(one.values, COSTS)]
        for one in found
    ]
    return packed(["model", "format", "kind", "verdict", "bytes", "bits_per_value", *COSTS], rows)


def _layers(seen: View) -> Rows:
    rows = [
        [row.arm, row.quantizer, row.site, row.scope, *_numbers(row.values, SENSITIVITY)]
        for row in seen.select("sensitivity")
        if row.site
    ]
    return packed(["model", "format", "reads", "modules", *SENSITIVITY], rows)


def _numbers(values: Mapping[str, float], names: Sequence[str]) -> list[float | None]:
    return [short(values[name], 7) if name in values else None for name in names]
