"""The first screen: the best format within so many bits, what it costs, and how sure that is."""

import random
from dataclasses import replace
from math import inf
from pathlib import Path

import numpy as np
import pytest
from scipy import stats
from submissions import BITS, Made, make

from qbench.report.leaderboard import answers, site, spoken
from qbench.report.leaderboard.answers import Answer
from qbench.report.leaderboard.board import Board, board
from qbench.report.leaderboard.check import check
from qbench.report.leaderboard.entries import Entry
from qbench.report.leaderboard.groups import UNTOUCHED

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Board:
    folder = tmp_path_factory.mktemp("two")
    sent = {"ada": Made(model="a"), "bob": Made(model="b", level=1.95, quantizers=("int4/token", "int8/token"))}
    return board([check(make(folder / name, one)) for name, one in sent.items()])


@pytest.fixture(scope="module")
def ours() -> Board:
    """This project's own results: the first leaderboard."""
    return board([check(ROOT / "results" / name) for name in ("growth", "wiring", "leaderboard/quickstart")])


def row(found: Board, model: str, quantizer: str) -> Entry:
    return next(one for one in found.rows if (one.model, one.quantizer) == (model, quantizer))


# What quantizing costs


def test_a_cost_is_paired_by_seed(two: Board) -> None:
    """Student's t over the differences seed by seed, by scipy; the spread over seeds cancels."""
    one = row(two, "a: residual", "int4/token")
    submitted = two.submissions[0].run
    assert submitted is not None
    costs = [
        record.values["loss_increase"]
        for attempt in submitted.cells.values()
        for record in attempt.records
        if attempt.closing.spec["arm"] == "residual" and record.quantizer == "int4/token"
    ]
    low, high = stats.t.interval(0.95, 2, np.mean(costs), stats.sem(costs))
    assert one.increase == pytest.approx(np.mean(costs))
    assert one.reach == pytest.approx((low, high))
    assert high - low < 0.5 * (one.high - one.low)


def test_nothing_quantized_costs_nothing_to_state(two: Board) -> None:
    for one in two.rows:
        assert (one.increase is None) == one.untouched
        assert one.untouched == (one.quantizer == "none")


def test_bytes_are_those_of_the_model_as_stored(ours: Board) -> None:
    """A trained decoder has 2 V D + L (4 D² + 2·4 D²) + norms; float32 where its weights were left alone."""
    model = "growth decoder: residual + muon"
    one = row(ours, model, "int4/token")
    matrices = 2 * 256 * 96 + 6 * (4 * 96**2 + 2 * 4 * 96**2)
    assert one.bytes is not None
    assert 0 <= one.bytes / 4 - matrices < 0.003 * matrices  # the rest is the gains of the norms
    weights = row(ours, "quickstart decoder: residual", "int4/channel")
    assert weights.bytes is not None
    assert weights.bits_model is not None
    assert weights.bytes == round(row(ours, "quickstart decoder: residual", "none").bytes / 32 * weights.bits_model)  # type: ignore[operator]
    assert all(one.bytes for one in ours.rows)


# Within a budget


def test_answers_are_what_a_search_finds(ours: Board) -> None:
    count = 0
    for setting in answers.settings(ours.groups):
        for group, lines in setting.scopes.items():
            rows = [one for one in ours.rows if one.group == group and one.rank]
            for line in lines:
                for most, answer in zip(setting.budgets, line.answers, strict=True):
                    own = [one for one in rows if one.model == line.model and one.bits is not None and one.bits <= most]
                    assert (answer is None) == (not own)
                    if answer is not None:
                        assert answer.entry.value == min(one.value for one in own)
                        count += 1
    assert count > 150


def test_shaded_is_what_no_other_model_surely_beats(ours: Board) -> None:
    for setting in answers.settings(ours.groups):
        for lines in setting.scopes.values():
            for column in range(len(setting.budgets)):
                held = [one for line in lines if (one := line.answers[column])]
                for one in held:
                    assert one.best == (not any(other.entry.high < one.entry.low for other in held))


def test_every_row_with_bits_fits_a_budget_and_no_budget_is_idle(ours: Board) -> None:
    for setting in answers.settings(ours.groups):
        bits = [one.bits for one in ours.rows if one.group in setting.scopes and one.bits is not None]
        assert max(bits) <= setting.budgets[-1]
        for least, most in zip((0, *setting.budgets), setting.budgets, strict=False):
            assert any(least < one <= most for one in bits)


def test_the_newest_version_comes_first(tmp_path: Path) -> None:
    folders = [make(tmp_path / f"v{n}", Made(model=f"m{n}", version=n, quantizers=tuple(BITS)[:n])) for n in (3, 1, 2)]
    found = answers.settings(board([check(one) for one in folders]).groups)
    assert [one.group.version for one in found] == [3, 2, 1]
    assert [one.version for one in board([check(one) for one in folders]).groups] == [3, 3, 2, 2, 1, 1]


def test_superseded_rows_answer_nothing(tmp_path: Path) -> None:
    old, new = make(tmp_path / "old", Made(model="m", level=1.5)), tmp_path / "new"
    make(new, Made(model="m"), "supersedes:\n  - {submission: old, reason: a bug}\n")
    found = answers.settings(board([check(old), check(new)]).groups)
    held = [
        one.entry.submission for s in found for lines in s.scopes.values() for n in lines for one in n.answers if one
    ]
    assert set(held) == {"new"}


# How sure


@pytest.mark.parametrize(
    ("increase", "reach", "floor", "said"),
    [
        (0.01, (-0.01, 0.03), 0.1, "none"),
        (0.01, (0.0, 0.02), 0.1, "none"),
        (0.05, (0.04, 0.06), 0.1, "small"),
        (0.2, (0.1, 0.3), 0.1, "sure"),
        (0.05, (0.04, 0.06), None, "sure"),
        (-0.2, (-0.3, -0.1), 0.1, "sure"),
        (0.05, (-inf, inf), 0.1, "unknown"),
        (None, (-inf, inf), 0.1, "unknown"),
    ],
)
def test_signs_say_how_sure(
    two: Board, increase: float | None, reach: tuple[float, float], floor: float | None, said: str
) -> None:
    one = replace(two.rows[0], increase=increase, reach=reach, seed_floor=floor)
    assert Answer(one, best=True).surety == said


def test_a_number_has_no_digits_beyond_its_interval(two: Board) -> None:
    chance = random.Random(0)
    for _ in range(300):
        reach = 10 ** chance.uniform(-7, 1)
        middle = chance.uniform(-2, 2)
        one = replace(two.rows[0], increase=middle, reach=(middle - reach, middle + reach))
        before, after = spoken.cost(one).replace("−", "-").split(" ± ")
        decimals = len(before.partition(".")[2])
        assert decimals == len(after.partition(".")[2]) <= 5
        assert abs(float(before) - middle) <= 0.5 * 10**-decimals + 1e-12
        assert max(reach, 1e-5) >= 10**-decimals > 0.009 * min(reach, 100)
    assert before[0] in "+-"


# The page


def test_the_first_page_answers_before_anything_else(ours: Board) -> None:
    text = site.contents(ours)["index.html"].decode()
    first = text.index('class="answers"')
    assert first < text.index('id="table"')
    table = text[first : text.index("</table>", first)]
    setting = answers.settings(ours.groups)[0]
    group, lines = next(iter(setting.scopes.items()))
    answer = lines[0].answers[0]
    assert answer is not None
    assert table.index(group.scope) < table.index(lines[0].model) < table.index(f">{answer.entry.quantizer}<")
    assert spoken.cost(answer.entry) in table
    assert f"{answer.entry.bits:.2f} bits" in table


def test_long_lists_lead_to_the_page_that_has_all(tmp_path: Path) -> None:
    many = Made(
        model="m", arms=[f"arm {i}" for i in range(site.FIRST_MODELS + 3)], quantizers=("int4/token",), seeds=(0,)
    )
    found = board([check(make(tmp_path / "many", many))])
    group = next(one for one in found.groups if one.scope != UNTOUCHED)
    files = site.contents(found)
    assert f"<a href=groups/{group.id}.html>3 more models</a>" in files["index.html"].decode()
    assert files[f"groups/{group.id}.html"].decode().count("<th scope=row>") == site.FIRST_MODELS + 3
