"""The named places of any live module: site names where it has them, of ours or of its family, else its modules."""

from collections.abc import Iterator, Mapping
from typing import Any, cast

from torch import nn

from qbench.capture.families import FAMILIES, layout, site_names
from qbench.capture.foreign import foreign_matrices, foreign_places, settings
from qbench.capture.place import Matrix, Place, as_matrices, as_places
from qbench.capture.sites import SCOPES, Kind, SiteNames, near, of, resolve
from qbench.models.transformer import Transformer
from qbench.names import UnknownName, matches


class NoScope(UnknownName):
    """A scope of site names, asked of a model that has none: nothing is wrong, and nothing can be measured."""


ITSELF = "model"  # the name of a model that is one leaf module


def places(model: nn.Module) -> Mapping[str, Place]:
    """Site name -> where its tensor flows."""
    own = getattr(model, "sites", None)
    if callable(own):
        return as_places(cast(Mapping[str, nn.Module], own()))
    if _named(model):
        return foreign_places(model)
    leaf = {name: module for name, module in _modules(model) if next(module.children(), None) is None}
    return as_places({name or ITSELF: module for name, module in leaf.items()})


def matrices(model: nn.Module) -> Mapping[str, Matrix]:
    """Weight name -> matrix [out, in]; those of an unknown model are named by its modules."""
    own = getattr(model, "weights", None)
    if callable(own):
        return as_matrices(cast(Mapping[str, nn.Parameter], own()))
    if _named(model):
        return foreign_matrices(model)
    found: dict[nn.Parameter, str] = {}  # a matrix that two modules share has the name of the first
    for name, module in _modules(model):
        weight: Any = getattr(module, "weight", None)
        if isinstance(weight, nn.Parameter) and weight.dim() == 2:
            found.setdefault(weight, name or ITSELF)
    return as_matrices({name: weight for weight, name in found.items()})


def names(model: nn.Module) -> SiteNames | None:
    """Every site name in a model of ours or of a known family; None where only its modules have names."""
    if isinstance(model, Transformer):
        return of(model.spec)
    config = settings(model)
    return None if config is None else site_names(config)


def select(model: nn.Module, kind: Kind, pattern: str) -> tuple[str, ...]:
    """The places or matrices of `model` that `pattern` selects; UnknownName where that is none.

    Patterns mean what they mean in a suite (`capture.sites`), and so do scopes and aliases where the model has site
    names.
    """
    known = names(model)
    if known is not None:
        return resolve(pattern, kind, known)
    raw = matrices(model) if kind == "weight" else places(model)
    if pattern in SCOPES[kind]:
        return _in_scope(model, kind, pattern, tuple(raw))
    found = tuple(name for name in raw if matches(pattern, name))
    if not found:
        raise UnknownName(f"no {kind} place {pattern!r}{near(pattern, raw, raw)} known: {', '.join(raw)}")
    return found


def _in_scope(model: nn.Module, kind: Kind, scope: str, raw: tuple[str, ...]) -> tuple[str, ...]:
    """What a scope selects where places go by the names of modules: `all` of them, and as `weights` those in layers."""
    if scope == "all":
        return raw
    if scope == "weights" and kind == "weight":
        lists = [name for name, module in _modules(model) if isinstance(module, nn.ModuleList)]
        return tuple(name for name in raw if any(name.startswith(f"{one}.") for one in lists)) or raw
    raise NoScope(f"the scope {scope!r} means nothing in a model without site names; {unnamed(model)}")


def unnamed(model: nn.Module) -> str:
    """Why the places of a pretrained model go by the names of its modules; empty where they have site names.

    A warning to show: scopes such as `linear` mean nothing there.
    """
    config = settings(model)
    if config is None or layout(config) is not None:
        return ""
    return (
        f"model_type {config['model_type']!r} has no site names: its places go by module names, scopes do not apply; "
        f"known: {', '.join(FAMILIES)}"
    )


def _modules(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Named as their own library names them, and so do the files: without the wrapper of a pretrained model."""
    inner = getattr(model, "hf", model)
    return inner.named_modules()


def _named(model: nn.Module) -> bool:
    config = settings(model)
    return config is not None and layout(config) is not None
