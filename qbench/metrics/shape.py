"""The shape of a tensor: kurtosis by axis, crest and tails, beside what Gaussian data of the same size shows.

Letters: S sequences, T tokens of each, C channels; the last axis of a tensor is its channels. A matrix is one sequence.
"""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import isfinite, pi, sqrt

import numpy as np
import torch
from torch import Tensor

from qbench.quant.blocks import NonFinite
from qbench.quant.moments import Moments, moments, pool
from qbench.quant.moments import merge as merge_moments
from qbench.quant.quantizer import Quantizer
from qbench.quant.spec import QuantizerSpec
from qbench.quant.sweep import Rows, Table, sweep
from qbench.stats.blocks import expected_crest_db
from qbench.stats.gaussian import central_kurtosis

MEDIAN_SAMPLE = 2**20  # values of a batch whose tokens' medians are taken


@dataclass(frozen=True, slots=True)
class Mean:
    """A running mean over the rows where a number is defined."""

    total: float = 0.0
    count: int = 0

    def __add__(self, other: "Mean") -> "Mean":
        return Mean(self.total + other.total, self.count + other.count)

    @property
    def value(self) -> float:
        """NaN where the number was never defined."""
        return self.total / self.count if self.count else float("nan")


@dataclass(frozen=True, slots=True)
class ShapeSums:
    """What has to be kept of the batches of one site to know their shape together; see `measure` and `merge`."""

    channels_C: Moments
    means: Mapping[str, Mean]
    batches: Mapping[int, int]  # how many batches there were of each number of values, all-zero ones left out

    def values(self) -> dict[str, float]:
        """Every shape metric that is defined, and what Gaussian data of this size would show.

        Constant rows have no kurtosis and all-zero ones no crest: they are left out of the means, and a metric that
        no row defines is absent.
        """
        power_C = self.channels_C.power
        kurtosis_C, varies_C = self.channels_C.excess_kurtosis, self.channels_C.varies
        found = {
            "rms": power_C.mean().sqrt().item(),
            "excess_kurtosis/tensor": pool(self.channels_C, 0).excess_kurtosis.item(),
            "excess_kurtosis/channel": kurtosis_C[varies_C].mean().item(),
            "kurtosis/he": (power_C.square().mean() / power_C.mean().square()).item(),
            **{name: mean.value for name, mean in self.means.items()},
            **self._gaussian(),
        }
        return {name: value for name, value in found.items() if isfinite(value)}

    def _gaussian(self) -> dict[str, float]:
        tokens, channels = self.channels_C.n, len(self.channels_C.mean)
        sizes = {"tensor": tokens * channels, "token": channels, "channel": tokens}
        crest = sum(count * expected_crest_db(n) for n, count in self.batches.items())
        return {
            **{f"gaussian/excess_kurtosis/{axis}": central_kurtosis(n)[0] for axis, n in sizes.items() if n > 1},
            "gaussian/sd/excess_kurtosis/tensor": central_kurtosis(tokens * channels)[1],
            "gaussian/kurtosis/osp": gaussian_osp(channels),
            "gaussian/crest_db": Mean(crest, sum(self.batches.values())).value,
        }


def shape(x: Tensor) -> dict[str, float]:
    """The shape metrics of one tensor [..., T, C].

    >>> import torch
    >>> ones = torch.tensor([[1.0, -1.0], [-1.0, 1.0]])
    >>> shape(ones)["excess_kurtosis/tensor"], shape(ones)["crest_db"]  # two equal spikes are as flat as it gets
    (-2.0, 0.0)
    """
    return measure(x).values()


def measure(x: Tensor) -> ShapeSums:
    """One recorded batch [..., T, C], in one pass where that can be had, else in float64 with three copies in flight.

    Raises:
        ValueError: `x` is empty or holds NaN or infinity.
    """
    return swept(x, ())[1]


def swept(
    x: Tensor, quantizers: Iterable[str | QuantizerSpec | Quantizer], channel_axis: int = -1
) -> tuple[Table, ShapeSums]:
    """The shape of a recorded batch and what quantizers lose on it, in the same pass; see `measure` and `sweep`."""
    x_STC = _sequences(x)
    tokens = _Tokens(x_STC.shape[1])
    table = sweep(x, quantizers, channel_axis, see=tokens.see)
    if table.columns is None:
        return table, _plainly(x, x_STC)
    return table, _sums(table.columns, tokens.means, tokens.largest, x_STC)


def _plainly(x: Tensor, x_STC: Tensor) -> ShapeSums:
    values_STC = x_STC.double()
    channels_C = moments(values_STC.flatten(0, 1), dim=0).cpu()
    _check_finite(x, channels_C)
    tokens = _Tokens(x_STC.shape[1])
    rows = moments(values_STC.flatten(0, 1), dim=-1)
    tokens.see(Rows(0, rows.cpu(), x_STC.abs().amax(-1).flatten().cpu()))
    return _sums(channels_C, tokens.means, tokens.largest, x_STC)


def _sums(channels_C: Moments, means: Mapping[str, Mean], largest: float, x_STC: Tensor) -> ShapeSums:
    rms = pool(channels_C, 0).power.sqrt()
    found = {
        **means,
        "crest_db": _mean(20 * (largest / rms).log10(), rms > 0),
        "max_to_median": _max_to_median(x_STC.flatten(0, 1)),
    }
    return ShapeSums(channels_C, found, {x_STC.numel(): 1} if found["crest_db"].count else {})


class _Tokens:
    """Adds up what is said of tokens and of whole sequences, as runs of tokens come by."""

    def __init__(self, tokens: int) -> None:
        self.tokens = tokens
        self.largest = 0.0
        self.means = {name: Mean() for name in ("excess_kurtosis/token", "kurtosis/osp", "kurtosis/qualcomm")}
        self.part: Moments | None = None  # of a sequence of which not all tokens have come by

    def see(self, rows: Rows) -> None:
        self.largest = max(self.largest, float(rows.peak.max()))
        one_by_one = rows.moments
        self._add("excess_kurtosis/token", _mean(one_by_one.excess_kurtosis, one_by_one.varies))
        self._add("kurtosis/osp", _mean(_osp(one_by_one), one_by_one.varies))
        count = len(rows.peak)
        if count % self.tokens == 0:
            sequences = pool(one_by_one.viewed(-1, self.tokens), -1)
        else:  # runs do not cross the end of a sequence that is longer than they are
            run = pool(one_by_one.viewed(1, -1), -1)
            self.part = run if self.part is None else merge_moments(self.part, run)
            if (rows.start + count) % self.tokens:
                return
            sequences, self.part = self.part, None
        self._add("kurtosis/qualcomm", _qualcomm(sequences))

    def _add(self, name: str, mean: Mean) -> None:
        self.means[name] += mean


def merge(a: ShapeSums, b: ShapeSums) -> ShapeSums:
    """Both batches as one site; exact, so the order of merging moves no more than the last digits."""
    if a.channels_C.mean.shape != b.channels_C.mean.shape:
        widths = f"{len(a.channels_C.mean)} and {len(b.channels_C.mean)}"
        raise ValueError(f"only batches of one site merge; these have {widths} channels")
    means = {name: mean + b.means[name] for name, mean in a.means.items()}
    return ShapeSums(merge_moments(a.channels_C, b.channels_C), means, Counter(a.batches) + Counter(b.batches))


def gaussian_osp(channels: int) -> float:
    """The mean of `kurtosis/osp` over Gaussian tokens of independent channels; not 0, because it is clipped there.

    The average of the positive half of N(0, 24 / C) times 1 + a / sqrt(C) + b / C + c / C^1.5, where a, b, c fit
    simulations of 120 million values at each of 13 widths from 16 to 4096; within 0.001. NaN for fewer than 16
    channels: the fit ends there, and at 5 and fewer the mean is infinite.

    >>> [round(gaussian_osp(channels), 3) for channels in (64, 256, 768, 4096)]
    [0.178, 0.106, 0.065, 0.03]
    """
    if channels < 16:
        return float("nan")
    root = sqrt(channels)
    return sqrt(12 / pi) / root * (1 - 1.897 / root - 5.569 / root**2 + 28.01 / root**3)


def _sequences(x: Tensor) -> Tensor:
    """`x` as [S, T, C]; what has fewer axes is one sequence, or one token."""
    if not x.numel():
        raise ValueError(f"a tensor of shape {tuple(x.shape)} has no values, and so no shape to measure")
    x = x.detach() if x.is_floating_point() and x.itemsize > 1 else x.detach().float()  # float8 has no arithmetic
    return x.reshape(-1, *(1, 1, *x.shape)[-2:])


def _check_finite(x: Tensor, measured: Moments) -> None:
    # One bad value spoils the sums of its channel, so the sums tell without another pass over the values.
    if measured.m4.isfinite().all():
        return
    bad = int((~x.isfinite()).sum().item())
    what = f"{bad} of {x.numel()} values are NaN or infinite" if bad else "its fourth powers overflow float64"
    raise NonFinite(f"a tensor of shape {tuple(x.shape)} has no kurtosis: {what}")


def _max_to_median(x_NC: Tensor) -> Mean:
    """Of tokens spread evenly over the tensor: a median costs more than all other numbers together."""
    step = -(-x_NC.numel() // MEDIAN_SAMPLE)
    magnitude_NC = x_NC[::step].abs()
    largest_N, median_N = magnitude_NC.amax(-1).double(), _medians(magnitude_NC).double()
    return _mean(largest_N / median_N, median_N > 0)


def _medians(x_NC: Tensor) -> Tensor:
    """The lower median of each row, as torch.median's, which takes ten times as long on a CPU."""
    if x_NC.device.type != "cpu":
        return x_NC.median(-1).values
    middle = (x_NC.shape[-1] - 1) // 2
    rows = x_NC if x_NC.dtype == torch.float64 else x_NC.float()
    return torch.from_numpy(np.partition(rows.numpy(), middle, axis=-1)[:, middle].copy())


def _osp(tokens: Moments) -> Tensor:
    """arXiv 2506.19697 as released: the fourth moment not centred, the variance unbiased, excess, clipped at 0."""
    n, mean = tokens.n, tokens.mean
    raw = tokens.m4 / n + 4 * mean * tokens.m3 / n + 6 * mean**2 * tokens.m2 / n + mean**4
    return (raw / (tokens.m2 / max(n - 1, 1)).square() - 3).clamp(min=0)  # a single value does not vary: left out


def _qualcomm(sequences: Moments) -> Mean:
    """arXiv 2306.12929 as released: over the tokens and channels of a sequence, the 1e-6 included, not excess."""
    variance = sequences.m2 / max(sequences.n - 1, 1)
    return _mean(sequences.m4 / sequences.n / (variance.square() + 1e-6), sequences.varies)


def _mean(values: Tensor, defined: Tensor) -> Mean:
    return Mean(values[defined].sum().item(), int(defined.sum().item()))
