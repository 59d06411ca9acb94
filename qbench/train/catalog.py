"""Every low-bit optimizer of torchao and bitsandbytes that a suite may name. No torch here."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One optimizer; `twin` is the same rule with float32 state, `options` go to both beside the learning rate.

    A tensor whose values are no multiple of `multiple` keeps its state in full precision.
    """

    meaning: str
    bits: int
    twin: str
    multiple: int = 1
    options: Mapping[str, float] = field(default_factory=dict[str, float])
    cuda_only: str = ""


_MOMENTUM: Mapping[str, float] = MappingProxyType({"momentum": 0.9})


def _blockwise(meaning: str, name: str, **more: Any) -> Row:
    return Row(meaning=meaning, bits=8, twin=f"bitsandbytes/{name}", **more)


OPTIMIZERS: Mapping[str, Row] = MappingProxyType(
    {
        "torchao/AdamW8bit": Row(
            meaning="both moments in 8-bit dynamic maps", bits=8, multiple=256, twin="torch/AdamW"
        ),
        "torchao/AdamW4bit": Row(meaning="both moments in 4 bits", bits=4, multiple=128, twin="torch/AdamW"),
        "torchao/AdamWFp8": Row(meaning="both moments in e4m3", bits=8, multiple=256, twin="torch/AdamW"),
        "bitsandbytes/AdamW8bit": _blockwise("both moments in 8-bit dynamic maps", "AdamW"),
        "bitsandbytes/PagedAdamW8bit": _blockwise(
            "the same, moved to the host when the device is full", "AdamW", cuda_only="pages only on CUDA"
        ),
        "bitsandbytes/Lion8bit": _blockwise("the one moment of Lion in 8 bits", "Lion"),
        "bitsandbytes/SGD8bit": _blockwise("momentum in 8 bits", "SGD", options=_MOMENTUM),
        "bitsandbytes/RMSprop8bit": _blockwise("the second moment in 8 bits", "RMSprop"),
        "bitsandbytes/AdEMAMix8bit": _blockwise("two first moments and a second in 8 bits", "AdEMAMix"),
        "bitsandbytes/LAMB8bit": _blockwise("both moments in 8 bits, and no trust ratio: Adam in truth", "LAMB"),
        "bitsandbytes/Adagrad8bit": _blockwise("the sum of squares in 8 bits", "Adagrad"),
    }
)
