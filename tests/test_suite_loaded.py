"""Suites of models that are loaded: what their files may say, and what is said of every mistake in them."""

import dataclasses
import socket
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from stub_models import PLACES, stub

from qbench.suite.schema import BadSuite, Suite, load
from qbench.suite.value import CalibrationData, Evaluate, Pretrained, Sensitivity, Tasks

Read = Callable[..., Suite]
SUITES = Path(__file__).parents[1] / "suites"

GOOD = """\
suite: judged
version: 1
question: What does it cost?
data: text:words.txt
models:
  - {name: base, load: ./base}
  - {name: small, load: ./small, reference: base}
tensors:
  - {kind: weight, quantizers: [int4/channel]}
  - {kind: activation, sites: kv, windows: 4, outliers: true, quantizers: [int8/token]}
evaluate: {windows: 8, context: 16, stride: 8, bos: never}
treatments:
  - {scope: weights, quantizers: [int4/channel]}
  - {name: static, assign: {"activation:linear": int8/tensor+static}}
calibration: {data: text:notes.txt, windows: 4}
kernels: [bitsandbytes/nf4]
sensitivity: [{weights: int4/channel, top: 2}, {inputs: int8/token}]
eval: {lm_eval: [copying], include: ./tasks, limit: 5}
optimizers: [torchao/AdamW8bit]
"""
TRAINED = """\
suite: trained
version: 1
question: q
models:
  - {name: one, arch: residual}
evaluate: {windows: 8}
"""


@pytest.fixture
def home(tmp_path: Path) -> Path:
    for name in ("base", "small"):
        stub(tmp_path / name, seed=len(name))
    for name in ("words.txt", "notes.txt", "saved.safetensors"):
        (tmp_path / name).write_text("some words")
    (tmp_path / "tasks").mkdir()
    return tmp_path


@pytest.fixture
def read(home: Path) -> Read:
    def read(text: str, *overrides: tuple[str, str]) -> Suite:
        path = home / "judged.yaml"
        path.write_text(text)
        return load(path, overrides)

    return read


def mistakes(read: Read, text: str, *overrides: tuple[str, str]) -> list[tuple[int, str, str]]:
    """Line, dotted key and words of each."""
    with pytest.raises(BadSuite) as caught:
        read(text, *overrides)
    return [(mistake.mark.line, mistake.path, mistake.text) for mistake in caught.value.mistakes]


def changed(old: str, new: str, text: str = GOOD) -> tuple[str, int]:
    """The text with one thing changed, and the line where."""
    assert text.count(old) == 1, old
    return text.replace(old, new), text[: text.index(old)].count("\n") + 1


def test_a_good_suite_is_what_it_says(read: Read, home: Path) -> None:
    suite = read(GOOD)
    assert suite.pretrained
    assert [arm.name for arm in suite.arms] == ["base", "small"]
    assert [arm.reference for arm in suite.arms] == ["", "base"]
    assert [(arm.arch, arm.training, arm.seeds) for arm in suite.arms] == [("pretrained", None, (0,))] * 2
    base = suite.arms[0].model
    assert isinstance(base, Pretrained)
    assert (base.source, base.local, base.dtype) == (str(home / "base"), True, "float32")
    assert base.names is not None
    assert base.names.weights == ("embed", *(f"blocks.0.{place}" for place in PLACES), "logits")
    assert suite.evaluate == Evaluate(windows=8, split="all", context=16, stride=8, bos="never")
    assert suite.calibration == CalibrationData(data=f"text:{home / 'notes.txt'}", windows=4)
    assert suite.kernels == ("bitsandbytes/nf4",)
    assert suite.sensitivity == (Sensitivity(weights="int4/channel", top=2), Sensitivity(inputs="int8/token"))
    assert suite.tasks == Tasks(lm_eval=("copying",), include=str(home / "tasks"), limit=5)
    assert suite.optimizers == ("torchao/AdamW8bit",)
    assert suite.tensors[1].outliers


def test_options_of_loading_are_kept_and_the_folder_names_the_arm(read: Read) -> None:
    text = TRAINED.replace(
        "{name: one, arch: residual}", "{load: ./small, dtype: bfloat16, attention: eager, device_map: auto}"
    )
    arm = read(text).arms[0]
    assert isinstance(arm.model, Pretrained)
    assert arm.name == "small"
    assert (arm.model.dtype, arm.model.attention, arm.model.device_map) == ("bfloat16", "eager", "auto")


MISTAKES: Sequence[tuple[str, str, str, str]] = [  # what is changed, into what, the key that is blamed, what is said
    ("load: ./base", "load: ./nowhere", "models.0.load", "no folder './nowhere'"),
    ("load: ./base", "load: ./words.txt", "models.0.load", "no such folder; a model is a folder with config.json"),
    ("load: ./base", "load: ./tasks", "models.0.load", "no config.json"),
    ("load: ./base", "load: ./base, revision: abc", "models.0.revision", "a folder has no revisions"),
    ("load: ./base", "load: ./base, seeds: [1]", "models.0.seeds", "neither built nor trained; allowed: name, load"),
    ("load: ./base", "load: ./base, arch: residual", "models.0.arch", "neither built nor trained"),
    ("load: ./base", "load: ./base, spec: {layers: 2}", "models.0.spec", "neither built nor trained"),
    ("load: ./base", "load: ./base, training: {steps: 2}", "models.0.training", "neither built nor trained"),
    ("load: ./base", "load: ./base, product: {arch: [residual]}", "models.0.product", "neither built nor trained"),
    ("load: ./base", "load: ./base, dtype: int8", "models.0.dtype", "float32"),
    ("load: ./base", "load: ./base, attention: flash", "models.0.attention", "sdpa"),
    ("load: ./base", "load: ./base, lode: x", "models.0.lode", "load"),
    ("name: base", "name: calibration", "models.0.name", "is the name of the arm of known tensors"),
    ("reference: base", "reference: bas", "models.1.reference", "no file and no other arm 'bas'; did you mean 'base'?"),
    ("reference: base", "reference: small", "models.1.reference", "no file and no other arm 'small'"),
    ("load: ./base", "load: ./base, reference: small", "models.0.reference", "has a reference itself"),
    ("data: text:words.txt", "data: words.txt", "data", "write text:words.txt for that path"),
    ("data: text:words.txt", "data: text:no.txt", "data", "no file or folder 'no.txt'"),
    ("text:notes.txt", "text:no.txt", "calibration.data", "no file or folder 'no.txt'"),
    ("sites: kv", "sites: kw", "tensors.1.sites", "no activation site 'kw'"),
    ("kind: weight,", "kind: weight, outliers: true,", "tensors.0.outliers", "an outlier map is one of activations"),
    ("kind: weight,", "kind: weight, windows: 4,", "tensors.0.windows", "no text is involved"),
    ("kernels: [bitsandbytes/nf4]", "kernels: [bitsandbytes/nf5]", "kernels.0", "did you mean 'bitsandbytes/nf4'?"),
    ("kernels: [bitsandbytes/nf4]", "kernels: [bitsandbytes/nf4, bitsandbytes/nf4]", "kernels", "given twice"),
    ("{inputs: int8/token}", "{inputs: int8/tokn}", "sensitivity.1.inputs", "tokn"),
    ("{inputs: int8/token}", "{top: 3}", "sensitivity.1", "weights, inputs, or both: name a quantizer"),
    ("top: 2", "top: 0", "sensitivity.0.top", "0"),
    ("./tasks", "./chores", "eval.include", "no folder './chores' of task files"),
    ("version: 1", "version: 1\nseeds: [0, 1]", "seeds", "is for models that are trained here, and all of this"),
    ("version: 1", "version: 1\nspec: {layers: 2}", "spec", "is for models that are trained here"),
    ("version: 1", "version: 1\ntraining: {steps: 2}", "training", "is for models that are trained here"),
    ("bos: never", "bos: never, split: tune", "evaluate.split", "loaded ones are judged on whole texts"),
    ("sites: kv,", "sites: kv, split: test,", "tensors.1.split", "loaded ones are judged on whole texts"),
    ("stride: 8", "stride: 0", "evaluate.stride", "0"),
    ("bos: never", "bos: sometimes", "evaluate.bos", "auto"),
]


@pytest.mark.parametrize(("old", "new", "key", "said"), MISTAKES, ids=[f"{key}: {new}" for _, new, key, _ in MISTAKES])
def test_a_mistake_is_found_placed_and_explained(read: Read, old: str, new: str, key: str, said: str) -> None:
    text, line = changed(old, new)
    found = mistakes(read, text)
    about = [one for one in found if one[1] == key]
    assert about, found
    assert about[0][0] == line + new.count("\n")
    assert said in about[0][2]
    # Only who refers to an arm that is not there any more is blamed as well.
    assert [one for one in found if one[1] in (key, "models.1.reference")] == found


def test_of_two_arms_of_one_name_the_second_is_blamed(read: Read) -> None:
    text, line = changed("name: base", "name: small")
    assert [one[:2] for one in mistakes(read, text)] == [(line + 1, "models.1.name")]


def test_a_stride_above_the_context_is_a_mistake_of_the_file(read: Read) -> None:
    text, line = changed("stride: 8", "stride: 17")
    assert [one[:2] for one in mistakes(read, text)] == [(line, "evaluate.stride")]


def test_an_unknown_optimizer_is_a_mistake_of_the_file(read: Read) -> None:
    text, line = changed("torchao/AdamW8bit", "torchao/AdamW9bit")
    assert [one[:2] for one in mistakes(read, text)] == [(line, "optimizers.0")]


def test_a_saved_reference_is_a_path_that_starts_from_the_file(read: Read, home: Path) -> None:
    suite = read(changed("reference: base", "reference: ./saved.safetensors")[0])
    assert suite.arms[1].reference == str(home / "saved.safetensors")


def test_paths_of_the_command_line_start_from_where_it_is_typed(
    read: Read, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    mine = stub(elsewhere / "mine")
    monkeypatch.chdir(elsewhere)
    text = changed("./base", '"${model}"')[0].replace("data:", "params: {model: null}\ndata:", 1)
    model = read(text, ("model", "./mine")).arms[0].model
    assert isinstance(model, Pretrained)
    assert model.source == str(mine)
    assert mistakes(read, text, ("model", "./base"))[0][1] == "models.0.load"


def test_names_on_the_hub_are_taken_as_they_are_and_ask_nobody(read: Read, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a suite was read and the network asked")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    arm = read(changed("load: ./base", "load: owner/model-7b, revision: abc123")[0]).arms[0]
    assert isinstance(arm.model, Pretrained)
    assert (arm.model.source, arm.model.revision, arm.model.local) == ("owner/model-7b", "abc123", False)
    assert arm.names is None
    assert arm.name == "base"
    for source in ("./owner/model", "owner/model/deeper", "owner//model", "/owner/model"):
        assert mistakes(read, changed("load: ./base", f"load: {source}")[0])[0][1] == "models.0.load"


def test_trained_and_loaded_models_do_not_mix(read: Read) -> None:
    text, _ = changed("  - {name: small", "  - {name: own, arch: residual}\n  - {name: small")
    assert (6, "models") in [
        (line, key) for line, key, said in mistakes(read, text) if "trains all of its models" in said
    ]


@pytest.mark.parametrize(
    ("line", "key"),
    [
        ("calibration: {data: stdlib-tune}", "calibration"),
        ("kernels: [bitsandbytes/nf4]", "kernels"),
        ("sensitivity: [{weights: int4/channel}]", "sensitivity"),
        ("eval: {lm_eval: [hellaswag]}", "eval"),
        ("optimizers: [torchao/AdamW8bit]", "optimizers"),
    ],
)
def test_what_is_asked_of_loaded_models_is_not_asked_of_trained_ones(read: Read, line: str, key: str) -> None:
    ((at, blamed, said),) = mistakes(read, f"{TRAINED}{line}\n")
    assert (at, blamed) == (7, key)
    assert "is measured of models that are loaded (load: FOLDER), not of trained ones" in said


@pytest.mark.parametrize("key", ["context: 16", "stride: 8", "bos: never"])
def test_trained_models_have_a_context_of_their_own(read: Read, key: str) -> None:
    text, line = changed("windows: 8", f"windows: 8, {key}", TRAINED)
    ((at, blamed, said),) = mistakes(read, text)
    assert (at, blamed) == (line, f"evaluate.{key.partition(':')[0]}")
    assert "spec.context" in said


@pytest.mark.parametrize(
    "key", ["revision: abc", "dtype: bfloat16", "attention: eager", "device_map: auto", "reference: other"]
)
def test_a_trained_model_has_nothing_to_load(read: Read, key: str) -> None:
    text, line = changed("arch: residual", f"arch: residual, {key}", TRAINED)
    found = mistakes(read, text)
    assert (line, f"models.0.{key.partition(':')[0]}", "belongs to a model that is loaded; write load: FOLDER") in found


def test_what_only_loaded_models_are_asked_is_named_where_it_stands(read: Read) -> None:
    tensors = "tensors: [{kind: activation, windows: 4, outliers: true}]\n"
    assert mistakes(read, TRAINED + tensors) == [
        (7, "tensors.0.outliers", "is measured of models that are loaded (load: FOLDER)")
    ]
    ((line, key, said),) = mistakes(read, TRAINED.replace("question: q", "question: q\ndata: stdlib-tune"))
    assert (line, key) == (4, "data")
    assert said == "stdlib-tune is what loaded models are calibrated on, a twentieth of stdlib; train on stdlib"


def test_stacks_beside_loaded_models_have_seeds(read: Read) -> None:
    text, _ = changed("version: 1", "version: 1\nseeds: [3, 4]\nstacks: [{name: mix}]")
    assert read(text).stacks[0].seeds == (3, 4)


WITHOUT = "\n".join(line for line in GOOD.splitlines() if not line.startswith("calibration")) + "\n"


def test_a_static_scale_without_calibration_data_is_a_mistake_where_it_stands(read: Read) -> None:
    ((line, key, said),) = mistakes(read, WITHOUT)
    assert GOOD.splitlines()[line - 1].startswith("  - {name: static")
    assert key == "treatments.1.assign.activation:linear"
    assert "give the suite calibration: {data: text:FILE}" in said


@pytest.mark.parametrize(
    ("old", "new", "key"),
    [
        ("quantizers: [int8/token]", "quantizers: [int8/token, int8/tensor+static]", "tensors.1.quantizers.1"),
        ("scope: weights, quantizers: [int4/channel]", "scope: kv, quantizers: int8/tensor+static", "treatments.0"),
    ],
)
def test_static_scales_are_found_in_lists_too(read: Read, old: str, new: str, key: str) -> None:
    text, line = changed(old, new, WITHOUT)
    assert (line, True) in [(at, blamed.startswith(key)) for at, blamed, _ in mistakes(read, text)]


@pytest.mark.parametrize("name", ["deploy-lm", "kv", "sensitivity", "weights"])
def test_shipped_suites_are_good_with_a_model(home: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.chdir(home)
    suite = load(SUITES / f"{name}.yaml", [("model", "./base"), ("data", "text:words.txt")])
    assert [arm.name for arm in suite.arms] == ["model"]
    assert suite.data == f"text:{home / 'words.txt'}"


def test_the_shipped_suite_for_vision_is_good_with_a_model(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(home)
    vit = stub(home / "vit", model_type="vit", architectures=["ViTForImageClassification"])
    assert load(SUITES / "deploy-vision.yaml", [("model", str(vit))]).data == "digits"


def test_shipped_comparisons_are_good_with_two_models_or_a_file(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(home)
    both = load(SUITES / "compare.yaml", [("base", "./base"), ("candidate", "./small")])
    assert [(arm.name, arm.reference) for arm in both.arms] == [("base", ""), ("candidate", "base")]
    saved = load(SUITES / "compare-saved.yaml", [("base", "./saved.safetensors"), ("candidate", "./small")])
    assert [(arm.name, arm.reference) for arm in saved.arms] == [("candidate", str(home / "saved.safetensors"))]


def test_a_profile_of_a_shipped_suite_is_laid_over_a_model_from_the_command_line(home: Path) -> None:
    suite = load(SUITES / "deploy-lm.yaml", [("model", str(home / "base"))], profile="smoke")
    assert (suite.evaluate.windows, suite.kernels) == (8, ("bitsandbytes/nf4",))
    whole = load(SUITES / "deploy-lm.yaml", [("model", str(home / "base"))])
    assert dataclasses.replace(whole.evaluate, windows=8) == suite.evaluate
    assert len(whole.kernels) > 1


def test_a_parameter_that_holds_nothing_is_asked_for_by_name(read: Read) -> None:
    text = changed("./base", '"${model}"')[0].replace("data:", "params: {model: null}\ndata:", 1)
    found = mistakes(read, text)
    line = text[: text.index("${model}")].count("\n") + 1
    assert (line, "models.0.load", "parameter 'model' holds nothing; give it one with --set model=VALUE") in found


def test_a_shipped_suite_without_its_model_says_only_that() -> None:
    with pytest.raises(BadSuite) as caught:
        load(SUITES / "deploy-lm.yaml")
    assert ["parameter 'model' holds nothing" in one.text for one in caught.value.mistakes] == [True]


def test_a_file_that_is_wrong_without_the_override_is_right_with_it(read: Read, home: Path) -> None:
    """What holds nothing is filled first; every other mistake of the file is still one."""
    text = changed("./base", '"${model}"')[0].replace("data:", "params: {model: null}\ndata:", 1)
    assert read(text, ("model", str(home / "base"))).arms[0].name == "base"
    broken = text.replace("windows: 8,", "windows: none,")
    assert [key for _, key, _ in mistakes(read, broken, ("model", str(home / "base")))] == ["evaluate.windows"]
