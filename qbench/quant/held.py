"""What a layer of torchao or bitsandbytes really holds: its tensors, their bytes, and the weights they stand for."""

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from qbench.quant.libraries import load


def tensors(module: nn.Module) -> Iterator[Tensor]:
    """Every plain tensor that `module` keeps: tensor subclasses taken apart, and what bitsandbytes keeps beside them.

    The same tensor may come twice; `stored_bytes` counts its memory once.
    """
    for kept in (*module.parameters(), *module.buffers()):
        yield from plain(kept)
        yield from _of_state(getattr(kept, "quant_state", None))
        yield from _named(kept, ("CB", "SCB"))
    for part in module.modules():
        yield from _named(getattr(part, "state", None), ("CB", "SCB"))


def plain(x: Tensor) -> Iterator[Tensor]:
    """The tensors that a subclass is made of, down to those that own memory."""
    flatten = getattr(x, "__tensor_flatten__", None)
    if flatten is None:
        yield x.detach()
        return
    for name in flatten()[0]:
        yield from plain(getattr(x, name))


def stored_bytes(kept: Iterable[Tensor]) -> int:
    """Bytes of memory behind these tensors, shared memory counted once."""
    storages = {storage.data_ptr(): storage.nbytes() for x in kept if (storage := x.untyped_storage())}
    return sum(storages.values())


@torch.no_grad()
def dequantized(module: nn.Module) -> Tensor:
    """The weights [out, in] that the layer multiplies with, in the dtype that it decodes them to.

    Where the library has no decoder for a layout, the layer is multiplied with the identity.
    """
    weight: Any = module.weight
    state = getattr(weight, "quant_state", None)
    if state is not None and not getattr(state, "packing_format_for_cpu", False):
        return load("bitsandbytes.functional").dequantize_4bit(weight.data, state)
    scales = _row_scales(module)
    if scales is not None:
        return weight.data.float() * (scales.float() / 127).unsqueeze(1)
    if hasattr(weight, "__tensor_flatten__") and type(weight).dequantize is not Tensor.dequantize:
        return weight.dequantize()
    return _through(module) if state is not None or hasattr(weight, "__tensor_flatten__") else weight.detach()


def _through(module: nn.Module) -> Tensor:
    """The weights as they act on the unit vectors; exact, because everything else in such a product is zero."""
    weight = module.get_parameter("weight")
    state = getattr(weight, "quant_state", None)
    if state is None:
        ones = torch.eye(weight.shape[-1], dtype=weight.dtype, device=weight.device)
        return nn.functional.linear(ones, weight).T.contiguous()
    # Packed for a CPU, with scales in bfloat16: what it multiplies with are bfloat16 numbers.
    ones = torch.eye(int(state.shape[1]), dtype=torch.bfloat16, device=weight.device)
    return load("bitsandbytes").matmul_4bit(ones, weight, quant_state=state).T.contiguous()


def _row_scales(module: nn.Module) -> Tensor | None:
    """The largest magnitude of each row, which bitsandbytes keeps in the weight until the first forward pass."""
    of_weight = getattr(module.weight, "SCB", None)
    return of_weight if of_weight is not None else getattr(getattr(module, "state", None), "SCB", None)


def _of_state(state: object) -> Iterator[Tensor]:
    """The tensors of bitsandbytes' description of a 4-bit weight, and of the one for its scales."""
    if state is None:
        return
    yield from _named(state, ("absmax", "code", "offset"))
    yield from _of_state(getattr(state, "state2", None))


def _named(holder: object, names: Iterable[str]) -> Iterator[Tensor]:
    for name in names:
        found = getattr(holder, name, None)
        if isinstance(found, Tensor):
            yield found.detach()
