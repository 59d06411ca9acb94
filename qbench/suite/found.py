"""Models from elsewhere, found and identified: which folder, which digest, which weights. No torch here."""

from collections.abc import Mapping
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path, PurePath
from typing import Any

from safetensors import SafetensorError, safe_open

from qbench.capture.stored import entries
from qbench.data import vision
from qbench.data.catalog import SOURCES, split
from qbench.data.documents import digest, documents
from qbench.models.fetch import fetch
from qbench.models.finished import finished
from qbench.models.folder import AUTO, BadModel, Folder, layout, look, model_digest, tokenizer_digest
from qbench.suite.cells import Found
from qbench.suite.value import PRETRAINED, Arm, Pretrained, Suite
from qbench.train.spec import FROM_LIBRARIES

LIBRARIES = ("transformers", "torchao", "bitsandbytes", "lm_eval", *FROM_LIBRARIES.values())


def find(suite: Suite) -> dict[str, Found]:
    """Every arm from elsewhere, by name; a model on the hub is fetched first.

    Raises BadModel for a model that cannot be read, or two whose tokenizers do not go together.
    """
    found = {arm.name: found_model(arm.model) for arm in suite.arms if isinstance(arm.model, Pretrained)}
    for arm in suite.arms:
        if arm.reference:
            base = found[arm.reference].model if arm.reference in found else saved(Path(arm.reference))
            found[arm.name] = _compared(found[arm.name], base, arm)
    if suite.evaluate.windows:
        _expect_fit(suite, found)
    return found


def _expect_fit(suite: Suite, found: Mapping[str, Found]) -> None:
    """Raises BadModel unless image classifiers are judged on images, and language models on texts."""
    has = "images" if is_images(suite.data) else "text"
    for name, one in found.items():
        wants = _reads(one.model)
        if wants != has and "reference_windows" not in one.model:
            example = "digits or images:FOLDER" if wants == "images" else "text:FILE"
            raise BadModel(f"{name} reads {wants}, and {suite.data_name} is {has}; give it data such as {example}")


def _reads(model: Mapping[str, Any]) -> str:
    """What a model reads; a saved reference, which names no task, is of text."""
    return "images" if model.get("task") == "image-classification" else "text"


def _compared(candidate: Found, base: Mapping[str, Any], arm: Arm) -> Found:
    """The candidate, with what it is compared with."""
    if _reads(candidate.model) != _reads(base):
        raise BadModel(
            f"{arm.name} reads {_reads(candidate.model)}, and its reference reads {_reads(base)}: there is nothing "
            "to compare"
        )
    if _reads(base) == "text" and not candidate.model["tokenizer"]:
        raise BadModel(
            f"{arm.name} has no tokenizer beside its weights; copy its base's tokenizer.json into the folder"
        )
    if base["tokenizer"] != candidate.model["tokenizer"]:
        raise BadModel(
            f"{arm.name} and its reference have different tokenizers: the same number is another word, so there is "
            "nothing to compare"
        )
    windows = {"reference_windows": base["windows_digest"]} if "windows_digest" in base else {}
    reference = {"reference_model_digest": base["digest"], **windows}
    return replace(candidate, model={**candidate.model, **reference})


def saved(path: Path) -> dict[str, Any]:
    """What a saved reference says about itself; BadModel where it is none."""
    try:
        with safe_open(path, framework="np") as file:
            said = dict(file.metadata() or {})
        return {"digest": said["model"], "tokenizer": said["tokenizer"], "windows_digest": said["windows_digest"]}
    except (OSError, SafetensorError, KeyError) as error:
        raise BadModel(f"{path}: no saved reference ({error}); qbench reference save writes one") from None


def found_model(given: Pretrained) -> Found:
    """One model, with what a cell keeps of it: everything that its numbers depend on, and nobody's paths."""
    fetched = fetch(given.source, given.revision or None)
    folder = look(fetched.path)
    if folder.task is None:
        names = ", ".join(folder.architectures) or "nothing"
        raise BadModel(f"{folder.path}: made for {names}; expected one for {', '.join(AUTO)}")
    quantized = finished(folder.config, layout(folder))
    kept: dict[str, Any] = {
        "arch": PRETRAINED,
        "name": PurePath(given.source).name if given.local else given.source,
        "digest": model_digest(folder),
        "tokenizer": tokenizer_digest(folder),
        "model_type": folder.model_type,
        "task": folder.task,
        "layers": folder.layers or 0,
        "context": folder.context or 0,
        "vocabulary": folder.vocabulary or 0,
        "parameters": folder.parameters,
        "dtype": given.dtype,
        "attention": given.attention,
        "transformers": library_version("transformers"),
    }
    kept |= {"revision": fetched.revision} if fetched.revision else {}
    kept |= {} if quantized is None else {"quantized": quantized.method}
    return Found(model=kept, source=str(folder.path.absolute()), weights=weight_names(folder))


def weight_names(folder: Folder) -> tuple[str, ...]:
    """What its matrices are called: the place that each writes, or the tensor's own name where nobody knows."""
    return tuple(entries(folder)[0])


def data_digest(name: str) -> str:
    """Of the texts or images called `name`, as a model from elsewhere is judged on them: whole."""
    return vision.load(name).digest if is_images(name) else digest(documents(name))


def is_images(name: str) -> bool:
    return SOURCES[split(name)[0]].images


def versions() -> Mapping[str, str]:
    """Of the libraries whose code is measured, or trains."""
    return {name: library_version(name) for name in LIBRARIES}


def library_version(name: str) -> str:
    """Empty where it is not installed."""
    try:
        return version(name)
    except PackageNotFoundError:
        return ""
