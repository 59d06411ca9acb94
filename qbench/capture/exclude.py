"""Which layers to leave unquantized, in the words of the tools that quantize the others. No torch here."""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

# Layers that engines run as one matrix when they load a checkpoint, whose parts must have one format.
_TOGETHER = (("q_proj", "k_proj", "v_proj"), ("query", "key", "value"), ("gate_proj", "up_proj"), ("w1", "w3"))


@dataclass(frozen=True, slots=True)
class Linears:
    """Names of linear layers as a checkpoint has them: those inside the blocks, and the others, such as the head.

    `transposed` are those of either that keep their matrix as [in, out], which some tools do not take for linear.
    """

    inside: tuple[str, ...]
    outside: tuple[str, ...]
    transposed: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Exclusion:
    """Names of modules as a checkpoint has them.

    `linears` are all linear layers; those outside the blocks, such as the head, are always excluded, because nothing
    here quantizes them. `sensitive` are those that were chosen; what is fused with one of them on loading is excluded
    with it. `stacks` are modules that keep several matrices in one parameter, such as experts.
    """

    linears: Linears
    sensitive: tuple[str, ...]
    stacks: tuple[str, ...] = ()

    @property
    def kept(self) -> tuple[str, ...]:
        """Every linear layer that stays as it is, in the order of the model."""
        chosen = {relative for name in self.sensitive for relative in _fused_with(name, self.linears.inside)}
        return (*(name for name in self.linears.inside if name in chosen), *self.linears.outside)


def exclusion(modules: Iterable[str], linears: Linears) -> Exclusion:
    """From the modules of the most sensitive units; those that are no linear layer are taken for stacks of experts."""
    wanted = tuple(dict.fromkeys(modules))
    return Exclusion(
        linears=linears,
        sensitive=tuple(name for name in wanted if name in linears.inside),
        stacks=tuple(name for name in wanted if name not in linears.inside),
    )


def llm_compressor(e: Exclusion) -> str:
    """The `ignore` entry of a recipe; it takes stacks of experts apart, so their parts are named by a pattern.

    >>> linears = Linears(("layers.0.fc", "layers.1.fc"), ("lm_head",), ())
    >>> print(llm_compressor(exclusion(["layers.0.fc"], linears)))
    ignore: ["layers.0.fc", "lm_head"]
    """
    stacks = (f"re:{re.escape(name)}($|[.].*)" for name in e.stacks)
    return f"ignore: [{_quoted((*e.kept, *stacks))}]"


def torchao(e: Exclusion) -> str:
    """Statements for a `model` and a `config`, by a filter; and the same as one configuration, to save with it."""
    own = [name for name in e.linears.inside if name not in e.linears.transposed]
    patterns = dict.fromkeys(_pattern(name) for name in own if name not in e.kept)
    rows = [f'r"re:{pattern}": config' for pattern in patterns]
    return "\n".join(
        [
            "import torch",
            "from torchao.quantization import FqnToConfig, quantize_",
            "",
            f"keep = [{_quoted(e.kept)}]",
            "by_name = FqnToConfig({**dict.fromkeys(keep), " + ", ".join(rows) + "})",
            "# Either of these: a filter, or one configuration that can be saved with the checkpoint.",
            "quantize_(model, config, filter_fn=lambda m, name: isinstance(m, torch.nn.Linear) and name not in keep)",
            "# quantize_(model, by_name, filter_fn=None)",
            *_left("torchao", (*e.stacks, *dict.fromkeys(map(_pattern, e.linears.transposed)))),
        ]
    )


def bitsandbytes(e: Exclusion) -> str:
    """A configuration for `from_pretrained`; with load_in_4bit=True the list works the same."""
    return "\n".join(
        [
            "from transformers import BitsAndBytesConfig",
            "",
            "# The list replaces the default one, which has the head, so the head is in it.",
            f"BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=[{_quoted(e.kept)}])",
            *_left("bitsandbytes", e.stacks),
        ]
    )


SYNTAXES: Mapping[str, Callable[[Exclusion], str]] = MappingProxyType(
    {"llm-compressor": llm_compressor, "torchao": torchao, "bitsandbytes": bitsandbytes}
)


def _fused_with(name: str, inside: Sequence[str]) -> tuple[str, ...]:
    """The layers that become one matrix with this one, and itself.

    >>> _fused_with("mlp.up_proj", ["mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"])
    ('mlp.gate_proj', 'mlp.up_proj')
    """
    parent, dot, leaf = name.rpartition(".")
    leaves = next((together for together in _TOGETHER if leaf in together), (leaf,))
    return tuple(found for found in (f"{parent}{dot}{one}" for one in leaves) if found in inside)


def _pattern(name: str) -> str:
    r"""The same layer of every block.

    >>> _pattern("model.layers.10.mlp.fc1")
    'model[.]layers[.][0-9]+[.]mlp[.]fc1'
    """
    return "[.]".join("[0-9]+" if part.isdigit() else re.escape(part) for part in name.split("."))


def _quoted(names: Iterable[str]) -> str:
    return ", ".join('"' + name.replace("\\", "\\\\") + '"' for name in names)


def _left(tool: str, stacks: Sequence[str]) -> list[str]:
    return [f"# {tool} leaves all of these alone, whatever is listed: {', '.join(stacks)}"] if stacks else []
