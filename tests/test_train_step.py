"""One training step in its variants: in parts, in bfloat16, recomputed, compiled, with targets of any kind."""

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count, islice
from math import log

import pytest
import torch
from torch import Tensor, nn

from qbench.models.catalog import model_spec
from qbench.models.positions import rotary_table, rotate
from qbench.models.transformer import Transformer, build
from qbench.train.fit import final_loss, fit
from qbench.train.spec import TrainingSpec
from qbench.train.trainer import NO_TARGET, Trainer, next_token_loss


def small(arch: str = "residual") -> Transformer:
    return build(model_spec(arch, layers=2, width=32, heads=2, context=16, vocabulary=8), seed=0)


def batches(size: int = 8) -> Iterator[Tensor]:
    """The next token is this one plus one or two: log 2 nats each."""
    for i in count():
        generator = torch.Generator().manual_seed(i)
        yield torch.randint(1, 3, (size, 17), generator=generator).cumsum(-1) % 8


def gradients(trainer: Trainer, batch: object) -> tuple[float, dict[str, Tensor]]:
    """What one step would hand to the optimizers, which are kept still."""
    caught: dict[str, Tensor] = {}

    def catch(_factor: float) -> None:
        caught.update({n: p.grad.clone() for n, p in trainer.model.named_parameters() if p.grad is not None})

    trainer._update = catch  # type: ignore[method-assign]
    loss, _ = trainer.step(batch, 1.0)  # type: ignore[arg-type]
    return loss, caught


def close(one: dict[str, Tensor], other: dict[str, Tensor], tolerance: float) -> None:
    assert one.keys() == other.keys()
    for name, gradient in one.items():
        assert (gradient - other[name]).norm() <= tolerance * other[name].norm(), name


NO_CLIP = 1e9
PLAIN = TrainingSpec(clip=NO_CLIP)


def test_a_batch_in_parts_has_the_gradient_of_the_whole() -> None:
    batch = next(batches())
    loss, whole = gradients(Trainer(small(), PLAIN), batch)
    for parts in (2, 8):
        loss_in_parts, found = gradients(Trainer(small(), TrainingSpec(clip=NO_CLIP, accumulate=parts)), batch)
        assert loss_in_parts == pytest.approx(loss, rel=1e-6)
        close(found, whole, 1e-5)


def test_parts_count_by_their_targets() -> None:
    """Three targets in the first window, sixteen in the second, none in the third and fourth."""
    inputs, targets = next(batches(4))[:, :-1], next(batches(4))[:, 1:].clone()
    targets[0, 3:] = targets[2:] = NO_TARGET
    loss, whole = gradients(Trainer(small(), PLAIN), (inputs, targets))
    in_parts = Trainer(small(), TrainingSpec(clip=NO_CLIP, batch=4, accumulate=4))
    loss_in_parts, found = gradients(in_parts, (inputs, targets))
    assert loss_in_parts == pytest.approx(loss, rel=1e-6)
    close(found, whole, 1e-5)
    by_hand = small()(inputs).log_softmax(-1)
    scored = [by_hand[b, t, targets[b, t]] for b in range(4) for t in range(16) if targets[b, t] != NO_TARGET]
    assert len(scored) == 19
    assert loss == pytest.approx(-torch.stack(scored).mean().item(), rel=1e-6)


def test_classes_are_targets_too() -> None:
    logits, targets = torch.randn(5, 3), torch.tensor([0, 1, 2, 1, 0])
    by_hand = -logits.log_softmax(-1)[range(5), targets].mean()
    assert next_token_loss(logits, targets).item() == pytest.approx(by_hand.item(), rel=1e-6)


@pytest.mark.parametrize("arch", ["residual", "residual-free"])
def test_recomputed_activations_give_the_same_gradient_to_the_bit(arch: str) -> None:
    batch = next(batches())
    loss, whole = gradients(Trainer(small(arch), PLAIN), batch)
    again, found = gradients(Trainer(small(arch), TrainingSpec(clip=NO_CLIP, recompute=True)), batch)
    assert again == loss
    assert all(torch.equal(found[name], whole[name]) for name in whole)


@contextmanager
def stored() -> Iterator[list[int]]:
    """Sizes of what autograd keeps for the backward pass."""
    sizes: list[int] = []

    def pack(x: Tensor) -> Tensor:
        sizes.append(x.numel())
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        yield sizes


def test_recomputed_activations_are_not_kept() -> None:
    x, y = (next(batches())[:, part] for part in (slice(0, -1), slice(1, None)))
    trainer = Trainer(small(), TrainingSpec(recompute=True))
    with stored() as kept:
        trainer.loss(x, y)
    with stored() as fewer, trainer.recompute():
        trainer.loss(x, y)
    assert sum(fewer) < sum(kept) / 5
    assert all("forward" not in vars(block) for block in trainer.model.blocks)


def test_bfloat16_rounds_the_products_and_nothing_that_is_kept() -> None:
    """Within bfloat16's 8 bits of float32, and not equal to it; weights and gradients stay in float32."""
    batch = next(batches())
    loss, exact = gradients(Trainer(small(), PLAIN), batch)
    trainer = Trainer(small(), TrainingSpec(clip=NO_CLIP, precision="bfloat16"))
    rounded, found = gradients(trainer, batch)
    assert loss != rounded == pytest.approx(loss, rel=0.01)
    close(found, exact, 0.05)
    assert {p.dtype for p in trainer.model.parameters()} | {g.dtype for g in found.values()} == {torch.float32}


@pytest.mark.parametrize("arch", ["residual", "residual-free", "osp", "post-norm", "residual-free-learned"])
def test_the_stream_of_every_wiring_is_as_wide_under_autocast(arch: str) -> None:
    """Else a comparison of wirings would compare precisions: a sum is in float32, what replaces the stream is not."""
    model = build(model_spec(arch, layers=2, width=16, heads=2, context=16, vocabulary=8), seed=0)
    seen: dict[str, torch.dtype] = {}
    for name, site in model.sites().items():
        if name in ("embed", "blocks.0.mid", "blocks.0.out", "blocks.1.out"):
            site.register_forward_hook(lambda _, __, x, name=name: seen.__setitem__(name, x.dtype))
    with torch.autocast("cpu", torch.bfloat16):
        model(torch.zeros(1, 4, dtype=torch.long))
    assert set(seen.values()) == {torch.float32}, seen


def test_what_is_turned_by_its_position_need_not_be_complex() -> None:
    """There are no complex numbers of 16 bits: on a GPU autocast leaves queries in bfloat16."""
    x = torch.randn(2, 5, 2, 8, generator=torch.Generator().manual_seed(0))
    table = rotary_table(5, 8)
    for dtype in (torch.bfloat16, torch.float16):
        turned = rotate(x.to(dtype), table)
        assert turned.dtype == dtype
        torch.testing.assert_close(turned, rotate(x.to(dtype).float(), table).to(dtype), rtol=0, atol=0)


def interleaved() -> Iterator[Tensor]:
    """Two such texts, a token of each in turn: the last token says nothing, attention has to find the one before."""
    for i in count():
        generator = torch.Generator().manual_seed(i)
        yield (torch.randint(1, 3, (16, 9, 2), generator=generator).cumsum(1) % 8).flatten(1)[:, :17]


def learned(optimizer: str, lr: float) -> float:
    training = TrainingSpec(optimizer=optimizer, lr=lr, aux_lr=0.02, steps=80, batch=16, weight_decay=0.0)  # type: ignore[arg-type]
    fitted = fit(small(), training, interleaved())
    assert fitted.curve[0] == pytest.approx(log(8), rel=0.05)
    return final_loss(fitted.curve)


@pytest.mark.parametrize(("optimizer", "lr"), [("muon-rms", 0.01), ("soap", 0.01), ("shampoo", 0.01), ("sgd", 0.3)])
def test_every_optimizer_trains_the_blocks(optimizer: str, lr: float) -> None:
    assert log(2) - 0.1 < learned(optimizer, lr) < 1.4


def test_embedding_and_head_alone_would_not_do() -> None:
    """Else the tests above could be passed by the AdamW that all of them share."""
    assert learned("adamw", 1e-12) > 1.6


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of the compiler, about torch itself
@pytest.mark.parametrize("recompute", [False, True])
def test_a_compiled_step_does_the_same(recompute: bool) -> None:
    """Minutes for the C++ compiler on the first run; the same sums in another order."""
    torch.compiler.reset()
    plain = fit(small(), TrainingSpec(steps=4), batches())
    compiled = fit(small(), TrainingSpec(steps=4, compiled=True, recompute=recompute), islice(batches(), 4))
    assert compiled.curve == pytest.approx(plain.curve, rel=1e-4)
    assert compiled.curve != plain.curve


def test_compiled_wraps_the_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[object] = []

    def compiling(work: nn.Module) -> nn.Module:
        asked.append(work)
        return work

    monkeypatch.setattr(torch, "compile", compiling)
    trainer = Trainer(small(), TrainingSpec(compiled=True))
    assert asked == [trainer.loss]
    assert Trainer(small(), PLAIN).loss not in asked
