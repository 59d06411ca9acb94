"""Published code books that no formula in `quant.grid` gives."""

from functools import lru_cache

import numpy as np

# Quantiles of a Gaussian with a level at 0, stretched to -1..1: QLoRA, arXiv 2305.14314, appendix E.
NF4 = (
    -1.0,
    -0.6961928009986877,
    -0.5250730514526367,
    -0.39491748809814453,
    -0.28444138169288635,
    -0.18477343022823334,
    -0.09105003625154495,
    0.0,
    0.07958029955625534,
    0.16093020141124725,
    0.24611230194568634,
    0.33791524171829224,
    0.44070982933044434,
    0.5626170039176941,
    0.7229568362236023,
    1.0,
)

# The positive levels of bitsandbytes' own 4-bit float, by their codes 0 to 7; 8 more is the negative. Not OCP's e2m1.
BNB_FP4 = (0.0, 0.0625, 8.0, 12.0, 4.0, 6.0, 2.0, 3.0)


@lru_cache
def dynamic_map(*, signed: bool) -> tuple[float, ...]:
    """The 256 levels of bitsandbytes' 8-bit dynamic map: seven decades, each with twice the levels of the one below.

    Dettmers, arXiv 1511.04561 and 2110.02861. In float32 throughout, because the stored table is.
    """
    levels = [0.0, 1.0]
    for decade in range(7):
        edges = _even(2 ** (decade if signed else decade + 1) + 1)
        means = ((edges[:-1] + edges[1:]) / np.float32(2)) * np.float32(10.0 ** (decade - 6))
        levels += [float(v) for v in means] + ([-float(v) for v in means] if signed else [])
    return tuple(sorted(levels))


def _even(count: int) -> np.ndarray:
    """`count` float32 numbers from 0.1 to 1, from both ends inwards, each rounded once."""
    step = float((np.float32(1) - np.float32(0.1)) / np.float32(count - 1))
    i = np.arange(count)
    return np.where(i < count // 2, float(np.float32(0.1)) + step * i, 1 - step * i[::-1]).astype(np.float32)
