"""Every real kernel of torchao and bitsandbytes that a suite may name: what it computes and where it runs.

`torchao/int8-weight-only` is the library's name before the slash and its configuration after it. Rows are facts about
torchao 0.18 and bitsandbytes 0.50.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from qbench.names import pick
from qbench.quant.libraries import missing

FLOATS = ("float32", "bfloat16", "float16")


@dataclass(frozen=True, slots=True, kw_only=True)
class Kernel:
    """One configuration of one library.

    Args:
        meaning: one line for `qbench ls kernels`.
        weight, activation: the quantizers whose numbers it must reproduce, as qbench spells them; no activation where
            it is left alone. `weight` is built for channel axis 0.
        bits, group: of a weight's code, and how many neighbours share a scale; 0 for a whole row.
        capability: the least sm_XX on CUDA, 0 for any. `cpu` and `cuda` say whether it runs there at all.
        dtypes: which dtypes a layer may have; the first is the one to cast to.
        inputs, outputs: sizes that must divide the layer's; `cpu_outputs` only where it runs on a CPU.
        differs: how the stored weights differ from `weight`, empty where they are equal to the bit.
        computes: what the product is computed in, where it is not the layer's own dtype.
    """

    meaning: str
    weight: str
    activation: str = ""
    bits: int
    group: int = 0
    cpu: bool = True
    cuda: bool = True
    capability: int = 0
    dtypes: tuple[str, ...] = FLOATS
    inputs: int = 1
    outputs: int = 1
    cpu_outputs: int = 1
    differs: str = ""
    computes: str = ""


_DIVIDED = "values are divided by their scale, where qbench multiplies with its inverse: ties fall either way"
_BF16 = ("bfloat16",)
_EMULATED = "unpacks both sides and multiplies in bfloat16: real numbers, no speed"
_PACKED = (
    "in bfloat16 with scales rounded to bfloat16, on CPUs with AVX512-BF16 and from the first forward pass without "
    "gradients on; saving the state after that pass loses the order of the scales"
)
_INNER = "on a CPU some of the 8-bit codes of the scales are a neighbour of the nearest"
_HALF = "weights are rounded to float16 first, and ties in 16-bit arithmetic fall either way"

_TORCHAO: Mapping[str, Kernel] = {
    "torchao/int8-weight-only": Kernel(
        meaning="8-bit weights, one scale an output", weight="int8.middle/channel", bits=8
    ),
    "torchao/int8-dynamic": Kernel(
        meaning="8-bit weights and activations, scales taken from each token as it passes",
        weight="int8.middle/channel",
        activation="int8.middle/token",
        bits=8,
    ),
    "torchao/intx4-group:32": Kernel(
        meaning="4-bit weights, kept one to a byte: for export, memory shrinks as with 8 bits",
        weight="int4.middle/block:32",
        bits=4,
        group=32,
        inputs=32,
    ),
    "torchao/intx4.asym-group:32": Kernel(
        meaning="4-bit weights around a zero point, kept one to a byte",
        weight="int4.asym/block:32",
        bits=4,
        group=32,
        dtypes=("float32",),
        inputs=32,
    ),
    "torchao/int8-dynamic-intx4-group:32": Kernel(
        meaning="4-bit weights kept one to a byte, 8-bit activations around a zero point for each token",
        weight="int4.middle/block:32",
        activation="int8.asym/token",
        bits=4,
        group=32,
        inputs=32,
    ),
    "torchao/float8-weight-only": Kernel(
        meaning="8-bit float weights, one scale an output", weight="e4m3/channel", bits=8, differs=_DIVIDED
    ),
    "torchao/float8-dynamic": Kernel(
        meaning="8-bit float weights and activations, one scale an output and a token",
        weight="e4m3/channel",
        activation="e4m3/token",
        bits=8,
        cpu=False,
        capability=89,
        dtypes=_BF16,
        inputs=16,
        outputs=16,
        differs=_DIVIDED,
    ),
    "torchao/nvfp4-weight-only": Kernel(
        meaning="4-bit float weights with an e4m3 scale for every 16",
        weight="nvfp4",
        bits=4,
        group=16,
        dtypes=("float32", "bfloat16"),
        inputs=16,
        outputs=16,
    ),
    "torchao/nvfp4-dynamic": Kernel(
        meaning="4-bit float weights and activations with an e4m3 scale for every 16",
        weight="nvfp4",
        activation="nvfp4",
        bits=4,
        group=16,
        cpu=False,
        capability=100,
        dtypes=_BF16,
        inputs=16,
        outputs=16,
    ),
    "torchao/int4-tile-packed": Kernel(
        meaning="4-bit weights in tinygemm's layout, a bfloat16 scale and minimum for every 128",
        weight="int4.asym/block:128/scale:bf16",
        bits=4,
        group=128,
        cpu=False,
        capability=80,
        dtypes=_BF16,
        inputs=128,
        differs="the zero point is a bfloat16 number and not one of the codes",
    ),
}


def _mx(title: str, quantizer: str, what: str, bits: int) -> dict[str, Kernel]:
    """The row for the hardware that multiplies such blocks itself, and the one that stands in for it anywhere."""
    native = Kernel(
        meaning=f"{what} weights and activations with an 8-bit exponent for every 32",
        weight=quantizer,
        activation=quantizer,
        bits=bits,
        group=32,
        cpu=False,
        capability=100,
        dtypes=_BF16,
        inputs=32,
    )
    emulated = Kernel(
        meaning=f"{native.meaning}, multiplied in bfloat16",
        weight=quantizer,
        activation=quantizer,
        bits=bits,
        group=32,
        dtypes=_BF16,
        inputs=32,
        computes=_EMULATED,
    )
    return {title: native, f"{title}-emulated": emulated}


_MX = {
    **_mx("torchao/mxfp8", "mxfp8e4m3.rceil", "8-bit float", 8),
    **_mx("torchao/mxfp4", "mxfp4.rceil", "4-bit float", 4),
}


def _four_bits(meaning: str, weight: str, differs: str = "") -> Kernel:
    return Kernel(
        meaning=meaning,
        weight=weight,
        bits=4,
        group=64,
        inputs=64,
        cpu_outputs=32,
        differs=differs,
        computes=_PACKED,
    )


_BITSANDBYTES: Mapping[str, Kernel] = {
    "bitsandbytes/nf4": _four_bits("16 Gaussian quantiles, a scale for every 64", "nf4/block:64"),
    "bitsandbytes/nf4+double": _four_bits("the same with 8-bit scales", "nf4/block:64/scale:double", _INNER),
    "bitsandbytes/fp4": _four_bits("its own 4-bit float, a scale for every 64", "bnbfp4/block:64"),
    "bitsandbytes/fp4+double": _four_bits("the same with 8-bit scales", "bnbfp4/block:64/scale:double", _INNER),
    "bitsandbytes/int8": Kernel(
        meaning="8-bit weights and activations, one scale an output and a token",
        weight="int8/channel",
        activation="int8/token",
        bits=8,
        differs=_HALF,
        computes="inputs and results in float16, whatever the layer's dtype",
    ),
    "bitsandbytes/int8-outliers": Kernel(
        meaning="the same, channels with an activation beyond 6 left in 16 bits: what transformers loads (LLM.int8())",
        weight="int8/channel",
        activation="int8/token",
        bits=8,
        differs=_HALF,
        computes="inputs and results in float16; outlier channels are not in the simulation",
    ),
}

KERNELS: Mapping[str, Kernel] = MappingProxyType({**_TORCHAO, **_MX, **_BITSANDBYTES})


def library(name: str) -> str:
    """Whose kernel it is: the name before the slash. Raises UnknownName.

    >>> library("bitsandbytes/nf4")
    'bitsandbytes'
    """
    pick(KERNELS, name, "kernel")
    return name.partition("/")[0]


def available(name: str, device: str) -> str:
    """Why the kernel cannot run on `device` (`cpu`, or `sm_90` for a CUDA device), empty where it can.

    >>> available("torchao/mxfp4", "sm_90")
    'needs CUDA sm_100, this is sm_90; torchao/mxfp4-emulated gives the same numbers without the speed'
    """
    row = pick(KERNELS, name, "kernel")
    if reason := missing(library(name)):
        return reason
    runs = row.cpu if device == "cpu" else row.cuda and int(device.removeprefix("sm_")) >= row.capability
    if runs:
        return ""
    needs = f"needs CUDA sm_{row.capability}" if row.capability else f"needs {'a CPU' if row.cpu else 'CUDA'}"
    other = f"; {name}-emulated gives the same numbers without the speed" if f"{name}-emulated" in KERNELS else ""
    return f"{needs}, this is {device}{other}"


def unfit(name: str, shape: Iterable[int], dtype: str, device: str) -> str:
    """Why a layer with weights [outputs, inputs] of `dtype` cannot have this kernel, empty where it can.

    >>> unfit("bitsandbytes/nf4", (128, 352), "float32", "cpu")
    '352 inputs are no multiple of 64'
    """
    row = pick(KERNELS, name, "kernel")
    outputs, inputs = shape
    if dtype not in row.dtypes:
        return f"needs {' or '.join(row.dtypes)}, the layer is {dtype}"
    if inputs % row.inputs:
        return f"{inputs} inputs are no multiple of {row.inputs}"
    wanted = max(row.outputs, row.cpu_outputs if device == "cpu" else 1)
    return f"{outputs} outputs are no multiple of {wanted}" if outputs % wanted else ""
