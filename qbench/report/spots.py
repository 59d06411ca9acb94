"""The outlier map: hot channels, massive activations and sink tokens, each apart."""

from collections import Counter
from collections.abc import Sequence

from qbench.report.tables import Table
from qbench.report.verdict import share
from qbench.report.view import Row, View
from qbench.report.words import counted, listed, number

MOST = 10
HOT = 10.0  # times the rms of ordinary tokens, from which a channel is worth a sentence
CHANNEL = "channel:"


def whole(seen: View) -> list[Row]:
    """One row for each site that was mapped."""
    return seen.select("outliers")


def sentences(seen: View) -> list[tuple[str, str]]:
    """Each kind of outlier in a sentence: what it is called, and where it is."""
    rows = whole(seen)
    return [("Hot channels", _hot(seen, rows)), ("Massive activations", _massive(rows)), ("Sinks", _sinks(rows))]


def _hot(seen: View, rows: Sequence[Row]) -> str:
    most = max(rows, key=_peak)
    channel = hottest(seen, most)
    where = f"channel {channel} at {most.site}" if channel else most.site
    found = [row for row in rows if _peak(row) >= HOT]
    words = f"The largest value in a channel is {number(_peak(most))} times the rms of its tensor ({where})."
    if not found:
        return f"None: no channel reaches {HOT:g} times the rms. {words}"
    return f"{words} {counted(len(found), 'site')} of {len(rows)} have a channel above {HOT:g} times.{_shared(seen)}"


def _shared(seen: View) -> str:
    """Channels that are hot at many boundaries carry through the whole network, and one rotation would spread them."""
    places: dict[str, set[str]] = {}
    sites = {row.site for row in whole(seen) if row.site.endswith(".out") and row.site.count(".") == 2}
    for row in seen.rows:
        if row.what == "outliers" and row.slice.startswith(CHANNEL) and row.site in sites:
            places.setdefault(row.slice.removeprefix(CHANNEL), set()).add(row.site)
    often = Counter({channel: len(found) for channel, found in places.items()}).most_common(3)
    kept = [f"{channel} ({n} of {len(sites)})" for channel, n in often if n > 1 and 2 * n > len(sites)]
    return f" Channels among the hottest at most block boundaries: {listed(kept)}." if kept else ""


def _massive(rows: Sequence[Row]) -> str:
    found = [row for row in rows if row.values.get("outliers/massive")]
    if not found:
        return "None: no value is above 100 and 1000 times the median of its window."
    most = max(found, key=lambda row: row.values["outliers/massive_largest"])
    return (
        f"{counted(len(found), 'site')} of {len(rows)} have values above 100 and 1000 times the median of their "
        f"window; the largest is {number(most.values['outliers/massive_largest'])} at {most.site}, "
        f"in {counted(int(most.values['outliers/massive_channels']), 'channel')}."
    )


def _sinks(rows: Sequence[Row]) -> str:
    found = [row for row in rows if row.values.get("outliers/sinks")]
    first = max(rows, key=lambda row: row.values.get("outliers/first_token_norm", 0.0))
    norm = f"The first token's norm is at most {number(first.values['outliers/first_token_norm'])} times the median's"
    if not found:
        return f"None: no token's norm is above 10 times the median of its window. {norm} ({first.site})."
    elsewhere = [row for row in found if row.values.get("outliers/sinks_elsewhere")]
    where = f"at {counted(len(elsewhere), 'site')} also elsewhere" if elsewhere else "all of them at the first position"
    return f"{counted(len(found), 'site')} of {len(rows)} have sinks, {where}. {norm} ({first.site})."


def hottest(seen: View, site: Row) -> str:
    """The index of the channel with the largest peak, "" where no channel was kept."""
    rows = [
        row
        for row in seen.rows
        if row.what == "outliers" and row.arm == site.arm and row.site == site.site and row.slice.startswith(CHANNEL)
    ]
    most = max(rows, key=lambda row: row.values.get("outliers/channel_peak", 0.0), default=None)
    return most.slice.removeprefix(CHANNEL) if most else ""


def table(seen: View) -> Table:
    """The sites with the hottest channels, massive activations or sinks, most extreme first."""
    rows = sorted(whole(seen), key=_rank, reverse=True)[:MOST]
    return Table(
        caption=f"The {len(rows)} sites that stand out most",
        columns=(
            *("site", "channel", "peak, × rms", "energy", "massive", "largest"),
            *("sinks", "not first", "first token", "energy apart"),
        ),
        rows=tuple((row.site, hottest(seen, row) or "–", *_cells(row)) for row in rows),
        note=(
            "The hottest channel of the ordinary tokens (no sinks, not the first of a window), its largest value, its "
            "share of the energy; massive values and the largest; sinks in a window, and those not at its first token; "
            "the first token's norm over the median's; the share of sinks and first tokens in the energy."
        ),
    )


def _cells(row: Row) -> tuple[str, ...]:
    v = {name.removeprefix("outliers/"): value for name, value in row.values.items()}
    return (
        number(v.get("hot_channel_peak", 0.0)),
        share(v.get("hot_channel_energy", 0.0)),
        number(v.get("massive", 0.0)),
        number(v.get("massive_largest", 0.0)),
        number(v.get("sinks", 0.0)),
        number(v.get("sinks_elsewhere", 0.0)),
        number(v.get("first_token_norm", 0.0)),
        share(v.get("energy_apart", 0.0)),
    )


def _rank(row: Row) -> tuple[float, float, float]:
    return row.values.get("outliers/massive_largest", 0.0), row.values.get("outliers/sinks", 0.0), _peak(row)


def _peak(row: Row) -> float:
    return row.values.get("outliers/hot_channel_peak", 0.0)
