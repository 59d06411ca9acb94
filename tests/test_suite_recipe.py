"""The suite of the residual-free recipe: one piece at a time, at three depths, with models that other suites share."""

from dataclasses import asdict
from typing import Any

import pytest

from qbench.models.spec import ModelSpec
from qbench.models.temperature import TEMPERATURES
from qbench.models.transformer import build
from qbench.suite.schema import Suite, load
from qbench.suite.value import Arm

# Pieces that bring something of their own along, and what.
COMPANIONS = {
    "positions learned and loud": {"position_deviation"},
    "mlp swiglu": {"mlp_hidden"},
    "init cutting-the-skip": {"qk_noise", "qk_diagonal"},
    "init cutting-the-skip-target": {"qk_noise", "qk_diagonal"},
    "optimizer adamw": {"lr"},
    "optimizer soap": {"lr"},
    "optimizer shampoo": {"lr"},
}


@pytest.fixture(scope="module")
def suite() -> Suite:
    return load("recipe")


def settings(arm: Arm) -> dict[str, Any]:
    assert isinstance(arm.model, ModelSpec)
    assert arm.training is not None
    return asdict(arm.model) | asdict(arm.training)


def changed(suite: Suite, base: str) -> dict[str, set[str]]:
    """Each piece that is changed in `base`, with the settings that differ."""
    arms = {arm.name: settings(arm) for arm in suite.arms}
    names = [name for name in arms if name.startswith(f"{base} (")]
    return {
        name.removeprefix(f"{base} (")[:-1]: {key for key, value in arms[name].items() if value != arms[base][key]}
        for name in names
    }


@pytest.mark.parametrize(("base", "least"), [("residual-free", 25), ("residual", 8)])
def test_one_piece_is_changed_at_a_time(suite: Suite, base: str, least: int) -> None:
    found = changed(suite, base)
    assert len(found) >= least
    for piece, keys in found.items():
        assert keys - COMPANIONS.get(piece, set()) == {piece.split()[0]}, piece


def test_every_piece_of_the_recipe_is_among_them(suite: Suite) -> None:
    pieces = {piece.split()[0] for piece in changed(suite, "residual-free")}
    assert pieces == {"positions", "qk_diagonal", "temperature", "init", "norm", "mlp", "lr", "optimizer"}


def test_temperatures_go_in_every_direction_with_depth(suite: Suite) -> None:
    spec, found = ModelSpec(), changed(suite, "residual-free")
    names = [name for name in TEMPERATURES if f"temperature {name}" in found]
    last = {name: TEMPERATURES[name].factor(spec, spec.layers - 1) for name in names}
    assert {(factor > 1) - (factor < 1) for factor in last.values()} == {-1, 0, 1}


def test_both_wirings_go_to_twenty_four_layers(suite: Suite) -> None:
    depths = {(arm.model.wiring, arm.model.layers) for arm in suite.arms if isinstance(arm.model, ModelSpec)}
    assert depths == {(wiring, layers) for wiring in ("residual", "residual-free") for layers in (6, 12, 24)}


def test_the_models_of_the_quickstart_are_not_trained_again(suite: Suite) -> None:
    """What makes a model is the same: its spec, its training, the seeds, the text."""
    other = load("quickstart")
    for name in ("residual", "residual-free"):
        mine, theirs = (next(arm for arm in one.arms if arm.name == name) for one in (suite, other))
        assert (mine.model, mine.training, mine.seeds) == (theirs.model, theirs.training, theirs.seeds)
    assert suite.data == other.data


def test_every_model_of_the_suite_can_be_built(suite: Suite) -> None:
    """Targets for attention may be out of reach, and only building says so."""
    for spec in {arm.model for arm in suite.arms if isinstance(arm.model, ModelSpec)}:
        assert build(spec, seed=0).spec == spec


def test_smoke_and_quick_ask_for_one_seed() -> None:
    assert {arm.seeds for name in ("smoke", "quick") for arm in load("recipe", profile=name).arms} == {(0,)}
