"""What a section of a study's page is made of, before anything is drawn."""

from dataclasses import dataclass

from qbench.report.panels import Panel
from qbench.report.tables import Table


@dataclass(frozen=True, slots=True, kw_only=True)
class Variant:
    """What is on display for one choice of a figure's picker; `note` stands under it."""

    name: str
    panels: tuple[Panel, ...]
    note: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """Charts with a picker where there are several variants; `tables` hold the numbers behind them.

    `name` is unique on the page, `label` stands before the picker, `caption` says what to look for. `keys` are styles
    with names, where lines are no arms of the study.
    """

    name: str
    title: str
    variants: tuple[Variant, ...]
    label: str = ""
    caption: str = ""
    tables: tuple[Table, ...] = ()
    keys: tuple[tuple[int, str], ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Section:
    """One question: `about` says what is shown, `said` what was found in sentences, `cautions` what to mind.

    `maps` are small tables that stand side by side under a heading.
    """

    name: str
    title: str
    link: str
    about: str
    said: tuple[str, ...] = ()
    cautions: tuple[str, ...] = ()
    maps: tuple[tuple[str, tuple[Table, ...]], ...] = ()
    tables: tuple[Table, ...] = ()
    figures: tuple[Figure, ...] = ()
