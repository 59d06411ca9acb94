"""What optimizers of matrices share: matrices of one shape are updated together, in few large operations."""

from abc import abstractmethod
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn


class OfMatrices(torch.optim.Optimizer):
    """An optimizer for matrices [out, in] only; raises ValueError for anything else."""

    def __init__(self, params: Iterable[nn.Parameter], defaults: dict[str, Any]) -> None:
        super().__init__(params, defaults)
        for group in self.param_groups:
            for p in group["params"]:
                if p.ndim != 2:
                    raise ValueError(
                        f"{type(self).__name__} is for matrices, found a parameter of shape {tuple(p.shape)}"
                    )

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """One update of every parameter that has a gradient."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            self._begin(group)
            by_shape: dict[torch.Size, list[nn.Parameter]] = {}
            for p in group["params"]:
                if p.grad is not None:
                    by_shape.setdefault(p.shape, []).append(p)
            for params in by_shape.values():
                self._update(params, group)
        return loss

    def _begin(self, group: dict[str, Any]) -> None:
        """Before the updates of a group: some count its steps."""

    @abstractmethod
    def _update(self, params: list[nn.Parameter], group: dict[str, Any]) -> None:
        """Update parameters of one shape, all of which have gradients, together."""
