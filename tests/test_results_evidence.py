"""Vectors are stored once, named by their content, and never silently wrong."""

import json
import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from qbench.results import digest, evidence
from qbench.results.evidence import BadEvidence
from qbench.results.files import CannotWrite

TYPES = st.sampled_from(["float64", "float32", "float16", "int64", "int32", "bool", "uint8"])
VECTORS = st.dictionaries(
    st.text(st.characters(min_codepoint=32, max_codepoint=126), min_size=1, max_size=6).filter(
        lambda name: name != "__metadata__"
    ),
    TYPES.flatmap(lambda dtype: hnp.arrays(dtype, hnp.array_shapes(max_dims=2, max_side=4))),
    max_size=3,
)


@settings(max_examples=60, deadline=None)
@given(VECTORS)
def test_vectors_come_back_bit_for_bit(tmp_path_factory: pytest.TempPathFactory, vectors: dict) -> None:
    folder = tmp_path_factory.mktemp("run")
    name = evidence.save(folder, vectors)
    assert evidence.save(folder, dict(reversed(vectors.items()))) == name
    assert [path.name for path in (folder / "evidence").iterdir()] == [f"{name}.safetensors"]
    back = evidence.load(folder, name)
    assert back.keys() == vectors.keys()
    for key, array in vectors.items():
        assert (back[key].dtype, back[key].shape) == (array.dtype, array.shape)
        assert back[key].tobytes() == array.tobytes()


def test_the_name_depends_on_every_bit_and_on_the_names(tmp_path: Path) -> None:
    x = np.arange(5.0)
    y = np.nextafter(x, 9.0)
    assert len({evidence.save(tmp_path, v) for v in ({"loss": x}, {"loss": y}, {"error": x}, {"loss": x[:4]})}) == 4


def test_views_are_stored_as_they_look(tmp_path: Path) -> None:
    x = np.arange(12.0).reshape(3, 4)
    name = evidence.save(tmp_path, {"rows": x.T, "every other": x[:, ::2], "big end": x.astype(">f8")})
    back = evidence.load(tmp_path, name)
    np.testing.assert_array_equal(back["rows"], x.T)
    np.testing.assert_array_equal(back["every other"], x[:, ::2])
    np.testing.assert_array_equal(back["big end"], x)


@pytest.mark.parametrize(
    ("kind", "size", "said"),
    [
        ("BF16", 2, "BF16.*numpy does not have"),
        ("F8_E4M3", 1, "F8_E4M3.*numpy does not have"),
        ("F8_E5M2", 1, "F8_E5M2.*numpy does not have"),
        ("U9", 1, "unknown variant"),
    ],
)
def test_a_type_that_numpy_lacks_is_said(tmp_path: Path, kind: str, size: int, said: str) -> None:
    header = json.dumps({"loss": {"dtype": kind, "shape": [4], "data_offsets": [0, 4 * size]}}).encode()
    data = struct.pack("<Q", len(header)) + header + bytes(4 * size)
    name = digest.of_bytes(data)[:16]
    (tmp_path / "evidence").mkdir()
    (tmp_path / "evidence" / f"{name}.safetensors").write_bytes(data)
    with pytest.raises(BadEvidence, match=said):
        evidence.load(tmp_path, name)


def test_changed_missing_and_cut_files_are_noticed(tmp_path: Path) -> None:
    name = evidence.save(tmp_path, {"loss": np.arange(5.0)})
    path = tmp_path / "evidence" / f"{name}.safetensors"
    data = path.read_bytes()
    for damaged in (data[:-1], data[:-1] + b"\x01", b""):
        path.write_bytes(damaged)
        with pytest.raises(BadEvidence, match="other data than was recorded"):
            evidence.load(tmp_path, name)
    assert evidence.save(tmp_path, {"loss": np.arange(5.0)}) == name  # and saving again mends it
    assert path.read_bytes() == data
    path.unlink()
    with pytest.raises(BadEvidence, match="is missing"):
        evidence.load(tmp_path, name)


@pytest.mark.parametrize("name", ["", "../../etc/passwd", "0123456789ABCDEF", "0123456789abcdef\n"])
def test_only_digests_name_evidence(tmp_path: Path, name: str) -> None:
    with pytest.raises(BadEvidence, match="16 hex digits"):
        evidence.load(tmp_path, name)


def test_a_place_that_cannot_be_written_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", full)
        with pytest.raises(CannotWrite, match="No space left"):
            evidence.save(tmp_path, {"loss": np.arange(5.0)})
    assert list((tmp_path / "evidence").iterdir()) == []
    (tmp_path / "file").write_text("")
    with pytest.raises(CannotWrite):
        evidence.save(tmp_path / "file", {"loss": np.arange(5.0)})
