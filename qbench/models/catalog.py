"""Every model a suite may name. No torch here."""

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from types import MappingProxyType
from typing import Any

from qbench import names
from qbench.models.spec import ModelSpec
from qbench.names import pick


@dataclass(frozen=True, slots=True)
class Architecture:
    """One row: where a suite's own settings start from, and what it is for."""

    spec: ModelSpec
    description: str


_ROWS: dict[str, Architecture] = {
    "residual": Architecture(
        ModelSpec(wiring="residual", init="gpt2"),
        "pre-norm decoder with skip connections and GPT-2 initialization",
    ),
    "residual-free": Architecture(
        ModelSpec(wiring="residual-free", init="orthogonal", temperature="inv-sqrt-layer"),
        "no skip connections; orthogonal initialization, near-diagonal attention, flatter with depth",
    ),
    "residual-free-plain": Architecture(
        ModelSpec(wiring="residual-free", init="fan-in"),
        "no skip connections and no recipe: the negative control, which is not expected to train",
    ),
    "residual-orthogonal": Architecture(
        ModelSpec(wiring="residual", init="orthogonal", temperature="inv-sqrt-layer"),
        "skip connections with all of the residual-free recipe: separates the wiring from the recipe",
    ),
}

MODELS: Mapping[str, Architecture] = MappingProxyType(_ROWS)


def add(name: str, row: Architecture) -> None:
    """Take a row from a plugin; ValueError where the name is taken."""
    names.add(_ROWS, name, row, Architecture)


def model_spec(arch: str, **overrides: Any) -> ModelSpec:
    """The spec of `arch` with some fields replaced.

    >>> model_spec("residual-free", layers=2).temperature
    'inv-sqrt-layer'
    >>> model_spec("residual", widht=96)
    Traceback (most recent call last):
    qbench.names.UnknownName: no model setting 'widht'; did you mean 'width'? known: context, heads, init, layers, \
mlp, mlp_ratio, norm, positions, qk_diagonal, qk_noise, temperature, vocabulary, width, wiring
    """
    known = {field.name: field for field in fields(ModelSpec)}
    for name in overrides:
        pick(known, name, "model setting")
    return replace(pick(MODELS, arch, "model").spec, **overrides)
