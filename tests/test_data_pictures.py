"""Images to train on: every training image once an epoch, none of the others ever, the same for the same seed."""

from pathlib import Path

import numpy as np
import pytest
import torch
from test_data_vision import idx_bytes
from torch.nn.functional import cross_entropy

from qbench.data import vision
from qbench.data.pictures import image_batches, standard
from qbench.data.pixels import Recipe
from qbench.data.text import BadData
from qbench.data.vision import labelled

RANDOM = np.random.default_rng(0)
BYTES = Recipe(1, factor=1.0)  # as they are stored


@pytest.fixture(scope="module")
def digits() -> vision.Images:
    return vision.load("digits")


def keys(pixels: np.ndarray) -> list[bytes]:
    return [image.astype(np.uint8).tobytes() for image in pixels]


def test_an_epoch_is_every_training_image_once_and_no_other(digits: vision.Images) -> None:
    train = digits.part("train")
    batches = list(image_batches(digits, BYTES, batch=100, steps=26, seed=1))
    assert all(x.shape == (100, 1, 8, 8) and x.dtype == torch.float32 for x, _ in batches)
    drawn = [key for x, _ in batches for key in keys(x.numpy())]
    n = len(train)
    assert sorted(drawn[:n]) == sorted(drawn[n : 2 * n]) == sorted(keys(train.pixels))
    assert drawn[:n] != drawn[n : 2 * n]
    others = {*keys(digits.part("tune").pixels), *keys(digits.part("test").pixels)}
    assert not others & set(drawn)


def test_images_keep_their_labels(digits: vision.Images) -> None:
    known = dict(zip(keys(digits.pixels), digits.labels.tolist(), strict=True))
    for x, y in image_batches(digits, BYTES, 32, 5, 0):
        assert y.dtype == torch.int64
        assert [known[key] for key in keys(x.numpy())] == y.tolist()


def test_the_order_is_the_seeds_and_fewer_steps_are_the_first_of_more(digits: vision.Images) -> None:
    state = torch.get_rng_state()
    few = list(image_batches(digits, BYTES, 16, 3, 5))
    many = list(image_batches(digits, BYTES, 16, 9, 5))
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(a[0], b[0]) for a, b in zip(few, many, strict=False))
    (other,) = image_batches(digits, BYTES, 16, 1, 6)
    assert not torch.equal(few[0][0], other[0])


def test_a_batch_may_be_larger_than_the_data(digits: vision.Images) -> None:
    small = digits.only(np.flatnonzero(digits.place == 0)[:7])
    (batch,) = image_batches(small, BYTES, 20, 1, 0)
    counts = np.unique([keys(batch[0].numpy())], return_counts=True)[1]
    assert sorted(counts.tolist()) == [2, 3, 3, 3, 3, 3, 3]


def test_no_training_images(digits: vision.Images) -> None:
    with pytest.raises(BadData, match="train split has 0 images"):
        image_batches(digits.part("test"), BYTES, 4, 1, 0)


def test_the_standard_recipe_is_that_of_the_training_images_alone() -> None:
    pixels = RANDOM.integers(0, 200, (300, 3, 5, 4), dtype=np.uint8)
    images = labelled("made", (pixels, np.arange(300) % 2), ("a", "b"))
    found = standard(images)
    train = images.part("train").pixels / 255
    np.testing.assert_allclose(found.mean, train.mean((0, 2, 3)), rtol=1e-12)
    np.testing.assert_allclose(found.std, train.std((0, 2, 3)), rtol=1e-12)
    seen = found.apply(images.part("train").pixels).double()
    np.testing.assert_allclose(seen.mean((0, 2, 3)), 0, atol=1e-5)
    np.testing.assert_allclose(seen.std((0, 2, 3), correction=0), 1, atol=1e-5)
    assert (np.abs(found.mean - pixels.mean((0, 2, 3)) / 255) > 1e-6).all()


def test_images_without_anything_on_them_are_refused() -> None:
    images = labelled("blank", (np.full((50, 1, 2, 2), 7, np.uint8), np.zeros(50, np.int64)), ("a",))
    with pytest.raises(BadData, match="channel 0 of all training images is 7"):
        standard(images.part("all"))


def test_where_an_image_falls_is_decided_by_what_is_on_it() -> None:
    pixels = RANDOM.integers(0, 256, (200, 1, 4, 4), dtype=np.uint8)
    pixels[150:] = pixels[:50]
    labels = np.arange(200) % 3
    order = RANDOM.permutation(200)
    a = labelled("a", (pixels, labels), tuple("012"))
    b = labelled("b", (pixels[order].copy(), labels[order]), tuple("012"))
    np.testing.assert_array_equal(a.place[order], b.place)
    np.testing.assert_array_equal(a.place[150:], a.place[:50])
    published = np.where(np.arange(200) >= 180, 2, 0).astype(np.int8)
    c = labelled("c", (pixels.copy(), labels), tuple("012"), published)
    assert (c.place[180:] == 2).all()
    assert np.bincount(c.place[:180], minlength=3)[1:].tolist() != [0, 0]
    published[170:180] = 1
    d = labelled("d", (pixels.copy(), labels), tuple("012"), published)
    np.testing.assert_array_equal(d.place, published)
    assert len({a.digest, c.digest, d.digest}) == 3


def test_mnist_files_serve_three_splits_of_which_the_test_is_the_published_one(tmp_path: Path) -> None:
    for split, n in (("train", 60), ("t10k", 20)):
        images = RANDOM.integers(0, 256, (n, 4, 4), dtype=np.uint8)
        (tmp_path / f"{split}-images-idx3-ubyte").write_bytes(idx_bytes(images))
        (tmp_path / f"{split}-labels-idx1-ubyte").write_bytes(idx_bytes((np.arange(n) % 10).astype(np.uint8)))
    images = vision.load(f"idx:{tmp_path}")
    drawn = {key for x, _ in image_batches(images, BYTES, 30, 8, 0) for key in keys(x.numpy())}
    assert drawn == set(keys(images.part("train").pixels))
    assert [len(images.part(split)) for split in vision.SPLITS] == [57, 3, 20]


def test_a_linear_classifier_learns_the_digits(digits: vision.Images) -> None:
    recipe = standard(digits)
    weights = torch.zeros(64, 10, requires_grad=True)
    for x, y in image_batches(digits, recipe, batch=64, steps=300, seed=0):
        (gradient,) = torch.autograd.grad(cross_entropy(x.flatten(1) @ weights, y), weights)
        with torch.no_grad():
            weights -= 0.1 * gradient
    test = digits.part("test")
    guesses = (recipe.apply(test.pixels).flatten(1) @ weights).argmax(1)
    assert (guesses.numpy() == test.labels).mean() > 0.93
