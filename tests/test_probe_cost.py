"""What probing a model costs: multiples of a forward pass, memory, and that neither moves a number."""

import ctypes
import gc
import json
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import random_models
import torch
from live_memory import peak_bytes
from torch import Tensor, nn

from qbench.capture import read, write
from qbench.capture.place import Place
from qbench.capture.places import matrices, places, select
from qbench.capture.write import quantized
from qbench.data.passages import Windows
from qbench.evaluate import divergence as divergence_module
from qbench.evaluate.divergence import divergence, divergences
from qbench.evaluate.likelihood import largest, likelihood, numerical_floor
from qbench.evaluate.pieces import MOST
from qbench.evaluate.reference import references
from qbench.models.hub import HubModel
from qbench.quant.quantizer import build
from qbench.results.record import Record
from qbench.suite import pretrained, subject
from qbench.suite.cells import Cell, Measurement
from qbench.suite.judge import BATCH as CAPTURED
from qbench.suite.judges import Texts
from qbench.suite.pretrained import TOGETHER, pretrained_answers
from qbench.suite.subject import Machine
from qbench.suite.tally import Tally
from qbench.suite.value import Treatment

TWELVE = tuple(f"int{bits}/{by}" for by in ("tensor", "token", "block:32") for bits in (3, 4, 6, 8))
WIDTH, INNER, LAYERS, VOCABULARY, CONTEXT = 128, 352, 4, 4096, 128
COUNT = 16
TREATMENTS = (
    {"weight:weights": "int8/channel"},
    {"weight:weights": "mxfp4"},
    {"activation:linear": "int8/token"},
    {"weight:weights": "int4/block:32", "activation:linear": "int4/token"},
)


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def model() -> HubModel:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=WIDTH,
        intermediate_size=INNER,
        num_hidden_layers=LAYERS,
        num_attention_heads=4,
        max_position_embeddings=CONTEXT,
    )
    return HubModel(LlamaForCausalLM(config), "causal-lm")


def windows_of(count: int = COUNT, vocabulary: int = VOCABULARY, context: int = CONTEXT) -> Windows:
    tokens = torch.randint(5, vocabulary, (count, context + 1), generator=torch.Generator().manual_seed(1))
    first = torch.zeros(count, dtype=torch.int64)
    return Windows(tokens, first, np.full(count, float(context)), ("text",) * count)


def treated(model: HubModel, assign: Mapping[str, str]) -> AbstractContextManager[object]:
    at: dict[str, Any] = {}
    of: dict[str, Any] = {}
    for key, name in assign.items():
        kind, _, pattern = key.partition(":")
        if kind == "weight":
            there = matrices(model)
            of |= {site: (there[site], build(name, channel_axis=0)) for site in select(model, "weight", pattern)}
        else:
            where = places(model)
            at |= {site: (where[site], build(name)) for site in select(model, "activation", pattern)}
    return quantized(at, of)


def linear(model: HubModel) -> dict[str, Place]:
    there = places(model)
    return {site: there[site] for site in select(model, "activation", "linear")}


def tally(model: HubModel, windows: Windows) -> Tally:
    found = Tally("activation", TWELVE, shape=True)
    inputs = [part[:, :-1] for part in windows.tokens.split(CAPTURED)]
    read.activations(model.hidden, linear(model), inputs, found.visit)
    return found


def ratio(run: Callable[[], object], unit: Callable[[], object], turns: int = 3) -> float:
    """CPU seconds of `run` over those of `unit`, the least of several of each, taken in turns."""
    seconds: list[list[float]] = [[], []]
    for _ in range(turns):
        for times, one in zip(seconds, (run, unit), strict=True):
            start = time.process_time()
            one()
            times.append(time.process_time() - start)
    return min(seconds[0]) / min(seconds[1])


def forward(model: HubModel, windows: Windows) -> Callable[[], None]:
    @torch.no_grad()
    def run() -> None:
        for part in windows.tokens.split(CAPTURED):
            model.hf(input_ids=part[:, :-1])

    return run


def test_errors_and_shapes_of_twelve_formats_cost_less_than_three_forwards(model: HubModel) -> None:
    """The formats of a site share its tensor and one pass over it; docs/performance.md has wider models."""
    windows = windows_of()
    assert ratio(lambda: tally(model, windows), forward(model, windows)) < 3


def test_treatments_cost_about_a_forward_each(model: HubModel) -> None:
    """benchmarks/probe.py holds the bound of 1.3 at real sizes; here what does not grow with the text weighs more."""
    windows = windows_of()
    judge = Texts(windows)

    def run() -> None:
        every = [partial(treated, model, assign) for assign in TREATMENTS]
        judge.together(model, every, judge.reference(model))

    assert ratio(run, forward(model, windows)) < 2 * (len(TREATMENTS) + 1)


def test_all_treatments_share_the_logits_of_the_reference(model: HubModel) -> None:
    windows = windows_of(4)
    reference = references(model, windows)
    rows = {"ours": 0, "theirs": 0}
    head = reference.head

    def count(states: Tensor) -> Tensor:
        rows["theirs"] += len(states)
        return head(states)

    hook = model.hf.get_output_embeddings().register_forward_hook(
        lambda _m, given, _o: rows.__setitem__("ours", rows["ours"] + len(given[0]))
    )
    object.__setattr__(reference, "head", count)
    divergences(model, [nullcontext] * 3, windows, reference)
    hook.remove()
    assert rows == {"ours": 3 * 4 * CONTEXT, "theirs": 4 * CONTEXT}


@pytest.mark.parametrize("most", [MOST, 1], ids=["one run", "a run for each batch"])
def test_together_gives_the_numbers_of_each_alone(model: HubModel, monkeypatch: pytest.MonkeyPatch, most: int) -> None:
    monkeypatch.setattr(divergence_module, "MOST", most)
    windows = windows_of(10)
    reference = references(model, windows, batch=4)
    every = [partial(treated, model, assign) for assign in TREATMENTS]
    found = divergences(model, every, windows, reference, batch=4)
    for assign, one in zip(TREATMENTS, found, strict=True):
        with treated(model, assign):
            alone = divergence(model, windows, reference, batch=4)
        for name, column in alone.each.items():
            np.testing.assert_array_equal(one.each[name], column, err_msg=f"{assign} {name}")
    assert len({one.values()["kld"] for one in found}) == len(TREATMENTS)


def test_the_largest_logit_is_the_one_that_torch_names() -> None:
    x = torch.randn(64, 1000, generator=torch.Generator().manual_seed(0)).round(decimals=1)  # with ties
    x[3, 7] = float("nan")
    x[4] = -torch.inf
    assert torch.equal(largest(x), x.argmax(-1))
    assert torch.equal(largest(x[5:].bfloat16()), x[5:].bfloat16().argmax(-1))


# Memory


def test_tensors_are_measured_in_the_memory_of_one_batch_at_one_site(model: HubModel) -> None:
    windows = windows_of()
    site = 4 * CAPTURED * CONTEXT * INNER
    tally(model, windows)
    plain = peak_bytes(forward(model, windows))
    assert peak_bytes(lambda: tally(model, windows)) < plain + site


def test_losses_are_measured_in_the_memory_of_a_batch_and_a_piece_of_logits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a vocabulary whose logits take ten times as much as all states of the model together."""
    monkeypatch.setattr(write, "IN_MEMORY", 0)
    model = HubModel(random_models.build("llama"), "causal-lm")
    wide = nn.Parameter(torch.randn(40_000, random_models.WIDTH, generator=torch.Generator().manual_seed(0)))
    model.hf.get_output_embeddings().weight = wide
    model.vocabulary = len(wide)
    windows = windows_of(64, random_models.VOCABULARY, 48)
    judge = Texts(windows)
    reference = judge.reference(model)
    every = [partial(treated, model, assign) for assign in TREATMENTS]
    logits = 4 * windows.tokens[:, 1:].numel() * len(wide)
    piece = 4 * 128 * len(wide)  # 2^18 logits are less than the 128 rows that a piece has at least
    states = 4 * 64 * 48 * random_models.WIDTH
    hidden = peak_bytes(lambda: model.hidden(windows.tokens[:, :-1]))
    found = peak_bytes(lambda: judge.together(model, every, reference))
    assert found < hidden + TOGETHER * states + 7 * piece < logits / 2


def test_no_second_copy_of_the_weights_stays_in_memory(model: HubModel, monkeypatch: pytest.MonkeyPatch) -> None:
    weights = sum(matrices(model)[site].read().nbytes for site in select(model, "weight", "weights"))
    largest_matrix = 4 * WIDTH * INNER
    before = {name: value.clone() for name, value in model.named_parameters()}

    def run() -> None:
        with treated(model, TREATMENTS[0]):
            pass

    def held() -> int:
        """Anonymous memory while the treatment is on."""
        gc.collect()
        ctypes.CDLL(None).malloc_trim(0)
        start = anonymous()
        with treated(model, TREATMENTS[0]):
            ctypes.CDLL(None).malloc_trim(0)
            return anonymous() - start

    run()
    assert held() > 0.8 * weights
    monkeypatch.setattr(write, "IN_MEMORY", 0)
    assert held() < 0.2 * weights + largest_matrix
    for name, value in model.named_parameters():
        assert torch.equal(value, before[name]), name


def test_weights_come_back_to_the_bit_from_a_file(monkeypatch: pytest.MonkeyPatch) -> None:
    """GPT-2 keeps them transposed; the first fits into memory, the others do not."""
    monkeypatch.setattr(write, "IN_MEMORY", 4 * 32 * 96)
    model = HubModel(random_models.build("gpt2").to(torch.bfloat16), "causal-lm")
    before = {name: value.clone() for name, value in model.named_parameters()}

    def fail() -> None:
        with treated(model, {"weight:weights": "int3/channel"}):
            changed = [name for name, value in model.named_parameters() if not torch.equal(value, before[name])]
            raise ZeroDivisionError(len(changed))

    with pytest.raises(ZeroDivisionError, match=f"^{4 * random_models.LAYERS}$"):
        fail()
    for name, value in model.named_parameters():
        assert torch.equal(value, before[name]), name


def test_a_full_disk_leaves_the_weights_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    class Full:
        def __enter__(self) -> "Full":
            return self

        def __exit__(self, *_: object) -> None: ...

        def seek(self, *_: int) -> int:
            return 0

        def write(self, _: object) -> int:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(write, "IN_MEMORY", 0)
    monkeypatch.setattr(write, "TemporaryFile", lambda **_: Full())
    model = HubModel(random_models.build("llama"), "causal-lm")
    before = {name: value.clone() for name, value in model.named_parameters()}
    with treated(model, TREATMENTS[0]):
        assert not torch.equal(
            model.hf.model.layers[0].mlp.up_proj.weight, before["hf.model.layers.0.mlp.up_proj.weight"]
        )
    assert all(torch.equal(value, before[name]) for name, value in model.named_parameters())


def anonymous() -> int:
    """Bytes of this process that no file backs."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon"))


# The arithmetic: how windows are put together does not matter


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_batches_do_not_change_a_loss_beyond_the_floor(family: str) -> None:
    """The floor compares batches of 32 and of 7 and float64; other sizes must not differ by more than twice that."""
    model = HubModel(random_models.build(family), "causal-lm")
    windows = windows_of(16, random_models.VOCABULARY, 32)
    found = likelihood(model, windows)
    floor = numerical_floor(model, windows, found)
    for batch in (1, 2, 3, 5, 16):
        other = likelihood(model, windows, batch)
        assert np.abs(other.losses - found.losses).max() <= 2 * floor
    assert 0 < floor < 1e-5


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_padding_behind_does_not_change_a_loss_beyond_the_floor(family: str) -> None:
    """A causal model cannot look ahead: tokens after a window, which nobody scores, leave its predictions alone."""
    model = HubModel(random_models.build(family), "causal-lm")
    windows = windows_of(8, random_models.VOCABULARY, 24)
    found = likelihood(model, windows)
    floor = numerical_floor(model, windows, found)
    padding = torch.full((8, 16), 3)
    padded = torch.cat([windows.tokens, padding], dim=1)
    with torch.no_grad():
        states = model.hidden(padded[:, :-1])[:, : windows.context]
        logits = model.head(states).flatten(0, 1)
    each = nn.functional.cross_entropy(logits, windows.tokens[:, 1:].flatten(), reduction="none").double()
    assert np.abs(each.view(8, -1).mean(1).numpy() - found.losses).max() <= 2 * floor


# The suite's way


def cell(folder: Path, measurement: Measurement, data: Path) -> Cell:
    config = json.loads((folder / "config.json").read_text())
    return Cell(
        suite="test",
        version=1,
        arm="model",
        model={
            "arch": "pretrained",
            "task": "masked-lm" if config["model_type"] in random_models.MASKED else "causal-lm",
            "dtype": "float32",
            "attention": None,
            "model_type": config["model_type"],
        },
        training=None,
        seed=0,
        data=f"text:{data}",
        data_digest="",
        torch_version="",
        device="cpu",
        plugins_digest="",
        measurement=measurement,
        revisions={},
        sources={"model": str(folder)},
    )


@pytest.fixture(scope="module")
def masked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return random_models.folder("bert", tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return random_models.folder("llama", tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text("".join(np.random.default_rng(0).choice(list("abcdefgh ijkl.\n"), 3000)))
    return path


PASSAGE = {"context": 32, "bos": "auto"}
ASSIGNED = (
    {},
    *TREATMENTS,
    {"weight:logits": "int4/channel"},
    {"activation:logits": "int4/token"},
    {"weight:weights": "nf4/block:64"},
)


def loss_cells(folder: Path, text: Path) -> list[Cell]:
    def of(assign: Mapping[str, str]) -> Measurement:
        treatment = Treatment(name=str(assign), assign=assign)
        return Measurement(what="loss", windows=20, split="all", passage=PASSAGE, treatment=treatment)

    return [cell(folder, of(assign), text) for assign in ASSIGNED]


def records(cells: list[Cell]) -> dict[str, tuple[Record, ...]]:
    found = {done.cell.id: done for done in pretrained_answers(cells, Machine("cpu"))}
    assert [done.error for done in found.values()] == [""] * len(cells)
    return {name: done.records for name, done in found.items()}


def test_a_suite_gets_the_same_records_however_many_treatments_go_together(
    folder: Path, text: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cells = loss_cells(folder, text)
    together = records(cells)
    monkeypatch.setattr(pretrained, "TOGETHER", 1)
    alone = records(cells)
    assert together == alone
    increases = [together[one.id][0].values.get("loss_increase", 0.0) for one in cells]
    assert len(set(increases)) == len(cells)


def test_a_masked_model_too(masked: Path, text: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cells = [one for one in loss_cells(masked, text) if "logits" not in one.measurement.title]
    together = records(cells)
    monkeypatch.setattr(pretrained, "TOGETHER", 1)
    assert records(cells) == together


def test_a_treatment_of_the_head_is_seen_by_the_loss(folder: Path, text: Path) -> None:
    """It cannot share logits: were its head put back before the logits are made, it would cost nothing."""
    cells = loss_cells(folder, text)
    found = records([one for one in cells if "logits" in one.measurement.title or not one.measurement.treatment.assign])
    assert sum(one[0].values.get("kld", 0.0) > 1e-4 for one in found.values()) == 2


def test_each_text_is_tokenized_once(folder: Path, text: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read_texts: list[str] = []
    plain = subject.Words._read

    def counted(self: Any, given: str) -> Any:
        if given not in self._known:
            read_texts.append(given)
        return plain(self, given)

    monkeypatch.setattr(subject.Words, "_read", counted)
    tensors = {"kind": "activation", "sites": ("linear",), "windows": 4, "split": "all", "passage": PASSAGE}
    shape = cell(folder, Measurement(what="shape", **tensors), text)
    assert len(records([shape, *loss_cells(folder, text)[:2]])) == 3
    assert read_texts == [text.read_text()]
