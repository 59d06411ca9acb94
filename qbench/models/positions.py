"""How a model knows the order of its tokens: turned queries and keys, or vectors added to the embedding.

Shape suffixes: B windows, T positions, D width, H heads, K half a head.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from qbench.models.norms import wide
from qbench.models.spec import ModelSpec, Positions

ROTARY_BASE = 10_000.0


def rotary_table(context: int, head: int) -> Tensor:
    """Angles of rotary positions as (cos, sin): [context, head / 2, 2], t * 10000^(-2 k / head) at [t, k].

    Source: Su et al., arXiv 2104.09864, equation 15.
    """
    angle_TK = _angles(context, head)
    return torch.stack([angle_TK.cos(), angle_TK.sin()], -1).float()


def rotate(x_BTHD: Tensor, table_TK2: Tensor) -> Tensor:
    """Turn each pair (2k, 2k + 1) of a head's coordinates by the angle of its position; heads are [B, T, H, 2K].

    The pairs are read as complex numbers: one multiplication forward, one backward, instead of seven. There are none
    of 16 bits: what has fewer bits than float32 is turned there and rounded once.
    """
    x_BTHK = torch.view_as_complex(wide(x_BTHD).unflatten(-1, (-1, 2)))
    turn_T1K = torch.view_as_complex(wide(table_TK2)).unsqueeze(1)
    return torch.view_as_real(x_BTHK * turn_T1K).flatten(-2).type_as(x_BTHD)


def sinusoids(length: int, width: int) -> Tensor:
    """sin and cos of the same angles by turns, mean square 1: [length, width].

    Source: Vaswani et al., arXiv 1706.03762, section 3.5; sqrt(2) times theirs.
    """
    angle_TK = _angles(length, width + width % 2)
    table_TD = torch.stack([angle_TK.sin(), angle_TK.cos()], -1).flatten(-2)[:, :width]
    return (2**0.5 * table_TD).float()


@dataclass(frozen=True, slots=True)
class Order:
    """`turns` where queries and keys are rotated; `added` makes what is added to the embedding, [length, width]."""

    turns: bool
    added: Callable[[ModelSpec], Tensor] | None


def _learned(spec: ModelSpec) -> Tensor:
    return nn.Parameter(torch.empty(spec.length, spec.width))


def _sinusoidal(spec: ModelSpec) -> Tensor:
    return spec.position_deviation * sinusoids(spec.length, spec.width)


POSITIONS: Mapping[Positions, Order] = {
    "rope": Order(turns=True, added=None),
    "learned": Order(turns=False, added=_learned),
    "sinusoidal": Order(turns=False, added=_sinusoidal),
}


def _angles(length: int, size: int) -> Tensor:
    frequency_K = ROTARY_BASE ** (-torch.arange(0, size, 2, dtype=torch.float64) / size)
    return torch.outer(torch.arange(length, dtype=torch.float64), frequency_K)
