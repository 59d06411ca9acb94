"""Images: read as their files say, split by content, prepared as the model's own folder asks."""

import gzip
import struct
import sys
from pathlib import Path

import numpy as np
import pytest
import real
import torch
from PIL import Image
from sklearn.datasets import load_digits
from transformers import BitImageProcessorPil, ViTImageProcessorPil

from qbench.data import vision
from qbench.data.idx import read_idx
from qbench.data.pixels import Recipe, recipe
from qbench.data.text import BadData
from qbench.names import UnknownName

RANDOM = np.random.default_rng(0)


def idx_bytes(array: np.ndarray) -> bytes:
    """By the published format: two zeros, the type (8: unsigned byte), the rank, the sizes big endian, the data."""
    return bytes([0, 0, 8, array.ndim]) + b"".join(struct.pack(">i", n) for n in array.shape) + array.tobytes()


@pytest.fixture
def mnist(tmp_path: Path) -> Path:
    """A folder as MNIST comes: 40 training and 10 test images of 3 x 4, labelled in turn."""
    for split, n in (("train", 40), ("t10k", 10)):
        images = RANDOM.integers(0, 256, (n, 3, 4), dtype=np.uint8)
        labels = (np.arange(n) % 5).astype(np.uint8)
        (tmp_path / f"{split}-images-idx3-ubyte.gz").write_bytes(gzip.compress(idx_bytes(images)))
        (tmp_path / f"{split}-labels-idx1-ubyte").write_bytes(idx_bytes(labels))
    return tmp_path


def picture(path: Path, size: tuple[int, int], mode: str = "RGB") -> Image.Image:
    shape = (size[1], size[0], 3) if mode == "RGB" else (size[1], size[0])
    made = Image.fromarray(RANDOM.integers(0, 256, shape, dtype=np.uint8))
    path.parent.mkdir(parents=True, exist_ok=True)
    made.save(path)
    return made


def test_the_digits_are_scikit_learns() -> None:
    digits, raw = vision.load("digits"), load_digits()
    assert (digits.pixels.shape, digits.pixels.dtype, digits.labels.dtype) == ((1797, 1, 8, 8), np.uint8, np.int64)
    np.testing.assert_array_equal(np.rint(digits.pixels[:, 0] * (16 / 255)), raw.images)
    np.testing.assert_array_equal(digits.labels, raw.target)
    assert digits.classes == tuple("0123456789")
    assert vision.load("digits").digest == digits.digest


def test_splits_are_shares_of_the_distinct_images_and_never_overlap() -> None:
    digits = vision.load("digits")
    parts = {split: digits.part(split) for split in ("train", "tune", "test")}
    assert [round(len(part) / 1797, 2) for part in parts.values()] == [0.70, 0.10, 0.20]
    seen = [{image.tobytes() for image in part.pixels} for part in parts.values()]
    assert not (seen[0] & seen[1] | seen[0] & seen[2] | seen[1] & seen[2])
    assert len({part.digest for part in parts.values()}) == 3
    assert len(digits.part("all")) == 1797


def test_identical_images_fall_on_one_side(tmp_path: Path) -> None:
    for i in range(30):
        picture(tmp_path / "one" / f"{i:02}.png", (4, 4))
        (tmp_path / "two").mkdir(exist_ok=True)
        (tmp_path / "two" / f"{i:02}.png").write_bytes((tmp_path / "one" / f"{i:02}.png").read_bytes())
    images = vision.load(f"images:{tmp_path}")
    np.testing.assert_array_equal(images.place[:30], images.place[30:])


def test_some_of_a_split_are_evenly_spaced_over_it() -> None:
    test = vision.load("digits").part("test")
    five = vision.load("digits").part("test", 5)
    np.testing.assert_array_equal(five.pixels, test.pixels[np.linspace(0, len(test) - 1, 5).astype(int)])
    assert five.digest != test.digest
    with pytest.raises(BadData, match=rf"test split has {len(test)} images, expected 9999"):
        vision.load("digits").part("test", 9999)


def test_idx_files_are_read_as_published(mnist: Path) -> None:
    images = vision.load(f"idx:{mnist}")
    assert images.pixels.shape == (50, 1, 3, 4)
    assert images.classes == tuple("01234")
    test = images.part("test")
    np.testing.assert_array_equal(test.labels, np.arange(10) % 5)
    raw = (mnist / "t10k-images-idx3-ubyte.gz").read_bytes()
    np.testing.assert_array_equal(test.pixels.ravel(), np.frombuffer(gzip.decompress(raw), np.uint8)[16:])
    assert {len(images.part("train")), len(images.part("tune"))} == {38, 2}
    assert images.name == f"idx:{mnist.name}"


def test_mnist_itself() -> None:
    folder = real.SHARED / "vision"
    if not folder.exists():
        pytest.skip(f"{folder} is not here")
    labels = read_idx(folder / "mnist-t10k-labels-idx1-ubyte.gz")
    # How often each digit occurs in the published test set.
    assert np.bincount(labels).tolist() == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
    images = read_idx(folder / "mnist-t10k-images-idx3-ubyte.gz")
    assert images.shape == (10_000, 28, 28)
    assert images.mean() / 255 == pytest.approx(0.1325, abs=5e-4)


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda data: data[:-1], r"promises \(10,\), 10 bytes; found 9"),
        (lambda data: data + b"\0", r"promises \(10,\), 10 bytes; found 11"),
        (lambda data: b"\x89PNG" + data, r"starts with 89 50 4e 47, expected 00 00 08"),
        (lambda data: b"", r"starts with nothing"),
        (lambda data: data[:6], r"not an idx file"),
        (lambda data: b"\0\0\x0d" + data[3:], r"not an idx file of bytes"),  # floats
        (lambda data: idx_bytes(np.zeros(9, np.uint8)), r"images \(10, 3, 4\) and labels \(9,\) do not belong"),
    ],
)
def test_damaged_labels_are_refused(mnist: Path, damage: object, said: str) -> None:
    path = mnist / "t10k-labels-idx1-ubyte"
    path.write_bytes(damage(path.read_bytes()))  # type: ignore[operator]
    with pytest.raises(BadData, match=said):
        vision.load(f"idx:{mnist}")


def test_a_truncated_gzip_and_a_missing_file_are_refused(mnist: Path) -> None:
    images = mnist / "train-images-idx3-ubyte.gz"
    images.write_bytes(images.read_bytes()[:-20])
    with pytest.raises(BadData, match="cannot be read"):
        vision.load(f"idx:{mnist}")
    images.unlink()
    with pytest.raises(BadData, match=r"expected train-images-idx3-ubyte or its .*, found none"):
        vision.load(f"idx:{mnist}")
    with pytest.raises(BadData, match="no such folder"):
        vision.load(f"idx:{mnist}/nowhere")


def test_a_folder_of_pictures_has_a_class_for_each_folder(tmp_path: Path) -> None:
    made = [picture(tmp_path / name / f"{i}.png", (5, 7)) for name in ("cat", "dog") for i in range(3)]
    (tmp_path / "cat" / "notes.txt").write_text("not a picture")
    (tmp_path / "empty").mkdir()
    images = vision.load(f"images:{tmp_path}")
    assert (images.classes, images.labels.tolist()) == (("cat", "dog"), [0, 0, 0, 1, 1, 1])
    np.testing.assert_array_equal(images.pixels, np.stack([np.asarray(one).transpose(2, 0, 1) for one in made]))
    assert images.detail == ""


def test_pictures_of_several_sizes_become_one_and_say_so(tmp_path: Path) -> None:
    big = picture(tmp_path / "a" / "0.png", (512, 300), "L")
    picture(tmp_path / "a" / "1.png", (10, 10), "L")
    images = vision.load(f"images:{tmp_path}")
    assert images.pixels.shape == (2, 1, 256, 256)
    assert images.detail == "several sizes: shorter side scaled to 256, middle square"
    wide = np.asarray(big.resize((437, 256), Image.Resampling.BICUBIC))
    np.testing.assert_array_equal(images.pixels[0, 0], wide[:, 90:346])


def test_pictures_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    with pytest.raises(BadData, match="found none"):
        vision.load(f"images:{tmp_path}")
    (tmp_path / "cat").mkdir()
    (tmp_path / "cat" / "0.png").write_bytes(b"nothing of the kind")
    with pytest.raises(BadData, match=r"0\.png: cannot be read as a picture"):
        vision.load(f"images:{tmp_path}")


@pytest.mark.parametrize("name", ["digit", "idx", "idx:", "digits:5", "imges:x"])
def test_an_unknown_name_says_what_there_is(name: str) -> None:
    with pytest.raises(UnknownName, match="known: digits, idx:PATH, images:PATH"):
        vision.load(name)


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(ImportError, match="pip install scikit-learn"):
        vision.load("digits")


def test_labels_follow_the_models_names() -> None:
    digits = vision.load("digits")
    backwards = {9 - i: name for i, name in enumerate(digits.classes)}
    named = vision.as_labelled(digits, backwards)
    np.testing.assert_array_equal(named.labels, 9 - digits.labels)
    assert named.classes == tuple("9876543210")
    unnamed = vision.as_labelled(digits, {i: f"LABEL_{i}" for i in range(10)})
    np.testing.assert_array_equal(unnamed.labels, digits.labels)
    with pytest.raises(BadData, match=r"has 3 classes.*the images 10; the model does not know 0, 1, 2, 3"):
        vision.as_labelled(digits, {0: "cat", 1: "dog", 2: "cow"})
    with pytest.raises(BadData, match="has 9 classes"):
        vision.as_labelled(digits, {i: f"LABEL_{i}" for i in range(9)})


PROCESSORS = {
    "fixed": {"size": {"height": 20, "width": 24}, "resample": 2},
    "bicubic": {"size": {"height": 9, "width": 9}, "resample": 3},
    "shortest": {"size": {"shortest_edge": 24}, "do_center_crop": True, "crop_size": {"height": 16, "width": 20}},
    "as it is": {"do_resize": False},
    "bytes": {"size": 12, "do_rescale": False, "do_normalize": False},
}


@pytest.mark.parametrize("asked", PROCESSORS.values(), ids=PROCESSORS)
def test_a_recipe_does_what_the_librarys_own_processor_does(asked: dict[str, object]) -> None:
    settings = {"do_resize": True, "resample": 2, "image_mean": [0.4, 0.5, 0.6], "image_std": [0.2, 0.3, 0.25], **asked}
    library = (BitImageProcessorPil if "crop_size" in asked else ViTImageProcessorPil)(**settings)
    pixels = RANDOM.integers(0, 256, (3, 3, 32, 40), dtype=np.uint8)
    own = recipe({"num_channels": 3}, settings).apply(pixels)
    pictures = [Image.fromarray(image.transpose(1, 2, 0)) for image in pixels]
    theirs = torch.as_tensor(np.stack([np.asarray(x) for x in library(pictures)["pixel_values"]]))
    assert own.shape == theirs.shape
    # A resized byte may be one off.
    byte = 1.01 / 255 / 0.2 if settings.get("do_rescale") is not False else 1.01
    assert (own - theirs).abs().max() <= byte
    assert ((own - theirs).abs() < 1e-5).double().mean() > 0.97


def test_a_recipe_without_a_processor_is_of_the_config() -> None:
    made = recipe({"num_channels": 3, "image_size": 16}, None)
    out = made.apply(np.full((2, 1, 8, 8), 255, np.uint8))
    assert out.shape == (2, 3, 16, 16)
    assert out.eq(1).all()
    assert made.describe() == "16 x 16 (bilinear); 3 channels, times 0.00392157; minus 0, over 1"


def test_colours_become_grey_as_pillow_does() -> None:
    pixels = RANDOM.integers(0, 256, (1, 3, 6, 6), dtype=np.uint8)
    grey = np.asarray(Image.fromarray(pixels[0].transpose(1, 2, 0)).convert("L"), dtype=np.float64)
    assert np.abs(Recipe(1, factor=1.0).apply(pixels)[0, 0].numpy() - grey).max() <= 1


def test_recipes_that_do_not_fit_are_refused() -> None:
    with pytest.raises(BadData, match="resample 4"):
        recipe({}, {"size": 8, "resample": 4})
    with pytest.raises(BadData, match="found 'big'"):
        recipe({}, {"size": "big"})
    with pytest.raises(BadData, match="reads 4 channels, the images have 3"):
        Recipe(4).apply(np.zeros((1, 3, 2, 2), np.uint8))
    with pytest.raises(BadData, match="smaller than the crop of 9 x 9"):
        Recipe(3, crop=(9, 9)).apply(np.zeros((1, 3, 8, 8), np.uint8))


CLEAR = np.array([[0, 0, 255, 255], [0, 0, 255, 255]], np.uint8)  # alpha: nothing, then all


def saved(path: Path, image: Image.Image, **options: object) -> str:
    """The name of data that are this one picture."""
    (path / "a").mkdir(exist_ok=True)
    image.save(path / "a" / f"0.{options.pop('to', 'png')}", **options)  # type: ignore[arg-type]
    return f"images:{path}"


@pytest.mark.parametrize(
    ("dtype", "to", "mode"),
    [(np.uint16, "png", "I;16"), (np.uint16, "tif", "I;16"), (np.int32, "tif", "I"), (np.float32, "tif", "F")],
)
def test_values_that_are_no_bytes_are_refused(tmp_path: Path, dtype: type, to: str, mode: str) -> None:
    """Pillow cuts them off at 255: a picture of 16 bits would be white."""
    name = saved(tmp_path, Image.fromarray(np.arange(12, dtype=dtype).reshape(3, 4) * 1000), to=to)
    with pytest.raises(BadData, match=rf"0\.{to}: its values are no bytes \(Pillow's mode {mode}\).*scale them") as one:
        vision.load(name)
    assert "\n" not in str(one.value)


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "CMYK", "YCbCr"])
def test_pictures_of_bytes_are_what_pillow_makes_of_them(tmp_path: Path, mode: str) -> None:
    image = Image.fromarray(RANDOM.integers(0, 256, (4, 5, 3), dtype=np.uint8)).convert(mode)
    name = saved(tmp_path, image, to="png" if mode in ("1", "L", "P", "RGB") else "tif")
    with Image.open(next((tmp_path / "a").iterdir())) as stored:
        seen = np.asarray(stored.convert("L" if mode in ("1", "L") else "RGB"))
    np.testing.assert_array_equal(
        vision.load(name).pixels[0], seen[None] if seen.ndim == 2 else seen.transpose(2, 0, 1)
    )


def test_what_is_transparent_is_laid_on_white(tmp_path: Path) -> None:
    """A drawing that is in its alpha alone, black on nothing, is black on white; half of it is half way."""
    black = np.zeros((2, 4, 4), np.uint8)
    black[..., 3] = CLEAR
    black[0, 3, 3] = 128
    seen = vision.load(saved(tmp_path, Image.fromarray(black))).pixels[0]
    assert seen.shape == (3, 2, 4)
    assert seen[1].tolist() == [[255, 255, 0, 127], [255, 255, 0, 0]]


def test_grey_with_transparency_stays_grey(tmp_path: Path) -> None:
    grey = np.stack([np.full_like(CLEAR, 7), CLEAR], -1)
    seen = vision.load(saved(tmp_path, Image.fromarray(grey))).pixels[0]
    assert seen.tolist() == [[[255, 255, 7, 7], [255, 255, 7, 7]]]


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB"])
def test_a_transparent_colour_is_white_too(tmp_path: Path, mode: str) -> None:
    image = Image.fromarray(CLEAR).convert(mode)
    clear = {"RGB": (0, 0, 0)}.get(mode, image.getpixel((0, 0)))
    seen = vision.load(saved(tmp_path, image, transparency=clear)).pixels[0]
    assert seen.shape[0] == (1 if mode in ("1", "L") else 3)
    assert (seen == 255).all()


def test_opaque_alpha_changes_nothing(tmp_path: Path) -> None:
    image = Image.fromarray(RANDOM.integers(0, 256, (6, 6, 3), dtype=np.uint8))
    seen = vision.load(saved(tmp_path, image.convert("RGBA"))).pixels[0]
    np.testing.assert_array_equal(seen, np.asarray(image).transpose(2, 0, 1))


def test_a_picture_that_is_too_large_to_be_one_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = saved(tmp_path, Image.fromarray(np.zeros((40, 40), np.uint8)))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(BadData, match=r"0\.png: cannot be read as a picture: Image size \(1600 pixels\) exceeds"):
        vision.load(name)


@pytest.mark.parametrize(
    ("shape", "said"),
    [
        ((2, 2, 2, 2), "its header has 4 sizes; expected 3 of grey images"),
        ((0, 3, 4), r"its header promises \(0, 3, 4\): there is nothing in it"),
        ((10, 0, 4), r"its header promises \(10, 0, 4\): there is nothing in it"),
    ],
)
def test_idx_files_that_hold_no_pictures(mnist: Path, shape: tuple[int, ...], said: str) -> None:
    (mnist / "t10k-images-idx3-ubyte.gz").write_bytes(gzip.compress(idx_bytes(np.zeros(shape, np.uint8))))
    with pytest.raises(BadData, match=rf"t10k-images-idx3-ubyte\.gz: {said}"):
        vision.load(f"idx:{mnist}")


def test_labels_that_number_no_classes() -> None:
    numbers, classes = vision.numbered("some", [0, 999, 4])
    assert (numbers.tolist(), len(classes), classes[-1]) == ([0, 999, 4], 1000, "999")
    with pytest.raises(BadData, match="some: label 7000000, and 2 different ones in all; expected numbers from 0 on"):
        vision.numbered("some", [0, 7_000_000, 0])
