"""A model from elsewhere, loaded, with its judge: what the cells of one arm are answered with."""

import json
from array import array
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from qbench.capture.calibrate import calibrate
from qbench.capture.place import Matrix, Place
from qbench.capture.places import matrices, places, select, unnamed
from qbench.capture.write import quantized
from qbench.data import vision
from qbench.data.documents import documents
from qbench.data.passages import Cut, Offsets, Windows, overlap, passages
from qbench.data.pixels import recipe
from qbench.data.text import BadData
from qbench.evaluate.masked import ask, masking_of
from qbench.evaluate.reference import Reference
from qbench.evaluate.reference import load as load_reference
from qbench.models.finished import finished
from qbench.models.folder import BadModel, layout, look
from qbench.models.hub import LoadOptions, load
from qbench.models.inputs import tokenizer
from qbench.quant.catalog import quantizer_spec
from qbench.quant.quantizer import Quantizer, build
from qbench.quant.smooth import Calibration
from qbench.stats.looks import added
from qbench.suite.answer import CHANNEL_AXIS
from qbench.suite.cells import Cell, Measurement
from qbench.suite.expand import needs_data
from qbench.suite.judge import Judge
from qbench.suite.judges import Pictures, Texts
from qbench.suite.specimen import Assignment


@dataclass(frozen=True, slots=True)
class Machine:
    """Where models are loaded, and whether the code that comes with them may run."""

    device: str
    trust_remote_code: bool = False


@dataclass(frozen=True, slots=True)
class Source:
    """Where a model is, and what it is for."""

    folder: str
    task: str


class Subject:
    """The model of a cell; everything that is costly is made when it is first asked for, and kept."""

    def __init__(self, cell: Cell, machine: Machine) -> None:
        self.cell, self.machine = cell, machine
        self._calibrations: dict[tuple[str, str], Mapping[str, Calibration]] = {}
        self._judges: dict[tuple[str, int, str], Judge] = {}

    @property
    def source(self) -> Source:
        return Source(self.cell.sources["model"], str(self.cell.model["task"]))

    @cached_property
    def model(self) -> nn.Module:
        return self.fresh()

    def fresh(self) -> nn.Module:
        """Another copy of the model, loaded from its files."""
        return loaded(self.cell, self.cell.sources["model"], self.machine)

    @cached_property
    def places(self) -> Mapping[str, Place]:
        return places(self.model)

    @cached_property
    def matrices(self) -> Mapping[str, Matrix]:
        return matrices(self.model)

    @property
    def warnings(self) -> tuple[str, ...]:
        """What a reader must know of the model as it was loaded."""
        said = (unnamed(self.model), getattr(self.model, "undivided", ""))
        return tuple(filter(None, said))

    @contextmanager
    def as_shipped(self) -> Generator[None, None, None]:
        """While open, a checkpoint quantized elsewhere has its inputs quantized too, where its format says how.

        Scales that are stored with it are not applied; `suite.contents` warns of them.
        """
        folder = look(self.source.folder)
        packed = finished(folder.config, layout(folder))
        chosen: dict[str, tuple[Place, Quantizer]] = {}
        for group in packed.groups if packed else ():
            if group.activations and " " not in group.activations:
                quantizer = build(group.activations)
                chosen |= {name: (self._input(name.removesuffix(".weight")), quantizer) for name in group.weights}
        with quantized(chosen, {}):
            yield

    def _input(self, module: str) -> Place:
        """What a linear layer reads, by its name in the checkpoint."""
        inner: Any = getattr(self.model, "hf", self.model)
        return Place(inner.get_submodule(module), "input", "input")

    def judge(self, measurement: Measurement) -> Judge:
        """What the model is judged on."""
        saved = self._saved
        if saved is not None:
            return Texts(saved.windows)
        return self._judge(self.cell.data, measurement.windows, measurement.passage)

    def _judge(self, data: str, n: int, passage: Mapping[str, Any]) -> Judge:
        key = (data, n, json.dumps(passage, sort_keys=True))
        if key not in self._judges:
            self._judges[key] = judge(self.source, data, n, passage, self._words)
        return self._judges[key]

    @cached_property
    def _words(self) -> "Words | None":
        """The model's tokenizer; None for what sees images."""
        return None if self.source.task == "image-classification" else Words(tokenizer(self.source.folder))

    @cached_property
    def _saved(self) -> Reference | None:
        """A reference that was saved, with its windows."""
        source = self.cell.sources.get("reference", "")
        return load_reference(Path(source)) if Path(source).is_file() else None

    def reference(self, judge: Judge) -> Any:
        """What the model, or the one that it is compared with, says of the judge's data.

        The model that it is compared with is gone again before this one is loaded.
        """
        source = self.cell.sources.get("reference", "")
        if self._saved is not None:
            return self._saved
        return judge.reference(loaded(self.cell, source, self.machine) if source else self.model)

    def resolve(self, pattern: str, kind: str) -> tuple[str, ...]:
        return select(self.model, kind, pattern)  # pyright: ignore[reportArgumentType]

    def assignment(self, measurement: Measurement) -> Assignment:
        """A treatment's patterns as places and matrices of this model, each with its quantizer."""
        at: dict[str, tuple[Place, Quantizer]] = {}
        of: dict[str, tuple[Matrix, Quantizer]] = {}
        assert measurement.treatment is not None
        for key, name in measurement.treatment.assign.items():
            kind, _, pattern = key.partition(":")
            sites = self.resolve(pattern, kind)
            fitted = self.fitted(measurement, sites, name) if kind == "activation" else {}
            plain = build(name, channel_axis=CHANNEL_AXIS.get(kind, -1))
            for site in sites:
                if kind == "weight":
                    of[site] = (self.matrices[site], plain)
                else:
                    at[site] = (self.places[site], fitted.get(site, plain))
        return at, of

    def fitted(self, measurement: Measurement, sites: Sequence[str], name: str) -> Mapping[str, Quantizer]:
        """The quantizer `name` at each site, as calibration data make it; empty where there are none."""
        asked = measurement.options.get("calibration")
        if asked is None or not needs_data(name):
            return {}
        key = (name, "\0".join(sites))
        if key not in self._calibrations:
            spec = quantizer_spec(name)
            chosen = {site: self.places[site] for site in sites}
            batches = self._calibration(asked, measurement)
            self._calibrations[key] = calibrate(self.model, chosen, batches, dict.fromkeys(sites, spec))
        return {site: build(name, calibration=found) for site, found in self._calibrations[key].items()}

    def _calibration(self, asked: Mapping[str, Any], measurement: Measurement) -> list[Tensor]:
        """Batches of the calibration data; BadData where they are part of what the model is judged on."""
        windows = int(asked["windows"])
        seen = self._judge(self.cell.sources["calibration"], windows, measurement.passage)
        judged = self.judge(measurement)
        if isinstance(seen, Texts) and isinstance(judged, Texts) and not asked.get("overlap"):
            _expect_apart(seen.windows, judged.windows)
        return [part.to(self.machine.device) for part in seen.inputs(windows)]


def loaded(cell: Cell, source: str, machine: Machine) -> nn.Module:
    """The model in a folder, as the cell wants it."""
    device_map = cell.sources.get("device_map")
    options = LoadOptions(
        dtype=cell.model["dtype"],
        attention=None if cell.model["attention"] == "default" else cell.model["attention"],
        device_map=device_map,
        trust_remote_code=machine.trust_remote_code,
    )
    model = load(source, options)
    return model.eval() if device_map else model.to(machine.device).eval()


class Words:
    """A tokenizer that reads each text once, for all windows that are cut from it."""

    def __init__(self, reader: Any) -> None:
        self.reader = reader
        self._known: dict[str, tuple[array[int], array[int], array[int]]] = {}

    def encode(self, text: str) -> Sequence[int]:
        return self._read(text)[0]

    @property
    def offsets(self) -> Offsets | None:
        return self._offsets if self.reader.is_fast else None

    def _offsets(self, text: str) -> Sequence[tuple[int, int]]:
        return list(zip(*self._read(text)[1:], strict=True))

    def _read(self, text: str) -> tuple["array[int]", "array[int]", "array[int]"]:
        if text not in self._known:
            fast = self.reader.is_fast
            read = self.reader(text, add_special_tokens=False, return_offsets_mapping=fast, verbose=False)
            starts, ends = zip(*read.offset_mapping, strict=True) if fast and read.input_ids else ((), ())
            self._known[text] = (array("q", read.input_ids), array("q", starts), array("q", ends))
        return self._known[text]


def judge(source: Source, data: str, n: int, passage: Mapping[str, Any], words: Words | None = None) -> Judge:
    """`n` windows or images of `data`, as a model reads them, with the model's own `words` where they are at hand.

    Where the passage plans several looks, those that its look adds.

    Raises BadData where there are not so many, or a text is shorter than a window; BadModel for a model without a
    tokenizer, or without what `bos` asks for.
    """
    folder = source.folder
    looks = passage.get("looks")
    chosen = added(looks, int(passage["look"])) if looks else None
    n = int(looks[-1]) if looks else n
    if source.task == "image-classification":
        config, images = look(folder).config, vision.load(data)
        if names := config.get("id2label"):
            images = vision.as_labelled(images, {int(number): str(name) for number, name in names.items()})
        part = images.part(_split(images), n)
        return Pictures(part if chosen is None else part.only(chosen), recipe(config, _processor(Path(folder))))
    words = words or Words(tokenizer(folder))
    cut = Cut(int(passage["context"]), n, passage.get("stride"), _bos(words.reader, str(passage["bos"])))
    windows = passages(documents(data), words.encode, cut, words.offsets)
    windows = windows if chosen is None else windows.only(chosen)
    if source.task == "causal-lm":
        return Texts(windows)
    masking = masking_of(words.reader)
    return Texts(ask(windows, masking), masking)


def _processor(folder: Path) -> Mapping[str, Any] | None:
    """What its preprocessor_config.json says; None where there is none."""
    file = folder / "preprocessor_config.json"
    try:
        return json.loads(file.read_bytes()) if file.is_file() else None
    except ValueError as error:
        raise BadModel(f"{file}: not readable as JSON: {error}") from None


def _split(images: vision.Images) -> vision.Split:
    """The part that nobody trains on."""
    return "test" if (images.place == 2).any() else "all"


def _bos(reader: Any, wanted: str) -> int | None:
    """The token that begins a text; None for none."""
    if wanted == "never":
        return None
    token = reader.bos_token_id if reader.bos_token_id is not None else reader.cls_token_id
    if wanted == "always":
        if token is None:
            raise BadModel("bos: always, and the tokenizer has no token that begins a text; expected auto or never")
        return token
    first = reader("a").input_ids[:1]
    return token if first == [token] else None


def _expect_apart(seen: Windows, judged: Windows) -> None:
    if common := overlap(seen, judged):
        raise BadData(
            f"{common} of {len(seen)} calibration windows share text with what the model is judged on; give other "
            "calibration data, or say calibration: {overlap: true} and know that the numbers flatter"
        )
