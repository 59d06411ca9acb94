"""Small layers: named sites, gains of branches, the MLP.

Shape suffixes: B windows, T tokens, D width, F hidden width of the MLP.
"""

from collections.abc import Callable, Iterable, Mapping
from math import sqrt

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from qbench.models.mlps import MLPS
from qbench.models.norms import NORMS
from qbench.models.spec import Gain as GainKind
from qbench.models.spec import ModelSpec
from qbench.models.wiring import Joint


class Site(nn.Module):
    """A named place in the model: gives back what it is given.

    A forward hook on it reads the tensor that flows there, and replaces it by returning another.
    """

    def forward(self, x: Tensor) -> Tensor:
        return x


def sites(names: Iterable[str], joint: Joint | None = None) -> nn.ModuleDict:
    """One `Site` for each name; a module keeps them as `self.site`, which puts `.site.` into their qualified names.

    A sub-block also has `out`, an identity where the stream's own site follows at once, and where the norm comes after
    the sum the place that it reads.
    """
    found = nn.ModuleDict({name: Site() for name in names})
    if joint is not None:
        found["out"] = nn.Identity() if joint.copies else Site()
        if joint.after:
            found["sum"] = Site()
    return found


class Gain(nn.Module):
    """One factor on a whole branch, learned (SkipInit: De & Smith, arXiv 2002.10444; ReZero: arXiv 2003.04887)."""

    def __init__(self, start: float) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.tensor([start]))

    def forward(self, x_BTD: Tensor) -> Tensor:
        return x_BTD * self.gain


class Fixed(nn.Module):
    """One factor on a whole branch, which stays."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, x_BTD: Tensor) -> Tensor:
        return x_BTD * self.factor


GAINS: Mapping[GainKind, Callable[[float], nn.Module]] = {
    "none": lambda start: nn.Identity(),
    "fixed": Fixed,
    "learned": Gain,
}


def branch_gain(spec: ModelSpec, joint: Joint) -> nn.Module:
    """What scales a sub-block's output before it is added to a stream; nothing where it is not."""
    start = spec.gain_start / (sqrt(spec.layers) if spec.gain_by_depth else 1.0)
    return nn.Identity() if joint.copies else GAINS[spec.gain](start)


class MLP(nn.Module):
    """Normalize, widen, act, narrow; the sub-block's output, before it joins the stream."""

    def __init__(self, spec: ModelSpec, joint: Joint) -> None:
        super().__init__()
        row = MLPS[spec.mlp]
        self.act = row.act
        self.before = not joint.after
        self.norm = NORMS[spec.norm](spec.width)
        self.pre = nn.Parameter(torch.empty(spec.hidden, spec.width))
        self.up = nn.Parameter(torch.empty(spec.hidden, spec.width)) if row.gated else None
        self.out = nn.Parameter(torch.empty(spec.width, spec.hidden))
        self.gain = branch_gain(spec, joint)
        self.site = sites(("in", "pre", *(("up",) if row.gated else ()), "hidden"), joint)

    def forward(self, x_BTD: Tensor) -> Tensor:
        x_BTD = self.site["in"](self.norm(x_BTD) if self.before else x_BTD)
        hidden_BTF = self.act(self.site["pre"](F.linear(x_BTD, self.pre)))
        if self.up is not None:
            hidden_BTF = hidden_BTF * self.site["up"](F.linear(x_BTD, self.up))
        return self.site["out"](self.gain(F.linear(self.site["hidden"](hidden_BTF), self.out)))
