"""Names made from content."""

import hashlib
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qbench.results import digest

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=10,
)


def test_published_digests() -> None:
    # FIPS 180-2, appendix B.1, and the digest of no data at all.
    assert digest.of_bytes(b"abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert digest.of_bytes(b"") == "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"


@given(JSON)
def test_canonical_text_says_the_same_value(value: object) -> None:
    assert json.loads(digest.canonical(value)) == value
    assert digest.of(value) == hashlib.sha256(digest.canonical(value).encode("ascii")).hexdigest()


@given(st.dictionaries(st.text(), JSON, min_size=2))
def test_order_of_keys_does_not_matter(value: dict[str, object]) -> None:
    assert digest.of(dict(reversed(value.items()))) == digest.of(value)


def test_tuples_are_lists_and_types_matter() -> None:
    assert digest.of((1, 2)) == digest.of([1, 2])
    assert len({digest.of(value) for value in (1, 1.0, "1", True, None, [1])}) == 6


@pytest.mark.parametrize("value", [float("nan"), [float("inf")], {"x": -float("inf")}])
def test_no_digest_of_what_is_not_a_number(value: object) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        digest.of(value)


@pytest.mark.parametrize("value", [{1: "a"}, [{"x": {None: 1}}], {"x": {1, 2}}, b"bytes"], ids=repr)
def test_no_digest_of_what_json_would_change(value: object) -> None:
    with pytest.raises(TypeError):
        digest.of(value)
