"""The named places of any live module: a model's own site names where it has them, else its leaf modules."""

from collections.abc import Mapping
from fnmatch import fnmatchcase
from typing import Any, cast

from torch import nn

from qbench.names import UnknownName, suggestion


def places(model: nn.Module) -> Mapping[str, nn.Module]:
    """Site name -> the module whose output is the tensor of that site."""
    own = getattr(model, "sites", None)
    if callable(own):
        return cast(Mapping[str, nn.Module], own())
    return {name: module for name, module in model.named_modules() if name and not any(module.children())}


def matrices(model: nn.Module) -> Mapping[str, nn.Parameter]:
    """Weight name -> matrix [out, in]; a foreign model's are named by their modules."""
    own = getattr(model, "weights", None)
    if callable(own):
        return cast(Mapping[str, nn.Parameter], own())
    found: dict[str, Any] = {name: getattr(module, "weight", None) for name, module in model.named_modules()}
    return {name: weight for name, weight in found.items() if isinstance(weight, nn.Parameter) and weight.dim() == 2}


def matching(pattern: str, names: Mapping[str, object]) -> list[str]:
    """The names that `pattern` selects, where `*` stands for anything; UnknownName where that is none."""
    found = [name for name in names if fnmatchcase(name, pattern)]
    if not found:
        raise UnknownName(f"no place {pattern!r}{suggestion(pattern, names)} known: {', '.join(names)}")
    return found
