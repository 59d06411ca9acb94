"""Linear layers of a model quantized by torchao or bitsandbytes themselves, in place and checked."""

import sys
from collections.abc import Callable, Mapping
from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType
from typing import Any, cast

import torch
from torch import nn

from qbench.quant.held import stored_bytes, tensors
from qbench.quant.kernels import KERNELS, Kernel, available, library, unfit
from qbench.quant.libraries import load
from qbench.quant.proof import NotQuantized, prove

Select = Callable[[str, nn.Linear], bool]
Make = Callable[[nn.Linear], nn.Module]


class CannotRun(ValueError):
    """The kernel cannot run on this device, or fits none of the chosen layers; the message says what it needs."""


@dataclass(frozen=True, slots=True)
class Layer:
    """One quantized layer: values in its matrix, bytes that stand for them as measured (without the bias), and the
    error of the weights over their norm."""

    values: int
    bytes: int
    error: float


@dataclass(frozen=True, slots=True)
class Applied:
    """What was done: `layers` by module name, `left` why each other linear layer stayed as it was, `converted` names
    of GPT-2's Conv1D modules that were made nn.Linear first (the same product, stored the other way round)."""

    kernel: str
    layers: Mapping[str, Layer]
    left: Mapping[str, str]
    converted: tuple[str, ...]

    @property
    def bytes(self) -> int:
        """Of the quantized matrices with their scales, before the first forward pass."""
        return sum(layer.bytes for layer in self.layers.values())

    @property
    def bits_per_weight(self) -> float:
        """As stored, which for codes kept one to a byte is more than the code's bits."""
        return 8 * self.bytes / sum(layer.values for layer in self.layers.values())


@torch.no_grad()
def apply(kernel: str, model: nn.Module, select: Select) -> Applied:
    """Quantize the nn.Linear modules of `model` for which `select(name, layer)` holds, with the library's own code.

    In place; a layer that the kernel does not fit is left alone and listed. Every layer is checked (`quant.proof`).
    Raises UnknownName, MissingLibrary, CannotRun where the device is wrong or nothing was quantized, and NotQuantized
    where the library did not do what it says.
    """
    device = machine(model)
    if reason := available(kernel, device):
        raise CannotRun(f"{kernel} {reason}")
    row, converted, left = KERNELS[kernel], linearized(model, select), dict[str, str]()
    chosen: dict[str, nn.Linear] = {}
    for name, layer in _linears(model).items():
        reason = _why_not(kernel, name, layer, model, device) if select(name, layer) else "not chosen"
        if reason:
            left[name] = reason
        else:
            chosen[name] = layer
    if not chosen:
        for name, part in converted.items():
            model.set_submodule(name, part)
        raise CannotRun(f"{kernel} fits no layer: {_listed(left) or 'the model has no linear layers'}")
    make = _MAKERS[library(kernel)](kernel)
    layers = {name: _replace(name, layer, model, row, make) for name, layer in chosen.items()}
    return Applied(kernel, MappingProxyType(layers), MappingProxyType(left), tuple(converted))


def machine(model: nn.Module) -> str:
    """Where the parameters are, as `kernels.available` wants it: `cpu`, or `sm_90` for a CUDA device.

    Raises CannotRun where there are several devices or another kind.
    """
    devices = {parameter.device for parameter in model.parameters()}
    if len(devices) != 1 or next(iter(devices)).type not in ("cpu", "cuda"):
        raise CannotRun(f"the model must be on one CPU or CUDA device, found {', '.join(sorted(map(str, devices)))}")
    device = devices.pop()
    return "cpu" if device.type == "cpu" else "sm_{}{}".format(*torch.cuda.get_device_capability(device))


@torch.no_grad()
def linearized(model: nn.Module, select: Select) -> Mapping[str, nn.Module]:
    """Replace GPT-2's Conv1D modules, which keep [in, out], by nn.Linear where `select` holds; gives what was there."""
    # Whoever has such a module has imported transformers; nobody else should.
    kind = getattr(sys.modules.get("transformers.pytorch_utils"), "Conv1D", None)
    found = {name: part for name, part in model.named_modules() if kind is not None and isinstance(part, kind)}
    done: dict[str, nn.Module] = {}
    for name, part in found.items():
        weight, bias = part.get_parameter("weight"), part.get_parameter("bias")
        linear = nn.Linear(weight.shape[0], weight.shape[1], device="meta")
        linear.weight, linear.bias = nn.Parameter(weight.T.contiguous()), bias
        linear.train(part.training)
        if name and select(name, linear):
            model.set_submodule(name, linear)
            done[name] = part
    return done


def _linears(model: nn.Module) -> dict[str, nn.Linear]:
    found = {name: part for name, part in model.named_modules() if isinstance(part, nn.Linear)}
    if "" in found:
        raise CannotRun("the model is itself a linear layer, which cannot be replaced; give the module that holds it")
    return found


def _why_not(kernel: str, name: str, layer: nn.Linear, model: nn.Module, device: str) -> str:
    if type(layer) is not nn.Linear or type(layer.weight) is not nn.Parameter:
        return f"is a {type(layer).__name__} of {type(layer.weight).__name__}s already"
    others = [other for other, part in model.named_modules() if other != name and _holds(part, layer.weight)]
    if others:
        return f"shares its matrix with {', '.join(others)}: a quantized copy would be stored beside it"
    if not layer.weight.any():
        return "all its weights are zero"
    return unfit(kernel, layer.weight.shape, str(layer.weight.dtype).removeprefix("torch."), device)


def _holds(part: nn.Module, parameter: nn.Parameter) -> bool:
    return any(other is parameter for other in part.parameters(recurse=False))


def _replace(name: str, layer: nn.Linear, model: nn.Module, row: Kernel, make: Make) -> Layer:
    before = deepcopy(layer)
    after = make(layer).train(layer.training)
    model.set_submodule(name, after)
    # A copy is run, not the layer itself: on a CPU bitsandbytes packs its 4-bit weights anew in the first forward
    # pass, and what is saved after that cannot be read back.
    try:
        error = prove(row, before, after, deepcopy(after).eval())
    except NotQuantized as fault:
        raise NotQuantized(f"{name}: {fault}") from None
    biases = (kept for part, kept in after.named_parameters() if part == "bias")
    return Layer(before.weight.numel(), stored_bytes(tensors(after)) - stored_bytes(biases), error)


def _listed(left: Mapping[str, str]) -> str:
    """A few reasons; the rest are alike."""
    shown = [f"{name} {reason}" for name, reason in left.items()][:3]
    return "; ".join(shown) + (f"; and {len(left) - 3} more" if len(left) > 3 else "")


def _torchao(kernel: str) -> Make:
    quantize, config = load("torchao.quantization").quantize_, _CONFIGS[kernel.partition("/")[2]]()

    def make(layer: nn.Linear) -> nn.Module:
        quantize(layer, config)
        return layer

    return make


def _bitsandbytes(kernel: str) -> Make:
    return partial(_int8 if "int8" in kernel else _four_bits, load("bitsandbytes.nn"), kernel.partition("/")[2])


def _four_bits(bnb: Any, form: str, layer: nn.Linear) -> nn.Module:
    options = {"quant_type": form.partition("+")[0], "compress_statistics": form.endswith("+double")}
    new = bnb.Linear4bit(layer.in_features, layer.out_features, bias=False, device="meta", **options)
    new.weight = bnb.Params4bit(layer.weight.detach(), requires_grad=False, module=new, **options)
    new.bias = layer.bias
    return new.to(layer.weight.device)  # which is when it quantizes


def _int8(bnb: Any, form: str, layer: nn.Linear) -> nn.Module:
    options: dict[str, Any] = {"has_fp16_weights": False, "threshold": 6.0 if form.endswith("-outliers") else 0.0}
    new = bnb.Linear8bitLt(layer.in_features, layer.out_features, bias=False, device="meta", **options)
    new.weight = bnb.Int8Params(layer.weight.detach(), requires_grad=False, has_fp16_weights=False)
    new.bias = layer.bias
    return new.to(layer.weight.device)


def _stable(name: str, *arguments: Any, **options: Any) -> Callable[[], Any]:
    return lambda: getattr(load("torchao.quantization"), name)(*arguments, **options)


def _intx(name: str, size: int, prefix: str = "", mapping: str = "SYMMETRIC") -> Callable[[], Any]:
    def config() -> Any:
        ao = load("torchao.quantization")
        options = {"weight_dtype": cast(Any, torch).int4, f"{prefix}granularity": ao.PerGroup(size)}
        return getattr(ao, name)(**options, **{f"{prefix}mapping_type": ao.MappingType[mapping]})

    return config


def _rows(name: str) -> Callable[[], Any]:
    return lambda: getattr(load("torchao.quantization"), name)(granularity=load("torchao.quantization").PerRow())


def _tiles(size: int) -> Callable[[], Any]:
    return _stable("Int4WeightOnlyConfig", group_size=size, int4_packing_format="tile_packed_to_4d")


def _mx(name: str, element: torch.dtype | None = None, preference: str = "AUTO") -> Callable[[], Any]:
    def config() -> Any:
        make = getattr(load("torchao.prototype.mx_formats"), name)
        if element is None:
            return make()
        kernel = load("torchao.quantization.quantize_.common").KernelPreference[preference]
        return make(activation_dtype=element, weight_dtype=element, kernel_preference=kernel)

    return config


_MX = "MXDynamicActivationMXWeightConfig"
_CONFIGS: Mapping[str, Callable[[], Any]] = MappingProxyType(
    {
        "int8-weight-only": _stable("Int8WeightOnlyConfig"),
        "int8-dynamic": _stable("Int8DynamicActivationInt8WeightConfig"),
        "intx4-group:32": _intx("IntxWeightOnlyConfig", 32),
        "intx4.asym-group:32": _intx("IntxWeightOnlyConfig", 32, mapping="ASYMMETRIC"),
        "int8-dynamic-intx4-group:32": _intx("Int8DynamicActivationIntxWeightConfig", 32, "weight_"),
        "float8-weight-only": _stable("Float8WeightOnlyConfig"),
        "float8-dynamic": _rows("Float8DynamicActivationFloat8WeightConfig"),
        "int4-tile-packed": _tiles(128),
        "nvfp4-weight-only": _mx("NVFP4WeightOnlyConfig"),
        "nvfp4-dynamic": _mx("NVFP4DynamicActivationNVFP4WeightConfig"),
        "mxfp8": _mx(_MX, torch.float8_e4m3fn),
        "mxfp8-emulated": _mx(_MX, torch.float8_e4m3fn, "EMULATED"),
        "mxfp4": _mx(_MX, torch.float4_e2m1fn_x2),
        "mxfp4-emulated": _mx(_MX, torch.float4_e2m1fn_x2, "EMULATED"),
    }
)
_MAKERS: Mapping[str, Callable[[str], Make]] = MappingProxyType({"torchao": _torchao, "bitsandbytes": _bitsandbytes})
