"""How far a quantized tensor is from the original, beside what Gaussian data and theory would give."""

from functools import cache
from math import inf, isfinite, log10, nan, sqrt

from torch import Tensor

from qbench.quant.sweep import ErrorSums
from qbench.stats.gaussian import distortion, lloyd_max, rate_distortion_db


def error_values(sums: ErrorSums, bits_per_value: float, code_bits: int, gaussian_db: float | None) -> dict[str, float]:
    """The error metrics of one site and one quantizer.

    Args:
        sums: of the site, over all batches.
        bits_per_value: stored bits, scales included; the rate of the rate-distortion bound.
        code_bits: bits of one code alone; the Lloyd-Max quantizer it is compared with has 2^code_bits levels.
        gaussian_db: the error_db of Gaussian data in this format, None where it is not known.

    Returns:
        Values by metric name. What is not finite is left out: an exact copy has no error_db, an all-zero tensor has
        no relative error. Channels that are zero throughout are left out of error_db/channel and counted; channels
        copied exactly are left out too, because one of them would hide all others.
    """
    signal, error = sums.signal, sums.error
    error_db = decibels(error, signal)
    live_C = sums.signal_C > 0
    inexact_C = live_C & (sums.error_C > 0)
    channel_db_C = 10 * (sums.error_C[inexact_C] / sums.signal_C[inexact_C]).log10()
    found = {
        "relative_error": sqrt(error / signal) if signal else nan,
        "error_db": error_db,
        "error_db/channel": channel_db_C.mean().item(),
        "max_error": sums.max_error / sqrt(signal / sums.n) if signal else nan,
        "saturated": _share(sums.saturated, sums.n),
        "zeroed": _share(sums.zeroed, sums.nonzero),
        "underflowed_scales": _share(sums.underflowed_scales, sums.scales),
        "dead_channels": float((~live_C).sum().item()),
        "levels": float(sums.levels),
        "shape_loss_db": nan if gaussian_db is None else error_db - gaussian_db,
        "lloyd_gap_db": error_db - lloyd_max_db(code_bits),
        "rate_distortion_gap_db": error_db - rate_distortion_db(bits_per_value),
    }
    return {name: value for name, value in found.items() if isfinite(value)}


def relative_error(x: Tensor, y: Tensor) -> float:
    """|x - y| / |x| in float64, for an original `x` and its copy `y` of the same shape.

    >>> import torch
    >>> relative_error(torch.tensor([3.0, 4.0]), torch.tensor([3.0, 3.5]))
    0.1
    """
    signal, error = _powers(x, y)
    return sqrt(error / signal)


def sqnr_db(x: Tensor, y: Tensor) -> float:
    """10 log10 of signal power over error power in float64; infinite for an exact copy."""
    signal, error = _powers(x, y)
    return -decibels(error, signal)


def decibels(error: float, signal: float) -> float:
    """10 log10 (error / signal): -inf without an error, NaN without a signal.

    >>> decibels(1.0, 100.0)
    -20.0
    """
    if not signal:
        return nan
    return 10 * log10(error / signal) if error else -inf


@cache
def lloyd_max_db(bits: int) -> float:
    """The least error of any 2^bits fixed levels on Gaussian data (J. Max, 1960).

    >>> round(lloyd_max_db(1), 2)
    -4.4
    """
    return 10 * log10(distortion(lloyd_max(bits)))


def _share(count: int, of: int) -> float:
    return count / of if of else nan


def _powers(x: Tensor, y: Tensor) -> tuple[float, float]:
    if x.shape != y.shape:
        raise ValueError(f"a tensor of shape {tuple(x.shape)} has no copy of shape {tuple(y.shape)}")
    exact = x.detach().double()
    signal = exact.square().sum().item()
    if not signal:
        raise ValueError(f"the tensor of shape {tuple(x.shape)} is zero throughout: no error is relative to it")
    return signal, (exact - y.detach().double()).square().sum().item()
