"""Random layers and random rows, and what closed forms say about the kurtosis of what leaves them.

Excess kurtosis has three sources here, which mixing treats differently: heavy-tailed values, channels of unequal
variance, and a scale that all channels of a token share. Haar-random mixing over d channels keeps of them 3 / (d + 2),
2 / (d + 2) and 1: once, however many rotations follow, because a product of them is one. Adding an independent branch
of r times the stream's variance keeps 1 / (1 + r)^2 of each. Both are exact for independent parts. Where a branch is
made of the stream itself, terms of 1 / d are kept and those of 1 / d^2 left out, because they add up over the layers.

Letters: N rows (tokens), D channels.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from math import factorial, pi, sqrt

import numpy as np
import torch
from numpy.random import Generator
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import gelu

from qbench.data.synthetic import DISTRIBUTIONS, hot_channel_kurtosis

LOUD_SHARE, LOUD = 0.25, 2.5  # of the tokens have so many times the mean power, in all channels
QUIET = (1 - LOUD_SHARE * LOUD) / (1 - LOUD_SHARE)
WIDER = 4  # channels inside the MLP per channel
GELU_MEAN = 1 / (2 * sqrt(pi))  # of gelu(z), z ~ N(0, 1)


def _times(kurtosis: float, factor: float) -> float:
    return (kurtosis + 3) * (1 + factor / 3) - 3


def _without(kurtosis: float, factor: float) -> float:
    return (kurtosis + 3) / (1 + factor / 3) - 3


@dataclass(frozen=True, slots=True)
class Sources:
    """Excess kurtosis of all values pooled, by where it comes from.

    `squares` is the mean square of the eigenvalues of the channels' covariance over their squared mean: how unequal
    the channels are from where that shows most. `kept` is the share of the variance that no rotation went over.
    """

    values: float = 0.0
    channels: float = 0.0
    tokens: float = 0.0
    squares: float = 1.0
    kept: float = 1.0

    @property
    def tensor(self) -> float:
        """Independent factors multiply the fourth moment, each by one and a third of its kurtosis.

        >>> Sources(tokens=3.0, channels=1.5).tensor
        6.0
        """
        return _times(self.channel, self.channels)

    @property
    def channel(self) -> float:
        """Of one channel over its tokens: that channels differ does not show."""
        return _times(self.values, self.tokens)

    def rotated(self, width: int) -> "Sources":
        """In expectation over Haar-random rotations; another one over it changes nothing more."""
        channels = self.channels if not self.kept else 6 * (self.squares - 1) / (width + 2)
        return replace(self.mixed(width, 0.0), channels=channels)

    def mixed(self, width: int, kept: float) -> "Sources":
        """The same with less `kept`: the rest went over random directions."""
        return replace(self, values=self.values * _left(kept, width) / _left(self.kept, width), kept=kept)

    def plus(self, branch: "Sources", ratio: float) -> "Sources":
        """With an independent branch of `ratio` times the variance.

        >>> Sources(values=3.0).plus(Sources(), 1.0).tensor
        0.75
        """
        keep, gain = 1 / (1 + ratio) ** 2, (ratio / (1 + ratio)) ** 2
        return Sources(
            keep * self.values + gain * branch.values,
            keep * self.channels + gain * branch.channels,
            keep * self.tokens + gain * branch.tokens,
            1 + keep * (self.squares - 1) + gain * (branch.squares - 1),
            max(self.kept, branch.kept),
        )

    def plus_own(self, branch: "Sources", ratio: float, width: int, linear: float = 1.0) -> "Sources":
        """With a branch of which a share `linear` is a random rotation Q of the stream itself.

        With C for the covariance of the stream, the diagonal of Q C varies, and so do the eigenvalues of the sum's.
        """
        cross = ratio * linear / (1 + ratio) ** 2 * self.squares
        found = self.plus(branch, ratio)
        return replace(found, channels=found.channels + 12 * cross / width, squares=found.squares + 2 * cross)


def _left(kept: float, width: int) -> float:
    """What a channel keeps of the kurtosis of values where a share `kept` of its variance is one of them, the rest a
    sum of all with normal weights, that one's included.
    """
    rest = 1 - kept
    return kept**2 + kept * rest * (6 - 16 * kept + 12 * kept**2) / width + 3 * rest**2 / (width + 2)


def _scaled(random: Generator, size: tuple[int, int]) -> NDArray[np.float64]:
    power = np.where(random.random((size[0], 1)) < LOUD_SHARE, LOUD, QUIET)
    return np.sqrt(power) * random.standard_normal(size)


@dataclass(frozen=True, slots=True)
class Input:
    """How rows are drawn, [N, D], and where their kurtosis comes from, for a width."""

    draw: Callable[[Generator, tuple[int, int]], NDArray[np.float64]]
    sources: Callable[[int], Sources]


INPUTS: Mapping[str, Input] = {
    "gaussian": Input(DISTRIBUTIONS["gaussian"].draw, lambda width: Sources()),
    "laplace": Input(DISTRIBUTIONS["laplace"].draw, lambda width: Sources(values=3.0)),
    "uniform": Input(DISTRIBUTIONS["uniform"].draw, lambda width: Sources(values=-1.2)),
    "hot-channel": Input(
        DISTRIBUTIONS["hot-channel"].draw,
        lambda width: Sources(channels=(k := hot_channel_kurtosis((1, width))), squares=1 + k / 3),
    ),
    "token-scale": Input(
        _scaled, lambda width: Sources(tokens=3 * (LOUD_SHARE * LOUD**2 + (1 - LOUD_SHARE) * QUIET**2 - 1))
    ),
}

Layer = Callable[[Tensor, torch.Generator], Tensor]  # what a branch makes of rows [N, D], with fresh noise if it wants
Joins = Callable[[Sources, int, float], Sources | None]


@dataclass(frozen=True, slots=True)
class Branch:
    """A random layer, made for a width, whose output has about the variance of its input.

    `sources` are the output's, given the input's and the width. Where stream and output depend on each other, `joins`
    gives the sources of stream + sqrt(ratio) * output for a width and a ratio, None where no closed form is known.
    """

    make: Callable[[int, torch.Generator], Layer]
    sources: Callable[[Sources, int], Sources]
    joins: Joins | None = None

    def added(self, stream: Sources, width: int, ratio: float) -> Sources | None:
        """The sources of the sum; None where no closed form is known."""
        if self.joins is not None:
            return self.joins(stream, width, ratio)
        return stream.plus(self.sources(stream, width), ratio)


def haar(rows: int, columns: int, generator: torch.Generator) -> Tensor:
    """A random matrix with orthonormal columns, or rows where there are more columns; float64."""
    tall = torch.randn(max(rows, columns), min(rows, columns), generator=generator, dtype=torch.float64)
    q, r = torch.linalg.qr(tall)
    q = q * r.diagonal().sign()  # without this the distribution is not uniform over rotations
    return q if rows >= columns else q.T


def _rotation(width: int, generator: torch.Generator) -> Layer:
    matrix = haar(width, width, generator)
    return lambda x, _: x @ matrix.T


def _mlp(width: int, generator: torch.Generator) -> Layer:
    wide, narrow = haar(WIDER * width, width, generator), haar(width, WIDER * width, generator)
    power = _gelu_moment(2)

    def layer(x: Tensor, _: torch.Generator) -> Tensor:
        size = x.square().mean(-1, keepdim=True).sqrt()
        inner = gelu(sqrt(WIDER) * (x / size) @ wide.T) - GELU_MEAN
        return inner @ narrow.T / sqrt(power) * x.square().mean().sqrt()

    return layer


def _noise(x: Tensor, generator: torch.Generator) -> Tensor:
    return torch.randn(x.shape, generator=generator, dtype=torch.float64)


def _laplace(x: Tensor, generator: torch.Generator) -> Tensor:
    # A Gaussian times the root of an exponential variable: variance 1 where the exponential's mean is 1.
    uniform = torch.rand(x.shape, generator=generator, dtype=torch.float64)
    return _noise(x, generator) * (-(1 - uniform).log()).sqrt()


def _shared_scale(width: int, generator: torch.Generator) -> Layer:
    return lambda x, noise: _noise(x, noise) * x.square().mean(-1, keepdim=True).sqrt()


def _cubic(x: Tensor, _: torch.Generator) -> Tensor:
    size = x.square().mean().sqrt()
    z = x / size
    return (z**3 - 3 * z) / sqrt(6) * size


def _cubic_sum(stream: Sources, _width: int, ratio: float) -> Sources | None:
    """Of z + c He3(z) / sqrt(6) for Gaussian z: c31 = sqrt(6), c22 = 6, c13 = 54 / sqrt(6), k4(f) = 90."""
    if stream != Sources():
        return None
    c = sqrt(ratio)
    return Sources(values=(4 * c * sqrt(6) + 36 * c**2 + 216 * c**3 / sqrt(6) + 90 * c**4) / (1 + ratio) ** 2)


def _shared_sum(stream: Sources, width: int, ratio: float) -> Sources:
    """The branch is as large as the token happens to be, so the power of tokens walks at random: it is multiplied by
    |e + sqrt(r / d) g|^2, e a direction and g standard normal.
    """
    walk = 3 * (4 * ratio + 2 * ratio**2) / (width * (1 + ratio) ** 2)
    return replace(stream.plus(Sources(), ratio), tokens=_times(stream.tokens, walk))


def _rotation_sum(stream: Sources, width: int, ratio: float) -> Sources:
    """So many times over: one matrix in the end, which is less and less the identity."""
    found = stream.plus_own(stream.rotated(width), ratio, width)
    mixed = stream.mixed(width, stream.kept / (1 + ratio))
    return replace(found, values=mixed.values, tokens=stream.tokens, kept=mixed.kept)


@lru_cache
def _gelu_moment(order: int, hermite: int = 0) -> float:
    """E[(gelu(z) - mean)^order He(z) / sqrt(k!)] for z ~ N(0, 1), He the Hermite polynomial of order k = `hermite`."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(120)
    values = (gelu(torch.from_numpy(nodes)).numpy() - GELU_MEAN) ** order
    he = np.polynomial.hermite_e.hermeval(nodes, [0.0] * hermite + [1.0]) / sqrt(factorial(hermite))
    return float((weights * values * he).sum() / sqrt(2 * pi))


def _mlp_sources(stream: Sources, width: int) -> Sources:
    """Of normed rows, whose squares add up to d: what depends on that sum alone does not vary, and is taken away.

    Channels differ because the part of the hidden values that is linear in the rows spans d directions of 4 d, and
    those as unequally as the rows do.
    """
    wide = WIDER * width + 2
    pooled = 3 * ((_gelu_moment(4) - _gelu_moment(2, 2) ** 2) / _gelu_moment(2) ** 2 - 3) / wide
    unequal = _linear() ** 2 * (WIDER * stream.squares - 1)
    channels = 6 * unequal / wide
    return Sources(_without(pooled, channels), channels, squares=1 + unequal / WIDER, kept=0.0)


def _mlp_sum(stream: Sources, width: int, ratio: float) -> Sources:
    """The branch reads normed rows: channels come to differ, and pooled values are as of independent parts."""
    branch = _mlp_sources(stream, width)
    pooled = stream.plus(branch, ratio).tensor
    found = stream.plus_own(branch, ratio, width, _linear())
    return replace(found, values=_without(_without(pooled, found.channels), found.tokens))


def _linear() -> float:
    """The share of the variance of gelu(z) that is linear in z."""
    return _gelu_moment(1, 1) ** 2 / _gelu_moment(2)


def _fresh(draw: Layer) -> Callable[[int, torch.Generator], Layer]:
    """A branch of noise, as large as the stream."""
    return lambda width, generator: lambda x, noise: draw(x, noise) * x.square().mean().sqrt()


BRANCHES: Mapping[str, Branch] = {
    "gaussian-noise": Branch(_fresh(_noise), lambda stream, width: Sources()),
    "laplace-noise": Branch(_fresh(_laplace), lambda stream, width: Sources(values=3.0)),
    "rotation": Branch(_rotation, lambda stream, width: stream.rotated(width), joins=_rotation_sum),
    "mlp": Branch(_mlp, _mlp_sources, joins=_mlp_sum),
    "shared-scale": Branch(_shared_scale, lambda stream, width: Sources(tokens=stream.tokens), joins=_shared_sum),
    "cubic": Branch(lambda width, generator: _cubic, lambda stream, width: Sources(values=90.0), joins=_cubic_sum),
}
