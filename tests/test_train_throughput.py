"""Operations counted by a formula against those that torch counts, and what is made of them."""

import importlib
from itertools import repeat
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from qbench.models.catalog import model_spec
from qbench.models.transformer import Transformer, build
from qbench.train.fit import fit
from qbench.train.spec import TrainingSpec
from qbench.train.throughput import Throughput, operations_per_token, positions, stated_peak
from qbench.train.trainer import loss_of


def small(arch: str = "residual", **sizes: Any) -> Transformer:
    sizes = {"layers": 2, "width": 32, "heads": 2, "context": 16, "vocabulary": 24} | sizes
    return build(model_spec(arch, **sizes), seed=0)


@pytest.mark.parametrize(
    ("arch", "sizes"),
    [
        ("residual", {}),
        ("residual", {"layers": 3}),
        ("residual", {"context": 64}),
        ("residual", {"width": 48, "mlp_ratio": 2}),
        ("residual", {"vocabulary": 100}),
        ("residual-free", {"positions": "learned"}),
        ("swiglu", {}),
        ("osp", {}),
        ("residual", {"task": "vision", "image": 8, "patch": 2}),
        ("residual", {"task": "vision", "image": 8, "patch": 4, "channels": 3, "pooling": "class"}),
        ("residual-free", {"task": "vision", "image": 8, "positions": "learned", "vocabulary": 100}),
    ],
)
def test_operations_are_those_that_torch_counts(arch: str, sizes: dict[str, Any]) -> None:
    """Forward and backward of one batch, attention as plain products: of fused ones on a CPU torch counts none."""
    model = small(arch, **sizes)
    spec = model.spec
    x = torch.randint(24, (4, spec.context))
    x, y = (x, x) if spec.task == "language" else (torch.rand(4, spec.channels, spec.image, spec.image), x[:, 0])
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        loss_of(model, x, y).backward()
    assert counter.get_total_flops() == pytest.approx(operations_per_token(model) * positions(model, (x, y)), rel=1e-12)


def test_gpt2_small_needs_what_is_published() -> None:
    """nanoGPT's count for 124M parameters, context 1024: 6 N + 12 L H Q T = 8.5e8 a token, with the tied head in N."""
    with torch.device("meta"):
        model = Transformer(model_spec("residual", layers=12, width=768, heads=12, context=1024, vocabulary=50304))
    assert operations_per_token(model) == pytest.approx(6 * 123.6e6 + 12 * 12 * 768 * 1024, rel=1e-3)


def test_the_plain_loop_of_the_benchmark_is_as_large_and_trains_as_well(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else it would be no measure of ours: the same parameters, the same loss at first, and about the same later."""
    folder = Path(__file__).parents[1] / "benchmarks"
    if not folder.is_dir():
        pytest.skip("benchmarks are not part of this copy")
    monkeypatch.syspath_prepend(str(folder))
    bench = importlib.import_module("train")
    spec, training = small(vocabulary=8).spec, TrainingSpec(steps=60, batch=4, lr=0.01, aux_lr=0.01)
    parts = [sum(p.numel() for p in model.parameters()) for model in (small(vocabulary=8), bench.PlainGPT(spec))]
    assert parts[0] == parts[1]
    texts = [torch.randint(1, 3, (4, 17), generator=torch.Generator().manual_seed(i)).cumsum(-1) % 8 for i in range(60)]
    losses = [
        [step(text) for text in texts]
        for step in (bench.our_step(spec, training, "cpu"), bench.plain_step(spec, training, "cpu"))
    ]
    assert losses[0][0] == pytest.approx(losses[1][0], rel=0.06)
    assert losses[0][-1] == pytest.approx(losses[1][-1], rel=0.1)
    assert losses[0][-1] < losses[0][0] / 2


def test_rates_follow_from_the_parts() -> None:
    one = Throughput(tokens=1000, seconds=2.0, operations=3e12)
    assert (one.tokens_per_second, one.utilization(6e12)) == (500.0, 0.25)
    assert (Throughput(0, 0.0, 0.0).tokens_per_second, Throughput(0, 0.0, 0.0).utilization(1.0)) == (0.0, 0.0)


def test_the_first_step_does_not_count() -> None:
    batch = torch.randint(8, (4, 17))
    fitted = fit(small(), TrainingSpec(steps=3, batch=4), repeat(batch))
    assert fitted.throughput.tokens == 2 * 64
    assert fitted.throughput.operations == 128 * operations_per_token(small())
    assert 0 < fitted.throughput.seconds < 10
    assert 0 < fitted.throughput.utilization(1e15) < 1


@pytest.mark.parametrize(
    ("name", "peak"),
    [
        ("NVIDIA H200", 989e12),
        ("NVIDIA H200 NVL", 835e12),
        ("NVIDIA H100 PCIe", 756e12),
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA A100-SXM4-80GB", 312e12),
    ],
)
def test_a_known_device_has_the_makers_number(name: str, peak: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Dense and with bfloat16 tensor cores; float32 goes without them."""
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _device: name)
    device = torch.device("cuda")
    found, plain = stated_peak(device, "bfloat16"), stated_peak(device, "float32")
    assert found is not None
    assert plain is not None
    assert found[0] == peak
    assert found[1].removeprefix("stated for ") in name
    assert plain[0] < peak / 10


def test_no_peak_is_made_up(monkeypatch: pytest.MonkeyPatch) -> None:
    assert stated_peak(torch.device("cpu"), "float32") is None
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _device: "NVIDIA GeForce RTX 9999")
    assert stated_peak(torch.device("cuda"), "bfloat16") is None
