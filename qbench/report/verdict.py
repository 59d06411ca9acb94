"""The first screen of a probe: what can be shipped, in sentences and in one table of formats."""

from collections.abc import Sequence

from markupsafe import Markup

from qbench.report import plain
from qbench.report.formats import JUDGED, TIERS, Format, fewest_bits, recommended, smallest
from qbench.report.tables import NONE, Table
from qbench.report.words import THIN, counted, fixed, listed, number

MEGA = 1e6


def megabytes(size: float) -> str:
    """
    >>> megabytes(1005312.0)
    '1.01\u202fMB'
    """
    return f"{number(size / MEGA)}{THIN}MB"


def share(value: float) -> str:
    """
    >>> share(0.98731)
    '98.7\u202f%'
    """
    return f"{100 * value:.1f}{THIN}%"


def nats(value: float) -> str:
    """Four decimals where small, two digits where large: what a column can be compared by.

    >>> nats(0.00051), nats(0.032), nats(1.17), nats(0.0000008)
    ('0.0005', '0.032', '1.2', '<\xa00.0001')
    """
    if 0 < value < 0.00005:
        return "<\u00a00.0001"
    return fixed(value, 4) if abs(value) < 0.01 else number(value, 2)


def signed(value: float) -> str:
    """
    >>> signed(0.0063), signed(-0.00001)
    ('+0.0063', '0.0000')
    """
    if abs(value) < 0.00005:
        return "0.0000"
    return f"+{nats(value)}" if value > 0 else nats(value)


def label(one: Format, several: bool) -> str:
    """The format's name, with its model's where there are several."""
    return f"{one.arm}: {one.name}" if several else one.name


def headline(found: Sequence[Format]) -> str:
    """One or two sentences: the smallest files that are safe, or what comes nearest to it."""
    best = recommended(found)
    if best is None:
        return _of_cache(fewest_bits(found))
    files = f"{best.name}, {megabytes(best.bytes)}"
    if best.kind == "checkpoint":
        size = f", {number(best.smaller, 2)}× smaller than its base" if best.smaller else ""
        return f"{files}{size}: {best.tier} here. {_costs(best)}"
    of = {"weights": " weights"}.get(best.kind, "")
    than = f", {number(best.smaller, 2)}× smaller than the files now" if best.smaller else ""
    size = f"{best.name}{of}, {megabytes(best.bytes)}{than}"
    if best.tier == "safe":
        return f"The smallest that is safe: {size}. {_costs(best)}"
    return f"Nothing measured is safe. The smallest that is {best.tier}: {size}. {_costs(best)}"


def _of_cache(best: Format | None) -> str:
    """The answer where nothing makes the files smaller."""
    if best is None:
        return "Nothing here was measured that makes the files smaller."
    what = f"{best.name.removesuffix(' @ kv')}, {number(best.row.bits or 0.0)} bits a value"
    if best.tier == "safe":
        return f"Keys and values: the fewest bits that are safe are those of {what}. {_costs(best)}"
    return f"Keys and values: nothing measured is safe. The fewest bits that are {best.tier}: {what}. {_costs(best)}"


def _costs(one: Format) -> str:
    values = one.values
    parts = [f"KLD {nats(values['kld'])}"] if "kld" in values else []
    what = "class" if _pictures([one]) else "token"
    parts += [f"the same most likely {what} in {share(1 - values['top1_changed'])}"] if "top1_changed" in values else []
    parts += [f"loss {signed(values['loss_increase'])}"] if "loss_increase" in values else []
    return f"It costs: {listed(parts)}{', within noise' if one.in_noise else ''}." if parts else ""


def points(found: Sequence[Format]) -> list[tuple[str, str]]:
    """What else a reader decides: what smaller files cost, low-bit arithmetic, the cache. Label and sentence."""
    best, said = recommended(found), list[tuple[str, str]]()
    plain_ones = [one for one in found if one.kind == "weights"]
    for word in ("marginal", "costly"):
        one = smallest(plain_ones, word)
        if one and best and one.bytes < best.bytes:
            said.append((f"Smaller, {word}", f"{one.name} weights, {megabytes(one.bytes)}, {_short(one)}"))
    computed = [one for one in found if one.kind == "weights and inputs"]
    if one := recommended(computed):
        said.append(("Low-bit arithmetic", f"{one.name}, {megabytes(one.bytes)}, is {one.tier}, {_short(one)}"))
    for kind, name in (("cache", "Keys and values"), ("boundaries", "Block boundaries")):
        words = [f"{one.name.removesuffix(f' @ {kind}')} is {one.tier}{_kld(one)}" for one in found if one.kind == kind]
        said += [(name, listed(words))] if words else []
    broken = [one.name for one in found if one.tier == "broken"]
    return said + ([("Broken", listed(broken))] if broken else [])


def _kld(one: Format) -> str:
    return f" (KLD {nats(one.values['kld'])})" if "kld" in one.values else ""


def _short(one: Format) -> str:
    kld = [f"KLD {nats(one.values['kld'])}"] if "kld" in one.values else []
    return listed([*kld, f"loss {signed(one.values['loss_increase'])}"])


def files(found: Sequence[Format], several: bool) -> Table | None:
    """Formats that change the files, largest first; None where there are none."""
    rows = [one for one in found if one.kind in ("weights", "weights and inputs", "checkpoint")]
    if not rows:
        return None
    best = recommended(found)
    return Table(
        caption="Formats by the size of the model's files",
        columns=("format", "verdict", "files", *_titles(rows)),
        rows=tuple((_name(one, several), _verdict(one), _size(one), *_measured(one, rows)) for one in rows),
        words=(1,),
        marked=tuple(i for i, one in enumerate(rows) if one is best),
    )


def flows(found: Sequence[Format], several: bool) -> Table | None:
    """Formats of what flows through the model, whose files stay as they are; None where there are none."""
    rows = [one for one in found if one.kind in ("cache", "boundaries", "other activations")]
    if not rows:
        return None
    bits = [NONE if one.row.bits is None else number(one.row.bits) for one in rows]
    return Table(
        caption="Formats of the cache and of block boundaries: the files stay as they are",
        columns=("format", "verdict", "bits a value", *_titles(rows)),
        rows=tuple(
            (_name(one, several), _verdict(one), size, *_measured(one, rows))
            for one, size in zip(rows, bits, strict=True)
        ),
        words=(1,),
    )


def _titles(rows: Sequence[Format]) -> list[str]:
    each = "image" if _pictures(rows) else "token"
    titles = [f"KLD, nats/{each}", "loss increase (95 %)", "same top p", "flips", "worst part, KLD"]
    return [*titles[:2], "error rate", *titles[2:4]] if _pictures(rows) else titles


def _pictures(rows: Sequence[Format]) -> bool:
    """Images have no perplexity: what they are named is what counts."""
    return not any("perplexity" in one.values for one in rows)


def _name(one: Format, several: bool) -> Markup:
    words = plain.treatment(one.assign) if one.assign else "as it was quantized elsewhere"
    return _small(label(one, several), words)


def _verdict(one: Format) -> Markup | str:
    if not one.tier:
        return NONE
    bound = f"{JUDGED[one.because]} ≤\u00a0{_bound(one.bounds[one.because])}"
    return Markup('<span class="tier {}">{}</span><small class="how">{}</small>').format(one.tier, one.tier, bound)


def _bound(value: float) -> str:
    """So many digits that it does not round to a threshold that it is above."""
    return fixed(value, 4) if value < 0.1 else number(value)


def _size(one: Format) -> str:
    if not one.bytes:
        return NONE
    return _small(megabytes(one.bytes), f"{number(one.smaller, 2)}× smaller" if one.smaller else "")


def _measured(one: Format, rows: Sequence[Format]) -> list[str]:
    values = one.values
    kld = nats(values["kld"]) if "kld" in values else NONE
    same = share(1 - values["top1_changed"]) if "top1_changed" in values else NONE
    flips = share(values["flips"]) if "flips" in values else NONE
    worst = NONE if one.worst is None else _small(nats(one.worst[1]), part_name(one.worst[0]))
    if _pictures(rows):
        return [kld, increase(one), share(values.get("error_rate", 0.0)), same, flips]
    return [kld, increase(one), same, flips, worst]


def part_name(name: str) -> str:
    """
    >>> part_name("position:0-63"), part_name("code")
    ('tokens 0–63', 'code')
    """
    kind, _, rest = name.partition(":")
    return f"tokens {rest.replace('-', '–')}" if kind == "position" and rest else name


def increase(one: Format) -> Markup:
    """With its interval; what cannot be told from none says so."""
    value = one.values["loss_increase"]
    low, high = one.row.intervals.get("loss_increase", (None, None))
    span = "" if low is None or high is None else f"{signed(low)} to {signed(high)}"
    noise = "within noise" if one.in_noise else ""
    return _small(signed(value), span, noise)


def _small(text: str, *below: str) -> Markup:
    """A number, and what it needs to be read, small below it."""
    lines = (Markup('<small class="how">{}</small>').format(line) for line in below if line)
    return Markup("").join([Markup("{}").format(text), *lines])


def thresholds() -> list[tuple[str, str]]:
    """Each word, and up to how many nats it stands for."""
    bounds = [f"up to {bound:g} nats" if bound < float("inf") else "above that" for bound in TIERS.values()]
    return list(zip(TIERS, bounds, strict=True))


def floors(found: Sequence[Format], numerical: float | None) -> str:
    """The noise floors of the table in one sentence or two."""
    windows = [one.values["floor/window"] for one in found if "floor/window" in one.values]
    said = [f"another batch size alone moves a window's loss by up to {number(numerical, 2)}"] if numerical else []
    if windows:
        ends = dict.fromkeys(number(end, 2) for end in (min(windows), max(windows)))
        span = f"{' to '.join(ends)}{', by format' if len(ends) > 1 else ''}"
        said.append(f"one standard error of the loss increase over the data is {span}")
    within = sum(one.in_noise for one in found)
    tail = f" The loss increase of {counted(within, 'format')} cannot be told from none." if within else ""
    return f"Noise: {'; '.join(said)}.{tail}" if said else ""
