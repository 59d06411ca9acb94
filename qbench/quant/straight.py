"""Quantization inside a training step: the value is quantized, the gradient passes straight through."""

from typing import Any

import torch
from torch import Tensor

from qbench.quant.quantizer import Quantizer


def fake(x: Tensor, forward: Quantizer | None, backward: Quantizer | None = None) -> Tensor:
    """`x` quantized by `forward`; its gradient is the incoming one, quantized by `backward`. None leaves either alone.

    Clipped values get the gradient too. Autograd never sees the rounding or a small dtype, whose casts would
    quantize the gradient without a scale. Raises NonFinite, in the backward pass too.

    >>> from qbench.quant.quantizer import build
    >>> x = torch.tensor([3.0, 1.2], requires_grad=True)
    >>> fake(x, build("int2/tensor")).sum().backward()
    >>> x.grad
    tensor([1., 1.])
    """
    return _Straight.apply(x, forward, backward)


class _Straight(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, forward: Quantizer | None, backward: Quantizer | None) -> Tensor:
        ctx.backward_quantizer = backward
        return x.clone() if forward is None else forward.roundtrip(x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        quantizer: Quantizer | None = ctx.backward_quantizer
        return (grads[0] if quantizer is None else quantizer.roundtrip(grads[0])), None, None
