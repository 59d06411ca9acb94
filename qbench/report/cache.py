"""Keys and values apart: what quantizing either costs, and how large their errors are."""

from collections.abc import Sequence
from statistics import median

from qbench.report.formats import Format
from qbench.report.tables import NONE, Table
from qbench.report.verdict import increase, nats, share
from qbench.report.view import Row, View, place
from qbench.report.words import fixed, listed, number

KEYS, VALUES = "attn.k", "attn.v"
CLEAR_DB = 1.0


def costs(found: Sequence[Format]) -> Table | None:
    """Formats of the cache by what keys and values become; None where there are none."""
    rows = [one for one in found if one.kind == "cache"]
    if not rows:
        return None
    return Table(
        caption="What the cache costs, keys and values apart",
        columns=("format", "keys", "values", "bits a value", "KLD", "loss increase", "same top p", "verdict"),
        rows=tuple((one.name, *_parts(one), *_cost(one)) for one in rows),
        words=(1, 2, 7),
    )


def _parts(one: Format) -> tuple[str, str]:
    both = one.assign.get("activation:kv", "as they are")
    return one.assign.get("activation:keys", both), one.assign.get("activation:values", both)


def _cost(one: Format) -> tuple[str, ...]:
    kld = nats(one.values["kld"]) if "kld" in one.values else NONE
    same = share(1 - one.values["top1_changed"]) if "top1_changed" in one.values else NONE
    bits = NONE if one.row.bits is None else number(one.row.bits)
    return bits, kld, increase(one), same, one.tier


def errors(seen: View) -> Table | None:
    """Signal over error of keys and of values under each quantizer: the median over layers, and the worst layer."""
    rows = [row for row in seen.select("error", kind="activation") if place(row.site)[1] in (KEYS, VALUES)]
    names = dict.fromkeys(row.quantizer for row in rows)
    if not names:
        return None
    return Table(
        caption="Signal over error of keys and values, dB: more is better",
        columns=("quantizer", "keys, median", "worst layer", "values, median", "worst layer"),
        rows=tuple((name, *(cell for site in (KEYS, VALUES) for cell in _site(rows, name, site))) for name in names),
    )


def _site(rows: Sequence[Row], quantizer: str, site: str) -> tuple[str, str]:
    found = [row for row in rows if row.quantizer == quantizer and place(row.site)[1] == site]
    if not found:
        return NONE, NONE
    worst = max(found, key=lambda row: row.values["error_db"])
    layer = place(worst.site)[0]
    return (
        fixed(-median(row.values["error_db"] for row in found), 1),
        f"{fixed(-worst.values['error_db'], 1)} (layer {layer})",
    )


def summary(seen: View) -> str:
    """Which of the two is clearly harder, and under which of the quantizers tried."""
    rows = [row for row in seen.select("error", kind="activation") if place(row.site)[1] in (KEYS, VALUES)]
    harder: dict[str, list[str]] = {KEYS: [], VALUES: []}
    for name in dict.fromkeys(row.quantizer for row in rows):
        keys, values = (_median(rows, name, site) for site in (KEYS, VALUES))
        if keys is not None and values is not None and abs(keys - values) >= CLEAR_DB:
            harder[KEYS if keys > values else VALUES].append(name)
    if not rows:
        return ""
    words = {KEYS: "Keys are harder than values under", VALUES: "Values are harder than keys under"}
    said = [f"{words[site]} {listed(names)}." for site, names in harder.items() if names]
    return " ".join(said) or f"Keys and values are equally hard: within {CLEAR_DB:g} dB under every quantizer."


def _median(rows: Sequence[Row], quantizer: str, site: str) -> float | None:
    """Of error_db over layers; None where there is none."""
    found = [row.values["error_db"] for row in rows if row.quantizer == quantizer and place(row.site)[1] == site]
    return median(found) if found else None
