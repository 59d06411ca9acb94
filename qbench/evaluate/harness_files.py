"""The task files of the lm-evaluation-harness: found by name, their data found beside them, the library kept quiet."""

import logging
import os
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import yaml

from qbench.data.text import BadData
from qbench.models.folder import MissingPackage
from qbench.models.library import transformers
from qbench.names import UnknownName, suggestion

LEVEL = logging.ERROR  # what the harness says below this is about its own defaults
SHOWN = 20  # names in an error


def libraries() -> None:
    """Import the harness. Raises MissingPackage, with what to install."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # else it warns when a process is forked
    transformers()
    try:
        import lm_eval.models.huggingface as _  # noqa: F401
    except ModuleNotFoundError as error:
        raise MissingPackage(
            f"tasks need lm-eval with datasets and accelerate; {error.name} is not installed: "
            "pip install 'lm-eval>=0.4.13,<0.5' datasets accelerate"
        ) from error


def load_tasks(names: Sequence[str], include: Path | None, scratch: Path) -> Any:
    """What the harness's `TaskManager.load` gives for `names`; `scratch` takes the data sets it converts.

    Relative paths in a task's `data_files` are looked for beside the file that names them. The harness's own 14 000
    tasks, which take it ten seconds to list, are listed only when a name is not under `include`.

    Raises:
        UnknownName: no such task, group or tag.
        BadData: `include` is no folder, or data that a task names are missing.
    """
    from lm_eval.tasks import TaskManager

    if include is not None and not include.is_dir():
        raise BadData(f"{include}: no such folder; expected one with task files (*.yaml) of the lm-evaluation-harness")
    local = [] if include is None else [include.resolve()]
    found = TaskManager(include_path=[*local], include_defaults=False).task_index
    placed = _place_data(found, scratch)
    for defaults in (False, True):
        manager = TaskManager(include_path=[*local, *placed], include_defaults=defaults)
        every = manager.all_tasks
        if set(names) <= set(every):
            break
    else:
        missing = next(name for name in names if name not in every)
        own = len(every) - len(found)
        told = _what_is_there(include, found)
        raise UnknownName(f"no task {missing!r}{suggestion(missing, every)} the harness has {own} of its own{told}")
    try:
        return manager.load(list(names))
    except FileNotFoundError as error:
        raise BadData(f"the data of a task are missing: {error}; data_files lie beside the task's own file") from error


def _what_is_there(include: Path | None, found: Mapping[str, Any]) -> str:
    """The tasks under `include`, and the files that the harness passed over in silence."""
    if include is None:
        return ""
    read = {entry.yaml_path for entry in found.values()}
    passed = sorted(path.name for path in include.resolve().rglob("*.yaml") if path not in read)
    rest = f"; no task could be read from {', '.join(passed[:SHOWN])}" if passed else ""
    return f"; {include} has {', '.join(sorted(found)[:SHOWN]) or 'none'}{rest}"


def _place_data(index: Mapping[str, Any], scratch: Path) -> list[Path]:
    """Files in `scratch` that include the tasks' own and say where their data lie; the folder, where there are any."""
    written = 0
    for name, entry in index.items():
        given = (entry.cfg or {}).get("dataset_kwargs")
        if entry.yaml_path is None or not isinstance(given, dict) or "data_files" not in given:
            continue
        kwargs = cast(dict[str, Any], given)
        files = _beside(kwargs["data_files"], entry.yaml_path)
        amended = {
            "include": str(entry.yaml_path.resolve()),
            "task": name,
            "tag": None,  # the task's own file has registered it already
            "dataset_kwargs": {**kwargs, "data_files": files, "cache_dir": str(scratch / "data")},
        }
        (scratch / f"{written}.yaml").write_text(yaml.safe_dump(amended))
        written += 1
    return [scratch] if written else []


def _beside(files: Any, task: Path) -> Any:
    """`files`, one path, several, or several by split, as absolute paths."""
    if isinstance(files, Mapping):
        return {split: _beside(part, task) for split, part in cast(Mapping[str, Any], files).items()}
    if isinstance(files, list):
        return [_beside(part, task) for part in cast(list[Any], files)]
    if "://" in str(files):
        return files
    return str(task.resolve().parent / str(files))


@contextmanager
def quiet() -> Generator[None]:
    """No progress bars and no remarks of the harness; warnings and errors of everything else are shown as ever."""
    import datasets
    import lm_eval.api.model
    import lm_eval.api.task
    import lm_eval.models.huggingface

    modules: list[Any] = [lm_eval.api.model, lm_eval.api.task, lm_eval.models.huggingface]
    bars, shown = datasets.are_progress_bars_disabled(), [module.tqdm for module in modules]
    # The tokenizer warns of long texts, which the harness cuts into windows.
    loggers = [logging.getLogger(name) for name in ("lm_eval", "transformers.tokenization_utils_base")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(LEVEL)
    datasets.disable_progress_bars()
    for module in modules:
        module.tqdm = _no_bar
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
        for module, bar in zip(modules, shown, strict=True):
            module.tqdm = bar
        if not bars:
            datasets.enable_progress_bars()


def _no_bar(*arguments: Any, **named: Any) -> Any:
    from tqdm import tqdm

    return tqdm(*arguments, **{**named, "disable": True})
