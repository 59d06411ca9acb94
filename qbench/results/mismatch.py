"""What forbids comparing two cells, in words: other data, another tokenizer, other sites, another quantizer scope."""

from collections.abc import Mapping, Sequence
from typing import Any

from qbench.results.record import Attempt, Closing
from qbench.results.run import part

# How a model's numbers are counted, per token or per document, when its vocabulary changes.
BY_TOKEN = ("loss", "kernel", "sensitivity", "error", "shape", "outliers")
SHOWN = 2  # names in an explanation


def objection(x: Attempt, y: Attempt) -> str:
    """Why these answers to one question may not be compared; nothing where they may. `x` is of this run."""
    if x.closing.status != "measured":
        return f"{x.closing.status} in this run"
    if y.closing.status != "measured":
        return f"{y.closing.status} in the other run"
    if digest(x.closing) != digest(y.closing):
        return "the data differ"
    ours, theirs = (_counts(one) for one in (x, y))
    if any(ours[place] != theirs[place] for place in ours if place in theirs):
        return "the numbers of samples differ"
    return _tokenizers(x.closing, y.closing) or _sites(x, y)


def nearest(cell: Closing, alike: Sequence[Closing]) -> str:
    """How the closest of `alike`, cells about the same thing, asks another question; nothing where none is close."""
    found = min((_differences(cell, other) for other in alike), key=len, default=[])
    return " and ".join(found) if len(found) <= SHOWN else ""


def _counts(cell: Attempt) -> dict[tuple[object, ...], int]:
    """Samples behind each number of the whole data; models measured beside a reference also have their slices."""
    whole = [one for one in cell.records if not one.slice]
    return {(one.kind, one.site, one.scope, one.quantizer, one.step): one.n for one in whole}


def digest(closing: Closing) -> str:
    """Of the data that a cell was measured on."""
    return str(part(closing.spec, "data").get("digest"))


def _tokenizers(x: Closing, y: Closing) -> str:
    ours, theirs = (str(part(one.spec, "model").get("tokenizer", "")) for one in (x, y))
    if what(x) in BY_TOKEN and ours and theirs and ours != theirs:
        return f"the tokenizers differ ({ours[:8]} and {theirs[:8]}): a token of one is no token of the other"
    return ""


def _sites(x: Attempt, y: Attempt) -> str:
    """Two architectures may have other places under the same scope; one architecture may not."""
    if _architecture(x.closing) != _architecture(y.closing):
        return ""
    ours, theirs = ({record.site for record in one.records if not record.slice} for one in (x, y))
    if ours != theirs:
        odd = sorted(ours ^ theirs)
        return f"the sites differ: {', '.join(odd[:SHOWN])}{' ...' if len(odd) > SHOWN else ''} in one run only"
    touched = [{record.values.get("sites_touched") for record in one.records if not record.slice} for one in (x, y)]
    return "" if touched[0] == touched[1] else "the sites differ: the treatments touched another number of them"


def _architecture(closing: Closing) -> tuple[object, ...]:
    model = part(closing.spec, "model")
    return tuple(model.get(name) for name in ("arch", "model_type", "wiring", "layers"))


def what(closing: Closing) -> str:
    return str(part(closing.spec, "measurement").get("what", ""))


def about(closing: Closing) -> tuple[object, ...]:
    """What is measured of which quantizers, wherever and on whatever."""
    measurement = part(closing.spec, "measurement")
    quantizers = part(measurement, "treatment", "assign").values()
    name = part(measurement, "options").get("name")
    return what(closing), measurement.get("kind"), measurement.get("quantizer"), name, tuple(sorted(quantizers))


def _differences(x: Closing, y: Closing) -> list[str]:
    """Everything that makes these two questions, in words."""
    ours, theirs = (part(one.spec, "measurement") for one in (x, y))
    found: list[str] = []
    if digest(x) != digest(y):
        found.append(f"the data differ: {_data(x)} and {_data(y)}")
    scopes = [part(one, "treatment", "assign") for one in (ours, theirs)]
    if scopes[0] != scopes[1]:
        found.append(f"the quantizer scopes differ: {_keys(scopes[0])} and {_keys(scopes[1])}")
    if ours.get("sites") != theirs.get("sites"):
        found.append(f"the sites differ: {_listed(ours.get('sites'))} and {_listed(theirs.get('sites'))}")
    windows = [_windows(one) for one in (ours, theirs)]
    if windows[0] != windows[1]:
        found.append(f"the windows differ: {windows[0]} and {windows[1]}")
    if ours.get("options") != theirs.get("options"):
        found.append("it is asked with other options")
    if _revisions(x) != _revisions(y):
        found.append(f"measured by another revision ({_revisions(x)} and {_revisions(y)}); run it again")
    return found or ["the definitions differ"]


def _data(closing: Closing) -> str:
    data = part(closing.spec, "data")
    return f"{data.get('name', 'unknown')} ({digest(closing)[:8]})"


def _keys(assign: Mapping[str, Any]) -> str:
    return ", ".join(assign) or "none"


def _listed(sites: Any) -> str:
    names = [str(site) for site in sites or ()]
    return f"{', '.join(names[:SHOWN])}{' ...' if len(names) > SHOWN else ''}" or "none"


def _windows(measurement: Mapping[str, Any]) -> str:
    passage = part(measurement, "passage")
    told = [f"{measurement.get('windows', 0)} of {measurement.get('split', '')}"]
    return ", ".join([*told, *(f"{name} {value}" for name, value in passage.items())])


def _revisions(closing: Closing) -> str:
    revisions = part(closing.spec, "revisions")
    return ", ".join(f"{name} {value}" for name, value in revisions.items() if name != "train") or "none"
