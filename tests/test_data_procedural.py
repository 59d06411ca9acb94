"""Procedural tasks: the published generators, exact answers, and the same bytes everywhere."""

from collections import Counter
from itertools import product
from math import exp, log

import numpy as np
import pytest
import torch
from scipy import stats
from test_data_integers import splitmix64
from torch.nn.functional import cross_entropy

from qbench.data import catalog
from qbench.data.catalog import load, split
from qbench.data.distinct import Distinct
from qbench.data.documents import documents
from qbench.data.dyck import PIECE, Dyck
from qbench.data.exact import IGNORED, graded, targets, with_targets
from qbench.data.procedural import corpus, task
from qbench.data.text import BadData, unigram_entropy
from qbench.data.windows import evaluation_windows, training_batches
from qbench.names import UnknownName

# Of what is made, on every platform and with every release of everything: a change is a break of old results.
GOLDEN = {
    "dyck": "4c733874f990182ee0bfaceea1d3ee3669f708427b713fd7048d5f26c5cce0a8",
    "set": "f91956e137eba8c2fa3d47f2da12fa85c41b51cec7921739f90673eb4f91c218",
    "dyck:k=8,length=128,sequences=1000,seed=3": "7b63285a28cdc7a174984bbf7f27f62af999533705afaa93cf2224fa3d41a323",
    "set:values=9,n=12,sequences=1000,seed=3": "48b504c0d48ffc485af42ec6b65497c0d1ae2f6126e8a902c36b22bd06e60ebd",
}


@pytest.mark.parametrize("name", GOLDEN)
def test_the_bytes_are_those_of_every_other_machine(name: str) -> None:
    assert load(name).digest == GOLDEN[name]


def test_the_first_rows_are_those_of_every_other_machine() -> None:
    assert Dyck(k=3, length=10).rows(0, 2).tolist() == [
        [6, 1, 2, 0, 2, 2, 5, 5, 3, 5, 4],
        [6, 1, 4, 1, 0, 3, 4, 0, 3, 0, 3],
    ]
    assert Distinct(values=5, n=6).rows(0, 2).tolist() == [
        [5, 3, 1, 5, 1, 2, 6, 5, 3, 1, 2, 7, 7],
        [1, 4, 2, 5, 2, 4, 6, 1, 4, 2, 5, 7, 7],
    ]


def dyck_by_hand(k: int, length: int, seed: int, count: int) -> list[list[int]]:
    """The published generator, a bracket at a time, with its chances in whole percent."""
    draws = iter(splitmix64(seed, 2 * length * count))
    words = []
    for _ in range(count):
        word, stack = [2 * k], []
        for at in range(length):
            chance, kind = ((next(draws) >> 32) * bound >> 32 for bound in (100, k))
            left = length - at
            if not stack or (left > len(stack) and chance < 49 and len(stack) < left - 1):
                stack.append(kind)
                word.append(kind)
            else:
                word.append(stack.pop() + k)
        words.append(word)
    return words


@pytest.mark.parametrize(("k", "length", "seed"), [(1, 2, 0), (3, 10, 1), (64, 64, 2**40), (127, 20, 5)])
def test_dyck_words_are_the_published_generators(k: int, length: int, seed: int) -> None:
    assert Dyck(k, length).rows(seed, 60).tolist() == dyck_by_hand(k, length, seed, 60)


def test_set_lists_are_the_published_generators() -> None:
    values, n, seed = 9, 12, 4
    rows = Distinct(values, n).rows(seed, 50)
    draws = iter(splitmix64(seed, 50 * n))
    for row in rows.tolist():
        given = [1 + ((next(draws) >> 32) * values >> 32) for _ in range(n)]
        answer = list(dict.fromkeys(given))
        assert row == [*given, values + 1, *answer, *[values + 2] * (n - len(answer))]


@pytest.mark.parametrize("made", [Dyck(4, 16), Distinct(20, 8)])
def test_fewer_are_the_first_of_more(made: Dyck | Distinct) -> None:
    many = made.rows(1, PIECE + 50)
    np.testing.assert_array_equal(many[:20], made.rows(1, 20))
    np.testing.assert_array_equal(many[: PIECE + 7], made.rows(1, PIECE + 7))
    assert len(made.rows(1, 0)) == 0
    assert (many != made.rows(2, PIECE + 50)).any()


def chance_of(word: tuple[int, ...], k: int) -> float:
    """How often the published generator makes `word`; 0 for what is no balanced word."""
    chance, stack = 1.0, []
    for at, token in enumerate(word):
        left, opens = len(word) - at, token < k
        free = 0 < len(stack) < left
        if opens:
            if len(stack) >= left:
                return 0.0
            chance *= (0.49 if free else 1.0) / k
            stack.append(token)
        else:
            if not stack or stack.pop() != token - k:
                return 0.0
            chance *= 0.51 if free else 1.0
    return 0.0 if stack else chance


@pytest.mark.parametrize(("k", "length"), [(1, 8), (2, 6), (3, 4)])
def test_words_are_as_frequent_as_they_should_be_and_the_floor_is_their_entropy(k: int, length: int) -> None:
    chances = {word: chance_of(word, k) for word in product(range(2 * k), repeat=length)}
    possible = {word: chance for word, chance in chances.items() if chance}
    assert sum(possible.values()) == pytest.approx(1)
    made = Dyck(k, length)
    rows = made.rows(11, 40_000)
    counts = Counter(map(tuple, rows[:, 1:].tolist()))
    assert counts.keys() == possible.keys()
    found = stats.chisquare([counts[word] for word in possible], [40_000 * chance for chance in possible.values()])
    assert found.pvalue > 1e-4
    every = np.array([[2 * k, *word] for word in possible], dtype=np.uint8)
    expected = [-log(chance) / length for chance in possible.values()]
    np.testing.assert_allclose(made.floor(every), expected, rtol=1e-12, atol=1e-12)


def best_dyck_guess(row: list[int], k: int) -> list[int]:
    """Of whoever keeps a stack: the likeliest token after each prefix."""
    stack, guesses = [], []
    for token in row[1:]:
        guesses.append(stack[-1] + k if stack else 0)
        if token < k:
            stack.append(token)
        else:
            stack.pop()
    return guesses


def test_a_stack_closes_every_bracket_and_without_one_it_is_luck() -> None:
    made = Dyck(k=5, length=40)
    rows = made.rows(0, 500)
    windows = torch.from_numpy(rows.astype(np.int64))
    best = graded(made, windows, torch.tensor([best_dyck_guess(row, 5) for row in rows.tolist()]))
    assert best.tokens.tolist() == best.whole.tolist() == [1.0] * 500
    assert (made.exact(rows).sum(axis=1) == 20).all()
    lucky = graded(made, windows, torch.full((500, 40), 5))
    assert lucky.tokens.mean() == pytest.approx(1 / 5, abs=0.02)
    assert lucky.whole.sum() == 0


def test_a_set_is_graded_on_its_answer_and_its_end_alone() -> None:
    made = Distinct(values=9, n=4)
    windows = torch.tensor([[3, 3, 7, 3, 10, 3, 7, 11, 11], [1, 2, 3, 4, 10, 1, 2, 3, 4]])
    rows = windows.numpy().astype(np.uint8)
    expected = [[0, 0, 0, 0, 1, 1, 1, 0], [0, 0, 0, 0, 1, 1, 1, 1]]
    assert made.learned(rows).astype(int).tolist() == made.exact(rows).astype(int).tolist() == expected
    right = windows[:, 1:].clone()
    right[:, :4] = 0  # of no interest
    right[0, 7] = 0
    assert graded(made, windows, right).whole.tolist() == [1, 1]
    right[0, 6] = 3  # goes on where it should end
    right[1, 5] = 9
    found = graded(made, windows, right)
    assert found.tokens.tolist() == pytest.approx([2 / 3, 3 / 4])
    assert found.whole.tolist() == [0, 0]


def test_targets_leave_out_what_nobody_can_know() -> None:
    made = Distinct(values=9, n=4)
    windows = torch.from_numpy(made.rows(0, 30).astype(np.int64))
    wanted = targets(made, windows)
    mask = made.learned(windows.numpy().astype(np.uint8))
    assert (wanted.numpy()[~mask] == IGNORED).all()
    assert torch.equal(wanted[torch.from_numpy(mask)], windows[:, 1:][torch.from_numpy(mask)])
    logits = 50.0 * torch.nn.functional.one_hot(windows[:, 1:], made.vocabulary)
    logits[:, : made.n] = 0  # knows nothing of the list itself
    assert cross_entropy(logits.flatten(0, 1), wanted.flatten()).item() == pytest.approx(0, abs=1e-6)
    assert torch.equal(targets(Dyck(9, 8), windows), windows[:, 1:])
    ((read, predicted),) = with_targets(made, [windows])
    assert torch.equal(read, windows[:, :-1])
    assert torch.equal(predicted, wanted)


def test_windows_of_another_task_are_refused() -> None:
    with pytest.raises(ValueError, match=r"expected windows \[N, 9\] of Distinct"):
        targets(Distinct(9, 4), torch.zeros(2, 8, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"a guess for each of \(2, 8\), found \(2, 9\)"):
        graded(Distinct(9, 4), torch.zeros(2, 9, dtype=torch.int64), torch.zeros(2, 9))


@pytest.mark.parametrize("name", ["dyck:k=2,length=12,sequences=3000", "set:values=3,n=6,sequences=3000"])
def test_splits_share_nothing_and_hold_each_problem_once(name: str) -> None:
    made = corpus(name)
    parts = [[row.tobytes() for row in part] for part in (made.train, made.tune, made.test)]
    every = sum(map(len, parts))
    assert len(set().union(*parts)) == every < 3000
    assert [round(len(part) / every, 2) for part in parts] == [0.90, 0.05, 0.05]
    with pytest.raises(ValueError, match="read-only"):
        made.train[0, 0] = 0
    again = corpus(name)
    assert again.digest == made.digest
    assert corpus(f"{name},seed=1").digest != made.digest


def test_a_row_is_a_window_and_the_seed_decides_which() -> None:
    made = corpus("dyck:k=4,length=16,sequences=400")
    rows = set(map(tuple, made.train.tolist()))
    state = torch.get_rng_state()
    batches = list(training_batches(made.train, 16, batch=8, steps=5, seed=3))
    assert torch.equal(torch.get_rng_state(), state)
    assert all(batch.shape == (8, 17) and batch.dtype == torch.int64 for batch in batches)
    assert {tuple(row) for batch in batches for row in batch.tolist()} <= rows
    assert torch.equal(torch.stack(list(training_batches(made.train, 16, 8, 2, 3))), torch.stack(batches[:2]))
    test = evaluation_windows(made.test, 16, len(made.test))
    np.testing.assert_array_equal(test.numpy(), made.test)
    assert not {tuple(row) for row in test.tolist()} & rows


def test_another_context_says_which_one() -> None:
    made = corpus("set:n=8,sequences=400")
    for ask in (lambda: evaluation_windows(made.test, 64, 3), lambda: training_batches(made.train, 15, 2, 1, 0)):
        with pytest.raises(BadData, match=r"problems are for a context of 16, and the model's is (64|15)"):
            ask()
    with pytest.raises(BadData, match="between 1 and 20 windows"):
        evaluation_windows(made.test, 16, 21)


def test_token_frequencies_are_those_of_all_rows() -> None:
    made = corpus("dyck:k=1,length=16,sequences=200")
    share = 8 / 17  # openings, closings, and one token before each word
    expected = -2 * share * log(share) - (1 - 2 * share) * log(1 - 2 * share)
    assert unigram_entropy(made.train) == pytest.approx(expected)
    assert exp(unigram_entropy(made.train)) < task("dyck:k=1").vocabulary


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("dyck:k=0", "dyck:k=0: k is a whole number from 1 to 127, found '0'"),
        ("dyck:k=128", "from 1 to 127, found '128'"),
        ("dyck:length=7", "even length"),
        ("dyck:length=-2", "from 2 to 65536, found '-2'"),
        ("dyck:length=1e3", "found '1e3'"),
        ("dyck:lenght=8", "no setting 'lenght'; did you mean 'length'? known: k, length, sequences, seed"),
        ("dyck:k=2,k=3", "k is set twice"),
        ("dyck:k", "expected settings such as k=VALUE with ',' between, found 'k'"),
        ("set:values=254", "values is a whole number from 1 to 253"),
        ("set:n=4,", "found ''"),
        ("set:sequences=19", "from 20 to"),
    ],
)
def test_a_wrong_setting_is_one_line_and_known_before_anything_is_made(name: str, said: str) -> None:
    with pytest.raises(BadData) as found:
        load(name)
    assert said in str(found.value)
    assert "\n" not in str(found.value)
    with pytest.raises(UnknownName) as early:
        split(name)
    assert str(early.value) == str(found.value)


def test_too_few_different_problems() -> None:
    with pytest.raises(BadData, match="only 14 different sequences"):  # the fourth Catalan number
        load("dyck:k=1,length=8,sequences=5000")
    with pytest.raises(BadData, match="no procedural task; known: dyck, set"):
        corpus("sort")


def test_they_are_no_text_to_judge_a_loaded_model_on() -> None:
    with pytest.raises(BadData, match="numbers and no text"):
        documents("dyck:length=8,sequences=100")
    assert catalog.split("dyck:length=8") == ("dyck:SETTINGS", "")
    assert catalog.stored_name("dyck:length=8") == "dyck:length=8"
