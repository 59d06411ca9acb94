"""How an error grows through a layer: what it inherits, what the layer adds, and the gain between.

For a layer f, its quantized copy g, and the inputs h and h + d of the clean and the quantized network, the error
behind the layer is g(h + d) - f(h) = a + b with

    a = (g(h + d) - g(h) + f(h + d) - f(h)) / 2    inherited: the input's error, passed on
    b = (g(h + d) - f(h + d) + g(h) - f(h)) / 2    introduced: the layer's own error

and R = A + B + C relative to |f(h)|^2, with A = |a|^2, B = |b|^2, C = 2 <a, b>. The gain is A over the R in front.
Source: Beyond Outliers, arXiv 2509.23500, known at second hand; the exact form of the alignment ratio is ours.
"""

from dataclasses import dataclass, field
from math import isfinite, nan

import torch
from torch import Tensor

from qbench.metrics.shape import Mean


@dataclass(frozen=True, slots=True)
class FlowSums:
    """Means over tokens, of one layer: the relative power of the error in front of it, and A, B and C behind it."""

    before: Mean = field(default_factory=Mean)
    inherited: Mean = field(default_factory=Mean)
    introduced: Mean = field(default_factory=Mean)
    cross: Mean = field(default_factory=Mean)

    def __add__(self, other: "FlowSums") -> "FlowSums":
        return FlowSums(
            self.before + other.before,
            self.inherited + other.inherited,
            self.introduced + other.introduced,
            self.cross + other.cross,
        )

    @property
    def error(self) -> float:
        """R: the relative power of the error behind the layer."""
        return self.inherited.value + self.introduced.value + self.cross.value

    @property
    def gain(self) -> float:
        """G = A / R in front; NaN where there is no error in front."""
        return self.inherited.value / self.before.value if self.before.total else nan

    def values(self, spectral: float | None = None) -> dict[str, float]:
        """Metrics by name, undefined ones left out; with `spectral`, G1 of a linear layer, also G2 = G / G1."""
        found = {
            "flow/error": self.error,
            "flow/inherited": self.inherited.value,
            "flow/introduced": self.introduced.value,
            "flow/cross": self.cross.value,
            "flow/gain": self.gain,
        }
        if spectral is not None:
            found |= {"flow/gain/spectral": spectral, "flow/gain/alignment": self.gain / spectral if spectral else nan}
        return {name: value for name, value in found.items() if isfinite(value)}


@dataclass(frozen=True, slots=True)
class Crossed:
    """What a layer and its quantized copy make of the clean network's input and of the quantized one's."""

    clean: Tensor  # f(h)
    moved: Tensor  # f(h + d)
    changed: Tensor  # g(h)
    both: Tensor  # g(h + d)


def flow(h: Tensor, moved: Tensor, outputs: Crossed) -> FlowSums:
    """One batch of a layer: its clean input `h` and the quantized network's, both [..., T, C], and four outputs.

    Tokens that are zero throughout, in front or behind, are left out.
    """
    clean, moved_out, changed, both = (_rows(x) for x in (outputs.clean, outputs.moved, outputs.changed, outputs.both))
    a = (both - changed + moved_out - clean) / 2
    b = (both - moved_out + changed - clean) / 2
    front, behind = _rows(h), clean.square().sum(-1)
    return FlowSums(
        _relative((_rows(moved) - front).square().sum(-1), front.square().sum(-1)),
        _relative(a.square().sum(-1), behind),
        _relative(b.square().sum(-1), behind),
        _relative(2 * (a * b).sum(-1), behind),
    )


def linear_flow(h: Tensor, moved: Tensor, weight: Tensor, changed: Tensor) -> FlowSums:
    """The same of y = h W^T with the matrix `weight` [out, in] and its quantized copy, which needs two products only.

    a is d (W + W')^T / 2 and b is (h + d / 2) (W' - W)^T.
    """
    front, behind = _rows(h), _rows(moved)
    w, v = weight.double(), changed.double()
    clean, error = front @ w.T, behind - front
    power = clean.square().sum(-1)
    a, b = error @ ((w + v) / 2).T, (front + error / 2) @ (v - w).T
    return FlowSums(
        _relative(error.square().sum(-1), front.square().sum(-1)),
        _relative(a.square().sum(-1), power),
        _relative(b.square().sum(-1), power),
        _relative(2 * (a * b).sum(-1), power),
    )


def spectral_ratio(weight: Tensor, changed: Tensor) -> float:
    """G1 = (|W + W'| / 2 |W|)^2 in spectral norms; NaN for a matrix of zeros.

    With G2, how much better aligned with the matrix the error is than the signal, G = G1 G2: G2 is the mean of
    [(|M d| / |M| |d|) / (|W h| / |W| |h|)]^2, M = (W + W') / 2, over tokens weighted by the error in front.

    >>> spectral_ratio(torch.eye(2), torch.zeros(2, 2))
    0.25
    """
    w, v = weight.double(), changed.double()
    norm = torch.linalg.matrix_norm(w, 2)
    return float((torch.linalg.matrix_norm((w + v) / 2, 2) / norm).square()) if norm else nan


def _rows(x: Tensor) -> Tensor:
    return x.detach().reshape(-1, x.shape[-1]).double()


def _relative(error: Tensor, power: Tensor) -> Mean:
    live = power > 0
    return Mean(float((error[live] / power[live]).sum()), int(live.sum()))
