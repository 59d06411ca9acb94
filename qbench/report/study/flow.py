"""How the error of a quantized model grows from block to block: R = A + B + C, and the gain of each block."""

from collections import defaultdict
from collections.abc import Callable, Sequence
from statistics import fmean, geometric_mean

from qbench.report.study import depth, lines
from qbench.report.study.crossing import Crossing
from qbench.report.study.depth import Metric
from qbench.report.study.form import Figure, Section, Variant
from qbench.report.study.levels import level, words
from qbench.report.tables import NONE, Table
from qbench.report.view import Arm, Row, View, by_seed, place
from qbench.report.words import listed, number

METRICS = (
    Metric(name="flow/error", title="R: error behind each block, over the signal", axis="R", scale="logarithmic"),
    Metric(
        name="flow/gain",
        title="G: what a block does to the error that comes in",
        axis="gain G",
        scale="logarithmic",
        at=1.0,
    ),
    Metric(name="flow/inherited", title="A: error passed on", axis="A", scale="logarithmic"),
    Metric(name="flow/introduced", title="B: error made here", axis="B", scale="logarithmic"),
    Metric(name="flow/cross", title="C: what both have in common", axis="C", at=0.0),
)
PARTS = ("flow/gain", "flow/gain/spectral", "flow/gain/alignment")
MOST = 3  # treatments that have charts: a page is read


def section(seen: View, where: Crossing) -> Section | None:
    """None where no error was followed."""
    treatments = _in_turn(list(dict.fromkeys(named(row) for row in seen.select("flow"))))
    figures: list[Figure] = []
    for i, treatment in enumerate(treatments[:MOST]):
        rows = {arm.name: _blocks(seen, arm, treatment) for arm in where.main.values()}
        found = depth.charts(seen, where, METRICS, lambda arm, rows=rows: rows[arm.name])
        if found:
            variants = tuple(Variant(name=title, panels=lines.panels(one, where)) for title, one in found.items())
            tables = [lines.table(one, where) for one in list(found.values())[:1]]
            figures.append(
                Figure(
                    name=f"flow-{i}",
                    title=f"With {treatment}",
                    label="Show",
                    variants=variants,
                    tables=(*tables, *_matrices(seen, where, treatment)),
                )
            )
    if not figures:
        return None
    return Section(
        name="flow",
        title="How the error grows",
        link="Error flow",
        about=(
            "R is the power of the error behind a block over the clean signal's; A of it came in and was passed on, B "
            "the block's own quantizers made, C is what both have in common. The gain G is A over the R in front: "
            "above 1 the block amplifies what comes in, below 1 it dies out on its way. In words: "
            "G as geometric mean over blocks, B as mean, from the lowest to the highest optimizer."
        ),
        said=tuple(said for treatment in treatments if (said := _said(seen, where, treatment))),
        cautions=(f"Followed too, and not drawn: {listed(treatments[MOST:])}.",) if treatments[MOST:] else (),
        figures=tuple(figures),
    )


def _in_turn(treatments: Sequence[str]) -> list[str]:
    """One of each scope first: the few that are drawn should not all be of one.

    >>> _in_turn(["int4 @ boundaries", "int8 @ boundaries", "int4 @ linear"])
    ['int4 @ boundaries', 'int4 @ linear', 'int8 @ boundaries']
    """
    scopes = [treatment.rpartition(" @ ")[2] for treatment in treatments]
    turns = [scopes[:i].count(scope) for i, scope in enumerate(scopes)]
    return [treatment for _, treatment in sorted(zip(turns, treatments, strict=True), key=lambda pair: pair[0])]


def _said(seen: View, where: Crossing, treatment: str) -> str:
    """What a block of the first two architectures passes on and adds, over all optimizers; "" where one is missing."""
    told = [one for name in where.architectures[:2] if (one := _blocks_of(seen, where, treatment, name))]
    return f"With {treatment}, {'; '.join(told)}." if len(told) == 2 else ""


def _blocks_of(seen: View, where: Crossing, treatment: str, architecture: str) -> str:
    arms = [arm for (name, _), arm in where.main.items() if name == architecture]
    blocks = [_blocks(seen, arm, treatment) for arm in arms]
    # Powers of errors multiply from block to block, and add where they are made.
    gain, made = _range(blocks, "flow/gain", geometric_mean), _range(blocks, "flow/introduced", fmean)
    return f"a {architecture} block passes on {gain} of the error it is given and adds {made}" if gain and made else ""


def _range(blocks: Sequence[Sequence[Row]], metric: str, mean: Callable[[list[float]], float]) -> str:
    """Least and largest mean of any arm."""
    values = [[row.values[metric] for row in found if row.values.get(metric, 0.0) > 0] for found in blocks]
    means = sorted(mean(found) for found in values if found)
    return " to ".join(dict.fromkeys(number(one, 2) for one in (*means[:1], *means[-1:])))


def named(row: Row) -> str:
    """The treatment of a row, or its quantizer and scope where it has no name."""
    return row.treatment or (f"{row.quantizer} @ {row.scope}" if row.scope else row.quantizer)


def _rows(seen: View, arm: Arm, treatment: str) -> list[Row]:
    return [row for row in seen.select("flow", arm=arm.name) if named(row) == treatment]


def _blocks(seen: View, arm: Arm, treatment: str) -> list[Row]:
    return [row for row in _rows(seen, arm, treatment) if row.site.count(".") == 1]


def _matrices(seen: View, where: Crossing, treatment: str) -> Sequence[Table]:
    """Gains of the matrices, by class, averaged over layers: an arm a row."""
    rows: list[tuple[str, ...]] = []
    styles: list[int] = []
    for arm in where.main.values():
        classes: dict[str, list[Row]] = defaultdict(list)
        for row in _rows(seen, arm, treatment):
            if row.site.count(".") > 1:
                classes[place(row.site)[1]].append(row)
        for name, found in classes.items():
            levels = [level(by_seed(found, metric)) for metric in PARTS]
            if any(levels):
                rows.append((where.title(arm), name, *(words(one) if one else NONE for one in levels)))
                styles.append(arm.style)
    if not rows:
        return ()
    return (
        Table(
            caption=f"{treatment}: gain of matrices, mean over layers ± half of the 95 % interval; G = G1 · G2",
            columns=("arm", "matrix", "gain G", "G1, spectral", "G2, alignment"),
            rows=tuple(rows),
            styles=tuple(styles),
            words=(1,),
        ),
    )
