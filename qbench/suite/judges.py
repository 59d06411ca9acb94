"""The judges: of texts, whole or with holes, and of images."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from qbench.data.passages import Windows
from qbench.data.pixels import Recipe
from qbench.data.vision import Images
from qbench.evaluate.classify import BATCH as IMAGES
from qbench.evaluate.classify import Classified, changes, classify
from qbench.evaluate.divergence import Divergence, Treatment, divergence, divergences
from qbench.evaluate.likelihood import Likelihood, bits_per_byte, likelihood, numerical_floor
from qbench.evaluate.masked import Masking, Reader
from qbench.evaluate.reference import Reference, references
from qbench.evaluate.sensitivity import CLASSES, NEXT_TOKEN, Scores
from qbench.evaluate.sensitivity import Judge as Scoring
from qbench.suite.judge import BATCH, OTHER_BATCH, Costs


@dataclass(frozen=True, slots=True, eq=False)
class Texts:
    """Judges a language model by how well it predicts windows of text, or with a `masking` what is hidden in them."""

    windows: Windows
    masking: Masking | None = None

    @property
    def digest(self) -> str:
        return self.windows.digest

    @property
    def scoring(self) -> Scoring:
        return NEXT_TOKEN if self.masking is None else Scoring(self._run, self._score)

    def plain(self, model: nn.Module) -> Costs:
        found = likelihood(self._reader(model), self.windows)
        values = {
            "loss": found.loss,
            "bits_per_byte": bits_per_byte(found.loss, self.windows.bytes_per_token),
            "error_rate": found.error_rate,
            "perplexity": float(np.exp(found.loss)),
        }
        return Costs(values, {"loss": found.losses, "error_rate": found.errors}, _slices(self.windows, found))

    def reference(self, model: nn.Module, path: Path | None = None) -> Reference:
        return references(self._reader(model), self.windows, path)

    def against(self, model: nn.Module, reference: Reference) -> Costs:
        return self._costs(divergence(self._reader(model), self.windows, reference))

    def together(self, model: nn.Module, treatments: Sequence[Treatment], reference: Reference) -> list[Costs]:
        """`against` under each treatment, for less; none may change the head."""
        every = divergences(self._reader(model), treatments, self.windows, reference)
        return [self._costs(found) for found in every]

    def _costs(self, found: Divergence) -> Costs:
        each = found.per_window()
        vectors = {**each, "error_rate": each["wrong"], "loss_increase": each["loss"] - each["reference_loss"]}
        names = list(dict.fromkeys(self.windows.slices))  # in the order of the records of slices
        vectors["slice"] = np.array([names.index(name) for name in self.windows.slices])
        slices = {**found.by_slice(), **{f"position:{name}": part for name, part in found.by_position().items()}}
        return Costs(found.values(), vectors, slices)

    def floor(self, model: nn.Module, plain: Costs | None = None) -> float:
        reader = self._reader(model)
        if plain is None:
            return numerical_floor(reader, self.windows, likelihood(reader, self.windows))
        return numerical_floor(reader, self.windows, Likelihood(plain.vectors["loss"], plain.vectors["error_rate"]))

    def inputs(self, n: int) -> list[Tensor]:
        parts = [part[:, :-1] for part in self.batches(n)]
        if self.masking is None:
            return parts
        return [part.masked_fill(self.masking.hidden(part), self.masking.mask) for part in parts]

    def batches(self, n: int) -> list[Tensor]:
        return list(_spread(self.windows.tokens, n).split(BATCH))

    def _reader(self, model: nn.Module) -> nn.Module:
        return model if self.masking is None else Reader(model, self.masking)

    def _run(self, model: nn.Module, windows: Tensor) -> Tensor:
        return self._reader(model)(windows[:, :-1])

    def _score(self, logits: Tensor, _clean: Tensor, windows: Tensor) -> Scores:
        """The mean loss of what is hidden in each window."""
        assert self.masking is not None
        asked = self.masking.hidden(windows[:, :-1])[:, 1:]
        wide = logits[:, :-1].to(torch.promote_types(logits.dtype, torch.float32))
        each = cross_entropy(wide.flatten(0, 1), windows[:, 1:-1].flatten(), reduction="none").view(asked.shape)
        return {"loss": (each.double() * asked).sum(1) / asked.sum(1)}


@dataclass(frozen=True, slots=True, eq=False)
class Pictures:
    """Judges an image classifier by the labels of images."""

    images: Images
    recipe: Recipe
    scoring: Scoring = CLASSES

    @property
    def digest(self) -> str:
        return self.images.digest

    def plain(self, model: nn.Module) -> Costs:
        return _costs(classify(model, self.images, self.recipe))

    def reference(self, model: nn.Module, path: Path | None = None) -> Classified:
        return classify(model, self.images, self.recipe)

    def against(self, model: nn.Module, reference: Classified) -> Costs:
        found = classify(model, self.images, self.recipe)
        plain, changed = _costs(found), changes(reference, found)
        increase = found.losses - reference.losses
        values = {**plain.values, "loss_increase": float(increase.mean()), **changed.values}
        return Costs(values, {**plain.vectors, "loss_increase": increase, **changed.vectors})

    def floor(self, model: nn.Module, plain: Costs | None = None) -> float:
        first = plain.vectors["loss"] if plain else classify(model, self.images, self.recipe, IMAGES).losses
        other = classify(model, self.images, self.recipe, OTHER_BATCH).losses
        return float(np.abs(first - other).max())

    def inputs(self, n: int) -> list[Tensor]:
        return [pixels for pixels, _ in self.batches(n)]

    def batches(self, n: int) -> list[tuple[Tensor, Tensor]]:
        n = min(n, len(self.images))
        pixels = self.recipe.apply(self.images.pixels[:n])
        return list(zip(pixels.split(IMAGES), torch.from_numpy(self.images.labels[:n]).split(IMAGES), strict=True))


def _costs(found: Classified) -> Costs:
    values = {"loss": found.loss, "error_rate": found.error_rate}
    return Costs(values, {"loss": found.losses, "error_rate": found.errors})


def _slices(windows: Windows, found: Likelihood) -> Mapping[str, Mapping[str, float]]:
    """The loss of each slice, where there are several."""
    labels = np.array(windows.slices, dtype=object)
    names = dict.fromkeys(windows.slices)
    if len(names) < 2:
        return {}
    return {
        name: {"loss": float(np.average(found.losses[labels == name], weights=windows.counts[labels == name]))}
        for name in names
    }


def _spread(rows: Tensor, n: int) -> Tensor:
    """`n` of the rows, evenly spaced; all where there are fewer."""
    return rows if n >= len(rows) else rows[torch.arange(n) * (len(rows) - 1) // max(n - 1, 1)]
