"""A model as two steps, states and head, so that logits exist only a piece at a time."""

from collections.abc import Callable, Iterator
from typing import Any

from torch import Tensor, nn

MOST = 2**24  # logits of a piece: 64 MB in float32
CACHED = 2**18  # on a CPU a piece is compared fastest where it stays in the cache
FEWEST = 128  # rows of a piece even then: with fewer, reading the head's weights costs more than using them

Step = Callable[[Tensor], Tensor]


def divided(model: nn.Module) -> tuple[Step, Step]:
    """States [B, T, D] of tokens [B, T], and logits [..., V] of states; the logits are a model's states if need be."""
    steps: list[Any] = [getattr(model, name, None) for name in ("hidden", "head")]
    if all(map(callable, steps)):
        return steps[0], steps[1]
    return model, same


def vocabulary(model: nn.Module) -> int | None:
    """Logits of one prediction, where the model says so before it has made one."""
    spec: Any = getattr(model, "spec", None)
    size: Any = getattr(model, "vocabulary", None) or getattr(spec, "vocabulary", None)
    return size if isinstance(size, int) else None


def pieces(rows: int, width: int, device_type: str) -> Iterator[slice]:
    """`rows` rows of `width` logits in turns of at most `MOST` logits.

    >>> [len(range(*piece.indices(1000))) for piece in pieces(1000, 2**15, "cuda")]
    [512, 488]
    """
    most = max(1, MOST // width)
    step = min(most, max(FEWEST, CACHED // width)) if device_type == "cpu" else most
    return (slice(start, min(start + step, rows)) for start in range(0, rows, step))


def turns(rows: int, width: int, device_type: str) -> Iterator[slice]:
    """Of a piece, as many rows at a time as stay in the cache.

    >>> [len(range(*turn.indices(10))) for turn in turns(10, 2**16, "cpu")], list(turns(10, 2**16, "cuda"))
    ([4, 4, 2], [slice(0, 10, None)])
    """
    step = max(1, CACHED // width) if device_type == "cpu" else rows
    return (slice(start, min(start + step, rows)) for start in range(0, rows, step))


def same(states: Tensor) -> Tensor:
    """The head of a model whose states are its logits."""
    return states
