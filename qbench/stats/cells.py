"""Cells: where on the line a rounding sends a value to which level, and what that costs."""

from dataclasses import dataclass
from math import inf

import numpy as np
from numpy.typing import NDArray

from qbench.stats.density import NORMAL, Array, Density

ROUNDINGS = ("nearest", "rtz", "sr")  # to the nearest level, toward zero, up or down at random and right on average


@dataclass(frozen=True, slots=True, eq=False)
class Cells:
    """Rows of cells, one row for each scaling of the same levels: arrays are [rows, cells], `edges` [rows, cells + 1].

    In a cell the expected squared error is `square` x^2 + `slope` x + `level`, and the code is `code`, or with
    probability `rise` x + `start` the one above.
    """

    edges: Array
    square: Array
    slope: Array
    level: Array
    code: NDArray[np.int64]
    rise: Array
    start: Array
    count: int  # of levels

    def within(self, low: Array, high: Array, p: Density = NORMAL) -> tuple[Array, Array]:
        """Expected error [rows] and shares of all codes [rows, levels] of X with density `p`, given low < X < high."""
        edges = np.clip(self.edges, low[:, None], high[:, None])
        mass, first, second = (np.diff(part) for part in p.partial(edges))
        error = (self.square * second + self.slope * first + self.level * mass).sum(1)
        above = self.rise * first + self.start * mass
        whole = mass.sum(1)
        return error / whole, self._shares(self.code, mass - above, above) / whole[:, None]

    def at(self, x: Array) -> tuple[Array, Array]:
        """Expected error [rows] and shares [rows, levels] of X being one of x [rows, points] with equal chances."""
        place = (self.edges[:, 1:-1, None] < x[:, None, :]).sum(1)
        pick = [
            np.take_along_axis(part, place, 1) for part in (self.square, self.slope, self.level, self.rise, self.start)
        ]
        error = (pick[0] * x**2 + pick[1] * x + pick[2]).mean(1)
        above = pick[3] * x + pick[4]
        code = np.take_along_axis(self.code, place, 1)
        return error, self._shares(code, 1 - above, above) / x.shape[1]

    def _shares(self, code: NDArray[np.int64], stay: Array, rise: Array) -> Array:
        shares = np.zeros((len(code), self.count + 1))
        rows = np.arange(len(code))[:, None]
        np.add.at(shares, (rows, code), stay)
        np.add.at(shares, (rows, code + 1), rise)
        return shares[:, :-1]


def cells(levels: Array, rounding: str = "nearest") -> Cells:
    """The cells of rising `levels` [rows, levels] under one of ROUNDINGS."""
    return {"nearest": _nearest, "rtz": _toward_zero, "sr": _stochastic}[rounding](levels)


def fixed(levels: tuple[float, ...], p: Density = NORMAL, rounding: str = "nearest") -> tuple[float, Array]:
    """Expected error and shares of the codes where the levels are the same for all data.

    >>> round(fixed((-1.0, 1.0))[0], 3)
    0.404
    """
    error, shares = cells(np.array([levels]), rounding).within(np.array([-inf]), np.array([inf]), p)
    return float(error[0]), shares[0]


def _nearest(levels: Array) -> Cells:
    return _distances(levels, (levels[:, 1:] + levels[:, :-1]) / 2)


def _toward_zero(levels: Array) -> Cells:
    # A level keeps what lies between it and the next one away from zero.
    return _distances(levels, np.where(levels[:, 1:] > 0, levels[:, 1:], levels[:, :-1]))


def _distances(levels: Array, cuts: Array) -> Cells:
    far = np.full((len(levels), 1), inf)
    nothing = np.zeros_like(levels)
    code = np.broadcast_to(np.arange(levels.shape[1]), levels.shape)
    edges = np.concatenate([-far, cuts, far], axis=1)
    return Cells(edges, nothing + 1, -2 * levels, levels**2, code, nothing, nothing, levels.shape[1])


def _stochastic(levels: Array) -> Cells:
    """Between neighbours a and b the mean error is (x - a)(b - x)."""
    a, b = levels[:, :-1], levels[:, 1:]
    below, above = levels[:, :1], levels[:, -1:]
    far, one, nothing = np.full_like(below, inf), np.ones_like(below), np.zeros_like(below)
    last = levels.shape[1] - 1
    code = np.broadcast_to(np.concatenate([[0], np.arange(last), [last]]), (len(levels), last + 2))
    return Cells(
        edges=np.concatenate([-far, levels, far], axis=1),
        square=np.concatenate([one, np.full_like(a, -1), one], axis=1),
        slope=np.concatenate([-2 * below, a + b, -2 * above], axis=1),
        level=np.concatenate([below**2, -a * b, above**2], axis=1),
        code=code,
        rise=np.concatenate([nothing, 1 / (b - a), nothing], axis=1),
        start=np.concatenate([nothing, -a / (b - a), nothing], axis=1),
        count=levels.shape[1],
    )
