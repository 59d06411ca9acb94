"""How well a model names images: loss and error of each, and what a changed model names differently."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import log_softmax

from qbench.data.pixels import Recipe
from qbench.data.vision import Images

Floats = NDArray[np.float64]
BATCH = 64  # images a forward pass


@dataclass(frozen=True, slots=True, eq=False)
class Classified:
    """The scored images, in order.

    `losses` float64 [N] nats per image, `errors` float64 [N] 0 or 1, `predictions` int64 [N], and
    `log_probabilities` float64 [N, classes].
    """

    losses: Floats
    errors: Floats
    predictions: NDArray[np.int64]
    log_probabilities: Floats
    labels: NDArray[np.int64]

    @property
    def loss(self) -> float:
        return float(self.losses.mean())

    @property
    def error_rate(self) -> float:
        return float(self.errors.mean())


@dataclass(frozen=True, slots=True, eq=False)
class Changes:
    """A changed model against its reference: means over images in `values`, one number per image in `vectors`.

    Names, signs and units are those of the comparison of language models, with an image in the place of a prediction.
    """

    values: Mapping[str, float]
    vectors: Mapping[str, Floats]


@torch.no_grad()
def classify(model: nn.Module, images: Images, recipe: Recipe, batch: int = BATCH) -> Classified:
    """Score `images`; `model` maps float32 [B, C, H, W] to logits [B, classes]. Probabilities are float64.

    Raises:
        ValueError: a label is not among the model's classes, or a logit is not finite.
    """
    device = next(model.parameters()).device
    parts: list[Tensor] = []
    for start in range(0, len(images), batch):
        pixels = recipe.apply(images.pixels[start : start + batch])
        parts.append(log_softmax(model(pixels.to(device)).double(), -1).cpu())
    logs = torch.cat(parts).numpy()
    strays = images.labels[(images.labels < 0) | (images.labels >= logs.shape[1])]  # -1 where nobody knows
    if len(strays):
        raise ValueError(f"an image has label {strays[0]}, the model only {logs.shape[1]} classes, counted from 0")
    if not np.isfinite(logs).all():
        raise ValueError(f"{(~np.isfinite(logs).all(1)).sum()} of {len(logs)} images have logits that are not finite")
    predictions = logs.argmax(1)
    losses = -logs[np.arange(len(logs)), images.labels]
    return Classified(losses, (predictions != images.labels).astype(np.float64), predictions, logs, images.labels)


def changes(reference: Classified, other: Classified) -> Changes:
    """What became of each image: divergences in nats, and answers that changed.

    `kld` is KL(reference || other), `kld/reverse` the other way; `flips` counts answers whose correctness changed, by
    direction in `flips/to_wrong` and `flips/to_right` (A. Dutta et al., arXiv 2407.09141); `top1_changed` answers that
    changed at all; `delta_p` the change of the probability of the right class.

    Raises:
        ValueError: the two were not scored on the same labels, or have other classes.
    """
    p, q = reference.log_probabilities, other.log_probabilities
    if p.shape != q.shape or not np.array_equal(reference.labels, other.labels):
        raise ValueError(f"expected the same images and classes; found {p.shape} and {q.shape}, or other labels")
    to_wrong, to_right = other.errors > reference.errors, other.errors < reference.errors
    vectors: dict[str, Floats] = {
        "kld": (np.exp(p) * (p - q)).sum(1),
        "kld/reverse": (np.exp(q) * (q - p)).sum(1),
        "top1_changed": (reference.predictions != other.predictions).astype(np.float64),
        "flips": (to_wrong | to_right).astype(np.float64),
        "flips/to_wrong": to_wrong.astype(np.float64),
        "flips/to_right": to_right.astype(np.float64),
        "delta_p": np.exp(-other.losses) - np.exp(-reference.losses),
    }
    values = {name: float(vector.mean()) for name, vector in vectors.items()}
    values["delta_p/rms"] = float(np.sqrt(np.square(vectors["delta_p"]).mean()))
    return Changes(values, vectors)
