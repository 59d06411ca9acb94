"""What an optimizer keeps, quantized and dequantized after each step."""

from collections.abc import Generator, Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn

from qbench.capture.write import Engagement
from qbench.quant.blocks import at
from qbench.quant.quantizer import Quantizer, build

NEVER_NEGATIVE = "exp_avg_sq"
SYMMETRIC = ("GG", "factors", "roots")
SIDES: Mapping[str, tuple[str, ...]] = dict.fromkeys(("GG", "Q", "factors", "roots"), (".0", ".1"))  # of a matrix


class Kept:
    """The state of one optimizer under quantizers: `keys` maps a key of its state to one's name.

    `names` are those of the optimizer's parameters. `engagement` is told of the first values under each key:
    `state:blocks.0.attn.q.GG.1` are those of the second factor.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        keys: Mapping[str, str],
        names: Mapping[nn.Parameter, str],
        engagement: Engagement,
    ) -> None:
        self.optimizer, self.names, self.engagement = optimizer, names, engagement
        self.quantizers = {key: build(name) for key, name in keys.items()}
        asked = [
            f"state:{name}.{key}{side}" for name in names.values() for key in keys for side in SIDES.get(key, ("",))
        ]
        engagement.asked += tuple(asked)

    @torch.no_grad()
    def quantize(self, draw: int) -> None:
        """Replace what is kept by what its quantizer makes of it; `draw` numbers the stochastic rounding.

        A rotation may bring a second moment back below zero: it counts 0. Scales along one axis make a factor lopsided:
        both halves count alike. Raises NonFinite.
        """
        for parameter, name in self.names.items():
            state: Mapping[str, Any] = self.optimizer.state.get(parameter, {})
            for key, quantizer in self.quantizers.items():
                for place, kept in _tensors(f"state:{name}.{key}", state.get(key)):
                    self._replace(place, kept, quantizer.drawn(draw, place))
                    if key == NEVER_NEGATIVE:
                        kept.clamp_(min=0)
                    if key in SYMMETRIC:
                        kept.copy_((kept + kept.mT) / 2)

    def _replace(self, place: str, kept: Tensor, quantizer: Quantizer) -> None:
        with at(place):
            copy = quantizer.roundtrip(kept)
        if place not in self.engagement.places and kept.any():  # zeros, before the first real step, prove nothing
            self.engagement.note(place, quantizer, kept, copy)
        kept.copy_(copy)


def _tensors(place: str, kept: object) -> Generator[tuple[str, Tensor], None, None]:
    """The tensors under one key: itself, or those of a list, one for each side of the matrix."""
    if isinstance(kept, Tensor):
        yield place, kept
    elif isinstance(kept, list):
        sides = enumerate(cast(list[object], kept))
        yield from ((f"{place}.{side}", one) for side, one in sides if isinstance(one, Tensor))
