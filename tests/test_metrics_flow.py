"""The error in front of a layer and behind it: against the definitions in plain numpy, and known special cases."""

import numpy as np
import pytest
import torch
from torch import Tensor

from qbench.metrics.catalog import METRICS
from qbench.metrics.flow import Crossed, FlowSums, flow, linear_flow, spectral_ratio


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def plainly(h: Tensor, moved: Tensor, four: Crossed) -> dict[str, float]:
    """Token by token, as the formulas are written."""
    rows: list[tuple[float, float, float, float]] = []
    for i in range(len(h)):
        f, f_moved, g, g_moved = (x[i].numpy() for x in (four.clean, four.moved, four.changed, four.both))
        a = 0.5 * ((g_moved - g) + (f_moved - f))
        b = 0.5 * ((g_moved - f_moved) + (g - f))
        size = np.linalg.norm(f) ** 2
        front = np.linalg.norm(moved[i] - h[i]) ** 2 / np.linalg.norm(h[i]) ** 2
        rows.append((np.linalg.norm(a) ** 2 / size, np.linalg.norm(b) ** 2 / size, 2 * a @ b / size, front))
        total = np.linalg.norm(g_moved - f) ** 2 / size
        assert total == pytest.approx(sum(rows[-1][:3]))  # R = A + B + C
    inherited, introduced, cross, front = (float(x) for x in np.mean(rows, axis=0))
    return {
        "flow/error": inherited + introduced + cross,
        "flow/inherited": inherited,
        "flow/introduced": introduced,
        "flow/cross": cross,
        "flow/gain": inherited / front,
    }


def crossed(f: Tensor, g: Tensor, h: Tensor, moved: Tensor) -> Crossed:
    return Crossed(*(torch.tanh(x @ w) + x for w in (f, g) for x in (h, moved)))


def test_as_the_formulas_are_written() -> None:
    h, f = draw(20, 6), draw(6, 6, seed=1)
    moved, g = h + 0.1 * draw(20, 6, seed=2), f + 0.1 * draw(6, 6, seed=3)
    four = crossed(f, g, h, moved)
    sums = flow(h, moved, four)
    assert sums.values() == pytest.approx(plainly(h, moved, four))
    split = [
        flow(h[part], moved[part], Crossed(*(x[part] for x in (four.clean, four.moved, four.changed, four.both))))
        for part in (slice(0, 7), slice(7, 20))
    ]
    assert sum(split, FlowSums()).values() == pytest.approx(sums.values())
    assert sums.values(1.0).keys() <= METRICS.keys()


def test_a_linear_layer_by_four_products_or_by_two() -> None:
    h, w = draw(4, 9, 6), draw(5, 6, seed=1)
    moved, v = h + 0.1 * draw(4, 9, 6, seed=2), w + 0.1 * draw(5, 6, seed=3)
    four = Crossed(h @ w.T, moved @ w.T, h @ v.T, moved @ v.T)
    assert linear_flow(h, moved, w, v).values() == pytest.approx(flow(h, moved, four).values())


def test_the_gain_of_a_matrix_is_its_spectral_ratio_times_its_alignment_ratio() -> None:
    h, w = draw(30, 6), draw(5, 6, seed=1)
    d, v = 0.1 * draw(30, 6, seed=2), w + 0.3 * draw(5, 6, seed=3)
    middle = (w + v) / 2
    g1 = (np.linalg.norm(middle, 2) / np.linalg.norm(w, 2)) ** 2
    assert spectral_ratio(w, v) == pytest.approx(g1)
    found = linear_flow(h, h + d, w, v).values(spectral_ratio(w, v))
    assert found["flow/gain"] == pytest.approx(found["flow/gain/spectral"] * found["flow/gain/alignment"])

    def ratio(x: Tensor, by: Tensor) -> Tensor:
        return (x @ by.T).norm(dim=-1) / (torch.linalg.matrix_norm(by, 2) * x.norm(dim=-1))

    each, front = (ratio(d, middle) / ratio(h, w)) ** 2, (d.norm(dim=-1) / h.norm(dim=-1)) ** 2
    assert found["flow/gain/alignment"] == pytest.approx(float((each * front).sum() / front.sum()))
    one = linear_flow(h[:1], h[:1] + d[:1], w, v).values(g1)
    assert one["flow/gain/alignment"] == pytest.approx(float(each[0]))


def test_an_orthogonal_layer_has_gain_one_and_a_skip_dilutes_what_a_branch_adds() -> None:
    h, d = draw(50, 8), 0.1 * draw(50, 8, seed=1)
    q = torch.linalg.qr(draw(8, 8, seed=2)).Q
    assert linear_flow(h, h + d, q, q).gain == pytest.approx(1)
    assert linear_flow(h, h + d, q, q).introduced.value == 0
    error = 0.1 * draw(50, 8, seed=3)
    alone = flow(h, h, Crossed(h @ q, h @ q, h @ q + error, h @ q + error))
    joined = flow(h, h, Crossed(3 * h + h @ q, 3 * h + h @ q, 3 * h + h @ q + error, 3 * h + h @ q + error))
    assert joined.error < 0.5 * alone.error
    assert alone.error == alone.introduced.value


def test_without_an_error_in_front_there_is_no_gain() -> None:
    h, w = draw(5, 6), draw(6, 6, seed=1)
    found = linear_flow(h, h, w, 1.1 * w).values(1.0)
    assert found.keys() == {"flow/error", "flow/inherited", "flow/introduced", "flow/cross", "flow/gain/spectral"}
    assert found["flow/error"] == pytest.approx(0.01)


def test_tokens_of_zeros_are_left_out() -> None:
    h, w = draw(5, 6), draw(6, 6, seed=1)
    moved, zeros = h + 0.1, torch.zeros(3, 6, dtype=torch.float64)
    more = linear_flow(torch.cat([h, zeros]), torch.cat([moved, zeros]), w, w)
    assert more.values() == pytest.approx(linear_flow(h, moved, w, w).values())
