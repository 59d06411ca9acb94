"""The layout of a pretrained model: which module of a block holds which named place and matrix; no torch."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

# The tensor that leaves a module or enters it; that the attention inside reads as queries, keys, values; the stream
# that entered the block plus the (first) output of the module; the logits of a router.
End = Literal["output", "input", "query", "key", "value", "sum", "router"]


@dataclass(frozen=True, slots=True)
class Spot:
    """A place: a module by its path, and which of its tensors."""

    path: str
    end: End


@dataclass(frozen=True, slots=True)
class Part:
    """One half of a block, by module paths below the block.

    `sites` are in the order of the forward pass; `reads` tells for each place the matrices that read it (`""` where
    that is no place). A matrix `experts.*` is a stack of one for each expert.
    """

    sites: Mapping[str, Spot]
    matrices: Mapping[str, str]
    reads: Mapping[str, tuple[str, ...]]

    def then(self, sites: Mapping[str, Spot]) -> "Part":
        """With more places behind its own."""
        return Part({**self.sites, **sites}, self.matrices, self.reads)


@dataclass(frozen=True, slots=True)
class Weight:
    """A matrix by the path of its module, or of a stacked parameter and the index in it."""

    path: str
    index: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """Module paths of one whole model, from its root.

    `sparse` blocks have `moe` in place of `mlp`. `stored` are other names under which checkpoints keep a matrix of a
    block, `stored_head` those of the head. `transposed` where block matrices are kept as [in, out].
    """

    blocks: str
    layers: int
    attention: Part
    mlp: Part
    final: str
    head: str
    embedding: str = ""
    tied: bool = False
    transposed: bool = False
    extra: Mapping[str, str] = field(default_factory=dict[str, str])
    moe: Part | None = None
    sparse: frozenset[int] = frozenset()
    experts: int = 0
    stored: Mapping[str, str] = field(default_factory=dict[str, str])
    stored_head: tuple[str, ...] = ()

    def parts(self, block: int) -> tuple[Part, Part]:
        """Attention and MLP of one block."""
        return self.attention, self.moe if self.moe is not None and block in self.sparse else self.mlp

    def spots(self) -> dict[str, Spot]:
        """Canonical name of every place -> where it is, in the order of the forward pass."""
        found = {"embed": Spot(f"{self.blocks}.0", "input")}
        for block in range(self.layers):
            root = f"{self.blocks}.{block}"
            for part in self.parts(block):
                for name, spot in part.sites.items():
                    found[f"blocks.{block}.{name}"] = Spot(f"{root}.{spot.path}", spot.end)
            found[f"blocks.{block}.out"] = Spot(root, "output")
        if self.final:
            found["final"] = Spot(self.final, "output")
        return {**found, "logits": Spot(self.head, "output")}

    def weights(self) -> dict[str, Weight]:
        """Name of every matrix -> where it is; one that is both embedding and head is the embedding."""
        found = {"embed": Weight(self.embedding)} if self.embedding else {}
        for block in range(self.layers):
            for part in self.parts(block):
                for name, path in part.matrices.items():
                    whole = f"{self.blocks}.{block}.{path}"
                    found |= {f"blocks.{block}.{n}": Weight(whole, i) for n, i in self.each(name)}
        found |= {name: Weight(path) for name, path in self.extra.items()}
        return found if self.tied else {**found, "logits": Weight(self.head)}

    def groups(self, block: int) -> tuple[tuple[tuple[str, ...], str], ...]:
        """The matrices of a block that read one tensor together, with the name of its place, in order."""
        prefix = f"blocks.{block}."
        return tuple(
            (tuple(prefix + name for one in names for name, _ in self.each(one)), prefix + site if site else "")
            for part in self.parts(block)
            for site, names in part.reads.items()
        )

    def each(self, name: str) -> list[tuple[str, int | None]]:
        """One name for each expert where the matrix is a stack of them."""
        if "*" not in name:
            return [(name, None)]
        return [(name.replace("*", str(expert)), expert) for expert in range(self.experts)]


def attention(inlet: str, projections: tuple[str, ...], out: str, joins: str = "") -> Part:
    """`joins` is the module whose output a block adds to what entered it: the sum is `mid`."""
    weights = ("attn.q", "attn.k", "attn.v") if len(projections) == 3 else ("attn.qkv",)
    sites = {
        "attn.in": Spot(inlet, "input"),
        "attn.q": Spot(inlet, "query"),
        "attn.k": Spot(inlet, "key"),
        "attn.v": Spot(inlet, "value"),
        "attn.context": Spot(out, "input"),
        "attn.out": Spot(out, "output"),
    }
    return Part(
        {**sites, "mid": Spot(joins, "sum")} if joins else sites,
        {**dict(zip(weights, projections, strict=True)), "attn.out": out},
        {"attn.in": weights, "attn.context": ("attn.out",)},
    )


def mlp(inlet: str, first: tuple[str, ...], down: str) -> Part:
    """`first` is the layer before the nonlinearity, or gate and up, or both in one matrix (`gate_up`)."""
    names = ("mlp.gate_up",) if "gate_up" in first[0] else ("mlp.pre", "mlp.up")[: len(first)]
    sites = {
        "mlp.in": Spot(inlet, "input"),
        **{name: Spot(path, "output") for name, path in zip(names, first, strict=True)},
        "mlp.hidden": Spot(down, "input"),
        "mlp.out": Spot(down, "output"),
    }
    return Part(
        sites,
        {**dict(zip(names, first, strict=True)), "mlp.out": down},
        {"mlp.in": names, "mlp.hidden": ("mlp.out",)},
    )


def experts(shared: Mapping[str, str] | None = None) -> Part:
    """A router before stacks of experts, beside one that sees every token: `shared`, its layers' paths by role."""
    inside = {f"mlp.shared.{role}": path for role, path in (shared or {}).items()}
    always = {name: path for name, path in inside.items() if name.endswith((".pre", ".up", ".out"))}
    sites = {"mlp.in": Spot("mlp", "input")}
    for name, path in always.items():
        if name.endswith(".out"):
            sites["mlp.shared.hidden"] = Spot(path, "input")
        sites[name] = Spot(path, "output")
    first = (*(name for name in always if not name.endswith(".out")), "mlp.experts.*.gate_up")
    last = {"mlp.shared.hidden": ("mlp.shared.out",)} if shared else {}
    return Part(
        {**sites, "mlp.router": Spot("mlp.gate", "router"), "mlp.out": Spot("mlp", "output")},
        {
            **inside,
            "mlp.router": "mlp.gate",
            "mlp.experts.*.gate_up": "mlp.experts.gate_up_proj",
            "mlp.experts.*.out": "mlp.experts.down_proj",
        },
        {"mlp.in": first, **last, "": ("mlp.experts.*.out",)},
    )
