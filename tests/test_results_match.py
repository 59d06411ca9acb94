"""Which cells of two runs may be compared, and why the others may not."""

from collections.abc import Mapping
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qbench.results.match import match
from qbench.results.record import Attempt, Closing, Record
from qbench.results.run import Run


def cell(arm: str = "residual", seed: int = 0, question: str = "q1", **fields: object) -> Attempt:
    spec = {"suite": "s", "arm": arm, "seed": seed, "data": {"digest": "ab"}, "measurement": {"what": question}}
    name = f"{arm}/{seed}/{question}/{fields}"
    spec |= fields.get("spec", {})  # type: ignore[operator]
    end = Closing(cell=name, question=question, status=fields.get("status", "measured"), spec=spec)  # type: ignore[arg-type]
    return Attempt(end, (Record(cell=name, values={"loss": 1.0}, n=fields.get("n", 128)),))  # type: ignore[arg-type]


def run(*cells: Attempt) -> Run:
    return Run(folder=Path("r"), cells={one.closing.cell: one for one in cells}, manifest={})


def reasons(a: Run, b: Run, arms: Mapping[str, str] | None = None) -> list[tuple[str, str]]:
    return [(one.run, one.reason) for one in match(a, b, arms).unmatched]


def test_the_same_cells_pair_with_themselves() -> None:
    cells = [cell(arm, seed, question) for arm in ("residual", "free") for seed in (0, 1) for question in ("q1", "q2")]
    found = match(run(*cells), run(*reversed(cells)))
    assert [(pair.a, pair.b) for pair in found.pairs] == [(one, one) for one in cells]
    assert found.unmatched == ()


def test_single_models_pair_whatever_their_names() -> None:
    found = match(run(cell("base")), run(cell("candidate")))
    assert [(pair.a.closing.spec["arm"], pair.b.closing.spec["arm"]) for pair in found.pairs] == [("base", "candidate")]


def test_two_arms_of_one_run_pair_by_seed() -> None:
    one = run(cell("residual", 0), cell("residual", 1), cell("free", 0), cell("free", 2), cell("other", 0))
    found = match(one, one, {"residual": "free"})
    assert [(pair.a.closing.spec["seed"], pair.b.closing.spec["arm"]) for pair in found.pairs] == [(0, "free")]
    assert [one.reason for one in found.unmatched if one.closing.spec["arm"] == "residual" and one.run == "a"] == [
        "the other run has no seed 1"
    ]


@pytest.mark.parametrize(
    ("ours", "theirs", "reason"),
    [
        (cell(), cell(question="q2"), "the other run does not ask it"),
        (cell(), cell(seed=3), "the other run has no seed 0"),
        (cell(), cell(spec={"data": {"digest": "cd"}}), "the data differ"),
        (cell(), cell(n=64), "the numbers of samples differ"),
        (cell(), cell(status="failed"), "failed in the other run"),
        (cell(status="unsupported"), cell(), "unsupported in this run"),
        (
            cell(),
            cell(
                question="q2",
                spec={"measurement": {"what": "q1"}, "device": "cuda", "data": {"digest": "x"}, "model": {"a": 1}},
            ),
            "the data differ: unknown (ab) and unknown (x)",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_does_not_match_says_why(ours: Attempt, theirs: Attempt, reason: str) -> None:
    found = match(run(ours), run(theirs))
    assert found.pairs == ()
    assert [one.reason for one in found.unmatched if one.run == "a"] == [reason]
    assert len(found.unmatched) == 2


def test_models_of_one_run_only_are_left_out() -> None:
    a, b = run(cell("residual"), cell("free")), run(cell("residual"), cell("third"))
    assert len(match(a, b).pairs) == 1
    assert reasons(a, b) == [("a", "its model is not compared"), ("b", "its model is not compared")]


def test_two_answers_to_one_question_are_no_answer() -> None:
    a, b = run(cell(), cell(spec={"training": {"steps": 340}})), run(cell())
    assert match(a, b).pairs == ()
    assert reasons(a, b) == [
        ("a", "several cells of this run answer the question"),
        ("a", "several cells of this run answer the question"),
        ("b", "several cells of one run answer the question: its folder holds two versions of the model"),
    ]


CELLS = st.builds(
    cell,
    arm=st.sampled_from("ab"),
    seed=st.integers(0, 2),
    question=st.sampled_from(["q1", "q2"]),
    status=st.sampled_from(["measured", "failed"]),
    n=st.sampled_from([1, 2]),
)
RUNS = st.lists(CELLS, max_size=8).map(lambda cells: run(*cells))


@given(RUNS, RUNS)
def test_every_cell_is_paired_or_explained_once(a: Run, b: Run) -> None:
    found = match(a, b)
    for side, whole in (("a", a), ("b", b)):
        paired = [getattr(pair, side).closing.cell for pair in found.pairs]
        alone = [one.closing.cell for one in found.unmatched if one.run == side]
        assert sorted(paired + alone) == sorted(whole.cells)
        assert all(one.reason for one in found.unmatched)
    mirrored = match(b, a)
    assert sorted((pair.b.closing.cell, pair.a.closing.cell) for pair in mirrored.pairs) == sorted(
        (pair.a.closing.cell, pair.b.closing.cell) for pair in found.pairs
    )
