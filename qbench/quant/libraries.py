"""torchao and bitsandbytes, imported when they are first needed and without the noise they are known for."""

import logging
import os
import warnings
from importlib import import_module
from importlib.util import find_spec
from types import ModuleType
from typing import Any

VERSIONS = {"torchao": "torchao>=0.18,<0.19", "bitsandbytes": "bitsandbytes>=0.50,<0.51"}

# What is known to be said by which logger and tells a reader nothing to act on; everything else is let through.
_NOISE = {
    "torchao": "Skipping import of cpp extensions due to TORCHAO_FORCE_SKIP_LOADING_SO_FILES",
    "torch.utils._pytree": "is an Enum subclass and is now natively supported",
    "bitsandbytes.backends.cpu.ops": "Failed to load CPU gemm_4bit_forward from kernels-community",
    # Said at every single forward pass; the row of the kernel says it once.
    "bitsandbytes.autograd._functions": "MatMul8bitLt: inputs will be cast from",
}


class MissingLibrary(ImportError):
    """A kernel or an optimizer was asked for whose library is not installed."""


def missing(library: str) -> str:
    """Why `library` cannot be used here, empty where it can; imports nothing.

    >>> missing("no_such_library")
    "no_such_library is not installed; pip install 'no_such_library'"
    """
    if find_spec(library) is not None:
        return ""
    return f"{library} is not installed; pip install '{VERSIONS.get(library, library)}'"


def load(module: str) -> Any:
    """The module of this dotted name; raises MissingLibrary, with the way to install it, where there is none."""
    if reason := missing(module.partition(".")[0]):
        raise MissingLibrary(reason)
    return _quietly(module)


def _quietly(module: str) -> ModuleType:
    if not import_module("torch").cuda.is_available():
        # Its CUDA extensions cannot load here; where they could, a failure is news and is not silenced.
        os.environ.setdefault("TORCHAO_FORCE_SKIP_LOADING_SO_FILES", "1")
    for name, text in _NOISE.items():
        logger = logging.getLogger(name)
        if not any(isinstance(known, _Without) for known in logger.filters):
            logger.addFilter(_Without(text))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"`torch\.jit\.script_method` is deprecated", DeprecationWarning)
        return import_module(module)


class _Without(logging.Filter):
    """Drops records that hold one text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.text = text

    def filter(self, record: logging.LogRecord) -> bool:
        return self.text not in record.getMessage()
