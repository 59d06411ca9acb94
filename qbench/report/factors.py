"""What the arms of a study differ in: architecture, optimizer, length of the schedule, quantizers inside."""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from qbench.report.words import listed

Spec = Mapping[str, Any]

# In the style sheet and in the drawings. They have no common divisor, so that each pair is one of 56 styles.
COLOURS, MARKS = 8, 7

MANY = 20  # arms: more lines of their own than a reader can follow

OPTIMIZERS: Mapping[str, str] = {
    "adamw": "AdamW",
    "muon": "Muon",
    "muon-rms": "Muon, RMS-matched",
    "soap": "SOAP",
    "shampoo": "Shampoo",
    "sgd": "SGD",
}

PLURALS: Mapping[str, str] = {"activation": "activations", "gradient": "gradients", "weight": "weights"}
STATES: Mapping[str, str] = {"all": "all optimizer state"}


@dataclass(frozen=True, slots=True)
class Factors:
    """Architecture and optimizer by the names that a reader sees; `quantized` is what a training had inside, "" for
    nothing.
    """

    architecture: str
    optimizer: str
    steps: int
    quantized: str

    @property
    def model(self) -> str:
        """The name in the catalog, without the settings that the architecture's name adds.

        >>> Factors("residual, layers 12", "Muon", 500, "").model
        'residual'
        """
        return self.architecture.partition(", ")[0]


def factors(arms: Mapping[str, tuple[Spec, Spec]]) -> dict[str, Factors]:
    """Of each arm, from the specs of its model and of its training.

    Two models of one name in the catalog that were given other settings are two architectures, and say what differs.
    """
    names = _architectures({name: model for name, (model, _) in arms.items()})
    return {
        name: Factors(names[name], optimizer(training), int(training.get("steps") or 0), quantized(training))
        for name, (_, training) in arms.items()
    }


def optimizer(training: Spec) -> str:
    """
    >>> optimizer({"optimizer": "soap"}), optimizer({})
    ('SOAP', '')
    """
    name = str(training.get("optimizer") or "")
    return OPTIMIZERS.get(name, name)


def without(claim: str, others: Sequence[str] = ()) -> str:
    """A claim without the optimizer that it names, or without the architecture that is one of `others`; the optimizers
    that stay are written as people write them.

    >>> without("With AdamW, boundaries are heavier-tailed"), without("boundaries cost more (muon)")
    ('Boundaries are heavier-tailed', 'Boundaries cost more')
    >>> without("muon lowers the kurtosis of residual", ["residual"])
    'Muon lowers the kurtosis'
    >>> without("residual: it costs no more after AdamW than after soap", ["residual"])
    'It costs no more after AdamW than after SOAP'
    """
    every = "|".join(map(re.escape, sorted({*OPTIMIZERS, *OPTIMIZERS.values()}, key=len, reverse=True)))
    names = "|".join(map(re.escape, others)) or every
    text = re.sub(rf"^\s*((with|under|for|in|by)\s+)?\b({names})\b\s*[,:–-]+\s*", "", claim, flags=re.I)
    text = re.sub(rf"\s*[(\[]({names})[)\]]", "", text, flags=re.I)
    text = re.sub(rf",?\s+(with|under|for|by|of|in)\s+({names})(?![\w-])", "", text, flags=re.I).strip()
    text = re.sub(rf"(?<![\w-])({every})(?![\w-])", lambda found: OPTIMIZERS.get(found[0], found[0]), text)
    return text[:1].upper() + text[1:]


def quantized(training: Spec) -> str:
    """What was quantized inside the training, in one line.

    >>> quantized({"quantized": {"activation:interior": "int4/tensor", "gradient:interior": "int4/tensor"}})
    'interior activations and gradients int4/tensor'
    >>> quantized({"quantized": {"state:momentum": "int8/block:64", "weight:weights": "int4/channel"}})
    'momentum int8/block:64, weights int4/channel'
    """
    inside: Mapping[str, str] = training.get("quantized") or {}
    found: dict[tuple[str, str], list[str]] = {}
    for key, how in inside.items():
        kind, _, where = key.partition(":")
        what = PLURALS.get(kind) or STATES.get(where, where)
        found.setdefault(("" if where == what or kind == "state" else where, how), []).append(what)
    return ", ".join(f"{where} {listed(what)} {how}".strip() for (where, how), what in found.items())


def crossed(found: Sequence[Factors]) -> bool:
    """Whether optimizers can be told from architectures: each was tried with more than one of the other, and half of
    all pairs are there. What changes one piece at a time is no such study.

    >>> tried = lambda *pairs: [Factors(*pair.split(), 1, "") for pair in pairs]
    >>> crossed(tried("a x", "a y", "b x")), crossed(tried("a x", "a y"))
    (True, False)
    >>> crossed(tried("a x", "b x", "c x", "d x", "e x", "f x", "a y", "a z"))
    False
    """
    pairs = {(one.architecture, one.optimizer) for one in found}
    of_architectures, of_optimizers = (Counter(pair[i] for pair in pairs) for i in (0, 1))
    if not pairs or max(of_architectures.values()) < 2 or max(of_optimizers.values()) < 2:
        return False
    return 2 * len(pairs) >= len(of_architectures) * len(of_optimizers)


def gathered(found: Sequence[Factors]) -> bool:
    """Whether arms that are not crossed are too many to be told apart, and are drawn by their models instead."""
    return len(found) >= MANY and not crossed(found) and 1 < len({one.model for one in found}) <= MARKS


def styles(found: Sequence[Factors]) -> list[int]:
    """How each arm is drawn: in a crossed study colour is architecture and mark is optimizer; among many arms that
    change one piece at a time those of one model are drawn alike; else each has its own.
    """
    if gathered(found):
        models = [*dict.fromkeys(one.model for one in found)]
        return [models.index(one.model) for one in found]
    if not crossed(found):
        return list(range(len(found)))
    colours = {name: i for i, name in enumerate(dict.fromkeys(one.architecture for one in found))}
    marks = {name: i for i, name in enumerate(dict.fromkeys(one.optimizer for one in found))}
    return [style(colours[one.architecture], marks[one.optimizer]) for one in found]


def style(colour: int, mark: int) -> int:
    """The number whose remainders are this colour and this mark: there are so many of each that one exists.

    >>> style(2, 3) % COLOURS, style(2, 3) % MARKS
    (2, 3)
    """
    colour, mark = colour % COLOURS, mark % MARKS
    return next(n for n in range(COLOURS * MARKS) if n % COLOURS == colour and n % MARKS == mark)


def _architectures(models: Mapping[str, Spec]) -> dict[str, str]:
    """The name in the catalog, and what is otherwise than in most models of that name."""
    of: dict[str, list[Spec]] = {}
    for model in models.values():
        of.setdefault(str(model.get("arch") or ""), []).append(model)
    usual = {arch: _usual(specs) for arch, specs in of.items()}
    found: dict[str, str] = {}
    for name, model in models.items():
        arch = str(model.get("arch") or "")
        changed = [
            f"{key.replace('_', ' ')} {model.get(key)}" for key, value in usual[arch].items() if model.get(key) != value
        ]
        found[name] = ", ".join([arch, *changed])
    return found


def _usual(specs: Sequence[Spec]) -> Spec:
    """The commonest value of each setting, of the first spec where two are as common."""
    keys = dict.fromkeys(key for spec in specs for key in spec)
    values = {key: [spec.get(key) for spec in specs] for key in keys}
    common = {key: Counter(map(repr, of)).most_common(1)[0][0] for key, of in values.items()}
    return {key: next(value for value in of if repr(value) == common[key]) for key, of in values.items()}
