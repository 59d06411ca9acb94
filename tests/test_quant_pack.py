"""Codes in and out of bytes: what goes in comes out, and takes the room that it should."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from qbench.quant.pack import pack, pack_trits, unpack, unpack_trits
from qbench.quant.quantizer import build


@given(st.integers(1, 8).flatmap(lambda bits: st.tuples(st.just(bits), st.lists(st.integers(0, 2**bits - 1)))))
def test_unpacking_undoes_packing(drawn: tuple[int, list[int]]) -> None:
    bits, codes = drawn
    stored = pack(torch.tensor(codes, dtype=torch.uint8), bits)
    assert stored.dtype == torch.uint8
    assert stored.numel() == -(-len(codes) * bits // 8)
    assert unpack(stored, bits, len(codes)).tolist() == codes


@given(st.lists(st.integers(0, 2)))
def test_unpacking_undoes_packing_of_ternary_digits(digits: list[int]) -> None:
    stored = pack_trits(torch.tensor(digits, dtype=torch.uint8))
    assert stored.numel() == -(-len(digits) // 5)
    assert unpack_trits(stored, len(digits)).tolist() == digits


@given(st.integers(1, 8), st.integers(1, 40))
def test_bytes_are_one_long_number(bits: int, count: int) -> None:
    """Code i is bits i * width and up of the little-endian number that the bytes make."""
    codes = [(7 * i + 3) % 2**bits for i in range(count)]
    number = sum(code << (i * bits) for i, code in enumerate(codes))
    assert bytes(pack(torch.tensor(codes, dtype=torch.uint8), bits).tolist()) == number.to_bytes(
        -(-count * bits // 8), "little"
    )


@pytest.mark.parametrize(
    ("name", "stored"),
    [
        ("int8/token", [1, 0xFF, 0x7F, 0x81]),  # two's complement: 1, -1, 127, -127
        ("int4/token", [0xF1, 0x97]),  # low half first: 1, -1, 7, -7
        ("int3/token", [0b11_111_001, 0b1010]),  # 1, -1, 3, -3 in twelve bits
        ("int4.full/token", [0xF1, 0x87]),  # 1, -1, 7, -8
        ("e2m1/token", [0xA2, 0xF7]),  # sign and magnitude: 1, -1, 6, -6
        ("binary/token", [0b0101]),
    ],
)
def test_stored_codes_are_the_usual_ones(name: str, stored: list[int]) -> None:
    top = {"int8/token": 127.0, "int4/token": 7.0, "int3/token": 3.0, "e2m1/token": 6.0}.get(name, 7.0)
    x = torch.tensor([1.0, -1.0, top, -8.0 if "full" in name else -top])
    assert build(name).encode(x).codes.tolist() == stored


def test_ternary_digits_are_five_to_a_byte() -> None:
    e = build("ternary/tensor").encode(torch.tensor([1.0, 0.0, -1.0, 1.0, 1.0, -1.0]))
    assert e.codes.tolist() == [2 + 3 * 1 + 9 * 0 + 27 * 2 + 81 * 2, 0]
