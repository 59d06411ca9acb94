"""Optimizers with 8-bit and 4-bit state: what they keep, that it is proved, and what it costs."""

from collections.abc import Iterator

import pytest
import torch
from libraries import library
from torch import Tensor, nn

from qbench.train import lowbit
from qbench.train.lowbit import OPTIMIZERS, NotLowBit, Row, build, compare, state_report

for package in ("torchao.optim", "bitsandbytes.optim"):
    library(package)

ON_CPU = [name for name, row in OPTIMIZERS.items() if not row.cuda_only]


@pytest.fixture
def eager() -> Iterator[None]:
    """torchao compiles each step, for seconds; its own code runs as it is instead: a slow test compares the two."""
    torch.compiler.set_stance("force_eager")
    yield
    torch.compiler.set_stance("default")


def fresh() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(64, 128), nn.Tanh(), nn.Linear(128, 64))


def loss(model: nn.Module, step: int) -> Tensor:
    x = torch.randn(32, 64, generator=torch.Generator().manual_seed(step))
    return (model(x) - x.flip(1)).square().mean()


def stepped(name: str, model: nn.Module | None = None) -> torch.optim.Optimizer:
    model = model or fresh()
    optimizer = build(name, model.parameters(), 1e-3)
    loss(model, 0).backward()
    optimizer.step()
    return optimizer


@pytest.mark.parametrize("name", ON_CPU)
def test_state_is_in_few_bits(name: str, eager: None) -> None:
    states = state_report(stepped(name), name)
    large = [state for state in states if len(state.shape) == 2]
    small = [state for state in states if len(state.shape) == 1]
    row = OPTIMIZERS[name]
    assert {state.limit for state in large} == {2**row.bits}
    assert all(1 < state.levels <= state.limit for state in large)
    assert all(row.bits < state.bits_per_value < row.bits + 1.2 for state in large)
    assert all(state.bits_per_value == 32 and "fewer than 4096" in state.why for state in small)


def test_bytes_are_those_counted_by_hand(eager: None) -> None:
    """8192 values: codes, a float32 scale for each block, a code book of 256 float32, which bitsandbytes shares."""
    ao = [state.bytes for state in state_report(stepped("torchao/AdamW8bit"), "torchao/AdamW8bit")]
    assert ao == [8192 + 32 * 4 + 1024] * 2 + [512] * 2 + [8192 + 32 * 4 + 1024] * 2 + [256] * 2
    four = [state.bytes for state in state_report(stepped("torchao/AdamW4bit"), "torchao/AdamW4bit")]
    assert four[0] == 4096 + 64 * 4 + 16 * 4
    bnb = [state.bytes for state in state_report(stepped("bitsandbytes/AdamW8bit"), "bitsandbytes/AdamW8bit")]
    assert bnb == [8192 + 32 * 4 + 1024] * 2 + [512] * 2 + [8192 + 32 * 4] * 2 + [256] * 2


@pytest.mark.parametrize("name", ["torchao/AdamW8bit", "torchao/AdamW4bit", "bitsandbytes/AdamW8bit"])
def test_stored_codes_stand_for_the_moments(name: str, eager: None) -> None:
    """After one step the first moment is (1 - beta1) times the gradient, to the precision of the code."""
    model = fresh()
    optimizer = stepped(name, model)
    weight = model[0].weight
    kept = optimizer.state[weight]
    if name.startswith("torchao"):
        moment = kept["exp_avg"].dequantize().view_as(weight)
    else:
        bnb = library("bitsandbytes.functional")
        moment = bnb.dequantize_blockwise(kept["state1"], absmax=kept["absmax1"], code=kept["qmap1"], blocksize=256)
    assert weight.grad is not None
    exact = 0.1 * weight.grad
    bound = {8: 0.03, 4: 0.25}[OPTIMIZERS[name].bits]
    assert 1e-4 < (moment - exact).norm() / exact.norm() < bound


def test_an_optimizer_that_stays_in_full_precision_is_caught() -> None:
    model = fresh()
    plain = torch.optim.AdamW(model.parameters())
    loss(model, 0).backward()
    plain.step()
    with pytest.raises(NotLowBit, match=r"exp_avg of \(128, 64\) has 32 bits a value in full precision, not 8"):
        state_report(plain, "torchao/AdamW8bit")


def test_too_many_codes_are_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    row = Row(meaning="", bits=4, twin="torch/AdamW")
    monkeypatch.setattr(lowbit, "OPTIMIZERS", {"bitsandbytes/AdamW8bit": row})
    with pytest.raises(NotLowBit, match=r"shows \d+ codes, 4 bits have 16"):
        state_report(stepped("bitsandbytes/AdamW8bit"), "bitsandbytes/AdamW8bit")


@pytest.mark.parametrize("name", ["torchao/AdamW8bit", "bitsandbytes/AdamW8bit"])
def test_small_tensors_alone_are_not_called_low_bit(name: str, eager: None) -> None:
    model = nn.Sequential(nn.Linear(64, 32), nn.Linear(32, 64))
    with pytest.raises(NotLowBit, match="no state is in 8 bits"):
        state_report(stepped(name, model), name)


def test_torchao_needs_whole_blocks(eager: None) -> None:
    """65 x 64 values are 4160, no multiple of 256: kept in full precision, and the report says why."""
    model = nn.Sequential(nn.Linear(64, 65, bias=False), nn.Linear(65, 64, bias=False), nn.Linear(64, 64, bias=False))
    states = state_report(stepped("torchao/AdamW8bit", model), "torchao/AdamW8bit")
    assert [state.why for state in states[::2]] == ["no multiple of 256 values: kept in full precision"] * 2 + [""]
    bnb = state_report(stepped("bitsandbytes/AdamW8bit", model), "bitsandbytes/AdamW8bit")
    assert {state.why for state in bnb} == {""}


def test_a_report_before_the_first_step_is_refused() -> None:
    with pytest.raises(NotLowBit, match="a step must come first"):
        state_report(build("bitsandbytes/Lion8bit", fresh().parameters(), 1e-3), "bitsandbytes/Lion8bit")


@pytest.mark.parametrize("name", [name for name in ON_CPU if name != "bitsandbytes/LAMB8bit"])
def test_training_hardly_notices(name: str, eager: None) -> None:
    done = compare(name, fresh, loss, steps=12, lr=1e-3)
    assert done.losses[0] == done.reference[0]
    assert done.losses != done.reference
    drop = done.reference[0] - done.reference[-1]
    assert drop > 0
    bound = {8: 0.01, 4: 0.15}[OPTIMIZERS[name].bits]
    assert abs(done.losses[-1] - done.reference[-1]) < bound * drop
    assert OPTIMIZERS[name].bits < done.bits_per_value < OPTIMIZERS[name].bits + 2


def test_lamb_in_eight_bits_is_adam() -> None:
    """bitsandbytes 0.50: its blockwise kernel has no trust ratio, so that 8 bits are another rule than 32."""
    done = compare("bitsandbytes/LAMB8bit", fresh, loss, steps=12, lr=1e-3)
    adam = lowbit._train(model := fresh(), library("bitsandbytes.optim").Adam8bit(model.parameters(), 1e-3), loss, 12)
    assert done.losses == pytest.approx(adam, rel=1e-3)
    assert abs(done.losses[-1] - done.reference[-1]) > 0.05


def test_what_pages_only_on_cuda_is_refused() -> None:
    with pytest.raises(ValueError, match="PagedAdamW8bit pages only on CUDA, the parameters are on cpu"):
        build("bitsandbytes/PagedAdamW8bit", fresh().parameters(), 1e-3)


@pytest.mark.slow
def test_compiling_changes_no_code_by_more_than_one() -> None:
    """What the other tests leave out: 10 seconds of compiling."""
    compiled = compare("torchao/AdamW8bit", fresh, loss, steps=4, lr=1e-3)
    torch.compiler.set_stance("force_eager")
    plain = compare("torchao/AdamW8bit", fresh, loss, steps=4, lr=1e-3)
    torch.compiler.set_stance("default")
    assert compiled.losses == pytest.approx(plain.losses, rel=1e-5)
    assert [s.bytes for s in compiled.states] == [s.bytes for s in plain.states]
