"""The first question of a reader: which format, for which model, at how many bits, costs how much, and how sure."""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import inf, isfinite
from typing import Literal

from qbench.report.leaderboard.entries import Entry
from qbench.report.leaderboard.groups import Group
from qbench.report.leaderboard.ranks import ranks

# Above whole numbers of bits, because scales come with the codes.
BUDGETS = (1.5, 2.5, 3.5, 4.5, 6.5, 9.0, 17.0, inf)

Surety = Literal["none", "small", "sure", "unknown"]


@dataclass(frozen=True, slots=True)
class Answer:
    """The best row within a budget; `best` where no other model of the group is surely better within it."""

    entry: Entry
    best: bool

    @property
    def surety(self) -> Surety:
        """Whether the cost can be told from none, and from what another seed changes."""
        low, high = self.entry.reach
        increase, floor = self.entry.increase, self.entry.seed_floor
        if increase is None or not (isfinite(low) and isfinite(high)):
            return "unknown"
        if low <= 0 <= high:
            return "none"
        return "small" if floor is not None and abs(increase) < floor else "sure"


@dataclass(frozen=True, slots=True)
class Line:
    """One model: what it loses unquantized, and its best row within each budget, None where it has none."""

    model: str
    untouched: Entry | None
    answers: tuple[Answer | None, ...]


@dataclass(frozen=True, slots=True)
class Setting:
    """Groups that differ in what is quantized only, side by side."""

    group: Group
    budgets: tuple[float, ...]
    scopes: Mapping[Group, tuple[Line, ...]]
    newest: bool  # version of its suite

    @property
    def title(self) -> str:
        task = f", {self.group.task}" if self.group.task else ""
        return f"{self.group.suite} {self.group.version}{task}"

    @property
    def rows(self) -> int:
        return sum(len(lines) for lines in self.scopes.values())


def settings(groups: Mapping[Group, Sequence[Entry]]) -> list[Setting]:
    """Those with something quantized; the newest version of each suite first, and among them the largest."""
    found: dict[Group, dict[Group, Sequence[Entry]]] = defaultdict(dict)
    for group, rows in groups.items():
        found[group.setting][group] = [row for row in rows if row.ranked]
    newest: dict[str, int] = defaultdict(int)
    for group in found:
        newest[group.suite] = max(newest[group.suite], group.version)
    made = [_setting(key, of_scope, key.version == newest[key.suite]) for key, of_scope in found.items()]
    return sorted((one for one in made if one.budgets), key=_order)


def _order(setting: Setting) -> tuple[bool, int, str, int, str]:
    group = setting.group
    return not setting.newest, -setting.rows if setting.newest else 0, group.suite, -group.version, group.id


def _setting(key: Group, groups: Mapping[Group, Sequence[Entry]], newest: bool) -> Setting:
    # A model is one submission's: two may give theirs the same name.
    untouched = {(row.submission, row.model): row for row in groups.get(key, ())}
    known = [row.bits for rows in groups.values() for row in rows if row.bits is not None]
    budgets = tuple(
        most for least, most in zip((0.0, *BUDGETS), BUDGETS, strict=False) if any(least < one <= most for one in known)
    )
    scopes = {group: _lines(rows, untouched, budgets) for group, rows in groups.items() if group != key}
    return Setting(key, budgets, {group: lines for group, lines in scopes.items() if lines}, newest)


def _lines(
    rows: Sequence[Entry], untouched: Mapping[tuple[str, str], Entry], budgets: Sequence[float]
) -> tuple[Line, ...]:
    of_model: dict[tuple[str, str], list[Entry]] = defaultdict(list)
    for row in rows:
        if row.bits is not None:
            of_model[row.submission, row.model].append(row)
    columns = [_column(of_model, most) for most in budgets]
    return tuple(
        Line(model=key[1], untouched=untouched.get(key), answers=tuple(column[key] for column in columns))
        for key in of_model
    )


def _column(of_model: Mapping[tuple[str, str], Iterable[Entry]], most: float) -> dict[tuple[str, str], Answer | None]:
    """The row of lowest cost within a budget for each model, and which of these are not surely beaten."""
    chosen = {
        key: min(
            (one for one in rows if one.bits is not None and one.bits <= most),
            key=lambda one: (one.value, one.bits, one.quantizer),
            default=None,
        )
        for key, rows in of_model.items()
    }
    held = {key: row for key, row in chosen.items() if row is not None}
    places = dict(zip(held, ranks([(row.low, row.high) for row in held.values()]), strict=True))
    return {key: Answer(row, places[key][0] == 1) if row else None for key, row in chosen.items()}
