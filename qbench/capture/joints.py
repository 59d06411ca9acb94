"""The places of a model where a sub-block's output is added to the stream, and what is seen there."""

from collections.abc import Callable, Generator, Iterable, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from qbench.capture.place import Place
from qbench.capture.sites import SiteNames

# What leaves a branch, the last step first: behind a gain, behind a norm, or bare.
LEAVING = ("scaled", "normed", "out")

VisitAdd = Callable[[str, Tensor, Tensor, Tensor | None], None]


@dataclass(frozen=True, slots=True)
class Add:
    """One addition by the names of its places: the stream before it, the branches that join, and the sum."""

    stream: str
    branches: tuple[str, ...]
    total: str


def adds(names: SiteNames) -> tuple[Add, ...]:
    """Every residual addition of a model, in the order of the forward pass; none where sub-blocks have no skip.

    Where attention and MLP join side by side there is one addition with two branches.

    >>> from qbench.capture.sites import own
    >>> [add.total for add in adds(own("residual", 1))], adds(own("residual-free", 1))
    (['blocks.0.mid', 'blocks.0.out'], ())
    """
    return tuple(add for block in range(names.layers) for add in _of_block(names.activations, f"blocks.{block}"))


def _of_block(names: Mapping[str, str], block: str) -> Generator[Add, None, None]:
    stream = names.get(f"{block}.in")
    waiting: tuple[str, ...] = ()
    for part, after in (("attn", f"{block}.mid"), ("mlp", f"{block}.out")):
        branch = next((names[n] for step in LEAVING if (n := f"{block}.{part}.{step}") in names), None)
        waiting = waiting if branch is None else (*waiting, branch)
        total = names.get(f"{block}.{part}.sum", names.get(after))
        if total is None:  # no place between the sub-blocks: they join together
            continue
        # Without a skip the stream is the branch itself, one place with two names.
        if stream is not None and waiting and total not in waiting:
            yield Add(stream, waiting, total)
        stream, waiting = names.get(after, total), ()


@contextmanager
def watching_adds(places: Mapping[str, Place], found: Iterable[Add], visit: VisitAdd) -> Generator[None, None, None]:
    """While open, `visit(sum's name, stream, sum, branch)` is called at each of the additions `found`.

    A tensor is kept from where it flows to the last addition that it is part of, as the model itself keeps it: no copy
    is made. `branch` is the sum of all branches, None where a place of theirs is missing from `places`.
    """
    wanted = [add for add in found if add.stream in places and add.total in places]
    seen = _Seen({add.total: add for add in wanted}, visit)
    watched = dict.fromkeys(name for add in wanted for name in (add.stream, *add.branches, add.total))
    with ExitStack() as hooks:
        for name in watched:
            if name in places:
                hooks.enter_context(places[name].attach(partial(seen.see, name)))
        yield


class _Seen:
    """What flowed by and is still to be part of an addition."""

    def __init__(self, of: Mapping[str, Add], visit: VisitAdd) -> None:
        self.of = of
        self.visit = visit
        self.last = {name: add for add in of.values() for name in (add.stream, *add.branches)}
        self.kept: dict[str, Tensor] = {}

    def see(self, name: str, x: Any) -> None:
        add = self.of.get(name)
        if add is not None and add.stream in self.kept:
            self.visit(name, self.kept[add.stream], x.detach(), self._branch(add))
            for part in (add.stream, *add.branches):
                if self.last[part] is add:
                    self.kept.pop(part, None)
        if name in self.last:
            self.kept[name] = x.detach()

    def _branch(self, add: Add) -> Tensor | None:
        if any(name not in self.kept for name in add.branches):
            return None
        first, *others = (self.kept[name] for name in add.branches)
        return torch.stack([first, *others]).sum(0) if others else first
