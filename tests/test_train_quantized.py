"""`training.quantized` in a suite: what is a mistake, what makes an arm, what a run keeps and a page says of it."""

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from qbench.cli.run import print_speed
from qbench.data import catalog as data
from qbench.report.effects import answer
from qbench.report.factors import quantized
from qbench.report.summary import differences
from qbench.report.tables import arms as arms_table
from qbench.report.view import View, view
from qbench.report.words import THIN
from qbench.results.record import Attempt, Closing, Record
from qbench.results.run import Run
from qbench.suite.answer import training_answer
from qbench.suite.cells import Cell, Environment
from qbench.suite.expand import expand
from qbench.suite.prepare import prepare
from qbench.suite.schema import BadSuite, Suite, load
from qbench.suite.shipped import find

HEAD = """\
suite: inside
version: 1
question: q
data: text:notes.txt
spec: {layers: 2, width: 16, heads: 2, context: 16}
training: {optimizer: soap, lr: 0.003, steps: 3, batch: 4}
models:
"""
PLAIN = "  - {name: plain, arch: residual}\n"
INSIDE = '{"activation:interior": int4/tensor, "gradient:interior": int3/token, "state:factors": int8/tensor}'
ARM = f"  - {{name: arm, arch: residual, training: {{quantized: {INSIDE}}}}}\n"
HERE = Environment(data_digest="d", torch_version="t", device="cpu", libraries={"pytorch_optimizer": "4.1.0"})
Read = Callable[..., Suite]


@pytest.fixture
def read(tmp_path: Path) -> Read:
    (tmp_path / "notes.txt").write_text("".join(f"line {i} of {i * i}\n" for i in range(2000)))

    def read(models: str, head: str = HEAD) -> Suite:
        path = tmp_path / "inside.yaml"
        path.write_text(head + models)
        return load(path)

    return read


def mistakes(read: Read, models: str, head: str = HEAD) -> list[str]:
    with pytest.raises(BadSuite) as caught:
        read(models, head)
    return [re.sub(r"^.*/inside\.yaml", "", line) for line in str(caught.value).splitlines()]


CASES = [
    ('{"gradient:boundarys": int4/tensor}', "no gradient site 'boundarys'; did you mean 'boundaries'?"),
    ('{"activation:blocks.7.out": int4/tensor}', "no activation site 'blocks.7.out'"),
    ('{"weight:blocks.*.mlp.hidden": int4/tensor}', "no weight site 'blocks.*.mlp.hidden'"),
    ('{"gradients:all": int4/tensor}', "no kind of tensor; did you mean 'gradient'? allowed: activation:SITES, gra"),
    ('{"weight:": int4/tensor}', "no kind of tensor and its places; allowed"),
    ('{"gradient:all": int4/tensr}', "granularity 'tensr'; did you mean 'tensor'?"),
    ('{"gradient:all": int8/tensor+static}', "no calibration data to fix scales with; leave out +static"),
    ('{"gradient:all": 4}', "found 4; wanted: text"),
    ("[int4/tensor]", "found a list of 1; wanted: a mapping"),
    ('{"state:roots": int4/tensor}', "no state of soap 'roots'; known: all, bases, factors, momentum, variance"),
    ('{"state:all": int8/tensor, "state:factors": int4/tensor}', "state:factors already has a quantizer"),
    (
        '{"gradient:boundaries": int8/tensor, "gradient:interior": int4/tensor}',
        "gradient:blocks.0.out already has a quantizer in this training, by 'gradient:boundaries'",
    ),
]


@pytest.mark.parametrize(("written", "said"), CASES)
def test_a_mistake_is_placed_and_explained(read: Read, written: str, said: str) -> None:
    """The line is that of the arm, the column that of the key or its value; the same once where a grid shares it."""
    (line,) = mistakes(read, PLAIN + f"  - {{name: arm, arch: residual, training: {{quantized: {written}}}}}\n")
    assert line.startswith(":9:")
    assert "models.1.training.quantized" in line
    assert said in line


def test_a_mistake_in_a_grid_stands_at_its_own_value(read: Read) -> None:
    axis = '[{"gradient:all": int4/tensor}, {"gradient:nowhere": int4/tensor}]'
    grid = f"product: {{arch: [residual, residual-free], training.quantized: {axis}}}"
    (line,) = mistakes(read, f'  - {{name: "{{arch}} {{quantized}}", {grid}}}\n')
    assert "models.0.product.training.quantized.1.gradient:nowhere: no gradient site" in line
    head = HEAD.replace("batch: 4}", 'batch: 4, quantized: {"gradient:nowhere": int4/tensor}}')
    (line,) = mistakes(read, PLAIN + "  - {name: other, arch: residual-free}\n", head)
    assert line.startswith(":6:")
    assert "training.quantized.gradient:nowhere: no gradient site" in line


def test_order_and_spelling_do_not_make_another_arm(read: Read) -> None:
    arm = "  - {{name: a, arch: residual, training: {{quantized: {{{}}}}}}}\n"
    one = read(arm.format('"weight:all": int4.narrow/tensor, "state:all": nf4/tensor'))
    two = read(arm.format('"state:all": nf4/tensor, "weight:all": int4/tensor'))
    assert [cell.id for cell in expand(one, HERE)] == [cell.id for cell in expand(two, HERE)]
    none = read("  - {name: a, arch: residual, training: {quantized: {}}}\n")
    assert none.arms[0].training == read("  - {name: a, arch: residual}\n").arms[0].training


def test_what_else_decides_about_weights_is_part_of_their_key(read: Read) -> None:
    """The library that SOAP comes from, the revisions of quantizers inside; neither makes it another question."""
    suite = read(PLAIN + ARM)
    keys, questions = {}, set[str]()
    for version in ("4.1.0", "4.2.0"):
        found = expand(suite, replace(HERE, libraries={"pytorch_optimizer": version}))
        for cell in (c for c in found if c.measurement.what == "training"):
            keys[cell.arm, version] = cell.training_key
            questions.add(cell.question_id)
    assert len(set(keys.values())) == 4
    assert len(questions) == 1
    adamw = expand(read("  - {name: a, arch: residual, training: {optimizer: adamw}}\n"), HERE)
    assert all("trained_with" not in cell.revisions for cell in adamw)
    arm = next(cell for cell in expand(suite, HERE) if cell.arm == "arm")
    assert arm.revisions["trained_with"] == {"pytorch_optimizer": "4.1.0", "quantizers": ["int@1"], "inside": 2}
    assert replace(arm, revisions={**arm.revisions, "trained_with": {}}).training_key != arm.training_key


def training_cell(suite: Suite, arm: str) -> Cell:
    environment = Environment(data_digest=data.digest(suite.data), torch_version=torch.__version__, device="cpu")
    found = (cell for cell in expand(suite, environment) if cell.arm == arm and cell.measurement.what == "training")
    return next(found)


def test_a_training_says_that_its_quantizers_ran_and_how_fast_it_was(
    read: Read, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("QBENCH_CACHE", str(tmp_path / "cache"))
    torch.set_num_threads(1)
    suite = read(PLAIN + ARM)
    answers = {}
    for arm in ("plain", "arm"):
        cell = training_cell(suite, arm)
        rebuilt = Cell.from_json(json.loads(json.dumps(cell.to_json())))
        assert rebuilt.id == cell.id
        answers[arm] = training_answer(cell, prepare(rebuilt, "cpu", lambda *_: None).log, 0.0)
    inside, plain = (answers[arm].records[-1].values for arm in ("arm", "plain"))
    # One activation, one gradient, two factors of twelve matrices.
    assert inside["sites_touched"] == 1 + 1 + 2 * 12
    assert 1 < inside["levels"] <= 256
    assert answers["arm"].warnings == answers["plain"].warnings
    assert "sites_touched" not in plain
    assert plain["tokens_per_second"] > 0
    assert plain["model_flops"] > plain["tokens_per_second"]
    assert "mfu" not in plain  # nobody states what this CPU could do
    assert inside["loss"] != plain["loss"]


def test_what_a_device_could_do_is_set_against_what_the_model_needed(
    read: Read, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("QBENCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("qbench.suite.prepare.stated_peak", lambda *_: (4e12, "stated for this"))
    values = prepare(training_cell(read(PLAIN), "plain"), "cpu", lambda *_: None).log[-1]["values"]
    assert values["mfu"] == pytest.approx(values["model_flops"] / 4e12)


def test_a_run_ends_with_how_fast_its_models_were_trained(capsys: pytest.CaptureFixture[str]) -> None:
    """The median and the range, of the trainings of this run; no peak is made up."""
    cells: dict[str, Attempt] = {}
    for i, rate in enumerate((12_000, 16_000, 15_000, 99_000)):
        values = {"loss": 2.0, "tokens_per_second": float(rate), "model_flops": rate * 2e6}
        closing = Closing(cell=str(i), question="q", status="measured", spec={})
        cells[str(i)] = Attempt(closing, (Record(cell=str(i), step=0, values={}), Record(cell=str(i), values=values)))
    whole = Run(folder=Path("."), cells=cells, manifest={})
    print_speed(whole, ["0", "1", "2", "gone"])
    printed = capsys.readouterr().out.replace(THIN, " ")
    assert printed == (
        "training speed of a model: 15 000 tokens/s (12 000 to 16 000), 30 GFLOP/s; no peak is stated for this device, "
        "so no model FLOPs utilization\n"
    )
    print_speed(whole, ["gone"])
    assert capsys.readouterr().out == ""


ASKED = {"what": "loss", "treatment": {"name": "unquantized", "assign": {}}}
ON = {"what": "loss", "treatment": {"name": "int4/tensor @ interior", "assign": {"activation:interior": "int4/tensor"}}}
QUANTIZED = {"activation:interior": "int4/tensor", "gradient:interior": "int4/tensor"}


def seen() -> View:
    """Two arms with their twins, two seeds: what is inside costs the residual one 0.4 and the other 0.1."""
    cells: dict[str, Attempt] = {}
    losses = {"residual": 1.6, "residual, inside": 2.0, "free": 1.8, "free, inside": 1.9}
    for name, loss in losses.items():
        training: dict[str, Any] = {"optimizer": "muon", "steps": 5, "lr": 0.02}
        training |= {"quantized": QUANTIZED} if "inside" in name else {}
        for seed in (0, 1):
            for i, (asked, more) in enumerate(((ASKED, 0.0), (ON, 0.05))):
                spec = {
                    "arm": name,
                    "seed": seed,
                    "model": {"arch": name.partition(",")[0], "wiring": "residual", "layers": 2},
                    "training": training,
                    "measurement": asked,
                }
                cell = f"{name}{seed}{i}"
                closing = Closing(cell=cell, question="q", status="measured", spec=spec)
                value = loss + more + 0.01 * seed * (1 + ("inside" in name and "free" in name))
                cells[cell] = Attempt(closing, (Record(cell=cell, values={"loss": value}),))
    return view(Run(folder=Path("."), cells=cells, manifest={}))


def effect(treatment: str) -> dict[str, Any]:
    return {
        "claim": "c",
        "between": ["residual, inside", "free, inside"],
        "measure": {"treatment": treatment, "metric": "loss_increase/inside"},
        "compare": "difference",
        "thesis": "above 0",
    }


def test_what_training_with_quantizers_costs_is_paired_with_the_twin_by_seed() -> None:
    """With the quantizer on, the twin's loss is still the one with nothing quantized."""
    off, on = answer(seen(), [effect("unquantized"), effect("int4/tensor @ interior")])
    assert off.levels == pytest.approx((0.4, 0.105))
    assert on.levels == pytest.approx((0.45, 0.155))
    assert (off.value, off.n, off.verdict) == (pytest.approx(0.295), 2, "supported")
    rows = seen().select("loss", arm="residual")
    assert all("loss_increase/inside" not in row.values for row in rows)


def test_a_page_says_what_was_inside() -> None:
    rows = {row[0]: row for row in arms_table(seen(), []).rows}
    assert rows["residual, inside"][2] == "muon; inside: interior activations and gradients int4/tensor"
    assert rows["residual"][2] == "muon"
    told = [{**effect("unquantized"), "between": ["residual, inside", "residual"]}]
    (difference,) = differences(seen(), answer(seen(), told))
    assert difference.factors == (("quantized", "interior activations and gradients int4/tensor", "none"),)


@pytest.mark.parametrize(
    ("inside", "words"),
    [
        ({}, ""),
        ({"state:all": "int8/tensor"}, "all optimizer state int8/tensor"),
        ({"weight:blocks.0.**": "int4/channel"}, "blocks.0.** weights int4/channel"),
        ({"activation:interior": "int4/tensor", "gradient:interior": "int8/token"}, None),
    ],
)
def test_what_was_inside_has_words(inside: dict[str, str], words: str | None) -> None:
    both = "interior activations int4/tensor, interior gradients int8/token"
    assert quantized({"quantized": inside}) == (both if words is None else words)


@pytest.fixture(scope="module", params=["", "smoke", "cpu"])
def shipped(request: pytest.FixtureRequest) -> Suite:
    return load(find("train-quantized"), profile=request.param or None)


def test_the_shipped_suite_crosses_wiring_optimizer_and_what_is_inside(shipped: Suite) -> None:
    inside = {
        (arm.arch, arm.training.optimizer, *(arm.training.quantized or {}).items())
        for arm in shipped.arms
        if arm.training
    }
    assert len(inside) == len(shipped.arms) == 40
    by_pair: dict[tuple[str, str], set[tuple[str, ...]]] = {}
    for arm in shipped.arms:
        assert arm.training is not None
        pair = arm.arch, arm.training.optimizer
        by_pair.setdefault(pair, set()).add(tuple(f"{k} {v}" for k, v in (arm.training.quantized or {}).items()))
    assert len(by_pair) == 6
    both = ("activation:interior {}", "gradient:interior {}")
    everywhere = {(), (both[0].format("int4/tensor"),), (both[1].format("int4/tensor"),)}
    everywhere |= {tuple(one.format(f"int4/{scale}") for one in both) for scale in ("tensor", "token")}
    assert all(everywhere <= found for found in by_pair.values())
    apart = {one for found in by_pair.values() for one in found - everywhere}
    assert {one[0].partition(" ")[0] for one in apart} == {"state:momentum", "state:factors", "weight:weights"}


def test_every_arm_of_the_shipped_suite_has_a_twin_and_every_claim_its_treatment(shipped: Suite) -> None:
    trained = [(arm.arch, arm.training) for arm in shipped.arms if arm.training]
    plain = [(arch, training) for arch, training in trained if not training.quantized]
    assert len(trained) == len(shipped.arms)
    assert all((arch, replace(training, quantized=None)) in plain for arch, training in trained)
    measured = {treatment.name for treatment in shipped.treatments}
    assert {effect.measure.treatment for effect in shipped.effects} <= measured
    # What is on in the treatment of a claim is what the first arm had inside on its way forward.
    assigned = {treatment.name: dict(treatment.assign) for treatment in shipped.treatments}
    for claim in shipped.effects:
        if claim.measure.metric == "loss_increase/inside":
            training = shipped.arm(claim.between[0]).training
            assert training is not None
            forward = {k: v for k, v in (training.quantized or {}).items() if k.startswith(("activation:", "weight:"))}
            assert assigned[claim.measure.treatment] == forward
