"""Effects against numbers worked out by hand."""

from typing import Any

import pytest
from fake_run import Builder, model

from qbench.report import effects, summary
from qbench.report.effects import Effect, answer
from qbench.report.summary import Difference
from qbench.report.view import view
from qbench.results.run import Run

LOSS: dict[str, Any] = {
    "claim": "It costs more",
    "between": ["a", "b"],
    "measure": {"treatment": "int4/tensor @ boundaries", "metric": "loss_increase"},
    "compare": "difference",
    "thesis": "above 0",
}
SHAPE: dict[str, Any] = {
    "claim": "It is heavier-tailed",
    "between": ["a", "b"],
    "measure": {"kind": "activation", "sites": ["interior"], "metric": "excess_kurtosis/tensor"},
    "compare": "ratio",
    "thesis": "above 1",
}


def spec(arm: str, seed: int, wiring: str, measurement: dict[str, Any]) -> dict[str, Any]:
    return {
        "arm": arm,
        "seed": seed,
        "model": model(wiring) | {"layers": 3},
        "training": {"lr": 0.1},
        "measurement": measurement,
    }


def losses(a: dict[int, float], b: dict[int, float]) -> Run:
    run = Builder()
    measurement = {"what": "loss", "treatment": {"name": "int4/tensor @ boundaries"}}
    for arm, values in (("a", a), ("b", b)):
        for seed, value in values.items():
            run.add(spec(arm, seed, "residual", measurement), [{"values": {"loss_increase": value}}])
    return run.run()


def one(run: Run, **changes: Any) -> Effect:
    return answer(view(run), [LOSS | changes])[0]


def test_a_difference_pairs_seeds() -> None:
    # Differences 1, 2, 3: mean 2, standard error 1/sqrt(3), t(0.975, 2) = 4.302653; seed 9 has no partner.
    effect = one(losses({0: 5.0, 1: 3.0, 2: 10.0, 9: 99.0}, {2: 7.0, 0: 4.0, 1: 1.0}))
    assert (effect.value, effect.n) == (2.0, 3)
    assert effect.low == pytest.approx(2 - 4.302653 / 3**0.5, abs=1e-5)
    assert effect.high == pytest.approx(2 + 4.302653 / 3**0.5, abs=1e-5)
    assert effect.verdict == "undecided"
    assert effect.levels == (6.0, 4.0)


def test_a_ratio_is_the_geometric_mean_of_the_seeds_ratios() -> None:
    # Ratios 2 and 8: geometric mean 4; log-ratios have standard error ln 2, t(0.975, 1) = 12.7062.
    effect = one(losses({0: 2.0, 1: 8.0}, {0: 1.0, 1: 1.0}), compare="ratio", thesis="above 1")
    assert effect.value == pytest.approx(4.0)
    assert effect.low == pytest.approx(4 / 2**12.7062, rel=1e-4)
    assert effect.high == pytest.approx(4 * 2**12.7062, rel=1e-4)


def test_two_treatments_of_one_arm_are_told_apart() -> None:
    run = Builder()
    for name, values in (("int4/tensor @ boundaries", (2.0, 4.0)), ("int4/tensor+hadamard @ boundaries", (1.0, 1.0))):
        for seed, value in enumerate(values):
            about = spec("a", seed, "residual", {"what": "loss", "treatment": {"name": name}})
            run.add(about, [{"values": {"loss_increase": value}}])
    rotated = {"treatment": "int4/tensor+hadamard @ boundaries", "metric": "loss_increase"}
    effect = one(run.run(), between=["a", "a"], against=rotated, compare="ratio", thesis="above 1")
    assert effect.value == pytest.approx(8**0.5)
    assert effect.sides == ("a, int4/tensor @ boundaries", "a, int4/tensor+hadamard @ boundaries")
    assert "a, int4/tensor @ boundaries 3.00 against a, int4/tensor+hadamard @ boundaries 1.00" in effect.text
    assert one(losses({0: 1.0}, {0: 2.0})).sides == ("a", "b")


@pytest.mark.parametrize(
    ("thesis", "verdict"), [("above 0", "supported"), ("below 0", "contradicted"), ("above 2.02", "undecided")]
)
def test_the_verdict_follows_the_side_of_the_interval(thesis: str, verdict: str) -> None:
    run = losses({0: 3.0, 1: 4.01, 2: 5.05}, {0: 1.0, 1: 2.0, 2: 3.0})
    assert one(run, thesis=thesis).verdict == verdict


def test_one_seed_has_no_interval_and_decides_nothing() -> None:
    effect = one(losses({0: 3.0}, {0: 1.0}))
    assert (effect.value, effect.low, effect.high, effect.verdict) == (2.0, None, None, "undecided")
    assert "one seed, no interval" in effect.text


@pytest.mark.parametrize("bad", [0.0, -0.001])
def test_a_ratio_with_a_value_that_is_not_positive_is_undefined(bad: float) -> None:
    effect = one(losses({0: 3.0, 1: 3.0}, {0: 1.0, 1: bad}), compare="ratio", thesis="above 1")
    assert (effect.value, effect.verdict) == (None, "undecided")
    assert "undefined" in effect.text


def test_what_was_not_measured_is_undecided_and_says_whose() -> None:
    effect = one(losses({0: 3.0}, {}))
    assert (effect.n, effect.verdict) == (0, "undecided")
    assert "not measured" in effect.reason
    assert "b" in effect.reason


def test_sites_are_averaged_within_a_seed_and_scopes_follow_the_arm() -> None:
    run = Builder()
    measurement = {"what": "shape", "kind": "activation"}
    values = {"blocks.0.out": 2.0, "blocks.1.out": 4.0, "blocks.2.out": 1000.0, "blocks.0.mid": 1000.0}
    for arm, wiring, factor in (("a", "residual", 2.0), ("b", "residual-free", 1.0)):
        records = [
            {"site": s, "kind": "activation", "values": {"excess_kurtosis/tensor": factor * v}}
            for s, v in values.items()
        ]
        run.add(spec(arm, 0, wiring, measurement), records)
    effect = answer(view(run.run()), [SHAPE])[0]
    assert effect.levels == (6.0, 3.0)
    assert effect.value == pytest.approx(2.0)


def test_the_words_carry_the_numbers() -> None:
    effect = one(losses({0: 0.3, 1: 0.41, 2: 0.5}, {0: 0.1, 1: 0.2, 2: 0.3}))
    assert effects.magnitude(effect) == "+0.203\u202fnats/token"
    assert effects.certainty(effect) == "95\u202f% interval 0.189 to 0.218, 3 seeds"


@pytest.mark.parametrize(
    ("verdicts", "start"),
    [
        (["supported"], "Yes, on every count"),
        (["contradicted"], "No, on every count"),
        (["supported", "contradicted"], "The answer is mixed"),
        (["supported", "undecided"], "Partly"),
        (["contradicted", "undecided"], "Nothing measured here supports it"),
        (["undecided"], "No answer yet"),
        ([], "This suite states no claims"),
    ],
)
def test_the_headline_says_which_way_it_went(verdicts: list[Any], start: str) -> None:
    found = [
        Effect(claim=str(i), arms=("a", "b"), compare="ratio", metric="loss", null=1, verdict=verdict, n=3)
        for i, verdict in enumerate(verdicts)
    ]
    assert summary.headline(found).startswith(start)


def test_the_differences_are_those_of_the_specs() -> None:
    run = Builder()
    for arm, wiring in (("a", "residual"), ("b", "residual-free")):
        run.add(spec(arm, 0, wiring, {"what": "training"}), [])
    seen = view(run.run())
    [difference] = summary.differences(seen, answer(seen, [LOSS, SHAPE]))
    assert [name for name, *_ in difference.factors] == ["wiring", "init", "temperature"]
    assert "3 factors together" in summary.confounded(difference)


def test_comparisons_of_one_factor_share_a_sentence_where_others_mix_causes() -> None:
    one = [Difference(arms=("plain", name), factors=((name, "0", "1"),)) for name in ("norm", "init", "layers")]
    both = Difference(arms=("plain", "both"), factors=(("norm", "0", "1"), ("init", "0", "1")))
    assert summary.differing([one[0], both, *one[1:]]) == [
        summary.confounded(both),
        "The other 3 comparisons change one thing each: norm, init and layers.",
    ]
    assert summary.differing(one) == [summary.confounded(each) for each in one]
    assert summary.differing([one[0], both]) == [summary.confounded(one[0]), summary.confounded(both)]
