"""One interval in a table's cell, on the scale that its column shares."""

from html import escape

from markupsafe import Markup

from qbench.report.svg import number as coordinate
from qbench.report.words import number
from qbench.stats.interval import Interval

WIDTH, HEIGHT, MIDDLE, MARGIN = 180, 18, 9, 5


def bar(found: Interval, span: tuple[float, float], null: float = 0.0) -> Markup:
    """The estimate as a point, its interval as a line, no effect as a dashed line; ends beyond `span` are cut."""
    low, high = span

    def across(value: float) -> str:
        inside = min(max(value, low), high)
        return coordinate(MARGIN + (inside - low) / (high - low) * (WIDTH - 2 * MARGIN))

    words = escape(f"{number(found.estimate, 2)}, {number(found.low, 2)} to {number(found.high, 2)}")
    return Markup(
        f'<svg class="interval cell" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{words}">'
        f'<path class="axis" d="M{MARGIN} {MIDDLE}H{WIDTH - MARGIN}"/><path class="null" d="M{across(null)} 1V17"/>'
        f'<path class="bar" d="M{across(found.low)} {MIDDLE}H{across(found.high)}"/>'
        f'<circle cx="{across(found.estimate)}" cy="{MIDDLE}" r="3.5"/></svg>'
    )
