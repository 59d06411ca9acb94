"""Labelled images: scikit-learn's digits, MNIST's own files, or a folder of pictures per class, in three splits.

Pixels are stored bytes, 255 the brightest; what a model wants to see is in `pixels.py`. Transparent pictures are laid
on white, as a page shows it; one whose values are no bytes is refused, since it does not say which of them is white.
"""

from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from hashlib import sha256
from importlib import import_module
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from qbench.data.idx import idx_folder
from qbench.data.text import BadData, places
from qbench.names import UnknownName, suggestion

Split = Literal["train", "tune", "test", "all"]
SPLITS = ("train", "tune", "test")
TRAIN, TUNE = 70, 80  # percent: up to the first is train, from there to the second tune, the rest test
TUNE_OF_TRAIN = 95  # percent, where the data come with a test split of their own
SIDE = 256  # pictures of several sizes are scaled to this shorter side and cut to the middle square
PICTURES = frozenset({".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp"})
GREY = ("1", "L")  # Pillow's modes without colour
CLEAR = {"LA": "L", "RGBA": "RGB"}  # those that may be transparent, and what they are on paper
MODES = (*GREY, "P", "RGB", "CMYK", "YCbCr", *CLEAR)  # whose values are bytes
# Labels are numbers from 0 on; some classes may not occur, but not thousands of them.
SPARE, SPARES = 1000, 100
KINDS = ("digits", "idx:PATH", "images:PATH", "hf-images:NAME")


@dataclass(frozen=True, slots=True, eq=False)
class Images:
    """`pixels` uint8 [N, C, H, W], `labels` int64 [N] into `classes`; `place` int8 [N] is 0 train, 1 tune, 2 test."""

    name: str
    pixels: NDArray[np.uint8]
    labels: NDArray[np.int64]
    classes: tuple[str, ...]
    place: NDArray[np.int8]
    digest: str
    detail: str = ""

    def __len__(self) -> int:
        return len(self.labels)

    def part(self, split: Split, n: int | None = None) -> "Images":
        """The images of one split, or `n` of them evenly spaced; BadData where there are fewer."""
        members = np.arange(len(self)) if split == "all" else np.flatnonzero(self.place == SPLITS.index(split))
        count = len(members) if n is None else n
        if not 1 <= count <= len(members):
            raise BadData(f"{self.name}: its {split} split has {len(members)} images, expected {n or 'at least 1'}")
        chosen = members[np.arange(count) * (len(members) - 1) // max(count - 1, 1)]
        digest = sha256(f"{self.digest} {split} {count}".encode()).hexdigest()
        parts = {"pixels": self.pixels[chosen], "labels": self.labels[chosen], "place": self.place[chosen]}
        return replace(self, **parts, digest=digest)

    def only(self, places: NDArray[np.int64]) -> "Images":
        """Some of them, by number."""
        parts = {"pixels": self.pixels[places], "labels": self.labels[places], "place": self.place[places]}
        return replace(self, **parts, digest=sha256(f"{self.digest} {places.tolist()}".encode()).hexdigest())


def load(name: str) -> Images:
    """The images called `digits`, `idx:PATH`, `images:PATH` or `hf-images:NAME`.

    Raises:
        UnknownName: no such kind, or no path where one is wanted.
        BadData: the kind is there and its files are not, or are damaged.
        ImportError: the kind needs a package that is not installed; says which.
    """
    kind, _, path = name.partition(":")
    if kind == "digits" and not path:
        return digits()
    if kind == "hf-images" and path:
        from qbench.data.hub_images import images

        return images(path)
    if kind in ("idx", "images") and path:
        return (idx if kind == "idx" else folder)(Path(path))
    raise UnknownName(f"no images {name!r}{suggestion(name, KINDS)} known: {', '.join(KINDS)}")


def digits() -> Images:
    """The 1797 handwritten digits, 8 x 8, that come with scikit-learn (its package is all that is needed).

    Their grey values 0 to 16 are stored as 0 to 255.
    """
    datasets = _package("sklearn.datasets", "scikit-learn", "the digits")
    raw = datasets.load_digits()
    pixels = np.rint(raw.images[:, None] * (255 / 16)).astype(np.uint8)
    return labelled("digits", (pixels, raw.target.astype(np.int64)), tuple(map(str, raw.target_names)))


def idx(path: Path) -> Images:
    """A folder of idx files as MNIST is published, plain or .gz; its t10k files are the test split.

    Raises BadData where a file is missing, truncated, or does not belong to its labels.
    """
    pixels, found, tests = idx_folder(path)
    labels, classes = numbered(str(path), found.tolist())
    published = np.where(tests, 2, 0).astype(np.int8)
    return labelled(f"idx:{path.resolve().name}", (pixels, labels), classes, published)


def folder(path: Path) -> Images:
    """A folder with one folder of pictures per class, in the order of their names. Needs Pillow.

    Pictures of one size are taken as they are; of several, each is scaled until its shorter side is 256 (bicubic) and
    cut to the middle square, which `detail` says. Grey pictures stay grey where all are, transparent ones are laid on
    white.

    Raises BadData where there is no class with a picture, or a picture cannot be read or has values that are no bytes.
    """
    if not path.is_dir():
        raise BadData(f"{path}: no such folder; expected one folder of pictures per class")
    files = {
        one.name: sorted(file for file in one.rglob("*") if file.suffix.lower() in PICTURES)
        for one in sorted(path.iterdir())
        if one.is_dir() and not one.name.startswith(".")
    }
    files = {name: found for name, found in files.items() if found}
    if not files:
        raise BadData(f"{path}: expected one folder of pictures ({', '.join(sorted(PICTURES))}) per class, found none")
    pictures = [_picture(file) for found in files.values() for file in found]
    labels = np.repeat(np.arange(len(files)), [len(found) for found in files.values()]).astype(np.int64)
    pixels, detail = stacked(pictures)
    return replace(labelled(f"images:{path.resolve().name}", (pixels, labels), tuple(files)), detail=detail)


def as_labelled(images: Images, id2label: Mapping[int, str]) -> Images:
    """The same images with the labels that a model gives their classes.

    By name where the model knows every name; by number where it was saved without names (`LABEL_0`) and has as many.

    Raises:
        BadData: neither holds.
    """
    numbers = {label: number for number, label in id2label.items()}
    if all(name in numbers for name in images.classes):
        table = np.array([numbers[name] for name in images.classes], dtype=np.int64)
        classes = tuple(id2label[number] for number in sorted(id2label))
        return replace(images, labels=table[images.labels], classes=classes)
    unnamed = all(label == f"LABEL_{number}" for number, label in id2label.items())
    if unnamed and len(id2label) == len(images.classes):
        return images
    strange = [name for name in images.classes if name not in numbers]
    raise BadData(
        f"the model has {len(id2label)} classes ({_few(list(numbers))}), the images {len(images.classes)}; "
        f"the model does not know {_few(strange)}: name the folders of pictures as the model's id2label does"
    )


def labelled(
    name: str,
    data: tuple[NDArray[np.uint8], NDArray[np.int64]],
    classes: tuple[str, ...],
    published: NDArray[np.int8] | None = None,
) -> Images:
    """Pixels and labels in three splits by the rank of each image's hash, or as `published`: 0 train, 1 tune, 2 test.

    A published test split stays whole; where no image is for tuning, some of train are.
    """
    pixels, labels = data
    hashes = [sha256(image).digest() for image in np.ascontiguousarray(pixels)]
    total = sha256(repr((pixels.shape, classes)).encode())
    for each, label in zip(hashes, labels.tolist(), strict=True):
        total.update(each + label.to_bytes(4, "little"))
    if published is None:
        place = places(hashes, TRAIN, TUNE)
    else:
        total.update((published == 2).tobytes())
        place = published.copy()
        if (published == 1).any():
            total.update(published.tobytes())
        else:
            train = np.flatnonzero(published == 0)
            place[train] = places([hashes[i] for i in train.tolist()], TUNE_OF_TRAIN, 100)
    for array in (pixels, labels, place):
        array.setflags(write=False)
    return Images(name, pixels, labels, classes, place, total.hexdigest())


def stacked(pictures: Sequence[Any]) -> tuple[NDArray[np.uint8], str]:
    """Pillow's pictures as bytes [N, C, H, W], and what was done to those of several sizes; grey where all are."""
    mode = "L" if all(picture.mode in GREY for picture in pictures) else "RGB"
    several = len({picture.size for picture in pictures}) > 1
    arrays = [np.asarray((_square(picture) if several else picture).convert(mode)) for picture in pictures]
    pixels = np.stack([each[None] if each.ndim == 2 else each.transpose(2, 0, 1) for each in arrays])
    return pixels, f"several sizes: shorter side scaled to {SIDE}, middle square" if several else ""


def numbered(name: str, labels: Sequence[int]) -> tuple[NDArray[np.int64], tuple[str, ...]]:
    """Labels that have no names, and as many classes as there are numbers up to the largest.

    Raises BadData where that would be far more classes than occur: then they are no numbers of classes.
    """
    largest, occur = max(labels), len(set(labels))
    if largest >= SPARE + SPARES * occur:
        raise BadData(f"{name}: label {largest}, and {occur} different ones in all; expected numbers from 0 on")
    return np.array(labels, dtype=np.int64), tuple(map(str, range(largest + 1)))


def _picture(file: Path) -> Any:
    pillow = _package("PIL.Image", "pillow", "pictures")
    with readable(file), pillow.open(file) as picture:
        picture.load()
        return plain(picture, file)


@contextmanager
def readable(where: object) -> Generator[None, None, None]:
    """What goes wrong while a picture is read, as BadData about `where`: it is damaged, or too large to be one."""
    pillow = _package("PIL.Image", "pillow", "pictures")
    try:
        yield
    except BadData:
        raise
    except (OSError, ValueError, SyntaxError, pillow.DecompressionBombError) as error:
        raise BadData(f"{where}: cannot be read as a picture: {error}") from error


def plain(picture: Any, where: object) -> Any:
    """A picture of its own that is grey or RGB: no palette, no open file, on white where it is transparent.

    Raises BadData about `where` for what is no picture, or one whose values are no bytes.
    """
    mode = getattr(picture, "mode", None)
    if mode is None:
        raise BadData(f"{where}: found no picture; leave this one out")
    if mode not in MODES:
        raise BadData(
            f"{where}: its values are no bytes (Pillow's mode {mode}), and which of them is white it does not say; "
            "scale them to 0 ... 255 and save it as an 8-bit picture"
        )
    if mode in CLEAR or "transparency" in picture.info:
        return _on_white(picture)
    return picture.copy() if mode in GREY else picture.convert("RGB")


def _on_white(picture: Any) -> Any:
    mode = "LA" if picture.mode in (*GREY, "LA") else "RGBA"
    whole = picture.convert(mode)
    paper = _package("PIL.Image", "pillow", "pictures").new(CLEAR[mode], picture.size, "white")
    paper.paste(whole.convert(CLEAR[mode]), mask=whole.getchannel("A"))
    return paper


def _square(picture: Any) -> Any:
    width, height = picture.size
    scale = SIDE / min(width, height)
    wide, high = max(SIDE, round(width * scale)), max(SIDE, round(height * scale))
    left, top = (wide - SIDE) // 2, (high - SIDE) // 2
    return (
        picture.convert("L" if picture.mode in GREY else "RGB")
        .resize((wide, high), 3)
        .crop((left, top, left + SIDE, top + SIDE))
    )


def _package(module: str, package: str, what: str) -> Any:
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        raise ImportError(f"{what} need {package}, which is not installed: pip install {package}") from error


def _few(names: Sequence[str]) -> str:
    return ", ".join(names[:4]) + (" ..." if len(names) > 4 else "")
