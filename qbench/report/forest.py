"""Intervals drawn beside their claims: on which side of no effect they lie, and how far."""

from collections.abc import Sequence
from html import escape
from math import log

from qbench.report.effects import Effect, certainty, magnitude
from qbench.report.svg import number

WIDTH, HEIGHT, MARGIN, MIDDLE = 260, 34, 10, 11
TINY = 1e-12


def intervals(effects: Sequence[Effect]) -> dict[str, str]:
    """An <svg> for each claim with a value; effects of one metric and comparison share a scale."""
    groups: dict[tuple[str, str], list[Effect]] = {}
    for effect in effects:
        if effect.value is not None:
            groups.setdefault((effect.compare, effect.metric), []).append(effect)
    return {effect.claim: _draw(effect, _span(group)) for group in groups.values() for effect in group}


def _scaled(effect: Effect, value: float) -> float:
    if effect.compare == "ratio":
        return log(min(max(value / effect.null, TINY), 1 / TINY))
    return value - effect.null


def _span(group: Sequence[Effect]) -> tuple[float, float]:
    """From no effect to three times the largest effect: two seeds can have intervals as wide as the page."""
    largest = max(abs(_scaled(effect, effect.value or 0.0)) for effect in group) or 1.0
    ends = [0.0, *(_scaled(effect, end) for effect in group for end in (effect.low, effect.value, effect.high) if end)]
    low, high = max(min(ends), -3 * largest), min(max(ends), 3 * largest)
    room = (high - low) * 0.06 or 1.0
    return low - room, high + room


def _draw(effect: Effect, span: tuple[float, float]) -> str:
    low, high = span
    ends = [_scaled(effect, end) for end in (effect.low, effect.high) if end is not None]
    scaled = [0.0, _scaled(effect, effect.value or 0.0), *ends]
    place = [MARGIN + (min(max(x, low), high) - low) / (high - low) * (WIDTH - 2 * MARGIN) for x in scaled]
    null, value, *ends = (number(x) for x in place)
    bar = f'<path class="bar" d="M{ends[0]} {MIDDLE}H{ends[1]}"/>' if ends else ""
    label = f"no effect: {effect.null:g}{'×' if effect.compare == 'ratio' else ''}"
    anchor = "start" if place[0] < WIDTH / 3 else "end" if place[0] > WIDTH * 2 / 3 else "middle"
    words = escape(f"{magnitude(effect)}, {certainty(effect)}")
    return (
        f'<svg class="interval" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{words}">'
        f'<path class="axis" d="M{MARGIN} {MIDDLE}H{WIDTH - MARGIN}"/><path class="null" d="M{null} 2V20"/>{bar}'
        f'<circle cx="{value}" cy="{MIDDLE}" r="4"/>'
        f'<text x="{null}" y="31" text-anchor="{anchor}">{label}</text></svg>'
    )
