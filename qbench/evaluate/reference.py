"""What an unquantized model said, kept as its last states and its head: candidates are then compared without it."""

import json
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Protocol

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from qbench.data.passages import Windows
from qbench.evaluate.head import Head, own_head, plain_head
from qbench.evaluate.likelihood import BATCH
from qbench.evaluate.pieces import Step, divided
from qbench.results.files import cannot_write, make_folder, whole

FORMAT = "qbench.reference/1"
IN_MEMORY = 2**30  # bytes of states; more go to a temporary file
TYPES = {torch.int64: "I64", torch.float64: "F64", torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16"}


class BadReference(ValueError):
    """A stored reference cannot be read, or what it holds cannot be compared with what is at hand."""


class States(Protocol):
    """States [N, T, D] that may lie on disk: windows are read as they are needed."""

    def __getitem__(self, windows: slice, /) -> Tensor: ...


@dataclass(frozen=True, slots=True, eq=False)
class Reference:
    """The windows, a model's last states on them, the head that makes logits of these, and where they come from.

    `meta` is what was said when it was saved: the digests of the model (`model`) and of its tokenizer (`tokenizer`).
    """

    windows: Windows
    states: States
    head: Step
    vocabulary: int
    meta: Mapping[str, str] = field(default_factory=dict[str, str])

    def on(self, device: torch.device) -> Step:
        return self.head.on(device) if isinstance(self.head, Head) else self.head

    def expect(self, windows: Windows, tokenizer: str = "") -> None:
        """Raises BadReference unless `windows` are its own; and the tokenizer, where both sides name one."""
        known = self.meta.get("tokenizer", "")
        if tokenizer and known and tokenizer != known:
            raise BadReference(
                f"the reference was tokenized by {known[:12]}, the candidate by {tokenizer[:12]}: the same number is "
                "another word, so there is nothing to compare; use the reference's tokenizer"
            )
        if windows.digest != self.windows.digest:
            raise BadReference(
                f"the reference has {_described(self.windows)}, found {_described(windows)}: predictions of different "
                "texts cannot be compared; score the reference's own windows"
            )

    def expect_vocabulary(self, found: int) -> None:
        """Raises BadReference unless the candidate's `found` logits a token are as many as the reference's."""
        if found != self.vocabulary:
            raise BadReference(
                f"the candidate knows {found} tokens, the reference {self.vocabulary}: their distributions have no "
                "common support; is it another base model, or was its vocabulary padded?"
            )


@torch.no_grad()
def references(model: nn.Module, windows: Windows, path: Path | None = None, batch: int = BATCH) -> Reference:
    """What `model` says of `windows`, untouched by whatever is done to the model afterwards.

    States stay in memory, those above 1 GiB in a temporary file; with a `path` they are saved there.

    Raises:
        BadReference: a path is given and the model's head is no linear layer.
        CannotWrite: there is no room.
    """
    if path is not None:
        save(model, windows, path, {}, batch)
        return load(path)
    first, states = _states(model, windows, batch)
    sample = first[:1].to(next(model.parameters()).device)
    head = own_head(model, sample)
    vocabulary = head(sample).shape[-1]
    if first[:1].numel() * first.element_size() * len(windows) <= IN_MEMORY:
        return Reference(windows, torch.cat(list(states)), head, vocabulary)
    with TemporaryDirectory(prefix="qbench-", ignore_cleanup_errors=True) as folder:
        place = Path(folder, "states.safetensors")
        shape = (len(windows), *first.shape[1:])
        _write(place, {}, (shape, first.dtype, states), {})
        # The file has no name any more when this returns, and lives as long as its mapping does.
        return Reference(windows, _opened(place).get_slice("states"), head, vocabulary)


@torch.no_grad()
def save(model: nn.Module, windows: Windows, path: Path, meta: Mapping[str, str], batch: int = BATCH) -> None:
    """Write windows, states, head and `meta` to one safetensors file, whole or not at all; a batch is in memory.

    Raises:
        BadReference: the head is no linear layer, or the windows are a masked language model's.
        CannotWrite: it cannot be stored.
    """
    if type(windows) is not Windows:
        raise BadReference("windows with holes cannot be stored: compare masked language models in one run")
    first, states = _states(model, windows, batch)
    head = plain_head(model, first[:1].to(next(model.parameters()).device))
    if head is None:
        width = divided(model)[1](first[:1, :1].to(next(model.parameters()).device)).shape[-1]
        count = windows.tokens[:, 1:].numel() * width
        raise BadReference(
            f"the head of this {type(model).__name__} is no linear layer of its last states"
            f"{_reason(model)}; all {count:,} logits would have to be stored: compare it with its candidates in one run"
        )
    tensors = {
        "tokens": windows.tokens,
        "first": windows.first,
        "bytes": torch.from_numpy(windows.bytes),
        "head.weight": head.weight,
        **({} if head.bias is None else {"head.bias": head.bias}),
    }
    own = {
        "format": FORMAT,
        "after": json.dumps(head.after),
        "slices": json.dumps(windows.slices),
        "left_out": json.dumps(windows.left_out),
    }
    if taken := own.keys() & meta.keys():
        raise ValueError(f"a reference's metadata may not use {', '.join(sorted(taken))}")
    make_folder(path.parent)
    _write(path, tensors, ((len(windows), *first.shape[1:]), first.dtype, states), {**meta, **own})


def load(path: Path) -> Reference:
    """What `save` wrote; the states stay on disk until they are used. Raises BadReference."""
    file = _opened(path)
    meta: dict[str, str] = dict(file.metadata() or {})
    if meta.pop("format", None) != FORMAT:
        raise BadReference(f"{path}: not a reference of the kind {FORMAT}; `qbench reference save` writes one")
    try:
        after, slices, left_out = (json.loads(meta.pop(key)) for key in ("after", "slices", "left_out"))
        names = set(file.keys())
        bias = file.get_tensor("head.bias") if "head.bias" in names else None
        head = Head(file.get_tensor("head.weight"), bias, tuple((name, amount) for name, amount in after))
        tokens, first, counted = (file.get_tensor(name) for name in ("tokens", "first", "bytes"))
        windows = Windows(tokens, first, counted.numpy(), tuple(slices), tuple(left_out))
        return Reference(windows, file.get_slice("states"), head, len(head.weight), meta)
    except (KeyError, ValueError, SafetensorError) as error:
        raise BadReference(f"{path}: damaged: {error}") from error


def _states(model: nn.Module, windows: Windows, batch: int) -> tuple[Tensor, Iterator[Tensor]]:
    """The first batch's states, and those of all batches; on the CPU."""
    device = next(model.parameters()).device
    hidden = divided(model)[0]
    every = (hidden(part[:, :-1].to(device)).cpu() for part in windows.tokens.split(batch))
    first = next(every)
    return first, chain([first], every)


def _write(
    path: Path,
    tensors: Mapping[str, Tensor],
    states: tuple[Sequence[int], torch.dtype, Iterator[Tensor]],
    meta: Mapping[str, str],
) -> None:
    """A safetensors file whose last and largest tensor is written as it is computed."""
    shape, dtype, batches = states
    header: dict[str, object] = {"__metadata__": dict(meta)}
    end = 0
    sizes = {name: (tuple(tensor.shape), tensor.dtype) for name, tensor in tensors.items()}
    for name, (extent, kind) in {**sizes, "states": (tuple(shape), dtype)}.items():
        start, end = end, end + torch.Size(extent).numel() * kind.itemsize
        header[name] = {"dtype": TYPES[kind], "shape": extent, "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with whole(path) as draft, cannot_write(path), draft.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for tensor in chain(tensors.values(), batches):
            file.write(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)


def _opened(path: Path) -> safe_open:
    try:
        return safe_open(path, framework="pt")
    except FileNotFoundError as error:
        raise BadReference(f"{path}: no such file; `qbench reference save` writes one") from error
    except (OSError, SafetensorError) as error:
        raise BadReference(f"{path}: not a safetensors file, or cut short: {error}") from error


def _described(windows: Windows) -> str:
    return f"{len(windows)} windows of context {windows.context} ({windows.digest[:12]})"


def _reason(model: nn.Module) -> str:
    said = getattr(model, "undivided", "")
    return f" ({said})" if said else ""
