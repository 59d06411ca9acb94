"""Checkpoints: exact, whole or absent, and named by their content."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from qbench.models.catalog import MODELS, model_spec
from qbench.models.checkpoint import BadCheckpoint, digest, load, save
from qbench.models.transformer import Transformer, build

SEEING: dict[str, Any] = {"task": "vision", "vocabulary": 10, "channels": 3}
IMAGES = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1))
READS: dict[str, tuple[dict[str, Any], torch.Tensor]] = {
    "text": ({}, torch.arange(8)[None]),
    "images": (SEEING, IMAGES),
    "images, class token": ({**SEEING, "pooling": "class"}, IMAGES),
}


def small(arch: str = "residual-free", seed: int = 0, **settings: Any) -> Transformer:
    return build(model_spec(arch, layers=2, width=16, heads=2, context=8, **settings), seed)


@pytest.mark.parametrize("kind", READS)
@pytest.mark.parametrize("arch", MODELS)
def test_what_comes_back_is_bit_for_bit_what_was_saved(arch: str, kind: str, tmp_path: Path) -> None:
    settings, read = READS[kind]
    model = small(arch, **settings)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.uniform_(0.5, 2, generator=torch.Generator().manual_seed(0))
    save(model, tmp_path / "m.safetensors", {"step": "12"})
    loaded, meta = load(tmp_path / "m.safetensors")
    assert (loaded.spec, meta) == (model.spec, {"step": "12"})
    assert all(
        torch.equal(a, b) for a, b in zip(model.state_dict().values(), loaded.state_dict().values(), strict=True)
    )
    assert torch.equal(loaded(read), model(read))


def test_digest_names_the_content_and_not_the_file(tmp_path: Path) -> None:
    model = small()
    save(model, tmp_path / "a", {})
    save(model, tmp_path / "b", {"step": "1"})
    before = digest(tmp_path / "a")
    assert before == digest(tmp_path / "b") == digest(model.state_dict())
    assert len(before) == 64
    with torch.no_grad():
        model.embed[0, 0] += 1e-7
    assert digest(model.state_dict()) != before


def test_digest_sees_names_shapes_and_types() -> None:
    x = torch.zeros(4)
    digests = [digest(state) for state in ({"x": x}, {"y": x}, {"x": x.view(2, 2)}, {"x": x.int()}, {})]
    assert len(set(digests)) == 5


def test_a_failed_write_leaves_the_old_file_and_no_rubbish(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "m.safetensors"
    save(small(), path, {})
    before = path.read_bytes()

    def full(_handle: int) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="no space"):
        save(small(seed=1), path, {})
    assert (path.read_bytes(), list(tmp_path.iterdir())) == (before, [path])


def test_our_own_metadata_keys_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="may not use spec"):
        save(small(), tmp_path / "m", {"spec": "{}"})


def test_files_that_are_not_ours_are_refused(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("hello there, not a tensor file")
    save_file({"x": torch.zeros(2)}, tmp_path / "foreign")
    save(small(), tmp_path / "whole", {})
    (tmp_path / "cut").write_bytes((tmp_path / "whole").read_bytes()[:-10])
    for name in ("text", "foreign", "cut"):
        with pytest.raises(BadCheckpoint, match=name):
            load(tmp_path / name)


def test_weights_that_do_not_fit_their_spec_are_refused(tmp_path: Path) -> None:
    model = small()
    other = build(model_spec("residual-free", layers=3, width=16, heads=2, context=8), 0)
    model.spec = other.spec
    save(model, tmp_path / "m", {})
    with pytest.raises(BadCheckpoint, match="do not belong together"):
        load(tmp_path / "m")
