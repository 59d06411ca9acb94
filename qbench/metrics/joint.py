"""Two tensors that are added: joint moments up to the fourth, and the kurtosis that they predict for the sum.

Letters: x the stream, f what joins it, y = x + f; T tokens, C channels. With k4 for fourth cumulants,
k4(y) = k4(x) + 4 c31 + 6 c22 + 4 c13 + k4(f): an identity, whatever x and f are. Were they independent, c31, c22 and
c13 were 0 and the excess kurtosis of y (k_x + r^2 k_f) / (1 + r)^2 with r = var(f) / var(x), never above the larger.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from math import comb, isfinite

import torch
from torch import Tensor

from qbench.metrics.shape import Mean
from qbench.quant.blocks import NonFinite
from qbench.quant.moments import CONSTANT, Moments, moments, pool
from qbench.quant.moments import merge as merge_moments

AT_ONCE = 2**18  # values in float64 at a time
AXES = ("tensor", "token", "channel")
STRAIGHT = 0.99  # squared cosine between what joined and the branch's output below which this is no plain addition

Order = tuple[int, int]  # powers of x and of f
ORDERS: tuple[Order, ...] = tuple((p, q) for n in (2, 3, 4) for p in range(n, -1, -1) for q in (n - p,))


@dataclass(frozen=True, slots=True)
class Joint:
    """`n` pairs for each entry: both means, and sums of (x - mean)^p (f - mean)^q for 2 <= p + q <= 4, all float64."""

    n: int
    x: Tensor
    f: Tensor
    sums: Mapping[Order, Tensor]

    def central(self, p: int, q: int) -> Tensor:
        return self.sums[p, q] / self.n


def joint(x: Tensor, f: Tensor, dim: int) -> Joint:
    """The joint moments of float64 `x` and `f`, of one shape, along `dim`."""
    mean_x, mean_f = x.mean(dim, keepdim=True), f.mean(dim, keepdim=True)
    x, f = x - mean_x, f - mean_f
    xx, xf, ff = x * x, x * f, f * f
    second = (xx, xf, ff)
    third = (xx * x, xx * f, ff * x, ff * f)
    fourth = (xx * xx, xx * xf, xx * ff, xf * ff, ff * ff)
    sums = {order: each.sum(dim) for order, each in zip(ORDERS, (*second, *third, *fourth), strict=True)}
    return Joint(x.shape[dim], mean_x.squeeze(dim), mean_f.squeeze(dim), sums)


def merge(a: Joint, b: Joint) -> Joint:
    """The joint moments of the pairs of both, entry by entry."""
    n = a.n + b.n
    x, f = (a.n * a.x + b.n * b.x) / n, (a.n * a.f + b.n * b.f) / n
    parts = _about(a, x, f), _about(b, x, f)
    return Joint(n, x, f, {order: parts[0][order] + parts[1][order] for order in ORDERS})


def pooled(entries: Joint) -> Joint:
    """The joint moments of the pairs of all entries together."""
    x, f = entries.x.mean(), entries.f.mean()
    sums = {order: each.sum() for order, each in _about(entries, x, f).items()}
    return Joint(entries.n * entries.x.numel(), x, f, sums)


def _about(group: Joint, x: Tensor, f: Tensor) -> dict[Order, Tensor]:
    """The sums around other centres, by the binomial theorem in both variables: only differences of means enter."""
    dx, df = group.x - x, group.f - f
    known: Mapping[Order, Tensor | float] = {(0, 0): float(group.n), (1, 0): 0.0, (0, 1): 0.0, **group.sums}

    def moved(p: int, q: int) -> Tensor:
        parts = [
            comb(p, i) * comb(q, j) * dx ** (p - i) * df ** (q - j) * known[i, j]
            for i in range(p + 1)
            for j in range(q + 1)
        ]
        return torch.stack(parts).sum(0)

    return {(p, q): moved(p, q) for p, q in ORDERS}


def cumulants(pairs: Joint) -> dict[str, Tensor]:
    """What two tensors say about their sum, entry by entry; NaN where what a number is about does not vary.

    `variance_ratio` r and `correlation`; `c31`, `c22`, `c13` over var(y)^2; excess kurtoses of the `stream`, of the
    `branch`, and of their sum: `predicted` by the identity, and `independent` were there no dependence.
    """
    xx, xf, ff = (pairs.central(p, q) for p, q in ORDERS[:3])
    k4_x, k4_f = pairs.central(4, 0) - 3 * xx.square(), pairs.central(0, 4) - 3 * ff.square()
    c31, c13 = pairs.central(3, 1) - 3 * xx * xf, pairs.central(1, 3) - 3 * ff * xf
    c22 = pairs.central(2, 2) - xx * ff - 2 * xf.square()
    variance = xx + ff + 2 * xf
    x, f = _varies(xx, pairs.x), _varies(ff, pairs.f)
    y = _varies(variance, pairs.x.abs() + pairs.f.abs())
    found = {
        "variance_ratio": (ff / xx, x),
        "correlation": (xf / (xx * ff).sqrt(), x & f),
        "kurtosis/stream": (k4_x / xx.square(), x),
        "kurtosis/branch": (k4_f / ff.square(), f),
        **{name: (c / variance.square(), y) for name, c in (("c31", c31), ("c22", c22), ("c13", c13))},
        "kurtosis/predicted": ((k4_x + 4 * c31 + 6 * c22 + 4 * c13 + k4_f) / variance.square(), y),
        # (k_x + r^2 k_f) / (1 + r)^2, also where only one of both varies
        "kurtosis/independent": ((k4_x + k4_f) / (xx + ff).square(), y),
    }
    return {name: torch.where(defined, each, torch.nan) for name, (each, defined) in found.items()}


def _varies(variance: Tensor, size: Tensor) -> Tensor:
    return variance > (CONSTANT * size).square()


@dataclass(frozen=True, slots=True)
class AddSums:
    """What has to be kept of the batches of one addition; see `measure_add` and `merge_adds`.

    `overlap` are <y - x, f>, |y - x|^2 and |f|^2, where f is the branch's output before any gain.
    """

    channels_C: Joint
    sum_C: Moments
    tokens: Mapping[str, Mean]
    overlap: tuple[float, float, float] | None

    @property
    def alignment(self) -> float | None:
        """Squared cosine between what joined the stream and the branch's output: 1 for an addition, with any gain.

        None where no branch was seen, or where nothing joined: a gain may begin at 0.
        """
        if self.overlap is None or not self.overlap[1]:
            return None
        product, joined, branch = self.overlap
        return product**2 / (joined * branch) if branch else 0.0

    @property
    def plain(self) -> bool:
        """False where the branch was seen and what joined is no multiple of it: then this is no addition of the two."""
        return self.alignment is None or self.alignment >= STRAIGHT

    def values(self) -> dict[str, float]:
        """Every metric of the addition that is defined, by its name in the catalog.

        Of tokens and channels the mean over those for which a number is defined.
        """
        by_axis = {
            "tensor": {**cumulants(pooled(self.channels_C)), "kurtosis/sum": pool(self.sum_C, 0).excess_kurtosis},
            "channel": {**cumulants(self.channels_C), "kurtosis/sum": self.sum_C.excess_kurtosis},
        }
        found = {f"add/{name}/{axis}": _mean(x).value for axis, each in by_axis.items() for name, x in each.items()}
        found |= {f"add/{name}/token": mean.value for name, mean in self.tokens.items()}
        if self.alignment is not None:
            found["add/alignment"] = self.alignment
        return {name: value for name, value in found.items() if isfinite(value)}


def measure_add(stream: Tensor, total: Tensor, branch: Tensor | None = None) -> AddSums:
    """One recorded batch of an addition: the stream before it and the sum after it, both [..., T, C].

    What joined is taken as their difference, so gains on the branch are in it, and so is the rounding of the sum.
    Runs of 2^18 values are in float64 at a time, whatever the batch.

    Raises:
        ValueError: the shapes differ, there are no values, or some are NaN or infinite.
    """
    if stream.shape != total.shape or not stream.numel():
        raise ValueError(f"expected one stream and one sum of equal shapes; found {[*stream.shape]}, {[*total.shape]}")
    x_TC, y_TC = (part.detach().reshape(-1, part.shape[-1]) for part in (stream, total))
    rows = max(1, AT_ONCE // x_TC.shape[-1])
    found: AddSums | None = None
    for start in range(0, len(x_TC), rows):
        part = slice(start, start + rows)
        sums = _run(x_TC[part].double(), y_TC[part].double())
        found = sums if found is None else merge_adds(found, sums)
    assert found is not None
    if not found.sum_C.m4.isfinite().all() or not found.channels_C.sums[4, 0].isfinite().all():
        raise NonFinite(f"an addition of shape {[*stream.shape]} holds values that are NaN, infinite, or too large")
    if branch is None:
        return found
    joined, given = (total - stream).detach().double().flatten(), branch.detach().double().flatten()
    overlap = tuple(float(a @ b) for a, b in ((joined, given), (joined, joined), (given, given)))
    return AddSums(found.channels_C, found.sum_C, found.tokens, (overlap[0], overlap[1], overlap[2]))


def _run(x_TC: Tensor, y_TC: Tensor) -> AddSums:
    f_TC = y_TC - x_TC
    by_token = {**cumulants(joint(x_TC, f_TC, -1)), "kurtosis/sum": moments(y_TC, -1).excess_kurtosis}
    tokens = {name: _mean(each) for name, each in by_token.items()}
    return AddSums(joint(x_TC, f_TC, 0), moments(y_TC, 0), tokens, None)


def merge_adds(a: AddSums, b: AddSums) -> AddSums:
    """Both batches as one addition, exactly; ValueError where they are of different widths."""
    if a.sum_C.mean.shape != b.sum_C.mean.shape:
        raise ValueError(
            f"only batches of one addition merge; these have {len(a.sum_C.mean)} and {len(b.sum_C.mean)} channels"
        )
    both = None
    if a.overlap is not None and b.overlap is not None:
        both = (a.overlap[0] + b.overlap[0], a.overlap[1] + b.overlap[1], a.overlap[2] + b.overlap[2])
    means = {name: mean + b.tokens[name] for name, mean in a.tokens.items()}
    return AddSums(merge(a.channels_C, b.channels_C), merge_moments(a.sum_C, b.sum_C), means, both)


def _mean(values: Tensor) -> Mean:
    finite = values[values.isfinite()]
    return Mean(float(finite.sum()), finite.numel())
