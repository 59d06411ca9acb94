"""The Pareto front against its definition."""

from hypothesis import given
from hypothesis import strategies as st

from qbench.report.pareto import front

Point = tuple[float, float]


def dominated(point: Point, by: Point) -> bool:
    return by[0] <= point[0] and by[1] <= point[1] and by != point


@given(st.lists(st.tuples(st.integers(0, 6), st.integers(-3, 6)), max_size=12))
def test_the_front_is_what_nothing_dominates(points: list[Point]) -> None:
    expected = [i for i, point in enumerate(points) if not any(dominated(point, other) for other in points)]
    assert sorted(front(points)) == expected


@given(st.lists(st.tuples(st.floats(1, 8), st.floats(0, 3)), min_size=1))
def test_bits_rise_and_cost_never_does_along_the_front(points: list[Point]) -> None:
    along = [points[i] for i in front(points)]
    assert along == sorted(along, key=lambda point: (point[0], -point[1]))
