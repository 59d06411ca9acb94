"""Grids of arms and quantizers, profiles and overrides, shipped suites."""

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from qbench.suite.schema import BadSuite, Suite, load
from qbench.suite.shipped import folder, shipped

HEAD = "suite: s\nversion: 1\nquestion: q\nspec: {layers: 2}\n"
Read = Callable[..., Suite]


@pytest.fixture
def read(tmp_path: Path) -> Read:
    def read(text: str, **options: object) -> Suite:
        path = tmp_path / "s.yaml"
        path.write_text(HEAD + text)
        return load(path, **options)  # pyright: ignore[reportArgumentType]

    return read


def names(suite: Suite) -> list[str]:
    return [arm.name for arm in suite.arms]


def test_a_product_has_every_combination_and_the_last_key_varies_fastest(read: Read) -> None:
    grid = "{training.optimizer: [adamw, muon], training.lr: [0.1, 0.2]}"
    suite = read(f"models:\n  - {{name: '{{optimizer}} {{lr}}', arch: residual, product: {grid}}}\n")
    assert names(suite) == ["adamw 0.1", "adamw 0.2", "muon 0.1", "muon 0.2"]
    assert [(a.training.optimizer, a.training.lr) for a in suite.arms][2] == ("muon", 0.1)


def test_zip_reads_its_lists_side_by_side_and_is_one_axis_of_a_product(read: Read) -> None:
    entry = "zip: {arch: [residual, residual-free], training.lr: [0.1, 0.2]}, product: {spec.width: [16, 32]}"
    suite = read(f"models:\n  - {{name: '{{arch}} {{width}} {{lr}}', {entry}}}\n")
    assert names(suite) == ["residual 16 0.1", "residual-free 16 0.2", "residual 32 0.1", "residual-free 32 0.2"]


def test_an_ablation_is_the_base_and_one_arm_for_each_change(read: Read) -> None:
    changes = "{spec.temperature: const, spec.init: [gpt2, fan-in]}"
    suite = read(f"models:\n  - {{name: base, arch: residual-free, ablate: {changes}}}\n")
    assert names(suite) == ["base", "base (temperature const)", "base (init gpt2)", "base (init fan-in)"]
    assert [a.model.temperature for a in suite.arms] == ["inv-sqrt-layer", "const", "inv-sqrt-layer", "inv-sqrt-layer"]
    assert [a.model.init for a in suite.arms] == ["orthogonal", "orthogonal", "gpt2", "fan-in"]


def test_exclude_drops_what_fits_all_of_its_keys(read: Read) -> None:
    grid = "{training.optimizer: [adamw, muon], training.lr: [0.1, 0.2, 0.3]}"
    out = "[{training.optimizer: muon, training.lr: [0.1, 0.3]}]"
    suite = read(f"models:\n  - {{name: '{{optimizer}} {{lr}}', arch: residual, product: {grid}, exclude: {out}}}\n")
    assert names(suite) == ["adamw 0.1", "adamw 0.2", "adamw 0.3", "muon 0.2"]


@pytest.mark.parametrize(
    ("out", "said"),
    [
        ("[{}]", "models.0.exclude.0: names no values, and so would leave out every arm"),
        ("[{training.lr: [0.1, 0.2]}]", "models.0.exclude: leaves no arm of this grid"),
        ("[{training.lr: 0.1}, {training.lr: 0.2}]", "models.0.exclude: leaves no arm of this grid"),
    ],
)
def test_exclude_leaves_something(read: Read, out: str, said: str) -> None:
    grid = "product: {training.lr: [0.1, 0.2]}"
    with pytest.raises(BadSuite, match=r":[0-9]+:[0-9]+: " + re.escape(said)):
        read(f"models:\n  - {{name: '{{lr}}', arch: residual, {grid}, exclude: {out}}}\n")


def test_an_entry_goes_before_the_file_and_the_file_before_the_architecture(read: Read) -> None:
    text = "training: {lr: 1, steps: 7}\nseeds: [4, 5]\n"
    suite = read(
        f"{text}models:\n  - {{name: a, arch: residual, seeds: [6], training: {{lr: 2}}, spec: {{init: orthogonal}}}}\n"
    )
    (arm,) = suite.arms
    assert (arm.training.lr, arm.training.steps, arm.seeds) == (2.0, 7, (6,))
    assert (arm.model.layers, arm.model.init) == (2, "orthogonal")


MODEL = "models: [{name: a, arch: residual}]\n"


def test_grids_of_quantizers_become_canonical_names(read: Read) -> None:
    grid = '{grid: int, bits: [3, 4], granularity: [token, "block:32"], variant: asym, scale: bf16}'
    suite = read(f"{MODEL}tensors:\n  - {{kind: activation, quantizers: [{grid}, e2m1/block:32/pow2/scale:e8m0]}}\n")
    spelled = [f"int{b}.asym/{g}/scale:bf16" for b in (3, 4) for g in ("token", "block:32")]
    assert suite.tensors[0].quantizers == (*spelled, "mxfp4")


def test_a_grid_with_one_width_needs_no_bits(read: Read) -> None:
    suite = read(f"{MODEL}tensors:\n  - {{kind: activation, quantizers: {{grid: e2m1, granularity: token}}}}\n")
    assert suite.tensors[0].quantizers == ("e2m1/token",)


def test_the_scope_weights_quantizes_weights(read: Read) -> None:
    suite = read(f"{MODEL}treatments:\n  - {{scope: [weights, linear], quantizers: int4/token}}\n")
    assert [dict(t.assign) for t in suite.treatments] == [
        {},
        {"weight:weights": "int4/token"},
        {"activation:linear": "int4/token"},
    ]


PROFILED = (
    "params: {steps: 30}\nseeds: [0, 1]\ntraining: {steps: '${steps}', lr: 0.5}\nevaluate: {windows: 9, split: tune}\n"
    f"{MODEL}profiles:\n  smoke: {{params: {{steps: 3}}, evaluate: {{windows: 2}}, seeds: [7]}}\n"
)


def test_a_profile_is_merged_into_mappings_and_replaces_lists(read: Read) -> None:
    suite = read(PROFILED, profile="smoke")
    assert (suite.arms[0].training.steps, suite.arms[0].training.lr, suite.arms[0].seeds) == (3, 0.5, (7,))
    assert (suite.evaluate.windows, suite.evaluate.split, suite.profile) == (2, "tune", "smoke")


@pytest.mark.parametrize(
    ("option", "found"),
    [
        (("seeds", "[3]"), lambda suite: suite.arms[0].seeds == (3,)),
        (("steps", "4"), lambda suite: suite.arms[0].training.steps == 4),
        (("params.steps", "4"), lambda suite: suite.arms[0].training.steps == 4),
        (("training.lr", "1e-2"), lambda suite: suite.arms[0].training.lr == 0.01),
        (("spec.width", "32"), lambda suite: suite.arms[0].model.width == 32),
        (("budget.cells", "77"), lambda suite: suite.budget.cells == 77),
    ],
)
def test_an_override_goes_last(read: Read, option: tuple[str, str], found: Callable[[Suite], bool]) -> None:
    assert found(read(PROFILED, overrides=[option], profile="smoke"))


@pytest.mark.parametrize(
    ("option", "message"),
    [
        (("sedes", "[3]"), "--set sedes: no key or parameter 'sedes'; did you mean 'seeds'?"),
        (("stepps", "3"), "--set stepps: no key or parameter 'stepps'; did you mean 'steps'?"),
        (("params.step", "3"), "--set params.step: no key or parameter 'params.step'; did you mean 'params.steps'?"),
        (("seeds", "[-1]"), "--set seeds: seeds.0: found -1; wanted: at least 0"),
        (("seeds", "[1"), "--set seeds: not YAML"),
        (("seeds", ""), "--set seeds: empty"),
        (("seeds.0", "1"), "--set seeds.0: there is no mapping that holds '0'"),
        (("training.lrr", "1"), "--set training.lrr: training.lrr: unknown key; did you mean 'lr'?"),
        (("profiles.x", "{}"), "--set profiles.x: no key or parameter"),
        (("steps", "x"), "found 'x'; wanted: a whole number"),
        ((".".join("a" * 5000), "1"), "no key or parameter"),
        (("training." + ".".join("a" * 5000), "1"), "nested more than 20 levels deep"),
    ],
)
def test_a_bad_override_names_the_option(read: Read, option: tuple[str, str], message: str) -> None:
    with pytest.raises(BadSuite) as caught:
        read(PROFILED, overrides=[option])
    assert message in str(caught.value)


def test_an_unknown_profile_is_named(read: Read) -> None:
    with pytest.raises(BadSuite, match="--profile smok: no profile 'smok'; did you mean 'smoke'\\? known: smoke"):
        read(PROFILED, profile="smok")


def test_data_is_found_from_the_folder_of_the_suite_and_stored_without_it(read: Read, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("x")
    suite = read(f"{MODEL}data: text:notes.txt\n")
    assert suite.data == f"text:{tmp_path / 'notes.txt'}"
    assert suite.data_name == "text:notes.txt"


def test_data_in_an_override_is_found_from_here(read: Read, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here = tmp_path / "here"
    here.mkdir()
    (here / "mine.txt").write_text("x")
    monkeypatch.chdir(here)
    assert read(MODEL, overrides=[("data", "text:mine.txt")]).data == f"text:{here / 'mine.txt'}"


@pytest.mark.parametrize("name", ["quickstart", "growth", "wiring"])
def test_shipped_suites_are_right_with_and_without_smoke(name: str) -> None:
    assert load(name).path == f"{name}.yaml"
    assert load(name, profile="smoke").arms[0].seeds == (0,)


def test_shipped_suites_are_listed_with_their_question() -> None:
    listed = {suite.name: suite.question for suite in shipped()}
    assert listed["quickstart"].startswith("Does what crosses a block boundary survive low bits")
    assert all(question.endswith("?") for question in listed.values())


def test_shipped_suites_lie_in_an_installed_package_or_beside_the_checkout(tmp_path: Path) -> None:
    package = tmp_path / "qbench"
    assert folder(package) == tmp_path / "suites"
    (package / "shipped" / "suites").mkdir(parents=True)
    assert folder(package) == package / "shipped" / "suites"


def test_reading_a_suite_is_quick_and_loads_no_torch() -> None:
    code = (
        "import sys, time; from qbench.suite.schema import load; import qbench.suite.cells; load('quickstart')\n"
        "assert 'torch' not in sys.modules and 'numpy' not in sys.modules; print(time.process_time())"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert float(result.stdout) < 0.5  # 0.2 s on an idle core
