"""A run that a policy has to pass, made up for the self-test: what then blocks it is the gate's own work."""

import hashlib
import re
import string
from collections.abc import Mapping
from datetime import UTC, datetime
from fnmatch import fnmatchcase
from typing import Any

import numpy as np

from qbench.gate.draft import Cell, Draft, Vectors
from qbench.gate.metrics import DIVERGENCES, EXACT, LEVELS
from qbench.gate.policy import Policy, Rule
from qbench.results.record import Closing, Record
from qbench.stats import paired

MEAN = {"loss": 2.5, "error_rate": 0.4}  # of the unquantized model
USUAL = 0.01  # the effect of metrics that no rule is about
_LETTERS = string.ascii_letters + string.digits + "_" + string.punctuation + " "
SHARE = 0.05  # of the margin: the effect of the made-up candidate


def known_good(policy: Policy, version: int = 0) -> Draft:
    """The candidate, or with `version` 1 and up another run of the same cells: a baseline."""
    n = max(policy.windows)
    seeds = max([rule.seeds or 1 for rule in policy.rules] + [paired.SEEDS if n < paired.WINDOWS else 1])
    base = _spec(policy, n)
    cells: dict[str, Cell] = {}
    for rule in policy.rules:
        for seed in range(seeds):
            arm = base | {"arm": rule.arm or "model", "seed": seed}
            for treatment in ({"name": "unquantized", "scope": "", "assign": {}}, _treatment(rule)):
                cell = _cell(policy, arm, treatment, version)
                cells[cell.closing.cell] = cell
    now = datetime.now(UTC).isoformat(timespec="seconds")
    return Draft(list(cells.values()), {"asked": list(cells), "finished": now})


def _spec(policy: Policy, n: int) -> dict[str, Any]:
    device = policy.device[0]
    return {
        "suite": policy.suite,
        "version": policy.suite_version,
        "model": {"arch": "pretrained", "name": "self-test", "digest": _hex("model"), "tokenizer": _hex("tokenizer")},
        "training": None,
        "data": {"name": "self-test", "digest": policy.data or _hex("data")},
        "torch": "",
        "device": "cpu" if fnmatchcase("cpu", device) else _matching(device),
        "measurement": {"what": "loss", "windows": n, "split": "test"},
    }


def _matching(pattern: str) -> str:
    """A name that a pattern is about.

    >>> _matching("cuda:NVIDIA [AH]?00*"), _matching("[!a-z]x[")
    ('cuda:NVIDIA Aa00', 'Ax[')
    """
    parts = re.findall(r"\[!?\]?[^\]]*\]|.", pattern)
    return "".join(next((c for c in _LETTERS if fnmatchcase(c, part)), "") for part in parts if part != "*")


def _treatment(rule: Rule) -> dict[str, Any]:
    quantizer = rule.quantizer or "int8/channel"
    name = rule.format or f"{quantizer} @ {rule.scope or 'weights'}"
    return {"name": name, "scope": rule.scope, "assign": {f"weight:{rule.scope or 'weights'}": quantizer}}


def _cell(policy: Policy, spec: Mapping[str, Any], treatment: Mapping[str, Any], version: int) -> Cell:
    full: dict[str, Any] = {**spec, "measurement": {**spec["measurement"], "treatment": treatment}}
    question = _hex(repr([full["measurement"]["windows"], treatment]))[:16]
    name = _hex(repr([spec["arm"], spec["seed"], question, version]))[:16]
    n, seed = max(policy.windows), spec["seed"]
    rng = np.random.default_rng([seed, 7])
    plain = {metric: mean * rng.lognormal(0, 0.2, n) / np.exp(0.02) for metric, mean in MEAN.items()}
    rng = np.random.default_rng([seed, version, int(name, 16) % 2**31])
    quantized = bool(treatment["assign"])
    vectors = _quantized(policy, plain, rng) if quantized else plain
    values = {metric: float(vector.mean()) for metric, vector in vectors.items() if metric in (*LEVELS, *DIVERGENCES)}
    if quantized:
        values["floor/window"] = float(vectors["loss_increase"].std(ddof=1) / n**0.5)
        values |= _counted(policy)
    bits = values.pop("bits_per_value", 8.0) if quantized else None
    record = Record(
        cell=name, values=values, scope=treatment["scope"], n=n, samples=_hex(name)[:16], bits_per_value=bits
    )
    closing = Closing(cell=name, question=question, status="measured", spec=full)
    return Cell(closing, [record], {record.samples: vectors})


def _quantized(policy: Policy, plain: Vectors, rng: np.random.Generator) -> Vectors:
    """Costs a little above the unquantized model's, where the little is a small share of every margin."""
    n = len(plain["loss"])
    small = {metric: SHARE * _margin(policy, metric) for metric in (*LEVELS, *DIVERGENCES)}
    change = {metric: small[metric] * (1 + rng.normal(0, 1, n)) for metric in LEVELS}
    found = {metric: plain[metric] + change[metric] for metric in LEVELS}
    found |= {metric: small[metric] * rng.lognormal(0, 0.5, n) for metric in DIVERGENCES}
    found["loss_increase"] = found["loss"] - plain["loss"]
    return found | {"reference_loss": plain["loss"].copy(), "reference_wrong": plain["error_rate"].copy()}


def _margin(policy: Policy, metric: str) -> float:
    """The smallest that any rule allows, in the metric's unit."""
    alike = ("loss", "loss_increase") if metric in ("loss", "loss_increase") else (metric,)
    found = [
        rule.margin * (MEAN[rule.metric] if rule.relative else 1)
        for rule in policy.rules
        if rule.metric in alike and rule.margin is not None
    ]
    return min(found, default=USUAL)


def _counted(policy: Policy) -> dict[str, float]:
    limits = {rule.metric: rule.at_most for rule in policy.rules if rule.metric in EXACT and rule.at_most is not None}
    return {metric: 0.9 * limits.get(metric, 8.0) for metric in EXACT}


def _hex(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
