"""Layers to leave unquantized, in the words of the tools that quantize the others: for a page, from names alone."""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

HEAD = "lm_head"


@dataclass(frozen=True, slots=True)
class Kept:
    """Names of modules as the checkpoint has them: those to leave, and all that were quantized one at a time."""

    leave: tuple[str, ...]
    every: tuple[str, ...]


def llm_compressor(kept: Kept) -> str:
    """The `ignore` entry of a recipe.

    >>> print(llm_compressor(Kept(("h.0.fc",), ("h.0.fc", "h.1.fc"))))
    ignore: ["lm_head", "h.0.fc"]
    """
    return f"ignore: [{_quoted((HEAD, *kept.leave))}]"


def torchao(kept: Kept) -> str:
    """A filter that takes the layers of blocks and leaves those; whatever the head is called, it is not among them."""
    patterns = dict.fromkeys(map(pattern, kept.every))
    return "\n".join(
        [
            "import re, torch",
            "from torchao.quantization import quantize_",
            "",
            f"keep = [{_quoted(kept.leave)}]",
            f'inside = re.compile(r"{"|".join(patterns)}")',
            "quantize_(model, config, filter_fn=lambda m, name:",
            "    isinstance(m, torch.nn.Linear) and inside.fullmatch(name) is not None and name not in keep)",
        ]
    )


def bitsandbytes(kept: Kept) -> str:
    """A configuration for `from_pretrained`; the list replaces the library's own, which has the head."""
    return "\n".join(
        [
            "from transformers import BitsAndBytesConfig",
            "",
            "# With load_in_4bit=True the list works the same.",
            f"BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=[{_quoted((HEAD, *kept.leave))}])",
        ]
    )


SYNTAXES: Mapping[str, Callable[[Kept], str]] = MappingProxyType(
    {"llm-compressor": llm_compressor, "torchao": torchao, "bitsandbytes": bitsandbytes}
)


def pattern(name: str) -> str:
    r"""The same layer of every block, as a regular expression.

    >>> pattern("model.layers.10.mlp.fc1")
    'model[.]layers[.][0-9]+[.]mlp[.]fc1'
    """
    return "[.]".join("[0-9]+" if part.isdigit() else re.escape(part) for part in name.split("."))


def _quoted(names: Iterable[str]) -> str:
    return ", ".join('"' + name.replace("\\", "\\\\") + '"' for name in names)


def kept(leave: Sequence[str], every: Sequence[str]) -> Kept:
    """Each given as the texts of units, which name several modules apart by spaces."""
    return Kept(_split(leave), _split(every))


def _split(units: Iterable[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(name for unit in units for name in unit.split()))
