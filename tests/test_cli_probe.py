"""`qbench probe`, `compare` and `reference` as their users type them, and what they say when something is wrong."""

import getpass
import json
import platform
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import pytest
import torch
from judged import work
from libraries import library
from safetensors.torch import load_file, save_file
from tiny import USER, Bench, text

from qbench.data import vision
from qbench.models import headroom
from qbench.results.run import read
from qbench.suite import run as suite_run
from qbench.suite import subject
from qbench.suite.engine import Message

transformers = library("transformers")
from random_models import folder, tokenizer  # noqa: E402
from tiny_vit import save as save_vit  # noqa: E402
from tiny_vit import untrained  # noqa: E402

Command = Callable[..., tuple[int, str, str]]
# Of the shipped suite only the model, its loss, and a kernel that does not fit: what a mistake can be tried on.
QUICK = [f"--set={part}" for part in ("tensors=[]", "treatments=[]", "sensitivity=[]", "windows=2")]
QUICK += ["--set=kernels=[bitsandbytes/nf4]"]

# A little of everything in it.
SMALL = ["--profile=smoke", "--set=kernels=[]", "--set=sensitivity=[{weights: int4/channel, top: 1}]"]
SMALL += ["--set=treatments=[{scope: [weights, kv], quantizers: [int8/channel]}]"]
SMALL += ["--set=tensors=[{kind: weight}, {kind: activation, windows: 2, outliers: true, quantizers: [int4/token]}]"]
WEIGHTS = [
    "--weights-only",
    "llama",
    "--data=text:words.txt",
    "--set=tensors=[{kind: weight, quantizers: [int8/channel, int4/channel]}]",
]


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A llama, copies of it with something wrong, and texts."""
    place = tmp_path_factory.mktemp("models")
    llama = folder("llama", place)
    (place / "words.txt").write_text(text())
    (place / "short.txt").write_text("too short")
    (place / "empty.txt").write_text("")
    for name in ("nan", "truncated", "pickle", "weightless", "other-words", "no-words", "formless"):
        shutil.copytree(llama, place / name)
    shards = {name: place / name / "model.safetensors" for name in ("nan", "truncated", "pickle", "weightless")}
    weights = {name: tensor.clone() for name, tensor in load_file(llama / "model.safetensors").items()}
    torch.save(weights, place / "pickle" / "pytorch_model.bin")
    weights["model.layers.1.mlp.up_proj.weight"][3, 3] = float("nan")
    save_file(weights, shards["nan"], {"format": "pt"})
    whole = shards["truncated"].read_bytes()
    shards["truncated"].write_bytes(whole[: len(whole) // 2])
    shards["pickle"].unlink()
    shards["weightless"].unlink()
    (place / "formless" / "config.json").unlink()
    (place / "no-words" / "tokenizer.json").unlink()
    words = json.loads((place / "other-words" / "tokenizer.json").read_text())
    words["model"]["vocab"]["\u00e9"] = 500
    (place / "other-words" / "tokenizer.json").write_text(json.dumps(words))
    save_vit(untrained(vision.digits().classes), place / "vit")
    config = transformers.GPTJConfig(
        vocab_size=97, n_embd=32, n_layer=2, n_head=4, n_positions=64, rotary_dim=4, bos_token_id=1, eos_token_id=2
    )
    torch.manual_seed(0)
    transformers.GPTJForCausalLM(config).save_pretrained(place / "stranger")
    tokenizer("llama").save_pretrained(place / "stranger")
    return place


@pytest.fixture
def here(models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: Command) -> Command:
    """Commands in a folder with these models, whose cells are answered in this process and make no page."""
    for path in models.iterdir():
        (tmp_path / path.name).symlink_to(path)
    monkeypatch.setattr(suite_run, "work", work)
    monkeypatch.setattr("qbench.report.page.build", lambda _run, out: out)
    return command


# One real run, as a user starts it


@pytest.fixture(scope="session")
def probed(models: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Bench, str]:
    """A probe in processes of its own, by a user whose name and folders must not be found; what it said."""
    bench = Bench(tmp_path_factory.mktemp("probed"))
    private = bench.home / USER / "secret"
    private.mkdir(parents=True)
    shutil.copytree(models / "llama", private / "my-llama")
    shutil.copy(models / "words.txt", private / "diary.txt")
    done = bench.qbench(
        *("probe", private / "my-llama", "--data", f"text:{private / 'diary.txt'}", *SMALL),
        *("--device", "cpu", "--workers", "1", "--out", bench.out),
    )
    assert done.returncode == 0, done.stderr
    return bench, done.stdout


def test_a_probe_measures_everything_that_this_machine_can(probed: tuple[Bench, str]) -> None:
    bench, said = probed
    attempts = read(bench.out).cells.values()
    ended = {str(a.closing.spec["measurement"]["what"]): a.closing.status for a in attempts}  # type: ignore[index]
    assert set(ended) == {"shape", "error", "model", "outliers", "loss", "sensitivity"}
    assert [a.closing.error for a in attempts if a.closing.status == "failed"] == []
    assert f"{len(attempts)} cells measured" in said
    assert "page:" in said


@pytest.mark.parametrize("name", ["records.jsonl", "manifest.json", "report.html"])
def test_nothing_private_is_stored(probed: tuple[Bench, str], name: str) -> None:
    bench, _ = probed
    stored = (bench.out / name).read_text()
    assert "my-llama" in stored  # what the model is called, and no more
    for private in (USER, str(bench.home), str(bench.home.parent), str(Path.home()) + "/"):
        assert private not in stored
    if name == "records.jsonl":
        assert "secret" not in stored
        assert '"name":"text:diary.txt"' in stored
    if platform.node() not in ("", "localhost"):
        assert platform.node() not in stored
    if getpass.getuser() != "root":
        assert getpass.getuser() not in stored


def test_a_probe_that_is_there_is_not_run_again(
    probed: tuple[Bench, str], command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor where it is asked for from another folder, by a relative path."""
    bench, _ = probed
    monkeypatch.chdir(bench.home / USER / "secret")
    before = (bench.out / "records.jsonl").read_bytes()
    typed = ["probe", "./my-llama", "--data", "text:diary.txt", *SMALL, "--device", "cpu", "--out", bench.out]
    code, said, err = command(*typed)
    assert (code, err) == (0, "")
    assert f"all {len(read(bench.out).cells)} cells are there; nothing to run" in said
    assert (bench.out / "records.jsonl").read_bytes() == before


# Mistakes


@pytest.fixture(scope="session")
def earlier(tmp_path_factory: pytest.TempPathFactory, models: Path) -> bytes:
    """Records of a run that went well."""
    place = tmp_path_factory.mktemp("earlier")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(models)
        patch.setattr(suite_run, "work", work)
        patch.setattr("qbench.report.page.build", lambda _run, out: out)
        from qbench.cli.main import main

        assert main(["probe", "llama", "--data", "text:words.txt", *QUICK, "--out", str(place), "--quiet"]) == 0
    return (place / "records.jsonl").read_bytes()


def complaints(err: str) -> list[str]:
    """Lines that are not about progress."""
    return [line for line in err.splitlines() if " cells" not in line.partition(":")[0] and "cells to run" not in line]


MISTAKES: Sequence[tuple[str, int, str]] = [  # what is typed after `probe`, exit code, what is said
    ("nowhere", 4, "nowhere: no such folder, "),
    ("./nowhere", 4, "./nowhere: no such folder; expected a folder with config.json, or owner/name on the hub"),
    ("truncated", 4, "bytes, where its header promises"),
    ("pickle", 4, "pytorch_model.bin is a pickle, which can run code when it is read; convert it"),
    ("weightless", 4, "no weights; expected model.safetensors"),
    ("formless", 4, "no config.json"),
    ("words.txt", 4, "words.txt: no such folder"),
    ("no-words --data text:words.txt", 4, "no tokenizer.json, and no older tokenizer"),
    ("other-words --data text:words.txt", 4, "the tokenizer has a token 500, where the model knows 97"),
    ("nan --data text:words.txt", 4, "1 weights are NaN or infinite, in model.layers.1.mlp.up_proj.weight"),
    ("llama --data text:short.txt", 4, "the longest of 1 documents has 9 tokens; a window of context 64 needs 64"),
    ("llama --data text:empty.txt", 4, "empty.txt: it is empty; expected text to judge a model on"),
    ("llama --data text:nowhere.txt", 2, "no file or folder 'nowhere.txt'"),
    ("llama --data words.txt", 2, "write text:words.txt for that path"),
    ("llama --data text:words.txt --set windows=99999999", 4, "windows of context 64 were asked for"),
    ("llama --data text:words.txt --set windoes=2", 2, "windoes"),
    ("llama --data text:words.txt --profile smok", 2, "did you mean 'smoke'?"),
    ("llama --revision abc", 4, "revision 'abc' of a folder; only names on the hub have revisions"),
    ("", 2, "the following arguments are required: model"),
]


@pytest.fixture
def offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of the hub, and no network."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


@pytest.mark.usefixtures("offline")
@pytest.mark.parametrize("mistake", MISTAKES, ids=[typed for typed, _, _ in MISTAKES])
def test_a_mistake_is_one_line_and_leaves_earlier_records_as_they_are(
    here: Command, tmp_path: Path, earlier: bytes, mistake: tuple[str, int, str]
) -> None:
    typed, code, said = mistake
    out = tmp_path / "out"
    out.mkdir()
    (out / "records.jsonl").write_bytes(earlier)
    quick = [] if not typed else [*QUICK, "--out", out]
    # What is typed goes last, where it overrules.
    words = typed.split()
    found, _, err = here("probe", *words[:1], *quick, *words[1:])
    assert found == code, err
    assert "Traceback" not in err
    about = complaints(err)
    if not typed:
        assert len(about) == 2  # and how to see the options
        about = about[:1]
    assert len(about) == 1, err
    assert said in about[0]
    assert (out / "records.jsonl").read_bytes().startswith(earlier)


def test_a_model_that_does_not_fit_is_one_line(here: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(headroom, "free_memory", lambda: 1000)
    code, _, err = here("probe", "llama", "--data", "text:words.txt", *QUICK, "--out", tmp_path / "out")
    (line,) = complaints(err)
    assert code == 4
    assert "of memory are free; load it in a smaller dtype or with a device map, or look at its weights only" in line
    errors = {a.closing.error for a in read(tmp_path / "out").cells.values() if a.closing.status == "failed"}
    assert len(errors) == 1
    assert str(tmp_path) not in str(errors)


@pytest.mark.parametrize(
    ("typed", "code", "said"),
    [
        ("compare llama", 2, "required: candidate"),
        ("compare words.txt llama", 4, "words.txt: no saved reference"),
        ("compare llama vit", 4, "reads images, and its reference reads text"),
        ("compare llama nowhere/at/all", 2, "no folder 'nowhere/at/all'"),
        ("compare words.txt llama --data text:words.txt", 2, "a saved reference has its own texts"),
        ("reference save llama --data text:nowhere.txt", 4, "nowhere.txt: no such file or folder"),
        ("reference save llama --data text:short.txt", 4, "has 9 tokens"),
        ("reference save vit --data digits", 4, "a reference is of texts"),
        ("reference keep llama", 2, "invalid choice: 'keep'"),
        ("ls sites", 2, "a model goes with sites"),
        ("ls suites llama", 2, "a model goes with sites"),
        ("ls sites ./nowhere", 4, "no such folder"),
    ],
)
def test_mistakes_of_the_other_commands(here: Command, typed: str, code: int, said: str) -> None:
    found, _, err = here(*typed.split())
    assert found == code, err
    assert said in err
    assert len(complaints(err)) <= 2
    assert "Traceback" not in err


def test_a_reference_of_no_windows_is_a_mistake(here: Command) -> None:
    code, _, err = here(*["reference", "save", "llama", "--data", "text:words.txt", "--windows", "0"])
    assert (code, len(err.splitlines())) == (2, 1)


# Weights alone


@pytest.fixture
def unloaded(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("the model was loaded")

    monkeypatch.setattr(subject, "loaded", refuse)


@pytest.mark.usefixtures("unloaded")
def test_weights_alone_never_load_the_model(here: Command, tmp_path: Path) -> None:
    code, said, _ = here("probe", *WEIGHTS, "--out", tmp_path / "out")
    assert (code, "cells measured" in said) == (0, True)
    assert {"loss"}.isdisjoint(whats(tmp_path / "out"))


def whats(out: Path) -> set[str]:
    return {str(a.closing.spec["measurement"]["what"]) for a in read(out).cells.values()}  # type: ignore[index]


def stopping(after: int) -> Callable[..., Iterator[Message]]:
    """Work that Ctrl-C ends after some cells."""

    def stop(tasks: Sequence[Mapping[str, object]], slots: Sequence[object]) -> Iterator[Message]:
        for done, message in enumerate(work(tasks, slots)):
            if done == after:
                raise KeyboardInterrupt
            yield message

    return stop


@pytest.mark.parametrize(
    "arguments",
    [
        ["probe", *WEIGHTS],
        ["probe", "llama", "--data", "text:words.txt", "--set", "tensors=[]", "--set", "sensitivity=[]"],
    ],
    ids=["weights alone", "treatments"],
)
def test_a_run_that_was_stopped_goes_on_where_it_was(
    here: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str]
) -> None:
    typed = [*arguments, "--out", tmp_path / "out", "--quiet"]
    typed += [] if "--weights-only" in arguments else [*QUICK[-2:], f"--set=treatments={TREATMENTS}"]
    monkeypatch.setattr(suite_run, "work", stopping(after=5))
    code, _, err = here(*typed)
    assert (code, "the same command goes on from there" in err) == (130, True)
    records = tmp_path / "out" / "records.jsonl"
    before = records.read_bytes()
    kept = {cell for cell, a in read(tmp_path / "out").cells.items() if a.closing.status == "measured"}
    assert len(kept) in (4, 5)  # a kernel that fits no layer is not kept
    asked: list[str] = []

    def watched(tasks: Sequence[Mapping[str, Sequence[str]]], slots: Sequence[object]) -> Iterator[Message]:
        asked.extend(cell for task in tasks for cell in task["wanted"])
        yield from work(tasks, slots)

    monkeypatch.setattr(suite_run, "work", watched)
    code, _, err = here(*typed)
    assert code == 0, err
    assert records.read_bytes().startswith(before)
    cells = read(tmp_path / "out").cells
    assert kept.isdisjoint(asked)
    assert kept | set(asked) == set(cells)
    assert all(a.closing.status in ("measured", "unsupported") for a in cells.values())


TREATMENTS = "[{scope: weights, quantizers: [int8/channel, int4/channel, mxfp4]}, {scope: kv, quantizers: int8/token}]"


def test_weights_are_resumed_tensor_by_tensor(here: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that cannot be read any more costs only the matrices that were not measured."""
    typed = ["probe", *WEIGHTS, "--out", tmp_path / "out", "--quiet"]
    monkeypatch.setattr(suite_run, "work", stopping(after=20))
    here(*typed)
    sites = {tuple(a.closing.spec["measurement"].get("sites", ())) for a in read(tmp_path / "out").cells.values()}  # type: ignore[attr-defined, index]
    matrices = {site for site in sites if site and site[0].startswith("blocks.")}
    assert all(len(site) == 1 for site in matrices)
    assert 1 <= len(matrices) < 14


# What goes well


def test_an_unknown_family_goes_by_the_names_of_its_modules_and_says_so(here: Command, tmp_path: Path) -> None:
    code, listed, _ = here("ls", "sites", "stranger")
    assert code == 0
    assert listed.startswith("gptj is no family that qbench knows: weights go by their names in the file,")
    assert "weight  transformer.h.0.attn.k_proj.weight" in listed
    tensors = '--set=tensors=[{kind: weight}, {kind: activation, sites: "**.fc_in", windows: 2}]'
    code, _, err = here("probe", "stranger", "--data", "text:words.txt", *QUICK, tensors, "--out", tmp_path / "out")
    assert code == 0, err
    assert "model_type 'gptj' has no site names: its places go by module names" in err
    sites = {record.site for a in read(tmp_path / "out").cells.values() for record in a.records}
    assert {"transformer.h.0.attn.k_proj.weight", "transformer.h.0.mlp.fc_in"} <= sites


@pytest.mark.parametrize(
    "asked",
    [
        ["--set=treatments=[{scope: weights, quantizers: [int8/channel]}]"],
        ["--set=tensors=[{kind: activation, windows: 2}]"],
        [],  # a kernel asks for the weights too
    ],
    ids=["treatment", "activations", "kernel"],
)
def test_everything_in_an_unknown_family_can_be_asked_for(here: Command, tmp_path: Path, asked: list[str]) -> None:
    code, _, err = here("probe", "stranger", "--data", "text:words.txt", *QUICK, *asked, "--out", tmp_path / "out")
    assert code == 0, err


def test_sites_of_a_known_family_are_its_places(here: Command) -> None:
    code, listed, _ = here("ls", "sites", "llama")
    lines = listed.splitlines()
    assert code == 0
    assert "activation  blocks.1.mlp.hidden" in lines
    assert "weight      blocks.0.attn.k" in lines


def test_two_models_are_compared(here: Command, tmp_path: Path) -> None:
    code, _, err = here("compare", "llama", "stranger", "--data", "text:words.txt", "--set", "windows=2")
    assert code == 0, err
    runs = read(tmp_path / "results" / "compare-stranger").cells.values()
    (candidate,) = (a for a in runs if a.closing.spec["arm"] == "candidate" and "kld" in a.records[0].values)
    assert candidate.records[0].values["kld"] > 0


def test_a_saved_reference_stands_in_for_its_model(here: Command, tmp_path: Path) -> None:
    code, said, err = here(*["reference", "save", "llama", "--data", "text:words.txt", "--windows", "2"])
    assert (code, err) == (0, "")
    assert said.startswith("llama.reference.safetensors: 2 windows of context 64 of text:words.txt")
    code, _, err = here("compare", "llama.reference.safetensors", "llama")
    assert code == 0, err
    (loss,) = (a for a in read(tmp_path / "results" / "compare-llama").cells.values() if "kld" in a.records[0].values)
    assert loss.records[0].values["kld"] == pytest.approx(0, abs=1e-9)
    assert str(tmp_path) not in (tmp_path / "results/compare-llama/records.jsonl").read_text()


def test_an_image_classifier_is_probed_with_the_suite_for_images(here: Command, tmp_path: Path) -> None:
    code, _, err = here("probe", "vit", "--profile", "smoke", "--set=tensors=[]", "--out", tmp_path / "out")
    assert code == 0, err
    assert "loss" in whats(tmp_path / "out")


def test_image_classifiers_are_compared_on_images(here: Command) -> None:
    code, _, err = here("compare", "vit", "vit", "--set", "windows=8")
    assert code == 0, err


def test_a_language_model_is_not_judged_by_images(here: Command, tmp_path: Path) -> None:
    code, _, err = here("probe", "llama", "--data", "digits", *QUICK, "--out", tmp_path / "out")
    (line,) = complaints(err)
    assert code in (2, 4)
    assert "trained here" not in line


def test_a_revision_reaches_the_run(here: Command, models: Path, offline: Path) -> None:
    hub = offline / "models--owner--model"
    for commit in ("a" * 40, "b" * 40):
        shutil.copytree(models / "llama", hub / "snapshots" / commit)
    config = hub / "snapshots" / ("a" * 40) / "config.json"
    config.write_text(config.read_text().replace('"rms_norm_eps"', '"another": 1, "rms_norm_eps"'))
    (hub / "refs").mkdir()
    (hub / "refs" / "main").write_text("b" * 40)
    typed = ["probe", "owner/model", "--data", "text:words.txt", *QUICK, "--dry-run"]
    newest = here(*typed)
    pinned = here(*typed, "--revision", "a" * 40)
    assert (newest[0], pinned[0]) == (0, 0)
    assert newest[1] != pinned[1]
