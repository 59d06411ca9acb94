"""Other people's quantizers, imported without their warnings, or the test skipped."""

import os
import warnings
from importlib import import_module
from types import ModuleType

import pytest


def library(name: str) -> ModuleType:
    """The module `name`; skips where it is not installed. What it warns of while it is imported is not our fault."""
    os.environ.setdefault("TORCHAO_FORCE_SKIP_LOADING_SO_FILES", "1")
    pytest.importorskip(name.partition(".")[0], exc_type=ImportError)
    return import_module(name)


with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    for root in ("torchao", "bitsandbytes"):
        os.environ.setdefault("TORCHAO_FORCE_SKIP_LOADING_SO_FILES", "1")
        try:
            import_module(root)
        except ImportError:
            continue
