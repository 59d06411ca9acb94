"""What a suite measures, checked against its arms: tensors by kind and site, and treatments."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from qbench.capture.sites import Kind, resolve
from qbench.names import UnknownName, suggestion
from qbench.suite import quantizers
from qbench.suite.findings import Findings, Path
from qbench.suite.form import TensorsEntry, TreatmentEntry
from qbench.suite.value import UNQUANTIZED, Arm, Tensors, Treatment

WINDOWS = 16  # of a tensors entry that says nothing else
KINDS: tuple[Kind, ...] = ("activation", "weight")  # what a treatment may quantize


@dataclass(frozen=True, slots=True)
class Sites:
    """Selects places in every arm; `arms` are those of `one_of_each`."""

    arms: Sequence[Arm]
    findings: Findings

    def select(self, pattern: str, kind: Kind, path: Path) -> dict[str, frozenset[str]]:
        """Arm -> the sites that the pattern at `path` selects there; none in one arm is a mistake, and gives {}.

        An arm whose sites are known only when it is loaded is left out: there the cells fail that select nothing.
        """
        try:
            return {arm.name: frozenset(_resolve(pattern, kind, arm)) for arm in self.arms if arm.names}
        except UnknownName as error:
            self.findings.add(path, str(error))
            return {}

    def among(self, wanted: dict[str, frozenset[str]], patterns: Sequence[str], kind: Kind) -> str:
        """A wanted site that none of the patterns selects; empty where they select all."""
        for arm in self.arms:
            selected = {site for pattern in patterns for site in _resolve(pattern, kind, arm)}
            if missing := wanted.get(arm.name, frozenset()) - selected:
                return min(missing)
        return ""


def _resolve(pattern: str, kind: Kind, arm: Arm) -> tuple[str, ...]:
    try:
        return resolve(pattern, kind, arm.names) if arm.names else ()
    except UnknownName as error:
        raise UnknownName(f"{error}; looked for in arm {arm.name!r}") from None


def one_of_each(arms: Sequence[Arm]) -> tuple[Arm, ...]:
    """The first arm of each set of names: of each wiring and depth, and each model that is loaded. Every arm beside
    them that is compared with a reference, or has quantizers inside its training: claims ask which those are.
    """

    def key(arm: Arm) -> tuple[object, str]:
        return arm.names, arm.name if arm.reference or inside(arm) else ""

    return tuple({key(arm): arm for arm in reversed(arms)}.values())[::-1]


def inside(arm: Arm) -> bool:
    """Whether something is quantized in its training."""
    return bool(arm.training and arm.training.quantized)


def tensors(entries: Sequence[TensorsEntry], sites: Sites) -> tuple[Tensors, ...]:
    """The tensors entries of a file; measuring the same thing twice is a mistake."""
    made: list[Tensors] = []
    seen = set[object]()
    for i, entry in enumerate(entries):
        one = _tensors(entry, sites, ("tensors", i))
        place = (one.kind, one.sites, one.windows, one.split)
        again = [name for name in one.quantizers if (place, name) in seen]
        if again or (place in seen and not one.quantizers):
            sites.findings.add(("tensors", i), f"measured a second time: {', '.join(again) or 'the shape'}")
        seen |= {place, *((place, name) for name in one.quantizers)}
        made.append(one)
    return tuple(made)


def _tensors(entry: TensorsEntry, sites: Sites, path: Path) -> Tensors:
    weights = entry.kind == "weight"
    for key in ("windows", "split"):
        if weights and getattr(entry, key) is not None:
            sites.findings.add((*path, key), "weights are read from the model; no text is involved", key=True)
    if entry.outliers and entry.kind != "activation":
        sites.findings.add((*path, "outliers"), "an outlier map is one of activations", key=True)
    for j, pattern in enumerate(entry.sites):
        sites.select(pattern, entry.kind, (*path, "sites", j))
    return Tensors(
        kind=entry.kind,
        sites=entry.sites,
        windows=0 if weights else entry.windows or WINDOWS,
        split="" if weights else entry.split or "test",
        outliers=entry.outliers,
        quantizers=quantizers.names(entry.quantizers, sites.findings, (*path, "quantizers")),
    )


def treatments(entries: Sequence[TreatmentEntry], sites: Sites) -> tuple[Treatment, ...]:
    """The empty treatment, then those of the file."""
    made = {UNQUANTIZED: Treatment(name=UNQUANTIZED)}
    for i, entry in enumerate(entries):
        path = ("treatments", i)
        for treatment in treatments_of(entry, sites, path):
            if treatment.name in made:
                sites.findings.add(path, f"a second treatment {treatment.name!r}")
            made[treatment.name] = treatment
    return tuple(made.values())


def treatments_of(entry: TreatmentEntry, sites: Sites, path: Path) -> Iterator[Treatment]:
    """The treatments that the entry at `path` stands for."""
    return _scoped(entry, sites, path) if entry.name is None else _assigned(entry, sites, path)


def _scoped(entry: TreatmentEntry, sites: Sites, path: Path) -> Iterator[Treatment]:
    names = quantizers.names(entry.quantizers, sites.findings, (*path, "quantizers"))
    for j, scope in enumerate(entry.scope):
        kind = entry.kind or ("weight" if scope == "weights" else "activation")
        sites.select(scope, kind, (*path, "scope", j))
        for name in names:
            yield Treatment(name=f"{name} @ {scope}", scope=scope, assign={f"{kind}:{scope}": name})


def _assigned(entry: TreatmentEntry, sites: Sites, path: Path) -> Iterator[Treatment]:
    assign: dict[str, str] = {}
    taken: dict[tuple[str, Kind], frozenset[str]] = {}
    for key, text in entry.assign.items():
        place = (*path, "assign", key)
        kind = _kind(key)
        if kind is None:
            near = suggestion(key.partition(":")[0], KINDS)
            sites.findings.add(place, f"no kind of tensor{near} allowed: activation:SITES, weight:SITES", key=True)
            continue
        assign[key] = quantizers.name(text, sites.findings, place)
        for arm, selected in sites.select(key.removeprefix(f"{kind}:"), kind, place).items():
            if both := selected & taken.get((arm, kind), frozenset()):
                sites.findings.add(place, f"{min(both)} already has a quantizer in this treatment", key=True)
            taken[arm, kind] = selected | taken.get((arm, kind), frozenset())
    yield Treatment(name=entry.name or "", assign=dict(sorted(assign.items())))


def _kind(key: str) -> Kind | None:
    for kind in KINDS:
        if key.startswith(f"{kind}:"):
            return kind
    return None
