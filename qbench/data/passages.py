"""Windows of a model's own tokens over documents: what a pretrained model is scored on, and the bytes behind it."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from heapq import heapify, heapreplace
from itertools import islice, pairwise

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from qbench.data.documents import Document
from qbench.data.text import BadData

Encode = Callable[[str], Sequence[int]]  # a text's token ids, without special tokens
Offsets = Callable[[str], Sequence[tuple[int, int]]]  # where each of them starts and ends, in characters
Ints = NDArray[np.int64]
JOINT = "\n\n"  # between short documents of one slice
GRAM = 32  # tokens that two windows must share in a row to count as overlapping there
SHARE = 0.1  # of a window's runs of GRAM tokens: less is a licence header or a line of dashes


@dataclass(frozen=True, slots=True)
class Cut:
    """How documents become windows of `context` predictions.

    Without a stride, `count` windows lie evenly over all documents. With one they follow each other, `count` of them
    or all: each starts `stride` tokens after the one before, and only what that one did not predict is scored. With
    `bos` every window opens with that token, which is read and never predicted.
    """

    context: int
    count: int | None = None
    stride: int | None = None
    bos: int | None = None

    def __post_init__(self) -> None:
        if self.context < 1 or (self.count is not None and self.count < 1):
            raise ValueError(f"expected at least one window of at least one prediction, found {self}")
        if self.stride is None and self.count is None:
            raise ValueError("say how many windows (count), or how far apart they follow each other (stride)")
        if self.stride is not None and not 1 <= self.stride <= self.context:
            raise ValueError(f"a stride lies between 1 and the context of {self.context}, found {self.stride}")

    @property
    def length(self) -> int:
        """Tokens of text in a window."""
        return self.context + (self.bos is None)


@dataclass(frozen=True, slots=True, eq=False)
class Windows:
    """N windows of T predictions.

    `tokens` int64 [N, T + 1]: the first T are read, the last T predicted. `first` int64 [N]: the first prediction that
    is scored. `bytes` float64 [N]: UTF-8 bytes that the scored tokens stand for. `slices`: one label per window.
    `left_out`: documents that are shorter than a window.
    """

    tokens: Tensor
    first: Tensor
    bytes: NDArray[np.float64]
    slices: tuple[str, ...]
    left_out: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def context(self) -> int:
        return self.tokens.shape[1] - 1

    @property
    def scored(self) -> Tensor:
        """Which predictions count: bool [N, T]."""
        return torch.arange(self.context) >= self.first[:, None]

    @property
    def counts(self) -> Ints:
        """Scored predictions of each window, [N]."""
        return (self.context - self.first).numpy()

    def only(self, places: Ints) -> "Windows":
        """Some of them, by number."""
        return replace(
            self,
            tokens=self.tokens[places],
            first=self.first[places],
            bytes=self.bytes[places],
            slices=tuple(self.slices[i] for i in places),
        )

    @property
    def bytes_per_token(self) -> float:
        return float(self.bytes.sum() / self.counts.sum())

    @property
    def digest(self) -> str:
        """The hash of tokens and of what is scored: equal digests were judged on the same predictions."""
        tokens, first = (part.numpy().astype("<i8") for part in (self.tokens, self.first))
        return sha256(repr(tokens.shape).encode() + tokens.tobytes() + first.tobytes()).hexdigest()


@dataclass(frozen=True, slots=True)
class _Encoded:
    """A document's tokens, and for each the bytes of text up to its end."""

    document: Document
    tokens: Ints
    ends: NDArray[np.float64]

    def bytes(self, start: int, stop: int) -> float:
        """That tokens from `start` to before `stop` stand for."""
        return float(self.ends[stop - 1] - (self.ends[start - 1] if start else 0))


def passages(documents: Sequence[Document], encode: Encode, cut: Cut, offsets: Offsets | None = None) -> Windows:
    """Cut `documents` into windows; the same arguments always give the same ones, and none crosses two documents.

    Documents of one slice that are shorter than a window are strung together, with an empty line between. Without
    `offsets` (slow tokenizers have none) a document's bytes are spread evenly over its tokens.

    Raises:
        BadData: no document has enough tokens for a window, or there are fewer different windows than asked for.
    """
    found = [_encoded(document, encode, offsets) for document in documents]
    long = [one for one in found if len(one.tokens) >= cut.length]
    for label, text in _strung([one.document for one in found if len(one.tokens) < cut.length]).items():
        long.append(_encoded(Document(label, text, label), encode, offsets))
    usable = [one for one in long if len(one.tokens) >= cut.length]
    if not usable:
        longest = max((len(one.tokens) for one in long), default=0)
        raise BadData(
            f"the longest of {len(documents)} documents has {longest} tokens; a window of context {cut.context} needs "
            f"{cut.length}: give more text or a shorter context"
        )
    spans = list(islice(_consecutive(usable, cut) if cut.stride else _spread(usable, cut), cut.count))
    left_out = tuple(one.document.name for one in long if len(one.tokens) < cut.length)
    return _windows(spans, cut, left_out)


def overlap(a: Windows, b: Windows) -> int:
    """How many windows of `a` share text with `b`: a tenth or more of their runs of 32 tokens are in `b` too.

    Tokens of two tokenizers cannot be compared; give windows of the same one.
    """
    gram = min(GRAM, a.context + 1, b.context + 1)
    known = np.unique(_grams(b.tokens.numpy(), gram))
    shares = np.isin(_grams(a.tokens.numpy(), gram), known).mean(axis=1)
    return int((shares >= SHARE).sum())


@dataclass(frozen=True, slots=True)
class _Span:
    """Tokens from `start` to before `stop` of a document, the last `scored` of which are predicted and count."""

    source: _Encoded
    start: int
    stop: int
    scored: int


def _encoded(document: Document, encode: Encode, offsets: Offsets | None) -> _Encoded:
    tokens = np.array(encode(document.text), dtype=np.int64)
    # UTF-8 spends one byte up to U+007F, then two, three and four.
    points = np.frombuffer(document.text.encode("utf-32-le"), np.uint32)
    at = np.concatenate([[0], np.cumsum(1 + sum((points > edge).astype(np.int64) for edge in (0x7F, 0x7FF, 0xFFFF)))])
    if offsets is None:
        return _Encoded(document, tokens, np.arange(1, len(tokens) + 1) * (at[-1] / max(len(tokens), 1)))
    ends = np.array([end for _, end in offsets(document.text)], dtype=np.int64)
    if len(ends) != len(tokens):
        raise ValueError(f"{document.name}: {len(tokens)} tokens and {len(ends)} offsets; expected one for each")
    # What a tokenizer drops between two tokens is read with the second one, or the text would shrink.
    return _Encoded(document, tokens, at[np.maximum.accumulate(ends)].astype(np.float64))


def _strung(short: Sequence[Document]) -> dict[str, str]:
    """The texts of each slice, joined."""
    texts: dict[str, list[str]] = {}
    for document in short:
        texts.setdefault(document.slice, []).append(document.text)
    return {label: JOINT.join(parts) for label, parts in texts.items()}


def _consecutive(usable: Sequence[_Encoded], cut: Cut) -> Iterator[_Span]:
    for one in usable:
        stops = [*range(cut.length, len(one.tokens), cut.stride or 1), len(one.tokens)]
        yield _Span(one, 0, cut.length, cut.context)
        for before, stop in pairwise(stops):
            yield _Span(one, stop - cut.length, stop, stop - before)


def _spread(usable: Sequence[_Encoded], cut: Cut) -> Iterator[_Span]:
    starts = [len(one.tokens) - cut.length + 1 for one in usable]
    wanted = cut.count or 0
    if wanted > sum(starts):
        raise BadData(
            f"{wanted} windows of context {cut.context} were asked for; these documents have {sum(starts)} different "
            "ones: give more text, fewer windows or a shorter context"
        )
    for one, places, k in zip(usable, starts, _shares(usable, starts, wanted), strict=True):
        for start in (np.arange(k) * (places - 1) // max(k - 1, 1)).tolist():
            yield _Span(one, start, start + cut.length, cut.context)


def _shares(usable: Sequence[_Encoded], most: Sequence[int], wanted: int) -> list[int]:
    """Windows of each document: one for each where that is possible, then in proportion to their tokens.

    By Sainte-Laguë's divisors; the first of equals goes first.
    """
    given = [int(wanted >= len(usable))] * len(usable)

    def turn(i: int) -> tuple[float, int]:
        return (-len(usable[i].tokens) / (2 * given[i] + 1) if given[i] < most[i] else 0.0), i

    queue = [turn(i) for i in range(len(usable))]
    heapify(queue)
    for _ in range(wanted - sum(given)):
        _, i = queue[0]
        given[i] += 1
        heapreplace(queue, turn(i))
    return given


def _windows(spans: Sequence[_Span], cut: Cut, left_out: tuple[str, ...]) -> Windows:
    opening = np.array([] if cut.bos is None else [cut.bos], dtype=np.int64)
    tokens = np.stack([np.concatenate([opening, span.source.tokens[span.start : span.stop]]) for span in spans])
    return Windows(
        tokens=torch.from_numpy(tokens),
        first=torch.tensor([cut.context - span.scored for span in spans]),
        bytes=np.array([span.source.bytes(span.stop - span.scored, span.stop) for span in spans]),
        slices=tuple(span.source.document.slice for span in spans),
        left_out=left_out,
    )


def _grams(tokens: Ints, length: int) -> NDArray[np.uint64]:
    """A hash of each run of `length` tokens of each window: uint64 [N, T + 2 - length]."""
    runs = tokens.shape[1] - length + 1
    total = np.zeros((len(tokens), runs), dtype=np.uint64)
    for i in range(length):
        # As FNV-1a does with bytes; wraps at 2^64.
        total = (total ^ tokens[:, i : i + runs].astype(np.uint64)) * np.uint64(0x9E3779B97F4A7C15)
    return total
