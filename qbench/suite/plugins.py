"""Catalog rows from outside: a Python file with `QUANTIZERS`, `MODELS` or `SOURCES`, as the catalogs have them."""

import hashlib
import importlib.util
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, cast

from qbench.data import catalog as data
from qbench.models import catalog as models
from qbench.quant import catalog as quant


class BadPlugin(ValueError):
    """A plugin file is missing, does not run, or brings nothing that a catalog takes."""


Add = Callable[[str, Any], None]
TABLES: Mapping[str, Add] = {"QUANTIZERS": quant.add, "MODELS": models.add, "SOURCES": data.add}


def install(files: Sequence[Path]) -> None:
    """Run each file and add its rows. It is the user's own code, run because the user named it.

    Raises BadPlugin; a row never replaces one that is there.
    """
    for number, file in enumerate(files):
        module = _load(file, f"qbench_plugin_{number}")
        tables = {name: getattr(module, name) for name in TABLES if hasattr(module, name)}
        if not tables:
            raise BadPlugin(f"{file}: defines none of {', '.join(TABLES)}, so it adds nothing")
        for table, rows in tables.items():
            if not isinstance(rows, Mapping):
                raise BadPlugin(f"{file}: {table} maps names to rows, found a {type(rows).__name__}")
            for name, row in cast(Mapping[Any, Any], rows).items():
                _add(file, table, name, row)


def digest(files: Sequence[Path]) -> str:
    """What the plugins are, for cell ids: equal files, equal digest; empty without plugins."""
    if not files:
        return ""
    total = hashlib.sha256()
    for file in files:
        total.update(hashlib.sha256(_content(file)).digest())
    return total.hexdigest()


def _add(file: Path, table: str, name: Any, row: Any) -> None:
    if not isinstance(name, str):
        raise BadPlugin(f"{file}: {table}[{name!r}]: a name is text")
    try:
        TABLES[table](name, row)
    except (TypeError, ValueError) as error:
        raise BadPlugin(f"{file}: {table}[{name!r}]: {error}") from error


def _content(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise BadPlugin(f"{file}: {error.strerror}") from error


def _load(file: Path, name: str) -> ModuleType:
    _content(file)
    spec = importlib.util.spec_from_file_location(name, file)
    if spec is None or spec.loader is None:
        raise BadPlugin(f"{file}: expected a Python file, FILE.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # where dataclasses look up what their annotations mean
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:  # whatever the user's code raises is a fault of the plugin
        raise BadPlugin(f"{file}: {type(error).__name__}: {error}") from error
    return module
