"""Rotations that spread outliers over neighbours before quantizing, and undo themselves after."""

from functools import lru_cache

import torch
from torch import Tensor


class CannotRotate(ValueError):
    """The last axis has no such rotation."""


def rotation_size(hadamard: int, width: int) -> int:
    """How many neighbours of a last axis of `width` are mixed; 0 asks for the largest power of two that divides it.

    >>> rotation_size(0, 96)
    32
    """
    size = hadamard or width & -width
    if size < 2:
        raise CannotRotate(f"no rotation: the last axis has {width} values, which is odd")
    if width % size:
        raise CannotRotate(f"last axis of {width} values is not a multiple of the rotation size {size}")
    return size


def rotate(x: Tensor, size: int) -> Tensor:
    """Multiply each run of `size` values on the last axis by Sylvester's H / sqrt(size), which is its own inverse.

    >>> rotate(torch.tensor([1.0, 0.0, 0.0, 0.0]), size=4)
    tensor([0.5000, 0.5000, 0.5000, 0.5000])
    """
    # H of a b is the Kronecker product of H of a and H of b: two small multiplications in place of one large one.
    b = min(size, 128)
    runs = x.unflatten(-1, (-1, size // b, b)) @ _hadamard(b, x.dtype, x.device)
    if size > b:
        runs = _hadamard(size // b, x.dtype, x.device) @ runs
    return runs.reshape(x.shape)


@lru_cache
def _hadamard(size: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """H / sqrt(size), [size, size]."""
    h = torch.ones(1, 1, dtype=dtype, device=device)
    while len(h) < size:
        h = torch.cat([torch.cat([h, h], 1), torch.cat([h, -h], 1)])
    return h * size**-0.5
