"""Which values share a scale: the granularity of a spec, and how many groups it makes of a tensor."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from itertools import product
from math import prod

GRANULARITIES = ("tensor", "token", "channel", "block:N", "block:N@AXIS", "tile:RxC")
_N = "[1-9][0-9]{0,8}"
_BLOCK = re.compile(rf"block:({_N})(?:@(0|-?[1-9]))?")
_TILE = re.compile(rf"tile:({_N})x({_N})")


@dataclass(frozen=True, slots=True)
class Group:
    """A parsed granularity: `kind` is tensor, token, channel, block or tile.

    `sizes` is (n,) for a block and (rows, columns) for a tile; `axis` is the axis along which a block runs.
    Blocks and tiles never cross the end of their axes; a short last one is padded with zeros, which are stored too.
    """

    kind: str
    sizes: tuple[int, ...] = ()
    axis: int = -1

    def __str__(self) -> str:
        sizes = "x".join(map(str, self.sizes))
        where = f"@{self.axis}" if self.axis != -1 else ""
        return f"{self.kind}:{sizes}{where}" if sizes else self.kind

    def counts(self, shape: Iterable[int], channel_axis: int = -1) -> tuple[int, int]:
        """Groups, and codes with all padding, of a tensor of this shape.

        >>> group("block:32").counts((8, 33))
        (16, 512)
        """
        sizes = tuple(shape) or (1,)
        values = prod(sizes)
        if self.kind in ("tensor", "token", "channel"):
            rows = values // sizes[-1] if sizes[-1] else 0
            channels = sizes[place(channel_axis, len(sizes))] if self.kind == "channel" else 0
            return {"tensor": 1, "token": rows, "channel": channels}[self.kind], values
        grouped, rest = self._axes(sizes)
        groups = prod(rest) * prod(-(-size // n) for size, n in zip(grouped, self.sizes, strict=True))
        return groups, groups * prod(self.sizes)

    def populations(self, shape: Iterable[int], channel_axis: int = -1) -> list[tuple[int, float]]:
        """How many values share a scale, and which share of all values is in groups of that size.

        >>> group("block:32").populations((8, 40))
        [(32, 0.8), (8, 0.2)]
        """
        sizes = tuple(shape) or (1,)
        if self.kind in ("tensor", "token", "channel"):
            groups, values = self.counts(sizes, channel_axis)
            return [(values // groups, 1.0)]
        grouped, _ = self._axes(sizes)
        sides = [[(n, size - size % n), (size % n, size % n)] for size, n in zip(grouped, self.sizes, strict=True)]
        found: list[tuple[int, float]] = []
        for parts in product(*sides):
            share = prod(covered for _, covered in parts) / prod(grouped)
            found += [(prod(n for n, _ in parts), share)] if share else []
        return found

    def _axes(self, sizes: tuple[int, ...]) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Sizes of the axes that are cut, and of all others."""
        if self.kind == "tile":
            sizes = (1, *sizes) if len(sizes) == 1 else sizes
            return sizes[-2:], sizes[:-2]
        axis = place(self.axis, len(sizes))
        return (sizes[axis],), (*sizes[:axis], *sizes[axis + 1 :])


class NoSuchAxis(ValueError):
    """A tensor has too few axes for the granularity."""


def place(axis: int, ndim: int) -> int:
    """`axis` counted from the front; raises NoSuchAxis."""
    if not -ndim <= axis < ndim:
        raise NoSuchAxis(f"axis {axis} of a tensor that has {ndim}")
    return axis % ndim


@lru_cache(maxsize=1024)
def group(granularity: str) -> Group:
    """Parse a granularity; ValueError where it is none of GRANULARITIES.

    >>> str(group("block:16@-1")), group("tile:16x32").sizes
    ('block:16', (16, 32))
    """
    if granularity in ("tensor", "token", "channel"):
        return Group(granularity)
    if found := _BLOCK.fullmatch(granularity):
        return Group("block", (int(found[1]),), int(found[2] or -1))
    if found := _TILE.fullmatch(granularity):
        return Group("tile", (int(found[1]), int(found[2])))
    raise ValueError(granularity)
