"""Bytes that a format leaves as they are, and why: from the records of what a model's files hold."""

from qbench.models.bytes import Bytes, Part, Row, Stored, table
from qbench.quant.catalog import quantizer_spec
from qbench.report.formats import Format
from qbench.report.tables import Table
from qbench.report.verdict import MEGA, megabytes, share
from qbench.report.view import View
from qbench.report.words import number

TREATED = ("linear", "experts")
MATRICES = (*TREATED, "head", "embedding")
SCOPE = "weight:weights"


def bytes_after(seen: View, one: Format) -> Bytes | None:
    """Where the bytes are before and after a format of weights; None where the files were not looked at."""
    rows = [row for row in seen.select("model", arm=one.arm) if row.site]
    if not rows or one.row.bits is None or set(one.assign) != {SCOPE}:
        return None
    stored = Stored(one.row.bits, quantizer_spec(one.assign[SCOPE]).bits)
    parts = {_site(row.site): row for row in rows}
    model = [
        Part(row.site, (1, int(row.values["parameters"])), int(row.values["bytes/stored"]), name)
        if row.scope in MATRICES
        else Part(row.site, (int(row.values["parameters"]),), int(row.values["bytes/stored"]))
        for name, row in parts.items()
    ]
    treated = {name: stored for name, row in parts.items() if row.scope in TREATED}
    return table(model, treated, tied=any(row.values.get("tied") for row in rows))


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
    bits = number(row.bits_after) if row.parameters else "–"
    return row.what, row.why, number(row.after / MEGA), share(row.after / found.after), bits


def as_stored(seen: View, arm: str) -> Table | None:
    """Where the bytes of the files are now; None where they were not looked at."""
    rows = [row for row in seen.select("model", arm=arm) if row.site]
    if not rows:
        return None
    whole = sum(row.values["bytes/stored"] for row in rows)
    return Table(
        caption=f"Where the bytes of the files are now, {megabytes(whole)}",
        columns=("tensors", "what they are", "MB", "of the files", "bits a parameter"),
        rows=tuple(
            (
                row.site,
                row.scope,
                number(row.values["bytes/stored"] / MEGA),
                share(row.values["bytes/stored"] / whole),
                number(row.values["bits_per_parameter"]),
            )
            for row in sorted(rows, key=lambda row: -row.values["bytes/stored"])
        ),
        words=(1,),
    )
