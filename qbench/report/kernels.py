"""Real kernels beside their simulations: bytes and time as measured, and whether the two agree."""

from collections.abc import Callable

from qbench.report.tables import NONE, Table
from qbench.report.verdict import megabytes, nats
from qbench.report.view import Row, View
from qbench.report.words import THIN, number
from qbench.results.run import part


def table(seen: View) -> Table | None:
    """What ran; None where nothing did."""
    rows = seen.select("kernel")
    if not rows:
        return None
    return Table(
        caption="Kernels of torchao and bitsandbytes on this machine; in brackets the unquantized model",
        columns=(
            *(
                "kernel",
                "simulation",
                "loss gap",
                "KLD gap",
                "KLD",
                "loss increase",
                "on disk",
                "in memory",
                "forward pass",
            ),
            *("bits a weight", "layers"),
        ),
        rows=tuple((row.quantizer, *_agrees(row), *_costs(row), *_layers(row)) for row in rows),
        words=(1,),
        marked=tuple(i for i, row in enumerate(rows) if row.values.get("simulation_gap/flagged")),
        note=_timed(rows[0]),
    )


def unsupported(seen: View) -> list[tuple[str, str]]:
    """Kernels that could not run here, or failed: name and reason."""
    found = [(part(cell.spec, "measurement"), cell) for cell in seen.cells if cell.status != "measured"]
    return [
        (str(part(asked, "options").get("name", "")), cell.error)
        for asked, cell in found
        if asked.get("what") == "kernel"
    ]


def gaps(seen: View) -> list[str]:
    """What the kernels' cells warned of: why a gap is there, where that is known."""
    return [
        text
        for cell in seen.cells
        if cell.status == "measured" and part(cell.spec, "measurement").get("what") == "kernel"
        for text in cell.warnings
    ]


def _agrees(row: Row) -> tuple[str, ...]:
    flagged = row.values.get("simulation_gap/flagged")
    word = NONE if flagged is None else f"differs{_share(row)}" if flagged else "agrees"
    return word, *(_number(row, name) for name in ("simulation_gap", "simulation_gap/kld"))


def _share(row: Row) -> str:
    """A gap above the noise may still be nothing beside what the format costs."""
    kld, gap = row.values.get("kld"), row.values.get("simulation_gap/kld")
    return f", by {100 * abs(gap) / kld:.2g}{THIN}% of its KLD" if kld and gap is not None else ""


def _costs(row: Row) -> tuple[str, ...]:
    disk, memory = (_beside(row, name, megabytes) for name in ("bytes/disk", "bytes/memory"))
    return _nats(row, "kld"), _nats(row, "loss_increase"), disk, memory, _beside(row, "latency_ms", _milliseconds)


def _layers(row: Row) -> tuple[str, str]:
    done, left = row.values.get("sites_touched"), row.values.get("layers_left")
    layers = NONE if done is None or left is None else f"{done:.0f} of {done + left:.0f}"
    return _number(row, "bits_per_value/quantized"), layers


def _beside(row: Row, name: str, words: Callable[[float], str]) -> str:
    value, plain = row.values.get(name), row.values.get(f"{name}/unquantized")
    if value is None:
        return NONE
    return words(value) if plain is None else f"{words(value)} ({words(plain)})"


def _milliseconds(value: float) -> str:
    return f"{number(value)}{THIN}ms"


def _number(row: Row, name: str) -> str:
    return number(row.values[name], 2) if name in row.values else NONE


def _nats(row: Row, name: str) -> str:
    return nats(row.values[name]) if name in row.values else NONE


def _timed(row: Row) -> str:
    values = row.values
    if "latency/batch" not in values:
        return ""
    long = f" of {values['latency/length']:.0f} tokens" if "latency/length" in values else ""
    threads = f", {values['latency/threads']:.0f} thread(s)" if "latency/threads" in values else ""
    return f"A forward pass has {values['latency/batch']:.0f} inputs{long}{threads}; medians, taken in turns."
