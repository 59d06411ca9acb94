"""Training specs: what is refused, what enters an identity."""

import json
from dataclasses import asdict
from types import MappingProxyType

import pytest

from qbench.train.spec import FIRST, STATES, TrainingSpec


def test_settings_that_came_later_enter_only_where_they_were_made() -> None:
    """Ids made before they existed stay."""
    assert tuple(TrainingSpec().stored()) == FIRST
    changed = TrainingSpec(quantized={"state:all": "int8/tensor"}, head_lr=0.1, recompute=True, accumulate=4)
    assert changed.stored().keys() - set(FIRST) == {"quantized", "head_lr", "recompute", "accumulate"}
    assert TrainingSpec(**changed.stored()) == changed


def test_a_spec_survives_json() -> None:
    spec = TrainingSpec(optimizer="shampoo", precision="bfloat16", quantized={"weight:weights": "int4/channel"})
    stored = json.loads(json.dumps(asdict(spec)))
    stored |= {name: tuple(stored[name]) for name in ("shape_steps", "checkpoints")}
    assert TrainingSpec(**stored) == spec


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"accumulate": 3}, "a batch of 8 windows does not split into 3 equal parts"),
        ({"accumulate": 0}, "does not split into 0"),
        ({"head_lr": -1.0}, "learning rates must be positive numbers, found -1.0"),
        ({"lr": float("nan")}, "learning rates must be positive numbers, found nan"),
        ({"lr": float("inf")}, "learning rates must be positive numbers, found inf"),
        ({"embedding_lr": float("nan")}, "learning rates must be positive numbers, found nan"),
        ({"clip": 0.0}, r"clip must be the largest norm of a gradient, above 0, found 0.0"),
        ({"clip": -1.0}, "clip must be the largest norm"),
        ({"clip": float("nan")}, "clip must be the largest norm"),
        ({"warmup": 20.0}, "warmup must be a share of the steps, from 0 to 1, found 20.0"),
        ({"warmup": -0.1}, "warmup must be a share"),
        ({"final": -5.0}, "final must be a share of the peak rate, from 0 to 1, found -5.0"),
        ({"final": 1.5}, "final must be a share"),
        ({"weight_decay": -5.0}, "weight_decay must be 0 or more, found -5.0"),
        ({"compiled": True, "quantized": {"state:all": "int8/tensor"}}, "leave out `compiled` or `quantized`"),
        ({"quantized": {"boundaries": "int4/tensor"}}, "'boundaries' is not KIND:SCOPE with a kind of activation"),
        ({"quantized": {"activations:all": "int4/tensor"}}, "is not KIND:SCOPE"),
        ({"quantized": {"weight:": "int4/tensor"}}, "is not KIND:SCOPE"),
        (
            {"quantized": {"state:factors": "int4/tensor"}},
            "no state of adamw 'factors'; known: all, momentum, variance",
        ),
        ({"optimizer": "soap", "quantized": {"state:factor": "int4/tensor"}}, "did you mean 'factors'"),
        ({"quantized": {"weight:all": "int4/tensr"}}, "int4/tensr"),
    ],
)
def test_mistakes_are_named(settings: dict[str, object], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        TrainingSpec(**settings)  # type: ignore[arg-type]


def test_the_ends_of_what_is_allowed_are_allowed() -> None:
    TrainingSpec(clip=float("inf"), warmup=0.0, final=0.0, weight_decay=0.0)
    TrainingSpec(final=1.0)


def test_a_mapping_of_any_kind_is_kept_as_plain_data() -> None:
    quantized = MappingProxyType({"state:all": "int8/tensor"})
    spec = TrainingSpec(quantized=quantized)
    assert spec == TrainingSpec(quantized=dict(quantized))
    assert spec.stored()["quantized"] == dict(quantized)


def test_states_are_addressed_by_what_they_are_for() -> None:
    quantized = {"state:all": "int8/tensor", "state:factors": "int4/tensor", "weight:all": "int2/tensor"}
    for optimizer, keys in STATES.items():
        if "factors" in keys:
            found = TrainingSpec(optimizer=optimizer, quantized=quantized).states()
            assert found == {key: "int4/tensor" if role == "factors" else "int8/tensor" for role, key in keys.items()}
    assert TrainingSpec().states() == {}
