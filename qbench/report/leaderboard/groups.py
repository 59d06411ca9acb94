"""Groups: what rows must have in common before one may be ranked above another."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from qbench.report.leaderboard.hostile import plain
from qbench.results import digest
from qbench.results.record import Attempt
from qbench.results.run import part

UNTOUCHED = "nothing quantized"


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """What rows must have in common to be ranked against each other; a row of any other value is in another group."""

    suite: str
    version: int
    metric: str
    task: str
    scope: str
    data: str
    data_digest: str
    tokenizer: str
    budget: str
    estimator: str
    device: str

    @property
    def id(self) -> str:
        """Ten hex digits; the name of the data is left out, for its digest says what it is."""
        return digest.of({name: value for name, value in asdict(self).items() if name != "data"})[:10]

    @property
    def title(self) -> str:
        return f"{self.suite} {self.version}: {self.task}{': ' * bool(self.task)}{self.scope}"

    @property
    def setting(self) -> "Group":
        """The same group with nothing quantized: what all scopes of one setting are measured against."""
        return replace(self, scope=UNTOUCHED)


def group(attempt: Attempt, metric: str) -> Group:
    """The group of a cell, from its spec alone."""
    spec = attempt.closing.spec
    asked, data = part(spec, "measurement"), part(spec, "data")
    return Group(
        suite=plain(str(spec["suite"]), 64),
        version=spec["version"],
        metric=metric,
        task=plain(str(part(asked, "options").get("name") or ""), 60),
        scope=plain(" + ".join(sorted(part(asked, "treatment", "assign"))) or UNTOUCHED, 120),
        data=plain(str(data["name"]), 80),
        data_digest=str(data["digest"]),
        tokenizer=_tokenizer(part(spec, "model")),
        budget=_budget(spec),
        estimator=_estimator(spec),
        device=plain(str(spec["device"]), 60),
    )


def _tokenizer(model: Mapping[str, Any]) -> str:
    """Its digest, or the alphabet of a model that reads bytes."""
    return plain(str(model.get("tokenizer") or f"{model.get('vocabulary', 'no')} symbols"), 80)


def _budget(spec: Mapping[str, Any]) -> str:
    """What a model could learn from: rows of a suite that trains are compared at the same number of tokens."""
    training, context = part(spec, "training"), part(spec, "model").get("context")
    counts = [training.get("steps"), training.get("batch"), context]
    if not training or not all(type(count) is int for count in counts):
        return "not trained here"
    return plain(f"trained on {counts[0]} × {counts[1]} × {counts[2]} tokens", 80)


def _estimator(spec: Mapping[str, Any]) -> str:
    asked, passage = part(spec, "measurement"), part(spec, "measurement", "passage")
    context = passage.get("context", part(spec, "model").get("context"))
    parts = [
        f"measure@{part(spec, 'revisions').get('measure')}",
        f"{asked.get('windows', 0)} windows of {context} tokens",
        f"split {asked.get('split', '')}",
    ]
    others = {name: value for name, value in passage.items() if name != "context"}
    parts += [f"{name} {others[name]}" for name in sorted(others)]
    options = part(asked, "options")
    parts += [f"{name} {options[name]}" for name in sorted(options) if name != "name"]
    return plain(", ".join(parts), 200)
