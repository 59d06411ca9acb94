"""A model's folder looked at: what it says is what is in it, and each kind of damage is one clear line."""

import hashlib
import json
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import random_models
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from qbench.models.folder import INDEX, SINGLE, BadModel, layout, look, model_digest, tokenizer_digest

CONFIG = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "vocab_size": 97, "num_hidden_layers": 2}


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """One shard of two tensors."""
    save_file({"b": torch.arange(6.0).view(2, 3), "a": torch.ones(4, dtype=torch.bfloat16)}, tmp_path / SINGLE)
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    return tmp_path


@pytest.fixture
def sharded(tmp_path: Path) -> Path:
    """Two shards, of one tensor each, and their index."""
    names = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")
    for name, tensor in zip(names, "ab", strict=True):
        save_file({tensor: torch.ones(3)}, tmp_path / name)
    (tmp_path / INDEX).write_text(json.dumps({"weight_map": dict(zip("ab", names, strict=True))}))
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    return tmp_path


def complaint(path: Path) -> str:
    with pytest.raises(BadModel) as error:
        look(path)
    text = str(error.value)
    assert "\n" not in text
    assert str(path) in text
    return text


@pytest.mark.parametrize("family", random_models.FAMILIES)
def test_a_folder_says_what_its_model_is(family: str, tmp_path: Path) -> None:
    found = look(random_models.folder(family, tmp_path))
    model = random_models.build(family)
    vision = family in random_models.VISION
    assert (found.model_type, found.layers) == (model.config.model_type, random_models.LAYERS)
    assert found.architectures == (type(model).__name__,)
    assert found.parameters == sum(parameter.numel() for parameter in model.parameters())
    assert found.bytes == 4 * found.parameters
    assert (found.vocabulary, found.context) == ((None, None) if vision else (97, 64))
    masked = "masked-lm" if family in random_models.MASKED else "causal-lm"
    assert found.task == ("image-classification" if vision else masked)


def test_the_context_is_the_longest_window_that_the_model_takes(tmp_path: Path) -> None:
    for family in ("roberta", "bert", "gpt2", "opt"):
        context = look(random_models.folder(family, tmp_path)).context
        model = random_models.build(family)
        tokens = torch.full((1, context + 1), 7)
        assert model(tokens[:, 1:]).logits.isfinite().all()
        with pytest.raises((IndexError, RuntimeError)):
            model(tokens)


def test_layout_is_what_safetensors_itself_reads(tmp_path: Path) -> None:
    path = random_models.folder("gpt2", tmp_path)
    found = layout(path)
    with safe_open(path / SINGLE, framework="pt") as file:
        assert sorted(file.keys()) == list(found)
        for name, tensor in found.items():
            part = file.get_slice(name)
            assert (tuple(part.get_shape()), part.get_dtype()) == (tensor.shape, tensor.dtype)
            raw = (path / SINGLE).read_bytes()[tensor.start : tensor.end]
            assert raw == file.get_tensor(name).numpy().tobytes()


def test_layout_of_shards_is_that_of_the_whole(tmp_path: Path) -> None:
    model = random_models.build("llama")
    model.save_pretrained(tmp_path / "whole")
    model.save_pretrained(tmp_path / "parts", max_shard_size="30KB")
    whole, parts = look(tmp_path / "whole"), look(tmp_path / "parts")
    assert (len(whole.shards), len(parts.shards) > 1) == (1, True)
    assert [(t.name, t.shape, t.dtype) for t in whole.tensors] == [(t.name, t.shape, t.dtype) for t in parts.tensors]
    assert (whole.parameters, whole.bytes) == (parts.parameters, parts.bytes)


def test_types_of_less_than_a_byte_and_of_no_float(small: Path) -> None:
    save_file(
        {"half": torch.ones(3, dtype=torch.float8_e4m3fn), "mask": torch.ones(2, dtype=torch.bool)}, small / SINGLE
    )
    found = layout(small)
    assert [(t.dtype, t.bytes, t.floating) for t in found.values()] == [("F8_E4M3", 3, True), ("BOOL", 2, False)]


def test_digests_name_content_and_nothing_else(sharded: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    files = sorted(path.name for path in sharded.glob("*") if path.name != INDEX)
    said = "".join(f"{hashlib.sha256((sharded / name).read_bytes()).hexdigest()}  {name}\n" for name in files)
    before = model_digest(look(sharded))
    assert before == hashlib.sha256(said.encode()).hexdigest()
    (sharded / "README.md").write_text("of no importance")
    (sharded / "tokenizer.json").write_text("{}")
    assert model_digest(look(sharded)) == before
    copy = tmp_path_factory.mktemp("elsewhere")
    for path in sharded.iterdir():
        (copy / path.name).write_bytes(path.read_bytes())
    assert model_digest(look(copy)) == before


@pytest.mark.parametrize(
    "name", ["config.json", "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
)
def test_one_flipped_bit_changes_the_digest(name: str, sharded: Path) -> None:
    before = model_digest(look(sharded))
    data = bytearray((sharded / name).read_bytes())
    at = data.index(b"97") + 1 if name == "config.json" else -1
    data[at] ^= 1
    (sharded / name).write_bytes(data)
    assert model_digest(look(sharded)) != before


def test_tokenizer_digest_is_of_tokenizer_json_or_of_what_there_is(small: Path) -> None:
    assert tokenizer_digest(look(small)) == ""
    (small / "vocab.json").write_text("{}")
    older = tokenizer_digest(look(small))
    (small / "merges.txt").write_text("a b")
    assert len({"", older, tokenizer_digest(look(small))}) == 3
    (small / "tokenizer.json").write_text("{}")
    newer = tokenizer_digest(look(small))
    (small / "merges.txt").write_text("b a")
    assert tokenizer_digest(small) == newer
    (small / "tokenizer.json").write_text("{ }")
    assert tokenizer_digest(small) != newer


def _truncate(path: Path, size: int) -> None:
    path.write_bytes(path.read_bytes()[:size])


def _reheader(path: Path, change: Callable[[dict], object]) -> None:
    """Rewrite the header, leaving the data."""
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    table = json.loads(data[8 : 8 + length])
    change(table)
    text = json.dumps(table).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data[8 + length :])


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda path: (path / "config.json").unlink(), "no config.json"),
        (lambda path: (path / "config.json").write_text('{"model_type": '), "config.json: not readable as JSON"),
        (lambda path: (path / "config.json").write_bytes(b"\xff\xfe\x00"), "config.json: not readable as JSON"),
        (lambda path: (path / "config.json").write_text("[]"), "a list, expected a table"),
        (lambda path: (path / SINGLE).unlink(), f"no weights; expected {SINGLE}"),
        (lambda path: (path / SINGLE).rename(path / "consolidated.safetensors"), "consolidated.safetensors"),
        (lambda path: _truncate(path / SINGLE, -1), "was cut short or damaged"),
        (lambda path: _truncate(path / SINGLE, 40), "hold no safetensors header"),
        (lambda path: _truncate(path / SINGLE, 3), "hold no safetensors header"),
        (lambda path: _truncate(path / SINGLE, 0), "hold no safetensors header"),
        (lambda path: (path / SINGLE).write_bytes(b"version https://git-lfs"), "git lfs pull"),
        (lambda path: (path / SINGLE).write_bytes(b"\x02" + bytes(7) + b"{]"), "header is not JSON"),
        (lambda path: (path / SINGLE).write_bytes(b"\x02" + bytes(7) + b"[]"), "is a list, expected a table"),
        (lambda path: _reheader(path / SINGLE, lambda table: table["a"].pop("shape")), "a has no dtype, shape"),
        (lambda path: _reheader(path / SINGLE, lambda table: table["a"].update(dtype="Q3")), "unknown type Q3"),
        (lambda path: _reheader(path / SINGLE, lambda table: table["a"].update(shape=[5])), "a is BF16 [5]"),
        (
            lambda path: _reheader(path / SINGLE, lambda table: table["a"].update(shape=[1e999])),
            "a has no dtype, shape",
        ),
    ],
)
def test_what_is_wrong_is_said_in_one_line(damage: Callable[[Path], object], said: str, small: Path) -> None:
    look(small)
    damage(small)
    assert said in complaint(small)


def test_a_cut_shard_is_told_by_both_sizes(small: Path) -> None:
    size = (small / SINGLE).stat().st_size
    _truncate(small / SINGLE, size - 5)
    text = complaint(small)
    assert str(size) in text
    assert str(size - 5) in text


def test_no_folder_and_an_adapter(tmp_path: Path) -> None:
    assert "no such folder" in complaint(tmp_path / "absent")
    (tmp_path / "adapter_config.json").write_text("{}")
    assert "merge it into its base model" in complaint(tmp_path)


def test_a_file_that_may_not_be_read(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path, *_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "open", refuse)
    assert complaint(small).endswith("cannot be read: Permission denied")


def test_a_shard_that_is_not_there_is_named(sharded: Path) -> None:
    (sharded / "model-00002-of-00002.safetensors").unlink()
    assert "1 of 2 shards" in complaint(sharded)
    assert "model-00002-of-00002.safetensors" in complaint(sharded)


@pytest.mark.parametrize(
    ("index", "said"),
    [
        ({"weight_map": {"a": "model-00001-of-00002.safetensors", "c": "model-00002-of-00002.safetensors"}}, ": c"),
        ({"weight_map": {"a": "model-00002-of-00002.safetensors"}}, "1 tensors are not in the shards"),
        ({"weight_map": {"a": "../elsewhere.safetensors"}}, "no weight_map"),
        ({"weight_map": {}}, "no weight_map"),
        ({}, "no weight_map"),
    ],
)
def test_an_index_that_is_wrong(index: dict, said: str, sharded: Path) -> None:
    (sharded / INDEX).write_text(json.dumps(index))
    assert said in complaint(sharded)


def test_a_tensor_in_two_shards(sharded: Path) -> None:
    save_file({"a": torch.zeros(3), "b": torch.ones(3)}, sharded / "model-00002-of-00002.safetensors")
    assert "a is in model-00001-of-00002.safetensors too" in complaint(sharded)


@pytest.mark.parametrize("family", ["llama", "bert"])
def test_a_pickle_is_refused_with_a_command_that_converts_it(family: str, tmp_path: Path) -> None:
    path = random_models.folder(family, tmp_path)
    before = load_file(path / SINGLE)
    torch.save(before, path / "pytorch_model.bin")
    (path / SINGLE).unlink()
    text = complaint(path)
    assert "pytorch_model.bin is a pickle" in text
    code = text.partition('python -c "')[2].removesuffix('"')
    exec(compile(code, "conversion", "exec"), {})
    after = load_file(look(path).shards[0])
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())


def test_any_damage_to_a_header_is_a_bad_model_or_none(small: Path) -> None:
    """Ten bytes anywhere in the first 200: nothing but BadModel may come of it."""
    data, draw = (small / SINGLE).read_bytes(), random.Random(0)
    said: list[str] = []
    for _ in range(400):
        broken = bytearray(data)
        for _ in range(draw.randint(1, 4)):
            broken[draw.randrange(min(200, len(data)))] = draw.choice([*b'{}[]",:0129-.eE', draw.randrange(256)])
        (small / SINGLE).write_bytes(broken)
        try:
            look(small)
        except BadModel as error:
            said.append(str(error))
    assert len(said) > 200
    assert not any("\n" in text for text in said)


def test_looking_loads_no_torch() -> None:
    modules = "folder, stored, fetch, headroom"
    code = (
        f"import sys; from qbench.models import {modules}; sys.exit('torch' in sys.modules or 'numpy' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_tasks_of_other_names(small: Path) -> None:
    for name, task in (("GPT2LMHeadModel", "causal-lm"), ("BertModel", None), ("", None)):
        (small / "config.json").write_text(json.dumps({"architectures": [name] if name else None}))
        assert look(small).task == task
