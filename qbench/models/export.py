"""qbench's own models as folders that `transformers` loads, with the modelling files beside the weights."""

import json
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from safetensors.torch import load_file
from safetensors.torch import save as to_bytes

from qbench.models.folder import SINGLE, BadModel, Folder, look
from qbench.models.spec import SPELLED, ModelSpec, Task, described
from qbench.models.transformer import Transformer
from qbench.results.files import make_folder, write_whole

MODEL_TYPE = "qbench"
CONFIGURATION, LAYERS, MODELLING = "configuration_qbench", "layers_qbench", "modeling_qbench"
BYTES = 256
# What `transformers` loads a model of each task with.
_CLASSES: Mapping[Task, tuple[str, str]] = MappingProxyType(
    {
        "language": ("AutoModelForCausalLM", "QbenchForCausalLM"),
        "vision": ("AutoModelForImageClassification", "QbenchForImageClassification"),
    }
)


def export(model: Transformer, folder: Path) -> None:
    """Write config, weights, modelling files and, for a model of bytes, a tokenizer whose ids are the bytes.

    `AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)` then gives equal logits, to the bit;
    for a classifier of images it is `AutoModelForImageClassification`.
    The weights come last: an export that broke off is a folder without weights. Raises CannotWrite.
    """
    make_folder(folder)
    (folder / SINGLE).unlink(missing_ok=True)
    text = {"config.json": _config(model), "generation_config.json": {"use_cache": False}}
    if model.spec.task == "language" and model.spec.vocabulary == BYTES:
        text |= {"tokenizer.json": byte_tokenizer(), "tokenizer_config.json": _tokenizer_config(model.spec)}
    for name, table in text.items():
        write_whole(folder / name, (json.dumps(table, indent=2, sort_keys=True) + "\n").encode())
    for name in (CONFIGURATION, LAYERS, MODELLING):
        write_whole(folder / f"{name}.py", files("qbench.models").joinpath(f"{name}.py").read_bytes())
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    write_whole(folder / SINGLE, to_bytes(state, {"format": "pt"}))


def read(folder: Folder | Path) -> Transformer:
    """The model of an exported folder, on the CPU, in the type that it is stored in; none of its code is run.

    Raises BadModel where config and weights do not belong together.
    """
    folder = folder if isinstance(folder, Folder) else look(folder)
    try:
        model = Transformer(described(folder.config))
    except (KeyError, TypeError, ValueError) as error:
        raise BadModel(f"{folder.path / 'config.json'}: describes no model of ours: {error}") from None
    state = load_file(folder.path / SINGLE)
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        reason = "; ".join(line.strip() for line in str(error).splitlines()[1:2])
        raise BadModel(f"{folder.path}: config and weights do not belong together: {reason}") from None
    dtypes = {tensor.dtype for tensor in state.values()}
    return model.to(dtypes.pop() if len(dtypes) == 1 else torch.float32).eval()


def byte_tokenizer() -> dict[str, Any]:
    """tokenizer.json of a tokenizer that gives each byte of UTF-8 its own value as its id."""
    vocabulary = {letter: byte for byte, letter in enumerate(_letters())}
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [],
        "normalizer": None,
        "pre_tokenizer": level,
        "post_processor": None,
        "decoder": level,
        "model": {"type": "BPE", "vocab": vocabulary, "merges": []},
    }


def _letters() -> list[str]:
    """The printable letter that byte-level tokenizers write each byte as: GPT-2's table, in order of the bytes."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = iter(range(256, 512))
    return [chr(byte if byte in printable else next(others)) for byte in range(BYTES)]


def _config(model: Transformer) -> Mapping[str, Any]:
    dtype = str(model.embed.dtype).removeprefix("torch.")
    auto, ours = _CLASSES[model.spec.task]
    return {
        **{SPELLED.get(name, name): value for name, value in model.spec.stored().items()},
        "model_type": MODEL_TYPE,
        "architectures": [ours],
        "auto_map": {"AutoConfig": f"{CONFIGURATION}.QbenchConfig", auto: f"{MODELLING}.{ours}"},
        "dtype": dtype,
        "tie_word_embeddings": False,
        "use_cache": False,
    }


def _tokenizer_config(spec: ModelSpec) -> Mapping[str, Any]:
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": spec.context,
        "clean_up_tokenization_spaces": False,
    }
