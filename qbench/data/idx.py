"""The idx files that MNIST is published in: a header of sizes, then bytes.

Format: Y. LeCun, C. Cortes, C. Burges, "The MNIST database of handwritten digits".
"""

import gzip
import zlib
from math import prod
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from qbench.data.text import BadData

UNSIGNED_BYTE = 8  # the third byte of an idx file: its type
MOST_SIZES = 3  # of images; labels have one


def idx_folder(folder: Path) -> tuple[NDArray[np.uint8], NDArray[np.int64], NDArray[np.bool_]]:
    """Pixels uint8 [N, 1, H, W], labels int64 [N], and which of them are test images, of the four files of MNIST.

    Raises:
        BadData: a file is missing or damaged, or images and labels do not belong together.
    """
    if not folder.is_dir():
        raise BadData(f"{folder}: no such folder; expected MNIST's four idx files in it")
    train, test = _pair(folder, "train"), _pair(folder, "t10k")
    if train[0].shape[1:] != test[0].shape[1:]:
        raise BadData(f"{folder}: training images are {train[0].shape[1:]}, test images {test[0].shape[1:]}")
    pixels, labels = (np.concatenate(parts) for parts in zip(train, test, strict=True))
    return pixels[:, None], labels.astype(np.int64), np.arange(len(labels)) >= len(train[1])


def read_idx(path: Path) -> NDArray[np.uint8]:
    """The array of bytes in one idx file, .gz or plain; BadData where it is damaged or holds another type."""
    try:
        data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (OSError, EOFError, zlib.error) as error:
        raise BadData(f"{path}: cannot be read: {error}") from error
    rank = data[3] if len(data) >= 4 else 0
    if data[:3] != bytes((0, 0, UNSIGNED_BYTE)) or not rank or len(data) < 4 + 4 * rank:
        raise BadData(
            f"{path}: not an idx file of bytes: it starts with {data[:4].hex(' ') or 'nothing'}, expected 00 00 08"
        )
    if rank > MOST_SIZES:
        raise BadData(f"{path}: its header has {rank} sizes; expected 3 of grey images, or 1 of labels")
    shape = tuple(int(size) for size in np.frombuffer(data, ">u4", rank, 4))
    found = len(data) - 4 - 4 * rank
    if found != prod(shape):
        raise BadData(f"{path}: its header promises {shape}, {prod(shape)} bytes; found {found}")
    if not found:
        raise BadData(f"{path}: its header promises {shape}: there is nothing in it")
    return np.frombuffer(data, np.uint8, offset=4 + 4 * rank).reshape(shape)


def _pair(folder: Path, split: str) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    images, labels = read_idx(_find(folder, split, "images", 3)), read_idx(_find(folder, split, "labels", 1))
    if images.ndim != 3 or labels.ndim != 1 or len(images) != len(labels) or not len(labels):
        raise BadData(
            f"{folder}: {split} images {images.shape} and labels {labels.shape} do not belong together; "
            "expected as many labels as images"
        )
    return images, labels


def _find(folder: Path, split: str, what: str, rank: int) -> Path:
    """The file, in one of the spellings that are about: `-` or `.` before `idx`, anything in front, .gz or not."""
    found = sorted(
        path
        for path in folder.iterdir()
        if path.name.removesuffix(".gz").replace(".idx", "-idx").endswith(f"{split}-{what}-idx{rank}-ubyte")
    )
    if not found:
        raise BadData(f"{folder}: expected {split}-{what}-idx{rank}-ubyte or its .gz, found none")
    return found[0]
