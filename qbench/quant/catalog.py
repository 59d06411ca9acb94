"""Every quantizer with a name of its own or a row that stands for many; spelling composes the rest."""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from qbench import names
from qbench.quant.spec import QuantizerSpec
from qbench.quant.spelling import parse


@dataclass(frozen=True, slots=True)
class Row:
    """One row of `qbench ls quantizers`."""

    spec: QuantizerSpec
    meaning: str
    source: str = ""


def _row(name: str, meaning: str, source: str = "") -> tuple[str, Row]:
    return name, Row(parse(name), meaning, source)


_MX = "OCP Microscaling Formats v1.0 (2023)"
_OFP8 = "OCP 8-bit Floating Point v1.0 (2023)"
_NVIDIA = "NVIDIA, arXiv 2509.25149"
_RCEIL = "NVIDIA cuBLAS, 1D block scaling"
_MAX = "J. Max, IRE Trans. IT-6 (1960); S. Lloyd, IEEE Trans. IT-28 (1982)"
_ROTATION = "QuaRot, arXiv 2404.00456"
_QLORA = "QLoRA, arXiv 2305.14314"
_BNB8 = "8-bit optimizers, arXiv 2110.02861"
_SDP4 = "SDP4Bit, arXiv 2410.15526"
_ZERO = "ZeRO++, arXiv 2306.10209"
_QUEST = "QuEST, arXiv 2502.05003"

_INTEGERS = (
    _row("int8/tensor", "symmetric integers -127..127, one fp32 scale for the tensor"),
    _row("int8/token", "one scale for each row of the last axis", "LLM.int8(), arXiv 2208.07339"),
    _row("int8/channel", "one scale for each index of the channel axis: outputs of a weight"),
    _row("int8.full/block:128", "all 256 codes; the largest magnitude maps to 128", _ZERO),
    _row("int8.middle/channel", "all 256 codes; the largest magnitude maps to 127.5 and is clipped", "torchao"),
    _row("int8.asym/token", "0..255 around a stored zero point", "Jacob et al., arXiv 1712.05877"),
    _row("int6/token", "symmetric integers -31..31"),
    _row("int4/tensor", "symmetric integers -7..7, one fp32 scale for the tensor"),
    _row("int4/token", "the same with a scale for each row of the last axis"),
    _row("int4/channel", "the same with a scale for each index of the channel axis"),
    _row("int4/block:32", "the same with a scale for every 32 neighbours"),
    _row("int4/block:32@0", "the same with neighbours along the first axis"),
    _row("int4/tile:16x16", "the same with a scale for each 16 x 16 tile of the last two axes"),
    _row("int4/block:128/scale:bf16", "the same with 16-bit scales for every 128 neighbours"),
    _row("int4/block:32/scale:fp16", "16-bit scales with 5 exponent bits: they underflow on small gradients"),
    _row("int4/block:16/scale:e4m3", "8-bit float scales without a scale of their own: they underflow too"),
    _row("int4/token/rms", "clips where a Gaussian loses least", _QUEST),
    _row("int4/channel/mse", "clips where the squared error is least, of 80 tries", "GPTQ, arXiv 2210.17323"),
    _row("int8/tensor/percentile:99.9", "the largest thousandth is clipped", "Wu et al., arXiv 2004.09602"),
    _row("int4/token/rtz", "rounded toward zero: what truncating hardware does"),
    _row("int4/token/sr:0", "rounded up or down at random, right on average", "Gupta et al., arXiv 1502.02551"),
    _row("int4.full/token", "all 16 codes; the largest magnitude maps to 8"),
    _row("int4.asym/token", "0..15 around a stored zero point, range from smallest to largest value"),
    _row("int4.asym/block:32", "the same for every 32 neighbours"),
    _row("int3/token", "symmetric integers -3..3"),
    _row("int2/token", "-1, 0, 1 in two bits"),
    _row("uniform4/token", "16 even levels without a zero, rms scale and the step best for a Gaussian", _QUEST),
    _row("uniform2/token", "4 such levels", _QUEST),
    _row("ternary/tensor", "-1, 0, 1 by the mean magnitude, five to a byte", "BitNet b1.58, arXiv 2402.17764"),
    _row("binary/channel", "sign and mean magnitude", "XNOR-Net, arXiv 1603.05279"),
)
_FLOATS = (
    _row("e4m3/tensor", "8-bit floats up to 448 under one fp32 scale, saturating", _OFP8),
    _row("e4m3/token", "the same with a scale for each row of the last axis", _OFP8),
    _row(
        "e4m3/tile:128x128", "the same with a scale for each 128 x 128 tile: weights", "DeepSeek-V3, arXiv 2412.19437"
    ),
    _row("e4m3/block:128", "the same for every 128 neighbours: activations", "DeepSeek-V3, arXiv 2412.19437"),
    _row("e5m2/tensor", "8-bit floats with 5 exponent bits, up to 57344: gradients", _OFP8),
    _row("e2m3/token", "6-bit floats up to 7.5 under an fp32 scale", _MX),
    _row("e3m2/token", "6-bit floats up to 28 under an fp32 scale", _MX),
    _row("e2m1/token", "4-bit floats 0, 0.5, 1, 1.5, 2, 3, 4, 6 and their negatives under an fp32 scale", _MX),
    _row("mxfp8e4m3", "8-bit floats, an 8-bit exponent for every 32 neighbours", _MX),
    _row("mxfp8e5m2", "8-bit floats with 5 exponent bits, an 8-bit exponent for every 32 neighbours", _MX),
    _row("mxfp6e2m3", "6-bit floats, an 8-bit exponent for every 32 neighbours", _MX),
    _row("mxfp6e3m2", "6-bit floats with 3 exponent bits, an 8-bit exponent for every 32 neighbours", _MX),
    _row("mxfp4", "4-bit floats, an 8-bit exponent for every 32 neighbours", _MX),
    _row("mxint8", "8-bit fixed point, an 8-bit exponent for every 32 neighbours", _MX),
    _row("mxfp8e4m3.rceil", "the exponent rounded up so that nothing saturates", _RCEIL),
    _row("mxfp4.rceil", "the exponent rounded up so that nothing saturates", _RCEIL),
    _row("mxfp4.ceil", "the exponent one more unless the largest magnitude is a power of two", "torchao, MX CEIL"),
    _row("mxfp4.even", "the largest magnitude rounded before its exponent is taken", "torchao, MX EVEN"),
    _row("mxfp4/sr:0", "rounded up or down at random", "arXiv 2502.20586"),
    _row("mxfp4+hadamard:32", "rotated within each block", _ROTATION),
    _row("nvfp4", "4-bit floats, an e4m3 scale for every 16 neighbours, one fp32 scale for the tensor", _NVIDIA),
    _row("nvfp4/sr:0+hadamard:16", "rotated within each block, rounded at random: gradients", _NVIDIA),
)
_CODEBOOKS = (
    _row("nf4/block:64", "16 Gaussian quantiles stretched to the largest magnitude", _QLORA),
    _row("nf4/block:64/scale:double", "the same with 8-bit scales: double quantization", _QLORA),
    _row("bnbfp4/block:64", "bitsandbytes' own 4-bit float, not OCP's", "bitsandbytes 0.50, fp4"),
    _row("bnbfp4/block:64/scale:double", "the same with 8-bit scales", "bitsandbytes 0.50, fp4"),
    _row("dynamic/block:256", "8-bit dynamic map: seven decades, finest at the top", _BNB8),
    _row("dynamic.unsigned/block:256", "the same for values that are never negative: second moments", _BNB8),
    _row("lloyd1/token", "sign and rms: the one-bit optimum for a Gaussian", _MAX),
    _row("lloyd2/block:128", "the 4 levels with the least squared error for a Gaussian", _MAX),
    _row("lloyd4/block:64", "the 16 levels with the least squared error for a Gaussian", _MAX),
    _row("lloyd4/block:64/absmax", "the same levels stretched to the largest magnitude", _MAX),
    _row("lloyd8/tensor", "the 256 levels with the least squared error for a Gaussian", _MAX),
    _row("lloyd4.laplace/token", "the 16 levels with the least squared error for a Laplace density", _MAX),
    _row("kmeans4/tensor", "16 levels fitted to the tensor and stored with it", "Deep Compression, arXiv 1510.00149"),
    _row("kmeans2/block:64/absmax", "4 levels fitted after each 64 neighbours are scaled", _MAX),
    _row(
        "quantile4/tensor", "16 levels of equal mass, stored with the tensor", "Dettmers, arXiv 2110.02861, section 2"
    ),
)
_ROTATED = (
    _row("int4/tensor+hadamard", "rotated first: outliers are spread over the row", _ROTATION),
    _row("int4/token+rht:0", "signs flipped at random, then one rotation of the whole row", "QuIP#, arXiv 2402.04396"),
    _row(
        "int8/token+smooth:0.5", "outlier channels divided by the root of their peak", "SmoothQuant, arXiv 2211.10438"
    ),
    _row("int4/block:32+hadamard:32", "rotated within each block", _SDP4),
)
_GRADIENTS = (
    _row("int4/block:512/l2/sr:0", "the norm of a bucket maps to 7, rounded at random", "QSGD, arXiv 1610.02132"),
    _row("binary/tensor", "sign and mean magnitude", "EF-signSGD, arXiv 1901.09847"),
    _row("ternary/tensor/clip:2.5/sr:0", "clipped at 2.5 deviations, rounded at random", "TernGrad, arXiv 1705.07878"),
    _row("int4.full/block:128", "all 16 codes in blocks: gradients between machines", _ZERO),
    _row("int4/block:128+hadamard:32", "rotated by 32, scaled by 128: gradients between machines", _SDP4),
    _row("int8/block:128+hadamard:32", "the same in 8 bits: gradients within a machine", _SDP4),
)
_ROWS = dict((*_INTEGERS, *_FLOATS, *_CODEBOOKS, *_ROTATED, *_GRADIENTS))
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
