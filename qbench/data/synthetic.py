"""Calibration tensors whose kurtosis is known exactly: an instrument is checked on these before it is believed.

They have unit variance but for what their name says. Only drawing them needs torch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING
from zlib import crc32

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

if TYPE_CHECKING:
    from torch import Tensor

Array = NDArray[np.float64]
Size = tuple[int, int]  # rows and width

HOT = 10.0  # the hot channel's standard deviation; the others have 1
SINK = 100.0  # the sink token's value in one channel, in standard deviations
DEGREES = 5  # of freedom of Student's t


@dataclass(frozen=True, slots=True)
class Distribution:
    """How the values of one site are drawn, and the excess kurtosis of all of them pooled, for a size (rows, width).

    The kurtosis is that of the distribution, or a ratio of expected moments where values differ by place.
    """

    draw: Callable[[Generator, Size], Array]
    excess_kurtosis: Callable[[Size], float]


def hot_channel_kurtosis(size: Size) -> float:
    """Gaussian channels of variances v pool to 3 (mean v^2 / (mean v)^2 - 1).

    >>> round(hot_channel_kurtosis((2048, 96)), 2)
    73.46
    """
    _, width = size
    mean = (width - 1 + HOT**2) / width
    mean_square = (width - 1 + HOT**4) / width
    return 3 * (mean_square / mean**2 - 1)


def sink_token_kurtosis(size: Size) -> float:
    """One fixed value `a` among n - 1 unit Gaussians: n (3 (n - 1) + a^4) / (n - 1 + a^2)^2 - 3, moments about 0.

    >>> round(sink_token_kurtosis((2048, 96)), 1)
    460.3
    """
    n = size[0] * size[1]
    return n * (3 * (n - 1) + SINK**4) / (n - 1 + SINK**2) ** 2 - 3


def _hot_channel(random: Generator, size: Size) -> Array:
    x = random.standard_normal(size)
    x[:, size[1] // 2] *= HOT
    return x


def _sink_token(random: Generator, size: Size) -> Array:
    x = random.standard_normal(size)
    x[0, size[1] // 2] = SINK
    return x


DISTRIBUTIONS: Mapping[str, Distribution] = {
    "gaussian": Distribution(lambda random, size: random.standard_normal(size), lambda _: 0.0),
    "laplace": Distribution(lambda random, size: random.laplace(0, 0.5**0.5, size), lambda _: 3.0),
    "uniform": Distribution(lambda random, size: random.uniform(-(3**0.5), 3**0.5, size), lambda _: -1.2),
    "student-t": Distribution(
        lambda random, size: random.standard_t(DEGREES, size) * (1 - 2 / DEGREES) ** 0.5, lambda _: 6 / (DEGREES - 4)
    ),
    "hot-channel": Distribution(_hot_channel, hot_channel_kurtosis),
    "sink-token": Distribution(_sink_token, sink_token_kurtosis),
}


def calibration(rows: int, width: int, seed: int) -> dict[str, Tensor]:
    """One float32 tensor [1, rows, width] for each site of `DISTRIBUTIONS`, in its order.

    The hot channel is the middle one, a Gaussian ten times as wide as the others; the sink is the first token, at 100
    in the middle channel, like the attention sinks of language models. Each site has a random stream of its own, so
    that adding a site leaves the others as they are.
    """
    import torch

    def draw(site: str, distribution: Distribution) -> Tensor:
        values = distribution.draw(np.random.default_rng([seed, crc32(site.encode())]), (rows, width))
        return torch.from_numpy(values.astype(np.float32)[None])

    return {site: draw(site, distribution) for site, distribution in DISTRIBUTIONS.items()}
