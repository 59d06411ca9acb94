"""The table of formats: what each row of the catalog costs, and what it loses on data of known density."""

from collections.abc import Mapping
from dataclasses import dataclass
from math import log10

from qbench.quant.catalog import QUANTIZERS, Row
from qbench.quant.expect import expected_loss
from qbench.quant.simulate import simulated_error_db
from qbench.quant.spec import bits_per_value
from qbench.stats.density import LAPLACE, NORMAL, Density
from qbench.stats.gaussian import distortion, lloyd_max

SHAPE = (1024, 1024)


@dataclass(frozen=True, slots=True)
class Facts:
    """One format at SHAPE; SQNR in decibels, `simulated` where no integral is known."""

    bits: float
    gauss_db: float
    laplace_db: float
    simulated: tuple[str, ...]  # densities
    entropy: float | None  # of the codes on Gaussian data, in bits
    to_lloyd_max_db: float  # short of the best fixed levels of as many bits a code
    to_rate_distortion_db: float  # short of what any code of as many bits a value could reach


def facts(row: Row) -> Facts:
    """What is known of a row of the catalog."""
    spec = row.spec
    found = {p.name: _sqnr_db(row, p) for p in (NORMAL, LAPLACE)}
    gauss, bits = found[NORMAL.name][0], bits_per_value(spec, SHAPE)
    loss = expected_loss(spec, SHAPE)
    return Facts(
        bits=bits,
        gauss_db=gauss,
        laplace_db=found[LAPLACE.name][0],
        simulated=tuple(name for name, (_, simulated) in found.items() if simulated),
        entropy=loss.entropy if loss is not None else None,
        to_lloyd_max_db=-10 * log10(distortion(lloyd_max(spec.bits))) - gauss,
        to_rate_distortion_db=-NORMAL.rate_distortion_db(bits) - gauss,
    )


def markdown(table: Mapping[str, Row] = QUANTIZERS) -> str:
    """The table of docs/formats.md; `~` marks what was simulated.

    >>> print(markdown({"mxfp4": QUANTIZERS["mxfp4"]}).splitlines()[-1][:44])
    | `mxfp4` | 4.250 | 18.8 | 18.0 | 3.83 | 1.4
    """
    head = ("name", "bits", "Gauss dB", "Laplace dB", "entropy", "to Lloyd-Max", "to R(D)", "what", "source")
    lines = [head, ("---", *["--:"] * 6, "---", "---")]
    for name, row in table.items():
        fact = facts(row)
        lines.append(
            (
                f"`{name}`",
                f"{fact.bits:.3f}",
                marked(fact.gauss_db, fact, NORMAL),
                marked(fact.laplace_db, fact, LAPLACE),
                "" if fact.entropy is None else f"{fact.entropy:.2f}",
                f"{round(fact.to_lloyd_max_db, 1) + 0.0:.1f}",
                f"{fact.to_rate_distortion_db:.1f}",
                row.meaning,
                row.source,
            )
        )
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def marked(db: float, fact: Facts, p: Density) -> str:
    """Decibels, `~` before what was simulated."""
    return f"{'~' if p.name in fact.simulated else ''}{round(db, 1) + 0.0:.1f}"


def _sqnr_db(row: Row, p: Density) -> tuple[float, bool]:
    loss = expected_loss(row.spec, SHAPE, p=p)
    return (-simulated_error_db(row.spec, p), True) if loss is None else (-10 * log10(loss.error), False)
