"""How much attention looks at its own token at step 0, and what makes it do so as much as wanted.

Without skip connections a token's own signal passes a layer only through attention to itself. Constants that make that
0.9 at width 768 make it 0.4 at 128; a target does not depend on the width.

Shape suffixes: B windows, H heads, T tokens, D width.
"""

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor

from qbench.models.attention import Attention
from qbench.models.spec import ModelSpec
from qbench.models.temperature import Fixed

WINDOWS = 4
LOWEST, HIGHEST, HALVINGS = 2.0**-8, 2.0**8, 24


def aim(layers: Sequence[Attention], spec: ModelSpec) -> None:
    """Set each layer's temperature so that attention to itself is 1 - c / L, c being `spec.temperature_strength`.

    The product over the layers is then about e^-c, whatever their number. Raises ValueError where no temperature does
    it, as with queries and keys that have no common diagonal.
    """
    for layer, attention in enumerate(layers):
        assert isinstance(attention.heat, Fixed)
        looks = partial(own_weight, logits(attention, spec))
        found = bisected(looks, 1 - spec.temperature_strength / spec.layers, f"temperature target in layer {layer}")
        attention.heat.value.fill_(found)


def bisected(looks: Callable[[float], float], wanted: float, what: str) -> float:
    """The x from 2^-8 to 2^8 at which `looks`, which rises, is `wanted`. Raises ValueError where there is none."""
    low, high = LOWEST, HIGHEST
    reach = looks(low), looks(high)
    if not reach[0] <= wanted <= reach[1]:
        raise ValueError(
            f"{what}: attention cannot look at itself {wanted:.3g} at first, only {reach[0]:.3g} to {reach[1]:.3g}; "
            "use an init with a larger diagonal, wider heads or another temperature_strength"
        )
    for _ in range(HALVINGS):
        middle = (low * high) ** 0.5
        low, high = (middle, high) if looks(middle) < wanted else (low, middle)
    return (low * high) ** 0.5


@torch.no_grad()
def logits(attention: Attention, spec: ModelSpec) -> Tensor:
    """Attention logits [B, H, T, T] of tokens drawn from a Gaussian and normalized, before any temperature.

    -inf where a decoder's query sees no key. The tokens are the same for all layers and models of a width.
    """
    generator = torch.Generator().manual_seed(0)
    x_BTD = torch.randn(WINDOWS, spec.length, spec.width, generator=generator)
    x_BTD = x_BTD / x_BTD.square().mean(-1, keepdim=True).sqrt()
    q_BHTD, k_BHTD, _ = attention.by_head(x_BTD)
    logits_BHTT = q_BHTD @ k_BHTD.mT * attention.scale
    if spec.task == "language":
        logits_BHTT = logits_BHTT.masked_fill(torch.ones_like(logits_BHTT[0, 0]).triu(1).bool(), float("-inf"))
    return logits_BHTT


def own_weight(logits_BHTT: Tensor, factor: float = 1.0) -> float:
    """Mean softmax weight of a query on its own token, over the later half of a window, which sees most keys."""
    late_BHT = (factor * logits_BHTT).softmax(-1).diagonal(dim1=-2, dim2=-1)
    return late_BHT[..., late_BHT.shape[-1] // 2 :].mean().item()
