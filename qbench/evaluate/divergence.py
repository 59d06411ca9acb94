"""How far a model's predictions are from its reference's: Kullback-Leibler divergence over the whole vocabulary."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import log_softmax

from qbench.data.passages import Windows
from qbench.evaluate.costs import COLUMNS, Floats, costs, per_window, standard_errors
from qbench.evaluate.likelihood import BATCH, POSITIONS, Likelihood
from qbench.evaluate.pieces import Step, divided, pieces
from qbench.evaluate.reference import Reference

DIRECTION = "KL(unquantized || quantized)"
PRECISION = "log-softmax in float32, sums in float64"
# Costs that are also given for the slice where they are worst; tails need more predictions than a slice may have.
BY_SLICE = (
    *("loss", "loss_increase", "bits_per_byte", "error_rate", "perplexity", "perplexity_ratio"),
    *("kld", "kld/p99", "kld/reverse", "delta_p/rms", "top1_changed", "flips"),
)


@dataclass(frozen=True, slots=True, eq=False)
class Divergence:
    """What became of each prediction: `each` has float64 [N, T] for every name of `costs.COLUMNS`."""

    windows: Windows
    each: Mapping[str, Floats]

    @property
    def scored(self) -> Likelihood:
        """The changed model's own losses and errors."""
        return self._likelihood("loss", "wrong")

    @property
    def unquantized(self) -> Likelihood:
        return self._likelihood("reference_loss", "reference_wrong")

    def per_window(self) -> dict[str, Floats]:
        """Means over each window's scored predictions, [N]: what intervals and bootstraps are made of."""
        return per_window(self.each, self._counted)

    def values(self) -> dict[str, float]:
        """All costs, in the order of llama.cpp's report; those of `BY_SLICE` also for the worst of several slices."""
        found = costs(self._where(self._counted), self.windows.bytes_per_token)
        slices = self.by_slice()
        if len(slices) < 2:
            return found
        return found | {f"{name}/worst_slice": max(c[name] for c in slices.values()) for name in BY_SLICE}

    def standard_errors(self) -> dict[str, float]:
        """Of `values`, over windows; empty for a single window."""
        return standard_errors(self.each, self._counted)

    def by_slice(self) -> dict[str, dict[str, float]]:
        """The costs of each slice, in the order of the windows."""
        labels = np.array(self.windows.slices, dtype=object)
        found: dict[str, dict[str, float]] = {}
        for label in dict.fromkeys(self.windows.slices):
            rows = labels == label
            per_token = self.windows.bytes[rows].sum() / self.windows.counts[rows].sum()
            found[label] = costs(self._where(self._counted & rows[:, None]), float(per_token))
        return found

    def by_position(self) -> dict[str, dict[str, float]]:
        """The costs of four ranges of predictions, "0-63" for the first 64 of a window; only where any counts."""
        found: dict[str, dict[str, float]] = {}
        for columns in np.array_split(np.arange(self.windows.context), POSITIONS):
            within = np.isin(np.arange(self.windows.context), columns)
            if (self._counted & within).any():
                found[f"{columns[0]}-{columns[-1]}"] = costs(self._where(self._counted & within))
        return found

    def setting(self) -> str:
        """What the numbers are of, in one line."""
        counts = self.windows.counts
        return (
            f"{DIRECTION}, {PRECISION}; {counts.sum()} predictions in {len(counts)} windows of context "
            f"{self.windows.context}; ± is one standard error over windows"
        )

    @property
    def _counted(self) -> NDArray[np.bool_]:
        return self.windows.scored.numpy()

    def _where(self, chosen: NDArray[np.bool_]) -> dict[str, Floats]:
        return {name: values[chosen] for name, values in self.each.items()}

    def _likelihood(self, losses: str, errors: str) -> Likelihood:
        means = self.per_window()
        each = np.where(self._counted, self.each[losses], np.nan)
        return Likelihood(means[losses], means[errors], self.windows.counts, each)


@torch.no_grad()
def divergence(model: nn.Module, windows: Windows, reference: Reference, batch: int = BATCH) -> Divergence:
    """Compare every prediction of `model` with the reference's, one forward pass of `model` in all.

    Both sides' logits exist for one piece of at most 2^24 at a time.

    Raises:
        BadReference: other windows, or another vocabulary.
        ValueError: logits that are not finite.
    """
    reference.expect(windows)
    device = next(model.parameters()).device
    hidden, head = divided(model)
    heads = (head, reference.on(device))
    found: list[Tensor] = []
    for start in range(0, len(windows), batch):
        tokens = windows.tokens[start : start + batch].to(device)
        states = (hidden(tokens[:, :-1]), reference.states[start : start + batch].to(device))
        found.append(_compared(states, heads, tokens[:, 1:], reference).cpu())
    each = torch.cat(found, dim=1).numpy()
    if bad := int((~np.isfinite(each)).any(0).sum()):
        raise ValueError(f"{bad} of {each[0].size} predictions have logits that are not finite")
    return Divergence(windows, dict(zip(COLUMNS, each, strict=True)))


def _compared(states: tuple[Tensor, Tensor], heads: tuple[Step, Step], target: Tensor, reference: Reference) -> Tensor:
    """The columns of a batch, float64 [8, B, T], from states [B, T, D] of the model and of its reference."""
    ours, theirs = (part.flatten(0, 1) for part in states)
    goals = target.flatten()
    found: list[Tensor] = []
    for rows in pieces(len(goals), reference.vocabulary, goals.device.type):
        logits, base = heads[0](ours[rows]), heads[1](theirs[rows])
        if logits.shape != base.shape:
            reference.expect_vocabulary(logits.shape[-1])
        found.append(_columns(logits, base, goals[rows]))
    return torch.cat(found, dim=1).view(-1, *target.shape)


def _columns(logits: Tensor, base: Tensor, target: Tensor) -> Tensor:
    """`costs.COLUMNS` of rows of logits, [R, V] each, as float64 [8, R].

    The terms summed are p log(p/q) - p + q, none of them negative, and not p log(p/q): p and q add up to 1, and this
    way an error in normalizing either cancels to first order. Near p = q the plain sum is all rounding.
    """
    top, base_top = logits.argmax(-1), base.argmax(-1)
    log_q, log_p = (log_softmax(x.to(torch.promote_types(x.dtype, torch.float32)), -1) for x in (logits, base))
    loss, base_loss = (-x.gather(-1, target[:, None]).squeeze(-1).double() for x in (log_q, log_p))
    q, p = log_q.exp(), log_p.exp()
    # In place: a piece is a third of the memory, and stays in the cache.
    ratio, rest = log_p.sub_(log_q), torch.sub(q, p, out=log_q)
    forward = torch.addcmul(rest, p, ratio, out=p).sum(-1, dtype=torch.float64)
    backward = -torch.addcmul(rest, q, ratio, out=q).sum(-1, dtype=torch.float64)
    delta = (-loss).exp() - (-base_loss).exp()
    found = (loss, base_loss, forward, backward, delta, top != target, base_top != target, top != base_top)
    return torch.stack([column.double() for column in found])
