"""What a quantizer should lose on Gaussian data of a given shape."""

from collections.abc import Iterable
from math import log10, prod

from qbench.quant.grid import grid_of
from qbench.quant.spec import QuantizerSpec
from qbench.stats.gaussian_blocks import Rule, gaussian_error


def expected_error_db(spec: QuantizerSpec, shape: Iterable[int], channel_axis: int = -1) -> float | None:
    """Expected error power over signal power, in decibels, for independent Gaussian values.

    The rounding of stored scales is left out (below 0.05 dB), and a rotation changes nothing on such data.
    None where there is no finite answer: an empty tensor, no error at all, or a zero point for fewer than 8 values.

    >>> from qbench.quant.spec import parse
    >>> round(expected_error_db(parse("int4/token"), (2048, 96)), 1)
    -18.9
    """
    sizes = tuple(shape) or (1,)
    if not prod(sizes):
        return None
    grid = grid_of(spec)
    levels = tuple(level * grid.unit() for level in grid.levels) if spec.rule == "rms" else grid.levels
    rule = _RULES["range" if spec.variant == "asym" else spec.rule]
    total = 0.0
    for block, share in _groups(spec, sizes, channel_axis):
        error = gaussian_error(levels, rule, block)
        if error is None:
            return None
        total += share * error
    return 10 * log10(total) if total else None


_RULES: dict[str, Rule] = {"absmax": "absmax", "pow2": "pow2", "rms": "rms", "range": "range"}


def _groups(spec: QuantizerSpec, sizes: tuple[int, ...], channel_axis: int) -> list[tuple[int, float]]:
    """How many values share a scale, and which share of all values is in groups of that size."""
    width = sizes[-1]
    if spec.block is None:
        return [
            (
                {"tensor": prod(sizes), "token": width, "channel": prod(sizes) // sizes[channel_axis]}[
                    spec.granularity
                ],
                1.0,
            )
        ]
    rest = width % spec.block
    return [(size, share / width) for size, share in ((spec.block, width - rest), (rest, rest)) if share]
