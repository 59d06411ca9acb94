"""Every quantizer with a name of its own or a row that stands for many; spelling composes the rest."""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from qbench import names
from qbench.quant.spec import QuantizerSpec, parse


@dataclass(frozen=True, slots=True)
class Row:
    """One row of `qbench ls quantizers`."""

    spec: QuantizerSpec
    meaning: str
    source: str = ""


def _row(name: str, meaning: str, source: str = "") -> tuple[str, Row]:
    return name, Row(parse(name), meaning, source)


_MX = "OCP Microscaling Formats v1.0 (2023)"
_MAX = "J. Max, IRE Trans. IT-6 (1960); S. Lloyd, IEEE Trans. IT-28 (1982)"
_ROTATION = "QuaRot, arXiv 2404.00456"

_ROWS = dict(
    [
        _row("int8/tensor", "symmetric integers -127..127, one fp32 scale for the tensor"),
        _row("int8/token", "one scale for each row of the last axis", "LLM.int8(), arXiv 2208.07339"),
        _row("int8/channel", "one scale for each index of the channel axis: outputs of a weight"),
        _row("int8.full/block:128", "all 256 codes; the largest magnitude maps to 128", "ZeRO++, arXiv 2306.10209"),
        _row("int8/block:32/pow2/scale:e8m0", "MXINT8: integers under an 8-bit exponent", _MX),
        _row("int6/token", "symmetric integers -31..31"),
        _row("int4/tensor", "symmetric integers -7..7, one fp32 scale for the tensor"),
        _row("int4/token", "the same with a scale for each row of the last axis"),
        _row("int4/channel", "the same with a scale for each index of the channel axis"),
        _row("int4/block:32", "the same with a scale for every 32 neighbours"),
        _row("int4/block:128/scale:bf16", "the same with 16-bit scales for every 128 neighbours"),
        _row("int4/block:32/scale:fp16", "16-bit scales with 5 exponent bits: they underflow on small gradients"),
        _row("int4/token/rms", "clips where a Gaussian loses least", "QuEST, arXiv 2502.05003"),
        _row("int4.asym/token", "0..15 around a stored zero point, range from smallest to largest value"),
        _row("int4.asym/block:32", "the same for every 32 neighbours"),
        _row("int3/token", "symmetric integers -3..3"),
        _row("int2/token", "-1, 0, 1"),
        _row("int4/tensor+hadamard", "rotated first: outliers are spread over the row", _ROTATION),
        _row("int4/block:32+hadamard:32", "rotated within each block", "SDP4Bit, arXiv 2410.15526"),
        _row("e2m1/token", "4-bit floats 0, 0.5, 1, 1.5, 2, 3, 4, 6 and their negatives under an fp32 scale"),
        _row("mxfp4", "4-bit floats, an 8-bit exponent for every 32 neighbours", _MX),
        _row("mxfp4+hadamard:32", "the same, rotated within each block", _ROTATION),
        _row("lloyd1/token", "sign and rms: the one-bit optimum for a Gaussian", _MAX),
        _row("lloyd2/block:128", "the 4 levels with the least squared error for a Gaussian", _MAX),
        _row("lloyd4/block:64", "the 16 levels with the least squared error for a Gaussian", _MAX),
        _row("lloyd4/block:64/absmax", "the same levels stretched to the largest magnitude", _MAX),
        _row("lloyd8/tensor", "the 256 levels with the least squared error for a Gaussian", _MAX),
    ]
)
QUANTIZERS: Mapping[str, Row] = MappingProxyType(_ROWS)


def quantizer_spec(name: str, table: Mapping[str, Row] = QUANTIZERS) -> QuantizerSpec:
    """The spec of a row, or the one that `name` spells; raises QuantizerName.

    >>> str(quantizer_spec("int5.asym/block:16"))
    'int5.asym/block:16'
    """
    return table[name].spec if name in table else parse(name)


def add(name: str, row: Row) -> None:
    """Take a row from a plugin; ValueError where the name is taken."""
    names.add(_ROWS, name, row, Row)
