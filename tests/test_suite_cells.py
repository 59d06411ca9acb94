"""Cells: what they are, in which order they run, and when their names change."""

import json
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest

from qbench.capture.sites import CALIBRATION_SITES
from qbench.models.spec import ModelSpec
from qbench.suite import revisions
from qbench.suite.cells import Cell, Environment, Measurement
from qbench.suite.expand import expand, groups
from qbench.suite.schema import BadSuite, Suite, load
from qbench.suite.value import Treatment
from qbench.train.spec import TrainingSpec

HERE = Environment(data_digest="abc", torch_version="2.13.0", device="cpu")
TEXT = """\
suite: small
version: 1
question: q
seeds: [0, 1]
spec: {layers: 2, width: 16, heads: 2, context: 16}
training: {steps: 20, lr: 0.5, shape_steps: [0, 10]}
models:
  - {name: one, arch: residual}
  - {name: two, arch: residual-free, seeds: [0]}
tensors:
  - {kind: activation, windows: 4, quantizers: [int4/token, mxfp4]}
  - {kind: weight, quantizers: [int4/channel]}
evaluate: {windows: 8}
treatments:
  - {scope: boundaries, quantizers: int4/token}
  - {name: W4A8, assign: {"weight:weights": int4/channel, "activation:linear": int8/token}}
"""


@pytest.fixture
def small(tmp_path: Path) -> Suite:
    return written(tmp_path, TEXT)


def written(folder: Path, text: str) -> Suite:
    path = folder / "small.yaml"
    path.write_text(text)
    return load(path)


def ids(cells: list[Cell]) -> set[str]:
    return {cell.id for cell in cells}


def test_cells_run_model_by_model_from_training_to_loss(small: Suite) -> None:
    order = [(cell.arm, cell.seed, cell.measurement.what) for cell in expand(small, HERE)]
    calibration = [("calibration", 0, "shape"), ("calibration", 0, "error"), ("calibration", 0, "error")]
    kinds = ["training", "shape", "shape", "error", "error", "error", "loss", "loss", "loss"]
    arms = [("one", 0), ("one", 1), ("two", 0)]
    assert order == calibration + [(arm, seed, what) for arm, seed in arms for what in kinds]
    assert [len(group) for group in groups(expand(small, HERE))] == [3, 9, 9, 9]


def test_the_first_loss_is_that_of_the_unquantized_model(small: Suite) -> None:
    first = next(cell for cell in expand(small, HERE) if cell.measurement.what == "loss")
    assert first.spec()["measurement"] == {
        "what": "loss",
        "windows": 8,
        "split": "test",
        "treatment": {"name": "unquantized", "scope": "", "assign": {}},
    }


def test_the_calibration_arm_needs_neither_model_nor_data(small: Suite) -> None:
    cell = expand(small, HERE)[1]
    spec = cell.spec()
    assert spec["model"] == {"arch": "calibration", "rows": 2048, "width": 96}
    assert (spec["training"], spec["data"]) == (None, {"name": "synthetic", "digest": ""})
    assert spec["measurement"] == {
        "what": "error",
        "kind": "activation",
        "sites": list(CALIBRATION_SITES),
        "quantizer": "int4/token",
    }
    with pytest.raises(ValueError, match="no model"):
        cell.model_spec()


def test_weights_are_measured_without_windows(small: Suite) -> None:
    weights = [cell.measurement.spec() for cell in expand(small, HERE) if cell.measurement.kind == "weight"]
    assert all("windows" not in spec and "split" not in spec for spec in weights)


def test_specs_come_back_as_the_values_they_were(small: Suite) -> None:
    cell = expand(small, HERE)[3]
    assert cell.model_spec() == ModelSpec(layers=2, width=16, heads=2, context=16)
    assert cell.training_spec() == TrainingSpec(steps=20, lr=0.5, shape_steps=(0, 10))


def test_every_id_is_different_and_survives_json(small: Suite) -> None:
    cells = expand(small, HERE)
    assert len(ids(cells)) == len(cells)
    again = [Cell.from_json(json.loads(json.dumps(cell.to_json()))) for cell in cells]
    assert again == cells
    assert [cell.id for cell in again] == [cell.id for cell in cells]


OTHER = {
    "suite": "other",
    "version": 2,
    "arm": "other",
    "model": {"arch": "other"},
    "training": {"steps": 21},
    "seed": 5,
    "data": "text:/somewhere/notes.txt",
    "data_digest": "def",
    "torch_version": "2.14.0",
    "device": "cuda:H100",
    "plugins_digest": "p",
    "measurement": Measurement(what="training"),
    "revisions": {"measure": 2},
}
OTHER_MEASUREMENT = {
    "what": "shape",
    "kind": "gradient",
    "sites": ("interior",),
    "windows": 5,
    "split": "tune",
    "quantizer": "int4/tensor",
    "treatment": Treatment(name="x"),
    "passage": {"context": 32},
    "options": {"calibration": {"windows": 4}},
}


def test_changing_any_field_of_a_cell_changes_its_id(small: Suite) -> None:
    cell = next(cell for cell in expand(small, HERE) if cell.measurement.what == "error" and cell.arm == "one")
    assert {field.name for field in fields(Cell)} == {*OTHER, "sources"}  # where things are is not what they are
    assert len({cell.id, *(replace(cell, **{name: value}).id for name, value in OTHER.items())}) == len(OTHER) + 1
    assert {field.name for field in fields(Measurement)} == OTHER_MEASUREMENT.keys()
    assert replace(cell, sources={"model": "/elsewhere"}).id == cell.id
    changed = [replace(cell.measurement, **{name: value}) for name, value in OTHER_MEASUREMENT.items()]
    assert len({cell.id, *(replace(cell, measurement=m).id for m in changed)}) == len(changed) + 1


def test_what_the_file_looks_like_does_not_change_an_id(tmp_path: Path) -> None:
    head, models = TEXT.split("models:\n")
    body, rest = models.split("tensors:\n")
    shuffled = f"# comment\nmodels:\n{body}tensors:\n{rest}" + "\n".join(reversed(head.splitlines())) + "\n"
    shuffled = shuffled.replace("{name: one, arch: residual}", '{"arch": residual,   name: "one"}').replace(
        "0.5", "5e-1"
    )
    assert [cell.id for cell in expand(written(tmp_path, shuffled), HERE)] == [
        cell.id for cell in expand(written(tmp_path, TEXT), HERE)
    ]


def test_a_whole_number_is_the_same_rate_as_its_float(tmp_path: Path) -> None:
    one = expand(written(tmp_path, TEXT.replace("lr: 0.5", "lr: 1")), HERE)
    assert ids(one) == ids(expand(written(tmp_path, TEXT.replace("lr: 0.5", "lr: 1.0")), HERE))


@pytest.mark.parametrize(
    ("old", "new", "more"),
    [
        ("[int4/token, mxfp4]", "[int4/token, mxfp4, int3/token]", 1 + 3),  # one of calibration, one for each model
        ("scope: boundaries", "scope: [boundaries, linear]", 3),
        ("seeds: [0, 1]", "seeds: [0, 1, 2]", 9),
        ("evaluate", "# a comment\nevaluate", 0),
    ],
)
def test_what_is_added_to_a_suite_leaves_all_other_cells_as_they_were(
    tmp_path: Path, old: str, new: str, more: int
) -> None:
    before, after = (ids(expand(written(tmp_path, text), HERE)) for text in (TEXT, TEXT.replace(old, new)))
    assert before <= after
    assert len(after - before) == more


def test_watching_other_steps_changes_the_training_cells_only_and_no_weights(tmp_path: Path) -> None:
    before, after = (
        expand(written(tmp_path, text), HERE) for text in (TEXT, TEXT.replace("[0, 10]", "[0, 5], checkpoints: [20]"))
    )
    changed = [a.measurement.what for a, b in zip(before, after, strict=True) if a.id != b.id]
    assert changed == ["training"] * 3
    assert [cell.training_key for cell in before] == [cell.training_key for cell in after]
    assert before[3].log_key != after[3].log_key


def test_a_record_is_found_however_its_steps_are_written(small: Suite) -> None:
    cell = next(cell for cell in expand(small, HERE) if cell.measurement.what == "training")
    assert cell.training is not None

    def key(*shape: int, checkpoints: tuple[int, ...] = ()) -> str:
        steps = {"shape_steps": list(shape), "checkpoints": list(checkpoints), "steps": 20}
        return replace(cell, training={**(cell.training or {}), **steps}).log_key

    assert len({key(0, 5), key(5, 0), key(0, 5, 5), key(0, 5, 20)}) == 1  # the last step is watched in any case
    assert len({key(), key(0), key(0, 5), key(20), key(0, 20, checkpoints=(20,))}) == 5
    assert key(checkpoints=(3, 20)) == key(checkpoints=(20, 3, 3)) != key(checkpoints=(3,))


def test_golden_record_keys(small: Suite) -> None:
    """Records of earlier releases are found under these."""
    cell = next(cell for cell in expand(small, HERE) if cell.measurement.what == "training")
    for steps, wanted in [([0, 50, 150, 300], "6c93438a6c5540e4"), ([], "0aa770be282039fc")]:
        training = {**(cell.training or {}), "steps": 500, "shape_steps": steps, "checkpoints": []}
        assert replace(cell, training=training).log_key == wanted


@pytest.mark.parametrize(
    ("change", "same"),
    [
        ({"suite": "other", "arm": "other", "version": 9}, True),
        ({"measurement": Measurement(what="training")}, True),
        ({"plugins_digest": "p"}, True),
        ({"seed": 4}, False),
        ({"data_digest": "x"}, False),
        ({"torch_version": "x"}, False),
        ({"device": "x"}, False),
    ],
)
def test_weights_are_kept_under_what_they_depend_on(small: Suite, change: dict[str, object], same: bool) -> None:
    cell = expand(small, HERE)[4]
    assert (replace(cell, **change).training_key == cell.training_key) is same  # pyright: ignore[reportArgumentType]


def test_model_and_training_settings_enter_the_key_and_the_name_of_the_architecture_does_not(small: Suite) -> None:
    cell = expand(small, HERE)[4]
    assert cell.training is not None
    assert replace(cell, model={**cell.model, "arch": "x"}).training_key == cell.training_key
    assert replace(cell, model={**cell.model, "layers": 3}).training_key != cell.training_key
    assert replace(cell, training={**cell.training, "lr": 3}).training_key != cell.training_key


def test_the_same_question_to_another_model_has_the_same_id(small: Suite) -> None:
    first, second, other = groups(expand(small, HERE))[1:]
    questions = [cell.question_id for cell in first]
    assert len(set(questions)) == len(questions)
    assert [cell.question_id for cell in second] == questions == [cell.question_id for cell in other]


def test_a_question_keeps_data_measurement_and_revisions_and_nothing_else(small: Suite) -> None:
    cell = next(cell for cell in expand(small, HERE) if cell.measurement.what == "error" and cell.arm == "one")
    changing = {name for name, value in OTHER.items() if replace(cell, **{name: value}).question_id != cell.question_id}
    assert changing == {"data", "data_digest", "measurement", "revisions"}


def test_what_a_treatment_is_called_is_not_part_of_the_question(tmp_path: Path) -> None:
    before, after = (expand(written(tmp_path, text), HERE) for text in (TEXT, TEXT.replace("W4A8", "cheap")))
    assert [cell.question_id for cell in before] == [cell.question_id for cell in after]
    assert before[-1].id != after[-1].id


def test_paths_are_not_stored(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("x")
    suite = written(tmp_path, TEXT + "data: text:notes.txt\n")
    assert all(str(tmp_path) not in json.dumps(cell.spec()) for cell in expand(suite, HERE))
    assert expand(suite, HERE)[-1].data == f"text:{tmp_path / 'notes.txt'}"


def test_the_revisions_of_all_quantizers_are_part_of_a_cell(small: Suite) -> None:
    used = [cell.revisions["quantizers"] for cell in groups(expand(small, HERE))[1]]
    assert used == [[], [], [], ["int@1"], ["e2m1@1"], ["int@1"], [], ["int@1"], ["int@1"]]


def test_golden_ids(small: Suite) -> None:
    """If these change, every stored result loses its name: change them on purpose, and say so in the changelog."""
    assert (revisions.TRAIN, revisions.MEASURE) == (1, 2)
    cells = expand(small, HERE)
    assert [cells[i].id for i in (0, 3, -1)] == GOLDEN_IDS
    assert cells[-1].question_id == GOLDEN_QUESTION
    assert cells[3].training_key[:16] == GOLDEN_WEIGHTS


@pytest.mark.parametrize("name", ["quickstart", "growth"])
def test_the_budget_counts_the_cells_that_there_will_be(name: str) -> None:
    exact = sum(cell.arm != "calibration" for cell in expand(load(name), HERE))
    assert load(name, overrides=[("budget.cells", str(exact))]).budget.cells == exact
    with pytest.raises(BadSuite, match=f"the grids make {exact} cells"):
        load(name, overrides=[("budget.cells", str(exact - 1))])


GOLDEN_IDS = ["8393e1208ff17bcb", "ca4d72c42d9a9bab", "28f7ba0bb7a724e4"]
GOLDEN_QUESTION = "2ba210508c36ba22"
GOLDEN_WEIGHTS = "07a496a3a19504e2"


def test_what_trained_otherwise_before_has_another_key(small: Suite) -> None:
    """Factors are kept symmetric and rounding draws for each place since INSIDE; other trainings keep their keys."""

    def key(**quantized: str) -> dict[str, Any]:
        inside = {name.replace("_", ":"): quantizer for name, quantizer in quantized.items()} or None
        training = TrainingSpec(optimizer="shampoo", quantized=inside)
        return revisions.of_training(ModelSpec(), training, HERE).get("trained_with", {})

    assert key() == {}
    assert "inside" not in key(state_momentum="int8/tensor", activation_interior="int4/tensor")
    for settings in (
        {"state_factors": "int8/tensor"},
        {"state_all": "int8/tensor"},
        {"weight_all": "int4/channel/sr:1"},
    ):
        assert key(**settings)["inside"] == revisions.INSIDE
    for settings in ({"norm": "layernorm"}, {"qk_norm": "layernorm"}):
        found = revisions.of_training(ModelSpec(**settings), TrainingSpec(), HERE)
        assert found == {"trained_with": {"layernorm": revisions.LAYER_NORM}}
