"""Cells of models from elsewhere: what is asked of them, and what changes the name of a cell and what must not."""

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from stub_models import PLACES, TOKENIZER, stub

from qbench.models.folder import BadModel
from qbench.suite.cells import Cell, Environment, Found
from qbench.suite.expand import calibration, expand, groups, needs_data
from qbench.suite.found import find
from qbench.suite.schema import Suite, load

WEIGHTS = ("embed", *(f"blocks.0.{place}" for place in PLACES), "logits")
MODEL: Mapping[str, Any] = {"arch": "pretrained", "digest": "d", "task": "causal-lm", "layers": 1, "context": 64}
FOUND = Found(model=MODEL, source="/somewhere/model", weights=WEIGHTS)
HERE = Environment(
    data_digest="abc",
    torch_version="2.13.0",
    device="cpu",
    calibration_digest="c",
    tasks_digest="t",
    found={"model": FOUND},
    libraries={"torchao": "0.18", "bitsandbytes": "0.50", "lm_eval": "0.4", "transformers": "5"},
)
TEXT = """\
suite: judged
version: 1
question: q
data: text:words.txt
models:
  - {name: model, load: owner/model}
tensors:
  - {kind: weight, sites: weights, quantizers: [int4/channel, mxfp4]}
  - {kind: activation, sites: kv, windows: 4, outliers: true, quantizers: [int8/token, int8/tensor+static]}
  - {kind: gradient, sites: boundaries, windows: 4, quantizers: [int8/tensor]}
evaluate: {windows: 8}
treatments:
  - {scope: weights, quantizers: [int4/channel]}
  - {name: static, assign: {"activation:linear": int8/tensor+static}}
calibration: {data: text:notes.txt, windows: 4}
kernels: [torchao/int8-weight-only, bitsandbytes/nf4]
sensitivity: [{weights: int4/channel, top: 2}]
eval: {lm_eval: [copying, counting], limit: 5}
optimizers: [torchao/AdamW8bit]
"""
Write = Callable[..., Suite]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    for name in ("words.txt", "notes.txt", "other.txt"):
        (tmp_path / name).write_text(name)

    def write(text: str = TEXT, *changes: tuple[str, str]) -> Suite:
        for old, new in changes:
            assert text.count(old) == 1, old
            text = text.replace(old, new)
        path = tmp_path / "judged.yaml"
        path.write_text(text)
        return load(path)

    return write


def named(cells: list[Cell]) -> dict[str, str]:
    """What a cell asks -> its id; titles are different in one suite."""
    found = {f"{cell.arm} {cell.title} {cell.measurement.kind}": cell.id for cell in cells}
    assert len(found) == len(cells)
    return found


def moved(before: list[Cell], after: list[Cell]) -> set[str]:
    """Titles of cells that are in both with other ids."""
    first, second = named(before), named(after)
    return {title for title in first.keys() & second.keys() if first[title] != second[title]}


def test_everything_that_is_asked_has_its_cells_in_order(write: Write) -> None:
    calibration_arm, model = groups(expand(write(), HERE))
    assert [cell.measurement.what for cell in calibration_arm] == ["shape", "error"]  # a static scale has no data there
    whats = [cell.measurement.what for cell in model]
    per_matrix = ["shape", "error", "error"] * len(PLACES)
    activations = ["shape", "outliers", "error", "error"]
    rest = ["loss"] * 3 + ["kernel"] * 2 + ["sensitivity"] + ["task"] * 2 + ["optimizer"]
    assert whats == ["model", *per_matrix, *activations, "shape", "error", *rest]
    assert all(cell.pretrained and cell.training is None for cell in model)


def test_each_matrix_is_a_cell_of_its_own(write: Write) -> None:
    weights = [cell.measurement for cell in expand(write(), HERE) if cell.measurement.kind == "weight"]
    assert [m.sites for m in weights[::3]] == [(f"blocks.0.{place}",) for place in PLACES]
    assert weights[0].spec() == {"what": "shape", "kind": "weight", "sites": ["blocks.0.attn.q"]}
    assert weights[1].title == "error of int4/channel on weight at blocks.0.attn.q"
    everything = expand(write(TEXT, ("sites: weights,", "sites: all,")), HERE)
    assert {m.measurement.sites for m in everything if m.measurement.kind == "weight"} == {(name,) for name in WEIGHTS}
    overlapping = expand(write(TEXT, ("sites: weights,", 'sites: [weights, "blocks.*.attn.q", all],')), HERE)
    assert len(named(overlapping)) == len(overlapping) == len(everything)


def test_weights_of_an_unknown_family_go_by_their_names_in_the_file(write: Write) -> None:
    raw = replace(HERE, found={"model": replace(FOUND, weights=("a.weight", "b.weight"))})
    sites = [c.measurement.sites for c in expand(write(), raw) if c.measurement.kind == "weight"]
    assert dict.fromkeys(sites) == dict.fromkeys([("a.weight",), ("b.weight",)])


def test_where_a_model_lies_is_not_what_it_is(write: Write) -> None:
    suite = write()
    here = expand(suite, HERE)
    there = expand(suite, replace(HERE, found={"model": replace(FOUND, source="/elsewhere/copy")}))
    assert [cell.id for cell in here] == [cell.id for cell in there]
    assert {cell.sources.get("model") for cell in there} == {None, "/elsewhere/copy"}
    spelled = json.dumps([cell.spec() for cell in here])
    assert "/somewhere" not in spelled
    assert str(Path.cwd()) not in spelled
    assert [Cell.from_json(json.loads(json.dumps(cell.to_json()))) for cell in here] == here


def test_another_model_changes_all_cells_but_those_of_known_tensors(write: Write) -> None:
    suite = write()
    other = expand(suite, replace(HERE, found={"model": replace(FOUND, model={**MODEL, "digest": "e"})}))
    before = expand(suite, HERE)
    assert moved(before, other) == {title for title in named(before) if not title.startswith("calibration")}
    assert [cell.question_id for cell in before] == [cell.question_id for cell in other]


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (("windows: 8", "windows: 9"), {"loss", "kernel", "sensitivity", "optimizer"}),
        (("windows: 8", "windows: 8, stride: 4"), {"loss", "kernel", "sensitivity", "optimizer", "activation"}),
        (("windows: 8", "windows: 8, context: 32"), {"loss", "kernel", "sensitivity", "optimizer", "activation"}),
        (("windows: 8", "windows: 8, bos: never"), {"loss", "kernel", "sensitivity", "optimizer", "activation"}),
        (("top: 2", "top: 3"), {"sensitivity"}),
        (("limit: 5", "limit: 6"), {"task"}),
        (("notes.txt, windows: 4", "notes.txt, windows: 5"), {"static"}),
        (("text:notes.txt", "text:other.txt"), {"static"}),
        (("question: q", "question: another\nnote: more\nbudget: {cells: 500}"), set()),
    ],
    ids=lambda value: value[1] if isinstance(value, tuple) else "",
)
def test_a_change_of_the_suite_changes_only_whom_it_concerns(
    write: Write, change: tuple[str, str], what: set[str]
) -> None:
    before, after = expand(write(), HERE), expand(write(TEXT, change), HERE)
    assert len(before) == len(after)
    ids = {cell.id for cell in after}
    for cell in before:
        assert (cell.id in ids) != bool(_kinds(cell) & what), cell.title


def _kinds(cell: Cell) -> set[str]:
    """The words of the table above that fit a cell."""
    if cell.arm == "calibration":
        return set()
    asked = cell.measurement
    used = [asked.quantizer, *(asked.treatment.assign.values() if asked.treatment else ())]
    kinds = {asked.what, "static" if any("static" in name for name in used) else ""}
    return kinds | ({"activation"} if asked.kind in ("activation", "gradient") else set())


def test_a_context_that_is_spelled_out_is_the_one_that_was_meant(write: Write) -> None:
    meant, said = expand(write(), HERE), expand(write(TEXT, ("windows: 8", "windows: 8, context: 64")), HERE)
    assert [cell.id for cell in meant] == [cell.id for cell in said]


@pytest.mark.parametrize(("most", "context"), [(64, 64), (4096, 512), (0, 512)])
def test_windows_are_as_long_as_the_model_reads_and_no_longer_than_512(write: Write, most: int, context: int) -> None:
    longest = replace(HERE, found={"model": replace(FOUND, model={**MODEL, "context": most})})
    passages = [c.measurement.passage for c in expand(write(), longest) if c.measurement.what == "loss"]
    assert passages == [{"context": context, "bos": "auto"}] * 3


def test_images_are_read_without_windows(write: Write) -> None:
    images = replace(HERE, found={"model": replace(FOUND, model={**MODEL, "task": "image-classification"})})
    assert all(not cell.measurement.passage for cell in expand(write(), images))


@pytest.mark.parametrize(
    ("environment", "what"),
    [
        ({"libraries": {**HERE.libraries, "torchao": "0.19"}}, {"torchao/int8-weight-only", "torchao/AdamW8bit"}),
        ({"libraries": {**HERE.libraries, "bitsandbytes": "1"}}, {"bitsandbytes/nf4"}),
        ({"libraries": {**HERE.libraries, "lm_eval": "1"}}, {"copying", "counting"}),
        ({"tasks_digest": "u"}, {"copying", "counting"}),
    ],
    ids=["torchao", "bitsandbytes", "lm_eval", "task files"],
)
def test_a_library_is_part_of_what_its_own_code_measures(
    write: Write, environment: dict[str, Any], what: set[str]
) -> None:
    before, after = expand(write(), HERE), expand(write(), replace(HERE, **environment))
    changed = {a.measurement.options.get("name") for a, b in zip(before, after, strict=True) if a.id != b.id}
    assert changed == what


def test_calibration_data_concern_only_quantizers_that_look_at_them(write: Write) -> None:
    before, after = expand(write(), HERE), expand(write(), replace(HERE, calibration_digest="other"))
    assert moved(before, after) == {
        "model loss, static ",
        "model error of int8/tensor+static on activation at kv activation",
    }
    assert needs_data("int8/tensor+static")
    assert needs_data("int8/token+smooth:0.5")
    assert not needs_data("int8/tensor")
    asked = {c.measurement.title: c.measurement.options for c in before if "calibration" in c.measurement.options}
    data = {"calibration": {"data": "text:notes.txt", "digest": "c", "windows": 4}}
    assert asked == {"loss, static": data, "error of int8/tensor+static on activation at kv": data}


def test_allowing_an_overlap_reaches_whoever_checks_for_one(write: Write) -> None:
    suite = write(TEXT, ("notes.txt, windows: 4", "notes.txt, windows: 4, overlap: true"))
    assert calibration(suite, HERE)["calibration"]["overlap"] is True


def test_what_is_added_leaves_all_other_cells_as_they_were(write: Write) -> None:
    before = {cell.id for cell in expand(write(), HERE)}
    more = (
        (("[int4/channel, mxfp4]", "[int4/channel, mxfp4, int3/channel]"), len(PLACES)),
        (("scope: weights, quantizers: [int4/channel]", "scope: weights, quantizers: [int4/channel, mxfp4]"), 1),
    )
    for change, count in more:
        after = {cell.id for cell in expand(write(TEXT, change), HERE)}
        assert before <= after
        assert len(after - before) == count


# Models as they are found


def one(tmp_path: Path, **entry: str) -> Suite:
    """A suite of the models in `entry`, each a flow mapping of YAML."""
    (tmp_path / "words.txt").write_text("words")
    models = "".join(f"  - {{name: {name}, {how}}}\n" for name, how in entry.items())
    path = tmp_path / "found.yaml"
    path.write_text(f"suite: found\nversion: 1\nquestion: q\ndata: text:words.txt\nmodels:\n{models}")
    return load(path)


def test_a_model_is_the_same_wherever_its_folder_lies(tmp_path: Path) -> None:
    stub(tmp_path / "a" / "llama")
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    first, second = (find(one(tmp_path, model=f"load: ./{x}/llama"))["model"] for x in "ab")
    assert first.model == second.model
    assert (first.source, second.source) == (str(tmp_path / "a" / "llama"), str(tmp_path / "b" / "llama"))
    assert str(tmp_path) not in json.dumps(dict(first.model))
    assert first.weights == second.weights
    assert sorted(first.weights) == sorted(WEIGHTS)


def test_weights_config_tokenizer_and_how_it_is_loaded_make_another_model(tmp_path: Path) -> None:
    stub(tmp_path / "m")

    def model(how: str = "load: ./m") -> dict[str, Any]:
        return dict(find(one(tmp_path, model=how))["model"].model)

    first = model()
    assert {k for k, v in model("load: ./m, dtype: bfloat16").items() if v != first[k]} == {"dtype"}
    assert {k for k, v in model("load: ./m, attention: eager").items() if v != first[k]} == {"attention"}
    assert model("load: ./m, device_map: auto") == first
    (tmp_path / "m" / "README.md").write_text("not part of it")
    assert model() == first
    (tmp_path / "m" / "tokenizer.json").write_text(TOKENIZER.replace('"a"', '"b"'))
    assert {k for k, v in model().items() if v != first[k]} == {"tokenizer"}
    stub(tmp_path / "m", seed=1)
    assert {k for k, v in model().items() if v != first[k]} == {"digest"}
    stub(tmp_path / "m", rms_norm_eps=1e-3)
    assert {k for k, v in model().items() if v != first[k]} == {"digest"}


def test_what_a_candidate_is_compared_with_is_part_of_it(tmp_path: Path) -> None:
    for name in ("base", "other", "small"):
        stub(tmp_path / name, seed=len(name))
    alone = find(one(tmp_path, small="load: ./small"))["small"].model
    found = find(one(tmp_path, base="load: ./base", small="load: ./small, reference: base"))
    other = find(one(tmp_path, base="load: ./other", small="load: ./small, reference: base"))
    assert found["small"].model == {**alone, "reference_model_digest": found["base"].model["digest"]}
    assert "reference_model_digest" not in found["base"].model
    assert other["small"].model != found["small"].model
    suite = one(tmp_path, base="load: ./base", small="load: ./small, reference: base")
    environment = replace(HERE, found=found)
    cells = [cell for cell in expand(suite, environment) if cell.arm == "small"]
    assert {cell.sources["reference"] for cell in cells} == {str(tmp_path / "base")}


def test_two_tokenizers_have_nothing_to_compare(tmp_path: Path) -> None:
    stub(tmp_path / "base")
    stub(tmp_path / "small", tokenizer=TOKENIZER.replace('"a"', '"b"'))
    with pytest.raises(BadModel, match="small and its reference have different tokenizers"):
        find(one(tmp_path, base="load: ./base", small="load: ./small, reference: base"))


def test_a_reference_that_is_none_is_told(tmp_path: Path) -> None:
    stub(tmp_path / "small")
    (tmp_path / "saved.safetensors").write_bytes(b"nothing")
    with pytest.raises(BadModel, match=r"saved.safetensors: no saved reference .*; qbench reference save writes one"):
        find(one(tmp_path, small="load: ./small, reference: ./saved.safetensors"))
    shutil.copy(tmp_path / "small" / "model.safetensors", tmp_path / "saved.safetensors")
    with pytest.raises(BadModel, match="no saved reference"):
        find(one(tmp_path, small="load: ./small, reference: ./saved.safetensors"))


def test_a_model_for_nothing_that_is_judged_here_is_told(tmp_path: Path) -> None:
    stub(tmp_path / "m", architectures=["LlamaForTokenClassification"])
    with pytest.raises(BadModel, match="made for LlamaForTokenClassification; expected one for causal-lm, masked-lm"):
        find(one(tmp_path, model="load: ./m"))


# The hub, offline: what its cache holds is found, at the commit that is asked for


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache with two commits of owner/model, the second of them its main; the network is gone."""
    constants = pytest.importorskip("huggingface_hub.constants")
    place = tmp_path / "hub" / "models--owner--model"
    for commit, seed in (("a" * 40, 1), ("b" * 40, 2)):
        stub(place / "snapshots" / commit, seed=seed)
    (place / "refs").mkdir()
    (place / "refs" / "main").write_text("b" * 40)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return place


def test_a_name_on_the_hub_is_found_in_its_cache_at_its_commit(tmp_path: Path, cache: Path) -> None:
    newest = find(one(tmp_path, model="load: owner/model"))["model"]
    pinned = find(one(tmp_path, model=f"load: owner/model, revision: {'a' * 40}"))["model"]
    assert (newest.model["revision"], pinned.model["revision"]) == ("b" * 40, "a" * 40)
    assert newest.model["digest"] != pinned.model["digest"]
    assert (newest.model["name"], Path(pinned.source).name) == ("owner/model", "a" * 40)
    same = {key: value for key, value in newest.model.items() if key not in ("revision", "digest")}
    assert same == {key: pinned.model[key] for key in same}


@pytest.mark.usefixtures("cache")
def test_a_name_that_nobody_has_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(BadModel) as caught:
        find(one(tmp_path, model="load: owner/other"))
    assert len(str(caught.value).splitlines()) == 1
    assert str(caught.value).startswith("owner/other: no such folder, not in the hub's cache")
