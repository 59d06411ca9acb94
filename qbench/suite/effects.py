"""What a suite claims, checked against what it measures."""

from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass

from qbench.capture.sites import resolve
from qbench.metrics.catalog import METRICS
from qbench.names import UnknownName, pick, repeated, suggestion
from qbench.suite import quantizers
from qbench.suite.findings import Path
from qbench.suite.flows import Flows
from qbench.suite.form import EffectEntry, MeasureForm
from qbench.suite.measured import Sites
from qbench.suite.mistakes import SHOWN
from qbench.suite.value import Effect, Measure, StackArm, Tensors

# Metrics whose names begin so have keys of their own in a suite.
FOLLOWED: Mapping[str, str] = {"noise/": "noise", "add/": "adds"}
FLOW = "flow/"


@dataclass(frozen=True, slots=True)
class Effects:
    """Reads the effects of a file.

    `arms` (stacks apart) and `treatments` are the names that an effect may use. `unsure` are the keys of the file that
    had mistakes of their own: what is missing there is no second mistake here.
    """

    arms: Sequence[str]
    treatments: Sequence[str]
    tensors: Sequence[Tensors]
    flows: Flows
    sites: Sites
    unsure: Set[str]

    def read(self, entries: Sequence[EffectEntry]) -> tuple[Effect, ...]:
        found = [effect for i, entry in enumerate(entries) for effect in self._effects(entry, ("effects", i))]
        return tuple(found)

    def _effects(self, entry: EffectEntry, path: Path) -> Iterator[Effect]:
        told = {"claim": entry.claim, "between": entry.between, "each": entry.each}
        claims = [(one["claim"], tuple(one["between"])) for one in repeated(told)]
        if len({claim for claim, _ in claims}) < len(claims):
            keys = " and ".join(f"{{{key}}}" for key in entry.each)
            self.sites.findings.add((*path, "claim"), f"claims that read alike: name {keys} in it")
        for claim, between in claims:
            yield self._effect(entry, claim, between, path)

    def _effect(self, entry: EffectEntry, claim: str, between: tuple[str, str], path: Path) -> Effect:
        first, second = between
        if "models" not in self.unsure:
            arms = [*self.arms, *self._stacks]
            self._known("arm", first, arms, (*path, "between", 0))
            self._known("arm", second, arms, (*path, "between", 1))
        direction, bound = entry.thesis.split()
        return Effect(
            claim=claim,
            between=(first, second),
            measure=self._measure(entry.measure, between, (*path, "measure")),
            against=self._against(entry, between, (*path, "against")),
            compare=entry.compare,
            direction="above" if direction == "above" else "below",
            bound=float(bound),
        )

    def _against(self, entry: EffectEntry, between: tuple[str, str], path: Path) -> Measure | None:
        if entry.against is None:
            return None
        if entry.against.metric != entry.measure.metric:
            text = f"{entry.against.metric!r} against {entry.measure.metric!r}: an effect compares one metric"
            self.sites.findings.add((*path, "metric"), text)
        return self._measure(entry.against, between, path)

    def _measure(self, form: MeasureForm, between: tuple[str, str], path: Path) -> Measure:
        findings = self.sites.findings
        try:
            pick(METRICS, form.metric, "metric")
        except UnknownName as error:
            findings.add((*path, "metric"), str(error))
        if form.kind is None:
            self._check_treatment(form, path)
            return Measure(metric=form.metric, treatment=form.treatment)
        named = form.quantizer
        quantizer = quantizers.name(named, findings, (*path, "quantizer")) if named else ""
        measure = Measure(metric=form.metric, kind=form.kind, sites=form.sites, quantizer=quantizer)
        if stacks := [self._stacks[name] for name in between if name in self._stacks]:
            self._check_stacks(measure, stacks, path)
        elif form.metric.startswith(tuple(FOLLOWED)):
            self._check_followed(measure, path)
        elif not self.unsure & {"models", "tensors"}:
            self._check_measured(measure, path)
        return measure

    @property
    def _stacks(self) -> dict[str, StackArm]:
        return {stack.name: stack for stack in self.flows.stacks}

    def _check_treatment(self, form: MeasureForm, path: Path) -> None:
        """The loss with a treatment, or with a metric of flow its error behind the last block."""
        followed = form.metric.startswith(FLOW)
        known = [one.treatment.name for one in self.flows.flow] if followed else self.treatments
        if not self.unsure & {"flow" if followed else "treatments"}:
            what = "treatment of flow" if followed else "treatment"
            self._known(what, form.treatment, known, (*path, "treatment"))

    def _check_stacks(self, measure: Measure, stacks: Sequence[StackArm], path: Path) -> None:
        """Behind layers that both stacks have; nothing is quantized there."""
        findings = self.sites.findings
        if len(stacks) < 2:
            findings.add(path, f"{stacks[0].name!r} is a stack of random layers; it is compared with another stack")
        if measure.quantizer or measure.kind != "activation":
            findings.add(path, "of a stack, activations are measured without a quantizer")
            return
        for j, pattern in enumerate(measure.sites):
            for stack in stacks:
                try:
                    resolve(pattern, "activation", stack.names)
                except UnknownName:
                    last = stack.names.sites[-1]
                    findings.add((*path, "sites", j), f"{pattern!r} is no layer of {stack.name!r}: layer.0 to {last}")

    def _check_followed(self, measure: Measure, path: Path) -> None:
        """Noise and additions are measured where their own keys say, of activations as they are."""
        key = next(key for start, key in FOLLOWED.items() if measure.metric.startswith(start))
        findings = self.sites.findings
        if key in self.unsure:
            return
        if not getattr(self.flows, key):
            findings.add((*path, "metric"), f"the suite has no {key}, which measures this")
        elif measure.quantizer or measure.kind != "activation":
            findings.add(path, f"{key} is about activations, without a quantizer")
        elif key == "noise":
            known = [name for one in self.flows.noise for name in (*one.scopes, *one.sites)]
            for j, pattern in enumerate(measure.sites):
                self._known("scope or sites in noise", pattern, known, (*path, "sites", j))

    def _check_measured(self, measure: Measure, path: Path) -> None:
        """The sites of a claim must be among those that the suite measures, with its quantizer."""
        of_kind = [t for t in self.tensors if t.kind == measure.kind]
        names = list(dict.fromkeys(name for t in of_kind for name in t.quantizers))
        if not of_kind:
            self.sites.findings.add((*path, "kind"), f"no {measure.kind}s in tensors")
        elif measure.quantizer and measure.quantizer not in names:
            self._known(f"{measure.kind} quantizer", measure.quantizer, names, (*path, "quantizer"))
        else:
            measured = [t for t in of_kind if not measure.quantizer or measure.quantizer in t.quantizers]
            self._check_sites(measure.sites, measured, (*path, "sites"))

    def _check_sites(self, patterns: Sequence[str], measured: Sequence[Tensors], path: Path) -> None:
        kind = measured[0].kind
        known = [pattern for t in measured for pattern in t.sites]
        for j, pattern in enumerate(patterns):
            wanted = self.sites.select(pattern, kind, (*path, j))
            if site := self.sites.among(wanted, known, kind):
                text = f"{site} is not among the sites in tensors; known: {', '.join(known[:SHOWN])}"
                self.sites.findings.add((*path, j), text)

    def _known(self, what: str, name: str, names: Sequence[str], path: Path) -> None:
        if name not in names:
            near = list(names)[:SHOWN]
            self.sites.findings.add(path, f"no {what} {name!r}{suggestion(name, near)} known: {', '.join(near)}")
