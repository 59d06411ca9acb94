"""Panels: everything a chart shows, in measured units, before anything is drawn."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from qbench.report.axes import Axis
from qbench.report.view import Arm


@dataclass(frozen=True, slots=True, kw_only=True)
class Mark:
    """One point, `label` says which; `low` and `high` span the seeds, None where there is one."""

    x: float
    y: float
    low: float | None = None
    high: float | None = None
    label: str = ""
    told: bool = False  # its label and value are shown to those who point at it
    index: int | None = None  # its place in the data of a cloud


@dataclass(frozen=True, slots=True, kw_only=True)
class Series:
    """The marks of one arm; `line` are the indices joined by a line, in order.

    `dashed` is what is expected rather than measured: a dashed line through the places of marks that are not drawn.
    """

    name: str
    style: int
    marks: tuple[Mark, ...]
    line: tuple[int, ...] = ()
    dashed: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """A reference line across the panel; `style` is an arm's, None for the reader's eye only."""

    axis: Literal["x", "y"]
    at: float
    label: str = ""
    style: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Band:
    """A horizontal stripe within which a difference means nothing."""

    low: float
    high: float
    label: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Panel:
    """One pair of axes; `summary` says in a sentence or two what a sighted reader takes away."""

    name: str
    title: str
    summary: str
    x: Axis
    y: Axis
    series: tuple[Series, ...]
    rules: tuple[Rule, ...] = ()
    bands: tuple[Band, ...] = ()
    ringed: tuple[Mark, ...] = ()  # the front over all arms, by rising bits
    joined: bool = True  # whether a line goes through the rings
    named: tuple[Mark, ...] = ()  # whose labels stand beside them
    silent: bool = False  # no mark has words of its own: they are drawn as the corners of one path

    @property
    def points(self) -> int:
        return sum(len(one.marks) for one in self.series)


def courses(arms: Sequence[Arm], marks: Mapping[str, Sequence[Mark]]) -> tuple[Series, ...]:
    """One series for each arm that has marks, in the order of the arms, joined in the order of the marks."""
    return tuple(
        Series(name=arm.name, style=arm.style, marks=tuple(found), line=tuple(range(len(found))))
        for arm in arms
        if (found := marks.get(arm.name))
    )
