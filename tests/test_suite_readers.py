"""What models of each kind of data are taught and judged on, against torch by hand; data that do not fit a model."""

import json
from math import log
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from real import mnist
from test_data_vision import idx_bytes
from torch import Tensor
from torch.nn.functional import cross_entropy

from qbench.data import vision
from qbench.data.catalog import task
from qbench.data.hub_text import corpus as text_of
from qbench.data.text import BadData, Corpus, unigram_entropy
from qbench.data.windows import evaluation_windows, training_batches
from qbench.evaluate.likelihood import likelihood
from qbench.evaluate.problems import solve
from qbench.models.catalog import model_spec
from qbench.models.spec import ModelSpec
from qbench.models.transformer import Transformer, build
from qbench.suite import material
from qbench.suite.fitting import misfit
from qbench.suite.material import Pictures, Problems, Text
from qbench.suite.mistakes import BadSuite
from qbench.suite.reader import Reader
from qbench.suite.readers import reader
from qbench.suite.schema import load
from qbench.train.fit import fit
from qbench.train.spec import TrainingSpec
from qbench.train.trainer import loss_of, pair

SMALL: dict[str, Any] = {"layers": 2, "width": 16, "heads": 2}
SEEING: dict[str, Any] = {**SMALL, "task": "vision", "vocabulary": 10}
DYCK, SET = "dyck:k=3,length=8,sequences=4000", "set:values=9,n=4,sequences=4000"
TRAINING = TrainingSpec(steps=3, batch=5)


def of(name: str, **settings: Any) -> Reader:
    return reader(material.load(name), model_spec("residual", **settings))


@pytest.fixture(scope="module")
def readers() -> dict[str, Reader]:
    text = np.random.default_rng(0).integers(0, 32, 4000).astype(np.uint8)
    corpus = Corpus("made up", "", train=text, tune=text[:1000], test=text[::-1].copy())
    return {
        "text": reader(Text(corpus), model_spec("residual", **SMALL, context=12, vocabulary=32)),
        "dyck": of(DYCK, **SMALL, context=8, vocabulary=7),
        "set": of(SET, **SMALL, context=8, vocabulary=12),
        "images": of("digits", **SEEING),
    }


KINDS = ("text", "dyck", "set", "images")


def model_of(reads: Any) -> Transformer:
    return build(reads.spec, seed=1)


@pytest.mark.parametrize("kind", KINDS)
def test_lessons_are_the_seeds_and_fewer_are_the_first_of_more(readers: dict[str, Reader], kind: str) -> None:
    reads, more = readers[kind], TrainingSpec(steps=6, batch=5)
    first, again = list(reads.lessons(TRAINING, 3)), list(reads.lessons(more, 3))
    assert (len(first), len(again)) == (3, 6)
    other = next(reads.lessons(TRAINING, 4))
    for a, b in zip(first, again, strict=False):
        assert all(torch.equal(x, y) for x, y in zip(pair(a), pair(b), strict=True))
    assert not torch.equal(pair(first[0])[0], pair(other)[0])


def test_text_is_taught_and_judged_as_ever(readers: dict[str, Reader]) -> None:
    """The batches and windows of the functions that every earlier result came from."""
    reads: Any = readers["text"]
    corpus, model = reads.material.corpus, model_of(reads)
    batches = training_batches(corpus.train, 12, 5, 3, seed=7)
    assert all(torch.equal(a, b) for a, b in zip(reads.lessons(TRAINING, 7), batches, strict=True))
    windows = evaluation_windows(corpus.test, 12, 9)
    found, expected = reads.score(model, reads.examples("test", 9)), likelihood(model, windows)
    np.testing.assert_array_equal(found.losses, expected.losses)
    np.testing.assert_array_equal(found.vectors["error_rate"], expected.errors)
    assert torch.equal(torch.cat(reads.batches("test", 20)), evaluation_windows(corpus.test, 12, 20))
    assert [len(part) for part in reads.batches("test", 20)] == [16, 4]
    assert torch.equal(reads.watched(), evaluation_windows(corpus.tune, 12, 32)[:8, :-1])
    assert reads.derived(log(256)) == {"bits_per_byte": 8.0}


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_scores_batches_and_scoring_agree(readers: dict[str, Reader], kind: str) -> None:
    """Three ways to the loss of each piece: a score, the judge of sensitivity and noise, the loss of the training."""
    reads = readers[kind]
    model = model_of(reads)
    found = reads.score(model, reads.examples("test", 40))
    each = [reads.scoring.score(out := reads.scoring.run(model, b), out, b)["loss"] for b in reads.batches("test", 40)]
    np.testing.assert_allclose(torch.cat(each).numpy(), found.losses, rtol=1e-5)
    for batch in reads.batches("test", 40)[:1]:
        inputs, targets = pair(batch)
        counts = (targets != -100).flatten(1).sum(1) if targets.ndim > 1 else torch.ones(len(targets))
        mean = np.average(found.losses[: len(inputs)], weights=counts)
        assert loss_of(model, inputs, targets).item() == pytest.approx(mean, rel=1e-5)
    assert set(reads.bounded) <= set(found.vectors)
    assert {"loss", "error_rate"} <= set(found.vectors)
    assert 0 < reads.floor(model, reads.examples("test", 40), found) < 1e-4
    assert reads.watched().shape[1:] == pair(reads.batches("test", 1)[0])[0].shape[1:]


@pytest.mark.parametrize("kind", KINDS)
def test_chance_is_what_a_constant_guess_pays(readers: dict[str, Reader], kind: str) -> None:
    """Logits that are the logarithms of the frequencies, at every place, cost the entropy: no other constants less."""
    reads: Any = readers[kind]
    if kind == "text":
        assert reads.chance() == unigram_entropy(reads.material.corpus.train)
        return
    n = reads.material.available("train", reads.spec)
    batches = reads.batches("train", n)
    targets = torch.cat([pair(batch)[1].flatten() for batch in batches])
    targets = targets[targets != -100]
    logits = torch.bincount(targets, minlength=10).double().log()
    assert cross_entropy(logits.expand(len(targets), -1), targets).item() == pytest.approx(reads.chance(), rel=1e-9)


@pytest.mark.parametrize("kind", ["dyck", "set"])
@torch.no_grad()
def test_exact_answers_are_counted_by_hand(readers: dict[str, Reader], kind: str) -> None:
    reads: Any = readers[kind]
    model, windows = model_of(reads), reads.examples("test", 50)
    found, made = reads.score(model, windows), reads.material.task
    guesses = model(windows[:, :-1]).argmax(-1).numpy()
    rows = windows.numpy().astype(np.uint8)
    learned, exact = made.learned(rows), made.exact(rows)
    right = guesses == rows[:, 1:]
    for i in range(50):
        wrong = 1 - right[i][exact[i]].mean()
        assert found.vectors["error_rate/exact"][i] == pytest.approx(wrong)
        assert found.vectors["error_rate/problem"][i] == float(wrong > 0)
        assert found.vectors["error_rate"][i] == pytest.approx(1 - right[i][learned[i]].mean())
        losses = cross_entropy(model(windows[i : i + 1, :-1])[0], windows[i, 1:], reduction="none").numpy()
        assert found.losses[i] == pytest.approx(losses[learned[i]].mean(), rel=1e-5)


class Knows(torch.nn.Module):
    """Whoever knows how the problems of k-Dyck are made: the chances of every next token."""

    def __init__(self, k: int, length: int) -> None:
        super().__init__()
        self.k, self.length = k, length
        self.any = torch.nn.Parameter(torch.zeros(1))

    def forward(self, tokens: Tensor) -> Tensor:
        chances = torch.zeros(*tokens.shape, 2 * self.k + 1, dtype=torch.float64)
        for row, out in zip(tokens[:, 1:].tolist(), chances, strict=True):
            stack: list[int] = []
            for at in range(self.length):
                if at:
                    stack.append(row[at - 1]) if row[at - 1] < self.k else stack.pop()
                opens = 1.0 if not stack else 0.49 if len(stack) < self.length - at else 0.0
                out[at, : self.k] = opens / self.k
                if stack:
                    out[at, self.k + stack[-1]] = 1 - opens
        return chances.log()


def test_whoever_knows_the_task_has_the_least_loss_and_every_answer_right() -> None:
    made = task("dyck:k=3,length=8")
    windows = torch.from_numpy(made.rows(5, 300).astype(np.int64))
    found = solve(Knows(3, 8), windows, made)
    np.testing.assert_allclose(found.losses, made.floor(windows.numpy().astype(np.uint8)), atol=1e-12)
    assert not found.wrong.any()
    assert not found.unsolved.any()


def test_a_set_can_be_learned_and_its_answers_become_right() -> None:
    """The task's loss is about the answer: where the list itself is guessed wrong nothing is paid."""
    reads: Any = of("set:values=9,n=3,sequences=4000", layers=2, width=32, heads=2, context=6, vocabulary=12)
    training = TrainingSpec(optimizer="adamw", lr=5e-3, steps=80, batch=32)
    model = build(reads.spec, 0)
    before = reads.score(model, reads.examples("test", reads.material.available("test", reads.spec)))
    fitted = fit(model, training, reads.lessons(training, 0), None, reads.chance())
    after = reads.score(model, reads.examples("test", reads.material.available("test", reads.spec)))
    assert fitted.status == "trained"
    assert before.mean("error_rate/problem") > 0.9
    assert after.mean("error_rate/exact") < 0.5 < before.mean("error_rate/exact")
    assert after.mean("error_rate/exact") <= after.mean("error_rate/problem") < 0.9
    assert after.loss < before.loss / 2


@torch.no_grad()
def test_images_are_named_by_the_largest_logit(readers: dict[str, Reader]) -> None:
    reads: Any = readers["images"]
    model, images = model_of(reads), vision.load("digits")
    part = images.part("test", 70)
    train = images.part("train").pixels / 255
    pixels = torch.from_numpy((part.pixels / 255 - train.mean()) / train.std()).float()
    logits = model(pixels)
    labels = torch.from_numpy(part.labels.copy())
    found = reads.score(model, reads.examples("test", 70))
    np.testing.assert_allclose(found.losses, cross_entropy(logits, labels, reduction="none").numpy(), rtol=1e-5)
    assert found.mean("error_rate") == pytest.approx((logits.argmax(-1) != labels).double().mean().item())
    x, y = reads.batches("test", 70)[0]
    torch.testing.assert_close(x, pixels[:64], rtol=1e-5, atol=1e-6)
    assert torch.equal(y, labels[:64])


HEAD = "suite: a\nversion: 1\nquestion: Does it fit?\nmodels: [{name: one, arch: residual}]\n"


def refused(tmp_path: Path, text: str) -> str:
    (tmp_path / "a.yaml").write_text(HEAD + text)
    with pytest.raises(BadSuite) as error:
        load(tmp_path / "a.yaml")
    return str(error.value).replace(f"{tmp_path}/", "")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("data: digits\n", "arm 'one' cannot read digits: a language model reads text: set spec.task: vision, or"),
        ("data: stdlib\nspec: {task: vision}\n", "a vision model reads images: give data such as digits, or leave out"),
        ("data: dyck\nspec: {task: vision}\n", "a vision model reads images"),
        (
            "data: 'dyck:k=8'\nspec: {context: 32}\n",
            "64 tokens of a vocabulary of 17, the model has 32 and 256: set spec.context: 64",
        ),
        ("data: set\nspec: {vocabulary: 99}\n", "set spec.vocabulary: 102"),
        ("data: set\nspec: {context: 9, vocabulary: 9}\n", "set spec.context: 64 and spec.vocabulary: 102"),
    ],
)
def test_data_that_a_model_cannot_read_are_told_with_their_line(tmp_path: Path, text: str, said: str) -> None:
    found = refused(tmp_path, text)
    assert found.startswith("a.yaml:5:7: data: arm 'one' cannot read")
    assert said in found


def test_a_wrong_name_is_one_mistake_and_the_default_has_the_line_of_the_file(tmp_path: Path) -> None:
    assert refused(tmp_path, "data: 'dyck:k=0'\n").count("\n") == 0
    assert refused(tmp_path, "spec: {task: vision}\n").startswith("a.yaml:1:1: arm 'one' cannot read stdlib")


def test_models_that_fit_are_let_through(tmp_path: Path) -> None:
    for text in ("data: digits\nspec: {task: vision}\n", "data: set\nspec: {context: 64}\n", "data: stdlib\n"):
        (tmp_path / "a.yaml").write_text(HEAD + text)
        assert load(tmp_path / "a.yaml").arms[0].name == "one"


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ("task: vision", r"digits: set spec.vocabulary: 10 \(found 256\)"),
        ("task: vision, vocabulary: 10, image: 28, patch: 4", r"set spec.image: 8 \(found 28\)"),
        ("task: vision, vocabulary: 10, channels: 3", r"set spec.channels: 1 \(found 3\)"),
    ],
)
def test_images_of_another_size_are_told_before_anything_is_trained(tmp_path: Path, settings: str, said: str) -> None:
    (tmp_path / "a.yaml").write_text(HEAD + f"data: digits\nspec: {{{settings}}}\n")
    with pytest.raises(BadData, match=said):
        material.expected(load(tmp_path / "a.yaml"))


def test_more_than_there_is_is_told_before_anything_is_trained(tmp_path: Path) -> None:
    spec = "spec: {task: vision, vocabulary: 10}\n"
    (tmp_path / "a.yaml").write_text(HEAD + f"data: digits\n{spec}evaluate: {{windows: 360}}\n")
    with pytest.raises(
        BadData, match="evaluate wants 360 images from the test split of digits, which has 359; ask for"
    ):
        material.expected(load(tmp_path / "a.yaml"))
    small = "data: 'dyck:k=2,length=8,sequences=400'\nspec: {context: 8}\n"
    (tmp_path / "a.yaml").write_text(HEAD + small)
    with pytest.raises(BadData, match=r"evaluate wants 128 problems .* or make more: sequences=N"):
        material.expected(load(tmp_path / "a.yaml"))


def test_bytes_beyond_the_vocabulary_are_told(tmp_path: Path) -> None:
    (tmp_path / "words.txt").write_text("abc " * 5000)
    given = material.load(f"text:{tmp_path / 'words.txt'}")
    assert given.misfit(ModelSpec(vocabulary=100)) == ""
    assert (
        given.misfit(ModelSpec(vocabulary=99))
        == "it has byte 99, and the model a vocabulary of 99: set spec.vocabulary: 256"
    )


def test_images_that_are_no_squares_are_told(tmp_path: Path) -> None:
    for split, n in (("train", 60), ("t10k", 20)):
        images = np.random.default_rng(0).integers(0, 256, (n, 4, 6), dtype=np.uint8)
        (tmp_path / f"{split}-images-idx3-ubyte").write_bytes(idx_bytes(images))
        (tmp_path / f"{split}-labels-idx1-ubyte").write_bytes(idx_bytes((np.arange(n) % 10).astype(np.uint8)))
    given = material.load(f"idx:{tmp_path}")
    assert isinstance(given, Pictures)
    assert "its images are 4 x 6" in given.misfit(ModelSpec(task="vision", vocabulary=10))
    assert isinstance(material.load(DYCK), Problems)
    assert misfit(f"idx:{tmp_path}", ModelSpec(task="vision")) == ""


@pytest.mark.parametrize("profile", [None, "smoke", "cpu"])
def test_the_study_of_images_fits_its_data(profile: str | None) -> None:
    suite = load("study-vision", profile=profile)
    assert material.expected(suite).name == "digits"
    names = {arm.name for arm in suite.arms}
    assert {"residual + muon", "residual-free + muon"} <= names
    assert len(names) == (2 if profile == "smoke" else 20)
    assert all(set(effect.between) <= names for effect in suite.effects)


def test_the_study_of_images_fits_mnist() -> None:
    suite = load("study-vision", [("data", f"idx:{mnist()}")], profile="mnist")
    given = material.expected(suite)
    assert given.available("test", ModelSpec()) == 10_000


@pytest.mark.parametrize("profile", [None, "smoke", "set"])
def test_the_procedural_suite_fits_its_problems(profile: str | None) -> None:
    suite = load("procedural", profile=profile)
    assert isinstance(material.expected(suite), Problems)
    assert suite.data.startswith("set" if profile == "set" else "dyck")


def test_a_data_set_in_a_folder_starts_from_the_suite_and_trains(tmp_path: Path) -> None:
    """As it would lie on the hub: text by name, its digest what the cells hold."""
    rows = "".join(json.dumps({"text": f"line {i} of {i * i}\n" * 9}) + "\n" for i in range(300))
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "train.jsonl").write_text(rows)
    (tmp_path / "a.yaml").write_text(HEAD + "data: 'hf-text:./mine?column=text'\nspec: {context: 16}\n")
    suite = load(tmp_path / "a.yaml")
    assert suite.data == f"hf-text:{tmp_path / 'mine'}?column=text"
    assert suite.data_name == "hf-text:mine?column=text"
    given = material.expected(suite)
    assert given.digest == text_of(suite.data.removeprefix("hf-text:")).digest
    assert pair(next(reader(given, ModelSpec(context=16)).lessons(TRAINING, 0)))[0].shape == (5, 16)
    assert "no file or folder './yours'" in refused(tmp_path, "data: 'hf-text:./yours'\n")
