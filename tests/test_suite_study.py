"""The main suite, in every profile: which models it compares, and what it asks of each of them."""

from collections import defaultdict
from dataclasses import replace
from itertools import product
from time import process_time

import pytest

from qbench.models.spec import ModelSpec
from qbench.suite.schema import Suite, load
from qbench.suite.value import Arm
from qbench.train.spec import TrainingSpec

FULL = (None, "quick", "cpu", "gpu")
PROFILES = (*FULL, "smoke")
ARCHITECTURES = ("residual", "residual-free", "residual-orthogonal", "residual-free-gpt2", "osp", "op", "sas-p")
OPTIMIZERS = ("adamw", "muon", "soap")
MAIN = ("residual", "residual-free")
EARLIER = (", shorter", ", shortest")  # how an arm is called that is trained on a shorter schedule
SCOPES = ("boundaries", "interior", "middle", "linear")
CODES = {"mxfp4", "nvfp4"}


@pytest.fixture(scope="module")
def suites() -> dict[str | None, Suite]:
    return {profile: load("study-lm", profile=profile) for profile in PROFILES}


def parts(arm: Arm) -> tuple[ModelSpec, TrainingSpec]:
    assert isinstance(arm.model, ModelSpec)
    assert arm.training is not None
    return arm.model, arm.training


def earlier(suite: Suite) -> list[Arm]:
    return [arm for arm in suite.arms if arm.name.endswith(EARLIER)]


def whole(suite: Suite) -> list[Arm]:
    return [arm for arm in suite.arms if not arm.name.endswith(EARLIER)]


def integers(*granularities: str) -> set[str]:
    return {f"int{bits}/{granularity}" for bits, granularity in product((2, 3, 4, 6, 8), granularities)}


@pytest.mark.parametrize("profile", PROFILES)
def test_it_is_read_fast_and_claims_compare_arms_that_it_has(profile: str | None) -> None:
    began = process_time()
    suite = load("study-lm", profile=profile)
    assert process_time() - began < 1  # 0.1 s on an idle core
    names = [arm.name for arm in suite.arms]
    assert len(set(names)) == len(names)
    assert suite.effects
    assert all(set(effect.between) <= set(names) for effect in suite.effects)


@pytest.mark.parametrize("profile", FULL)
def test_every_architecture_meets_every_optimizer_with_three_seeds(
    suites: dict[str | None, Suite], profile: str | None
) -> None:
    suite = suites[profile]
    wanted = {*product(ARCHITECTURES, OPTIMIZERS), *product(MAIN, ["shampoo"])}
    found = {
        (arm.arch, parts(arm)[1].optimizer): arm
        for arm in suite.arms
        if arm.name == f"{arm.arch} + {parts(arm)[1].optimizer}"
    }
    assert found.keys() == wanted
    assert all(len(arm.rates) >= 3 for arm in found.values())  # each has a learning rate of its own
    assert all(len(set(arm.seeds)) == 3 for arm in suite.arms)


@pytest.mark.parametrize("profile", FULL)
def test_shorter_arms_are_full_schedules_of_fewer_steps_at_the_rate_of_the_whole_ones(
    suites: dict[str | None, Suite], profile: str | None
) -> None:
    suite = suites[profile]
    for optimizer in OPTIMIZERS:
        least, less, most = (
            parts(suite.arm(f"residual + {optimizer}{length}"))[1].steps for length in (*reversed(EARLIER), "")
        )
        assert least < less < most
    for arm in earlier(suite):
        full = suite.arm(arm.name.rpartition(",")[0])
        assert (arm.model, arm.seeds, arm.rate_of) == (full.model, full.seeds, full.name)
        assert parts(arm)[1].optimizer == parts(full)[1].optimizer
        assert parts(arm)[1].steps < parts(full)[1].steps


def test_the_profile_cpu_lists_the_models_of_the_suite_itself(suites: dict[str | None, Suite]) -> None:
    """Its list is written by hand, with rates for each model: none may be forgotten, or be another model."""
    suite, cpu = suites[None], suites["cpu"]
    sizes = {(spec.width, spec.context) for spec, _ in map(parts, cpu.arms)}
    assert len(sizes) == 1
    width, context = sizes.pop()

    def described(arm: Arm) -> tuple[object, ...]:
        spec, training = parts(arm)
        sized = replace(spec, width=width, context=context)
        return arm.name, arm.arch, sized, training.optimizer, training.batch, arm.rate_of, bool(arm.rates)

    assert set(map(described, whole(cpu))) == set(map(described, whole(suite)))
    assert set(map(described, earlier(cpu))) <= set(map(described, earlier(suite)))
    assert (cpu.treatments, cpu.tensors, cpu.noise, cpu.flow) == (
        suite.treatments,
        suite.tensors,
        suite.noise,
        suite.flow,
    )


@pytest.mark.parametrize("profile", FULL)
def test_treatments_and_tensors_cover_scopes_formats_and_granularities(
    suites: dict[str | None, Suite], profile: str | None
) -> None:
    suite = suites[profile]
    quantizers, tensors = defaultdict[str, set[str]](set), defaultdict[str, set[str]](set)
    for treatment in suite.treatments:
        quantizers[treatment.scope].update(treatment.assign.values())
    for asked in suite.tensors:
        tensors[asked.kind].update(asked.quantizers)
    activations = integers("tensor", "token", "block:32") | CODES | {"e4m3/tensor"}
    for scope in SCOPES:
        assert activations <= quantizers[scope], scope
    assert integers("channel", "block:32") | CODES | {"e4m3/channel"} <= quantizers["weights"]
    assert activations <= tensors["activation"]
    assert activations <= tensors["gradient"]
    assert tensors["weight"]


def test_the_profile_gpu_is_deep_wide_and_long(suites: dict[str | None, Suite]) -> None:
    for arm in whole(suites["gpu"]):
        spec, training = parts(arm)
        assert spec.layers == 12
        assert spec.width >= 512
        assert spec.context >= 512
        assert training.steps * training.batch * spec.context >= 50e6
