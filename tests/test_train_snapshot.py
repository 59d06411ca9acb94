"""A training that is cut off and continued ends where one that was not ends, to the bit."""

from collections.abc import Iterator
from itertools import count, islice
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from qbench.models.catalog import model_spec
from qbench.models.transformer import Transformer, build
from qbench.train.fit import Fitted, run
from qbench.train.snapshot import BadSnapshot, Snapshots
from qbench.train.spec import Optimizer, TrainingSpec
from qbench.train.trainer import Trainer


class CutOff(RuntimeError):
    """Power went away."""


def small(seed: int = 0) -> Transformer:
    return build(model_spec("residual-free", layers=2, width=16, heads=2, context=16, vocabulary=8), seed)


def batches() -> Iterator[Tensor]:
    for i in count():
        generator = torch.Generator().manual_seed(i)
        yield torch.randint(1, 3, (4, 17), generator=generator).cumsum(-1) % 8


def cut_at(step: int) -> Iterator[Tensor]:
    yield from islice(batches(), step)
    raise CutOff


def train(training: TrainingSpec, path: Path, source: Iterator[Tensor], seed: int = 0, every: int = 5) -> Fitted:
    return run(Trainer(small(seed), training), source, snapshots=Snapshots(path, every=every))


INSIDE = {
    "activation:boundaries": "int8/token/sr:3",
    "gradient:boundaries": "int8/tensor",
    "weight:weights": "int8/channel",
    "state:all": "int8/tensor/sr:5",
}


@pytest.mark.parametrize("quantized", [None, INSIDE], ids=["plain", "quantized"])
@pytest.mark.parametrize("optimizer", ["adamw", "muon", "muon-rms", "soap", "shampoo", "sgd"])
def test_a_continued_training_is_the_same_to_the_bit(
    optimizer: Optimizer, quantized: dict[str, str] | None, tmp_path: Path
) -> None:
    """Cut off after 12 steps, it continues from the snapshot of the tenth, in which SOAP and Shampoo renew."""
    training = TrainingSpec(optimizer=optimizer, lr=0.01, steps=24, batch=4, quantized=quantized)
    whole = run(Trainer(small(), training), batches())
    path = tmp_path / "training.safetensors"
    with pytest.raises(CutOff):
        train(training, path, cut_at(12))
    seen: list[int] = []
    trainer = Trainer(small(seed=7), training)  # other weights: all of them come from the snapshot
    parts = run(trainer, batches(), lambda step, *_: seen.append(step), snapshots=Snapshots(path, every=5))
    assert seen == list(range(11, 25))
    assert parts.curve == whole.curve
    assert parts.largest_gradient_norm == whole.largest_gradient_norm
    assert all(torch.equal(a, b) for a, b in zip(parts.model.parameters(), whole.model.parameters(), strict=True))
    assert parts.engagement == whole.engagement
    assert whole.throughput.tokens == 23 * 4 * 16
    assert parts.throughput.tokens == 22 * 4 * 16  # the first step of either process sets things up


@pytest.mark.parametrize("quantized", [None, INSIDE], ids=["plain", "quantized"])
def test_a_finished_training_is_read_back(quantized: dict[str, str] | None, tmp_path: Path) -> None:
    training = TrainingSpec(steps=6, batch=4, quantized=quantized)
    path = tmp_path / "training.safetensors"
    whole = train(training, path, batches(), every=3)
    again = train(training, path, cut_at(6), every=3)
    assert again.curve == whole.curve
    assert again.engagement == whole.engagement
    assert bool(again.engagement.places) is bool(quantized)
    assert all(torch.equal(a, b) for a, b in zip(again.model.parameters(), whole.model.parameters(), strict=True))


def test_a_snapshot_of_another_training_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "training.safetensors"
    train(TrainingSpec(steps=5, batch=4), path, batches())
    with pytest.raises(BadSnapshot, match="is of another training"):
        train(TrainingSpec(steps=5, batch=4, lr=0.01), path, batches())


def test_a_snapshot_knows_what_its_specs_do_not_say(tmp_path: Path) -> None:
    """Seed and data are not in the specs: whoever keeps snapshots names them."""
    training, path = TrainingSpec(steps=5, batch=4), tmp_path / "training.safetensors"
    run(Trainer(small(0), training), batches(), snapshots=Snapshots(path, every=5, of="seed 0"))
    with pytest.raises(BadSnapshot, match=r"of another training.*same specs, seed and data"):
        run(Trainer(small(1), training), batches(), snapshots=Snapshots(path, every=5, of="seed 1"))


def test_a_damaged_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "training.safetensors"
    path.write_bytes(b"not at all")
    with pytest.raises(BadSnapshot, match=r"training\.safetensors"):
        train(TrainingSpec(steps=5, batch=4), path, batches())
    save_file({"x": torch.zeros(1)}, path)
    with pytest.raises(BadSnapshot, match="not a snapshot of the kind"):
        train(TrainingSpec(steps=5, batch=4), path, batches())


def test_the_file_holds_tensors_and_text_only(tmp_path: Path) -> None:
    """Others can read it: weights under their names."""
    path = tmp_path / "training.safetensors"
    fitted = train(TrainingSpec(steps=5, batch=4), path, batches())
    stored = load_file(path)
    for name, weight in fitted.model.state_dict().items():
        assert torch.equal(stored[f"model.{name}"], weight)
