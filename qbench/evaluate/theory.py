"""Kurtosis through stacks of random layers, nothing trained: what is measured beside what closed forms say."""

from collections.abc import Iterator
from dataclasses import dataclass
from zlib import crc32

import numpy as np
import torch
from torch import Tensor

from qbench.evaluate.random_layers import BRANCHES, INPUTS, Branch, Layer, Sources
from qbench.evaluate.stack import Stack
from qbench.metrics.joint import AddSums, measure_add, merge_adds
from qbench.metrics.shape import ShapeSums, measure
from qbench.metrics.shape import merge as merge_shapes

AT_ONCE = 1024  # rows that go through the stack together


@dataclass(frozen=True, slots=True)
class Depth:
    """What flows behind `layers` layers of a stack, by metric name; behind none its input.

    `theory/kurtosis/tensor` and `/channel` are the closed forms' values, in expectation over weights and rows, absent
    where none is known; `add/kurtosis/independent/*` is what independence of stream and branch would give from what
    was measured of both.
    """

    layers: int
    values: dict[str, float]


def through(stack: Stack, seed: int) -> tuple[Depth, ...]:
    """Send random rows through the stack, some at a time, and measure behind every layer; on the CPU, in float64.

    Equal stacks with equal seeds give equal numbers. Memory: the weights, and 1024 rows behind one layer.
    """
    layers = layers_of(stack, seed)
    shapes: list[ShapeSums | None] = [None] * (stack.depth + 1)
    sums: list[AddSums | None] = [None] * (stack.depth + 1)
    for number, rows in enumerate(_rows(stack, seed)):
        x = rows
        shapes[0] = _merged(shapes[0], x)
        for depth, layer in enumerate(layers, 1):
            stream, update = x, layer(x, _generator(seed, f"noise {number} {depth}"))
            x = update if stack.wiring == "dense" else stream + stack.ratio**0.5 * update
            shapes[depth] = _merged(shapes[depth], x)
            if stack.wiring == "residual":
                found, so_far = measure_add(stream, x, update), sums[depth]
                sums[depth] = found if so_far is None else merge_adds(so_far, found)
    return tuple(_depths(stack, shapes, sums))


def theory(stack: Stack) -> tuple[Sources | None, ...]:
    """What closed forms say of the stream in front of the stack and behind each layer; None once none is known."""
    branch, first = BRANCHES[stack.branch], INPUTS[stack.input].sources(stack.width)
    found: list[Sources | None] = [first]
    for _ in range(stack.depth):
        stream = found[-1]
        found.append(None if stream is None else _behind(branch, stream, stack))
    return tuple(found)


def _behind(branch: Branch, stream: Sources, stack: Stack) -> Sources | None:
    if stack.wiring == "dense":
        return branch.sources(stream, stack.width)
    return branch.added(stream, stack.width, stack.ratio)


def layers_of(stack: Stack, seed: int) -> list[Layer]:
    """The random layers of a stack, the first one first."""
    branch = BRANCHES[stack.branch]
    return [branch.make(stack.width, _generator(seed, f"weights {depth}")) for depth in range(1, stack.depth + 1)]


def _rows(stack: Stack, seed: int) -> Iterator[Tensor]:
    draw = INPUTS[stack.input].draw
    for number, start in enumerate(range(0, stack.rows, AT_ONCE)):
        random = np.random.default_rng([seed, number, crc32(stack.input.encode())])
        yield torch.from_numpy(draw(random, (min(AT_ONCE, stack.rows - start), stack.width)))


def _generator(seed: int, what: str) -> torch.Generator:
    return torch.Generator().manual_seed(crc32(f"{seed} {what}".encode()))


def _merged(so_far: ShapeSums | None, x: Tensor) -> ShapeSums:
    found = measure(x)
    return found if so_far is None else merge_shapes(so_far, found)


def _depths(stack: Stack, shapes: list[ShapeSums | None], sums: list[AddSums | None]) -> Iterator[Depth]:
    for layers, (shape, added, known) in enumerate(zip(shapes, sums, theory(stack), strict=True)):
        assert shape is not None
        values = shape.values()
        if known is not None:
            values |= {"theory/kurtosis/tensor": known.tensor, "theory/kurtosis/channel": known.channel}
        if added is not None:
            values |= added.values()
        yield Depth(layers, values)
