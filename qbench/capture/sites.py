"""The names of the places in a model, and the patterns and scopes that select them.

A transformer of L layers has `embed`, `blocks.0.*` to `blocks.L-1.*`, `final` and `logits`, whether it reads text or
images and whatever its wiring: a name that a wiring has no place of its own for means the place that it equals. Some
models have more: `attn.gate`, `mlp.up`, and `attn.sum`, `mlp.sum` where the norm comes after the sum. In a pattern
`*` stands for any run of characters within one part of a name and `**` for any number of parts: `blocks.*.out` selects
the block outputs and not `blocks.0.attn.out`.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import lru_cache
from typing import Any, Literal

from qbench.models.spec import ModelSpec, Wiring
from qbench.names import UnknownName, matches, suggestion

Kind = Literal["activation", "gradient", "weight"]

MOST_LAYERS = 256
ATTENTION = ("attn.in", "attn.q", "attn.k", "attn.v", "attn.gate", "attn.context", "attn.out", "attn.sum")
MLP = ("mlp.in", "mlp.pre", "mlp.up", "mlp.hidden", "mlp.out", "mlp.sum")
PLACES = ("in", *ATTENTION, "mid", *MLP, "out")
MATRICES = ("attn.q", "attn.k", "attn.v", "attn.gate", "attn.out", "mlp.pre", "mlp.up", "mlp.out")
# Places and matrices that only some models have: those whose `ModelSpec.parts` name them, or whose wiring does.
OPTIONAL = ("attn.gate", "mlp.up", "attn.sum", "mlp.sum")
SUMS: Mapping[Wiring, tuple[str, ...]] = {"post-norm": ("attn.sum", "mlp.sum")}
CALIBRATION_SITES = ("gaussian", "laplace", "uniform", "student-t", "hot-channel", "sink-token")

# Without a skip connection the stream after a sub-block is that sub-block's output: one place, one name. Side by side
# with the MLP, what attention gives is all that there is between the two.
COPIES: Mapping[Wiring, Mapping[str, str]] = {
    "residual": {},
    "residual-free": {"attn.out": "mid", "mlp.out": "out"},
    "post-norm": {},
    "attention-residual": {"mlp.out": "out"},
    "mlp-residual": {"attn.out": "mid"},
    "parallel": {"attn.out": "mid"},
}

_LINEAR = (
    *("blocks.*.attn.in", "blocks.*.attn.context", "blocks.*.mlp.in", "blocks.*.mlp.hidden"),
    "blocks.*.mlp.shared.hidden",
)

# What a scope selects in a model of `layers` layers.
_OF_ACTIVATIONS: Mapping[str, Callable[[int], Sequence[str]]] = {
    "all": lambda layers: ("**",),
    "boundaries": lambda layers: ("blocks.*.out",),
    "interior": lambda layers: [f"blocks.{block}.out" for block in range(layers - 1)],
    "middle": lambda layers: [f"blocks.{layers // 2 - 1}.out"] if layers > 1 else [],
    "linear": lambda layers: _LINEAR,
    "kv": lambda layers: ("blocks.*.attn.k", "blocks.*.attn.v"),
    "keys": lambda layers: ("blocks.*.attn.k",),
    "values": lambda layers: ("blocks.*.attn.v",),
}
_OF_WEIGHTS: Mapping[str, Callable[[int], Sequence[str]]] = {
    "all": lambda layers: ("**",),
    "weights": lambda layers: ("blocks.**",),
    "head": lambda layers: ("logits",),
}
SCOPES: Mapping[Kind, Mapping[str, Callable[[int], Sequence[str]]]] = {
    "activation": _OF_ACTIVATIONS,
    "gradient": _OF_ACTIVATIONS,
    "weight": _OF_WEIGHTS,
}


@dataclass(frozen=True, slots=True, eq=False)
class SiteNames:
    """Every name in one model: of places that hold an activation, each with its canonical name, and of matrices.

    Both are in the order of the forward pass.
    """

    activations: Mapping[str, str]
    weights: tuple[str, ...]
    layers: int

    @property
    def sites(self) -> tuple[str, ...]:
        """Canonical names of all places that hold an activation."""
        return tuple(dict.fromkeys(self.activations.values()))

    def canonical(self, site: str) -> str:
        """The one name of the place that `site` names; raises UnknownName.

        >>> own("residual", 2).canonical("blocks.1.in"), own("residual-free", 2).canonical("blocks.1.mlp.out")
        ('blocks.0.out', 'blocks.1.out')
        """
        if site not in self.activations:
            raise _unknown(site, "activation", self.activations)
        return self.activations[site]


def of(spec: ModelSpec) -> SiteNames:
    """The names in a model of ours.

    >>> of(ModelSpec(layers=1, mlp="swiglu")).weights[5:8]
    ('blocks.0.mlp.pre', 'blocks.0.mlp.up', 'blocks.0.mlp.out')
    """
    return own(spec.wiring, spec.layers, spec.parts)


@lru_cache(maxsize=256)
def own(wiring: Wiring, layers: int, parts: tuple[str, ...] = ()) -> SiteNames:
    """The names in a model of ours that has `parts` beyond the usual. A matrix is named by the place that it writes.

    >>> len(own("residual", layers=1).sites), len(own("residual-free", layers=1).sites)
    (15, 13)
    """
    if not 1 <= layers <= MOST_LAYERS:
        raise ValueError(f"sites are named for 1 to {MOST_LAYERS} layers, found {layers}")
    there = {*parts, *SUMS.get(wiring, ())}
    inside = [name for name in MATRICES if name in there or name not in OPTIONAL]
    matrices = [f"blocks.{block}.{matrix}" for block in range(layers) for matrix in inside]
    first = [name for name in ("positions", "embed_projection") if name in there]
    last = ["final_projection"] if "embed_projection" in there else []
    places = tuple(name for name in PLACES if name in there or name not in OPTIONAL)
    return SiteNames(_activations(wiring, layers, places), ("embed", *first, *matrices, *last, "logits"), layers)


@lru_cache(maxsize=64)
def stacked(depth: int) -> SiteNames:
    """The names in a stack of random layers: what goes in, and what leaves each layer.

    >>> stacked(2).sites
    ('layer.0', 'layer.1', 'layer.2')
    """
    return SiteNames({name: name for name in (f"layer.{n}" for n in range(depth + 1))}, (), depth)


def recorded(model: Mapping[str, Any]) -> SiteNames:
    """The names in a model as records describe it: `ModelSpec.stored`, or a stack of some depth.

    Of a model from elsewhere only the number of layers is recorded: it is named like ours with skip connections.

    >>> len(recorded({"layers": 1, "wiring": "residual", "mlp": "swiglu"}).sites), recorded({"depth": 1}).sites
    (16, ('layer.0', 'layer.1'))
    """
    if "depth" in model:
        return stacked(int(model["depth"]))
    if "wiring" not in model:
        return own("residual", int(model.get("layers", 0)))
    return of(ModelSpec(**{field.name: model[field.name] for field in fields(ModelSpec) if field.name in model}))


@lru_cache(maxsize=4096)
def resolve(pattern: str, kind: Kind, model: SiteNames) -> tuple[str, ...]:
    """Canonical names that a scope or a pattern selects, in the order of the forward pass.

    Raises UnknownName where it selects nothing: a measurement of no place is a mistake.

    >>> resolve("interior", "activation", own("residual", layers=3))
    ('blocks.0.out', 'blocks.1.out')
    >>> resolve("blocks.*.mlp.hiden", "activation", own("residual", layers=3))
    Traceback (most recent call last):
    qbench.names.UnknownName: no activation site 'blocks.*.mlp.hiden'; did you mean 'blocks.*.mlp.hidden'? known: all, \
boundaries, interior, middle, linear, kv, keys, values, embed, blocks.N.{in, attn.in, attn.q, attn.k, attn.v, \
attn.context, attn.out, mid, mlp.in, mlp.pre, mlp.hidden, mlp.out, out}, final, logits
    """
    names = {n: n for n in model.weights} if kind == "weight" else model.activations
    scopes = SCOPES[kind]
    wanted = scopes[pattern](model.layers) if pattern in scopes else (pattern,)
    found = {names[name] for name in names if any(matches(one, name) for one in wanted)}
    if not found and pattern in scopes:
        counted = f"{model.layers} layer{'s' if model.layers > 1 else ''}"
        raise UnknownName(f"the scope {pattern!r} has no place in a model with {counted}")
    if not found:
        raise _unknown(pattern, kind, names)
    return tuple(dict.fromkeys(site for name in names if (site := names[name]) in found))


def _activations(wiring: Wiring, layers: int, places: Sequence[str]) -> dict[str, str]:
    """Every name of a place, with the canonical one."""
    copies = COPIES[wiring]
    names = {"embed": "embed"}
    for block in range(layers):
        here = {place: f"blocks.{block}.{copies.get(place, place)}" for place in places}
        here["in"] = f"blocks.{block - 1}.out" if block else "embed"
        names |= {f"blocks.{block}.{place}": site for place, site in here.items()}
    return names | {"final": "final", "logits": "logits"}


def near(pattern: str, names: Iterable[str], known: Iterable[str]) -> str:
    """What may have been meant by a pattern that selects none of `names`: `**` for `*`, or something in `known`.

    >>> near("blocks.0.*", ["blocks.0.attn.q"], [])
    "; did you mean 'blocks.0.**'?"
    """
    wider = ".".join("**" if part == "*" else part for part in pattern.split("."))
    if any(matches(wider, name) for name in names):
        return f"; did you mean {wider!r}?"
    return suggestion(pattern, known)


def _unknown(pattern: str, kind: Kind, names: Mapping[str, str]) -> UnknownName:
    inside = [name for name in names if name.startswith("blocks.")]
    inner = list(dict.fromkeys(name.split(".", 2)[2] for name in inside))
    generic = [f"blocks.*.{part}" for part in inner]
    hint = near(pattern, names, [*SCOPES[kind], *generic, *names])
    first = [name for name in names if name not in inside]
    blocks = [f"blocks.N.{{{', '.join(inner)}}}"] if inner else []
    known = ", ".join((*SCOPES[kind], *first[:1], *blocks, *first[1:]))
    return UnknownName(f"no {kind} site {pattern!r}{hint} known: {known}")
