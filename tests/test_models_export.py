"""qbench's own models as folders: plain `transformers` computes the same logits, qbench reads them back unchanged."""

import json
import re
import sys
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
import random_models  # noqa: F401  (first: it keeps torchao quiet)
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from qbench.models.catalog import MODELS, model_spec
from qbench.models.export import export, read
from qbench.models.folder import SINGLE, BadModel, look, model_digest
from qbench.models.hub import LoadOptions, load
from qbench.models.inputs import tokenizer
from qbench.models.transformer import Transformer, build


@pytest.fixture(autouse=True)
def modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """transformers copies the code of a folder into a cache before it imports it."""
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    before = list(sys.path)
    yield
    sys.path[:] = before
    for name in [name for name in sys.modules if name.startswith("transformers_modules")]:
        del sys.modules[name]  # it remembers the cache of this test


def small(arch: str = "residual-free", **settings: Any) -> Transformer:
    """Random everywhere: initialized gains are all one, and a residual-free one's embedding is orthogonal."""
    model = build(model_spec(arch, **{"layers": 3, "width": 32, "heads": 4, "context": 16, **settings}), seed=0)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.1)
    return model


def tokens(model: Transformer, length: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(2)
    return torch.randint(model.spec.vocabulary, (3, length), generator=generator)


def foreign(path: Path, **options: Any) -> transformers.PreTrainedModel:
    return transformers.AutoModelForCausalLM.from_pretrained(path, trust_remote_code=True, **options)


@pytest.mark.parametrize("arch", MODELS)
def test_transformers_computes_the_same_logits_to_the_bit(arch: str, tmp_path: Path) -> None:
    model = small(arch)
    export(model, tmp_path / arch)
    theirs = foreign(tmp_path / arch)
    assert type(theirs).__module__.startswith("transformers_modules.")
    for length in (1, 5, 16):
        x = tokens(model, length)
        with torch.no_grad():
            assert torch.equal(theirs(x).logits, model(x))


@pytest.mark.parametrize("arch", ["residual", "residual-free", "osp", "op", "sas-p", "swiglu", "residual-free-target"])
@pytest.mark.parametrize("pooling", ["mean", "class"])
def test_transformers_names_images_to_the_bit(arch: str, pooling: str, tmp_path: Path) -> None:
    settings = {"task": "vision", "vocabulary": 10, "positions": "learned", "pooling": pooling, "channels": 3}
    model = small(arch, **settings)
    export(model, tmp_path / arch)
    theirs = transformers.AutoModelForImageClassification.from_pretrained(tmp_path / arch, trust_remote_code=True)
    x = torch.randn(3, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.equal(theirs(x).logits, model(x))
        assert torch.equal(read(tmp_path / arch)(x), model(x))
        loss = torch.nn.functional.cross_entropy(model(x), torch.arange(3))
        assert torch.equal(theirs(x, labels=torch.arange(3)).loss, loss)
    assert look(tmp_path / arch).task == "image-classification"


@pytest.mark.parametrize("arch", MODELS)
def test_qbench_reads_it_back_without_running_its_code(arch: str, tmp_path: Path) -> None:
    model = small(arch, mlp_ratio=2, vocabulary=50)
    export(model, tmp_path / arch)
    (tmp_path / arch / "modeling_qbench.py").write_text("raise SystemExit")
    back = load(tmp_path / arch)
    assert isinstance(back, Transformer)
    assert (back.spec, back.training) == (model.spec, False)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), back.parameters(), strict=True))
    x = tokens(model, 16)
    assert torch.equal(back.head(back.hidden(x)), model(x))


@pytest.mark.parametrize("arch", MODELS)
def test_qbench_reads_models_of_images_back_to_the_bit(arch: str, tmp_path: Path) -> None:
    model = small(arch, task="vision", vocabulary=10, pooling="class", channels=3)
    export(model, tmp_path)
    back = load(tmp_path)
    assert isinstance(back, Transformer)
    assert (back.spec, back.training) == (model.spec, False)
    named = dict(back.named_parameters())
    assert all(torch.equal(named.pop(name), parameter) for name, parameter in model.named_parameters())
    assert not named
    x = torch.randn(3, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    assert torch.equal(back(x), model(x))


def test_a_folder_says_what_it_is(tmp_path: Path) -> None:
    export(small(), tmp_path)
    found = look(tmp_path)
    assert (found.model_type, found.task, found.layers) == ("qbench", "causal-lm", 3)
    assert (found.vocabulary, found.context) == (256, 16)
    assert found.parameters == sum(p.numel() for p in small().parameters())
    config = foreign(tmp_path).config
    assert (config.vocab_size, config.hidden_size, config.num_hidden_layers) == (256, 32, 3)


def test_equal_models_make_equal_folders(tmp_path: Path) -> None:
    export(small(), tmp_path / "a")
    export(small(), tmp_path / "b")
    assert model_digest(look(tmp_path / "a")) == model_digest(look(tmp_path / "b"))
    export(small("residual"), tmp_path / "b")
    assert model_digest(look(tmp_path / "a")) != model_digest(look(tmp_path / "b"))


def test_types_are_kept_and_may_be_chosen(tmp_path: Path) -> None:
    model = small().bfloat16()
    export(model, tmp_path)
    assert load(tmp_path, LoadOptions(dtype="auto")).embed.dtype == torch.bfloat16
    assert load(tmp_path).embed.dtype == torch.float32
    assert foreign(tmp_path).dtype == torch.bfloat16


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("arch", MODELS)
def test_a_folder_runs_in_16_bits(arch: str, dtype: torch.dtype, tmp_path: Path) -> None:
    """Through qbench and through plain `transformers` alike, and near the model in float32."""
    model = small(arch)
    export(model, tmp_path)
    x = tokens(model, 9)
    with torch.no_grad():
        exact = model(x)
        theirs = foreign(tmp_path, dtype=dtype)(x).logits
        ours = read(tmp_path).to(dtype)(x)
    assert theirs.dtype == ours.dtype == dtype
    for found in (theirs, ours):
        assert (found.float() - exact).norm() < 0.1 * exact.norm()


def test_what_transformers_saves_again_is_the_same_model(tmp_path: Path) -> None:
    model = small()
    export(model, tmp_path / "first")
    foreign(tmp_path / "first").save_pretrained(tmp_path / "second")
    assert read(tmp_path / "second").spec == model.spec
    assert torch.equal(read(tmp_path / "second")(tokens(model, 9)), model(tokens(model, 9)))


def test_loss_padding_and_generation(tmp_path: Path) -> None:
    model = small()
    export(model, tmp_path)
    theirs, x = foreign(tmp_path), tokens(model, 9)
    loss = torch.nn.functional.cross_entropy(model(x)[:, :-1].flatten(0, 1), x[:, 1:].flatten())
    assert torch.equal(theirs(x, labels=x).loss, loss)
    made = theirs.generate(x[:1, :3], max_new_tokens=4, do_sample=False)
    expected = x[:1, :3]
    for _ in range(4):
        expected = torch.cat([expected, model(expected)[:, -1:].argmax(-1)], 1)
    assert torch.equal(made, expected)
    mask = torch.ones_like(x)
    mask[0, 0] = 0
    with pytest.raises(ValueError, match="pad on the right"):
        theirs(x, attention_mask=mask)
    with pytest.raises(ValueError, match="17 tokens do not fit a context of 16"):
        theirs(tokens(model, 17))


@pytest.fixture(scope="module")
def byte_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("bytes")
    export(small(), path)
    return path


def test_the_tokenizer_gives_each_byte_its_own_value(byte_folder: Path) -> None:
    ours = tokenizer(byte_folder)
    theirs = transformers.AutoTokenizer.from_pretrained(byte_folder, trust_remote_code=True)

    @settings(max_examples=200, deadline=None)
    @given(st.text(max_size=14))
    def check(text: str) -> None:
        for words in (ours, theirs):
            ids = words(text)["input_ids"]
            assert ids == list(text.encode())
            assert words.decode(ids) == text

    check()
    everything = "".join(map(chr, range(1, 0x800)))
    assert ours.backend_tokenizer.encode(everything).ids == list(everything.encode())
    assert sorted(ours.get_vocab().values()) == list(range(256))


def test_a_model_of_other_tokens_has_no_tokenizer(tmp_path: Path) -> None:
    export(small(vocabulary=50), tmp_path)
    assert not (tmp_path / "tokenizer.json").exists()


def test_the_modelling_files_need_nothing_of_qbench() -> None:
    names = ("configuration_qbench", "layers_qbench", "modeling_qbench")
    sources = "\n".join(files("qbench.models").joinpath(f"{name}.py").read_text() for name in names)
    modules = set(re.findall(r"^\s*(?:from|import) ([.\w]+)", sources, re.MULTILINE))
    ours = {f".{name}" for name in names[:2]}
    assert modules == {"math", "typing", "torch", "torch.nn.functional", "transformers"} | ours | {
        "transformers.modeling_outputs"
    }


def test_an_export_that_broke_off_is_no_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    export(small(), tmp_path)
    monkeypatch.setattr("qbench.models.export.to_bytes", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        export(small("residual"), tmp_path)
    with pytest.raises(BadModel, match="no weights"):
        look(tmp_path)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"layers": 4}, "config and weights do not belong together: Missing key"),
        ({"width": 64}, "config and weights do not belong together: size mismatch for embed"),
        ({"width": 33}, "describes no model of ours: width 33 is not a multiple of 4 heads"),
        ({"wiring": "looped"}, "describes no model of ours: 'looped'"),
        ({"heads": None}, "describes no model of ours"),
    ],
)
def test_a_config_that_does_not_fit(change: dict[str, object], said: str, tmp_path: Path) -> None:
    export(small(), tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, **change}))
    with pytest.raises(BadModel) as error:
        load(tmp_path)
    assert said in str(error.value)
    assert "\n" not in str(error.value)


def test_a_setting_that_is_missing(tmp_path: Path) -> None:
    export(small(), tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    del config["attention_temperature"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(BadModel, match="attention_temperature"):
        load(tmp_path)


def test_weights_that_are_no_numbers(tmp_path: Path) -> None:
    export(small(), tmp_path)
    weights = load_file(tmp_path / SINGLE)
    weights["embed"][0, 0] = torch.nan
    save_file(weights, tmp_path / SINGLE)
    with pytest.raises(BadModel, match="1 weights are NaN or infinite, in embed"):
        load(tmp_path)


def test_options_of_other_models(tmp_path: Path) -> None:
    export(small(), tmp_path)
    with pytest.raises(BadModel, match="for models of transformers"):
        load(tmp_path, LoadOptions(attention="eager"))
