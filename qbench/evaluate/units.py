"""The parts of a model that are quantized one at a time: matrices that read the same tensor, block by block."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any, cast

import torch
from torch import Tensor, nn

from qbench.capture.exclude import Linears
from qbench.capture.families import layout, linear_groups
from qbench.capture.foreign import settings
from qbench.capture.place import Matrix, Place
from qbench.capture.places import matrices, places
from qbench.capture.sites import of
from qbench.models.transformer import Transformer

Groups = Sequence[tuple[tuple[str, ...], str]]  # of one block: names of weights, and the place that they read

_OWN = (
    (("attn.q", "attn.k", "attn.v", "attn.gate"), "attn.in"),
    (("attn.out",), "attn.context"),
    (("mlp.pre", "mlp.up"), "mlp.in"),
    (("mlp.out",), "mlp.hidden"),
)


@dataclass(frozen=True, slots=True, eq=False)
class Unit:
    """Matrices of one block that read the same tensor: queries, keys and values, say, or gate and up.

    `kind` is what the same unit of every block is called, `places` are where their input flows (none inside an
    expert), `modules` are the names of the modules that own the matrices, as a checkpoint has them.
    """

    block: int
    kind: str
    places: Mapping[str, Place]
    matrices: Mapping[str, Matrix]
    modules: tuple[str, ...]

    @property
    def name(self) -> str:
        return f"blocks.{self.block}.{self.kind}"


def blocks(model: nn.Module) -> Sequence[nn.Module]:
    """The layers of a model, in the order of the forward pass: the list of modules that holds most of its parameters.

    Raises ValueError where it has no such list.
    """
    if isinstance(model, Transformer):
        return list(model.blocks)
    lists = [module for module in model.modules() if isinstance(module, nn.ModuleList) and len(module)]
    if not lists:
        raise ValueError(f"{type(model).__name__} keeps no list of layers (nn.ModuleList), so none can be singled out")
    return list(max(lists, key=lambda found: sum(p.numel() for p in found.parameters())))  # the outermost of equals


def units(model: nn.Module, example: Any) -> tuple[Unit, ...]:
    """All units, block by block: by the names of sites where the model has them, else by what `example` shows.

    An example is a batch that the model accepts. Linear layers (nn.Linear, and GPT-2's Conv1D) of the same parent that
    are given the same tensor belong together; one that the example does not reach is in no unit, see `left_out`.
    """
    groups = _groups(model)
    return tuple(_named(model, groups)) if groups else tuple(_found(model, example))


def left_out(model: nn.Module, found: Sequence[Unit]) -> tuple[str, ...]:
    """Names of matrices in blocks that no unit covers: stacked experts, routers, what an example did not reach."""
    covered = {id(matrix.parameter) for unit in found for matrix in unit.matrices.values()}
    inside = {id(p) for block in blocks(model) for p in block.parameters() if p.ndim > 1}
    return tuple(name for name, p in checkpoint(model).named_parameters() if id(p) in inside - covered)


def checkpoint(model: nn.Module) -> nn.Module:
    """The module whose names a checkpoint has: a wrapper keeps it as `hf`."""
    inner = getattr(model, "hf", None)
    return inner if isinstance(inner, nn.Module) else model


def _groups(model: nn.Module) -> Sequence[Groups]:
    """For each block; empty where the model has no site names."""
    if isinstance(model, Transformer):
        known = of(model.spec)
        return [_of_block(f"blocks.{i}", known.weights) for i in range(known.layers)]
    config = settings(model)
    return [] if config is None or layout(config) is None else linear_groups(config)


def _of_block(block: str, known: Sequence[str]) -> Groups:
    return [(tuple(n for w in ws if (n := f"{block}.{w}") in known), f"{block}.{site}") for ws, site in _OWN]


def _named(model: nn.Module, groups: Sequence[Groups]) -> Iterator[Unit]:
    where, weights = places(model), matrices(model)
    owners = {id(p): name for name, m in checkpoint(model).named_modules() for p in m.parameters(recurse=False)}
    for block, of_block in enumerate(groups):
        for names, site in of_block:
            inside = {name: weights[name] for name in names}
            kind = (site or names[0].rpartition(".")[0]).removeprefix(f"blocks.{block}.")
            modules = tuple(dict.fromkeys(owners[id(matrix.parameter)] for matrix in inside.values()))
            yield Unit(block, kind, {site: where[site]} if site else {}, inside, modules)


@dataclass(frozen=True, slots=True, eq=False)
class _Reached:
    """A linear layer, and what it was given."""

    name: str
    module: nn.Module
    given: Tensor
    block: int
    path: str  # of the module, inside its block

    @property
    def reads(self) -> tuple[int, str, int, torch.Size]:
        return (self.block, self.path.rpartition(".")[0], self.given.data_ptr(), self.given.shape)


def _found(model: nn.Module, example: Any) -> Iterator[Unit]:
    names = {id(module): name for name, module in checkpoint(model).named_modules()}
    reached: list[_Reached] = []  # keeps every input alive, so that no two share an address by chance

    def watch(module: nn.Module, block: int, path: str) -> Callable[[Any], None]:
        return lambda x: reached.append(_Reached(names[id(module)], module, x, block, path))

    hooks = [
        _input(module).attach(watch(module, i, path))
        for i, block in enumerate(blocks(model))
        for path, module in block.named_modules()
        if _is_linear(module)
    ]
    try:
        with torch.no_grad():
            model(example)
    finally:
        for hook in hooks:
            hook.remove()
    for (block, parent, *_), together in groupby(sorted(reached, key=_order(reached)), key=lambda one: one.reads):
        yield _unit(block, parent, {one.name: one for one in together})


def _order(reached: Sequence[_Reached]) -> Callable[[_Reached], tuple[int, int]]:
    """Units as their first layers come, layers of a unit next to each other."""
    first: dict[object, int] = {}
    for i, one in enumerate(reached):
        first.setdefault(one.reads, i)
    return lambda one: (one.block, first[one.reads])


def _unit(block: int, parent: str, layers: Mapping[str, _Reached]) -> Unit:
    leaves = "+".join(one.path.rpartition(".")[2] for one in layers.values())
    return Unit(
        block,
        f"{parent}.{leaves}" if parent else leaves,
        {name: _input(one.module) for name, one in layers.items()},
        {name: _matrix(one.module) for name, one in layers.items()},
        tuple(layers),
    )


def _is_linear(module: nn.Module) -> bool:
    return isinstance(module, nn.Linear) or _is_conv1d(module)


def _is_conv1d(module: nn.Module) -> bool:
    """GPT-2's linear layer, which keeps its matrix as [in, out]; by name, for transformers may not be installed."""
    return type(module).__name__ == "Conv1D"


def _input(module: nn.Module) -> Place:
    return Place(module, "input", "x" if _is_conv1d(module) else "input")


def _matrix(module: nn.Module) -> Matrix:
    return Matrix(cast(nn.Parameter, module.weight), transposed=_is_conv1d(module))


def linears(model: nn.Module) -> Linears:
    """The linear layers of a model, in the order of its modules."""
    within = {id(module) for block in blocks(model) for module in block.modules()}
    found = {name: module for name, module in checkpoint(model).named_modules() if _is_linear(module)}
    return Linears(
        inside=tuple(name for name, module in found.items() if id(module) in within),
        outside=tuple(name for name, module in found.items() if id(module) not in within),
        transposed=tuple(name for name, module in found.items() if _is_conv1d(module)),
    )
