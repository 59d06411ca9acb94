"""Every value that a setting of a model may have, alone and with every value of every other setting.

Each model that a spec allows builds, looks at no later token, takes a step of training, has the sites it should, and is
computed to the bit by the files that travel with an export.
"""

import json
import random
from collections.abc import Iterable
from dataclasses import fields, replace
from itertools import combinations, islice
from typing import Any, Literal, get_args, get_origin, get_type_hints

import pytest
import random_models  # noqa: F401  (first: it keeps torchao quiet)
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from qbench.capture.sites import of
from qbench.models.configuration_qbench import QbenchConfig
from qbench.models.modeling_qbench import QbenchForCausalLM, QbenchForImageClassification, Stack
from qbench.models.spec import SPELLED, ModelSpec
from qbench.models.transformer import Transformer, build

Setting = tuple[str, Any]
SIZE: dict[str, Any] = {"layers": 2, "width": 16, "heads": 4, "context": 8, "vocabulary": 11, "image": 4}
CHOICES: dict[str, tuple[Any, ...]] = {
    name: get_args(hint) for name, hint in get_type_hints(ModelSpec).items() if get_origin(hint) is Literal
}
CHOICES |= dict.fromkeys(("embed_norm", "embed_projection", "gain_by_depth"), (False, True))
NUMBERS: dict[str, Any] = {"layers": 3, "width": 24, "heads": 2, "context": 6, "vocabulary": 7, "mlp_ratio": 2}
NUMBERS |= {"head_size": 6, "kv_heads": 2, "mlp_hidden": 20, "gain_start": 0.5, "temperature_strength": 0.5}
NUMBERS |= {"qk_noise": 0.3, "qk_diagonal": 3.0, "vo_gain": 2.0, "vo_noise": 0.2, "vo_diagonal": 0.2}
NUMBERS |= {"clip": 1.5, "power": 2, "position_deviation": 0.3, "image": 8, "patch": 1, "channels": 3}
VALUES: list[Setting] = [(name, value) for name, values in CHOICES.items() for value in values] + list(NUMBERS.items())

# What a setting needs to have a meaning.
NEEDS: dict[str, dict[str, Any]] = {
    "gain": {"gain_start": 0.5},
    "gain_start": {"gain": "fixed"},
    "gain_by_depth": {"gain": "learned"},
    "temperature_strength": {"temperature": "linear"},
    "clip": {"attention": "clipped"},
    "power": {"attention": "polynomial", "qk_norm": "rmsnorm"},
    "vo_gain": {"init": "cutting-the-skip"},
    "vo_noise": {"init": "mimetic"},
    "vo_diagonal": {"init": "mimetic"},
    "position_deviation": {"positions": "learned"},
    **{name: {"init": "orthogonal"} for name in ("qk_noise", "qk_diagonal", "temperature")},
    **{name: {"task": "vision"} for name in ("image", "patch", "channels", "pooling")},
}
# Values that exclude one another, and why.
EXCLUDED = {
    **{(("wiring", "post-norm"), ("norm", "none")): "no norm to be placed after the sum"},
    **{(("wiring", "residual-free"), ("gain", gain)): "no stream to add to" for gain in ("fixed", "learned")},
    **{
        ((name, value), ("init", init)): "no heads that are together as wide as the stream"
        for init in ("mimetic", "shaped")
        for name, value in (("kv_heads", 2), ("head_size", 6))
    },
    **{
        (("init", init), ("temperature", "target")): "no diagonal that a temperature could raise"
        for init in ("gpt2", "fan-in", "suo", "shaped")
    },
    **{
        (target, ("attention", attention)): "no weights of a softmax to aim at"
        for target in (("init", "cutting-the-skip-target"), ("temperature", "target"))
        for attention in ("polynomial", "shaped")
    },
    (("init", "cutting-the-skip-target"), ("temperature", "linear")): "one temperature_strength for both",
    (("init", "shaped"), ("attention", "polynomial")): "a power of 0 has no gradient",
    **{
        (("init", "shaped"), ("qk_norm", norm)): "queries of 0 have no direction"
        for norm in CHOICES["qk_norm"]
        if norm != "none"
    },
}

EXCLUDED_PAIRS = {frozenset(pair) for pair in EXCLUDED}
AXES = {**CHOICES, "kv_heads": (0, 2), "head_size": (0, 6), "mlp_hidden": (0, 20), "gain_start": (0.0, 1.0)}


def inputs(spec: ModelSpec) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    if spec.task == "vision":
        return torch.randn(3, spec.channels, spec.image, spec.image, generator=generator)
    return torch.randint(spec.vocabulary, (3, spec.context), generator=generator)


def exported(model: Transformer) -> Stack:
    """The model as its own modelling files make it from its spec and its weights."""
    spec = model.spec
    said = {SPELLED.get(name, name): value for name, value in spec.stored().items()}
    config = QbenchConfig(**json.loads(json.dumps(said)))
    made = (QbenchForImageClassification if spec.task == "vision" else QbenchForCausalLM)(config)
    made.load_state_dict(model.state_dict())
    return made.eval()


def check(spec: ModelSpec) -> tuple[float, float]:
    """The loss before and after a step down its slope.

    Raises ValueError where there is no such model, AssertionError where it is not what it should be.
    """
    model, x = build(spec, seed=0), inputs(spec)
    targets = torch.arange(3) if spec.task == "vision" else x.roll(-1, 1)
    losses: list[float] = []
    for _ in range(2):
        loss = cross_entropy(model(x).flatten(0, -2), targets.flatten())
        losses.append(loss.item())
        gradients = torch.autograd.grad(loss, list(model.parameters()))
        steepness = max(1.0, nn.utils.get_total_norm(gradients).item())
        for p, gradient in zip(model.parameters(), gradients, strict=True):
            p.data -= 1e-3 / steepness * gradient
    assert all(p.isfinite().all() for p in model.parameters())
    assert tuple(model.sites()) == of(spec).sites
    assert set(model.weights()) == set(of(spec).weights)
    with torch.no_grad():
        logits = model(x)
        assert torch.equal(exported(model)(x).logits, logits)
        if spec.task == "language":
            later = torch.cat([x[:, :-1], (x[:, -1:] + 1) % spec.vocabulary], 1)
            torch.testing.assert_close(model(later)[:, :-1], logits[:, :-1], rtol=0, atol=1e-6)
    return losses[0], losses[1]


def test_every_setting_has_values_here() -> None:
    assert {name for name, _ in VALUES} == {field.name for field in fields(ModelSpec)}


@pytest.mark.parametrize(("name", "value"), VALUES)
def test_a_model_with_any_value_of_any_setting(name: str, value: object) -> None:
    before, after = check(ModelSpec(**{**SIZE, **NEEDS.get(name, {}), name: value}))
    assert after < before


@pytest.mark.parametrize(("name", "value"), VALUES)
def test_every_value_says_something(name: str, value: object) -> None:
    """Another value gives another model: other weights, other inputs or other answers."""
    settings = {**SIZE, **NEEDS.get(name, {})}
    others = [other for field, other in VALUES if field == name and other != value]
    base = ModelSpec(**{**settings, name: others[0]} if others else settings)
    one, other = build(base, seed=0), build(replace(base, **{name: value}), seed=0)
    assert shapes(one) != shapes(other) or not torch.equal(answers(one), answers(other))


def shapes(model: Transformer) -> dict[str, torch.Size]:
    return {"inputs": inputs(model.spec).shape, **{name: x.shape for name, x in model.state_dict().items()}}


@torch.no_grad()
def answers(model: Transformer) -> Tensor:
    """To one input, of the weights with noise: at first some are zero, or one."""
    generator = torch.Generator().manual_seed(1)
    for p in model.parameters():
        p.add_(torch.randn(p.shape, generator=generator), alpha=0.25)
    return model(inputs(model.spec))


def pairs(chosen: dict[str, Any]) -> set[frozenset[Setting]]:
    return {frozenset(pair) for pair in combinations(chosen.items(), 2)}


def built(pair: tuple[Setting, Setting], left: Iterable[frozenset[Setting]], chance: random.Random) -> dict[str, Any]:
    """A model with both values that also has many of the pairs `left`; empty where there is none.

    Three values may exclude one another too, such as a target for attention, normalized queries and small heads.
    """
    free = EXCLUDED_PAIRS - {frozenset(pair)}
    made = ({name: chance.choice(values) for name, values in AXES.items()} | dict(pair) for _ in range(1000))
    some = islice((one for one in made if not pairs(one) & free), 20)
    for one in sorted(some, key=lambda one: len(pairs(one) & set(left)), reverse=True):
        try:
            build(ModelSpec(**SIZE, **one), seed=0)
        except ValueError:
            continue
        return one
    return {}


def test_every_two_values_go_together_or_are_known_not_to() -> None:
    chance = random.Random(0)
    left = {
        frozenset(((a, x), (b, y))): ((a, x), (b, y))
        for a, b in combinations(AXES, 2)
        for x in AXES[a]
        for y in AXES[b]
    }
    assert left.keys() > EXCLUDED_PAIRS
    while left:
        pair, settings = next(iter(left.items()))
        found = built(settings, left, chance)
        assert bool(found) is (pair not in EXCLUDED_PAIRS), settings
        if found:
            before, after = check(ModelSpec(**SIZE, **found))
            assert after <= before + 1e-6, found  # equal where next to nothing passes: no norm and weights of 0.02
        for one in pairs(found) | {pair}:
            left.pop(one, None)
