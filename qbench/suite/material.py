"""What the models of a suite learn from and are judged on: text, problems of a task, or images. No torch here."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import ClassVar, Protocol

import numpy as np

from qbench.data import catalog, vision
from qbench.data.catalog import Kind
from qbench.data.procedural import Task
from qbench.data.text import BadData, Corpus
from qbench.data.vision import Images
from qbench.models.spec import ModelSpec
from qbench.suite.fitting import misfit
from qbench.suite.value import TUNING_WINDOWS, Suite


class Material(Protocol):
    """One data set, in pieces.

    During a training `tuning()` pieces of the tune split are judged, and the first `watched` of them show the kurtosis
    of every site. `recorded` pieces go through a model at once where its tensors are looked at: the shape that
    per-tensor scales and crests belong to. `least` is what a model has learned that knows nothing but frequencies,
    `remedy` what helps where there are too few pieces.
    """

    remedy: ClassVar[str]
    watched: ClassVar[int]
    recorded: ClassVar[int]
    least: ClassVar[str]

    @property
    def name(self) -> str: ...
    @property
    def digest(self) -> str: ...
    def tuning(self) -> int: ...
    def pieces(self, spec: ModelSpec) -> str:
        """What the pieces are called that a model reads."""
        ...

    def available(self, split: str, spec: ModelSpec) -> int:
        """How many different ones of a split there are for a model."""
        ...

    def misfit(self, spec: ModelSpec) -> str:
        """Why a model cannot read it; empty where it can."""
        ...


@dataclass(frozen=True, slots=True)
class _OfCorpus:
    corpus: Corpus

    @property
    def name(self) -> str:
        return self.corpus.name

    @property
    def digest(self) -> str:
        return self.corpus.digest


@dataclass(frozen=True, slots=True)
class Text(_OfCorpus):
    """A corpus of bytes: a piece is a window of the model's context and the token after it."""

    remedy: ClassVar[str] = "give more text or a shorter context"
    watched: ClassVar[int] = 8
    recorded: ClassVar[int] = 16
    least: ClassVar[str] = "byte frequencies"

    def tuning(self) -> int:
        return TUNING_WINDOWS

    def pieces(self, spec: ModelSpec) -> str:
        return f"windows of {spec.context} tokens"

    def available(self, split: str, spec: ModelSpec) -> int:
        return max(0, len(getattr(self.corpus, split)) - spec.context)

    def misfit(self, spec: ModelSpec) -> str:
        largest = max(int(split.max()) for split in (self.corpus.train, self.corpus.tune, self.corpus.test))
        if largest < spec.vocabulary:
            return ""
        return f"it has byte {largest}, and the model a vocabulary of {spec.vocabulary}: set spec.vocabulary: 256"


@dataclass(frozen=True, slots=True)
class Problems(_OfCorpus):
    """A corpus of a procedural task: a piece is a whole problem, which the model's context must fit."""

    task: Task
    remedy: ClassVar[str] = "make more: sequences=N"
    watched: ClassVar[int] = 32
    recorded: ClassVar[int] = 16
    least: ClassVar[str] = "how frequent each token is"

    def tuning(self) -> int:
        return min(256, len(self.corpus.tune))

    def pieces(self, spec: ModelSpec) -> str:
        return "problems"

    def available(self, split: str, spec: ModelSpec) -> int:
        return len(getattr(self.corpus, split))

    def misfit(self, spec: ModelSpec) -> str:
        return ""  # the name has said it all


@dataclass(frozen=True, slots=True)
class Pictures:
    """Labelled images: a piece is one of them."""

    images: Images
    remedy: ClassVar[str] = "give more images"
    watched: ClassVar[int] = 32
    recorded: ClassVar[int] = 64
    least: ClassVar[str] = "how frequent each class is"

    @property
    def name(self) -> str:
        return self.images.name

    @property
    def digest(self) -> str:
        return self.images.digest

    def tuning(self) -> int:
        return min(512, self._count("tune"))

    def pieces(self, spec: ModelSpec) -> str:
        return "images"

    def available(self, split: str, spec: ModelSpec) -> int:
        return self._count(split)

    def misfit(self, spec: ModelSpec) -> str:
        """Square, of the model's size and colours, with as many classes as it names."""
        channels, height, width = self.images.pixels.shape[1:]
        if height != width:
            return f"its images are {height} x {width}; a vision model here reads square ones: cut or scale them"
        wanted = {"image": height, "channels": channels, "vocabulary": len(self.images.classes)}
        wrong = {key: value for key, value in wanted.items() if getattr(spec, key) != value}
        found = ", ".join(f"spec.{key}: {value} (found {getattr(spec, key)})" for key, value in wrong.items())
        return f"set {found}" if found else ""

    def _count(self, split: str) -> int:
        return int(np.count_nonzero(self.images.place == vision.SPLITS.index(split)))


_LOADS: Mapping[Kind, Callable[[str], Material]] = {
    "text": lambda name: Text(catalog.load(name)),
    "problems": lambda name: Problems(catalog.load(name), catalog.task(name)),
    "images": lambda name: Pictures(vision.load(name)),
}


def load(name: str) -> Material:
    """The data called `name`.

    Raises:
        UnknownName: there is no such name.
        BadData: the name is right, and what it stands for is not there, or damaged.
    """
    return _LOADS[catalog.kind(name)](name)


def digest(suite: Suite) -> str:
    """Of the data of a suite, empty where it trains nothing; raises what `expected` raises."""
    return expected(suite).digest if suite.arms else ""


def expected(suite: Suite) -> Material:
    """The data of a suite, which its models can read, and of which there is as much as is asked for.

    Raises BadData where not: better now than after the training.
    """
    material = load(suite.data)
    specs = {arm.name: arm.model for arm in suite.arms if isinstance(arm.model, ModelSpec)}
    for arm, spec in specs.items():
        if why := misfit(suite.data, spec) or material.misfit(spec):
            raise BadData(f"arm {arm!r} cannot read {material.name}: {why}")
    longest = max(specs.values(), key=lambda spec: spec.context)
    for what, n, split in [*_asked(suite), ("training", 1, "train"), ("training", max(1, material.tuning()), "tune")]:
        there = material.available(split, longest)
        if n > there:
            raise BadData(
                f"{what} wants {n} {material.pieces(longest)} from the {split} split of {suite.data_name}, which has "
                f"{there}; ask for fewer, or {material.remedy}"
            )
    return material


def _asked(suite: Suite) -> Iterator[tuple[str, int, str]]:
    """What is measured, on how many pieces of which split."""
    split = suite.evaluate.split
    yield "evaluate", suite.evaluate.windows, split
    yield from ((f"tensors of kind {t.kind}", t.windows, t.split) for t in suite.tensors if t.split)
    yield from (("noise", one.windows, split) for one in suite.noise)
    yield from (("flow", one.windows, split) for one in suite.flow)
    yield "adds", suite.adds, split
