"""The names in a pretrained model, told from its config.json alone: no torch, no weights.

A name exists only where the architecture has such a tensor. Where that differs from our own decoder:
attention and MLP side by side (GPT-NeoX, Phi): no `mid`. A norm or a gain behind a branch (Gemma 2 and 3, DINOv2):
`attn.normed`, `mlp.normed`, `attn.scaled`, `mlp.scaled` are what joins the stream. Post-norm (BERT, some OPT):
`attn.sum`, `mlp.sum` are what the norms read. Projections kept as one matrix: `attn.qkv`, `mlp.gate_up`. A mixture of
experts: `mlp.router`, matrices `mlp.experts.E.*` and `mlp.shared.*`; what flows inside one expert is no place. `final`
is what the head reads, for a classifier before pooling, and `logits` what the head gives, before any soft-capping.
Attention inputs and MLP inputs are places of their own also where they equal the stream or one another.
"""

import re

from qbench.capture.architectures import FAMILIES, Config
from qbench.capture.layout import Layout
from qbench.capture.sites import SiteNames, recorded

OWN = "qbench"  # the model_type of what models.export writes: its parameters have the names of sites already


def layout(config: Config) -> Layout | None:
    """The layout of the model that a config.json describes; None where no row has its `model_type`."""
    row = FAMILIES.get(str(config.get("model_type")))
    return None if row is None else row(config)


def site_names(config: Config) -> SiteNames | None:
    """Every name in the model that a config.json describes; None for an unknown family.

    >>> names = site_names({"model_type": "phi", "num_hidden_layers": 1})
    >>> names.canonical("blocks.0.in"), "blocks.0.mid" in names.sites, names.weights[:2]
    ('embed', False, ('embed', 'blocks.0.attn.q'))
    """
    if config.get("model_type") == OWN:
        return recorded(config)
    model = layout(config)
    if model is None:
        return None
    names: dict[str, str] = {}
    for name in model.spots():
        if name.endswith(".attn.in"):
            block = int(name.split(".")[1])
            names[f"blocks.{block}.in"] = f"blocks.{block - 1}.out" if block else "embed"
        names[name] = name
    return SiteNames(names, tuple(model.weights()), model.layers)


def linear_groups(config: Config) -> tuple[tuple[tuple[tuple[str, ...], str], ...], ...]:
    """For each block, in order: the weights that read one tensor together, and the name of its place.

    Queries, keys, values | output | gate, up | down. What experts compute inside has no place: `""`. A router, which
    is a thousandth of the block and decides for all of it, is in no group. Raises ValueError for an unknown family.

    >>> linear_groups({"model_type": "gpt2", "n_layer": 1})[0][0]
    (('blocks.0.attn.qkv',), 'blocks.0.attn.in')
    """
    model = layout(config)
    if model is None:
        raise ValueError(f"no row for model_type {config.get('model_type')!r}; known: {', '.join(FAMILIES)}")
    return tuple(model.groups(block) for block in range(model.layers))


def weight_site(parameter: str, config: Config) -> str | None:
    """The name of the matrix that a checkpoint keeps as `parameter`; None for anything else, such as gains and biases.

    Checkpoints of a bare model, without the prefix of its head, are known too. A tied head is a copy of `embed`: None.
    Experts are kept one by one, gate and up apart: `mlp.experts.E.pre`, `mlp.experts.E.up`.

    >>> weight_site("model.layers.3.self_attn.q_proj.weight", {"model_type": "llama", "num_hidden_layers": 4})
    'blocks.3.attn.q'
    """
    if config.get("model_type") == OWN:
        return None if parameter.endswith(".gain") else parameter
    model = layout(config)
    if model is None:
        return None
    module = parameter.removesuffix(".weight")
    inside = re.fullmatch(r"(?:.*\.)?(?:layers|layer|h)\.(\d+)\.(.+)", module)
    if inside is not None:
        found = _in_block(model, int(inside[1]), inside[2])
        return f"blocks.{inside[1]}.{found}" if found and _is_matrix(parameter, found) else None
    if not parameter.endswith(".weight"):
        return None
    outside = {model.embedding.rpartition(".")[2]: "embed"} if model.embedding else {}
    outside |= {path.split(".", 1)[-1]: name for name, path in model.extra.items()}
    if not model.tied:
        outside |= dict.fromkeys((model.head, *model.stored_head), "logits")
    return next((name for end, name in outside.items() if module == end or module.endswith(f".{end}")), None)


def _in_block(model: Layout, block: int, path: str) -> str | None:
    if block >= model.layers:
        return None
    kept = {p: name for part in model.parts(block) for name, p in part.matrices.items()}
    expert = re.search(r"(?<=experts\.)\d+", path)
    name = {**kept, **model.stored}.get(re.sub(r"(?<=experts\.)\d+", "*", path))
    return name.replace("*", expert[0]) if name and expert else name


def _is_matrix(parameter: str, name: str) -> bool:
    """A stack of experts is a parameter itself, all others are the weight of a module."""
    return parameter.endswith(".weight") or "*" in name
