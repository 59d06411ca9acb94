"""Noise, additions, errors from block to block and random stacks as measurements of a suite, trained here or not."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from judged import answered, work
from libraries import library
from random_models import folder
from tiny import text
from torch import Tensor

from qbench.capture.places import matrices, places
from qbench.capture.read import watching
from qbench.capture.sites import resolve, stacked
from qbench.capture.write import quantized
from qbench.data.catalog import load as load_text
from qbench.data.documents import Document
from qbench.data.passages import Cut, passages
from qbench.data.windows import evaluation_windows
from qbench.evaluate.noise import Noise, responses
from qbench.evaluate.sensitivity import NEXT_TOKEN
from qbench.evaluate.stack import Stack
from qbench.evaluate.theory import theory, through
from qbench.metrics.catalog import METRICS
from qbench.metrics.shape import shape
from qbench.models.transformer import Transformer
from qbench.quant.quantizer import build
from qbench.report.effects import answer
from qbench.report.predictors import PREDICTORS, observations, own_names, predictors
from qbench.report.view import View, view
from qbench.results import origin
from qbench.results.record import Attempt, Closing, Record, stored
from qbench.results.run import Run
from qbench.suite.answer import Answer
from qbench.suite.cache import Entry
from qbench.suite.cells import Cell
from qbench.suite.device import find
from qbench.suite.expand import groups
from qbench.suite.mistakes import BadSuite
from qbench.suite.run import Cost, Plan, execute, plan
from qbench.suite.schema import load
from qbench.suite.worker import answers

MODELS = """\
suite: flows
version: 1
question: What flows?
data: text:words.txt
spec: {layers: 2, width: 16, heads: 2, context: 16}
training: {optimizer: muon, steps: 6, batch: 4}
models:
  - {name: residual, arch: residual, training: {lr: 0.02}}
  - {name: residual-free, arch: residual-free, training: {lr: 0.01}}
evaluate: {windows: 8}
treatments: [{scope: linear, quantizers: [int4/token]}]
"""
FLOWS = """\
noise:
  - {scopes: [boundaries, "blocks.*.mlp.hidden"], snr_db: [20, 10], windows: 4}
  - {sites: [interior, final], pairs: 2, windows: 6}
adds: {windows: 20}
flow:
  - {scope: [boundaries, linear], quantizers: [int4/token], windows: 5}
  - {name: W4A8, assign: {"weight:weights": int4/channel, "activation:linear": int8/token}}
"""
PREDICTED = """\
tensors: [{kind: activation, windows: 4, quantizers: [int3/token, int4/tensor]}]
treatments:
  - {scope: [boundaries, interior, linear, "blocks.*.mlp.hidden"], quantizers: [int3/token, int4/tensor]}
  - {scope: weights, quantizers: [int4/channel]}
noise:
  - {scopes: [boundaries, "blocks.*.mlp.hidden"], windows: 4}
  - {sites: ["blocks.*.attn.in", "blocks.*.attn.context", "blocks.*.mlp.in"], windows: 4}
  - {sites: ["blocks.*.mlp.hidden", interior], windows: 4}
flow:
  - {scope: [boundaries, interior, linear, "blocks.*.mlp.hidden"], quantizers: [int3/token, int4/tensor], windows: 4}
"""
STACKS = """\
suite: flows
version: 1
question: What flows?
seeds: [0, 3]
stacks:
  - {name: "{wiring} {width}", wiring: [residual, dense], width: [8, 16], depth: 2, rows: 64}
  - {name: noise, branch: gaussian-noise, input: hot-channel, width: 8, depth: 3, rows: 32, ratio: 1, seeds: [5]}
"""
Write = Callable[[str], Path]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("flows")
    (home / "words.txt").write_text(text())
    return home


@pytest.fixture(autouse=True)
def _cache(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QBENCH_CACHE", str(home / "cache"))


@pytest.fixture
def write(home: Path) -> Write:
    def write(suite: str) -> Path:
        path = home / "flows.yaml"
        path.write_text(suite)
        return path

    return write


def planned(path: Path) -> Plan:
    return plan(load(path), path.parent / "run", find("cpu"), 1)


class Silence:
    """Stands in for the wire to a parent process."""

    def say(self, event: str, **body: Any) -> None: ...


def everything(home: Path, suite: str) -> Mapping[str, Answer]:
    """ "arm: title" -> answer, of all models."""
    path = home / "trained.yaml"
    path.write_text(suite)
    made: dict[str, Answer] = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("QBENCH_CACHE", str(home / "cache"))
        for group in groups(planned(path).cells):
            wire: Any = Silence()
            made |= {f"{done.cell.arm}: {done.cell.title}": done for done in answers(group, group, "cpu", wire)}
    assert {name: one.error for name, one in made.items() if one.status != "measured"} == {}
    return made


@pytest.fixture(scope="module")
def found(home: Path) -> Mapping[str, Answer]:
    return everything(home, MODELS + FLOWS)


@pytest.fixture(scope="module")
def predicted(home: Path) -> View:
    """A run in which every predictor was measured, as it is read back."""
    suite = "".join(line for line in MODELS.splitlines(keepends=True) if not line.startswith("treatments"))
    done = everything(home, suite + PREDICTED).values()
    cells = {
        one.cell.id: Attempt(
            Closing(cell=one.cell.id, question="q", status="measured", spec=json.loads(json.dumps(one.cell.spec()))),
            tuple(map(stored, one.records)),
        )
        for one in done
    }
    return view(Run(folder=home, cells=cells, manifest={}))


def model(answer: Answer) -> Transformer:
    kept = Entry(answer.cell.training_key).model()
    assert kept is not None
    return kept.eval()


def windows(answer: Answer, n: int) -> Tensor:
    """Windows of the test split, evenly spaced."""
    return evaluation_windows(load_text(answer.cell.data).test, 16, n)


def flowing(what: Transformer, names: Sequence[str], tokens: Tensor) -> dict[str, Tensor]:
    kept: dict[str, Tensor] = {}
    with torch.no_grad(), watching({name: places(what)[name] for name in names}, kept.__setitem__):
        what(tokens)
    return kept


def test_what_is_asked_comes_after_everything_else_and_changes_no_other_cell(write: Write) -> None:
    before, after = planned(write(MODELS)).cells, planned(write(MODELS + FLOWS)).cells
    ids = [cell.id for cell in after]
    assert [cell.id for cell in before] == [i for i in ids if i in {cell.id for cell in before}]
    whats = [cell.measurement.what for cell in after if cell.arm == "residual"]
    assert whats == ["training", "loss", "loss", "noise", "noise", "adds", "flow", "flow", "flow"]
    assert len(set(ids)) == len(ids)
    assert [Cell.from_json(json.loads(json.dumps(cell.to_json()))) for cell in after] == list(after)
    titles = [cell.title for cell in after if cell.arm == "residual"][3:]
    assert titles[:3] == ["noise at boundaries, blocks.*.mlp.hidden", "noise at interior, final", "adds"]
    assert titles[3:] == ["flow, int4/token @ boundaries", "flow, int4/token @ linear", "flow, W4A8"]


@pytest.mark.parametrize(
    ("old", "new", "moved"),
    [
        ("snr_db: [20, 10]", "snr_db: [20]", {"noise"}),
        ("pairs: 2", "pairs: 1", {"noise"}),
        ("adds: {windows: 20}", "adds: {windows: 10}", {"adds"}),
        ("windows: 5", "windows: 6", {"flow"}),
        ("[boundaries, linear]", "[linear, boundaries]", set[str]()),
    ],
)
def test_a_change_moves_its_own_cells(write: Write, old: str, new: str, moved: set[str]) -> None:
    before, after = planned(write(MODELS + FLOWS)).cells, planned(write(MODELS + FLOWS.replace(old, new))).cells
    ids = {cell.id for cell in after}
    assert {cell.measurement.what for cell in before if cell.id not in ids} == moved


def test_noise_in_records(found: Mapping[str, Answer]) -> None:
    done = found["residual: noise at boundaries, blocks.*.mlp.hidden"]
    subject, tokens = model(done), windows(done, 4)
    there = places(subject)
    for scope, sites in (("boundaries", ("out",)), ("blocks.*.mlp.hidden", ("mlp.hidden",))):
        names = [f"blocks.{block}.{site}" for block in (0, 1) for site in sites]
        group = {scope: {name: there[name] for name in names}}
        (plain, louder) = responses(subject, group, [tokens], [Noise(20), Noise(10)])[scope]
        records = [record for record in done.records if record.scope == scope]
        assert [(r.site, r.kind, r.n, r.values["noise/snr_db"]) for r in records] == [
            ("", "activation", 4, 20.0),
            ("", "activation", 4, 10.0),
        ]
        for record, expected in zip(records, (plain, louder), strict=True):
            assert record.values["noise/increase"] == pytest.approx(expected.increases.mean())
            assert record.values["noise/sensitivity"] == pytest.approx(expected.increases.mean() / expected.noise.power)
            assert record.values["floor/window"] == pytest.approx(expected.increases.std(ddof=1) / 2)
            low, high = record.intervals["noise/increase"]
            assert low < record.values["noise/increase"] < high
        rise = np.log(louder.increases.mean() / plain.increases.mean()) / np.log(10)
        assert records[0].values["noise/exponent"] == pytest.approx(rise)
        assert done.vectors[f"{scope}/20 dB/noise/increase"].tolist() == plain.increases.tolist()


def test_noise_at_sites_alone(found: Mapping[str, Answer]) -> None:
    done = found["residual-free: noise at interior, final"]
    assert [(record.site, record.scope, record.n) for record in done.records] == [
        ("blocks.0.out", "", 6),
        ("final", "", 6),
    ]
    assert all("noise/exponent" not in record.values for record in done.records)
    subject, tokens = model(done), windows(done, 6)
    group = {"final": {"final": places(subject)["final"]}}
    ((expected,),) = responses(subject, group, [tokens], [Noise(20, pairs=2)], NEXT_TOKEN).values()
    assert done.records[1].values["noise/increase"] == pytest.approx(expected.increases.mean())


def test_additions_in_records(found: Mapping[str, Answer]) -> None:
    """More windows than are recorded at once: the kurtosis of all of them together."""
    done = found["residual: adds"]
    sums = [f"blocks.{block}.{site}" for block in (0, 1) for site in ("mid", "out")]
    assert [(r.site, r.kind, r.n) for r in done.records] == [(name, "activation", 20) for name in sums]
    tensors = flowing(model(done), ["embed", *sums], windows(done, 20)[:, :-1])
    stream = tensors["embed"]
    for record in done.records:
        total = tensors[record.site]
        measured, values = shape(total), record.values
        for axis in ("tensor", "channel"):
            assert values[f"add/kurtosis/sum/{axis}"] == pytest.approx(measured[f"excess_kurtosis/{axis}"], abs=1e-4)
            assert values[f"add/kurtosis/predicted/{axis}"] == pytest.approx(values[f"add/kurtosis/sum/{axis}"])
        joined = (total - stream).double()
        ratio = (joined.var() / stream.double().var()).item()
        assert values["add/variance_ratio/tensor"] == pytest.approx(ratio, rel=1e-3)
        assert values["add/alignment"] == pytest.approx(1)
        stream = total
    assert found["residual-free: adds"].records == ()
    assert found["residual-free: adds"].status == "measured"


@pytest.mark.parametrize("arm", ["residual", "residual-free"])
def test_errors_from_block_to_block_in_records(found: Mapping[str, Answer], arm: str) -> None:
    """Behind the last block: as far from the clean stream as a whole quantized pass ends."""
    done = found[f"{arm}: flow, W4A8"]
    assert [record.site for record in done.records[:3]] == ["blocks.0", "blocks.1", "blocks.0.attn.q"]
    assert len(done.records) == 2 + 2 * 6
    subject, tokens = model(done), windows(done, 16)[:, :-1]
    held, there = matrices(subject), places(subject)
    of = {n: (m, build("int4/channel", channel_axis=0)) for n, m in held.items() if n.startswith("blocks.")}
    ends = ("attn.in", "attn.context", "mlp.in", "mlp.hidden")
    at = {n: (there[n], build("int8/token")) for n in there if n.startswith("blocks.") and n.split(".", 2)[2] in ends}
    clean = flowing(subject, ["blocks.1.out"], tokens)["blocks.1.out"].clone()
    with quantized(at, of):
        moved = flowing(subject, ["blocks.1.out"], tokens)["blocks.1.out"]
    error = ((moved - clean).norm(dim=-1) / clean.norm(dim=-1)).square().mean().item()
    assert done.records[1].values["flow/error"] == pytest.approx(error, rel=1e-4)
    named = found[f"{arm}: flow, int4/token @ linear"].records[1]
    assert (named.scope, named.kind, named.quantizer, named.n) == ("linear", "activation", "int4/token", 5)


def test_what_predicts_the_loss_is_read_from_records_as_they_come(predicted: View) -> None:
    seen = observations(predicted, own_names)
    wheres = ("boundaries", "interior", "linear", "blocks.*.mlp.hidden")
    assert {(one.run, one.scope, one.quantizer) for one in seen} == {
        ((arm, 0), where, quantizer)
        for arm in ("residual", "residual-free")
        for where in wheres
        for quantizer in ("int3/token", "int4/tensor")
    }
    rows = {(r.arm, r.scope or r.site): r.values["noise/sensitivity"] for r in predicted.select("noise")}
    for one in seen:
        arm = one.run[0]
        assert one.predicted_cost == one.predicted_cost, one.scope
        if one.scope == "boundaries":  # noise at all of them at once
            assert one.predicted_cost == pytest.approx(rows[arm, "boundaries"] * one.error)
        if one.scope == "linear":  # the sum over eight places, each with noise alone
            each = [one.errors[site]["relative_error"] ** 2 * rows[arm, site] for site in one.sites]
            assert (len(each), one.predicted_cost) == (8, pytest.approx(sum(each)))
        last = predicted.select("flow", arm=arm, scope=one.scope, quantizer=one.quantizer, site="blocks.1")
        assert [row.values["flow/error"] for row in last] == [one.flow]
    compared = predictors(observations(predicted))
    assert compared is not None
    assert compared.correlations.keys() == PREDICTORS.keys()
    assert (compared.n, compared.groups) == (16, 2)
    assert all(-1 <= each.rho.low <= each.rho.high <= 1 for each in compared.correlations.values())


def test_claims_about_flow_are_answered(predicted: View) -> None:
    between = ["residual", "residual-free"]
    asked: list[dict[str, Any]] = [
        {"kind": "activation", "sites": ["boundaries"], "metric": "noise/sensitivity"},
        {"kind": "activation", "sites": ["blocks.*.attn.in"], "metric": "noise/sensitivity"},
        {"treatment": "int3/token @ linear", "metric": "flow/error"},
    ]
    claims = [{"claim": "c", "between": between, "measure": m, "compare": "ratio", "thesis": "above 1"} for m in asked]
    noise, alone, flow = answer(predicted, claims)
    of = {arm: predicted.select("noise", arm=arm) for arm in between}
    at_once = [next(r.values["noise/sensitivity"] for r in of[a] if r.scope == "boundaries") for a in between]
    sites = [
        np.mean([r.values["noise/sensitivity"] for r in of[a] if r.site in ("blocks.0.attn.in", "blocks.1.attn.in")])
        for a in between
    ]
    rows = [predicted.select("flow", arm=a, treatment="int3/token @ linear", site="blocks.1") for a in between]
    assert noise.levels == pytest.approx(tuple(at_once))
    assert alone.levels == pytest.approx(tuple(sites))
    assert flow.levels == pytest.approx(tuple(row.values["flow/error"] for (row,) in rows))


def test_stacks_need_neither_models_nor_data(write: Write) -> None:
    suite = load(write(STACKS))
    assert [arm.name for arm in suite.stacks] == ["residual 8", "residual 16", "dense 8", "dense 16", "noise"]
    cells = planned(write(STACKS)).cells
    assert {cell.measurement.what for cell in cells} == {"theory"}
    assert [(cell.arm, cell.seed) for cell in cells[3:6]] == [("dense 16", 0), ("residual 8", 3), ("residual 16", 3)]
    assert [len(group) for group in groups(cells)] == [4, 4, 1]
    assert all(cell.data_digest == "" and cell.training is None for cell in cells)
    elsewhere = planned(write(STACKS + "data: text:words.txt\n")).cells
    assert [cell.id for cell in elsewhere] == [cell.id for cell in cells]
    assert [Cell.from_json(json.loads(json.dumps(cell.to_json()))) for cell in cells] == list(cells)


def test_stacks_are_answered_beside_models(write: Write) -> None:
    path = write(MODELS + "stacks:\n  - {name: mix, wiring: dense, width: 8, depth: 2, rows: 64, seeds: [4]}\n")
    *others, (cell,) = groups(planned(path).cells)
    assert {one.measurement.what for group in others for one in group} == {"shape", "training", "loss"}
    wire: Any = Silence()
    (done,) = answers([cell], [cell], "cpu", wire)
    expected = through(Stack(wiring="dense", width=8, depth=2, rows=64), 4)
    assert [(r.site, r.kind, r.n) for r in done.records] == [(f"layer.{n}", "activation", 64) for n in range(3)]
    assert [record.values for record in done.records] == [depth.values for depth in expected]


def test_a_run_of_stacks_says_where_its_numbers_come_from(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("qbench.suite.run.work", work)
    done = planned(write(STACKS))
    for _ in execute(done, Cost(), {}):
        pass
    session = origin.read(done.out)["sessions"][-1]
    assert (session["seeds"], session["data"], session["cells"]) == ([0, 3, 5], {}, {"measured": 9})


def test_what_a_faster_run_measured_meanwhile_is_not_measured_again(
    write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("qbench.suite.run.work", work)
    found = plan(load(write(STACKS)), tmp_path, find("cpu"), 1)
    assert len([*execute(found, Cost(), {})]) == found.todo == 9
    assert [*execute(found, Cost(), {})] == []
    assert origin.read(tmp_path)["sessions"][-1]["cells"] == {"measured": 9}


CLAIM = """\
effects:
  - claim: Mixing ends it
    between: [residual 8, dense 8]
    measure: {kind: activation, sites: [layer.1], metric: excess_kurtosis/tensor}
    compare: ratio
    thesis: above 2
"""
MISTAKES = [
    (MODELS + "noise: [{windows: 4}]\n", "noise goes somewhere"),
    (MODELS + "noise: [{scopes: [boundries]}]\n", "no activation site 'boundries'; did you mean 'boundaries'?"),
    (MODELS + "noise: [{sites: [final], snr_db: loud}]\n", "found 'loud'; wanted: a number"),
    (MODELS + "flow: [{scope: linear, quantizers: [int5]}]\n", "int5"),
    (
        MODELS + "flow: [{scope: linear, quantizers: [int4/token]}, {scope: linear, quantizers: [int4/token]}]\n",
        "second",
    ),
    (STACKS.replace("{wiring} {width}", "{wiring}"), "a second arm 'residual'; each needs a name of its own, with"),
    (STACKS.replace("{width}", "{wdith}"), "nothing called 'wdith'; did you mean 'width'?"),
    (STACKS.replace("name: noise,", "name: noise, wiring: dense,"), "needs a skip; dense stacks of: rotation, mlp"),
    (STACKS.replace("gaussian-noise", "gausian-noise"), "did you mean 'gaussian-noise'?"),
    (STACKS + "adds: {windows: 4}\n", "is measured of models, and this suite has stacks alone"),
    (MODELS.partition("models:")[0], "models is missing"),
    (STACKS + CLAIM.replace("layer.1", "layer.9"), "'layer.9' is no layer of 'residual 8': layer.0 to layer.2"),
    (STACKS + CLAIM.replace("dense 8]", "dense 9]"), "no arm 'dense 9'; did you mean 'dense 8'?"),
    (STACKS + CLAIM.replace("kind: activation", "kind: weight"), "activations are measured without a quantizer"),
    (
        MODELS + "stacks: [{name: mix, wiring: dense}]\n" + CLAIM.replace("residual 8, dense 8", "residual, mix"),
        "'mix' is a stack of random layers; it is compared with another stack",
    ),
    (
        MODELS + CLAIM.replace("residual 8, dense 8", "residual, residual-free").replace("excess_kurtosis", "add/c22"),
        "the suite has no adds, which measures this",
    ),
    (
        MODELS
        + FLOWS
        + CLAIM.replace("residual 8, dense 8", "residual, residual-free").replace(
            "kind: activation, sites: [layer.1], metric: excess_kurtosis/tensor",
            "treatment: int4/token @ middle, metric: flow/error",
        ),
        "no treatment of flow 'int4/token @ middle'",
    ),
]


@pytest.mark.parametrize(("suite", "said"), MISTAKES)
def test_mistakes_are_named(write: Write, suite: str, said: str) -> None:
    with pytest.raises(BadSuite) as caught:
        load(write(suite))
    assert said in str(caught.value)


def test_right_claims_are_read(write: Write) -> None:
    assert load(write(STACKS + CLAIM)).effects[0].measure.sites == ("layer.1",)
    for measure in (
        "{kind: activation, sites: [boundaries], metric: noise/sensitivity}",
        "{kind: activation, sites: [boundaries], metric: add/c22/channel}",
        "{treatment: int4/token @ linear, metric: flow/error}",
    ):
        claim = CLAIM.replace("residual 8, dense 8", "residual, residual-free")
        claim = claim.replace("{kind: activation, sites: [layer.1], metric: excess_kurtosis/tensor}", measure)
        assert len(load(write(MODELS + FLOWS + claim)).effects) == 1


def test_closed_forms_decide_the_claims_of_the_shipped_suite() -> None:
    """All but one as the claim has it; large additions contract more than a mixing does."""
    suite = load("theory")
    known = {arm.name: theory(arm.stack) for arm in suite.stacks}
    against: list[str] = []
    for effect in suite.effects:
        axis, levels = effect.measure.metric.rpartition("/")[2], list[float]()
        for name in effect.between:
            sites = resolve(effect.measure.sites[0], "activation", stacked(len(known[name]) - 1))
            sources = [known[name][int(site.removeprefix("layer."))] for site in sites]
            levels.append(float(np.mean([getattr(one, axis) for one in sources])))
        value = levels[0] / levels[1] if effect.compare == "ratio" else levels[0] - levels[1]
        assert abs(value - effect.bound) > 0.2 * abs(value), effect.claim
        against += [effect.claim] if (value > effect.bound) != (effect.direction == "above") else []
    assert against == ["Four additions as large as the stream keep more than one mixing does"]


def test_more_windows_than_there_are_is_known_before_the_training(write: Write) -> None:
    with pytest.raises(ValueError, match=r"noise wants 99999999 windows"):
        planned(write(MODELS + "noise: [{scopes: [boundaries], windows: 99999999}]\n"))


def test_models_from_elsewhere(tmp_path: Path) -> None:
    """Noise as on our own; R behind the last block by whole passes of transformers' own model."""
    transformers = library("transformers")
    path = folder("llama", tmp_path)
    (tmp_path / "fables.txt").write_text("The fox looked up at the grapes, and they looked down at the fox. " * 20)
    suite = f"""\
data: text:fables.txt
evaluate: {{windows: 6, context: 24}}
models: [{{name: one, load: {path}}}]
noise: [{{scopes: [boundaries], sites: [final], windows: 4}}]
adds: {{windows: 4}}
flow: [{{scope: weights, quantizers: [int4/channel], windows: 4}}]
"""
    found = answered(tmp_path, suite)
    assert {name: one.error for name, one in found.items() if one.status != "measured"} == {}
    noise = found["one: noise at boundaries, final"].records
    assert [(r.scope, r.site) for r in noise] == [("boundaries", ""), ("", "final")]
    assert all(record.values["noise/increase"] != 0 and record.n == 4 for record in noise)
    sums = {record.site: record.values for record in found["one: adds"].records}
    assert list(sums) == [f"blocks.{block}.{site}" for block in (0, 1) for site in ("mid", "out")]
    assert all(one["add/alignment"] == pytest.approx(1, abs=1e-5) for one in sums.values())
    last = next(record for record in found["one: flow, int4/channel @ weights"].records if record.site == "blocks.1")
    plain, changed = (transformers.AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32) for _ in range(2))
    with torch.no_grad():
        for name, parameter in changed.named_parameters():
            if name.endswith("_proj.weight"):
                parameter.copy_(build("int4/channel", channel_axis=0).roundtrip(parameter))
        streams = [_before_norm(one, _tokens(transformers, path, tmp_path)) for one in (plain, changed)]
    error = ((streams[1] - streams[0]).norm(dim=-1) / streams[0].norm(dim=-1)).square().mean().item()
    assert last.values["flow/error"] == pytest.approx(error, rel=1e-3)


def _before_norm(what: Any, tokens: Tensor) -> Tensor:
    kept: list[Tensor] = []
    what.model.norm.register_forward_pre_hook(lambda _m, given: kept.append(given[0]))
    what(tokens)
    return kept[0]


def _tokens(transformers: Any, path: Path, home: Path) -> Tensor:
    reader = transformers.AutoTokenizer.from_pretrained(path)
    text = (home / "fables.txt").read_text()
    document = Document("fables.txt", text, "fables.txt")
    cut = passages([document], lambda t: reader.encode(t, add_special_tokens=False), Cut(24, 4, bos=1))
    return cut.tokens[:, :-1]


def test_records_have_no_other_numbers_than_the_catalog(found: Mapping[str, Answer]) -> None:
    records: list[Record] = [
        r for one in found.values() for r in one.records if one.cell.measurement.what != "training"
    ]
    assert {name for record in records for name in record.values} <= METRICS.keys()
