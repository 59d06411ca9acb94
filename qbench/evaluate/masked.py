"""Masked language models, made to look like causal ones: what is scored is then the same code.

A `Reader` hides tokens of the windows it is given and answers for each position what the next one holds; `ask` makes
windows of which exactly those answers count. Every chosen token is replaced by the mask (none by a random token, none
left in place): a loss is comparable with others only under the same share and this rule.
"""

from collections.abc import Collection
from dataclasses import dataclass
from hashlib import blake2b, sha256
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from qbench.data.passages import Windows
from qbench.data.text import BadData
from qbench.evaluate.pieces import divided, vocabulary

SHARE = 0.15  # J. Devlin et al., BERT, arXiv 1810.04805, section 3.1
Ints = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Masking:
    """Which tokens are hidden: `share` of a window's, rounded and at least one, by a hash of its own tokens and `seed`.

    `mask` is the id put in their place. `spared` ids (special tokens) are never hidden, nor is a window's first token.
    """

    mask: int
    seed: int = 0
    share: float = SHARE
    spared: frozenset[int] = frozenset()

    def __post_init__(self) -> None:
        if not 0 < self.share <= 1:
            raise ValueError(f"the share to hide lies above 0 and goes up to 1, found {self.share}")

    def hidden(self, tokens: Tensor) -> Tensor:
        """bool [B, T] for int64 tokens [B, T]; a window hides the same ones wherever it stands.

        Raises:
            BadData: a window has nothing that may be hidden.
        """
        windows = tokens.cpu().numpy()
        hidden = np.zeros(windows.shape, dtype=np.bool_)
        never = np.array([self.mask, *self.spared])
        for window, found in zip(windows, hidden, strict=True):
            places = 1 + np.flatnonzero(~np.isin(window[1:], never))
            if not len(places):
                raise BadData("a window holds nothing but special tokens: there is nothing to hide")
            order = np.argsort(_hashes(window, places, self.seed), kind="stable")
            found[places[order[: max(1, round(self.share * len(places)))]]] = True
        return torch.from_numpy(hidden).to(tokens.device)


@dataclass(frozen=True, slots=True, eq=False)
class MaskedWindows(Windows):
    """Windows of which only hidden tokens are scored; `asked` bool [N, T] says which predictions that are."""

    asked: Tensor | None = None

    @property
    def scored(self) -> Tensor:
        assert self.asked is not None
        return self.asked

    @property
    def counts(self) -> Ints:
        return self.scored.sum(1).numpy()

    @property
    def digest(self) -> str:
        """The hash of tokens and of what is asked of them."""
        tokens = self.tokens.numpy().astype("<i8")
        return sha256(repr(tokens.shape).encode() + tokens.tobytes() + self.scored.numpy().tobytes()).hexdigest()


def ask(windows: Windows, masking: Masking) -> MaskedWindows:
    """The same windows, scored where a `Reader` with the same masking hides a token that they score.

    Of the T + 1 tokens of a window the last is not read, as with causal models. `bytes` are shared out evenly over
    the tokens that `windows` scores.

    Raises:
        BadData: in some window nothing that is scored is hidden.
    """
    # A prediction is of the next token; the one after the last that is read is never hidden.
    asked = torch.zeros_like(windows.scored)
    asked[:, :-1] = masking.hidden(windows.tokens[:, :-1])[:, 1:]
    asked &= windows.scored
    if empty := int((~asked.any(1)).sum()):
        raise BadData(
            f"{empty} of {len(windows)} windows score no hidden token: hide a larger share or take a longer stride"
        )
    text = windows.bytes * asked.sum(1).numpy() / windows.counts
    return MaskedWindows(windows.tokens, windows.first, text, windows.slices, windows.left_out, asked)


class Reader(nn.Module):
    """`model` with tokens hidden from it: logits [B, T, V] whose row t is what it thinks token t + 1 is.

    Only rows before a hidden token answer a question; the last row repeats the first and answers none.
    """

    def __init__(self, model: nn.Module, masking: Masking) -> None:
        super().__init__()
        self.model = model
        self.masking = masking

    @property
    def vocabulary(self) -> int | None:
        return vocabulary(self.model)

    def forward(self, tokens: Tensor) -> Tensor:
        return self._next(self.model, tokens)

    def hidden(self, tokens: Tensor) -> Tensor:
        """States [B, T, D] of which `head` makes the logits."""
        return self._next(divided(self.model)[0], tokens)

    def head(self, states: Tensor) -> Tensor:
        return divided(self.model)[1](states)

    def _next(self, step: Any, tokens: Tensor) -> Tensor:
        return step(tokens.masked_fill(self.masking.hidden(tokens), self.masking.mask)).roll(-1, dims=1)


def masking_of(tokenizer: Any, *, seed: int = 0, share: float = SHARE) -> Masking:
    """The masking of a tokenizer of `transformers`; BadData where it has no mask token."""
    if tokenizer.mask_token_id is None:
        raise BadData(f"this {type(tokenizer).__name__} has no mask token; a masked language model's tokenizer has one")
    special: Collection[int] = tokenizer.all_special_ids
    return Masking(tokenizer.mask_token_id, seed, share, frozenset(special))


def _hashes(window: Ints, places: Ints, seed: int) -> NDArray[np.uint64]:
    """A number for each place from the window's tokens, the place and the seed: SplitMix64 over a keyed digest.

    G. Steele, D. Lea, C. Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014.
    """
    key = blake2b(window.astype("<i8").tobytes(), digest_size=8, key=str(seed).encode()).digest()
    z = np.frombuffer(key, "<u8") + (places.astype(np.uint64) + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))
