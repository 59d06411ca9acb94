"""Real kernels against their simulation, bit for bit; and the proof that catches a library which does nothing."""

import io
import logging
import subprocess
import sys
from collections.abc import Callable
from copy import deepcopy

import pytest
import torch
from libraries import library
from torch import Tensor, nn

from qbench.quant import vendor
from qbench.quant.held import dequantized, plain, stored_bytes, tensors
from qbench.quant.kernels import KERNELS, available, unfit
from qbench.quant.libraries import MissingLibrary, load
from qbench.quant.proof import NotQuantized, prove
from qbench.quant.quantizer import build
from qbench.quant.twin import simulate, twin

for package in ("torchao", "bitsandbytes"):
    library(package)

HERE = [name for name in KERNELS if not available(name, "cpu")]
EQUAL = [name for name in HERE if not KERNELS[name].differs]
IN, OUT = 128, 96


def layers(kernel: str = "", seed: int = 0) -> nn.Sequential:
    """Two linear layers with heavy-tailed weights, in a dtype that `kernel` can have."""
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(IN, OUT), nn.GELU(), nn.Linear(OUT, IN, bias=False)).eval()
    with torch.no_grad():
        for layer in (model[0], model[2]):
            layer.weight.copy_(torch.randn(layer.weight.shape) ** 3)
    return model.to(getattr(torch, KERNELS[kernel].dtypes[0])) if kernel else model


def first(name: str, _layer: nn.Module) -> bool:
    return name == "0"


def both(kernel: str) -> tuple[Tensor, Tensor, Tensor]:
    """The weights, the library's decoded ones, and the simulation's."""
    model = layers(kernel)
    weights = model[0].weight.detach().clone()
    vendor.apply(kernel, model, first)
    return weights, dequantized(model[0]), build(KERNELS[kernel].weight, 0).roundtrip(weights)


@pytest.mark.parametrize("kernel", EQUAL)
def test_weights_are_the_simulations_to_the_bit(kernel: str) -> None:
    weights, theirs, ours = both(kernel)
    assert torch.equal(theirs, ours)
    assert not torch.equal(theirs, weights)


def test_every_kernel_that_runs_here_is_equal_or_says_how_it_differs() -> None:
    assert set(EQUAL) >= {
        "torchao/intx4.asym-group:32",
        "torchao/nvfp4-weight-only",
        "torchao/mxfp8-emulated",
        "torchao/mxfp4-emulated",
        "bitsandbytes/nf4",
        "bitsandbytes/fp4",
    }
    assert len(HERE) == 15


@pytest.mark.parametrize(
    ("kernel", "bits", "group"),
    [
        ("torchao/int8-weight-only", 8, IN),
        ("torchao/int8-dynamic", 8, IN),
        ("torchao/intx4-group:32", 4, 32),
        ("torchao/int8-dynamic-intx4-group:32", 4, 32),
    ],
)
def test_symmetric_integers_of_torchao_map_the_peak_between_the_ends(kernel: str, bits: int, group: int) -> None:
    """Four rows: the peak is worth 2^(b-1) - 1/2, so that 7 is half a step short at 4 bits."""
    weights, theirs, ours = both(kernel)
    blocks = weights.unflatten(1, (-1, group))
    half = 2 ** (bits - 1)
    scale = blocks.abs().amax(-1, keepdim=True) / (half - 0.5)
    by_hand = (blocks * (1 / scale)).round().clamp(-half, half - 1) * scale
    assert torch.equal(theirs, by_hand.flatten(1))
    assert torch.equal(theirs, ours) is not bool(KERNELS[kernel].differs)


def test_float8_differs_where_a_value_lies_halfway_between_two_levels() -> None:
    """The difference of one row: x / s and x * (1 / s) may round to different sides of such a point."""
    weights, theirs, ours = both("torchao/float8-weight-only")
    apart = theirs != ours
    halfway = (theirs / 2 + ours / 2)[apart]
    torch.testing.assert_close(halfway, weights[apart], rtol=1e-6, atol=0)
    assert apart.sum() <= 3


@pytest.mark.parametrize("kernel", ["bitsandbytes/int8", "bitsandbytes/int8-outliers"])
def test_eight_bits_of_bitsandbytes_start_from_float16(kernel: str) -> None:
    """The difference of two rows: equal for weights that are float16 numbers, but for values halfway between codes."""
    weights, theirs, _ = both(kernel)
    half = weights.half().float()
    ours = build("int8/channel", 0).roundtrip(half)
    scale = half.abs().amax(1, keepdim=True) / 127
    apart = (theirs - ours).abs() > 1e-6 * theirs.abs()
    assert ((half / scale)[apart].frac().abs() - 0.5).abs().lt(1e-3).all()
    assert apart.float().mean() < 2e-3


@pytest.mark.parametrize(("kernel", "form"), [("bitsandbytes/nf4+double", "nf4"), ("bitsandbytes/fp4+double", "fp4")])
def test_double_quantization_differs_in_blocks_whose_scale_has_another_code(kernel: str, form: str) -> None:
    weights, theirs, ours = both(kernel)
    _, state = load("bitsandbytes.functional").quantize_4bit(
        weights, blocksize=64, quant_type=form, compress_statistics=True
    )
    codes = build(KERNELS[kernel].weight).encode(weights).scales.flatten()
    apart = (theirs != ours).unflatten(1, (-1, 64)).any(-1).flatten()
    assert torch.equal(apart, codes != state.absmax)
    assert apart.float().mean() < 0.1


@pytest.mark.parametrize("kernel", [name for name in KERNELS if available(name, "cpu")])
def test_what_cannot_run_says_what_it_needs(kernel: str) -> None:
    with pytest.raises(vendor.CannotRun, match=r"needs CUDA sm_\d+, this is cpu"):
        vendor.apply(kernel, layers(kernel), first)
    assert not available(kernel, "sm_120")


@pytest.mark.parametrize("kernel", HERE)
def test_outputs_are_near_the_simulations(kernel: str) -> None:
    model = layers(kernel)
    x = torch.randn(32, IN, generator=torch.Generator().manual_seed(1)).to(model[0].weight.dtype)
    with torch.no_grad():
        before = model(x).float()
        simulated = simulate(kernel, deepcopy(model), ["0", "2"])(x).float()
        done = vendor.apply(kernel, model, lambda _name, _layer: True)
        if "2" in done.left:
            simulated = simulate(kernel, layers(kernel), ["0"])(x).float()
        real = model(x).float()
    assert not torch.equal(real, before)
    # Two 4-bit roundings to different levels are about as far from each other as either is from the original.
    share = 0.9 if "magnitude" in KERNELS[kernel].differs else 0.5
    assert (real - simulated).norm() < share * (simulated - before).norm() + 0.01 * before.norm()


# Bytes of a layer of 96 x 128: codes, scales, and zero points or code books that the library keeps with them.
BYTES = {
    "torchao/int8-weight-only": 12288 + 96 * 4 + 96,
    "torchao/intx4-group:32": 12288 + 384 * 4 + 384,  # a byte for four bits
    "torchao/float8-weight-only": 12288 + 96 * 4,
    "torchao/nvfp4-weight-only": 6144 + 128 * 8 + 4,  # scales in tiles of 128 rows
    "torchao/mxfp4-emulated": 6144 + 128 * 4,
    "bitsandbytes/nf4": 6144 + 192 * 4 + 16 * 4,
    "bitsandbytes/nf4+double": 6144 + 192 + 4 + 4 + 16 * 4 + 256 * 4,
    "bitsandbytes/int8": 12288 + 96 * 4,
}


@pytest.mark.parametrize(("kernel", "size"), BYTES.items())
def test_bytes_are_those_counted_by_hand(kernel: str, size: int) -> None:
    done = vendor.apply(kernel, layers(kernel), first)
    assert done.bytes == size
    assert done.bits_per_weight == pytest.approx(8 * size / (96 * 128))
    assert done.layers["0"].values == 96 * 128


def test_shared_memory_is_counted_once() -> None:
    x = torch.zeros(10, 4)
    assert stored_bytes([x, x[2:], torch.zeros(3)]) == 160 + 12
    model = layers()
    assert stored_bytes(tensors(model)) == 4 * (2 * IN * OUT + OUT)
    assert [part.shape for part in plain(x)] == [(10, 4)]


Fault = Callable[[nn.Linear], nn.Module]


def _ignored(layer: nn.Linear) -> nn.Module:
    """A library that does nothing."""
    return layer


def _unrounded(layer: nn.Linear) -> nn.Module:
    """torchao's GGUF: codes are floats, so that nothing is rounded."""
    layer.weight.data.mul_(1 + 1e-6)
    return layer


def _shuffled(layer: nn.Linear) -> nn.Module:
    """Scales of other blocks."""
    found = twin(KERNELS["bitsandbytes/nf4"], layer).weight.data
    layer.weight.data = found.roll(1, 0)
    return layer


def _too_many_levels(layer: nn.Linear) -> nn.Module:
    """An error of the right size, and no code book."""
    error = twin(KERNELS["bitsandbytes/nf4"], layer).weight.data - layer.weight.data
    layer.weight.data += error.norm() * nn.functional.normalize(torch.randn(error.shape), dim=None)
    return layer


class _Bypassed(nn.Linear):
    """torchao's int8_mixed_precision_training: the weight is quantized, and the product is made with another."""

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x, self.real, self.bias)


def _bypassed(layer: nn.Linear) -> nn.Module:
    new = _Bypassed(IN, OUT)
    new.real, new.bias = layer.weight.data.clone(), layer.bias
    new.weight = twin(KERNELS["bitsandbytes/nf4"], layer).weight
    return new


FAULTS = {
    _ignored: "weights moved by 0 of",
    _unrounded: "weights moved by",
    _shuffled: "weights moved by",
    _too_many_levels: "64 distinct weights share a scale, a code of 4 bits has 16",
    _bypassed: "outputs moved by 0 of",
}


@pytest.mark.parametrize(("fault", "said"), FAULTS.items(), ids=lambda value: getattr(value, "__name__", ""))
def test_a_kernel_that_does_not_quantize_is_caught(fault: Fault, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vendor, "_MAKERS", {"bitsandbytes": lambda _kernel: fault})
    with pytest.raises(NotQuantized, match=f"^0: its {said}|^0: {said}"):
        vendor.apply("bitsandbytes/nf4", layers(), first)


def test_the_failures_of_torchao_itself_are_caught() -> None:
    ao = library("torchao.quantization")
    silent = library("torchao.prototype.quantized_training").Int8MixedPrecisionTrainingConfig()
    model = layers()
    before = deepcopy(model[0])
    ao.quantize_(model[0], silent)
    with pytest.raises(NotQuantized):
        prove(KERNELS["torchao/int8-dynamic"], before, model[0], model[0])
    unrounded = library("torchao.prototype.quantization.gguf.api").GGUFWeightOnlyConfig()
    wide = nn.Linear(256, 64)
    before = deepcopy(wide)
    ao.quantize_(wide, unrounded)
    with pytest.raises(NotQuantized, match="weights moved by"):
        prove(KERNELS["torchao/intx4-group:32"], before, wide, wide)


def test_weights_that_are_on_the_grid_already_are_no_fault() -> None:
    model = layers()
    with torch.no_grad():
        model[0].weight.copy_(build("nf4/block:64", 0).roundtrip(model[0].weight))
    assert vendor.apply("bitsandbytes/nf4", model, first).layers["0"].error == 0


def test_layers_that_do_not_fit_are_left_alone_and_named() -> None:
    model = nn.Sequential(nn.Linear(64, 32), nn.Linear(32, 64), nn.Linear(64, 41), nn.Linear(64, 64))
    nn.init.zeros_(model[3].weight)
    done = vendor.apply("bitsandbytes/nf4", model, lambda name, _layer: name != "9")
    assert set(done.layers) == {"0"}
    assert done.left == {
        "1": "32 inputs are no multiple of 64",
        "2": "41 outputs are no multiple of 32",
        "3": "all its weights are zero",
    }
    assert unfit("torchao/mxfp8", (64, 64), "float32", "cpu") == "needs bfloat16, the layer is float32"
    with pytest.raises(vendor.CannotRun, match="fits no layer: 0 is a Linear4bit of Params4bits already; 1 32 inputs"):
        vendor.apply("bitsandbytes/nf4", model, lambda _name, _layer: True)


def test_a_tied_head_is_left_alone() -> None:
    model = nn.ModuleDict({"embed": nn.Embedding(64, 64), "body": nn.Linear(64, 64), "head": nn.Linear(64, 64)})
    model["head"].weight = model["embed"].weight
    done = vendor.apply("torchao/int8-weight-only", model, lambda _name, _layer: True)
    assert done.left == {"head": "shares its matrix with embed: a quantized copy would be stored beside it"}


def test_a_model_that_is_one_layer_is_refused() -> None:
    with pytest.raises(vendor.CannotRun, match="give the module that holds it"):
        vendor.apply("torchao/int8-weight-only", nn.Linear(64, 64), lambda _name, _layer: True)


def test_conv1d_becomes_linear_with_the_same_product() -> None:
    conv1d = library("transformers.pytorch_utils").Conv1D
    torch.manual_seed(0)
    model = nn.Sequential(conv1d(96, 64), conv1d(32, 96))
    x = torch.randn(4, 64)
    before = model(x)
    assert list(vendor.linearized(model, first)) == ["0"]
    assert isinstance(model[0], nn.Linear)
    assert isinstance(model[1], conv1d)
    torch.testing.assert_close(model(x), before)
    done = vendor.apply("torchao/int8-weight-only", model, lambda _name, _layer: True)
    assert done.converted == ("1",)
    assert set(done.layers) == {"0", "1"}


def test_a_model_that_no_kernel_fits_is_left_as_it_was() -> None:
    conv1d = library("transformers.pytorch_utils").Conv1D
    model = nn.Sequential(conv1d(48, 20))
    with pytest.raises(vendor.CannotRun, match="fits no layer"):
        vendor.apply("torchao/intx4-group:32", model, lambda _name, _layer: True)
    assert isinstance(model[0], conv1d)


def test_bitsandbytes_cannot_save_after_a_forward_pass_on_a_cpu() -> None:
    """Why layers are proved on a copy: packed scales are saved in the order of the packing and read in another."""
    model = layers()
    vendor.apply("bitsandbytes/nf4", model, first)
    x = torch.randn(4, IN)
    with torch.no_grad():
        before = model[0](x)
        if not getattr(model[0].weight.quant_state, "packing_format_for_cpu", False):
            pytest.skip("this CPU has no AVX512-BF16, nothing is packed")
        unsaved = dequantized(model[0])
        torch.save(model.state_dict(), io.BytesIO())
        after = model[0](x)
    exact = build("nf4/block:64", 0).roundtrip(layers()[0].weight.detach())
    assert (unsaved.float() - exact).norm() / exact.norm() < 4e-3  # bfloat16 levels times bfloat16 scales
    assert (after - before).norm() > 0.1 * before.norm()


def test_a_library_that_is_not_there_is_named() -> None:
    with pytest.raises(MissingLibrary, match="no_such_library is not installed; pip install"):
        load("no_such_library.part")


def test_importing_is_silent_and_late() -> None:
    """Nothing on stderr from either library, and neither imported before it is asked for."""
    script = (
        "import sys, qbench.quant.vendor as v, qbench.quant.libraries as l\n"
        "assert not {'torchao', 'bitsandbytes'} & set(sys.modules)\n"
        "for name in ('torchao.quantization', 'torchao.prototype.mx_formats', 'bitsandbytes.nn'): l.load(name)\n"
    )
    done = subprocess.run([sys.executable, "-W", "error", "-c", script], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_only_the_known_noise_is_dropped(caplog: pytest.LogCaptureFixture) -> None:
    load("torchao")
    logger = logging.getLogger("torchao")
    logger.warning("something new is wrong")
    logger.warning("Skipping import of cpp extensions due to TORCHAO_FORCE_SKIP_LOADING_SO_FILES=1")
    assert caplog.messages == ["something new is wrong"]
