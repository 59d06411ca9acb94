"""Muon: momentum whose update is replaced by the nearest semi-orthogonal matrix, many matrices at a time.

The algorithm is K. Jordan's (https://kellerjordan.github.io/posts/muon/) with the choices of torch.optim.Muon. That
one runs Newton-Schulz matrix by matrix in bfloat16; here matrices of one shape go through it together in float32.
On CPUs with bfloat16 units bfloat16 would be up to 3 times faster, on others up to 20 times slower, and it
is the one part of training whose rounding would differ visibly between machines.
"""

from collections.abc import Callable, Iterable
from math import sqrt
from typing import Any

import torch
from torch import Tensor, nn

from qbench.train.matrices import OfMatrices

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
ITERATIONS = 5
SMALLEST_NORM = 1e-7


def orthogonalize(g_NRC: Tensor) -> Tensor:
    """Each matrix with its singular values moved close to 1 (0.7 to 1.2): five quintic Newton-Schulz steps."""
    if g_NRC.shape[-2] > g_NRC.shape[-1]:
        return orthogonalize(g_NRC.mT).mT
    a, b, c = COEFFICIENTS
    x_NRC = g_NRC / torch.linalg.matrix_norm(g_NRC, keepdim=True).clamp(min=SMALLEST_NORM)
    for _ in range(ITERATIONS):
        gram_NRR = x_NRC @ x_NRC.mT
        polynomial_NRR = torch.baddbmm(gram_NRR, gram_NRR, gram_NRR, beta=b, alpha=c)
        x_NRC = torch.baddbmm(x_NRC, polynomial_NRR, x_NRC, beta=a)
    return x_NRC


def spectral(rows: int, columns: int) -> float:
    """Jordan's scale: steps of equal size in the norm that maps rms to rms, wide matrices being left as they are."""
    return sqrt(max(1.0, rows / columns))


def rms_matched(rows: int, columns: int) -> float:
    """Moonlight's scale (arXiv 2502.16982), also OSP's: an update with the rms of AdamW's, about 0.2."""
    return 0.2 * sqrt(max(rows, columns))


class Muon(OfMatrices):
    """Nesterov momentum, orthogonalized, times lr scale(out, in); decoupled weight decay lr * weight_decay.

    For matrices [out, in] only; raises ValueError for anything else. State: `momentum_buffer`, as in torch's.
    """

    def __init__(
        self,
        params: Iterable[nn.Parameter],
        lr: float = 0.02,
        weight_decay: float = 0.1,
        *,
        momentum: float = 0.95,
        scale: Callable[[int, int], float] = spectral,
    ) -> None:
        self.scale = scale
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    def _update(self, params: list[nn.Parameter], group: dict[str, Any]) -> None:
        rows, columns = params[0].shape
        rate = group["lr"] * self.scale(rows, columns)
        ahead_NRC = torch.stack([self._nesterov(p, group["momentum"]) for p in params])
        for p, direction_RC in zip(params, orthogonalize(ahead_NRC), strict=True):
            p.mul_(1 - group["lr"] * group["weight_decay"]).sub_(direction_RC, alpha=rate)

    def _nesterov(self, p: nn.Parameter, momentum: float) -> Tensor:
        """Advance the momentum of `p` by its gradient, and look one step further along both."""
        assert p.grad is not None  # `step` passes on only those that have one
        state = self.state[p]
        if not state:
            state["momentum_buffer"] = torch.zeros_like(p)
        buffer: Tensor = state["momentum_buffer"].lerp_(p.grad, 1 - momentum)
        return p.grad.lerp(buffer, momentum)
