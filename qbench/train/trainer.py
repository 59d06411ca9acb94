"""One training step: batch in, loss and gradient norm out, the model and its optimizers one update further."""

from collections.abc import Callable, Generator
from contextlib import contextmanager, nullcontext
from functools import partial
from math import isfinite, nan
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from qbench.models.transformer import Transformer
from qbench.quant.blocks import NonFinite
from qbench.train import optimizer
from qbench.train.inside import Inside
from qbench.train.spec import TrainingSpec
from qbench.train.states import Kept

# Tokens [B, T + 1], each the target of those before it; or inputs and targets.
Batch = Tensor | tuple[Tensor, Tensor]
NO_TARGET = -100  # a position that is not scored, as torch has it


class Trainer:
    """A model with its optimizers: what one training step needs. `steps` counts the updates made."""

    def __init__(self, model: Transformer, training: TrainingSpec) -> None:
        self.model, self.training = model, training
        self.steps = 0
        self.parameters = list(model.parameters())
        self.optimizers = optimizer.build(model, training)
        self.peaks = [float(group["lr"]) for group in self._groups()]
        self.inside = Inside(model, training.quantized or {})
        self.kept = self._kept()
        self.recompute = Recompute(model) if training.recompute else nullcontext
        self.loss: Callable[[Tensor, Tensor], Tensor] = partial(loss_of, model)
        if training.compiled:
            self.loss = torch.compile(self.loss)

    def step(self, batch: Batch, factor: float) -> tuple[float, float]:
        """Loss and gradient norm of `batch`; the update happens only where both are finite.

        Loss and norm are NaN where a quantizer met a tensor that is not finite.
        """
        try:
            loss = self._gradients(batch)
            norm = nn.utils.clip_grad_norm_(self.parameters, self.training.clip)
            loss_now, norm_now = torch.stack([loss, norm]).tolist()  # one wait for the device, not two
        except NonFinite:
            loss_now = norm_now = nan
        if isfinite(loss_now) and isfinite(norm_now):
            self._update(factor)
        for parameter in self.parameters:
            parameter.grad = None
        return loss_now, norm_now

    def _gradients(self, batch: Batch) -> Tensor:
        """Loss of the batch, a part at a time; gradients add up to those of the whole."""
        inputs, targets = pair(batch)
        device, parts = self.parameters[0].device, self.training.accumulate
        shares = _shares(targets, parts)
        losses: list[Tensor] = []
        for index, (x, y) in enumerate(zip(inputs.chunk(parts), targets.chunk(parts), strict=True)):
            if shares[index]:  # a part without targets has no mean
                work = partial(self._backward, x.to(device), y.to(device), shares[index])
                losses.append(self.inside.run(work, self.steps * parts + index))
        if not losses:  # nothing to learn from: as without parts, where the mean of nothing is NaN
            return torch.tensor(nan)
        return losses[0] if parts == 1 else torch.stack(losses).sum()

    def _backward(self, inputs: Tensor, targets: Tensor, share: float) -> Tensor:
        low = self.training.precision == "bfloat16"
        with self.recompute():
            with torch.autocast(inputs.device.type, torch.bfloat16, enabled=low):
                loss = self.loss(inputs, targets)
            loss = loss if share == 1 else loss * share
            loss.backward()
        return loss.detach()

    def _update(self, factor: float) -> None:
        for group, peak in zip(self._groups(), self.peaks, strict=True):
            group["lr"] = peak * factor
        for one in self.optimizers:
            one.step()
        self.steps += 1
        if self.kept:
            self.kept.quantize(self.steps)

    def _groups(self) -> list[dict[str, Any]]:
        """Asked for anew each time: loading a state replaces them."""
        return [group for one in self.optimizers for group in one.param_groups]

    def _kept(self) -> Kept | None:
        keys = self.training.states()
        if not keys:
            return None
        first, names = self.optimizers[0], {parameter: name for name, parameter in self.model.named_parameters()}
        owned = {parameter: names[parameter] for group in first.param_groups for parameter in group["params"]}
        return Kept(first, keys, owned, self.inside.engagement)


def pair(batch: Batch) -> tuple[Tensor, Tensor]:
    """What the model reads and what it should say."""
    return (batch[:, :-1], batch[:, 1:]) if isinstance(batch, Tensor) else batch


def loss_of(model: nn.Module, inputs: Tensor, targets: Tensor) -> Tensor:
    return next_token_loss(model(inputs), targets)


def next_token_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Mean cross-entropy in nats of logits [..., V] over the targets [...] that are not NO_TARGET."""
    return F.cross_entropy(logits.flatten(0, -2), targets.flatten(), ignore_index=NO_TARGET)


class Recompute:
    """Blocks that, while this is open, keep only what enters them and run again in the backward pass."""

    def __init__(self, model: Transformer) -> None:
        # On the modules and not around them: places, weights and hooks keep their names. Made once: torch.compile
        # would compile again for each new function.
        self._forwards: list[tuple[Any, Callable[..., Any]]] = [
            (block, partial(checkpoint, block.forward, use_reentrant=False, preserve_rng_state=False))
            for block in model.blocks
        ]

    @contextmanager
    def __call__(self) -> Generator[None, None, None]:
        for block, forward in self._forwards:
            block.forward = forward
        try:
            yield
        finally:
            for block, _ in self._forwards:
                del block.forward


def _shares(targets: Tensor, parts: int) -> list[float]:
    """How much of the whole batch's loss each part's mean is: the share of its targets."""
    if parts == 1:
        return [1.0]
    counts = [int((part != NO_TARGET).sum()) for part in targets.chunk(parts)]
    return [count / max(1, sum(counts)) for count in counts]
