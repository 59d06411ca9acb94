"""Which experts of a mixture the data reach: the others get no measured numbers and no scales from them."""

from collections.abc import Generator, Iterable, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from qbench.capture.place import Place
from qbench.capture.places import places

Counts = Mapping[str, Tensor]  # `blocks.N` -> int64 [E], the tokens that were sent to each expert


@contextmanager
def counting(model: nn.Module) -> Generator[Counts, None, None]:
    """While open, count the tokens that each expert of each block gets: [E] int64 for `blocks.N`.

    Costs no pass of its own: run whatever runs anyway. Empty for a model without a mixture of experts.
    """
    found = {name.removesuffix(".mlp.router"): p for name, p in places(model).items() if name.endswith(".mlp.router")}
    counts = {block: torch.zeros(_experts(place.module), dtype=torch.int64) for block, place in found.items()}
    with ExitStack() as hooks:
        for block, place in found.items():
            # The whole of what the router's module gives: logits, shares, and the chosen experts [B T, k].
            hooks.enter_context(Place(place.module).attach(partial(_count, counts[block])))
        yield counts


def unreached(counts: Counts) -> dict[str, tuple[int, ...]]:
    """The experts of each block that got no token; blocks where each got one are left out."""
    missed = {block: tuple((count == 0).nonzero().flatten().tolist()) for block, count in counts.items()}
    return {block: experts for block, experts in missed.items() if experts}


def unreached_by(model: nn.Module, batches: Iterable[Tensor]) -> dict[str, tuple[int, ...]]:
    """The experts of each block that no token of these batches [B, T] reaches; a pass over all of them.

    The matrices of such an expert are `{block}.mlp.experts.{expert}.*`.
    """
    with torch.no_grad(), counting(model) as counts:
        for tokens in batches:
            model(tokens)
    return unreached(counts)


def _experts(router: Any) -> int:
    return router.weight.shape[0]


def _count(counts: Tensor, output: tuple[Tensor, Tensor, Tensor]) -> None:
    counts += output[2].flatten().bincount(minlength=len(counts)).cpu()
