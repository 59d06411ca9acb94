"""A model's folder looked at and not loaded: config, shards, tensors, digests. No torch here."""

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

from qbench.models.stored import BadModel, StoredTensor, header

__all__ = [
    "AUTO",
    "BadModel",
    "Folder",
    "MissingPackage",
    "StoredTensor",
    "Task",
    "layout",
    "look",
    "model_digest",
    "tokenizer_digest",
]

Task = Literal["causal-lm", "masked-lm", "image-classification"]
# The class of `transformers` that loads each task.
AUTO: Mapping[Task, str] = MappingProxyType(
    {
        "causal-lm": "AutoModelForCausalLM",
        "masked-lm": "AutoModelForMaskedLM",
        "image-classification": "AutoModelForImageClassification",
    }
)
# How the names of architectures end, by task: `architectures` of config.json.
_ENDINGS: Mapping[str, Task] = MappingProxyType(
    {
        "ForCausalLM": "causal-lm",
        "LMHeadModel": "causal-lm",
        "ForMaskedLM": "masked-lm",
        "ForImageClassification": "image-classification",
        "ForImageClassificationWithTeacher": "image-classification",
    }
)
_LAYERS = ("num_hidden_layers", "n_layer", "num_layers", "n_layers", "layers")
_VOCABULARY = ("vocab_size", "vocabulary")
_CONTEXT = ("max_position_embeddings", "n_positions", "max_seq_len", "seq_length", "n_ctx", "context")
# Their positions are counted from behind the padding token's number, so that many rows are never reached.
_OFFSET_POSITIONS = (
    "camembert",
    "data2vec-text",
    "longformer",
    "mpnet",
    "roberta",
    "roberta-prelayernorm",
    "xlm-roberta",
    "xlm-roberta-xl",
    "xmod",
)
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")
_TOKENIZERS = ("tokenizer.model", "spiece.model", "sentencepiece.bpe.model", "vocab.json", "vocab.txt", "merges.txt")
SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"


class MissingPackage(ImportError):
    """The model needs a package that is not installed; the line says which, and how to install it."""


@dataclass(frozen=True, slots=True)
class Folder:
    """A folder with a config and whole safetensors shards; nothing of it has been loaded."""

    path: Path
    config: Mapping[str, Any] = field(repr=False)
    shards: tuple[Path, ...]
    tensors: tuple[StoredTensor, ...] = field(repr=False)  # by name

    @property
    def model_type(self) -> str:
        return str(self.config.get("model_type", ""))

    @property
    def architectures(self) -> tuple[str, ...]:
        return tuple(self.config.get("architectures") or ())

    @property
    def task(self) -> Task | None:
        """What the first architecture's name says that the model is for; None where it says nothing known."""
        name = next(iter(self.architectures), "")
        return next((task for ending, task in _ENDINGS.items() if name.endswith(ending)), None)

    @property
    def layers(self) -> int | None:
        return _first(self.config, _LAYERS)

    @property
    def vocabulary(self) -> int | None:
        return _first(self.config, _VOCABULARY)

    @property
    def context(self) -> int | None:
        return context(self.config)

    @property
    def parameters(self) -> int:
        """Values that are stored: tied matrices once, packed codes by the integers that hold them."""
        return sum(tensor.values for tensor in self.tensors)

    @property
    def bytes(self) -> int:
        return sum(tensor.bytes for tensor in self.tensors)


def look(source: str | Path) -> Folder:
    """Read config.json and the shards' headers.

    Raises:
        BadModel: no such folder; a file is missing, unreadable, cut short or contradicts another; only pickles.
    """
    path = Path(source)
    if not path.is_dir():
        raise BadModel(f"{path}: no such folder; a model is a folder with config.json and safetensors files")
    if not (path / "config.json").is_file():
        merge = "; it holds an adapter: merge it into its base model first"
        raise BadModel(f"{path}: no config.json{merge if (path / 'adapter_config.json').is_file() else ''}")
    try:
        return _read(path)
    except OSError as error:
        raise BadModel(f"{error.filename or path}: cannot be read: {error.strerror or error}") from None


def layout(source: str | Path | Folder) -> Mapping[str, StoredTensor]:
    """Every tensor by its name: shard, type, shape, offsets. Raises what `look` raises."""
    folder = source if isinstance(source, Folder) else look(source)
    return MappingProxyType({tensor.name: tensor for tensor in folder.tensors})


def model_digest(folder: Folder) -> str:
    """SHA-256 over config.json and the shards: what `sha256sum config.json model*.safetensors | sha256sum` prints."""
    return _digest((folder.path / "config.json", *folder.shards))


def tokenizer_digest(folder: Folder | Path) -> str:
    """The same over tokenizer.json, or over the older files where there is none; "" where there is no tokenizer."""
    path = folder.path if isinstance(folder, Folder) else folder
    whole = path / "tokenizer.json"
    files = [whole] if whole.is_file() else [path / name for name in _TOKENIZERS if (path / name).is_file()]
    return _digest(files) if files else ""


def context(config: Mapping[str, Any]) -> int | None:
    """The longest window that the positions are made for; None where the config names no such length."""
    rows = _first(config, _CONTEXT)
    if rows is not None and config.get("model_type") in _OFFSET_POSITIONS:
        return rows - int(config.get("pad_token_id") or 0) - 1
    return rows


def _read(path: Path) -> Folder:
    config = _table(path / "config.json")
    shards = _shards(path, config)
    tensors = [tensor for shard in shards for tensor in header(shard)]
    _expect_unique(tensors)
    if (path / INDEX).is_file() and shards != (path / SINGLE,):
        _expect_indexed(path, {tensor.name: tensor.shard.name for tensor in tensors})
    return Folder(path, MappingProxyType(config), shards, tuple(sorted(tensors, key=lambda tensor: tensor.name)))


def _digest(files: Iterable[Path]) -> str:
    total = hashlib.sha256()
    for path in sorted(files, key=lambda path: path.name):
        with path.open("rb") as file:
            total.update(f"{hashlib.file_digest(file, 'sha256').hexdigest()}  {path.name}\n".encode())
    return total.hexdigest()


def _first(config: Mapping[str, Any], keys: Iterable[str]) -> int | None:
    """The first of `keys` that the config has, or that its part for text has."""
    parts = (config, config.get("text_config"))
    found = (part[key] for part in parts if isinstance(part, Mapping) for key in keys if key in part)
    return next((value for value in found if isinstance(value, int)), None)


def _table(path: Path) -> dict[str, Any]:
    try:
        read = json.loads(path.read_bytes())
    except ValueError as error:  # not JSON, or not UTF-8
        raise BadModel(f"{path}: not readable as JSON: {error}") from None
    if not isinstance(read, dict):
        raise BadModel(f"{path}: a {type(read).__name__}, expected a table")
    return read


def _shards(path: Path, config: Mapping[str, Any]) -> tuple[Path, ...]:
    """Which files hold the weights, by the order of preference of `transformers`: one file, then the index."""
    if (path / SINGLE).is_file():
        return (path / SINGLE,)
    if (path / INDEX).is_file():
        names = sorted(set(_weight_map(path).values()))
        if absent := [name for name in names if not (path / name).is_file()]:
            raise BadModel(
                f"{path}: {len(absent)} of {len(names)} shards that {INDEX} names are missing: {_few(absent)}"
            )
        return tuple(path / name for name in names)
    if found := sorted(file.name for file in path.glob("*.safetensors")):
        raise BadModel(f"{path}: neither {SINGLE} nor {INDEX}, which says what {_few(found)} holds")
    if pickles := sorted(file.name for pattern in _PICKLES for file in path.glob(pattern)):
        raise BadModel(
            f"{path}: {_few(pickles)} is a pickle, which can run code when it is read; convert it where you trust it: "
            f"{_conversion(path, config)}"
        )
    raise BadModel(f"{path}: no weights; expected {SINGLE}, or shards and {INDEX}")


def _conversion(path: Path, config: Mapping[str, Any]) -> str:
    auto = AUTO[Folder(path, config, (), ()).task or "causal-lm"]
    code = f"from transformers import {auto} as A; A.from_pretrained('{path}').save_pretrained('{path}')"
    return f'python -c "{code}"'


def _weight_map(path: Path) -> dict[str, str]:
    named = _table(path / INDEX).get("weight_map")
    if not isinstance(named, dict) or not named or not all(_is_file_name(shard) for shard in named.values()):
        raise BadModel(f"{path / INDEX}: no weight_map from names of tensors to files of this folder")
    return named


def _is_file_name(name: object) -> bool:
    """Whether it names a file of the folder itself: an index that comes from elsewhere may not point outside."""
    return isinstance(name, str) and Path(name).name == name


def _expect_unique(tensors: Iterable[StoredTensor]) -> None:
    shard_of: dict[str, Path] = {}
    for tensor in tensors:
        other = shard_of.setdefault(tensor.name, tensor.shard)
        if other != tensor.shard:
            raise BadModel(f"{tensor.shard}: {tensor.name} is in {other.name} too; expected each tensor in one shard")


def _expect_indexed(path: Path, shard_of: Mapping[str, str]) -> None:
    absent = [name for name, shard in _weight_map(path).items() if shard_of.get(name) != shard]
    if absent:
        raise BadModel(f"{path / INDEX}: {len(absent)} tensors are not in the shards that it names: {_few(absent)}")


def _few(names: list[str]) -> str:
    """The first three."""
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
