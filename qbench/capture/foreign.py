"""The named places and matrices of a live pretrained model, found by the layout of its family."""

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from qbench.capture.families import layout
from qbench.capture.layout import Layout, Spot
from qbench.capture.place import Matrix, Place, See
from qbench.capture.taps import tap, taps


def transformer(model: nn.Module) -> nn.Module | None:
    """The transformers model that `model` wraps as `.hf`, or is; None where it is no such model."""
    inner = getattr(model, "hf", model)
    known = hasattr(getattr(inner, "config", None), "model_type")
    return inner if known and isinstance(inner, nn.Module) else None


def settings(model: nn.Module) -> Mapping[str, Any] | None:
    """What the config.json of a transformers model would say; None where `model` is no such model."""
    inner = transformer(model)
    return None if inner is None else cast(Mapping[str, Any], cast(Any, inner).config.to_dict())


def foreign_places(model: nn.Module) -> dict[str, Place]:
    """Canonical name of every place -> where its tensor flows, in the order of the forward pass.

    Tensors are [B, T, C]; queries, keys and values have their heads side by side, keys and values unrepeated; queries
    and keys come behind their rotary embedding, keys and values behind the cache. What OPT computes in its MLP, Qwen's
    shared expert, and a router are [B T, C]. Sums (`mid`) are those of a model in eval mode, without dropout.

    The first call adds modules without parameters to each attention (`capture.taps`); no value changes. Raises
    ValueError for an unknown family, and for attention that cannot be seen through.
    """
    inner, plan = _known(model)
    spots = plan.spots()
    tap(inner, [inner.get_submodule(spot.path) for spot in spots.values() if spot.end == "query"])
    return {name: _place(inner, plan, spot) for name, spot in spots.items()}


def foreign_matrices(model: nn.Module) -> dict[str, Matrix]:
    """Name of every matrix -> the matrix [out, in]; a head that is the embedding is `embed`, once.

    Raises ValueError for an unknown family.
    """
    inner, plan = _known(model)
    found: dict[str, Matrix] = {}
    for name, weight in plan.weights().items():
        path = weight.path if weight.index is not None else f"{weight.path}.weight"
        transposed = plan.transposed and name.startswith("blocks.")
        found[name] = Matrix(inner.get_parameter(path), transposed, weight.index)
    return found


def _known(model: nn.Module) -> tuple[nn.Module, Layout]:
    inner, config = transformer(model), settings(model)
    plan = None if config is None else layout(config)
    if inner is None or plan is None:
        kind = type(model).__name__ if config is None else f"model_type {config['model_type']!r}"
        raise ValueError(f"the places of {kind} have no names; use those of its modules (capture.places)")
    return inner, plan


def _place(inner: nn.Module, plan: Layout, spot: Spot) -> Place:
    module = inner.get_submodule(spot.path)
    match spot.end:
        case "output":
            return Place(module)
        case "input":
            return Inlet(module, "input")
        case "query" | "key" | "value":
            return Place(taps(module).get_submodule(spot.end))
        case "router":
            return Routing(module)
        case "sum":
            block = ".".join(spot.path.split(".")[: plan.blocks.count(".") + 2])
            return Sum(module, block=inner.get_submodule(block))


@dataclass(frozen=True, slots=True)
class Inlet(Place):
    """What enters a module, apart from all others that read the same tensor: its gradient is that of this one."""

    def attach(self, see: See) -> RemovableHandle:
        def apart(x: Tensor) -> Tensor | None:
            mine = x.view_as(x) if x.requires_grad else x
            other = see(mine)
            return mine if other is None and x.requires_grad else other

        return Place(self.module, "input").attach(apart)


class Handles(RemovableHandle):
    """Several hooks that go together."""

    def __init__(self, *handles: RemovableHandle) -> None:
        super().__init__(OrderedDict())
        self.handles = handles

    def remove(self) -> None:
        for handle in self.handles:
            handle.remove()


@dataclass(frozen=True, slots=True, kw_only=True)
class Sum(Place):
    """What entered `block` plus what leaves `module`: a sum that the block computes without a module for it.

    To put another tensor in its place, `module` is made to give the difference: exact up to one rounding.
    """

    block: nn.Module

    def attach(self, see: See) -> RemovableHandle:
        entered: list[Tensor] = []

        def keep(x: Tensor) -> None:
            entered[:] = [x]

        def add(y: Tensor) -> Tensor | None:
            stream = entered.pop()
            total = stream + y
            other = see(total)
            # Whoever waits for the gradient of the sum needs it to be part of the graph.
            return None if other is None and not total.requires_grad else (total if other is None else other) - stream

        first = Place(self.block, "input").attach(keep)
        return Handles(first, Place(self.module, first=True).attach(add))


@dataclass(frozen=True, slots=True)
class Routing(Place):
    """The logits [B T, E] of a router, whose module also gives the experts it chose, and their shares.

    Other logits choose anew: the k largest probabilities, summing to one where the family has it so.
    """

    def attach(self, see: See) -> RemovableHandle:
        def choose(router: Any, _inputs: object, output: tuple[Tensor, Tensor, Tensor]) -> Any:
            logits, shares, _ = output
            other = see(logits)
            if other is None:
                return None
            top, chosen = other.float().softmax(-1).topk(router.top_k, dim=-1)
            if getattr(router, "norm_topk_prob", True):  # Mixtral always does
                top = top / top.sum(-1, keepdim=True)
            return other, top.to(shares.dtype), chosen

        return self.module.register_forward_hook(choose)
