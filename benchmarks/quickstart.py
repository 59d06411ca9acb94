"""CPU seconds that the quickstart spends measuring the tensors of one model: with the shared pass, and one by one.

    python benchmarks/quickstart.py

Tensors of the quickstart's shapes and its quantizers, without the model that would make them.
"""

import time
from collections.abc import Sequence
from unittest.mock import patch

import torch

from qbench.quant import sweep
from qbench.suite.tally import Tally

STREAM, HIDDEN = (16, 63, 64), (16, 63, 256)  # windows of one recorded batch, tokens, channels
SITES = 6 * (9 * [STREAM] + [HIDDEN]) + 4 * [STREAM]  # of six blocks, and the ends
MATRICES = 6 * (4 * [(64, 64)] + [(256, 64), (64, 256)])
GRID = ("tensor", "token", "block:32")
PASSES: tuple[tuple[str, Sequence[str], Sequence[tuple[int, ...]]], ...] = (
    (
        "activation",
        [*(f"int{b}/{g}" for b in (3, 4, 6, 8) for g in GRID), "mxfp4", "lloyd4/block:64", "int4/tensor+hadamard"],
        SITES,
    ),
    ("gradient", [f"int{b}/{g}" for b in (4, 8) for g in GRID[:2]], SITES),
    ("weight", ["int4/tensor", "int4/channel"], MATRICES),
)


def measure() -> float:
    generator = torch.Generator().manual_seed(0)
    seconds = 0.0
    for kind, quantizers, shapes in PASSES:
        tally = Tally(kind, quantizers, shape=True)
        for i, shape in enumerate(shapes):
            x = torch.randn(shape, generator=generator)
            start = time.process_time()
            tally.visit(str(i), x)
            seconds += time.process_time() - start
    return seconds


if __name__ == "__main__":
    torch.set_num_threads(1)
    together = min(measure() for _ in range(4))
    with patch.object(sweep, "kernel", lambda: None):
        apart = min(measure() for _ in range(4))
    print(f"one by one {apart:.3f} s, in one pass {together:.3f} s: {apart / together:.1f} times faster")
