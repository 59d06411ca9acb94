"""What formats cost on parts of the data: by file, language or kind, and by place in the window."""

from collections.abc import Mapping, Sequence

from qbench.report.formats import Format, is_position
from qbench.report.tables import NONE, Table
from qbench.report.verdict import label, nats, part_name
from qbench.report.words import listed

MOST = 12  # columns of parts; the worst of more


def table(found: Sequence[Format], *, positions: bool) -> Table | None:
    """KLD of every format on every part; None where the data has one part only."""
    rows = [one for one in found if any("kld" in values for values in one.slices.values())]
    names = [n for n in dict.fromkeys(name for one in rows for name in one.slices) if is_position(n) == positions]
    if len(names) < 2:
        return None
    shown = _worst(rows, names)
    several = len({one.arm for one in rows}) > 1
    parts = "place in the window" if positions else "slice of the data"
    return Table(
        caption=f"KLD by {parts}, nats; the worst is shaded",
        columns=("format", "whole", *map(part_name, shown)),
        rows=tuple(
            (label(one, several), _kld(one.values), *(_kld(one.slices.get(n, {})) for n in shown)) for one in rows
        ),
        shades=tuple((None, *_shades(one, shown)) for one in rows),
        note=f"Of {len(names)} parts the {MOST} with the largest KLD are shown." if len(names) > MOST else "",
    )


def _worst(rows: Sequence[Format], names: Sequence[str]) -> list[str]:
    """In the order of the data."""
    largest = {name: max(one.slices.get(name, {}).get("kld", 0.0) for one in rows) for name in names}
    chosen = set(sorted(names, key=lambda name: -largest[name])[:MOST])
    return [name for name in names if name in chosen]


def _kld(values: Mapping[str, float]) -> str:
    return nats(values["kld"]) if "kld" in values else NONE


def _shades(one: Format, names: Sequence[str]) -> list[int | None]:
    costs = [one.slices.get(name, {}).get("kld", 0.0) for name in names]
    return [4 if cost == max(costs) and cost > 0 else None for cost in costs]


def summary(found: Sequence[Format], *, positions: bool) -> str:
    """Which part is worst for most formats."""
    worst: dict[str, int] = {}
    n = 0
    for one in found:
        costs = {name: v["kld"] for name, v in one.slices.items() if "kld" in v and is_position(name) == positions}
        if len(costs) > 1:
            n += 1
            name = max(costs, key=lambda part: costs[part])
            worst[name] = worst.get(name, 0) + 1
    ranked = sorted(worst.items(), key=lambda item: -item[1])
    return (
        f"Worst: {listed([f'{part_name(name)} for {count} of {n} formats' for name, count in ranked[:3]])}."
        if n
        else ""
    )
