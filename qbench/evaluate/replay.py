"""One batch through a model again and again, each time only from the block where something changed."""

from collections.abc import Generator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any, cast

from torch import Tensor, nn


class Prefix:
    """What left each block in a clean pass; `resumed` gives it back in place of the blocks before the first changed.

    The model's own forward runs every time, so what it does before, between and after its blocks stays what it is, and
    equal shapes give equal bits. `forwards` counts the blocks that really ran.
    """

    def __init__(self, blocks: Sequence[nn.Module]) -> None:
        self.blocks = tuple(blocks)
        self.left: dict[int, Any] = {}
        self.forwards = 0

    @contextmanager
    def recorded(self) -> Generator[None, None, None]:
        """While open, keep what leaves the blocks in one pass; ValueError where a pass cannot be resumed."""
        self.left.clear()
        with ExitStack() as hooks:
            for i, block in enumerate(self.blocks):
                hooks.enter_context(block.register_forward_hook(partial(self._keep, i), with_kwargs=True))
            yield
        if len(self.left) < len(self.blocks):
            missing = min(set(range(len(self.blocks))) - set(self.left))
            raise ValueError(f"block {missing} of {len(self.blocks)} was not reached by the forward pass")

    @contextmanager
    def resumed(self, first: int) -> Generator[None, None, None]:
        """While open, blocks before `first` are not run; they give what left them in the recorded pass."""
        with ExitStack() as undo:
            for i, block in enumerate(self.blocks[:first]):
                undo.enter_context(_instead(block, partial(self._given, i)))
            yield
        self.forwards += len(self.blocks) - first

    def _keep(self, i: int, _block: nn.Module, _inputs: Any, named: dict[str, Any], output: Any) -> None:
        if named.get("past_key_values") is not None:
            raise ValueError("the model keeps keys and values from pass to pass: call it with use_cache=False")
        if i in self.left:
            raise ValueError(f"block {i} runs twice in one pass: its layers share weights and cannot be singled out")
        self.left[i] = _copy(output)
        self.forwards += 1

    def _given(self, i: int, *_inputs: Any, **_named: Any) -> Any:
        return _copy(self.left[i])


@contextmanager
def _instead(block: nn.Module, forward: Any) -> Generator[None, None, None]:
    before = block.__dict__.get("forward")
    block.forward = forward
    try:
        yield
    finally:
        del block.forward
        if before is not None:  # put there by somebody else, such as accelerate
            block.forward = before


def _copy(output: Any) -> Any:
    """A copy, because the next block may add to its input in place."""
    if isinstance(output, Tensor):
        return output.detach().clone()
    if isinstance(output, tuple):
        return tuple(_copy(part) for part in cast(tuple[Any, ...], output))
    return output
