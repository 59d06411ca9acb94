"""Where a branch joins the stream: how much of it, how correlated, and what that does to the kurtosis of the sum."""

from qbench.report.study import depth, lines
from qbench.report.study.crossing import Crossing
from qbench.report.study.depth import Metric
from qbench.report.study.form import Figure, Section, Variant
from qbench.report.view import Row, View
from qbench.report.words import number

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
            "Sums of independent parts are never heavier-tailed than their heavier part: (k_x + r² k_f) / (1 + r)². "
            "What lies above the dashed line is dependence: positive joint cumulants, or a branch that cancels."
        ),
        said=tuple(_said([row for found in rows.values() for row in found])),
        figures=tuple(figures),
    )


def _said(rows: list[Row]) -> list[str]:
    """How often dependence raises the kurtosis, and that the identity holds."""
    both = [
        (row.values["add/kurtosis/sum/tensor"], row.values["add/kurtosis/independent/tensor"])
        for row in rows
        if {"add/kurtosis/sum/tensor", "add/kurtosis/independent/tensor"} <= row.values.keys()
    ]
    said: list[str] = []
    if both:
        above = sum(measured > independent for measured, independent in both)
        said.append(f"The sum is heavier-tailed than independence would make it at {above} of {len(both)} additions.")
    gaps = [
        abs(row.values["add/kurtosis/sum/tensor"] - row.values["add/kurtosis/predicted/tensor"])
        for row in rows
        if {"add/kurtosis/sum/tensor", "add/kurtosis/predicted/tensor"} <= row.values.keys()
    ]
    if gaps:
        within = number(max(gaps), 1) if max(gaps) else "the digits stored"
        said.append(f"Predicted from all joint cumulants (an identity), it is met within {within} everywhere.")
    return said
