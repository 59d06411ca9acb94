"""Quantizers inside a training: how `training.quantized` is written, and what it selects in an arm."""

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Annotated, cast

from pydantic import AfterValidator, Field

from qbench.capture.sites import Kind, SiteNames, resolve
from qbench.names import UnknownName, pick, suggestion
from qbench.quant.catalog import quantizer_spec
from qbench.suite.findings import Findings, Path, child
from qbench.train.spec import EVERY_STATE, KINDS, STATES, Optimizer

KEY = "training.quantized"


def _place(key: str) -> str:
    kind, _, what = key.partition(":")
    if kind not in KINDS or not what:
        near = suggestion(kind, KINDS) if kind not in KINDS else " and its places;"
        wanted = ", ".join(f"{kind}:SITES" for kind in KINDS[:-1])
        raise ValueError(f"no kind of tensor{near} allowed: {wanted}, {KINDS[-1]}:NAME")
    return key


def _quantizer(text: str) -> str:
    spec = quantizer_spec(text)
    if spec.static:
        raise ValueError("a training has no calibration data to fix scales with; leave out +static")
    return str(spec)


def _ordered(found: dict[str, str] | None) -> dict[str, str] | None:
    """In one order, since their order says nothing; nothing inside is the same as no word about it."""
    return dict(sorted(found.items())) if found else None


Word = Annotated[str, Field(min_length=1, max_length=200)]
Inside = Annotated[
    dict[Annotated[Word, AfterValidator(_place)], Annotated[Word, AfterValidator(_quantizer)]] | None,
    AfterValidator(_ordered),
]


def fits(
    quantized: Mapping[str, str], arm: tuple[str, SiteNames, Optimizer], paths: Sequence[Path], findings: Findings
) -> bool:
    """Whether every key selects something in an arm (name, places, optimizer), and nothing is selected twice.

    `paths` are where `quantized` may stand in the file. What several arms have in common is one mistake.
    """
    name, names, optimizer = arm
    path = next((path for path in paths if _keys(findings, path) == set(quantized)), paths[-1])
    selected: dict[str, frozenset[str]] = {}
    faults: dict[str, str] = {}
    for key in quantized:
        try:
            selected[key] = _selected(key, names, optimizer)
        except UnknownName as error:
            faults[key] = f"{error}; looked for in arm {name!r}"
    for one, other in combinations(selected, 2):
        if both := selected[one] & selected[other]:
            faults.setdefault(other, f"{min(both)} already has a quantizer in this training, by {one!r}")
    for key, text in faults.items():
        _add_once(findings, (*path, key), text)
    return not faults


def _selected(key: str, names: SiteNames, optimizer: Optimizer) -> frozenset[str]:
    """What a key stands for, each with its kind: places, matrices or states. Raises UnknownName where it is nothing."""
    kind, _, what = key.partition(":")
    if kind == "state":
        known = STATES[optimizer]
        pick({**known, EVERY_STATE: ""}, what, f"state of {optimizer}")
        found: Sequence[str] = list(known) if what == EVERY_STATE else [what]
    else:
        found = resolve(what, cast(Kind, kind), names)
    return frozenset(f"{kind}:{one}" for one in found)


def _keys(findings: Findings, path: Path) -> set[str] | None:
    """The keys of the mapping at `path`; None where there is none."""
    node = findings.root
    for part in path:
        below = child(node, part)
        if below is None:
            return None
        node = below
    return set(node.value) if isinstance(node.value, Mapping) else None


def _add_once(findings: Findings, path: Path, text: str) -> None:
    place = findings.place(path, key=True)
    if all((mistake.mark, mistake.path) != place for mistake in findings.mistakes):
        findings.add(path, text, key=True)
    else:
        findings.noted += 1
