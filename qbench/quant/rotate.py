"""Rotations that spread outliers over neighbours before quantizing, and undo themselves after."""

from functools import lru_cache
from math import isqrt

import torch
from torch import Tensor

from qbench.quant.rounding import uniform


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
    runs = x.unflatten(-1, (-1, size // b, b)) @ _sylvester(b, x.dtype, x.device)
    if size > b:
        runs = _sylvester(size // b, x.dtype, x.device) @ runs
    return runs.reshape(x.shape)


def randomized(x: Tensor, seed: int) -> Tensor:
    """Flip signs on the last axis at random, then mix all of it with one Hadamard matrix (QuIP#, arXiv 2402.04396).

    Raises CannotRotate where no such matrix is known to this module.
    """
    return _whole(x * _signs(x, seed), forward=True)


def derandomized(x: Tensor, seed: int) -> Tensor:
    """Undo `randomized`."""
    return _whole(x, forward=False) * _signs(x, seed)


def _signs(x: Tensor, seed: int) -> Tensor:
    return torch.where(uniform(x.new_empty(x.shape[-1], dtype=torch.float32), seed) < 0.5, 1.0, -1.0).to(x.dtype)


def _whole(x: Tensor, *, forward: bool) -> Tensor:
    width = x.shape[-1]
    core = _core(width)
    matrix = _paley(core, x.dtype, x.device)
    runs = x.unflatten(-1, (-1, core)) @ (matrix.T if forward else matrix)
    power = width // core
    if power > 1:
        runs = rotate(runs.transpose(-1, -2).contiguous(), power).transpose(-1, -2)
    return runs.reshape(x.shape)


@lru_cache
def _core(width: int) -> int:
    """The order, 1 or a multiple of four, of a Paley matrix that makes up `width` together with a power of two."""
    odd = width // (width & -width)
    order = odd if odd == 1 else 4 * odd
    while width % order == 0:
        if order == 1 or _prime(order - 1) or _doubled(order):
            return order
        order *= 2
    raise CannotRotate(f"no Hadamard matrix for a last axis of {width} values")


def _doubled(order: int) -> bool:
    """Paley's second construction makes this order from a prime that is 1 modulo 4."""
    return order % 2 == 0 and _prime(order // 2 - 1) and (order // 2 - 1) % 4 == 1


def _prime(n: int) -> bool:
    return n > 1 and all(n % k for k in range(2, isqrt(n) + 1))


@lru_cache
def _paley(order: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """A Hadamard matrix over sqrt(order), [order, order] (Paley 1933)."""
    if order == 1:
        return torch.ones(1, 1, dtype=dtype, device=device)
    if _prime(order - 1):  # which is 3 modulo 4
        h = _conference(order - 1, corner=-1) + torch.eye(order)
    else:
        c = _conference(order // 2 - 1, corner=1)
        h = torch.kron(c, torch.tensor([[1.0, 1], [1, -1]])) + torch.kron(
            torch.eye(order // 2), torch.tensor([[1.0, -1], [-1, -1]])
        )
    return (h * order**-0.5).to(dtype=dtype, device=device)


def _conference(q: int, corner: int) -> Tensor:
    """Jacobsthal's matrix of quadratic residues modulo the prime q, with a border, [q + 1, q + 1]."""
    squares = {i * i % q for i in range(1, q)}
    character = torch.tensor([0.0] + [1.0 if i in squares else -1.0 for i in range(1, q)])
    i = torch.arange(q)
    c = torch.ones(q + 1, q + 1)
    c[0, 0], c[1:, 0], c[1:, 1:] = 0, corner, character[(i[:, None] - i) % q]
    return c


@lru_cache
def _sylvester(size: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """H / sqrt(size), [size, size]."""
    h = torch.ones(1, 1, dtype=dtype, device=device)
    while len(h) < size:
        h = torch.cat([torch.cat([h, h], 1), torch.cat([h, -h], 1)])
    return h * size**-0.5
