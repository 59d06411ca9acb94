"""Models of `transformers`, loaded from a folder or the hub, so that every one of them looks alike."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from qbench.models.export import MODEL_TYPE, read
from qbench.models.fetch import fetch
from qbench.models.finished import quantization
from qbench.models.finished_load import load_finished
from qbench.models.folder import AUTO, BadModel, Folder, MissingPackage, Task, context, look
from qbench.models.headroom import expect_room
from qbench.models.library import quiet, transformers
from qbench.models.transformer import Transformer

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

Dtype = Literal["float32", "bfloat16", "float16", "auto"]

# What some architectures do to the logits after the head, by the setting that asks for it; other ones that do
# something of the kind are found out by the check of `HubModel`, which then does not divide them.
AFTER_HEAD: Mapping[str, Callable[[Tensor, float], Tensor]] = MappingProxyType(
    {
        "final_logit_softcapping": lambda logits, cap: torch.tanh(logits / cap) * cap,  # Gemma 2 and 3
        "logits_soft_cap": lambda logits, cap: torch.tanh(logits / cap) * cap,  # RecurrentGemma
        "logit_scale": lambda logits, scale: logits * scale,  # Cohere
        "lm_head_multiplier": lambda logits, scale: logits * scale,  # Falcon-H1
        "logits_scaling": lambda logits, scale: logits / scale,  # Granite
    }
)


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadOptions:
    """How to load. `attention` and `device_map` are what `transformers` calls them; None is its default.

    `revision` pins a name on the hub; `dtype` "auto" is the type that the model is stored in; `task` overrules what
    its config says it is for; `trust_remote_code` runs the code that comes with the model.
    """

    revision: str | None = None
    dtype: Dtype = "float32"
    attention: str | None = None
    device_map: str | None = None
    trust_remote_code: bool = False
    task: Task | None = None


class _Reached(Exception):
    """A forward pass has come to the head, with these states."""

    def __init__(self, states: Tensor) -> None:
        self.states = states


class HubModel(nn.Module):
    """A model of `transformers` as a module from tokens (or images) to logits, which can stop before its head.

    `undivided` is "" where head(hidden(x)) has been found equal to forward(x), to the bit, on a few inputs. Else it
    says why not, `hidden` gives the logits, and `head` gives back what it is given.
    """

    hf: "PreTrainedModel"

    def __init__(self, hf: "PreTrainedModel", task: Task, revision: str = "") -> None:
        super().__init__()
        self.hf = hf
        self.eval()
        self.task: Task = task
        self.revision = revision
        if getattr(hf.config, "use_cache", False):
            hf.config.use_cache = False  # a cache that nobody reads is as large as all keys and values
        text = task != "image-classification"
        # Tokens that the model knows, and its longest window; None for images, and where the config does not say.
        self.vocabulary: int | None = int(hf.config.get_text_config().vocab_size) if text else None
        self.context: int | None = context(hf.config.to_dict()) if text else None
        # Settings and amounts of AFTER_HEAD.
        self.after = _after_head(hf) if task == "causal-lm" else ()
        self.undivided = ""
        self.undivided = self._why_undivided()

    @property
    def config(self) -> "PreTrainedConfig":
        return self.hf.config

    def forward(self, x: Tensor) -> Tensor:
        """Logits [B, T, V] of int64 tokens [B, T]; [B, classes] of float pixel values [B, C, H, W].

        Raises ValueError where a window is longer than the context, or holds a token that the model does not know.
        """
        if self.task == "image-classification":
            return self.hf(pixel_values=x).logits
        self._expect_known(x)
        return self.hf(input_ids=x).logits

    def hidden(self, x: Tensor) -> Tensor:
        """What the head reads, after the last norm and any transform before the head: [B, T, D], or [B, D] of images.

        The pass ends at the head: logits are not computed.
        """
        states = None if self.undivided else self._states(x)
        return self(x) if states is None else states

    def head(self, hidden: Tensor) -> Tensor:
        """Logits [..., V] of states [..., D], soft-capped and scaled where the architecture does so."""
        head = None if self.undivided else self._head()
        if head is None:
            return hidden
        logits = head(hidden)
        for name, amount in self.after:
            logits = AFTER_HEAD[name](logits, amount)
        return logits

    def _head(self) -> nn.Module | None:
        if self.task == "image-classification":
            return getattr(self.hf, "classifier", None)
        return self.hf.get_output_embeddings()

    def _states(self, x: Tensor) -> Tensor | None:
        """What the head is called with; None where a forward pass does not come to it."""
        head = self._head()
        if head is None:
            return None

        def stop(_: nn.Module, arguments: tuple[Tensor, ...]) -> None:
            raise _Reached(arguments[0])

        # First of all hooks: what others do to the head's input is for `head` to do.
        handle = head.register_forward_pre_hook(stop, prepend=True)
        try:
            self(x)
        except _Reached as reached:
            return reached.states
        finally:
            handle.remove()
        return None

    def _why_undivided(self) -> str:
        x = self._sample()
        with torch.no_grad():
            whole, states = self(x), self._states(x)
            if states is None:
                return f"{type(self.hf).__name__} has no head that its forward pass calls"
            divided = self.head(states)
        if divided.dtype == whole.dtype and torch.equal(divided, whole):
            return ""
        return f"{type(self.hf).__name__} does more after its head than its settings say"

    def _sample(self) -> Tensor:
        """A few inputs, always the same ones."""
        config, device = self.config, self.hf.device
        if self.task == "image-classification":
            size = getattr(config, "image_size", 224)  # convolutions take any
            rows, columns = (size, size) if isinstance(size, int) else size
            count = config.num_channels * rows * columns
            pixels = torch.linspace(-1, 1, count, device=device, dtype=self.hf.dtype)
            return pixels.view(1, config.num_channels, rows, columns)
        vocabulary = self.vocabulary or 1
        # From the middle on: the first ones may be padding, of which transformers warns.
        tokens = torch.arange(2 * min(8, self.context or 8), device=device) + vocabulary // 2
        return (tokens % vocabulary).view(2, -1)

    def _expect_known(self, tokens: Tensor) -> None:
        length, largest = tokens.shape[-1], int(tokens.max())
        if self.context is not None and length > self.context:
            raise ValueError(f"{length} tokens do not fit a context of {self.context}")
        if self.vocabulary is not None and largest >= self.vocabulary:
            raise ValueError(f"token {largest}, where the model knows {self.vocabulary}; another model's tokenizer?")


def load(source: str | Path, options: LoadOptions | None = None) -> HubModel | Transformer:
    """The model at a folder or of a name on the hub, in eval mode; one that qbench wrote is a `Transformer` again.

    Raises:
        BadModel: the files are damaged or do not fit each other, a value is NaN or infinite, memory is too small.
        MissingPackage: a package that it needs is not installed.
    """
    options = options or LoadOptions()
    fetched = fetch(source, options.revision)
    folder = look(fetched.path)
    if options.device_map is None:
        expect_room(folder, options.dtype)
    if folder.model_type == MODEL_TYPE:
        return _own(folder, options)
    task = options.task or folder.task
    if task is None:
        said = ", ".join(folder.architectures) or "none"
        raise BadModel(f"{folder.path}: architectures in config.json: {said}; expected one for {', '.join(AUTO)}")
    hf = _loaded(folder, task, options)
    expect_finite(hf, folder.path)
    return HubModel(hf, task, fetched.revision)


def expect_finite(model: nn.Module, path: Path) -> None:
    """Raises BadModel, with count and names, where weights are NaN or infinite; buffers may be masks of -inf."""
    bad: dict[str, int] = {}
    for name, weight in model.named_parameters():
        if weight.is_floating_point() and not weight.is_meta:
            # One byte wide floats have no isfinite of their own.
            values = weight.float() if weight.element_size() == 1 else weight
            if count := int((~values.isfinite()).sum()):
                bad[name] = count
    if bad:
        raise BadModel(f"{path}: {sum(bad.values())} weights are NaN or infinite, in {_few(list(bad))}")


def _own(folder: Folder, options: LoadOptions) -> Transformer:
    if options.attention or options.device_map:
        raise BadModel(f"{folder.path}: attention and device_map are for models of transformers; qbench's own has one")
    model = read(folder)
    expect_finite(model, folder.path)
    return model if options.dtype == "auto" else model.to(getattr(torch, options.dtype))


def _loaded(folder: Folder, task: Task, options: LoadOptions) -> "PreTrainedModel":
    keywords: dict[str, Any] = {"attn_implementation": options.attention} if options.attention else {}
    keywords |= {
        "dtype": options.dtype,
        "device_map": options.device_map,
        "trust_remote_code": options.trust_remote_code,
    }
    by = load_finished if quantization(folder.config) is not None else _plain
    try:
        return by(folder, AUTO[task], **keywords)
    except (BadModel, MissingPackage, torch.OutOfMemoryError):
        raise
    except ImportError as error:
        raise MissingPackage(f"{folder.path}: {_line(error)}") from error
    except _misfits() as error:
        raise BadModel(f"{folder.path}: {_reason(folder, options, error)}") from error


def _plain(folder: Folder, auto: str, **keywords: Any) -> "PreTrainedModel":
    with quiet():
        hf, report = getattr(transformers(), auto).from_pretrained(
            folder.path,
            use_safetensors=True,
            local_files_only=True,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # they are reported, and refused here in one line
            **keywords,
        )
    _expect_complete(folder, report)
    return hf


def _misfits() -> tuple[type[Exception], ...]:
    """What loading raises where files and library do not fit each other: `transformers` has no error of its own."""
    from huggingface_hub.errors import StrictDataclassError

    standard = (ArithmeticError, AttributeError, KeyError, OSError, RuntimeError, TypeError, ValueError)
    return (*standard, StrictDataclassError)


def _reason(folder: Folder, options: LoadOptions, error: Exception) -> str:
    if "auto_map" in folder.config and not options.trust_remote_code and "trust_remote_code" in str(error):
        return "transformers does not know it and would run the code in the folder; read it, then --trust-remote-code"
    return f"transformers cannot load it: {_line(error)}"


def _expect_complete(folder: Folder, report: Mapping[str, Any]) -> None:
    if missing := sorted(report["missing_keys"]):
        raise BadModel(
            f"{folder.path}: {len(missing)} weights of the model are in no shard, and would be random: {_few(missing)}"
        )
    for name, stored, wanted in sorted(report["mismatched_keys"])[:1]:
        raise BadModel(f"{folder.path}: {name} is {list(stored)} in its shard, and {list(wanted)} by config.json")


def _after_head(hf: "PreTrainedModel") -> tuple[tuple[str, float], ...]:
    config = hf.config.get_text_config()
    asked = [(name, getattr(config, name, None)) for name in AFTER_HEAD]
    return tuple((name, float(amount)) for name, amount in asked if isinstance(amount, int | float))


def _few(names: list[str]) -> str:
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")


def _line(error: Exception) -> str:
    """The first line of an error that may be a page long."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
