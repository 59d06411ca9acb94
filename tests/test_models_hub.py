"""Pretrained models of every family look alike once loaded; what cannot be loaded is said in one line."""

import json
import logging
import socket
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import random_models
import torch
import transformers
from real import babyllama
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from qbench.models import fetch as fetching
from qbench.models import headroom, inputs
from qbench.models.fetch import fetch
from qbench.models.folder import SINGLE, BadModel, MissingPackage, look
from qbench.models.hub import HubModel, LoadOptions, load
from qbench.models.inputs import image_processor, tokenizer

LANGUAGE = [family for family in random_models.FAMILIES if family not in random_models.VISION]
COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a local folder must not touch the network")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr("builtins.input", refuse)  # transformers asks whether to run code


@pytest.fixture(autouse=True)
def no_gradients() -> Iterator[None]:
    with torch.no_grad():
        yield


@pytest.fixture
def llama(tmp_path: Path) -> Path:
    return random_models.folder("llama", tmp_path)


def loaded(path: Path, **options: Any) -> HubModel:
    model = load(path, LoadOptions(**options))
    assert isinstance(model, HubModel)
    return model


def complaint(path: Path, kind: type[Exception] = BadModel, **options: Any) -> str:
    with pytest.raises(kind) as error:
        load(path, LoadOptions(**options))
    text = str(error.value)
    assert "\n" not in text
    assert text.startswith(str(path))
    return text


def configure(path: Path, **settings: object) -> None:
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps({**config, **settings}))


class Sizes(TorchDispatchMode):
    """How many values the largest tensor that ends in the vocabulary has, of all that any operation makes."""

    def __init__(self) -> None:
        super().__init__()
        self.largest = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for made in out if isinstance(out, tuple | list) else (out,):
            if isinstance(made, Tensor) and made.ndim and made.shape[-1] == random_models.VOCABULARY:
                self.largest = max(self.largest, made.numel())
        return out


@pytest.mark.parametrize("family", random_models.FAMILIES)
def test_every_family_loads_and_divides_before_its_head(family: str, tmp_path: Path) -> None:
    model = loaded(random_models.folder(family, tmp_path))
    x, plain = random_models.inputs(family), random_models.build(family)
    logits = plain(x).logits
    assert (model.undivided, model.training) == ("", False)
    assert torch.equal(model(x), logits)
    assert torch.equal(model.head(model.hidden(x)), logits)
    other = random_models.inputs(family, seed=1)
    assert torch.equal(model.head(model.hidden(other)), plain(other).logits)


@pytest.mark.parametrize("family", LANGUAGE)
def test_hidden_never_makes_the_logits(family: str, tmp_path: Path) -> None:
    model = loaded(random_models.folder(family, tmp_path))
    x = random_models.inputs(family, batch=8)
    with Sizes() as whole:
        logits = model(x)
    with Sizes() as divided:
        states = model.hidden(x)
    assert whole.largest == logits.numel()
    assert divided.largest <= random_models.WIDTH * random_models.VOCABULARY  # the transposed head at most
    assert states.shape == (*x.shape, random_models.WIDTH)


def test_hidden_is_what_the_architecture_gives_its_head(tmp_path: Path) -> None:
    def states(family: str) -> tuple[Tensor, Any, Tensor]:
        x = random_models.inputs(family)
        return loaded(random_models.folder(family, tmp_path)).hidden(x), random_models.build(family), x

    found, hf, x = states("gemma2")
    assert torch.equal(found, hf.model(x).last_hidden_state)
    found, hf, x = states("bert")
    assert torch.equal(found, hf.cls.predictions.transform(hf.bert(x).last_hidden_state))
    found, hf, x = states("vit")
    assert torch.equal(found, hf.vit(x).last_hidden_state[:, 0])


def test_logits_in_pieces_are_those_of_the_whole(tmp_path: Path) -> None:
    model = loaded(random_models.folder("gemma2", tmp_path))
    x = random_models.inputs("gemma2")
    states = model.hidden(x).flatten(0, 1)
    pieces = torch.cat([model.head(piece) for piece in states.split(5)])
    assert torch.allclose(pieces, model(x).flatten(0, 1), rtol=1e-5, atol=1e-6)


def _config(name: str, **settings: object) -> transformers.PreTrainedConfig:
    sizes = random_models.FAMILIES["llama"]().to_dict()
    keep = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
    return getattr(transformers, f"{name}Config")(**{key: sizes[key] for key in keep}, pad_token_id=0, **settings)


@pytest.mark.parametrize(
    "config",
    [
        _config("Cohere", logit_scale=0.25),
        _config("Granite", logits_scaling=3.0),
        _config(
            "FalconH1",
            lm_head_multiplier=0.3,
            num_key_value_heads=2,
            mamba_n_heads=4,
            mamba_d_head=16,
            mamba_d_ssm=64,
            mamba_d_state=8,
        ),
        _config("Gemma2", final_logit_softcapping=0.5, num_key_value_heads=2, head_dim=8),
    ],
    ids=lambda config: config.model_type,
)
def test_what_comes_after_the_head_belongs_to_it(config: transformers.PreTrainedConfig) -> None:
    hf = transformers.AutoModelForCausalLM.from_config(config).eval()
    model = HubModel(hf, "causal-lm")
    x = random_models.inputs("llama")
    assert model.undivided == ""
    assert torch.equal(model.head(model.hidden(x)), hf(x).logits)
    assert not torch.allclose(hf.lm_head(model.hidden(x)), hf(x).logits, rtol=0.01)


def test_an_architecture_that_does_more_than_it_says_is_not_divided() -> None:
    hf = random_models.build("llama")
    hf.register_forward_hook(lambda _module, _arguments, out: setattr(out, "logits", 2 * out.logits) or out)
    model = HubModel(hf, "causal-lm")
    x = random_models.inputs("llama")
    assert "LlamaForCausalLM does more after its head" in model.undivided
    assert torch.equal(model.hidden(x), model(x))
    assert torch.equal(model.head(model.hidden(x)), hf(x).logits)


def test_two_heads_are_not_divided() -> None:
    config = random_models.FAMILIES["deit"]()
    hf = transformers.DeiTForImageClassificationWithTeacher(config).eval()
    model = HubModel(hf, "image-classification")
    assert "has no head that its forward pass calls" in model.undivided
    assert model.head(model.hidden(random_models.inputs("deit"))).shape == (2, random_models.CLASSES)


def test_hooks_on_the_head_fire_for_head_and_not_for_hidden(llama: Path) -> None:
    model = loaded(llama)
    x = random_models.inputs("llama")
    states = model.hidden(x)
    model.hf.lm_head.register_forward_pre_hook(lambda _module, arguments: (2 * arguments[0],))
    assert torch.equal(model.hidden(x), states)
    assert torch.allclose(model.head(states), 2 * torch.nn.functional.linear(states, model.hf.lm_head.weight))
    assert len(model.hf.lm_head._forward_pre_hooks) == 1


def test_gradients_flow_through_hidden_and_head(llama: Path) -> None:
    model = loaded(llama)
    x = random_models.inputs("llama")
    weight = model.hf.model.layers[0].mlp.down_proj.weight
    with torch.enable_grad():
        (whole,) = torch.autograd.grad(model(x).logsumexp(-1).sum(), weight)
        (divided,) = torch.autograd.grad(model.head(model.hidden(x)).logsumexp(-1).sum(), weight)
    assert torch.equal(whole, divided)


def test_images_of_no_fixed_size() -> None:
    config = transformers.ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], num_labels=10)
    model = HubModel(transformers.AutoModelForImageClassification.from_config(config), "image-classification")
    assert model.undivided == ""
    assert model(torch.randn(2, 3, 40, 48)).shape == (2, 10)


@pytest.mark.parametrize("family", ["llama", "gpt2", "opt"])
def test_no_cache_is_kept(family: str, tmp_path: Path) -> None:
    model = loaded(random_models.folder(family, tmp_path))
    assert model.hf(random_models.inputs(family)).past_key_values is None


def test_types(llama: Path) -> None:
    assert {p.dtype for p in loaded(llama, dtype="bfloat16").parameters()} == {torch.bfloat16}
    loaded(llama, dtype="float16").hf.save_pretrained(llama / "half")
    assert {p.dtype for p in loaded(llama / "half", dtype="auto").parameters()} == {torch.float16}
    assert {p.dtype for p in loaded(llama / "half").parameters()} == {torch.float32}


def test_attention_is_an_option(llama: Path) -> None:
    assert loaded(llama, attention="eager").config._attn_implementation == "eager"
    assert "transformers cannot load it: Specified" in complaint(llama, attention="nonsense")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there it may be installed")
def test_a_package_that_is_missing_is_named(llama: Path) -> None:
    assert "FlashAttention2" in complaint(llama, MissingPackage, attention="flash_attention_2")


def test_a_task_may_be_given(tmp_path: Path) -> None:
    path = random_models.folder("bert", tmp_path)
    configure(path, architectures=["BertModel"])
    assert "architectures in config.json: BertModel" in complaint(path)
    assert loaded(path, task="masked-lm").task == "masked-lm"


def test_inputs_that_the_model_cannot_take(llama: Path) -> None:
    model = loaded(llama)
    with pytest.raises(ValueError, match="65 tokens do not fit a context of 64"):
        model.hidden(torch.ones(1, 65, dtype=torch.int64))
    with pytest.raises(ValueError, match="token 97, where the model knows 97"):
        model(torch.full((1, 3), 97))


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"num_hidden_layers": 3}, "9 weights of the model are in no shard, and would be random: model.layers.2."),
        ({"vocab_size": 90}, "lm_head.weight is [97, 32] in its shard, and [90, 32] by config.json"),
        ({"hidden_size": "a"}, "transformers cannot load it"),
        ({"num_attention_heads": 0}, "transformers cannot load it: integer modulo by zero"),
        ({"model_type": "lama"}, "transformers cannot load it: The checkpoint you are trying to load has model type"),
        ({"architectures": ["LlamaForMaskedLM"]}, "transformers cannot load it: Unrecognized configuration class"),
    ],
)
def test_a_config_that_does_not_fit(settings: dict[str, object], said: str, llama: Path) -> None:
    configure(llama, **settings)
    assert said in complaint(llama)


def test_code_in_the_folder_runs_only_when_asked(llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    auto_map = {"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model"}
    configure(llama, model_type="unheard-of", auto_map=auto_map)
    ran = llama / "ran"
    (llama / "evil.py").write_text(f"open({str(ran)!r}, 'w').close()\n")
    assert "read it, then --trust-remote-code" in complaint(llama)
    assert not ran.exists()
    complaint(llama, trust_remote_code=True)  # it runs, and has no such classes
    assert ran.exists()


def test_a_known_type_with_code_beside_it_needs_none_of_it(llama: Path) -> None:
    auto_map = {"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model"}
    configure(llama, auto_map=auto_map)
    assert isinstance(loaded(llama).hf, transformers.LlamaForCausalLM)


def test_weights_that_are_no_numbers_are_counted_and_named(llama: Path) -> None:
    weights = load_file(llama / SINGLE)
    weights["model.layers.1.mlp.up_proj.weight"][3, :2] = torch.nan
    weights["model.norm.weight"][0] = torch.inf
    save_file(weights, llama / SINGLE, {"format": "pt"})
    said = "3 weights are NaN or infinite, in model.layers.1.mlp.up_proj.weight, model.norm.weight"
    assert said in complaint(llama)
    assert said in complaint(llama, dtype="bfloat16")


def test_a_model_that_does_not_fit_is_told_with_both_numbers(llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    needed = 4 * look(llama).parameters
    monkeypatch.setattr(headroom, "free_memory", lambda: needed - 1)
    assert "0.00 GB of weights as float32, and 0.00 GB of memory are free" in complaint(llama)
    assert loaded(llama, dtype="bfloat16").undivided == ""
    monkeypatch.setattr(headroom, "free_memory", lambda: needed)
    assert loaded(llama).undivided == ""


def test_a_checkpoint_that_was_quantized_elsewhere_is_decoded(llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    weights, plain = load_file(llama / SINGLE), 4 * look(llama).parameters
    expected = {}
    for name in [name for name in weights if name.endswith("_proj.weight")]:
        scale = weights[name].unflatten(0, (-1, 16)).unflatten(2, (-1, 16)).abs().amax((1, 3)) / 448
        spread = scale.repeat_interleave(16, 0).repeat_interleave(16, 1)
        codes = (weights[name] / spread).to(torch.float8_e4m3fn)
        weights[name], weights[f"{name}_scale_inv"] = codes, scale
        expected[name] = codes.float() * spread
    save_file(weights, llama / SINGLE, {"format": "pt"})
    configure(llama, quantization_config={"quant_method": "fp8", "weight_block_size": [16, 16]})
    assert headroom.bytes_in_memory(look(llama), "float32") == plain
    model = loaded(llama)
    assert model.undivided == ""
    for name, weight in expected.items():
        assert torch.equal(model.hf.get_parameter(name), weight)
    monkeypatch.setattr(headroom, "free_memory", lambda: plain - 1)
    assert "of weights as float32" in complaint(llama)


def test_free_memory_is_near_what_the_kernel_says() -> None:
    psutil = pytest.importorskip("psutil")
    free = headroom.free_memory()
    assert free is not None
    assert 0 < free <= 1.1 * psutil.virtual_memory().available


def test_a_containers_limit_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    limit, used = tmp_path / "max", tmp_path / "current"
    monkeypatch.setattr(headroom, "_KNOWN_LIMITS", ((str(limit), str(used)),))
    whole = headroom.free_memory()
    limit.write_text("1000\n")
    used.write_text("300\n")
    assert headroom.free_memory() == 700
    limit.write_text("max\n")
    assert headroom.free_memory() != 700
    assert whole is None or whole > 700


def test_loading_prints_nothing(llama: Path, capfd: pytest.CaptureFixture[str]) -> None:
    configure(llama, num_hidden_layers=1)  # leaves weights over, of which transformers would make a table
    loaded(llama)
    said = capfd.readouterr()
    assert said.out + said.err == ""
    assert logging.getLogger("torchao").level != logging.ERROR
    assert transformers.utils.logging.is_progress_bar_enabled()


@pytest.mark.parametrize("family", LANGUAGE)
def test_the_tokenizer_is_what_its_file_says(family: str, tmp_path: Path) -> None:
    path = random_models.folder(family, tmp_path)
    made, raw = tokenizer(path), random_models.tokenizer(family)
    text = "It was 4 o'clock,\n  and (she) said: no!"
    assert made(text)["input_ids"] == raw(text)["input_ids"]
    assert (made.is_fast, len(made)) == (True, random_models.VOCABULARY)
    first = random_models.tokenizer(family).convert_tokens_to_ids("I")
    begins = family in random_models.BEGINS_WITH_BOS or family in random_models.MASKED
    assert made(text)["input_ids"].index(first) == (1 if begins else 0)


def test_a_tokenizer_of_another_model(llama: Path, tmp_path: Path) -> None:
    raw = json.loads((llama / "tokenizer.json").read_text())
    raw["model"]["vocab"]["€"] = 97
    (llama / "tokenizer.json").write_text(json.dumps(raw))
    with pytest.raises(BadModel, match="has a token 97, where the model knows 97"):
        tokenizer(llama)


@pytest.mark.parametrize(
    ("text", "said"), [("{", "cannot be read"), ("{}", "expected the key model"), (None, "no tok")]
)
def test_a_tokenizer_that_is_none(text: str | None, said: str, llama: Path) -> None:
    (llama / "tokenizer.json").unlink()
    if text is not None:
        (llama / "tokenizer.json").write_text(text)
    with pytest.raises(BadModel, match=said):
        tokenizer(llama)


@pytest.mark.parametrize("family", random_models.VISION)
def test_the_image_processor_makes_what_the_model_takes(family: str, tmp_path: Path) -> None:
    path = random_models.folder(family, tmp_path)
    made = image_processor(path)
    assert made is not None
    image = torch.randint(0, 256, (20, 30, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    pixels = made(image.numpy(), return_tensors="pt")["pixel_values"]
    assert pixels.shape == (1, 3, random_models.IMAGE, random_models.IMAGE)
    assert loaded(path)(pixels).shape == (1, random_models.CLASSES)


def test_a_language_model_has_no_image_processor(llama: Path) -> None:
    assert image_processor(llama) is None


class Hub:
    """A hub of one model."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, answer: Callable[[], object]) -> None:
        self.asked: list[tuple[str, str | None]] = []
        self.fetched: list[dict[str, Any]] = []
        self.answer = answer
        monkeypatch.setattr("huggingface_hub.HfApi", lambda: self)

    def model_info(self, name: str, revision: str | None = None) -> object:
        self.asked.append((name, revision))
        return self.answer()


def _info(*files: str) -> Callable[[], object]:
    return lambda: SimpleNamespace(sha=COMMIT, siblings=[SimpleNamespace(rfilename=file) for file in files])


def _failing(name: str) -> Callable[[], object]:
    def answer() -> object:
        from huggingface_hub import errors

        if name == "OfflineModeIsEnabled":
            raise errors.OfflineModeIsEnabled("offline")
        library = sys.modules[errors.HfHubHTTPError.__mro__[1].__module__.partition(".")[0]]
        response = library.Response(404, request=library.Request("GET", "https://hub"))
        raise getattr(errors, name)("the hub says no", response=response)

    return answer


def test_a_name_without_a_revision_is_fetched_at_the_commit_that_is_recorded(
    llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub = Hub(monkeypatch, _info("config.json", "model.safetensors"))
    calls: list[tuple[str, dict[str, Any]]] = []
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda name, **kw: calls.append((name, kw)) or str(llama))
    model = load("owner/llama")
    assert isinstance(model, HubModel)
    assert model.revision == COMMIT
    assert hub.asked == [("owner/llama", None)]
    assert [(name, kw["revision"]) for name, kw in calls] == [("owner/llama", COMMIT)]
    assert not any(pattern.endswith((".bin", ".pt")) for pattern in calls[0][1]["allow_patterns"])
    assert fetch("owner/llama", "v1").revision == COMMIT
    assert hub.asked[-1] == ("owner/llama", "v1")


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (_info("config.json", "pytorch_model.bin"), "no safetensors on the hub"),
        (_failing("RepositoryNotFoundError"), "neither a folder here nor a model that the hub shows you"),
        (_failing("GatedRepoError"), "log in"),
        (_failing("RevisionNotFoundError"), "the hub has no revision 'main'"),
        (_failing("HfHubHTTPError"), "the hub refused: the hub says no"),
        (_failing("OfflineModeIsEnabled"), "the hub is out of reach"),
    ],
)
def test_what_the_hub_may_answer(
    answer: Callable[[], object], said: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    Hub(monkeypatch, answer)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(BadModel, match=r"^owner/llama: ") as error:
        fetch("owner/llama", "main")
    assert said in str(error.value)
    assert "\n" not in str(error.value)


def test_what_was_fetched_before_is_found_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Hub(monkeypatch, _failing("OfflineModeIsEnabled"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    cache = tmp_path / "models--owner--llama"
    (cache / "refs").mkdir(parents=True)
    (cache / "refs" / "main").write_text(COMMIT)
    (cache / "snapshots").mkdir()
    random_models.folder("llama", tmp_path).rename(cache / "snapshots" / COMMIT)
    assert fetch("owner/llama").revision == fetch("owner/llama", COMMIT).revision == COMMIT
    assert look(fetch("owner/llama").path).model_type == "llama"


@pytest.mark.parametrize("name", ["./nowhere", "/nowhere/at/all", "a/b/c", "../a", "~/x"])
def test_what_cannot_be_a_name_on_the_hub_is_not_asked_for(name: str) -> None:
    with pytest.raises(BadModel, match="no such folder"):
        fetch(name)


def test_a_folder_has_no_revisions(llama: Path) -> None:
    assert "only names on the hub have revisions" in complaint(llama, revision="main")


def test_the_hub_needs_its_client(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetching, "find_spec", lambda _: None)
    with pytest.raises(MissingPackage, match="pip install huggingface_hub"):
        fetch("owner/llama")


@pytest.mark.parametrize("use", [load, tokenizer])
def test_the_library_itself_is_missing(
    use: Callable[[Path], object], llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(MissingPackage, match="pip install"):
        use(llama)


def test_images_need_pillow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = random_models.folder("vit", tmp_path)
    monkeypatch.setattr(inputs, "find_spec", lambda _: None)
    with pytest.raises(MissingPackage, match="pip install pillow"):
        image_processor(path)


def test_a_real_checkpoint() -> None:
    path = babyllama()
    model, words = loaded(path), tokenizer(path)
    tokens = words("Once upon a time there was a little", return_tensors="pt")["input_ids"]
    states = model.hidden(tokens)
    assert (model.undivided, model.context, model.vocabulary) == ("", 256, 105)
    assert torch.equal(model.head(states), model(tokens))
    loss = torch.nn.functional.cross_entropy(model(tokens)[0, :-1], tokens[0, 1:])
    assert loss < 2.5  # it has learned something: ln 105 = 4.65 is knowing nothing
