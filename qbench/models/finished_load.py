"""A checkpoint that somebody else quantized as a model of plain weights, which the rest of qbench can measure."""

from collections.abc import Iterable, Mapping
from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from qbench.models.decode import decoded_state
from qbench.models.finished import METHODS, Finished, finished
from qbench.models.folder import Folder, MissingPackage, layout
from qbench.models.library import quiet, transformers
from qbench.models.stored import BadModel

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def load_finished(folder: Folder, auto: str, **keywords: Any) -> "PreTrainedModel":
    """Build the model without its quantization_config and load the decoded weights.

    The activations that the checkpoint wants quantized when it runs (`Finished.groups`) are not: that is a treatment.
    Where the codes cannot be decoded here, the model is what transformers makes of it, with modules of its own.

    Args:
        folder: `folder.look`.
        auto: a class of transformers, a value of `folder.AUTO`.
        keywords: of its from_pretrained: dtype, device_map, attn_implementation, trust_remote_code.

    Raises:
        BadModel: damaged or plain; tensors that the model does not have or lacks.
        MissingPackage: what it must be loaded with is not installed.
    """
    what = finished(folder.config, layout(folder))
    if what is None:
        raise BadModel(f"{folder.path}: no quantization_config: it is a plain model")
    if what.refusal:
        _expect_packages(folder, what)
        with quiet():
            return getattr(transformers(), auto).from_pretrained(folder.path, local_files_only=True, **keywords)
    trust = keywords.get("trust_remote_code", False)
    config = transformers().AutoConfig.from_pretrained(folder.path, local_files_only=True, trust_remote_code=trust)
    _forget_quantization(config)
    with torch.device("meta"):
        skeleton: nn.Module = getattr(transformers(), auto).from_config(config, trust_remote_code=trust)
    state = _state(folder, what, skeleton, keywords.get("dtype"))
    with quiet():
        model, report = type(skeleton).from_pretrained(  # pyright: ignore[reportAttributeAccessIssue]: PreTrainedModel
            None, config=config, state_dict=state, output_loading_info=True, ignore_mismatched_sizes=True, **keywords
        )
    _expect_complete(folder, report)
    return model


def _state(folder: Folder, what: Finished, skeleton: nn.Module, dtype: object) -> dict[str, Tensor]:
    """All tensors of the plain checkpoint; decoded ones in the model's type at once, so that less is held."""
    wanted = getattr(torch, dtype, None) if isinstance(dtype, str) else dtype
    turned = _turned(skeleton)
    state: dict[str, Tensor] = {}
    for name, tensor in decoded_state(folder):
        if name in what.weights:
            upright = tensor.T.contiguous() if _is_one_of(name, turned) else tensor
            state[name] = upright.to(wanted) if isinstance(wanted, torch.dtype) else upright
        else:
            state[name] = tensor
    return state


def _expect_complete(folder: Folder, report: Mapping[str, Any]) -> None:
    """Raises BadModel where the model lacks a tensor, knows none of that name, or has it in another size."""
    for name, decoded, wanted in sorted(report["mismatched_keys"])[:1]:
        raise BadModel(f"{folder.path}: {name} is {list(decoded)} when decoded, and {list(wanted)} by config.json")
    for kind, meaning in (("missing", "and would be random"), ("unexpected", "which the model does not have")):
        if names := sorted(report[f"{kind}_keys"]):
            few = ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
            raise BadModel(f"{folder.path}: {len(names)} tensors are {kind} after decoding, {meaning}: {few}")


def _expect_packages(folder: Folder, what: Finished) -> None:
    absent = [
        package
        for package, module in zip(what.packages, METHODS[what.method].modules, strict=True)
        if not _importable(module)
    ]
    if absent:
        raise MissingPackage(
            f"{folder.path}: {what.refusal}, and transformers loads it with {' and '.join(absent)}; "
            f"pip install {' '.join(absent)}"
        )


def _importable(module: str) -> bool:
    """Whether there is such a module; of a package within a package, find_spec imports the outer one."""
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:
        return False


def _forget_quantization(config: Any) -> None:
    for part in (config, getattr(config, "text_config", None)):
        for key in ("quantization_config", "compression_config"):
            if hasattr(part, key):
                delattr(part, key)


def _turned(skeleton: nn.Module) -> frozenset[str]:
    """Weights that the model keeps as [in, out], as GPT-2 does: quantized ones are [out, in] everywhere."""
    turned = import_module("transformers.pytorch_utils").Conv1D
    return frozenset(f"{name}.weight" for name, module in skeleton.named_modules() if isinstance(module, turned))


def _is_one_of(name: str, names: Iterable[str]) -> bool:
    """Checkpoints may leave out the name of the model around their weights."""
    return any(name == other or other.endswith(f".{name}") for other in names)
