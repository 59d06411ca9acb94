"""Queries, keys and values of a transformers model, which never leave one of its modules, made to pass through some.

An attention function shows them, as attention reads them, to modules without parameters, and then calls the function
that the model was loaded with. Where nobody looks, the tensors are not touched.
"""

import sys
from collections.abc import Callable, Iterable
from typing import Any, cast

from torch import Tensor, nn

Attention = Callable[..., Any]

SEEN_THROUGH = ("sdpa", "eager")
PREFIX = "qbench-"
NAME = "qbench_taps"  # of the module that each attention gets


class Tap(nn.Module):
    """A tensor [B, T, H D] on its way into attention: heads side by side, those of keys and values not repeated."""

    def forward(self, x_BTC: Tensor) -> Tensor:
        return x_BTC

    def through(self, x_BHTD: Tensor) -> Tensor:
        """The same values, or what a hook puts in their place, in attention's own shape."""
        if not self._forward_hooks:
            return x_BHTD
        y_BTC = self(x_BHTD.transpose(1, 2).flatten(2))
        return y_BTC.unflatten(2, (x_BHTD.shape[1], -1)).transpose(1, 2)


class Taps(nn.Module):
    """The three tensors that one attention reads."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.key, self.value = Tap(), Tap(), Tap()


def taps(attention: nn.Module) -> Taps:
    """The taps of one attention module, which has them after `tap`."""
    return cast(Taps, attention.get_submodule(NAME))


def tap(model: Any, attentions: Iterable[nn.Module]) -> None:
    """Give a transformers model its taps, once: modules without parameters, and an attention function before its own.

    Logits stay equal to the bit. Raises ValueError where attention runs in a kernel of another interface.
    """
    plain = str(model.config._attn_implementation).removeprefix(PREFIX)
    if plain not in SEEN_THROUGH:
        raise ValueError(
            f"queries, keys and values cannot be seen in attention {plain!r}; load the model with attn_implementation="
            f"{' or '.join(SEEN_THROUGH)}"
        )
    for attention in attentions:
        if not hasattr(attention, NAME):
            attention.add_module(NAME, Taps())
    if model.config._attn_implementation == plain:
        _register(plain)
        model.set_attn_implementation(PREFIX + plain)


def _register(plain: str) -> None:
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, AttentionMaskInterface
    from transformers.modeling_utils import AttentionInterface

    AttentionInterface.register(PREFIX + plain, _FUNCTIONS[plain])
    AttentionMaskInterface.register(PREFIX + plain, ALL_MASK_ATTENTION_FUNCTIONS[plain])


def _shown(module: nn.Module, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """A copy of a config may bring the function to a model that was never given taps."""
    mine = getattr(module, NAME, None)
    if not isinstance(mine, Taps):
        return query, key, value
    return mine.query.through(query), mine.key.through(key), mine.value.through(value)


def _sdpa(module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, **settings: Any) -> Any:
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    return sdpa_attention_forward(module, *_shown(module, query, key, value), mask, **settings)


def _eager(module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, **settings: Any) -> Any:
    seen = _shown(module, query, key, value)
    if getattr(module, "reorder_and_upcast_attn", False):  # GPT-2 chooses this itself, but only for the name "eager"
        return cast(Any, module)._upcast_and_reordered_attn(*seen, mask)
    family = sys.modules[type(module).__module__]  # each has its own, such as one with soft-capping
    return cast(Any, family).eager_attention_forward(module, *seen, mask, **settings)


_FUNCTIONS: dict[str, Attention] = {"sdpa": _sdpa, "eager": _eager}
