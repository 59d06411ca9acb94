"""The named places of any live module: a model's own site names where it has them, else its leaf modules."""

from collections.abc import Mapping
from typing import Any, cast

from torch import nn

from qbench.capture.place import Matrix, Place, as_matrices, as_places
from qbench.capture.sites import Kind, near, own, resolve
from qbench.models.transformer import Transformer
from qbench.names import UnknownName, matches

ITSELF = "model"  # the name of a model that is one leaf module


def places(model: nn.Module) -> Mapping[str, Place]:
    """Site name -> where its tensor flows."""
    own = getattr(model, "sites", None)
    if callable(own):
        return as_places(cast(Mapping[str, nn.Module], own()))
    leaf = {name: module for name, module in model.named_modules() if next(module.children(), None) is None}
    return as_places({name or ITSELF: module for name, module in leaf.items()})


def matrices(model: nn.Module) -> Mapping[str, Matrix]:
    """Weight name -> matrix [out, in]; a foreign model's are named by their modules."""
    own = getattr(model, "weights", None)
    if callable(own):
        return as_matrices(cast(Mapping[str, nn.Parameter], own()))
    found: dict[str, Any] = {name or ITSELF: getattr(m, "weight", None) for name, m in model.named_modules()}
    return as_matrices({name: w for name, w in found.items() if isinstance(w, nn.Parameter) and w.dim() == 2})


def select(model: nn.Module, kind: Kind, pattern: str) -> tuple[str, ...]:
    """The places or matrices of `model` that `pattern` selects; UnknownName where that is none.

    Patterns mean what they mean in a suite (`capture.sites`); so do scopes and aliases for a model of ours.
    """
    if isinstance(model, Transformer):
        return resolve(pattern, kind, own(model.spec.wiring, model.spec.layers))
    names = matrices(model) if kind == "weight" else places(model)
    found = tuple(name for name in names if matches(pattern, name))
    if not found:
        raise UnknownName(f"no {kind} place {pattern!r}{near(pattern, names, names)} known: {', '.join(names)}")
    return found
