"""What flows through named places of a model: activations, their gradients, and weights, seen one at a time.

Nothing is kept: a visitor sees each tensor once, as it flows by, so that peak extra memory is one batch at one site.
"""

from collections.abc import Callable, Generator, Iterable, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from qbench.capture.place import Matrix, Place

Visit = Callable[[str, Tensor], None]
Loss = Callable[[nn.Module, Any], Tensor]


@contextmanager
def watching(places: Mapping[str, Place], visit: Visit) -> Generator[None, None, None]:
    """While open, call `visit(site, x)` with every tensor that leaves one of `places`; unhooked also after an error."""
    with ExitStack() as hooks:
        for name, place in places.items():
            hooks.enter_context(place.attach(partial(visit, name)))
        yield


def activations(
    run: Callable[[Tensor], object], places: Mapping[str, Place], batches: Iterable[Tensor], visit: Visit
) -> None:
    """Run a model on each batch of tokens [B, T], or images, and show `visit` the tensor [B, T, C] of every place."""
    with torch.no_grad(), watching(places, visit):
        for tokens in batches:
            run(tokens)


def gradients(model: nn.Module, places: Mapping[str, Place], batches: Iterable[Any], loss: Loss, visit: Visit) -> None:
    """Show `visit` the gradient of `loss(model, batch)` with respect to the activation of every place.

    The parameters are left as they were: their gradients are neither computed nor touched.
    """

    def watch(name: str, x: Tensor) -> None:
        x.register_hook(partial(visit, name))

    with torch.enable_grad(), frozen(model), rooted(places), watching(places, watch):
        for batch in batches:
            loss(model, batch).backward()


@contextmanager
def rooted(places: Mapping[str, Place]) -> Generator[None, None, None]:
    """Make what leaves each place require a gradient: in a frozen model the first ones reached are the roots.

    There can be many, such as queries, keys and values, none of which depends on another.
    """

    def root(x: Any) -> Tensor | None:
        # A copy: what follows may work in place, which autograd forbids on a root and on views of one.
        return None if x.requires_grad else x.detach().requires_grad_().clone()

    with ExitStack() as hooks:
        for place in places.values():
            hooks.enter_context(place.attach(root))
        yield


@contextmanager
def frozen(model: nn.Module) -> Generator[None, None, None]:
    """Switch off gradients of all parameters, and restore each one's own setting."""
    before = {parameter: parameter.requires_grad for parameter in model.parameters()}
    for parameter in before:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter, required in before.items():
            parameter.requires_grad_(required)


def weights(matrices: Mapping[str, Matrix], visit: Visit) -> None:
    """Show `visit` each matrix [out, in], detached."""
    for name, matrix in matrices.items():
        visit(name, matrix.read())
