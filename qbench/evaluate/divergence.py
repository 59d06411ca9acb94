"""How far a model's predictions are from its reference's: Kullback-Leibler divergence over the whole vocabulary."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import log_softmax

from qbench.data.passages import Windows
from qbench.evaluate.costs import COLUMNS, Floats, costs, per_window, standard_errors
from qbench.evaluate.likelihood import BATCH, POSITIONS, Likelihood, largest
from qbench.evaluate.pieces import MOST, Step, divided, pieces, turns
from qbench.evaluate.reference import Reference
from qbench.models.hub import HubModel
from qbench.models.transformer import Transformer

Treatment = Callable[[], AbstractContextManager[object]]
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
    return divergences(model, [nullcontext], windows, reference, batch)[0]


@torch.no_grad()
def divergences(
    model: nn.Module, treatments: Sequence[Treatment], windows: Windows, reference: Reference, batch: int = BATCH
) -> list[Divergence]:
    """`divergence` of `model` under each of several treatments, which all leave its head alone.

    The reference's logits are made once for all treatments. Each is entered once for every run of windows, whose
    states are kept: a batch of windows, or as many as have 2^24 values in all.
    """
    reference.expect(windows)
    device = next(model.parameters()).device
    heads = (divided(model)[1], reference.on(device))
    found: list[list[Tensor]] = [[] for _ in treatments]
    for batches in _runs(windows, reference, len(treatments), batch):
        tokens = [windows.tokens[rows].to(device) for rows in batches]
        ours = [_states(model, treatment, tokens) for treatment in treatments]
        for rows, part, states in zip(batches, tokens, zip(*ours, strict=True), strict=True):
            theirs = reference.states[rows].to(device)
            for columns, each in zip(found, _compared((*states, theirs), heads, part[:, 1:], reference), strict=True):
                columns.append(each)
    return [_finite(windows, torch.cat(columns, dim=1)) for columns in found]


def head_parts(model: nn.Module) -> tuple[object, ...]:
    """Modules and parameters that make logits of a model's states; none where it is not known to be two steps."""
    if isinstance(model, Transformer):
        return (model.logits, model.site["logits"])
    if not isinstance(model, HubModel) or model.undivided:
        return ()
    head = model.hf.get_output_embeddings()
    return () if head is None else (*head.modules(), *head.parameters())


def _runs(windows: Windows, reference: Reference, treatments: int, batch: int) -> Iterator[list[slice]]:
    """Batches that a treatment is entered for once."""
    batches = [slice(start, start + batch) for start in range(0, len(windows), batch)]
    kept = treatments * batch * reference.states[:1].numel()
    step = max(1, MOST // kept) if treatments > 1 else 1
    return (batches[start : start + step] for start in range(0, len(batches), step))


def _states(model: nn.Module, treatment: Treatment, tokens: Sequence[Tensor]) -> list[Tensor]:
    with treatment():
        return [divided(model)[0](part[:, :-1]) for part in tokens]


def _finite(windows: Windows, columns: Tensor) -> Divergence:
    each = columns.numpy()
    if bad := int((~np.isfinite(each)).any(0).sum()):
        raise ValueError(f"{bad} of {each[0].size} predictions have logits that are not finite")
    return Divergence(windows, dict(zip(COLUMNS, each, strict=True)))


def _compared(states: Sequence[Tensor], heads: tuple[Step, Step], target: Tensor, reference: Reference) -> list[Tensor]:
    """The columns of a batch under each treatment, float64 [8, B, T] on the CPU.

    From states [B, T, D] of the treatments, and of the reference, which come last.
    """
    *ours, theirs = (part.flatten(0, 1) for part in states)
    goals = target.flatten()
    found: list[list[Tensor]] = [[] for _ in ours]
    for rows in pieces(len(goals), reference.vocabulary, goals.device.type):
        base = _Said.of(heads[1](theirs[rows]), goals[rows])
        for columns, part in zip(found, ours, strict=True):
            logits = heads[0](part[rows])
            if logits.shape != base.log_p.shape:
                reference.expect_vocabulary(logits.shape[-1])
            columns.extend(_in_turns(logits, goals[rows], base))
    return [torch.cat(columns, dim=1).view(-1, *target.shape).cpu() for columns in found]


def _in_turns(logits: Tensor, target: Tensor, base: "_Said") -> Iterator[Tensor]:
    """The columns of a piece [R, V], of a few rows at a time: seven passes over them, in the cache."""
    for rows in turns(len(logits), logits.shape[-1], logits.device.type):
        yield _columns(_Said.of(logits[rows], target[rows]), base.at(rows))


@dataclass(frozen=True, slots=True, eq=False)
class _Said:
    """What a model says at R predictions: log-probabilities [R, V], probabilities, losses [R], its verdicts [R]."""

    log_p: Tensor
    p: Tensor
    loss: Tensor
    top: Tensor
    wrong: Tensor

    @classmethod
    def of(cls, logits: Tensor, target: Tensor) -> "_Said":
        top = largest(logits)
        log_p = log_softmax(logits.to(torch.promote_types(logits.dtype, torch.float32)), -1)
        loss = -log_p.gather(-1, target[:, None]).squeeze(-1).double()
        return cls(log_p, log_p.exp(), loss, top, top != target)

    def at(self, rows: slice) -> "_Said":
        return _Said(self.log_p[rows], self.p[rows], self.loss[rows], self.top[rows], self.wrong[rows])


def _columns(ours: _Said, base: _Said) -> Tensor:
    """`costs.COLUMNS` of R predictions, float64 [8, R]. Writes over what is in `ours`.

    The terms summed are p log(p/q) - p + q, none of them negative, and not p log(p/q): p and q add up to 1, and this
    way an error in normalizing either cancels to first order. Near p = q the plain sum is all rounding.
    """
    p, q = base.p, ours.p
    # In place: a piece is a third of the memory, and stays in the cache.
    ratio, rest = base.log_p - ours.log_p, torch.sub(q, p, out=ours.log_p)
    backward = -torch.addcmul(rest, q, ratio, out=q).sum(-1, dtype=torch.float64)
    forward = torch.addcmul(rest, p, ratio, out=ratio).sum(-1, dtype=torch.float64)
    delta = (-ours.loss).exp() - (-base.loss).exp()
    found = (ours.loss, base.loss, forward, backward, delta, ours.wrong, base.wrong, ours.top != base.top)
    return torch.stack([column.double() for column in found])
