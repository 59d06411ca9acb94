"""What a suite claims, checked against what it measures."""

from collections.abc import Sequence, Set
from dataclasses import dataclass

from qbench.metrics.catalog import METRICS
from qbench.names import UnknownName, pick, suggestion
from qbench.suite import quantizers
from qbench.suite.findings import Path
from qbench.suite.form import EffectEntry, MeasureForm
from qbench.suite.measured import Sites
from qbench.suite.mistakes import SHOWN
from qbench.suite.value import Effect, Measure, Tensors


@dataclass(frozen=True, slots=True)
class Effects:
    """Reads the effects of a file.

    `arms` and `treatments` are the names that an effect may use. `unsure` are the keys of the file that had mistakes of
    their own: what is missing there is no second mistake here.
    """

    arms: Sequence[str]
    treatments: Sequence[str]
    tensors: Sequence[Tensors]
    sites: Sites
    unsure: Set[str]

    def read(self, entries: Sequence[EffectEntry]) -> tuple[Effect, ...]:
        return tuple(self._effect(entry, ("effects", i)) for i, entry in enumerate(entries))

    def _effect(self, entry: EffectEntry, path: Path) -> Effect:
        first, second = entry.between
        if "models" not in self.unsure:
            self._known("arm", first, self.arms, (*path, "between", 0))
            self._known("arm", second, self.arms, (*path, "between", 1))
        direction, bound = entry.thesis.split()
        return Effect(
            claim=entry.claim,
            between=(first, second),
            measure=self._measure(entry.measure, (*path, "measure")),
            compare=entry.compare,
            direction="above" if direction == "above" else "below",
            bound=float(bound),
        )

    def _measure(self, form: MeasureForm, path: Path) -> Measure:
        findings = self.sites.findings
        try:
            pick(METRICS, form.metric, "metric")
        except UnknownName as error:
            findings.add((*path, "metric"), str(error))
        if form.kind is None:
            if "treatments" not in self.unsure:
                self._known("treatment", form.treatment, self.treatments, (*path, "treatment"))
            return Measure(metric=form.metric, treatment=form.treatment)
        named = form.quantizer
        quantizer = quantizers.name(named, findings, (*path, "quantizer")) if named else ""
        measure = Measure(metric=form.metric, kind=form.kind, sites=form.sites, quantizer=quantizer)
        if not self.unsure & {"models", "tensors"}:
            self._check_measured(measure, path)
        return measure

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
