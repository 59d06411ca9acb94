"""How many bytes of tensors are alive at once while something runs."""

from collections.abc import Callable, Mapping
from typing import Any
from weakref import finalize

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class _Alive(TorchDispatchMode):
    """Counts the bytes of each new tensor until it is freed; views own nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.most = 0
        self.known: set[int] = set()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        given = {leaf.untyped_storage().data_ptr() for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)}
        result = func(*args, **(kwargs or {}))
        for made in tree_leaves(result):
            if isinstance(made, Tensor) and made.untyped_storage().data_ptr() not in given:
                size = made.untyped_storage().nbytes()
                self.now += size
                self.most = max(self.most, self.now)
                finalize(made, self._free, size)
        return result

    def _free(self, size: int) -> None:
        self.now -= size


def peak_bytes(run: Callable[[], object]) -> int:
    """The most that was alive at once of the tensors made while `run` ran; the caller's thread only."""
    with _Alive() as alive:
        run()
    return alive.most
