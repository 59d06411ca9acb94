"""Codes out of the integers that other libraries pack them into."""

import torch
from torch import Tensor

_RUN = 2**20  # codes of a run of rows, each of which is held in 64 bits while it is taken out


def unpack(words: Tensor, bits: int, count: int) -> Tensor:
    """Codes that lie one after another in the bits of each row, the first one lowest, across the ends of words.

    Args:
        words: [R, W], of any integer type.
        bits: of one code, 1 to 8.
        count: codes of a row.

    Returns: uint8 [R, count].

    >>> unpack(torch.tensor([[0x0321]], dtype=torch.int32), bits=4, count=3).tolist()
    [[1, 2, 3]]
    """
    # Eight codes are exactly `bits` bytes, whichever words the bytes are kept in: little-endian wherever torch runs.
    rows = words.contiguous().view(torch.uint8)
    rows = torch.nn.functional.pad(rows, (0, -rows.shape[1] % bits))
    codes = torch.empty(len(rows), count, dtype=torch.uint8)
    shifts = torch.arange(0, 8 * bits, bits)
    step = max(1, _RUN // max(count, 1))
    for start in range(0, len(rows), step):
        eights = torch.nn.functional.pad(rows[start : start + step].unflatten(1, (-1, bits)), (0, 8 - bits))
        taken = (eights.contiguous().view(torch.int64) >> shifts) & (2**bits - 1)
        codes[start : start + step] = taken.flatten(1)[:, :count]
    return codes


def spread(scales: Tensor, shape: tuple[int, ...], sizes: tuple[int, int]) -> Tensor:
    """Scales, one for each `sizes` of rows and columns, repeated for each value: [..., out, in].

    The last group of an axis may be short.

    >>> spread(torch.tensor([1.0, 2.0]), (1, 3), (1, 2)).tolist()
    [[1.0, 1.0, 2.0]]
    """
    *lead, out, wide = shape
    rows, columns = sizes
    each = scales.reshape(*lead, -(-out // rows), -(-wide // columns))
    # A broadcast does where there is one scale for an axis.
    down = each if each.shape[-2] == 1 else each.repeat_interleave(rows, -2)[..., :out, :]
    return down if down.shape[-1] == 1 else down.repeat_interleave(columns, -1)[..., :wide]
