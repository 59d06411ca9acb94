"""Scales and ticks: from measured values to places on a line, for every drawing of a chart."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from math import asinh, ceil, floor, log, log10

from qbench.report.words import number


@dataclass(frozen=True, slots=True, kw_only=True)
class Axis:
    """A line from `low` to `high`, in scaled units; `ticks` are (place, label), `scale` maps a value to its place."""

    title: str
    low: float
    high: float
    ticks: tuple[tuple[float, str], ...]
    scale: Callable[[float], float]


def linear(title: str, values: Iterable[float], around: Sequence[float] = ()) -> Axis:
    """Round ticks, a little room at both ends, `around` always in view.

    >>> [label for _, label in linear("x", [1.2, 4.9], around=[0]).ticks]
    ['0', '1', '2', '3', '4', '5']
    """
    low, high = _range([*values, *around], least=0.1)
    step = round_step((high - low) / 7)
    ticks = [step * i for i in range(ceil(low / step), floor(high / step) + 1)]
    return Axis(title=title, low=low, high=high, ticks=tuple((t, _plain(t, step)) for t in ticks), scale=float)


def kurtosis(title: str, values: Iterable[float]) -> Axis:
    """log(k + 3): the fourth moment itself is what grows by factors, and k = -2 is the least there is.

    >>> [label for _, label in kurtosis("k", [-0.5, 40]).ticks]
    ['0', '1', '3', '10', '30']
    """
    marks = [-2, -1, 0, 1, 3, 10, 30, 100, 300, 1e3, 3e3, 1e4, 3e4, 1e5, 1e6, 1e7, 1e8]
    return _marked(title, [*values, 0.0], marks, log_kurtosis)


def log_kurtosis(k: float) -> float:
    # Rounding may put a constant tensor a hair under its least value.
    return log(max(k, -2.9) + 3)


def signed_log(title: str, values: Iterable[float], knee: float) -> Axis:
    """Logarithmic away from zero, linear within ±`knee`: noise around zero stays visible and stays small."""
    found = [*values, 0.0]
    top = max(1, ceil(log10(max(abs(v) for v in found) / knee + 1e-9)))
    decades = [knee * 10**i for i in range(top + 1)]
    marks = [*(-d for d in reversed(decades)), 0.0, *decades]
    return _marked(title, found, marks, lambda value: asinh(value / knee))


def logarithmic(title: str, values: Iterable[float]) -> Axis:
    """Decades, and steps within them where they are few, for values above 0.

    >>> [label for _, label in logarithmic("x", [0.002, 0.3]).ticks]
    ['0.003', '0.01', '0.03', '0.1', '0.3']
    """
    found = list(values)
    decades = [10.0**i for i in range(-9, 4)]
    spread = max(found, default=1.0) / min(found, default=1.0)
    steps = (1, 2, 3, 4, 5, 7) if spread <= 10 else (1, 2, 5) if spread <= 30 else (1, 3) if spread <= 1000 else (1,)
    marks = [step * decade for decade in decades for step in steps]
    # The end of an interval may lie at 0 or below, where no logarithm is: it is drawn at the lower edge.
    return _marked(title, found, marks, lambda value: log10(max(value, 1e-12)))


def _marked(title: str, values: Sequence[float], marks: Sequence[float], scale: Callable[[float], float]) -> Axis:
    low, high = _range([scale(value) for value in values], least=0.5)
    places = [(scale(mark), number(mark, 1)) for mark in marks]
    return Axis(title=title, low=low, high=high, ticks=tuple(p for p in places if low <= p[0] <= high), scale=scale)


def round_step(rough: float) -> float:
    """The smallest of 1, 2, 5 times a power of ten that is not below `rough`.

    >>> round_step(0.013), round_step(3.0)
    (0.02, 5.0)
    """
    power = 10.0 ** floor(log10(rough))
    return next((step * power for step in (1, 2, 5) if step * power >= rough * 0.999), 10 * power)


def _range(values: Sequence[float], least: float) -> tuple[float, float]:
    low, high = (min(values), max(values)) if values else (0.0, 1.0)
    # Large numbers lie further apart than `least`: without room of their own size they would have no ticks between.
    room = max((high - low) * 0.05, (least - (high - low)) / 2, 1e-9 * max(1.0, abs(low), abs(high)))
    return low - room, high + room


def _plain(value: float, step: float) -> str:
    decimals = max(0, -floor(log10(step) + 1e-9))
    text = f"{value:.{decimals}f}"
    return (text.lstrip("-") if not text.strip("-0.") else text).replace("-", "−")
