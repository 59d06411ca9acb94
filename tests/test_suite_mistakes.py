"""Every kind of mistake in a suite file is found, placed and explained."""

import re
from collections.abc import Callable
from pathlib import Path
from time import process_time

import pytest

from qbench.suite.schema import BadSuite, Suite, load

GOOD = """\
# Does it work?
suite: small
version: 1
question: Does it work?
params: {steps: 20}
seeds: [0, 1]
data: stdlib
spec: {layers: 2, width: 16, heads: 2, context: 16}
training: {optimizer: adamw, steps: "${steps}", lr: 1e-3}
models:
  - {name: one, arch: residual}
  - name: "{arch} {lr}"
    product: {arch: [residual-free], training.lr: [0.001, 0.002]}
tensors:
  - {kind: activation, windows: 4, quantizers: [int4/token, mxfp4]}
  - {kind: weight, quantizers: {grid: int, bits: [4], granularity: [channel]}}
evaluate: {windows: 8}
treatments:
  - {scope: [boundaries, linear], quantizers: int4/token}
  - {name: both, assign: {"weight:weights": int4/channel, "activation:linear": int8/token}}
budget: {cells: 500, cpu_seconds: 9.5}
effects:
  - claim: It is heavier-tailed
    between: [one, residual-free 0.001]
    measure: {kind: activation, sites: [boundaries], quantizer: int4/token, metric: error_db}
    compare: difference
    thesis: above 0
  - claim: It costs more
    between: [one, residual-free 0.002]
    measure: {treatment: int4/token @ linear, metric: loss_increase}
    compare: ratio
    thesis: above 1.5
profiles:
  smoke: {seeds: [0], params: {steps: 5}, evaluate: {windows: 2}}
"""

Read = Callable[[str], Suite]


@pytest.fixture
def read(tmp_path: Path) -> Read:
    def read(text: str) -> Suite:
        path = tmp_path / "small.yaml"
        path.write_text(text, encoding="utf-8")
        return load(path)

    return read


def mistakes(read: Read, text: str) -> list[str]:
    with pytest.raises(BadSuite) as caught:
        read(text)
    return [re.sub(r"^.*/small", "small", line) for line in str(caught.value).splitlines()]


# (text of GOOD, what stands there instead, place of the mistake, what the message says)
CASES = [
    ("suite: small", "suite: Small", "2:8: suite", "found 'Small'; wanted: lower-case letters, digits and hyphens"),
    ("suite: small", "siute: small", "2:1: siute", "unknown key; did you mean 'suite'?"),
    ("suite: small\n", "", "2:1", "suite is missing"),
    ("suite: small", "suite: 12", "2:8: suite", "found 12; wanted: text; put it in quotes"),
    ("version: 1", "version: 0", "3:10: version", "found 0; wanted: at least 1"),
    ("version: 1", "version: one", "3:10: version", "found 'one'; wanted: a whole number"),
    ("version: 1", "version: true", "3:10: version", "found true; wanted: a whole number"),
    ("{steps: 20}", "{steps: [20]}", "5:17: params.steps", "a parameter is text, a number, true, false or null"),
    ("[0, 1]", "[0, 0]", "6:8: seeds", "0 is given twice"),
    ("[0, 1]", "[0, -1]", "6:12: seeds.1", "found -1; wanted: at least 0"),
    ("[0, 1]", "[]", "6:8: seeds", "wanted: at least 1"),
    ("[0, 1]", "0", "6:8: seeds", "found 0; wanted: a list"),
    ("[0, 1]", "[0, 9999999999]", "6:12: seeds.1", "wanted: at most 2147483647"),
    ("data: stdlib", "data: stdlb", "7:7: data", "no data 'stdlb'; did you mean 'stdlib'?"),
    ("data: stdlib", "data: .", "7:7: data", "write text:. for that path"),
    ("data: stdlib", "data: text:none.txt", "7:7: data", "no file or folder 'none.txt'"),
    ("layers: 2", "layers: two", "8:16: spec.layers", "found 'two'; wanted: a whole number"),
    ("layers: 2", "layer: 2", "8:8: spec.layer", "unknown key; did you mean 'layers'?"),
    ("layers: 2", "layers: 1000000", "8:16: spec.layers", "found 1000000; wanted: at most 256"),
    ("layers: 2", "layers: 0", "11:5: models.0", "arm 'one': layers must be at least 1, found 0"),
    ("width: 16", "width: 15", "11:5: models.0", "width 15 is not a multiple of 2 heads"),
    ("width: 16", "width: 16, wiring: residual-fre", "8:38: spec.wiring", "did you mean 'residual-free'?"),
    ("adamw", "adamv", "9:23: training.optimizer", "did you mean 'adamw'? allowed: adamw, muon, muon-rms, soap"),
    ("lr: 1e-3", "lr: fast", "9:53: training.lr", "found 'fast'; wanted: a number"),
    ("lr: 1e-3", "lr: -1", "11:5: models.0", "arm 'one': learning rates must be positive"),
    ("${steps}", "${step}", "9:37: training.steps", "no parameter 'step'; did you mean 'steps'?"),
    ("${steps}", "1${steps}", "9:37: training.steps", "stands for a whole value"),
    ("arch: residual}", "arch: residal}", "11:23: models.0.arch", "no model 'residal'; did you mean 'residual'?"),
    (", arch: residual}", "}", "11:5: models.0", "arch is missing; known: attention-residual, "),
    ("name: one, ", "", "11:5: models.0", "name is missing"),
    (
        "{name: one",
        "{name: calibration",
        "11:12: models.0.name",
        "'calibration' is the name of the arm of known tensors",
    ),
    ("{name: one", '{name: "a  b"', "11:12: models.0.name", "no needless spaces"),
    ("{arch}", "{arhc}", "12:11: models.1.name", "nothing called 'arhc'; did you mean 'arch'? known: arch, lr"),
    ("{arch} {lr}", "{arch}", "12:11: models.1.name", "a second arm 'residual-free'; each needs a name of its own"),
    ("training.lr: [", "lr: [", "13:38: models.1.product.lr", "unknown key; did you mean 'training.lr'?"),
    ("[0.001, 0.002]", "[0.001, slow]", "13:59: models.1.product.training.lr.1", "wanted: a number"),
    ("[residual-free]", "[residual-freee]", "13:22: models.1.product.arch.0", "did you mean 'residual-free'?"),
    ("product", "arch: residual\n    product", "14:15: models.1.product.arch", "set twice"),
    ("product", "zip", "13:10: models.1.zip", "arch has 1, training.lr has 2"),
    ("product", "ablate: {arch: x}\n    product", "13:5: models.1.ablate", "does not go with product or zip"),
    ("0.002]}", "0.002]}\n    exclude: [{arch: residual}]", "14:15: models.1.exclude.0", "fits no arm of this grid"),
    ("0.002]}", "0.002]}\n    exclude: [{ach: x}]", "14:21: models.1.exclude.0.ach", "did you mean 'arch'?"),
    ("kind: activation, w", "kind: activations, w", "15:12: tensors.0.kind", "did you mean 'activation'?"),
    ("windows: 4", "windows: 4, sites: middel", "15:43: tensors.0.sites", "did you mean 'middle'?"),
    ("int4/token, mxfp4", "int4/tokn, mxfp4", "15:49: tensors.0.quantizers.0", "did you mean 'token'?"),
    ("int4/token, mxfp4", "mxfp4, mxfp4", "15:56: tensors.0.quantizers.1", "mxfp4 is given twice"),
    ("int4/token, mxfp4", "3, mxfp4", "15:49: tensors.0.quantizers.0", "found 3; a quantizer is a name"),
    ("bits: [4]", "bits: [40]", "16:32: tensors.1.quantizers", "bits of the grid '40'"),
    ("bits: [4], ", "", "16:32: tensors.1.quantizers", "grid 'int' needs bits"),
    ("grid: int", "gird: int", "16:33: tensors.1.quantizers.gird", "unknown key; did you mean 'grid'?"),
    ("kind: weight", "kind: weight, windows: 3", "16:20: tensors.1.windows", "no text is involved"),
    ("{windows: 8}", "{windows: 8, split: train}", "17:31: evaluate.split", "found 'train'; allowed: test, tune"),
    ("[boundaries, linear]", "[boundary, linear]", "19:14: treatments.0.scope.0", "did you mean 'boundaries'?"),
    (
        "quantizers: int4/token}",
        "kind: weight, quantizers: int4/token}",
        "19:14: treatments.0.scope.0",
        "no weight site",
    ),
    ("scope: [boundaries, linear], ", "", "19:5: treatments.0", "a treatment has scope and quantizers"),
    ("weight:weights", "wieght:weights", "20:27: treatments.1.assign.wieght:weights", "did you mean 'weight'?"),
    ("activation:linear", "weight:**.q", "20:59: treatments.1.assign", "already has a quantizer in this treatment"),
    ("int8/token}}", "int9/token}}", "20:80: treatments.1.assign.activation:linear", "bits of the grid '9'"),
    ("name: both", 'name: "int4/token @ linear"', "20:5: treatments.1", "a second treatment 'int4/token @ linear'"),
    ("cells: 500", "cells: 50", "21:17: budget.cells", "the grids make"),
    ("[one, residual-free 0.001]", "[oone, residual-free 0.001]", "24:15: effects.0.between.0", "did you mean 'one'?"),
    ("[one, residual-free 0.001]", "[one]", "24:14: effects.0.between", "wanted: at least 2"),
    ("[one, residual-free 0.001]", "[one, one]", "24:14: effects.0.between", "one is given twice"),
    ("metric: error_db", "metric: eror_db", "25:85: effects.0.measure.metric", "did you mean 'error_db'?"),
    (
        "kind: activation, sites: [b",
        "kind: gradient, sites: [b",
        "25:21: effects.0.measure.kind",
        "no gradients in tensors",
    ),
    (
        "quantizer: int4/token, m",
        "quantizer: int4/tensor, m",
        "25:65: effects.0.measure.quantizer",
        "known: int4/token",
    ),
    ("windows: 4", "windows: 4, sites: interior", "25:41: effects.0.measure.sites.0", "blocks.1.out is not among"),
    ("quantizer: int4/token, m", "treatment: both, m", "25:14: effects.0.measure", "or treatment"),
    ("compare: difference", "compare: diffrence", "26:14: effects.0.compare", "did you mean 'difference'?"),
    ("thesis: above 0", "thesis: over 0", "27:13: effects.0.thesis", "'above X' or 'below X'"),
    (
        "@ linear, metric",
        "@ linera, metric",
        "30:26: effects.1.measure.treatment",
        "did you mean 'int4/token @ linear'?",
    ),
    ("{steps: 5}", "{step: 5}", "34:32: profiles.smoke.params.step", "no parameter 'step'; did you mean 'steps'?"),
    ("seeds: [0], p", "sedes: [0], p", "34:11: sedes", "unknown key; did you mean 'seeds'?"),
    ("{steps: 5}", "{steps: no}", "9:37: training.steps", "found 'no'; wanted: a whole number (with profile smoke)"),
    ("[0], params", "[0], profiles: {}, params", "34:23: profiles.smoke", "a profile holds no profiles"),
    ("suite: small", "[", "not YAML", ""),
]


@pytest.mark.parametrize(("old", "new", "place", "text"), CASES, ids=[f"{new or old}"[:40] for old, new, *_ in CASES])
def test_one_mistake_is_named_with_its_line(read: Read, old: str, new: str, place: str, text: str) -> None:
    assert old in GOOD
    found = mistakes(read, GOOD.replace(old, new, 1))
    assert any(place in line and text in line for line in found), found
    assert all(re.match(r"small\.yaml:\d+:\d+: ", line) for line in found)


def test_the_file_without_mistakes_is_read(read: Read) -> None:
    suite = read(GOOD)
    assert [arm.name for arm in suite.arms] == ["one", "residual-free 0.001", "residual-free 0.002"]
    assert suite.arms[0].training.lr == 0.001
    assert suite.arms[2].training.lr == 0.002
    assert suite.arms[1].training.steps == 20
    assert [t.name for t in suite.treatments] == [
        "unquantized",
        "int4/token @ boundaries",
        "int4/token @ linear",
        "both",
    ]
    assert (suite.effects[1].direction, suite.effects[1].bound) == ("above", 1.5)
    assert suite.text == GOOD


def test_all_mistakes_come_at_once_in_the_order_of_the_file(read: Read) -> None:
    text = GOOD.replace("version: 1", "version: 0").replace("int4/token, mxfp4", "int4/tokn").replace("above 0", "up")
    lines = mistakes(read, text.replace("error_db", "eror_db").replace("residual}", "residal}"))
    assert [int(line.split(":")[1]) for line in lines] == [3, 11, 15, 27]


def test_a_mistake_in_one_part_is_not_reported_again_in_another(read: Read) -> None:
    assert len(mistakes(read, GOOD.replace("arch: residual}", "arch: residal}"))) == 1
    assert len(mistakes(read, GOOD.replace("scope: [", "scop: ["))) == 1


def test_what_cannot_be_read_is_reported_once_and_not_used(read: Read) -> None:
    for old, new in [
        ("0.002]", ".inf]"),
        ("[residual-free]", "[*x]"),
        ("[0, 1]", "[0, .nan]"),
        ("bits: [4]", "bits: .inf"),
    ]:
        (line,) = mistakes(read, GOOD.replace(old, new))
        assert "finite" in line or "alias" in line


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"suite: \xff", "1:8: byte 0xff is not UTF-8"),
        (b"a" * 1_000_001, "more than 1000000 bytes"),
        (b"- 1\n- 2", "1:1: a suite is a mapping of keys to values"),
        (b"", "1:1: empty"),
        (b"\xef\xbb\xbfsuite: 1", "1:8: suite: found 1"),
    ],
)
def test_files_that_are_no_suites(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "x.yaml"
    path.write_bytes(content)
    with pytest.raises(BadSuite, match=re.escape(message)):
        load(path)


def test_files_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(BadSuite, match="no such file, and no shipped suite of that name; did you mean 'quickstart'"):
        load("quikstart")
    with pytest.raises(BadSuite, match="a folder, not a file"):
        load(tmp_path)


def test_a_grid_beyond_the_budget_is_refused_before_it_is_made(read: Read) -> None:
    hundred = ", ".join(f"0.{i:03}" for i in range(1, 101))
    product = f"{{training.lr: [{hundred}], training.aux_lr: [{hundred}], training.weight_decay: [{hundred}]}}"
    text = re.sub(r"product: .*", f"arch: residual\n    product: {product}", GOOD).replace("[0, 1]", "[0]")
    start = process_time()
    found = mistakes(read, text)
    assert process_time() - start < 1
    assert found[0].startswith("small.yaml:22:17: budget.cells: the grids make 10,000,010 cells of 1,000,001 trained")


def test_a_grid_of_quantizers_beyond_the_budget_is_refused_too(read: Read) -> None:
    many = ", ".join(f'"block:{i}"' for i in range(1, 2000))
    text = GOOD.replace("granularity: [channel]", f"granularity: [{many}], scale: [fp32, fp16, bf16]")
    assert any("budget.cells" in line for line in mistakes(read, text))


def test_thousands_of_mistakes_are_cut_short(read: Read) -> None:
    keys = "\n".join(f"key{i}: 1" for i in range(5000))
    start = process_time()
    found = mistakes(read, GOOD + keys)
    assert process_time() - start < 2
    assert found[-1].startswith("and ")
    assert len(found) == 51
