"""References on disk: the same numbers without the model, and no comparison of what cannot be compared."""

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from test_evaluate_divergence import WINDOWS, by_definition, changed, encode, hub, text, windows_of

from qbench.data.documents import Document
from qbench.data.passages import Cut, passages
from qbench.evaluate import reference as module
from qbench.evaluate.divergence import divergence
from qbench.evaluate.head import Head, plain_head
from qbench.evaluate.masked import Masking, Reader, ask
from qbench.evaluate.reference import BadReference, load, references, save
from qbench.models.catalog import model_spec
from qbench.models.hub import HubModel
from qbench.models.transformer import build
from qbench.results.files import CannotWrite

META = {"tokenizer": "a" * 64, "model": "b" * 64}


@pytest.mark.parametrize("family", ["llama", "llama-tied", "gemma2", "gpt2", "phi"])
def test_a_stored_reference_gives_the_same_numbers_to_the_bit(family: str, tmp_path: Path) -> None:
    model = hub(family)
    other = changed(model, 0.3)
    path = tmp_path / "new" / "base.safetensors"
    save(model, WINDOWS, path, META, batch=5)
    stored = load(path)
    in_memory = references(model, WINDOWS, batch=5)
    assert divergence(other, stored.windows, stored).values() == divergence(other, WINDOWS, in_memory).values()
    assert stored.meta == META
    assert stored.windows.digest == WINDOWS.digest
    assert (stored.windows.slices, stored.windows.left_out) == (WINDOWS.slices, WINDOWS.left_out)
    assert np.array_equal(stored.windows.bytes, WINDOWS.bytes)
    assert list(tmp_path.rglob("*")) == [path.parent, path]


def test_the_file_is_one_that_safetensors_reads(tmp_path: Path) -> None:
    model = hub("phi")  # its head has a bias
    save(model, WINDOWS, tmp_path / "a.safetensors", {}, batch=5)
    tensors = load_file(tmp_path / "a.safetensors")
    assert set(tensors) == {"tokens", "first", "bytes", "head.weight", "head.bias", "states"}
    with torch.no_grad():
        assert torch.equal(tensors["states"][:5], model.hidden(WINDOWS.tokens[:5, :-1]))
    assert torch.equal(tensors["tokens"], WINDOWS.tokens)


def test_half_precision_is_stored_as_it_is(tmp_path: Path) -> None:
    model = hub().bfloat16()
    save(model, WINDOWS, tmp_path / "a.safetensors", {})
    stored = load(tmp_path / "a.safetensors")
    assert stored.states[0:2].dtype == torch.bfloat16
    assert divergence(model, WINDOWS, stored).values()["kld"] == 0


def test_large_states_go_to_a_file_that_is_gone_when_they_are(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(module, "IN_MEMORY", 1)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    model = hub()
    other = changed(model, 0.3)
    on_disk = references(model, WINDOWS)
    assert not isinstance(on_disk.states, torch.Tensor)
    assert not list(tmp_path.iterdir())
    found = divergence(other, WINDOWS, on_disk).values()
    monkeypatch.undo()
    assert found == divergence(other, WINDOWS, references(model, WINDOWS)).values()
    kept = references(model, WINDOWS, tmp_path / "kept.safetensors")
    assert found == divergence(other, WINDOWS, kept).values()


def test_our_own_models_have_references_too(tmp_path: Path) -> None:
    spec = model_spec("residual", layers=1, width=16, heads=2, context=24, vocabulary=97)
    model, other = build(spec, seed=0), build(spec, seed=1)
    save(model, WINDOWS, tmp_path / "a.safetensors", {})
    found = divergence(other, WINDOWS, load(tmp_path / "a.safetensors")).values()
    assert found == divergence(other, WINDOWS, references(model, WINDOWS)).values()
    assert found["kld"] > 0


def test_a_head_that_is_no_linear_layer_is_not_stored(tmp_path: Path) -> None:
    model = hub("gemma2")
    model.undivided = "Gemma2ForCausalLM does more after its head than its settings say"
    with pytest.raises(BadReference, match=r"no linear layer .* \(Gemma2.*\); all 27,936 logits would have to"):
        save(model, WINDOWS, tmp_path / "a.safetensors", {})
    assert not list(tmp_path.iterdir())
    other = changed(model, 0.3)
    kept = divergence(other, WINDOWS, references(model, WINDOWS)).values()
    model.undivided = other.undivided = ""
    assert kept == pytest.approx(divergence(other, WINDOWS, references(model, WINDOWS)).values(), rel=1e-4)


def test_windows_with_holes_are_not_stored(tmp_path: Path) -> None:
    masking = Masking(mask=4)
    asked = ask(WINDOWS, masking)
    reader, other = (Reader(model, masking) for model in (hub(), changed(hub(), 0.3)))
    found = divergence(other, asked, references(reader, asked)).values()
    exact = by_definition(reader, other, asked)
    assert found["kld"] == pytest.approx(exact["kld"][asked.scored.numpy()].mean(), rel=1e-5)
    with pytest.raises(BadReference, match="windows with holes cannot be stored"):
        save(reader, asked, tmp_path / "a.safetensors", {})


def test_a_copied_head_must_answer_as_the_model_s_own() -> None:
    model = hub("gemma2")
    states = model.hidden(WINDOWS.tokens[:2, :-1])
    head = plain_head(model, states)
    assert isinstance(head, Head)
    assert head.after == (("final_logit_softcapping", 3.0),)
    assert torch.equal(head(states), model.head(states))

    class Louder(HubModel):
        def head(self, hidden: torch.Tensor) -> torch.Tensor:
            return super().head(hidden) * 2

    model.__class__ = Louder
    assert plain_head(model, states) is None
    reference = references(model, WINDOWS)  # a copy of the whole model then
    with torch.no_grad():
        model.hf.get_output_embeddings().weight.zero_()
    assert divergence(model, WINDOWS, reference).values()["kld"] > 0.01


def test_other_texts_and_tokenizers_are_refused(tmp_path: Path) -> None:
    model = hub()
    save(model, WINDOWS, tmp_path / "a.safetensors", META)
    stored = load(tmp_path / "a.safetensors")
    stored.expect(WINDOWS, "a" * 64)
    stored.expect(WINDOWS)
    with pytest.raises(BadReference, match=r"tokenized by aaaaaaaaaaaa, the candidate by cccccccccccc"):
        stored.expect(WINDOWS, "c" * 64)
    other = passages([Document("a", text(400, 9), "a")], encode, Cut(24, 12))
    with pytest.raises(BadReference, match="predictions of different texts cannot be compared"):
        divergence(model, other, stored)
    with pytest.raises(BadReference, match="found 20 windows of context 24"):
        stored.expect(windows_of(count=20))
    with pytest.raises(ValueError, match="may not use slices"):
        save(model, WINDOWS, tmp_path / "b.safetensors", {"slices": ""})


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    model, path = hub(), tmp_path / "a.safetensors"
    with pytest.raises(BadReference, match="no such file"):
        load(path)
    save(model, WINDOWS, path, META)
    whole = path.read_bytes()
    for broken in (whole[:-7], whole[:100], b"", b"not at all"):
        path.write_bytes(broken)
        with pytest.raises(BadReference, match=r"a\.safetensors: not a safetensors file, or cut short"):
            load(path)
    from safetensors.torch import save_file

    save_file({"x": torch.zeros(1)}, path)
    with pytest.raises(BadReference, match=r"not a reference of the kind qbench\.reference/1"):
        load(path)
    save_file({"x": torch.zeros(1)}, path, {"format": module.FORMAT})
    with pytest.raises(BadReference, match="damaged"):
        load(path)


def test_what_broke_off_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, path = hub(), tmp_path / "a.safetensors"
    save(model, WINDOWS, path, META)
    before = path.read_bytes()
    monkeypatch.setattr(HubModel, "hidden", _full_disk(HubModel.hidden))
    with pytest.raises(CannotWrite, match="No space left"):
        save(model, windows_of(count=20), path, META, batch=5)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def _full_disk(hidden):
    calls = iter(range(10))

    def raising(self: HubModel, x: torch.Tensor) -> torch.Tensor:
        if next(calls) == 2:
            raise OSError(28, "No space left on device")
        return hidden(self, x)

    return raising
