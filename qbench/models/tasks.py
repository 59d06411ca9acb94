"""What a transformer reads and what it answers: tokens and the next one, or an image and its class.

Shape suffixes: B windows or images, T positions, D width, C channels, P pixels a side.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from qbench.models.spec import ModelSpec, Task


@dataclass(frozen=True, slots=True)
class Ends:
    """Both ends of a transformer.

    `shape` is that of its `embed`, `read` gives [B, T, D] of its inputs and `embed`, `pooled` what the head reads.
    """

    shape: Callable[[ModelSpec], tuple[int, int]]
    read: Callable[[Tensor, Tensor, ModelSpec], Tensor]
    pooled: Callable[[Tensor, ModelSpec], Tensor]


def _tokens(tokens_BT: Tensor, embed: Tensor, spec: ModelSpec) -> Tensor:
    if tokens_BT.shape[-1] > spec.context:
        raise ValueError(f"{tokens_BT.shape[-1]} tokens do not fit a context of {spec.context}")
    return F.embedding(tokens_BT, embed)


def _patches(pixels_BCPP: Tensor, embed: Tensor, spec: ModelSpec) -> Tensor:
    """Square patches row by row, each as one vector: channel, then row, then column. Source: arXiv 2010.11929."""
    expected = (spec.channels, spec.image, spec.image)
    if pixels_BCPP.shape[1:] != expected:
        raise ValueError(f"expected images {expected}, found {tuple(pixels_BCPP.shape[1:])}")
    return F.linear(F.unfold(pixels_BCPP, spec.patch, stride=spec.patch).mT, embed)


def _pooled(x_BTD: Tensor, spec: ModelSpec) -> Tensor:
    return x_BTD[:, 0] if spec.pooling == "class" else x_BTD.mean(1)


TASKS: Mapping[Task, Ends] = {
    "language": Ends(lambda spec: (spec.vocabulary, spec.width), _tokens, lambda x_BTD, spec: x_BTD),
    "vision": Ends(lambda spec: (spec.width, spec.channels * spec.patch**2), _patches, _pooled),
}


def class_token(spec: ModelSpec) -> nn.Parameter | None:
    """The vector that stands before the patches of an image and gathers its class; None where there is no such."""
    return nn.Parameter(torch.empty(spec.width)) if (spec.task, spec.pooling) == ("vision", "class") else None
