"""The outlier map of a place: hot channels, massive activations and sink tokens, each apart, added up over batches.

Massive activations and sinks sit on a few tokens and would otherwise pass for hot channels: the channels are those of
the ordinary tokens. Massive: |x| > 100 and at least 1000 times the median of its window (arXiv 2402.17762). Sink: a
token whose norm is more than 10 times the median norm of its window; position 0 is never an ordinary token.
"""

from dataclasses import dataclass, replace
from typing import TypeVar

import torch
from torch import Tensor
from torch.linalg import vector_norm
from torch.nn.functional import pad

MASSIVE, MASSIVE_TO_MEDIAN, SINK_TO_MEDIAN = 100.0, 1000.0, 10.0
KEPT = 16  # the largest tokens and massive activations that are kept one by one; all are counted


@dataclass(frozen=True, slots=True)
class Channel:
    """A channel over the ordinary tokens: its share of their energy, and its largest |x| in units of their rms."""

    index: int
    energy: float
    peak: float


@dataclass(frozen=True, slots=True)
class Token:
    """A token by window and position; its norm in units of the median norm of the window."""

    window: int
    position: int
    norm: float

    @property
    def size(self) -> float:
        return self.norm


@dataclass(frozen=True, slots=True)
class Massive:
    """One massive activation."""

    window: int
    position: int
    channel: int
    value: float

    @property
    def size(self) -> float:
        return abs(self.value)


Kept = TypeVar("Kept", Token, Massive)


@dataclass(frozen=True, slots=True, eq=False)
class Outliers:
    """What was seen at one place. Maps of batches add up: `a + b` is the map of a, then b.

    C channels; positions as long as the longest window. Sums are float64, on the CPU.
    """

    windows: int
    tokens: int
    ordinary: int
    energy_C: Tensor
    largest_C: Tensor
    energy_apart: float
    first_norm: float
    sinks_T: Tensor
    massive_T: Tensor
    massive_C: Tensor
    largest_tokens: tuple[Token, ...]
    largest_massive: tuple[Massive, ...]

    def __add__(self, other: "Outliers") -> "Outliers":
        if self.energy_C.shape != other.energy_C.shape:
            raise ValueError(f"{len(self.energy_C)} and {len(other.energy_C)} channels are not of one place")
        return Outliers(
            windows=self.windows + other.windows,
            tokens=self.tokens + other.tokens,
            ordinary=self.ordinary + other.ordinary,
            energy_C=self.energy_C + other.energy_C,
            largest_C=torch.maximum(self.largest_C, other.largest_C),
            energy_apart=self.energy_apart + other.energy_apart,
            first_norm=self.first_norm + other.first_norm,
            sinks_T=_by_position(self.sinks_T, other.sinks_T),
            massive_T=_by_position(self.massive_T, other.massive_T),
            massive_C=self.massive_C + other.massive_C,
            largest_tokens=_largest(self.largest_tokens, other.largest_tokens, self.windows),
            largest_massive=_largest(self.largest_massive, other.largest_massive, self.windows),
        )

    def channels(self, most: int = 8) -> tuple[Channel, ...]:
        """The channels with the most energy, over the ordinary tokens; the largest first."""
        total = self.energy_C.sum().item()
        rms = (total / max(1, self.ordinary * len(self.energy_C))) ** 0.5
        if not total:
            return ()
        top = self.energy_C.topk(min(most, len(self.energy_C)))
        return tuple(
            Channel(int(i), energy / total, self.largest_C[i].item() / rms)
            for energy, i in zip(top.values.tolist(), top.indices.tolist(), strict=True)
        )

    def positions(self) -> dict[int, tuple[int, int]]:
        """Position -> how many windows have a sink there, and how many massive activations lie there."""
        seen = (self.sinks_T + self.massive_T).nonzero().flatten().tolist()
        return {t: (int(self.sinks_T[t]), int(self.massive_T[t])) for t in seen}

    def values(self) -> dict[str, float]:
        """The map in numbers: see the metrics of these names."""
        hottest = self.channels(1)
        total = self.energy_C.sum().item() + self.energy_apart
        return {
            "outliers/hot_channel_energy": hottest[0].energy if hottest else 0.0,
            "outliers/hot_channel_peak": hottest[0].peak if hottest else 0.0,
            "outliers/massive": self.massive_C.sum().item(),
            "outliers/massive_channels": float(self.massive_C.count_nonzero()),
            "outliers/massive_largest": self.largest_massive[0].size if self.largest_massive else 0.0,
            "outliers/sinks": self.sinks_T.sum().item() / max(1, self.windows),
            "outliers/sinks_elsewhere": self.sinks_T[1:].sum().item() / max(1, self.windows),
            "outliers/first_token_norm": self.first_norm / max(1, self.windows),
            "outliers/energy_apart": self.energy_apart / total if total else 0.0,
        }


@torch.no_grad()
def outliers(x: Tensor) -> Outliers:
    """The map of one batch [B, T, C], or of one window [T, C]; in memory, about three float32 copies of it.

    Raises ValueError for a tensor without tokens, and for one with values that are not finite.
    """
    if x.ndim < 2 or not x.numel():
        raise ValueError(f"an outlier map needs tokens [T, C] or windows of them [B, T, C], found {tuple(x.shape)}")
    x_BTC = x.detach().reshape(-1, *x.shape[-2:]).float()
    size_BTC = x_BTC.abs()
    if not size_BTC.amax().isfinite():
        raise ValueError("an outlier map needs finite values, found infinite or undefined ones")
    return _map(x_BTC, size_BTC)


def _map(x_BTC: Tensor, size_BTC: Tensor) -> Outliers:
    windows, length, channels = x_BTC.shape
    norm_BT = vector_norm(size_BTC, dim=-1, dtype=torch.float64)
    median_B1 = norm_BT.median(-1, keepdim=True).values
    ratio_BT = torch.where(median_B1 > 0, norm_BT / median_B1, 0)  # beside zeros nothing is so many times as large
    sink_BT = ratio_BT > SINK_TO_MEDIAN
    apart_BT = sink_BT.clone()
    apart_BT[:, 0] |= length > 1
    median_B11 = size_BTC.flatten(1).median(-1).values[:, None, None]
    massive_BTC = (size_BTC > MASSIVE) & (size_BTC >= MASSIVE_TO_MEDIAN * median_B11)
    ordinary_NC = size_BTC[~apart_BT]
    return Outliers(
        windows=windows,
        tokens=windows * length,
        ordinary=len(ordinary_NC),
        energy_C=vector_norm(ordinary_NC, dim=0, dtype=torch.float64).square().cpu(),
        largest_C=torch.cat([ordinary_NC, size_BTC.new_zeros(1, channels)]).amax(0).double().cpu(),
        energy_apart=norm_BT[apart_BT].square().sum().item(),
        first_norm=ratio_BT[:, 0].sum().item(),
        sinks_T=sink_BT.sum(0).cpu(),
        massive_T=massive_BTC.sum((0, 2)).cpu(),
        massive_C=massive_BTC.sum((0, 1)).cpu(),
        largest_tokens=_tokens(ratio_BT),
        largest_massive=_massive(x_BTC, massive_BTC),
    )


def _tokens(ratio_BT: Tensor) -> tuple[Token, ...]:
    top = ratio_BT.flatten().topk(min(KEPT, ratio_BT.numel()))
    length = ratio_BT.shape[-1]
    return tuple(Token(i // length, i % length, norm) for norm, i in zip(*map(Tensor.tolist, top), strict=True))


def _massive(x_BTC: Tensor, massive_BTC: Tensor) -> tuple[Massive, ...]:
    where = massive_BTC.nonzero()
    found = x_BTC[massive_BTC]
    top = found.abs().topk(min(KEPT, len(found))).indices
    places, values = where[top].tolist(), found[top].tolist()
    return tuple(Massive(b, t, c, value) for (b, t, c), value in zip(places, values, strict=True))


def _by_position(a_T: Tensor, b_T: Tensor) -> Tensor:
    length = max(len(a_T), len(b_T))
    return pad(a_T, (0, length - len(a_T))) + pad(b_T, (0, length - len(b_T)))


def _largest(a: tuple[Kept, ...], b: tuple[Kept, ...], before: int) -> tuple[Kept, ...]:
    """The largest of both, where the windows of `b` come behind `before` others."""
    later = tuple(replace(one, window=one.window + before) for one in b)
    return tuple(sorted(a + later, key=lambda one: -one.size)[:KEPT])
