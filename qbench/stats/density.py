"""Symmetric densities of unit variance, with the partial moments that quantization errors are made of."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import erfc, exp, gamma, log, pi, sqrt
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False)
class Density:
    """A density p, even and of unit variance, on arrays (infinities allowed).

    `partial` gives the integrals of p(t), t p(t) and t^2 p(t) from minus infinity to x; `beyond` is P(|X| > m) for
    m >= 0, also far out; `information` is the differential entropy in bits.
    """

    name: str
    density: Callable[[Array], Array]
    partial: Callable[[Array], tuple[Array, Array, Array]]
    beyond: Callable[[Array], Array]
    information: float

    def reach(self, probability: float) -> float:
        """The m with P(|X| > m) = `probability`, by bisection."""
        low, high = 0.0, 1.0
        while self.beyond(np.array(high)) > probability:
            high *= 2
        for _ in range(60):
            middle = (low + high) / 2
            low, high = (middle, high) if self.beyond(np.array(middle)) > probability else (low, middle)
        return (low + high) / 2

    def mean_magnitude(self) -> float:
        """E |X|."""
        return -2 * float(self.partial(np.zeros(1))[1][0])

    def rate_distortion_db(self, bits: float) -> float:
        """Shannon's lower bound on the error at this rate, in decibels; exact for the Gaussian.

        >>> round(NORMAL.rate_distortion_db(1), 2), round(LAPLACE.rate_distortion_db(1), 2)
        (-6.02, -6.65)
        """
        return 10 / log(10) * (2 * log(2) * (self.information - bits) - log(2 * pi * exp(1)))


_each_erfc = np.frompyfunc(erfc, 1, 1)


def _erfc(x: Array) -> Array:
    return np.asarray(_each_erfc(x), dtype=np.float64)


def _normal() -> Density:
    def density(t: Array) -> Array:
        return np.exp(-t * t / 2) / sqrt(2 * pi)

    def partial(t: Array) -> tuple[Array, Array, Array]:
        p, below = density(t), _erfc(-t / sqrt(2)) / 2
        return below, -p, below - np.where(np.isinf(t), 0.0, np.nan_to_num(t) * p)

    return Density(
        name="gauss",
        density=density,
        partial=partial,
        beyond=lambda m: _erfc(m / sqrt(2)),
        information=log(2 * pi * exp(1)) / log(4),
    )


def _laplace() -> Density:
    rate = sqrt(2)  # variance 2 / rate^2

    def partial(t: Array) -> tuple[Array, Array, Array]:
        u = np.minimum(np.abs(t), 1e3)  # beyond which the tail is 0 anyway
        mass = np.exp(-rate * u) / 2
        first, second = mass * (u + 1 / rate), mass * (u * u + 2 * u / rate + 2 / rate**2)
        return np.where(t < 0, mass, 1 - mass), -first, np.where(t < 0, second, 1 - second)

    return Density(
        name="laplace",
        density=lambda t: rate / 2 * np.exp(-rate * np.abs(t)),
        partial=partial,
        beyond=lambda m: np.exp(-rate * m),
        information=(1 + log(2 / rate)) / log(2),
    )


def student(freedom: int) -> Density:
    """Student's t with an odd number of degrees of freedom of at least 3, scaled to unit variance.

    With x = sqrt(freedom) tan(angle) all integrals are finite sums of powers of cosines.
    """
    if freedom < 3 or freedom % 2 == 0:
        raise ValueError(f"closed forms need an odd number of degrees of freedom of at least 3, found {freedom}")
    unit = sqrt(freedom / (freedom - 2))  # standard deviation of the usual form
    norm = gamma((freedom + 1) / 2) / (sqrt(freedom * pi) * gamma(freedom / 2))

    def partial(t: Array) -> tuple[Array, Array, Array]:
        x = np.clip(t * unit, -1e9, 1e9)
        share, whole = freedom / (freedom - 1), (freedom - 1) / (freedom - 2)
        flatter = norm * (1 + x * x / freedom) ** (-(freedom - 1) / 2)  # (1 + x^2 / freedom) times the density
        slope = x / sqrt(freedom)
        # The integral of x p is -share * flatter, and that of x^2 p follows by parts.
        second = share * (whole * _student_below(slope, freedom - 2) - x * flatter) / unit**2
        return _student_below(slope, freedom), -share * flatter / unit, second

    return Density(
        name=f"student-t{freedom}",
        density=lambda t: unit * norm * (1 + (t * unit) ** 2 / freedom) ** (-(freedom + 1) / 2),
        partial=partial,
        beyond=lambda m: _student_beyond(m * unit / sqrt(freedom), freedom),
        information=_student_information(freedom, norm, unit),
    )


def _student_below(slope: Array, freedom: int) -> Array:
    tail = _student_beyond(np.abs(slope), freedom) / 2
    return np.where(slope < 0, tail, 1 - tail)


def _student_beyond(slope: Array, freedom: int) -> Array:
    """P(|T| > slope sqrt(freedom)), freedom odd (Abramowitz and Stegun 26.7.3); `slope` is the tangent of an angle."""
    angle = np.arctan(slope)
    term = np.cos(angle) if freedom > 1 else np.zeros_like(angle)
    total = term
    for k in range(3, freedom - 1, 2):
        term = term * (k - 1) / k * np.cos(angle) ** 2
        total = total + term
    near = 1 - 2 / pi * (angle + np.sin(angle) * total)
    return np.where(slope > 5, _student_far(np.maximum(slope, 5.0), freedom), near)  # where the sum cancels


def _student_far(slope: Array, freedom: int) -> Array:
    """The same by the binomial series of the tail in 1 / slope^2."""
    power = -(freedom + 1) / 2
    term, total = 2 * gamma(-power) / (sqrt(pi) * gamma(freedom / 2)) * slope**-freedom, np.zeros_like(slope)
    for k in range(20):
        total = total + term / (freedom + 2 * k)
        term = term * (power - k) / (k + 1) / slope**2
    return total


def _student_information(freedom: int, norm: float, unit: float) -> float:
    """-log2 norm + (freedom + 1)/2 E log2(1 + x^2/freedom), minus log2 of the standard deviation divided out."""
    # Odd freedom: digamma((v+1)/2) - digamma(v/2) is 2 log 2 and an alternating sum.
    mean_log = 2 * log(2) + sum((-1) ** k * 2 / k for k in range(1, freedom))
    return (-log(norm) + (freedom + 1) / 2 * mean_log - log(unit)) / log(2)


NORMAL = _normal()
LAPLACE = _laplace()
STUDENT = student(5)
DENSITIES: Mapping[str, Density] = MappingProxyType({d.name: d for d in (NORMAL, LAPLACE, STUDENT)})
