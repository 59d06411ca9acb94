"""Planned looks in a suite: a further one adds cells for what it adds, and changes none that was measured."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from stub_models import PLACES, stub

from qbench.data.documents import Document
from qbench.data.passages import Cut, passages
from qbench.data.vision import digits
from qbench.stats.looks import added
from qbench.suite.cells import Cell, Environment, Found
from qbench.suite.expand import expand, groups
from qbench.suite.schema import BadSuite, Suite, load

TEXT = """\
suite: judged
version: 1
question: q
data: text:words.txt
models:
  - {name: model, load: ./model}
tensors:
  - {kind: activation, sites: kv, windows: 4, quantizers: [int8/token]}
evaluate: {windows: 8}
treatments:
  - {scope: weights, quantizers: [int4/channel]}
  - {name: KV8, assign: {"activation:kv": int8/token}}
kernels: [bitsandbytes/nf4]
"""
TRAINED = """\
suite: trained
version: 1
question: q
models:
  - {name: one, arch: residual}
evaluate: {windows: 8}
"""
WEIGHTS = ("embed", *(f"blocks.0.{place}" for place in PLACES), "logits")
MODEL = {"arch": "pretrained", "digest": "d", "task": "causal-lm", "layers": 1, "context": 64}
HERE = Environment(
    data_digest="abc",
    torch_version="2",
    device="cpu",
    found={"model": Found(model=MODEL, source="/somewhere/model", weights=WEIGHTS)},
    libraries={"bitsandbytes": "0.50"},
)


@pytest.fixture
def read(tmp_path: Path) -> Callable[..., Suite]:
    stub(tmp_path / "model")
    (tmp_path / "words.txt").write_text("some words")

    def read(evaluate: str, text: str = TEXT) -> Suite:
        path = tmp_path / "suite.yaml"
        path.write_text(text.replace("{windows: 8}", evaluate))
        return load(path)

    return read


def cells(suite: Suite) -> list[Cell]:
    return [cell for cell in expand(suite, HERE) if cell.arm == "model"]


def test_one_number_of_windows_is_no_plan(read: Callable[..., Suite]) -> None:
    plain = cells(read("{windows: 8}"))
    assert [cell.id for cell in cells(read("{windows: [8]}"))] == [cell.id for cell in plain]
    assert not any("looks" in cell.measurement.passage for cell in plain)


def test_a_further_look_adds_losses_and_keeps_every_cell(read: Callable[..., Suite]) -> None:
    first, second = (cells(read(f"{{windows: [8, 20, 50], look: {look}}}")) for look in (1, 2))
    assert [cell.id for cell in second[: len(first)]] == [cell.id for cell in first]
    more = second[len(first) :]
    assert [cell.title for cell in more] == ["loss, unquantized", "loss, int4/channel @ weights", "loss, KV8"]
    assert {cell.measurement.windows for cell in more} == {12}
    assert {cell.measurement.windows for cell in first if cell.measurement.what == "loss"} == {8}
    assert [len(group) for group in groups(second)] == [len(first), len(more)]  # of a look, its own windows
    assert len({cell.id for cell in second}) == len(second)


@pytest.mark.parametrize(
    ("evaluate", "text", "said"),
    [
        ("{windows: [8, 4]}", TEXT, "larger than the one before"),
        ("{windows: [8, 8]}", TEXT, "larger than the one before"),
        ("{windows: []}", TEXT, "at least 1"),
        ("{windows: [1, 2, 3, 4, 5, 6]}", TEXT, "at most 5"),
        ("{windows: 0}", TEXT, "at least 1"),
        ("{windows: x}", TEXT, "number"),
        ("{windows: [8, 20], look: 3}", TEXT, "2 numbers of windows are planned"),
        ("{windows: 8, look: 2}", TEXT, "1 numbers of windows are planned"),
        ("{windows: [8, 20]}", TRAINED, "seeds are the sample here"),
        ("{windows: 8, look: 1}", TRAINED, "for models that are loaded"),
    ],
)
def test_a_plan_that_is_none_is_a_mistake(read: Callable[..., Suite], evaluate: str, text: str, said: str) -> None:
    with pytest.raises(BadSuite) as caught:
        read(evaluate, text)
    assert any(said in one.text for one in caught.value.mistakes), caught.value.mistakes
    assert all("evaluate" in one.path for one in caught.value.mistakes)


def test_the_windows_of_looks_are_parts_of_one_layout() -> None:
    found = passages([Document("a", "abcdefgh" * 40, "a")], lambda text: [ord(c) for c in text], Cut(16, 30))
    parts = [found.only(added((10, 30), look)) for look in (1, 2)]
    assert [len(part) for part in parts] == [10, 20]
    assert parts[0].slices == ("a",) * 10
    assert parts[0].digest != parts[1].digest
    for look, part in enumerate(parts, start=1):
        assert np.array_equal(part.tokens, found.tokens[added((10, 30), look)])
        assert np.array_equal(part.bytes, found.bytes[added((10, 30), look)])
    images = digits()
    some = images.only(added((10, 30), 2))
    assert np.array_equal(some.labels, images.labels[added((10, 30), 2)])
    assert some.digest not in (images.digest, images.only(added((10, 30), 1)).digest)
