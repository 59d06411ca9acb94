"""What a suite claims, checked against what it measures."""

from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass

from qbench.capture.sites import resolve
from qbench.data.catalog import kind as kind_of
from qbench.metrics.catalog import METRICS
from qbench.names import UnknownName, pick, repeated, suggestion
from qbench.suite import quantizers
from qbench.suite.findings import Path, child
from qbench.suite.flows import Flows
from qbench.suite.form import EffectEntry, MeasureForm, SuiteForm
from qbench.suite.measured import Sites, inside
from qbench.suite.mistakes import SHOWN
from qbench.suite.value import UNQUANTIZED, Effect, Measure, Pretrained, StackArm, Tensors

# Metrics whose names begin so have keys of their own in a suite.
FOLLOWED: Mapping[str, str] = {"noise/": "noise", "add/": "adds"}
FLOW = "flow/"
_PARTS = ("error", "inherited", "introduced", "cross", "gain")  # that a whole block has

SHAPE = ("rms", "excess_kurtosis/", "kurtosis/", "crest_db", "max_to_median", "gaussian/")
# What is recorded where a claim looks, by what is measured there: how a claim asks for it, and the metrics, or with a
# slash at the end what their names begin with.
RECORDED: Mapping[str, tuple[str, tuple[str, ...]]] = {
    "shape": ("kind and sites, without a quantizer", SHAPE),
    "error": (
        "kind, sites and a quantizer",
        (
            *("error_db", "error_db/channel", "relative_error", "max_error", "saturated", "zeroed", "levels"),
            *("underflowed_scales", "dead_channels", "shape_loss_db", "lloyd_gap_db", "rate_distortion_gap_db"),
        ),
    ),
    "noise": ("kind: activation and sites, without a quantizer", ("noise/",)),
    "adds": ("kind: activation and sites, without a quantizer", ("add/",)),
    "flow": ("a treatment of flow", tuple(f"{FLOW}{part}" for part in _PARTS)),
    "stacks": ("sites of two stacks", (*SHAPE, "add/", "theory/")),
}
# What a loss is recorded with, and what must hold for that.
LOSS: Mapping[str, tuple[str, ...]] = {
    **dict.fromkeys(("loss", "error_rate", "floor/window"), ()),
    **dict.fromkeys(("error_rate/exact", "error_rate/problem"), ("problems",)),
    "bits_per_byte": ("text",),
    "floor/numerical": ("plain",),
    **dict.fromkeys(("sites_touched", "levels", "bits_per_value/model"), ("treated",)),
    "loss_increase": ("compared",),
    "loss_increase/inside": ("inside",),
    "perplexity": ("loaded", "text"),
    **dict.fromkeys(("kld", "kld/reverse", "delta_p", "delta_p/rms", "top1_changed"), ("loaded", "compared")),
    **dict.fromkeys(("flips", "flips/to_wrong", "flips/to_right"), ("loaded", "compared")),
    **dict.fromkeys(("perplexity_ratio", "loss_correlation"), ("loaded", "text", "compared")),
    **{
        name: ("loaded", "text", "compared")
        for name in METRICS
        if name.endswith("/worst_slice") or (name.startswith("kld/") and name != "kld/reverse")
    },
}
NEEDS: Mapping[str, str] = {
    "text": "is of data that are text",
    "problems": "is of a procedural task: data: dyck or data: set; elsewhere there is error_rate",
    "plain": f"is of the treatment {UNQUANTIZED}",
    "treated": "is of a treatment that quantizes something",
    "compared": f"is of a treatment that quantizes something; of {UNQUANTIZED} there is loss",
    "loaded": "is of models that are loaded (load: FOLDER); of trained ones there are loss and loss_increase",
    "inside": "is of arms with quantizers inside their training (training.quantized); of others there is loss",
}


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
        if first == second and entry.against in (None, entry.measure):
            text = f"{first} is given twice, measured in one way; name another arm, or say `against` what to compare it"
            self.sites.findings.add((*path, "between"), text)
        direction, bound = entry.thesis.split()
        return Effect(
            claim=claim,
            between=(first, second),
            measure=self._measure(entry.measure, between, (*path, "measure"), between[: 1 if entry.against else 2]),
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
        return self._measure(entry.against, between, path, between[1:])

    def _measure(self, form: MeasureForm, between: tuple[str, str], path: Path, of: Sequence[str]) -> Measure:
        """What is measured of the arms `of` a claim."""
        findings = self.sites.findings
        try:
            pick(METRICS, form.metric, "metric")
            self._check_recorded(form, between, path, of)
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

    def _check_recorded(self, form: MeasureForm, between: Sequence[str], path: Path, of: Sequence[str]) -> None:
        """The metric must be among the numbers that are recorded where the claim looks."""
        add, stacks = self.sites.findings.add, any(name in self._stacks for name in between)
        if stacks and form.kind is None:
            add((*path, "treatment"), f"a stack of random layers has no treatments; ask with {RECORDED['stacks'][0]}")
            return
        what = "stacks" if stacks else measured_as(form)
        if what == "loss" and form.metric in LOSS:
            holds = self._holds(form, of)
            if missing := [need for need in LOSS[form.metric] if need not in holds]:
                add((*path, "metric"), f"{form.metric} {NEEDS[missing[0]]}")
        elif not recorded(what, form.metric):
            ways = [way for other, (way, _) in RECORDED.items() if other != "stacks" and recorded(other, form.metric)]
            ways += ["a treatment"] * (form.metric in LOSS)
            known = ", ".join(list(LOSS if what == "loss" else RECORDED[what][1])[:SHOWN])
            asked = f"asked with {' or '.join(ways)}" if ways else "nothing that a claim can ask"
            add((*path, "metric"), f"{form.metric} is {asked}; as it stands here, known: {known}")

    def _holds(self, form: MeasureForm, of: Sequence[str]) -> set[str]:
        """Which of NEEDS a loss of these arms meets; all that other mistakes leave open."""
        arms = {arm.name: arm for arm in self.sites.arms}
        loads = any(isinstance(arm.model, Pretrained) for arm in arms.values())
        treated = form.treatment != UNQUANTIZED
        found = {
            "treated": treated,
            "plain": not treated,
            "loaded": loads,
            "compared": treated or all(name in arms and arms[name].reference for name in of),
            "inside": all(name in arms and inside(arms[name]) for name in of),
        }
        unsure = {"loaded", "compared", "inside"} if "models" in self.unsure else set[str]()
        return {need for need, met in found.items() if met} | unsure | self._kinds

    @property
    def _kinds(self) -> set[str]:
        """What the data are; any of it where their name is a mistake of its own."""
        node = child(self.sites.findings.root, "data")
        try:
            return {kind_of(str(node.value if node else SuiteForm().data))}
        except UnknownName:
            return {"text", "problems", "images"}

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


def measured_as(form: MeasureForm) -> str:
    """What a number of models was measured as: a loss, or a row of RECORDED."""
    if form.kind is None:
        return "flow" if form.metric.startswith(FLOW) else "loss"
    followed = (what for start, what in FOLLOWED.items() if form.metric.startswith(start))
    return next(followed, "error" if form.quantizer else "shape")


def recorded(what: str, metric: str) -> bool:
    """Whether a metric is among what is recorded as `what`.

    >>> recorded("shape", "excess_kurtosis/token"), recorded("error", "excess_kurtosis/token")
    (True, False)
    """
    names = RECORDED[what][1] if what in RECORDED else ()
    return any(metric.startswith(name) if name.endswith("/") else metric == name for name in names)
