"""What every format costs a model from elsewhere, and the thresholds behind the words from safe to broken."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType

from qbench.report.view import UNQUANTIZED, Arm, Row, View
from qbench.results.run import part

PRETRAINED = "pretrained"
# A convention of this page and no standard: nats per prediction, up to and with the bound.
TIERS: Mapping[str, float] = MappingProxyType({"safe": 0.01, "marginal": 0.05, "costly": 0.3, "broken": float("inf")})
# What a tier is judged by; the worst of them decides.
JUDGED: Mapping[str, str] = MappingProxyType({"kld": "KLD", "loss_increase": "loss", "kld/worst_slice": "worst slice"})
CLASSES = ("weights", "weights and inputs", "cache", "boundaries", "other activations", "checkpoint")
_CACHE = {"kv", "keys", "values"}
_BOUNDARIES = {"boundaries", "interior", "middle"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Format:
    """One treatment of one model, or a checkpoint beside its base, with its costs.

    `assign` says what each part becomes ("weight:weights" to "int8/channel"), empty for a checkpoint. `bytes` are those
    of the model's files, `stored` those of the unquantized model's; 0 where they are not known.
    """

    arm: str
    name: str
    assign: Mapping[str, str]
    row: Row
    stored: float = 0.0
    bytes: float = 0.0
    slices: Mapping[str, Mapping[str, float]] = field(default_factory=dict[str, Mapping[str, float]])

    @property
    def values(self) -> Mapping[str, float]:
        return self.row.values

    @property
    def kind(self) -> str:
        """One of CLASSES."""
        return _kind(self.assign)

    @property
    def whole_cache(self) -> bool:
        """Keys and values are both quantized, and nothing else."""
        halves = {"activation:keys", "activation:values"}
        return self.kind == "cache" and ("activation:kv" in self.assign or halves <= set(self.assign))

    @property
    def smaller(self) -> float:
        """How many times smaller the files are; 0 where that is not known."""
        return self.stored / self.bytes if self.bytes else 0.0

    @property
    def bounds(self) -> dict[str, float]:
        """What a tier is judged by: upper ends of 95 % intervals, so that few windows make no format look safer."""
        found = {name: self.values[name] for name in JUDGED if name in self.values}
        return {name: max(value, self.row.intervals.get(name, (value, value))[1]) for name, value in found.items()}

    @property
    def tier(self) -> str:
        """A word of TIERS, "" where nothing was measured that it is judged by."""
        bounds = self.bounds
        return tier(max(bounds.values())) if bounds else ""

    @property
    def because(self) -> str:
        """What decided the tier, and how large it may be."""
        return max(self.bounds, key=lambda name: self.bounds[name], default="")

    @property
    def in_noise(self) -> bool:
        """The loss increase cannot be told from none: its interval, or else two standard errors about it, hold 0."""
        ends = self.row.intervals.get("loss_increase")
        if ends is not None:
            return ends[0] <= 0 <= ends[1]
        floor = self.values.get("floor/window")
        return floor is not None and abs(self.values["loss_increase"]) <= 2 * floor

    @property
    def worst(self) -> tuple[str, float] | None:
        """The part of the data with the largest KLD: of its slices where there are several, else of its positions."""
        named = {name: v["kld"] for name, v in self.slices.items() if "kld" in v}
        apart = {name: v for name, v in named.items() if not is_position(name)}
        among = apart if len(apart) > 1 else {name: v for name, v in named.items() if is_position(name)}
        return max(among.items(), key=lambda item: item[1], default=None)


def is_position(name: str) -> bool:
    """A range of predictions of every window, rather than a part of the text."""
    return name.startswith("position:")


def tier(nats: float) -> str:
    """
    >>> tier(0.01), tier(0.011), tier(5.0)
    ('safe', 'marginal', 'broken')
    """
    return next(word for word, bound in TIERS.items() if nats <= bound)


def arms(seen: View) -> list[Arm]:
    """Models from elsewhere."""
    return [arm for arm in seen.arms if arm.model.get("arch") == PRETRAINED]


def stored(seen: View, arm: Arm) -> Row | None:
    """The record of the whole model's files."""
    return next((row for row in seen.select("model", arm=arm.name, site="", scope="")), None)


def formats(seen: View) -> list[Format]:
    """All that was compared with an unquantized model, largest files first; where files stay, in the suite's order."""
    found = [one for arm in arms(seen) for one in _of_arm(seen, arm)]
    return sorted(found, key=lambda one: (-one.bytes, one.values.get("kld", 0.0)) if one.bytes else (0.0, 0.0))


def _of_arm(seen: View, arm: Arm) -> list[Format]:
    assigned, parts = _assigned(seen, arm), _parts(seen, arm)
    compared = [row for row in seen.select("loss", arm=arm.name) if "loss_increase" in row.values]
    return [
        replace(
            _checkpoint(seen, arm, row) if row.treatment == UNQUANTIZED else _treated(seen, arm, row),
            assign=assigned.get(row.treatment, {}),
            slices=parts.get(row.treatment, {}),
        )
        for row in compared
    ]


def _assigned(seen: View, arm: Arm) -> dict[str, Mapping[str, str]]:
    """What each treatment makes of each part, by the treatment's name."""
    treatments = [part(c.spec, "measurement", "treatment") for c in seen.cells if c.spec.get("arm") == arm.name]
    return {str(one["name"]): one.get("assign") or {} for one in treatments if one}


def _parts(seen: View, arm: Arm) -> dict[str, dict[str, Mapping[str, float]]]:
    """The costs of each part of the data, by treatment."""
    found: dict[str, dict[str, Mapping[str, float]]] = {}
    for row in seen.rows:
        if row.what == "loss" and row.arm == arm.name and row.slice:
            found.setdefault(row.treatment, {})[row.slice] = row.values
    return found


def _treated(seen: View, arm: Arm, row: Row) -> Format:
    name, size = row.treatment.removesuffix(" @ weights"), row.values.get("bytes/model", 0.0)
    return Format(arm=arm.name, name=name, assign={}, row=row, stored=_file_bytes(seen, arm), bytes=size)


def _checkpoint(seen: View, arm: Arm, row: Row) -> Format:
    """One that was quantized elsewhere, beside its base."""
    base = base_of(seen, arm)
    before = _file_bytes(seen, base) if base else 0.0
    name = str(arm.model.get("name", arm.name))
    return Format(arm=arm.name, name=name, assign={}, row=row, stored=before, bytes=_file_bytes(seen, arm))


def _file_bytes(seen: View, arm: Arm) -> float:
    whole = stored(seen, arm)
    return whole.values.get("bytes/stored", 0.0) if whole else 0.0


def base_of(seen: View, arm: Arm) -> Arm | None:
    """The arm that a finished checkpoint was compared with, where it is in the run."""
    digest = arm.model.get("reference_model_digest")
    return next((one for one in arms(seen) if digest and one.model.get("digest") == digest), None)


def _kind(assign: Mapping[str, str]) -> str:
    kinds = {key.partition(":")[0] for key in assign}
    scopes = {key.partition(":")[2] for key in assign if not key.startswith("weight:")}
    if not kinds:
        return "checkpoint"
    if kinds == {"weight"}:
        return "weights"
    if "weight" in kinds:
        return "weights and inputs"
    return "cache" if scopes <= _CACHE else "boundaries" if scopes <= _BOUNDARIES else "other activations"


def smallest(found: Sequence[Format], word: str) -> Format | None:
    """The format of this tier with the smallest files."""
    return min((one for one in found if one.tier == word and one.bytes), key=lambda one: one.bytes, default=None)


def fewest_bits(found: Sequence[Format]) -> Format | None:
    """Of formats of the whole cache the one with the fewest bits in the best tier that any reaches."""
    whole = [one for one in found if one.whole_cache and one.row.bits]
    best = next((word for word in TIERS if any(one.tier == word for one in whole)), "")
    return min((one for one in whole if one.tier == best), key=lambda one: one.row.bits or 0.0, default=None)


def recommended(found: Sequence[Format]) -> Format | None:
    """The smallest files in the best tier that any format of weights alone, or any at all, reaches."""
    plain = [one for one in found if one.kind == "weights"] or [one for one in found if one.bytes]
    return next((one for word in TIERS if (one := smallest(plain, word))), None)
