"""YAML text as a tree with places: what is read, what is refused, and where."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qbench.suite.document import Node, parse
from qbench.suite.mistakes import Mark, Mistake


def values(text: str) -> object:
    tree, mistakes = parse(text, "x.yaml")
    assert not mistakes
    assert tree is not None
    return tree.plain()


def mistakes_in(text: str | Node) -> list[str]:
    assert isinstance(text, str)
    return [str(mistake) for mistake in parse(text, "x.yaml")[1]]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-3", 0.001),
        ("-2.5E+2", -250.0),
        (".5", 0.5),
        ("07", 7),
        ("+3", 3),
        ("no", "no"),
        ("on", "on"),
        ("12:30", "12:30"),
        ("1_000", "1_000"),
        ("2024-01-01", "2024-01-01"),
        ("true", True),
        ("False", False),
        ("~", None),
        ("null", None),
        ("'1'", "1"),
        ('"true"', "true"),
        ("1.2.3", "1.2.3"),
    ],
)
def test_scalars_are_read_as_yaml_1_2_reads_them(text: str, value: object) -> None:
    read = values(f"a: {text}")
    assert read == {"a": value}
    assert type(read["a"]) is type(value)  # pyright: ignore[reportIndexIssue]


def test_every_value_and_key_knows_its_place() -> None:
    tree, _ = parse("a:\n  b: [1, {c: 2}]\n", "x.yaml")
    assert tree is not None
    a = tree.value["a"]  # pyright: ignore
    b = a.value["b"]
    assert (str(a.key), str(b.key), str(b.mark)) == ("x.yaml:1:1", "x.yaml:2:3", "x.yaml:2:6")
    assert str(b.value[1].value["c"].mark) == "x.yaml:2:14"


@pytest.mark.parametrize(
    ("text", "mistake"),
    [
        ("a: 1\na: 2", "x.yaml:2:1: a: given twice; first at line 1"),
        ("a: !!python/object/apply:os.system [x]", "x.yaml:1:4: a: the tag 'tag:yaml.org,2002:python/object/apply"),
        ("a: !!str 1", "x.yaml:1:4: a: the tag 'tag:yaml.org,2002:str'"),
        ("a: &x 1", "x.yaml:1:4: a: an anchor"),
        ("a: 1\nb: *x", "x.yaml:2:4: b: an alias"),
        ("<<: {a: 1}", "x.yaml:1:1: a merge key; write the keys out"),
        ("? [a]\n: 1", "x.yaml:1:3: a key that is not text"),
        ("a: .inf", "x.yaml:1:4: a: '.inf' is not a finite number"),
        ("a: 1e999", "x.yaml:1:4: a: '1e999' is not a finite number"),
        ("a: .NaN", "x.yaml:1:4: a: '.NaN' is not a finite number"),
        ("a: 1234567890123456789", "x.yaml:1:4: a: a whole number of more than 18 digits"),
        ('a: "\\0"', "x.yaml:1:4: a: character U+0000 is not text"),
        ("a: b\x07", "x.yaml:1:5: character U+0007 is not text"),
        ("a: 1\n\tb: 2", "x.yaml:2:1: not YAML: while scanning a plain scalar found a tab"),
        ("a: [1", "x.yaml:2:1: not YAML: while parsing a flow sequence"),
        ("a: 1\nb\nc: 2", "not YAML"),
        ("", "x.yaml:1:1: empty"),
        ("# only a comment\n", "x.yaml:1:1: empty"),
        ("a: 1\n---\nb: 2", "x.yaml:2:1: a second document; one file holds one suite"),
        ("[" * 40, "x.yaml:1:22: nested more than 20 levels deep"),
    ],
)
def test_what_surprises_in_yaml_is_a_mistake_with_its_place(text: str, mistake: str) -> None:
    found = mistakes_in(text)
    assert any(mistake in line for line in found), found


def test_a_tab_is_named_with_its_remedy() -> None:
    assert "indent with spaces" in mistakes_in("a:\n\t- 1")[0]


def test_all_mistakes_are_found_in_one_reading() -> None:
    assert len(mistakes_in("a: 1\na: &x .inf\nb: !!int 3\n")) == 4


def test_a_bomb_of_aliases_does_not_go_off() -> None:
    lines = ["a0: &a0 [x, x]"] + [f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}, *a{i - 1}]" for i in range(1, 60)]
    tree, mistakes = parse("\n".join(lines), "x.yaml")
    assert tree is not None
    assert len(mistakes) == 60 + 3 * 59


def test_text_without_lines_of_its_own_has_the_place_it_is_given() -> None:
    assert parse("[1, .inf]", Mark("--set seeds"))[1] == [
        Mistake(Mark("--set seeds"), "1", "'.inf' is not a finite number")
    ]


def test_a_mistake_is_one_line_whatever_the_key() -> None:
    assert all("\n" not in line for line in mistakes_in('"a\\nb": .inf\n'))


SAFE = st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=12)


JSON = st.recursive(
    SAFE
    | st.integers(-(10**15), 10**15)
    | st.booleans()
    | st.none()
    | st.floats(allow_nan=False, allow_infinity=False),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(SAFE, inner, max_size=4),
    max_leaves=12,
)


@given(JSON)
def test_json_is_read_as_json(value: object) -> None:
    assert json.loads(json.dumps(values(json.dumps({"a": value})))) == {"a": value}
