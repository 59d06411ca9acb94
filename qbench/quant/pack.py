"""Codes as they are stored: bits side by side in bytes, the first code in the lowest bits.

Widths that do not fill bytes run across them: eight 3-bit codes are three bytes, four 6-bit codes are three bytes.
Five ternary digits go to a byte.
"""

import torch
from torch import Tensor
from torch.nn.functional import pad


def pack(codes: Tensor, bits: int) -> Tensor:
    """Bytes of codes below 2^bits, in row-major order; the last byte is filled with zeros.

    >>> pack(torch.tensor([1, 2, 3], dtype=torch.uint8), bits=4).tolist()
    [33, 3]
    """
    flat = codes.flatten()
    if bits == 8:
        return flat
    used = -(-flat.numel() * bits // 8)
    eights = pad(flat, (0, -flat.numel() % 8)).view(-1, 8).long()
    words = (eights << _shifts(bits, codes.device)).sum(-1)
    # Eight codes fill exactly `bits` bytes of a 64-bit word, which is little-endian wherever torch runs.
    return words.view(torch.uint8).view(-1, 8)[:, :bits].flatten()[:used].contiguous()


def unpack(packed: Tensor, bits: int, count: int) -> Tensor:
    """The first `count` codes, flat, uint8."""
    if bits == 8:
        return packed[:count]
    rows = pad(packed, (0, -packed.numel() % bits)).view(-1, bits)
    words = pad(rows, (0, 8 - bits)).contiguous().view(torch.int64)
    return ((words >> _shifts(bits, packed.device)) & (2**bits - 1)).to(torch.uint8).flatten()[:count]


def pack_trits(digits: Tensor) -> Tensor:
    """Bytes of digits 0, 1, 2: five to a byte, the first being the lowest.

    >>> pack_trits(torch.tensor([2, 0, 1], dtype=torch.uint8)).tolist()
    [11]
    """
    flat = digits.flatten()
    fives = pad(flat, (0, -flat.numel() % 5)).view(-1, 5)
    return (fives * _POWERS.to(digits.device)).sum(-1, dtype=torch.uint8)


def unpack_trits(packed: Tensor, count: int) -> Tensor:
    """The first `count` digits, flat, uint8."""
    return (packed[:, None] // _POWERS.to(packed.device)).remainder_(3).flatten()[:count]


_POWERS = torch.tensor([1, 3, 9, 27, 81], dtype=torch.uint8)


def _shifts(bits: int, device: torch.device) -> Tensor:
    return torch.arange(0, 8 * bits, bits, device=device)
