"""Where a branch joins the stream: how much of it, how correlated, and what that does to the kurtosis of the sum."""

from collections.abc import Iterable, Mapping, Sequence

from qbench.models.spec import Wiring
from qbench.report.study import depth, lines
from qbench.report.study.crossing import Crossing
from qbench.report.study.depth import Metric
from qbench.report.study.form import Figure, Section, Variant
from qbench.report.view import Arm, Row, View
from qbench.report.words import counted, listed, number

SHAPED: Wiring = "parallel"
SIZES = (
    Metric(
        name="add/variance_ratio/tensor",
        title="variance of branch over stream",
        axis="var(f) / var(x)",
        scale="logarithmic",
    ),
    Metric(name="add/correlation/tensor", title="correlation of branch and stream", axis="correlation", at=0.0),
)
CUMULANTS = (
    Metric(name="add/c31/tensor", title="c31: the branch expands what is large", axis="c31 / var²", at=0.0),
    Metric(name="add/c22/tensor", title="c22: both are large together", axis="c22 / var²", at=0.0),
    Metric(name="add/c13/tensor", title="c13: what is large in the branch", axis="c13 / var²", at=0.0),
)
KURTOSIS = (
    Metric(
        name="add/kurtosis/sum/tensor",
        title="excess kurtosis of the sum",
        scale="kurtosis",
        expected="add/kurtosis/independent/tensor",
        at=0.0,
    ),
    Metric(name="add/kurtosis/branch/tensor", title="excess kurtosis of the branch", scale="kurtosis", at=0.0),
)


def section(seen: View, where: Crossing) -> Section | None:
    """None where no addition was measured."""
    rows = {arm.name: seen.select("adds", arm=arm.name) for arm in where.main.values()}
    parts = (
        ("adds-kurtosis", "Kurtosis of the sum: measured, and (dashed) were stream and branch independent", KURTOSIS),
        ("adds-size", "What joins the stream", SIZES),
        ("adds-cumulants", "Joint cumulants of stream and branch, over the squared variance of the sum", CUMULANTS),
    )
    figures: list[Figure] = []
    for name, title, metrics in parts:
        found = depth.charts(seen, where, metrics, lambda arm: rows[arm.name])
        if found:
            figures.append(
                Figure(
                    name=name,
                    title=title,
                    label="Show",
                    variants=tuple(Variant(name=key, panels=lines.panels(one, where)) for key, one in found.items()),
                    tables=tuple(lines.table(one, where) for one in [*found.values()][:1]),
                )
            )
    if not figures:
        return None
    return Section(
        name="adds",
        title="Where branches join",
        link="Additions",
        about=(
            "The excess kurtosis of independent parts' sum is (k_x + r² k_f) / (1 + r)², with k_x that of the stream, "
            "k_f that of the branch, and r the branch's variance over the stream's: never farther from Gaussian than "
            "the farther of the two. What lies above the dashed line is dependence: positive joint cumulants, or a "
            "branch that cancels."
        ),
        said=tuple(_said([arm for arm in where.main.values() if arm.wiring != SHAPED], rows)),
        cautions=tuple(_shaped(arm.name for arm in where.main.values() if arm.wiring == SHAPED and rows[arm.name])),
        figures=tuple(figures),
    )


def _shaped(names: Iterable[str]) -> list[str]:
    found = listed([*names])
    return [f"Shaped blocks have no stream, so their sums are drawn and not counted: {found}."] if found else []


def _said(arms: Sequence[Arm], rows: Mapping[str, Sequence[Row]]) -> list[str]:
    """How often dependence raises the kurtosis, and that the identity holds."""
    places = [seeds for arm in arms for seeds in beyond(rows[arm.name], "independent").values()]
    said: list[str] = []
    if places:
        above = sum(min(seeds) > 0 for seeds in places)
        below = sum(max(seeds) < 0 for seeds in places)
        said.append(
            f"Of {counted(len(places), 'place')} where a branch joins, each of one arm, the sum is heavier-tailed than "
            f"independence would make it in every seed at {above}, lighter in every seed at {below}, and neither at "
            f"{len(places) - above - below}."
        )
    gaps = [abs(gap) for arm in arms for seeds in beyond(rows[arm.name], "predicted").values() for gap in seeds]
    if gaps:
        within = number(max(gaps), 1) if max(gaps) else "the digits stored"
        said.append(f"Predicted from all joint cumulants (an identity), it is met within {within} everywhere.")
    return said


def beyond(rows: Sequence[Row], expected: str) -> dict[str, list[float]]:
    """Of one arm, by place: the excess kurtosis of the sum minus the `expected` one, a number for each seed."""
    names = "add/kurtosis/sum/tensor", f"add/kurtosis/{expected}/tensor"
    found: dict[str, list[float]] = {}
    for row in rows:
        if set(names) <= row.values.keys():
            found.setdefault(row.site, []).append(row.values[names[0]] - row.values[names[1]])
    return found
