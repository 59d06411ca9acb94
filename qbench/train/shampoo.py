"""Shampoo as it is used to train transformers: averaged factors, AdamW's step length, roots renewed now and then.

The algorithm is Distributed Shampoo (Shi et al., arXiv 2309.06497, algorithm 1, after Gupta et al., arXiv 1802.09568)
with Adam grafting. pytorch-optimizer's `Shampoo` follows Gupta et al. to 2e-6, but has no grafting, keeps the
preconditioned gradient as its momentum (68 % off the published path after twelve steps), and its `ScalableShampoo`
keeps Python objects as state, which can be neither saved as tensors nor quantized. SOAP is taken from that library.

Shape suffixes: N matrices of one shape, R rows, C columns.
"""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from qbench.train.matrices import OfMatrices

RIDGE = 1e-6  # of the largest eigenvalue, added to all: below, float32 Gram matrices hold rounding only
SMALLEST_NORM = 1e-30


def inverse_root(a_NRR: Tensor, order: int) -> Tensor:
    """(A + RIDGE max(lambda) I)^(-1 / order) of symmetric matrices; negative eigenvalues, which are rounding, count 0.

    A matrix of zeros gives zeros: nothing has moved there yet.
    """
    values_NR, vectors_NRR = torch.linalg.eigh(a_NRR)
    values_NR = values_NR.clamp(min=0)
    values_NR = values_NR + RIDGE * values_NR[..., -1:]
    power_NR = torch.where(values_NR > 0, values_NR.pow(-1 / order), 0.0)
    return (vectors_NRR * power_NR.unsqueeze(-2)) @ vectors_NRR.mT


class Shampoo(OfMatrices):
    """L^(-1/4) M R^(-1/4) at the length of AdamW's step; decoupled weight decay lr * weight_decay.

    M is the averaged gradient, L and R average G G^T and G^T G; all averages are corrected for their start at zero.
    Roots are computed at every `frequency`-th step; before the first of those the step is AdamW's.
    For matrices [out, in] only; raises ValueError for anything else. State: `exp_avg`, `exp_avg_sq` (of the step
    length), `factors` [L, R], `roots` [L^(-1/4), R^(-1/4)].
    """

    def __init__(
        self,
        params: Iterable[nn.Parameter],
        lr: float = 3e-3,
        weight_decay: float = 0.1,
        *,
        betas: tuple[float, float] = (0.9, 0.95),
        frequency: int = 10,
    ) -> None:
        defaults = {"lr": lr, "weight_decay": weight_decay, "betas": betas, "frequency": frequency, "step": 0}
        super().__init__(params, defaults)

    def _begin(self, group: dict[str, Any]) -> None:
        group["step"] += 1

    def _update(self, params: list[nn.Parameter], group: dict[str, Any]) -> None:
        states = [self._state(p) for p in params]
        g_NRC = torch.stack([p.grad for p in params if p.grad is not None])
        self._average(states, g_NRC, group)
        step, (beta1, beta2) = group["step"], group["betas"]
        if step % group["frequency"] == 0:
            _renew(states, 1 - beta2**step)
        m_NRC = torch.stack([s["exp_avg"] for s in states]) / (1 - beta1**step)
        v_NRC = torch.stack([s["exp_avg_sq"] for s in states]) / (1 - beta2**step)
        update_NRC = m_NRC / (v_NRC.sqrt() + 1e-8)
        if step >= group["frequency"]:
            left_NRR, right_NCC = (torch.stack([s["roots"][side] for s in states]) for side in (0, 1))
            update_NRC = _as_long_as(update_NRC, left_NRR @ m_NRC @ right_NCC)
        for p, update_RC in zip(params, update_NRC, strict=True):
            p.mul_(1 - group["lr"] * group["weight_decay"]).sub_(update_RC, alpha=group["lr"])

    @staticmethod
    def _average(states: list[dict[str, Any]], g_NRC: Tensor, group: dict[str, Any]) -> None:
        beta1, beta2 = group["betas"]
        grams = zip(g_NRC @ g_NRC.mT, g_NRC.mT @ g_NRC, strict=True)
        for state, g_RC, (rows_RR, columns_CC) in zip(states, g_NRC, grams, strict=True):
            state["exp_avg"].lerp_(g_RC, 1 - beta1)
            state["exp_avg_sq"].lerp_(g_RC.square(), 1 - beta2)
            state["factors"][0].lerp_(rows_RR, 1 - beta2)
            state["factors"][1].lerp_(columns_CC, 1 - beta2)

    def _state(self, p: nn.Parameter) -> dict[str, Any]:
        state: dict[str, Any] = self.state[p]
        if not state:
            state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(p), torch.zeros_like(p)
            state["factors"] = [p.new_zeros(size, size) for size in p.shape]
            state["roots"] = [torch.eye(size, dtype=p.dtype, device=p.device) for size in p.shape]
        return state


def _renew(states: list[dict[str, Any]], weight: float) -> None:
    """New roots of the factors, whose averages have this `weight` so far."""
    for side in (0, 1):
        roots_NSS = inverse_root(torch.stack([s["factors"][side] for s in states]) / weight, 4)
        for state, root_SS in zip(states, roots_NSS, strict=True):
            state["roots"][side].copy_(root_SS)


def _as_long_as(length_NRC: Tensor, direction_NRC: Tensor) -> Tensor:
    """Each matrix of `direction_NRC` with the Frobenius norm of its partner."""
    wanted, found = (torch.linalg.matrix_norm(x_NRC, keepdim=True) for x_NRC in (length_NRC, direction_NRC))
    return direction_NRC * (wanted / found.clamp(min=SMALLEST_NORM))
