"""The readers: of text, of problems, of images."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from qbench.data.exact import targets, with_targets
from qbench.data.pictures import image_batches, standard
from qbench.data.pixels import Recipe
from qbench.data.procedural import Rows
from qbench.data.text import unigram_entropy
from qbench.data.vision import Images
from qbench.data.windows import evaluation_windows, training_batches
from qbench.evaluate.likelihood import Likelihood, arithmetic_floor, bits_per_byte, largest, likelihood, numerical_floor
from qbench.evaluate.problems import PROBLEMS, solve
from qbench.evaluate.sensitivity import CLASSES, NEXT_TOKEN
from qbench.evaluate.sensitivity import Judge as Scoring
from qbench.models.spec import ModelSpec
from qbench.suite.material import Material, Pictures, Problems, Text
from qbench.suite.reader import Floats, Reader, Scored
from qbench.train.spec import TrainingSpec
from qbench.train.trainer import Batch

IMAGES = 64  # of a forward pass


@dataclass(frozen=True, eq=False)
class TextReader:
    """Predicts the next byte of windows [N, T + 1]."""

    material: Text
    spec: ModelSpec
    scoring: Scoring = NEXT_TOKEN
    bounded: ClassVar[tuple[str, ...]] = ("loss",)

    def lessons(self, training: TrainingSpec, seed: int) -> Iterator[Batch]:
        corpus = self.material.corpus
        return training_batches(corpus.train, self.spec.context, training.batch, training.steps, seed)

    def chance(self) -> float:
        return unigram_entropy(self.material.corpus.train)

    def known(self) -> Mapping[str, float]:
        return {"unigram_entropy": unigram_entropy(self.material.corpus.tune)}

    def examples(self, split: str, n: int) -> Tensor:
        return evaluation_windows(getattr(self.material.corpus, split), self.spec.context, n)

    def score(self, model: nn.Module, examples: Tensor) -> Scored:
        found = likelihood(model, examples)
        return Scored({"loss": found.losses, "error_rate": found.errors})

    def floor(self, model: nn.Module, examples: Tensor, scored: Scored) -> float:
        return numerical_floor(model, examples, Likelihood(scored.losses, scored.vectors["error_rate"]))

    def derived(self, loss: float) -> Mapping[str, float]:
        return {"bits_per_byte": bits_per_byte(loss)}

    def watched(self) -> Tensor:
        return self.examples("tune", self.material.tuning())[: self.material.watched, :-1]

    def batches(self, split: str, n: int) -> list[Batch]:
        return list(self.examples(split, n).split(self.material.recorded))


@dataclass(frozen=True, eq=False)
class ProblemReader:
    """Predicts what a task asks of its problems [N, T + 1]."""

    material: Problems
    spec: ModelSpec
    scoring: Scoring = PROBLEMS
    bounded: ClassVar[tuple[str, ...]] = ("loss", "error_rate", "error_rate/exact", "error_rate/problem")

    def lessons(self, training: TrainingSpec, seed: int) -> Iterator[Batch]:
        rows = self.material.corpus.train
        every = training_batches(rows, self.spec.context, training.batch, training.steps, seed)
        return with_targets(self.material.task, every)

    def chance(self) -> float:
        return self._entropy(self.material.corpus.train)

    def known(self) -> Mapping[str, float]:
        rows: Any = self.material.corpus.tune
        return {"unigram_entropy": self._entropy(rows), "loss/least": float(self.material.task.floor(rows).mean())}

    def examples(self, split: str, n: int) -> Tensor:
        return evaluation_windows(getattr(self.material.corpus, split), self.spec.context, n)

    def score(self, model: nn.Module, examples: Tensor) -> Scored:
        found = solve(model, examples, self.material.task)
        parts = (found.losses, found.errors, found.wrong, found.unsolved)
        return Scored(dict(zip(self.bounded, parts, strict=True)))

    def floor(self, model: nn.Module, examples: Tensor, scored: Scored) -> float:
        def losses(other: nn.Module, batch: int) -> Floats:
            return solve(other, examples, self.material.task, batch).losses

        return arithmetic_floor(model, losses, scored.losses)

    def derived(self, loss: float) -> Mapping[str, float]:
        return {}

    def watched(self) -> Tensor:
        return self.examples("tune", min(self.material.watched, self.material.tuning()))[:, :-1]

    def batches(self, split: str, n: int) -> list[Batch]:
        parts = self.examples(split, n).split(self.material.recorded)
        return [(part[:, :-1], targets(self.material.task, part)) for part in parts]

    def _entropy(self, rows: Any) -> float:
        """Of the tokens that a loss is about."""
        given: Rows = rows
        return unigram_entropy(given[:, 1:][self.material.task.learned(given)])


@dataclass(frozen=True, eq=False)
class PictureReader:
    """Names the class of images, which it sees with mean 0 and deviation 1 of the training split."""

    material: Pictures
    spec: ModelSpec
    scoring: Scoring = CLASSES
    bounded: ClassVar[tuple[str, ...]] = ("loss", "error_rate")

    @cached_property
    def recipe(self) -> Recipe:
        return standard(self.material.images)

    def lessons(self, training: TrainingSpec, seed: int) -> Iterator[Batch]:
        return image_batches(self.material.images, self.recipe, training.batch, training.steps, seed)

    def chance(self) -> float:
        return unigram_entropy(self.material.images.part("train").labels)

    def known(self) -> Mapping[str, float]:
        return {"unigram_entropy": unigram_entropy(self.material.images.part("tune").labels)}

    def examples(self, split: Any, n: int) -> Images:
        return self.material.images.part(split, n)

    def score(self, model: nn.Module, examples: Images) -> Scored:
        return Scored(self._score(model, examples, IMAGES))

    def floor(self, model: nn.Module, examples: Images, scored: Scored) -> float:
        def losses(other: nn.Module, batch: int) -> Floats:
            return self._score(other, examples, batch)["loss"]

        return arithmetic_floor(model, losses, scored.losses)

    def derived(self, loss: float) -> Mapping[str, float]:
        return {}

    def watched(self) -> Tensor:
        part = self.examples("tune", min(self.material.watched, self.material.tuning()))
        return self.recipe.apply(part.pixels)

    def batches(self, split: str, n: int) -> list[Batch]:
        part = self.examples(split, n)
        pixels, labels = self.recipe.apply(part.pixels), torch.from_numpy(part.labels.copy())
        return list(zip(*(every.split(self.material.recorded) for every in (pixels, labels)), strict=True))

    @torch.no_grad()
    def _score(self, model: nn.Module, images: Images, batch: int) -> dict[str, Floats]:
        like = next(model.parameters())
        losses: list[Tensor] = []
        wrong: list[Tensor] = []
        for start in range(0, len(images), batch):
            pixels = self.recipe.apply(images.pixels[start : start + batch])
            labels = torch.from_numpy(images.labels[start : start + batch].copy()).to(like.device)
            logits = model(pixels.to(like.device, torch.promote_types(pixels.dtype, like.dtype)))
            losses.append(cross_entropy(logits.double(), labels, reduction="none").cpu())
            wrong.append((largest(logits) != labels).double().cpu())
        return {"loss": torch.cat(losses).numpy(), "error_rate": torch.cat(wrong).numpy()}


_READERS: Mapping[type[Any], Callable[[Any, ModelSpec], Reader]] = {
    Text: TextReader,
    Problems: ProblemReader,
    Pictures: PictureReader,
}


def reader(material: Material, spec: ModelSpec) -> Reader:
    """How a model of `spec` reads the data."""
    return _READERS[type(material)](material, spec)
