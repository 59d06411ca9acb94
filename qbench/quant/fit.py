"""Levels fitted to one tensor, which are stored with it: k-means and quantiles."""

from collections.abc import Callable, Mapping
from types import MappingProxyType

import numpy as np
import torch
from torch import Tensor

from qbench.quant.grid import Grid

SWEEPS = 200  # of Lloyd's algorithm at most; from the first guess below it is within 0.01 dB long before


def fitted_grid(family: str, bits: int, values: Tensor) -> Grid:
    """At most 2^bits levels for these values (flat, float); fewer where the values have fewer.

    Sorts them: not for the fast path.
    """
    ordered = values.flatten().sort().values
    levels = FITS[family](ordered, 2**bits).float()  # as stored
    return Grid(bits, tuple(torch.unique(levels).tolist()))


def kmeans(ordered: Tensor, count: int) -> Tensor:
    """Levels that are the means of their own cells (Lloyd 1982), from levels as dense as the density's cube root."""
    sums = torch.cat([ordered.new_zeros(1, dtype=torch.float64), ordered.double().cumsum(0)])
    levels = _companded(ordered, count)
    for _ in range(SWEEPS):
        cuts = torch.searchsorted(ordered.double(), (levels[1:] + levels[:-1]) / 2, right=True)
        edges = torch.cat([cuts.new_zeros(1), cuts, cuts.new_full((1,), ordered.numel())])
        mass = edges.diff()
        means = torch.where(mass > 0, sums[edges].diff() / mass, levels)
        if torch.equal(means, levels):
            break
        levels = means
    return levels


def quantiles(ordered: Tensor, count: int) -> Tensor:
    """The middles of `count` parts of equal mass, interpolated linearly between values."""
    return _at(ordered.double(), (torch.arange(count, device=ordered.device) + 0.5) / count)


FITS: Mapping[str, Callable[[Tensor, int], Tensor]] = MappingProxyType({"kmeans": kmeans, "quantile": quantiles})


def _companded(ordered: Tensor, count: int) -> Tensor:
    """Where density is 1/gap, its cube root integrates to the sum of gap^(2/3) (Panter and Dite 1951)."""
    knots = _at(ordered.double(), torch.linspace(0, 1, 1025, device=ordered.device, dtype=torch.float64)).cpu().numpy()
    grown = np.concatenate([[0.0], np.cumsum(np.cbrt(np.diff(knots) ** 2))])
    wanted = (np.arange(count) + 0.5) / count * grown[-1]
    return torch.from_numpy(np.interp(wanted, grown, knots)).to(ordered.device)


def _at(ordered: Tensor, share: Tensor) -> Tensor:
    position = share.double() * (ordered.numel() - 1)
    low = position.floor().long()
    high = (low + 1).clamp_(max=ordered.numel() - 1)
    return torch.lerp(ordered[low], ordered[high], position - low)
