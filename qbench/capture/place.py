"""One place in a live model where a tensor flows, and one matrix of its weights, wherever the model keeps them."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

See = Callable[[Any], Tensor | None]


@dataclass(frozen=True, slots=True)
class Place:
    """What leaves `module`, or what enters it: the first argument of a call.

    `argument` is the name of that argument where the model passes it by name; `first` where the module gives a tuple,
    of which the first is meant.
    """

    module: nn.Module
    end: Literal["output", "input"] = "output"
    argument: str = "hidden_states"
    first: bool = False

    def attach(self, see: See) -> RemovableHandle:
        """Show `see` everything that flows here; a tensor that it returns flows on instead. Close with `remove()`."""
        if self.end == "output":
            return self.module.register_forward_hook(_Leaving(see, self.first))
        return self.module.register_forward_pre_hook(_Entering(see, self.argument), with_kwargs=True)


@dataclass(frozen=True, slots=True)
class _Leaving:
    see: See
    first: bool

    def __call__(self, _module: nn.Module, _inputs: object, output: Any) -> Any:
        several = self.first and isinstance(output, tuple)
        other = self.see(cast(tuple[Any, ...], output)[0] if several else output)
        if other is None:
            return None
        return (other, *cast(tuple[Any, ...], output)[1:]) if several else other


@dataclass(frozen=True, slots=True)
class _Entering:
    see: See
    argument: str

    def __call__(self, _module: nn.Module, inputs: tuple[Any, ...], named: Mapping[str, Any]) -> Any:
        other = self.see(inputs[0] if inputs else named[self.argument])
        if other is None:
            return None
        return ((other, *inputs[1:]), named) if inputs else ((), {**named, self.argument: other})


@dataclass(frozen=True, slots=True)
class Matrix:
    """A weight matrix as [out, in], whichever way round and in whichever stack the model stores it.

    `transposed` where it is kept as [in, out] (GPT-2's Conv1D), `index` into a stack of matrices (experts).
    """

    parameter: nn.Parameter
    transposed: bool = False
    index: int | None = None

    def read(self) -> Tensor:
        """The values [out, in], a view of the parameter without its graph."""
        stored = self.parameter.detach() if self.index is None else self.parameter.detach()[self.index]
        return stored.T if self.transposed else stored

    @torch.no_grad()
    def write(self, values: Tensor) -> None:
        """Replace the values [out, in] in place."""
        self.read().copy_(values)


def as_places(modules: Mapping[str, nn.Module]) -> dict[str, Place]:
    """The output of each module."""
    return {name: Place(module) for name, module in modules.items()}


def as_matrices(parameters: Mapping[str, nn.Parameter]) -> dict[str, Matrix]:
    """Parameters that are kept as [out, in]."""
    return {name: Matrix(parameter) for name, parameter in parameters.items()}
