"""Whatever a suite file holds, reading it gives a suite or names its mistakes, and soon."""

import re
from collections.abc import Callable
from pathlib import Path
from time import process_time

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from qbench.suite.cells import Environment
from qbench.suite.expand import expand
from qbench.suite.schema import BadSuite, Suite, load
from qbench.suite.shipped import shipped

HERE = Environment(data_digest="abc", torch_version="2.13.0", device="cpu")
LONGEST = 2.0  # seconds of one reading, on a slow and busy machine
TEXTS = [suite.path.read_text() for suite in shipped()]
PLACE = re.compile(r"fuzz\.yaml(:\d+:\d+)?: |--set |and \d+ more")

ODD_SCALARS = [
    "",
    "~",
    "true",
    "no",
    "-1",
    "0",
    "1e3",
    "1e-3",
    ".inf",
    ".nan",
    "9" * 17,
    "9" * 30,
    "-" + "9" * 17,
    "0x10",
    "1_0",
    "'",
    '"',
    "[",
    "]",
    "{",
    "}",
    "[]",
    "{}",
    "[[[[1]]]]",
    "{a: {b: {c: 1}}}",
    "&a x",
    "*a",
    "!!python/name:os.system x",
    "!x 1",
    "<<",
    "${steps}",
    "${none}",
    "x${steps}",
    "${",
    "|",
    ">-",
    "? a",
    "- - -",
    "\t",
    "%YAML 1.2",
    "---",
    "...",
    "é",
    "\u202e",
    "😀",
    "\u2028",
    "\ufeff",
    '"\\0"',
    '"\\ud800"',
    "a" * 300,
    "*",
    "**",
    "blocks.*.out",
    "int4/block:0",
    "int4/block:999999999",
    "lloyd9/token",
    "text:/",
    "text:.",
    "calibration",
    "{arch}",
    "{",
    "0.1",
    "above 1e9",
    "[1, 2]",
]

Edit = Callable[[str], str]


def _on_line(change: Callable[[list[str], int], list[str]], at: float) -> Edit:
    def edit(text: str) -> str:
        lines = text.split("\n")
        i = min(int(at * len(lines)), len(lines) - 1)
        return "\n".join(lines[:i] + change(lines, i) + lines[i + 1 :])

    return edit


def _value(new: str, pick: float) -> Callable[[list[str], int], list[str]]:
    """One word of the line, or all that follows its first colon, becomes `new`."""

    def change(lines: list[str], i: int) -> list[str]:
        words = list(re.finditer(r"[^\s,:{}\[\]]+", lines[i]))
        if pick > 0.7 or not words:
            return [lines[i].partition(":")[0] + ": " + new]
        word = words[int(pick / 0.7 * len(words)) if pick < 0.7 else -1]
        return [lines[i][: word.start()] + new + lines[i][word.end() :]]

    return change


share = st.floats(0, 1)
edits: st.SearchStrategy[Edit] = st.one_of(
    st.builds(_on_line, st.builds(_value, st.sampled_from(ODD_SCALARS) | st.text(max_size=12), share), share),
    st.builds(_on_line, st.just(lambda lines, i: []), share),
    st.builds(_on_line, st.just(lambda lines, i: [lines[i], lines[i]]), share),
    st.builds(_on_line, st.just(lambda lines, i: ["  " + lines[i]]), share),
    st.builds(_on_line, st.just(lambda lines, i: [lines[i][2:]]), share),
    st.builds(_on_line, st.builds(lambda depth: lambda lines, i: ["x: " + "[" * depth], st.integers(1, 3000)), share),
    st.builds(
        lambda at, new: lambda text: text[: int(at * len(text))] + new + text[int(at * len(text)) :],
        share,
        st.text(max_size=8),
    ),
    st.builds(lambda at: lambda text: text[: int(at * len(text))], share),
)


def read(path: Path, **options: object) -> Suite | None:
    """The suite, or None where its mistakes were named properly; anything else is a failure."""
    start = process_time()
    suite, lines = None, list[str]()
    try:
        suite = load(path, **options)  # pyright: ignore[reportArgumentType]
    except BadSuite as bad:
        lines = str(bad).split("\n")
    assert process_time() - start < LONGEST
    assert (suite is None) == bool(lines)
    assert [line for line in lines if not PLACE.match(line.removeprefix(f"{path.parent}/"))] == []
    return suite


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fuzz") / "fuzz.yaml"


FUZZ = settings(deadline=None, suppress_health_check=list(HealthCheck), database=None, derandomize=True)


@settings(FUZZ, max_examples=1500)
@given(st.sampled_from(TEXTS), st.lists(edits, min_size=1, max_size=4))
def test_edited_suites(path: Path, text: str, changes: list[Edit]) -> None:
    for change in changes:
        text = change(text)
    path.write_bytes(text.encode(errors="surrogatepass"))
    suite = read(path)
    if suite is not None:
        assert len(expand(suite, HERE)) <= suite.budget.cells + 200  # the calibration arm comes on top


@settings(FUZZ, max_examples=400)
@given(st.binary(max_size=80), share, st.sampled_from(TEXTS))
def test_bytes(path: Path, junk: bytes, at: float, text: str) -> None:
    content = text.encode()
    where = int(at * len(content))
    path.write_bytes(content[:where] + junk + content[where:] if at < 0.9 else junk)
    read(path)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)


@settings(FUZZ, max_examples=300)
@given(st.sampled_from(["seeds", "spec.width", "training.lr", "models", "tensors", "effects", "steps", "data"]), JSON)
def test_overrides_of_any_type(path: Path, key: str, value: object) -> None:
    path.write_text(TEXTS[0])
    read(path, overrides=[(key, str(value))])
