"""How fast a training is: tokens per second, and the share of the machine's arithmetic that the model's needs."""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

import torch

from qbench.models.transformer import Transformer
from qbench.train.optimizer import HEADS, TABLES
from qbench.train.spec import Precision
from qbench.train.trainer import Batch, pair

# Dense operations per second that the makers state, with bfloat16 tensor cores and in plain float32; the more
# particular name first.
PEAKS: Mapping[str, tuple[float, float]] = MappingProxyType(
    {
        "H200 NVL": (835e12, 60e12),
        "H200": (989e12, 67e12),
        "H100 PCIe": (756e12, 51e12),
        "H100 NVL": (835e12, 60e12),
        "H100": (989e12, 67e12),
        "A100": (312e12, 19.5e12),
    }
)


@dataclass(frozen=True, slots=True)
class Throughput:
    """`tokens` read in `seconds` of wall time, which need `operations` on this model (additions and products)."""

    tokens: int
    seconds: float
    operations: float

    @property
    def tokens_per_second(self) -> float:
        return self.tokens / self.seconds if self.seconds else 0.0

    def utilization(self, peak: float) -> float:
        """Model-FLOPs utilization: the share of `peak` operations per second; recomputation is not counted."""
        return self.operations / self.seconds / peak if self.seconds else 0.0


def positions(model: Transformer, batch: Batch) -> int:
    """Tokens that a batch makes the model read; of images, their patches."""
    inputs, _ = pair(batch)
    return inputs.numel() if model.spec.task == "language" else len(inputs) * model.spec.length


def operations_per_token(model: Transformer) -> float:
    """Forward and backward, 6 N + 12 L T D (Chowdhery et al., arXiv 2204.02311, appendix B).

    N counts the weights that are multiplied with, so not tables that are looked up; D is the width of attention over
    T positions, of which nothing is taken off for the causal mask. A classifier's head reads one vector of an image,
    and its patches, which are no activations, need no gradient.
    """
    spec, weights = model.spec, model.weights()
    operations = 12.0 * spec.layers * spec.length * weights["blocks.0.attn.q"].shape[0]
    operations += 6.0 * sum(w.numel() for name, w in weights.items() if name not in (*TABLES, *HEADS))
    head, patches = weights["logits"].numel(), weights["embed"].numel()
    if spec.task == "language":
        return operations + 6.0 * head
    without_token = (spec.length - (spec.pooling == "class")) / spec.length
    return operations + 6.0 * head / spec.length + 4.0 * patches * without_token


def stated_peak(device: torch.device, precision: Precision) -> tuple[float, str] | None:
    """Operations per second that the maker states for `device`, and where that number is from.

    None for a device that is not in PEAKS. A measured peak is no substitute: a large matrix product on a loaded CPU
    reached half of what the training of a small model did beside it.
    """
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else ""
    for known, peaks in PEAKS.items():
        if known in name:
            return peaks[precision == "float32"], f"stated for {known}"
    return None
