"""What turns text and images into a pretrained model's inputs: its own tokenizer, its own image processor."""

import json
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qbench.models.fetch import fetch
from qbench.models.folder import BadModel, Folder, MissingPackage, look, tokenizer_digest
from qbench.models.library import quiet, transformers

if TYPE_CHECKING:
    from transformers import BaseImageProcessor, PreTrainedTokenizerFast


def tokenizer(source: str | Path | Folder, revision: str | None = None) -> "PreTrainedTokenizerFast":
    """The model's tokenizer, as tokenizer.json says where there is one.

    Raises:
        BadModel: no tokenizer, an unreadable one, or one with a token that the model does not know.
        MissingPackage: an older kind of tokenizer, which needs a package that is not installed.
    """
    folder = _folder(source, revision)
    if not tokenizer_digest(folder):
        raise BadModel(f"{folder.path}: no tokenizer.json, and no older tokenizer")
    made = _tokenizer(folder.path)
    largest = max(made.get_vocab().values(), default=-1)
    if folder.vocabulary is not None and largest >= folder.vocabulary:
        raise BadModel(
            f"{folder.path}: the tokenizer has a token {largest}, where the model knows {folder.vocabulary}; "
            "another model's tokenizer?"
        )
    return made


def image_processor(source: str | Path | Folder, revision: str | None = None) -> "BaseImageProcessor | None":
    """What resizes and scales images for the model; None where its folder has none. Raises as `tokenizer` does."""
    folder = _folder(source, revision)
    if not (folder.path / "preprocessor_config.json").is_file():
        return None
    if find_spec("PIL") is None:
        raise MissingPackage(f"{folder.path}: its image processor needs Pillow: pip install pillow")
    try:
        with quiet():
            # Always Pillow: torchvision resizes a little differently, and would make the numbers depend on the machine.
            return transformers().AutoImageProcessor.from_pretrained(
                folder.path, backend="pil", local_files_only=True, trust_remote_code=False
            )
    except (OSError, TypeError, ValueError) as error:
        raise BadModel(f"{folder.path / 'preprocessor_config.json'}: {str(error).splitlines()[0]}") from None


def _folder(source: str | Path | Folder, revision: str | None) -> Folder:
    return source if isinstance(source, Folder) else look(fetch(source, revision).path)


def _tokenizer(path: Path) -> Any:
    fast = path / "tokenizer.json"
    library = transformers()
    # The class named for the model's type may rebuild the tokenizer and drop what the file says.
    kind = library.PreTrainedTokenizerFast if fast.is_file() else library.AutoTokenizer
    try:
        if fast.is_file() and "model" not in json.loads(fast.read_bytes()):
            raise BadModel(f"{fast}: no tokenizer; expected the key model")
        with quiet():
            return kind.from_pretrained(path, local_files_only=True, trust_remote_code=False)
    except ImportError as error:
        raise MissingPackage(f"{path}: its tokenizer needs a package: {str(error).strip().splitlines()[0]}") from error
    except BadModel:
        raise
    except (KeyError, OSError, TypeError, ValueError) as error:
        raise BadModel(f"{path}: its tokenizer cannot be read: {str(error).splitlines()[0]}") from None
