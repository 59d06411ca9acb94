"""Batches of labelled images to train a classifier on, in an order that only the seed decides."""

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from qbench.data.pixels import Recipe
from qbench.data.text import BadData
from qbench.data.vision import Images

Labelled = tuple[Tensor, Tensor]  # pixels float32 [B, C, H, W], labels int64 [B]


def standard(images: Images) -> Recipe:
    """Bytes to mean 0 and deviation 1 in each channel of the training split, from exact sums.

    Raises BadData where a channel is the same everywhere.
    """
    pixels = images.part("train").pixels
    means: list[float] = []
    deviations: list[float] = []
    for channel in range(pixels.shape[1]):
        counts = np.bincount(pixels[:, channel].ravel(), minlength=256)
        n, total, squares = (int((counts * np.arange(256) ** power).sum()) for power in (0, 1, 2))
        if n * squares == total**2:
            raise BadData(f"{images.name}: channel {channel} of all training images is {total // n}; there is no image")
        means.append(total / n / 255)
        deviations.append((n * squares - total**2) ** 0.5 / n / 255)
    return Recipe(pixels.shape[1], mean=tuple(means), std=tuple(deviations))


def image_batches(images: Images, recipe: Recipe, batch: int, steps: int, seed: int) -> Iterator[Labelled]:
    """`steps` batches of the training split, each image once before any comes again.

    The order depends on the seed alone: fewer steps are the first of more, and the global random state is neither read
    nor moved.

    Raises:
        BadData: there are no training images.
    """
    part = images.part("train")
    labels = torch.from_numpy(part.labels.copy())
    order = _order(len(part), seed)

    def one() -> Labelled:
        chosen = torch.tensor([next(order) for _ in range(batch)])
        return recipe.apply(part.pixels[chosen.numpy()]), labels[chosen]

    return (one() for _ in range(steps))


def _order(n: int, seed: int) -> Iterator[int]:
    generator = torch.Generator().manual_seed(seed)
    while True:
        yield from torch.randperm(n, generator=generator).tolist()
