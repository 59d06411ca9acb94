"""Claims that nothing could answer are mistakes of the file, each with its line and what to ask instead."""

from collections.abc import Callable
from pathlib import Path

import pytest
from stub_models import stub

from qbench.metrics.catalog import METRICS
from qbench.results.run import read
from qbench.suite.effects import LOSS, RECORDED, recorded
from qbench.suite.schema import BadSuite, Suite, load

HEAD = "suite: claims\nversion: 1\nquestion: q\n"
TRAINED = """\
spec: {layers: 2, width: 16, heads: 2, context: 16}
models:
  - {name: one, arch: residual}
  - {name: two, arch: residual-free}
  - {name: low, arch: residual, training: {quantized: {"activation:interior": int4/token}}}
tensors:
  - {kind: activation, windows: 4, quantizers: [int4/token]}
treatments:
  - {scope: boundaries, quantizers: int4/token}
flow:
  - {scope: boundaries, quantizers: int4/token}
"""
PROBLEMS = TRAINED.replace("spec: {", "data: dyck:k=8,length=16\nspec: {vocabulary: 18, ")
LOADED = """\
data: text:words.txt
models:
  - {name: one, load: ./base}
  - {name: two, load: ./small, reference: one}
  - {name: low, load: ./small, reference: one}
tensors:
  - {kind: activation, sites: boundaries, windows: 4, quantizers: [int4/token]}
treatments:
  - {scope: boundaries, quantizers: int4/token}
"""
STACKS = "stacks: [{name: mix, wiring: dense}, {name: add}]\n"
INT4 = 'treatment: "int4/token @ boundaries"'
SITES = "kind: activation, sites: [boundaries]"
Write = Callable[..., Suite]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    for name in ("base", "small"):
        stub(tmp_path / name, seed=len(name))
    (tmp_path / "words.txt").write_text("some words")

    def write(models: str, measure: str, between: str = "one, two", more: str = "") -> Suite:
        claim = f"effects:\n  - claim: c\n    between: [{between}]\n    measure: {{{measure}}}\n"
        (tmp_path / "claims.yaml").write_text(
            f"{HEAD}{models}{claim}{more}    compare: difference\n    thesis: above 0\n"
        )
        return load(tmp_path / "claims.yaml")

    return write


# (models, what is measured, which key is blamed, what is said)
MISTAKES = [
    (TRAINED, "treatment: unquantized, metric: loss_increase", "metric", "of unquantized there is loss"),
    (TRAINED, "treatment: unquantized, metric: levels", "metric", "of a treatment that quantizes something"),
    (TRAINED, f"{INT4}, metric: floor/numerical", "metric", "is of the treatment unquantized"),
    (TRAINED, f"{INT4}, metric: excess_kurtosis/token", "metric", "asked with kind and sites, without a quantizer"),
    (TRAINED, f"{INT4}, metric: error_db", "metric", "asked with kind, sites and a quantizer"),
    (TRAINED, f"{SITES}, metric: loss", "metric", "loss is asked with a treatment; as it stands here, known: rms"),
    (TRAINED, f"{SITES}, metric: error_db", "metric", "asked with kind, sites and a quantizer"),
    (TRAINED, f"{SITES}, quantizer: int4/token, metric: rms", "metric", "kind and sites, without a quantizer"),
    (TRAINED, f"{SITES}, metric: outliers/sinks", "metric", "is nothing that a claim can ask"),
    (TRAINED, f"{SITES}, metric: flow/error", "metric", "asked with a treatment of flow"),
    (TRAINED, f"{INT4}, metric: flow/gain/spectral", "metric", "is nothing that a claim can ask"),
    (
        TRAINED,
        f"{INT4}, metric: cpu_seconds",
        "metric",
        "is nothing that a claim can ask; as it stands here, known: loss",
    ),
    (TRAINED, f"{INT4}, metric: error_rate/problem", "metric", "is of a procedural task: data: dyck or data: set"),
    (TRAINED, f"{INT4}, metric: error_rate/exact", "metric", "elsewhere there is error_rate"),
    (PROBLEMS, f"{INT4}, metric: bits_per_byte", "metric", "is of data that are text"),
    (TRAINED, f"{INT4}, metric: kld", "metric", "is of models that are loaded"),
    (TRAINED, f"{INT4}, metric: loss_increase/inside", "metric", "training.quantized"),
    (LOADED, "treatment: unquantized, metric: kld", "metric", "of unquantized there is loss"),
    (STACKS + TRAINED, "treatment: unquantized, metric: loss", "treatment", "has no treatments"),
]


@pytest.mark.parametrize(("models", "measure", "key", "said"), MISTAKES, ids=[one[1] for one in MISTAKES])
def test_what_is_recorded_nowhere_cannot_be_claimed(
    write: Write, models: str, measure: str, key: str, said: str
) -> None:
    with pytest.raises(BadSuite) as caught:
        write(models, measure, "mix, add" if models.startswith("stacks") else "one, two")
    (mistake,) = caught.value.mistakes
    assert (mistake.path, said in mistake.text) == (f"effects.0.measure.{key}", True), mistake
    lines = (HEAD + models).count("\n")
    assert mistake.mark.line == lines + 4


@pytest.mark.parametrize(
    ("models", "measure", "between"),
    [
        (TRAINED, f"{INT4}, metric: loss_increase", "one, two"),
        (TRAINED, "treatment: unquantized, metric: bits_per_byte", "one, two"),
        (TRAINED, f"{SITES}, metric: kurtosis/osp", "one, two"),
        (TRAINED, f"{SITES}, quantizer: int4/token, metric: levels", "one, two"),
        (TRAINED, f"{INT4}, metric: flow/error", "one, two"),
        (PROBLEMS, f"{INT4}, metric: error_rate/problem", "one, two"),
        (LOADED, "treatment: unquantized, metric: loss_increase", "two, low"),
        (LOADED, f"{INT4}, metric: kld/p99", "one, two"),
        (LOADED, f"{INT4}, metric: perplexity", "one, two"),
    ],
)
def test_what_is_recorded_can_be_claimed(write: Write, models: str, measure: str, between: str) -> None:
    assert len(write(models, measure, between).effects) == 1


def test_the_cost_of_quantizers_inside_is_of_arms_that_have_some(write: Write) -> None:
    inside, plain = f"{INT4}, metric: loss_increase/inside", f"{INT4}, metric: loss_increase"
    with pytest.raises(BadSuite, match=r"effects\.0\.measure\.metric: loss_increase/inside is of arms with quantizers"):
        write(TRAINED, inside, "low, two")
    another = TRAINED.replace("tensors:", TRAINED.splitlines()[4].replace("low", "also low") + "\ntensors:")
    assert write(another, inside, "low, also low").effects
    with pytest.raises(BadSuite, match=r"effects\.0\.measure\.metric: loss_increase/inside"):
        write(TRAINED, inside, "one, low", f"    against: {{{inside}}}\n")
    assert write(TRAINED, plain, "one, low").effects


def test_no_arm_is_compared_with_itself(write: Write) -> None:
    each, between = "    each: {a: [one, two]}\n", '"{a}", one'
    against = f"    against: {{{INT4}, metric: loss}}\n"
    one = TRAINED, f"{INT4}, metric: loss"
    for more in (each, each + against):
        with pytest.raises(BadSuite, match=r"effects\.0\.between: one is given twice") as caught:
            write(*one, between, more)
        assert "name {a} in it" in str(caught.value)
    other = "    against: {treatment: unquantized, metric: loss}\n"
    with pytest.raises(BadSuite) as caught:
        write(*one, between, each + other)
    assert "given twice" not in str(caught.value)


def test_every_name_in_the_tables_is_a_metric() -> None:
    names = [name for _, found in RECORDED.values() for name in found] + list(LOSS)
    assert [name for name in names if not any(m == name or m.startswith(name) for m in METRICS)] == []


def test_the_tables_say_what_a_run_records() -> None:
    """Of a run that lies beside the code, every number of shapes and errors, and of losses with what must hold."""
    folder = Path(__file__).parents[1] / "results" / "wiring"
    needs = {True: {"plain", "text"}, False: {"treated", "compared", "text"}}
    seen = {"shape": 0, "error": 0, "loss": 0}
    for attempt in read(folder, only=seen).cells.values():
        what = attempt.closing.spec["measurement"]["what"]
        numbers = {name for record in attempt.records for name in record.values}
        if what in ("shape", "error"):
            assert {name for name in numbers if not recorded(what, name)} == set()
        elif what == "loss":
            plain = not attempt.closing.spec["measurement"]["treatment"]["assign"]
            missing = {"bits_per_value/model"}  # of treatments of weights
            wanted = {name for name, need in LOSS.items() if needs[plain].issuperset(need)} - missing
            assert numbers - missing == wanted
        seen[what] = seen.get(what, 0) + 1
    assert all(seen.values())
