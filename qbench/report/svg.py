"""Panels drawn as inline SVG: classes and no styles, so that the page's one style sheet colours both modes."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from html import escape

from qbench.report.axes import Axis
from qbench.report.factors import COLOURS
from qbench.report.panels import Mark, Panel, Rule, Series
from qbench.report.words import number as quantity

SHAPES = (
    "M-3.4 0a3.4 3.4 0 1 0 6.8 0a3.4 3.4 0 1 0-6.8 0",  # circle
    "M0-4.2L4 3H-4Z",  # triangle
    "M-3 -3H3V3H-3Z",  # square
    "M0-4.4L3.4 0L0 4.4L-3.4 0Z",  # diamond
    "M0 4.2L4-3H-4Z",  # triangle, point down
    "M-4-1.3H-1.3V-4H1.3V-1.3H4V1.3H1.3V4H-1.3V1.3H-4Z",  # cross
    "M-2.2-3.8H2.2L4.4 0L2.2 3.8H-2.2L-4.4 0Z",  # hexagon
)
CORNERS = [(colour, shape) for colour in range(COLOURS) for shape in range(len(SHAPES))]
NAMED_LEFT, NAME_HEIGHT = 0.2, 12  # how far from the left edge a name needs to be, and what it takes in height


@dataclass(frozen=True, slots=True, kw_only=True)
class Frame:
    """The size of a drawing and the room around its axes, in user units."""

    width: int = 420
    height: int = 300
    left: int = 48
    right: int = 12
    top: int = 12
    bottom: int = 40
    decimals: int = 0  # of coordinates: a page has many, and half a unit is less than a mark's width


def swatches() -> str:
    """The marks' shapes, once for the whole page."""
    shapes = (f'<path id="m{i}" d="{path}"/>' for i, path in enumerate(SHAPES))
    return f'<svg class="swatches" width="0" height="0" aria-hidden="true"><defs>{"".join(shapes)}</defs></svg>'


def corners() -> str:
    """The marks in each colour, for paths that carry one on every corner: a marker does not inherit its path's."""
    marks = (
        f'<marker id="k{colour}-{shape}" class="a{colour}" markerUnits="userSpaceOnUse">'
        f'<use href="#m{shape}"/></marker>'
        for colour, shape in CORNERS
    )
    return f'<svg class="swatches" width="0" height="0" aria-hidden="true"><defs>{"".join(marks)}</defs></svg>'


def corner_rules() -> str:
    """The style sheet's part of it."""
    return "".join(
        f'.a{colour}[data-shape="{shape}"]>.dots{{marker:url(#k{colour}-{shape})}}\n' for colour, shape in CORNERS
    )


def key(style: int) -> str:
    """The mark of one arm, for legends and tables."""
    return f'<svg class="key a{style % COLOURS}" aria-hidden="true"><use href="#m{style % len(SHAPES)}"/></svg>'


def swatch(style: int) -> str:
    """The colour of one style alone: a bar, which is no mark of any arm."""
    return (
        f'<svg class="key a{style % COLOURS}" aria-hidden="true">'
        '<rect x="-7" y="-3" width="14" height="6" rx="2"/></svg>'
    )


def draw(panel: Panel, identifier: str, frame: Frame | None = None, grids: dict[str, str] | None = None) -> str:
    """One panel as an <svg> that names and describes itself; `identifier` is unique on the page.

    Drawings with the same axes need them once on a page: `grids` holds those already drawn, with their identifiers.
    """
    frame = frame or Frame()
    x, y = _across(panel, frame), _up(panel, frame)
    parts = [
        f'<svg class="chart" id="{identifier}" viewBox="0 0 {frame.width} {frame.height}" role="img"'
        f' aria-labelledby="{identifier}-t {identifier}-d">',
        f'<title id="{identifier}-t">{escape(panel.title)}</title>',
        f'<desc id="{identifier}-d">{escape(panel.summary)}</desc>',
        *_bands(panel, frame),
        _shared("".join(_grid(panel, frame)), f"{identifier}-g", grids),
        *_rules(panel.rules, x, y, frame),
        *(_series(series, x, y, panel.silent) for series in panel.series),
        *_told(panel.rules, x, y, frame),
        _rings(panel, x, y),
        *_names(panel, x, y),
        "</svg>",
    ]
    return "".join(parts)


Place = Callable[[float], str]


def place(axis: Axis, value: float, start: float, end: float) -> float:
    """Where on a line from `start` to `end` a measured value lies."""
    return start + (axis.scale(value) - axis.low) / (axis.high - axis.low) * (end - start)


def _across(panel: Panel, frame: Frame) -> Place:
    return lambda value: number(place(panel.x, value, frame.left, frame.width - frame.right), frame.decimals)


def _up(panel: Panel, frame: Frame) -> Place:
    """Ends of intervals beyond the axis are drawn at its edge."""
    top, bottom = frame.top, frame.height - frame.bottom
    return lambda value: number(min(max(_height(panel, frame, value), top), bottom), frame.decimals)


def _height(panel: Panel, frame: Frame, value: float) -> float:
    return place(panel.y, value, frame.height - frame.bottom, frame.top)


def number(value: float, decimals: int = 1) -> str:
    """A coordinate, without zeros at its end.

    >>> number(12.04), number(3.96), number(120.0, 0)
    ('12', '4', '120')
    """
    text = f"{value:.{decimals}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def _bands(panel: Panel, frame: Frame) -> Iterable[str]:
    width = frame.width - frame.left - frame.right
    for band in panel.bands:
        top = max(_height(panel, frame, band.high), frame.top)
        bottom = min(_height(panel, frame, band.low), frame.height - frame.bottom)
        yield (
            f'<rect class="band" x="{frame.left}" y="{number(top)}" width="{width}" height="{number(bottom - top)}">'
            f"<title>{escape(band.label)} noise</title></rect>"
        )


def _shared(grid: str, identifier: str, grids: dict[str, str] | None) -> str:
    """The group has the class of a drawing, for browsers that match the style sheet inside of what is used again."""
    if grids is None:
        return grid
    if grid in grids:
        return f'<use href="#{grids[grid]}"/>'
    grids[grid] = identifier
    return f'<g class="chart" id="{identifier}">{grid}</g>'


def _grid(panel: Panel, frame: Frame) -> Iterable[str]:
    """Ticks are places already, so they skip the scale."""
    right, bottom = frame.width - frame.right, frame.height - frame.bottom
    width, height = right - frame.left, bottom - frame.top
    lines, labels = [], []
    for at, label in panel.x.ticks:
        place = number(frame.left + (at - panel.x.low) / (panel.x.high - panel.x.low) * width)
        lines.append(f"M{place} {bottom}v4")
        labels.append(f'<text x="{place}" y="{bottom + 15}">{label}</text>')
    yield f'<g class="axis x"><path d="{"".join(lines)}"/>{"".join(labels)}</g>'
    lines, labels = [], []
    for at, label in panel.y.ticks:
        place = number(frame.top + (panel.y.high - at) / (panel.y.high - panel.y.low) * height)
        lines.append(f"M{frame.left} {place}H{right}")
        labels.append(f'<text x="{frame.left - 5}" y="{place}">{label}</text>')
    yield f'<g class="axis y"><path d="{"".join(lines)}"/>{"".join(labels)}</g>'
    yield f'<path class="edge" d="M{frame.left} {bottom}H{right}"/>'
    centre, middle = number(frame.left + width / 2), number(frame.top + height / 2)
    yield f'<text class="label" x="{centre}" y="{frame.height - 6}">{escape(panel.x.title)}</text>'
    yield f'<text class="label" transform="translate(11 {middle}) rotate(-90)">{escape(panel.y.title)}</text>'


def _rules(rules: Iterable[Rule], x: Place, y: Place, frame: Frame) -> Iterable[str]:
    right, bottom = frame.width - frame.right, frame.height - frame.bottom
    for rule in rules:
        line = f"M{x(rule.at)} {frame.top}V{bottom}" if rule.axis == "x" else f"M{frame.left} {y(rule.at)}H{right}"
        yield f'<g class="{_rule(rule)}"><path d="{line}"/></g>'


def _told(rules: Iterable[Rule], x: Place, y: Place, frame: Frame) -> Iterable[str]:
    """What the rules are, above whatever is drawn: a narrow panel leaves no place beside it."""
    right, bottom = frame.width - frame.right, frame.height - frame.bottom
    for rule in rules:
        if rule.label:
            across = f'x="{x(rule.at)}" y="{bottom - 5}" dx="4"'
            place = across if rule.axis == "x" else f'x="{right}" y="{y(rule.at)}" dy="-4"'
            yield f'<g class="{_rule(rule)}"><text {place}>{escape(rule.label)}</text></g>'


def _rule(rule: Rule) -> str:
    return f"rule {rule.axis}" if rule.style is None else f"rule {rule.axis} a{rule.style % COLOURS}"


def _series(series: Series, x: Place, y: Place, silent: bool) -> str:
    """Bars and line under the marks; each mark carries its words for those who point at it, or none does."""
    bars = "".join(
        f"M{x(m.x)} {y(m.low)}V{y(m.high)}" for m in series.marks if m.low is not None and m.high is not None
    )
    shape = series.style % len(SHAPES)
    inside = f'<path class="bars" d="{bars}"/>' if bars else ""
    if series.dashed:
        inside = _path("line expected", [series.marks[i] for i in series.line], x, y)
    elif silent and series.line == tuple(range(len(series.marks))):
        inside += _path("line dots", series.marks, x, y)
    else:
        inside += _path("line", [series.marks[i] for i in series.line], x, y)
        inside += _path("dots", series.marks, x, y) if silent else _marks(series.marks, shape, x, y)
    classes = f'class="series a{series.style % COLOURS}" data-arm="{series.style}" data-shape="{shape}"'
    return f"<g {classes}>{inside}</g>"


def _path(kind: str, marks: Sequence[Mark], x: Place, y: Place) -> str:
    """Through the marks; on the corners of one of kind "dots" the style sheet puts their shape."""
    corners = "L".join(f"{x(mark.x)} {y(mark.y)}" for mark in marks)
    alone = "h0" if len(marks) == 1 else ""  # a path of one point has no corner
    return f'<path class="{kind}" d="M{corners}{alone}"/>' if marks else ""


def _marks(marks: Sequence[Mark], shape: int, x: Place, y: Place) -> str:
    return "".join(_mark(mark, shape, x, y) for mark in marks)


def _mark(mark: Mark, shape: int, x: Place, y: Place) -> str:
    drawn = f'<use href="#m{shape}" x="{x(mark.x)}" y="{y(mark.y)}"'
    return f"{drawn}><title>{escape(f'{mark.label}: {quantity(mark.y)}')}</title></use>" if mark.told else f"{drawn}/>"


def _rings(panel: Panel, x: Place, y: Place) -> str:
    places = [(x(mark.x), y(mark.y)) for mark in panel.ringed]
    if not places:
        return ""
    circles = "".join(f'<circle cx="{across}" cy="{up}" r="6.5"/>' for across, up in places)
    line = f'<path d="M{"L".join(" ".join(place) for place in places)}"/>' if panel.joined else ""
    return f'<g class="front">{line}{circles}</g>'


def _names(panel: Panel, x: Place, y: Place) -> Iterable[str]:
    """To the left of and below the marks of a front, where nothing else can lie; each below the one before."""
    last: dict[bool, float] = {}
    for mark in sorted(panel.named, key=lambda mark: float(y(mark.y))):
        left = place(panel.x, mark.x, 0, 1) > NAMED_LEFT
        at = float(x(mark.x)) + (-9 if left else 9)
        last[left] = down = max(float(y(mark.y)) + 4, last.get(left, 0.0) + NAME_HEIGHT)
        side = ' class="before"' if left else ""
        yield f'<text{side} x="{number(at)}" y="{number(down)}">{escape(mark.label)}</text>'
