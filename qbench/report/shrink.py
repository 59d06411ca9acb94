"""Bytes that a format leaves as they are, and why: from the records of what a model's files hold."""

from collections.abc import Mapping, Sequence

from qbench.models.bytes import Bytes, Part, Row, Stored, table
from qbench.quant.catalog import quantizer_spec
from qbench.report.formats import Format, arms, base_of
from qbench.report.tables import NONE, Table
from qbench.report.verdict import MEGA, megabytes, share
from qbench.report.view import Arm, View
from qbench.report.view import Row as Seen
from qbench.report.words import number

TREATED = ("linear", "experts")
BLOCKS, ENDS = "blocks.", ("embed", "logits")
TOLERANCE = 1e-3  # bits of a value are stored as a mean over matrices
SCOPE = "weight:weights"


def bytes_after(seen: View, one: Format) -> Bytes | None:
    """Where the bytes are before and after a format of weights; None where the records do not add up to its files."""
    rows = [row for row in seen.select("model", arm=one.arm) if row.site]
    if not rows or one.row.bits is None or set(one.assign) != {SCOPE}:
        return None
    stored = Stored(one.row.bits, quantizer_spec(one.assign[SCOPE]).bits)
    treated = {_site(row.site): stored for row in rows if row.scope in TREATED and row.site.startswith(BLOCKS)}
    found = table(map(_part, rows), treated, tied=any(row.values.get("tied") for row in rows))
    return found if abs(found.after - one.bytes) <= TOLERANCE * one.bytes else None


def _part(row: Seen) -> Part:
    """All tensors of one kind as one; only what a treatment can name has a site."""
    parameters, size = int(row.values["parameters"]), int(row.values["bytes/stored"])
    if row.site.startswith(BLOCKS) or row.site in ENDS:
        return Part(row.site, (1, parameters), size, _site(row.site))
    return Part(row.site, (parameters,), size)


def _site(name: str) -> str:
    """One matrix stands for those of all blocks: a star would mean experts."""
    return name.replace("*", "0")


def of_bytes(found: Bytes, name: str) -> Table:
    """All that did not shrink, most bytes first."""
    return Table(
        caption=f"With {name} weights: what stays, of {megabytes(found.after)}",
        columns=("tensors", "why", "MB", "of the files", "bits a parameter"),
        rows=tuple(_row(row, found) for row in found.unshrunk),
        words=(1,),
        note=f"The whole model then has {number(found.bits_per_parameter)} bits a parameter.",
    )


def _row(row: Row, found: Bytes) -> tuple[str, ...]:
    bits = number(row.bits_after) if row.parameters else NONE
    return row.what, row.why, number(row.after / MEGA), share(row.after / found.after), bits


def stored_tables(seen: View) -> list[Table]:
    """Where the bytes of every model's files are now, and in what formats those of one quantized elsewhere.

    A base stands beside its candidate and not alone.
    """
    bases = {base.name for arm in arms(seen) if (base := base_of(seen, arm))}
    shown = [arm for arm in arms(seen) if arm.name not in bases]
    tables = [made(seen, arm) for arm in shown for made in (_packed, _as_stored)]
    return [table for table in tables if table]


def _packed(seen: View, arm: Arm) -> Table | None:
    rows = seen.select("model", arm=arm.name, scope="packed")
    if not rows:
        return None
    return Table(
        caption=f"What {arm.model.get('name', arm.name)} was quantized to, by {arm.model.get('quantized')}",
        columns=("format", "matrices", "parameters", "MB", "bits a parameter, scales included"),
        rows=tuple(
            (
                row.quantizer,
                str(row.n),
                number(row.values["parameters"]),
                number(row.values["bytes/stored"] / MEGA),
                NONE if row.bits is None else number(row.bits),
            )
            for row in _largest(rows)
        ),
        words=(0,),
    )


def _as_stored(seen: View, arm: Arm) -> Table | None:
    rows = [row for row in seen.select("model", arm=arm.name) if row.site]
    if not rows:
        return None
    base = base_of(seen, arm)
    before = {row.site: row.values["bytes/stored"] for row in seen.select("model", arm=base.name)} if base else {}
    whole = sum(row.values["bytes/stored"] for row in rows)
    same = [i for i, row in enumerate(_largest(rows)) if before.get(row.site) == row.values["bytes/stored"]]
    return Table(
        caption=f"Where the {megabytes(whole)} of {arm.model.get('name', arm.name)} are",
        columns=(
            "tensors",
            "what they are",
            "MB",
            *(["MB of its base"] if base else []),
            "of the files",
            "bits a parameter",
        ),
        rows=tuple((row.site, row.scope, *_stored(row, whole, before)) for row in _largest(rows)),
        words=(1,),
        marked=tuple(same),
        note="Marked: as large as in its base." if same else "",
    )


def _largest(rows: Sequence[Seen]) -> list[Seen]:
    return sorted(rows, key=lambda row: -row.values["bytes/stored"])


def _stored(row: Seen, whole: float, before: Mapping[str, float]) -> tuple[str, ...]:
    size = row.values["bytes/stored"]
    base = [number(before[row.site] / MEGA) if row.site in before else NONE] if before else []
    return number(size / MEGA), *base, share(size / whole), number(row.values["bits_per_parameter"])
