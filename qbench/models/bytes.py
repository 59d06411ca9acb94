"""Where the bytes of a model are, what a treatment makes of them, and what did not shrink, and why. No torch here."""

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from itertools import groupby
from math import prod
from types import MappingProxyType
from typing import NamedTuple

from qbench.models.stored import StoredTensor

GROUPS = ("linear", "experts", "head", "embedding", "norms", "biases", "other", "scales")
# Where a family gives a tensor no site of its own, its name tells what it is; the first that fits.
_BY_NAME: tuple[tuple[str, str], ...] = (
    (r"bias$|(^|\.)(b|beta)$", "biases"),
    (r"(?i)norm|(^|[._])ln(_|\d|\.|$)|(^|\.)gamma$|lambda\d$", "norms"),
    (r"patch_embed", "other"),
    (r"lm_head|(^|\.)(classifier|score|decoder)\.weight$", "head"),
    (r"embed|(^|\.)(wte|wpe)\.|_token$", "embedding"),
    (r"experts", "experts"),
)
_WHY: Mapping[str, str] = MappingProxyType(
    {
        "linear": "a matrix that the treatment leaves out",
        "experts": "experts that the treatment leaves out",
        "head": "left out of the treatment: its error goes into every logit",
        "embedding": "left out of the treatment: a table to look up in, not a matrix to multiply with",
        "norms": "one number for each channel: a scale would cost more than it saves",
        "biases": "one number for each output: a scale would cost more than it saves",
        "other": "no matrix that a treatment can name",
    }
)
_TIED = "left out of the treatment: it is the head too (tied), and its error goes into every logit"
_COPY = "a copy of the embedding, which is the head (tied): it need not be stored"


class Stored(NamedTuple):
    """How a treatment stores one matrix: all bits for a value, scales included, and those of its code alone."""

    bits_per_value: float
    code_bits: float


Treatment = Mapping[str, Stored]  # by site


@dataclass(frozen=True, slots=True)
class Part:
    """One tensor of a model as it is kept now.

    `site` is the matrix that it is, "" for none; a `*` in it stands for the number of each expert in a stack. A weight
    quantized elsewhere is one part: its decoded shape, and the bytes of its codes and scales together.
    """

    name: str
    shape: tuple[int, ...]
    bytes: int
    site: str = ""

    @property
    def values(self) -> int:
        return prod(self.shape)

    @property
    def group(self) -> str:
        """One of GROUPS but the last."""
        if self.site in ("embed", "logits"):
            return "head" if self.site == "logits" else "embedding"
        if self.site and len(self.shape) > 1:
            return "experts" if ".experts." in self.site else "linear"
        named = next((group for pattern, group in _BY_NAME if re.search(pattern, self.name)), "")
        if named:
            return named
        return "other" if len(self.shape) != 2 else "linear"

    def matrices(self) -> Iterable[str]:
        """The sites of all matrices in it, each of as many values as the others."""
        return [self.site.replace("*", str(i)) for i in range(self.shape[0])] if "*" in self.site else [self.site]


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """Tensors of one kind, in all blocks; `why` they did not shrink, "" where they did."""

    group: str
    what: str
    tensors: int
    parameters: int
    before: float  # bytes
    after: float
    why: str

    @property
    def bits_before(self) -> float:
        """Bits per parameter as stored now; 0 where there is no parameter."""
        return 8 * self.before / self.parameters if self.parameters else 0.0

    @property
    def bits_after(self) -> float:
        return 8 * self.after / self.parameters if self.parameters else 0.0


@dataclass(frozen=True, slots=True)
class Bytes:
    """All bytes of a model, by kind, before and after a treatment."""

    rows: tuple[Row, ...]

    @property
    def parameters(self) -> int:
        return sum(row.parameters for row in self.rows)

    @property
    def before(self) -> float:
        return sum(row.before for row in self.rows)

    @property
    def after(self) -> float:
        return sum(row.after for row in self.rows)

    @property
    def bits_per_parameter(self) -> float:
        """Of the whole model after the treatment: what it downloads as, over what it has."""
        return 8 * self.after / self.parameters if self.parameters else 0.0

    @property
    def unshrunk(self) -> tuple[Row, ...]:
        """Bytes that did not shrink, most of them first; scales came with the treatment."""
        return tuple(sorted((row for row in self.rows if row.why), key=lambda row: -row.after))


def parts(tensors: Iterable[StoredTensor], site: Callable[[str], str | None]) -> tuple[Part, ...]:
    """The tensors of a folder (`models.folder.layout`), each with the site that `site` gives its name."""
    return tuple(Part(one.name, one.shape, one.bytes, site(one.name) or "") for one in tensors)


def table(model: Iterable[Part], treatment: Treatment = MappingProxyType({}), *, tied: bool = False) -> Bytes:
    """The bytes of every kind of tensor, before and after.

    Args:
        model: every tensor once, a tied pair under the embedding's name.
        treatment: how each treated matrix is stored. A site that the model does not have raises KeyError.
        tied: the embedding is the head too.

    >>> q = Part("q", (64, 64), 2 * 4096, "blocks.0.attn.q")
    >>> norm = Part("norm", (64,), 128)
    >>> found = table([q, norm], {"blocks.0.attn.q": Stored(4.25, 4)})
    >>> [(row.what, row.before, row.after) for row in found.rows]
    [('blocks.*.attn.q', 8192.0, 2048.0), ('norm', 128.0, 128.0), ('scales and zero points', 0.0, 128.0)]
    """
    model = tuple(model)
    known = {site for part in model for site in part.matrices()}
    if unknown := [site for site in treatment if site not in known]:
        raise KeyError(f"no matrix {', '.join(unknown)}; the model has {', '.join(sorted(known - {''}))}")
    pieces = [piece for part in model for piece in _pieces(part, treatment, tied)]
    pieces.sort(key=_kind)
    rows = [_row(kind, list(same)) for kind, same in groupby(pieces, _kind)]
    overhead = sum(piece.overhead for piece in pieces)
    return Bytes((*rows, _scales(overhead, pieces)) if overhead else tuple(rows))


class _Piece(NamedTuple):
    """One part, or the experts of a stack that are treated alike."""

    group: str
    what: str
    why: str
    values: int
    before: float
    after: float
    overhead: float


def _pieces(part: Part, treatment: Treatment, tied: bool) -> list[_Piece]:
    sites = list(part.matrices())
    values, before = part.values // len(sites), part.bytes / len(sites)
    ways = [treatment.get(site) for site in sites]
    found: list[_Piece] = []
    for way in dict.fromkeys(ways):
        n = ways.count(way)
        after = before if way is None else way.code_bits * values / 8
        overhead = 0.0 if way is None else (way.bits_per_value - way.code_bits) * values / 8
        why = _reason(part, tied) if way is None else _no_gain(before, after + overhead, values)
        found.append(_Piece(part.group, _what(part), why, n * values, n * before, n * after, n * overhead))
    return found


def _reason(part: Part, tied: bool) -> str:
    if tied and part.group == "head":
        return _COPY
    return _TIED if tied and part.site == "embed" else _WHY[part.group]


def _no_gain(before: float, after: float, values: int) -> str:
    if after < before or not values:
        return ""
    return f"treated, and no smaller: {8 * after / values:.3g} bits for what has {8 * before / values:.3g}"


def _what(part: Part) -> str:
    """The site, or the tensor's name, with a star for every number."""
    name = part.site or part.name
    return ".".join("*" if piece.isdigit() else piece for piece in name.split("."))


def _kind(piece: _Piece) -> tuple[int, str, str]:
    return GROUPS.index(piece.group), piece.what, piece.why


def _row(kind: tuple[int, str, str], same: list[_Piece]) -> Row:
    group, what, why = kind
    return Row(
        group=GROUPS[group],
        what=what,
        tensors=len(same),
        parameters=sum(piece.values for piece in same),
        before=float(sum(piece.before for piece in same)),
        after=float(sum(piece.after for piece in same)),
        why=why,
    )


def _scales(overhead: float, pieces: Iterable[_Piece]) -> Row:
    """What the treatment stores beside codes."""
    treated = [piece for piece in pieces if piece.overhead]
    values = sum(piece.values for piece in treated)
    why = f"came with the treatment: {8 * overhead / values:.3g} bits for each value treated"
    what = "scales and zero points"
    return Row(group="scales", what=what, tensors=len(treated), parameters=0, before=0.0, after=overhead, why=why)
