"""Quantization inside a training step: the value is quantized, the gradient passes straight through."""

from typing import Any

import torch
from torch import Tensor

from qbench.quant.quantizer import Quantizer


def fake(x: Tensor, forward: Quantizer | None, backward: Quantizer | None = None, *, trust: bool = False) -> Tensor:
    """`x` quantized by `forward`; its gradient is the incoming one, quantized by `backward`. None leaves either alone.

    Clipped values get the gradient too, unless `trust`: then it is zero where a value is saturated, in the rotated
    and smoothed tensor where there is one (QuEST's trust mask, arXiv 2502.05003). Autograd never sees the rounding or
    a small dtype, whose casts would quantize the gradient without a scale. Raises NonFinite, in the backward pass too.

    >>> from qbench.quant.quantizer import build
    >>> x = torch.tensor([3.0, 1.2], requires_grad=True)
    >>> fake(x, build("int2/tensor")).sum().backward()
    >>> x.grad
    tensor([1., 1.])
    """
    return _Straight.apply(x, forward, backward, trust)


class _Straight(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, forward: Quantizer | None, backward: Quantizer | None, trust: bool) -> Tensor:
        ctx.forward_quantizer, ctx.backward_quantizer, ctx.mask = forward, backward, None
        if forward is None:
            return x.clone()
        if trust and x.numel():
            choice = forward.choose(x)
            ctx.mask, ctx.factors = forward.trusted(choice), choice.factors
        return forward.roundtrip(x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        gradient = grads[0]
        if ctx.mask is not None:
            gradient = _masked(gradient, ctx.forward_quantizer, ctx.mask, ctx.factors)
        quantizer: Quantizer | None = ctx.backward_quantizer
        return (gradient if quantizer is None else quantizer.roundtrip(gradient)), None, None, None


def _masked(gradient: Tensor, quantizer: Quantizer, mask: Tensor, factors: Tensor | None) -> Tensor:
    """Zero where `mask` says so, in the space where the mask was made: its rotations are orthogonal."""
    wide = gradient.reshape(gradient.shape or (1,)).to(torch.promote_types(gradient.dtype, torch.float32))
    if factors is not None:
        wide = wide * factors.to(wide.dtype)
    blocks = quantizer.blocks(wide)
    inverse = None if factors is None else factors.reciprocal()
    return quantizer.restore(blocks.values * mask, gradient.shape, inverse).to(gradient.dtype)
