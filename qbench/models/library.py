"""`transformers`, imported when it is needed and kept from talking."""

import logging
import os
from collections.abc import Generator
from contextlib import contextmanager
from types import ModuleType

from qbench.models.folder import MissingPackage


def transformers() -> ModuleType:
    """The library. Raises MissingPackage."""
    # It imports torchao where that is installed, which complains about libraries for GPUs that are not there.
    os.environ.setdefault("TORCHAO_FORCE_SKIP_LOADING_SO_FILES", "1")
    with _muted():
        try:
            import transformers
        except ImportError as error:
            raise MissingPackage("pretrained models need transformers: pip install 'qbench-suite[run]'") from error
    return transformers


@contextmanager
def quiet() -> Generator[None, None, None]:
    """No progress bars and no reports while a model loads: what they say comes back as errors of ours."""
    from transformers.utils import logging as library

    before, bars = library.get_verbosity(), library.is_progress_bar_enabled()
    library.set_verbosity_error()
    library.disable_progress_bar()
    try:
        with _muted():
            yield
    finally:
        library.set_verbosity(before)
        if bars:
            library.enable_progress_bar()


@contextmanager
def _muted() -> Generator[None, None, None]:
    """Without torch's and torchao's remarks about each other."""
    loggers = [logging.getLogger(name) for name in ("torch.utils._pytree", "torchao")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
