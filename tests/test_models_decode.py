"""Decoded codes, bit for bit: against packing element by element, and against the libraries that made the formats."""

from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace

import numpy as np
import packing
import pytest
import torch
from libraries import library
from torch import Tensor

from qbench.models.decode import DECODERS, decoded_state
from qbench.models.finished import DECODED
from qbench.models.folder import BadModel
from qbench.models.unpack import spread, unpack

OUT, IN = 24, 96


def weights(out: int = OUT, wide: int = IN, seed: int = 0) -> Tensor:
    return torch.randn(out, wide, generator=torch.Generator().manual_seed(seed)) ** 3


def decoded(folder: Path) -> Tensor:
    """The only weight of the folder."""
    ((name, tensor),) = decoded_state(folder)
    assert name == "m.weight"
    return tensor


def folder(place: Path, parts: Mapping[str, Tensor], **quantization: object) -> Path:
    return packing.write(place, {f"m.{part}": tensor for part, tensor in parts.items()}, quantization)


def test_every_packing_has_a_decoder() -> None:
    assert set(DECODED) == set(DECODERS)


@pytest.mark.parametrize("bits", range(1, 9))
def test_codes_lie_in_the_bits_of_one_long_number(bits: int) -> None:
    codes = np.random.default_rng(bits).integers(0, 2**bits, size=(5, 37))
    words = -(-37 * bits // 32)
    rows = [sum(int(code) << (bits * i) for i, code in enumerate(row)) for row in codes]
    packed = np.array([[(row >> (32 * w)) & 0xFFFFFFFF for w in range(words)] for row in rows], dtype=np.uint64)
    assert unpack(packing.signed(packed), bits, 37).tolist() == codes.tolist()


def test_many_rows_are_unpacked_in_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    packed = torch.randint(-(2**31), 2**31, (7, 3), generator=torch.Generator().manual_seed(0)).int()
    whole = unpack(packed, 3, 30)
    monkeypatch.setattr("qbench.models.unpack._RUN", 61)
    assert torch.equal(unpack(packed, 3, 30), whole)


@pytest.mark.parametrize("sizes", [(1, 96), (24, 96), (1, 32), (5, 40), (7, 96), (24, 40)], ids=str)
def test_scales_reach_their_own_values(sizes: tuple[int, int]) -> None:
    rows, columns = -(-OUT // sizes[0]), -(-IN // sizes[1])
    scales = torch.arange(rows * columns).view(rows, columns)
    expected = [[int(scales[i // sizes[0], j // sizes[1]]) for j in range(IN)] for i in range(OUT)]
    assert spread(scales, (OUT, IN), sizes).expand(OUT, IN).tolist() == expected


@pytest.mark.parametrize("order", ["in order", "by activation", "no g_idx"])
@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_gptq_element_by_element(bits: int, version: int, order: str, tmp_path: Path) -> None:
    rng = np.random.default_rng(bits)
    out, groups = 32, 3
    codes = rng.integers(0, 2**bits, size=(IN, out))
    zeros = rng.integers(version == 1, 2**bits, size=(groups, out))
    scales = torch.rand(groups, out, generator=torch.Generator().manual_seed(1)).half()
    g_idx = np.arange(IN) // 32
    if order == "by activation":
        g_idx = rng.permutation(g_idx)
    parts = packing.gptq(codes, zeros, bits, version) | {"scales": scales}
    if order != "no g_idx":
        parts["g_idx"] = torch.from_numpy(g_idx).int()
    kind = "gptq_v2" if version == 2 else "gptq"
    said = {"bits": bits, "group_size": 32, "sym": False, "checkpoint_format": kind}
    found = decoded(folder(tmp_path, parts, quant_method="gptq", desc_act=order == "by activation", **said))
    assert (found.shape, found.dtype) == ((out, IN), torch.float16)
    for i in range(IN):
        for o in range(out):
            level = torch.tensor(float(codes[i, o] - zeros[g_idx[i], o])).half()
            assert found[o, i] == level * scales[g_idx[i], o]


def test_gptq_zero_points_of_version_1_wrap_around(tmp_path: Path) -> None:
    codes, zeros = np.full((32, 8), 5), np.zeros((1, 8), dtype=int)
    parts = packing.gptq(codes, zeros, 4) | {"scales": torch.ones(1, 8)}
    assert decoded(folder(tmp_path, parts, quant_method="gptq", group_size=-1)).eq(5).all()


@pytest.mark.parametrize("zero_point", [True, False])
def test_awq_element_by_element(zero_point: bool, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    codes, zeros = rng.integers(0, 16, size=(IN, OUT)), rng.integers(0, 16, size=(3, OUT))
    scales = torch.rand(3, OUT, generator=torch.Generator().manual_seed(1)).half()
    parts = {"qweight": packing.awq(codes), "scales": scales}
    if zero_point:
        parts["qzeros"] = packing.awq(zeros)
    found = decoded(folder(tmp_path, parts, quant_method="awq", bits=4, group_size=32, zero_point=zero_point))
    for i in range(IN):
        for o in range(OUT):
            level = float(codes[i, o] - (zeros[i // 32, o] if zero_point else 8))
            assert found[o, i] == torch.tensor(level).half() * scales[i // 32, o]


def test_awq_as_compressed_tensors_converts_it(tmp_path: Path) -> None:
    converters = library("compressed_tensors.entrypoints.convert.converters.autoawq")
    rng = np.random.default_rng(3)
    parts = {
        "qweight": packing.awq(rng.integers(0, 16, size=(IN, OUT))),
        "qzeros": packing.awq(rng.integers(0, 16, size=(3, OUT))),
        "scales": torch.rand(3, OUT, generator=torch.Generator().manual_seed(1)).half(),
    }
    converter = converters.AutoAWQConverter(group_size=32)
    theirs = converter.process({f"m.{part}": tensor.contiguous() for part, tensor in parts.items()})
    packing.write(tmp_path / "theirs", theirs, converter.update_config(None).model_dump(mode="json"))
    ours = decoded(folder(tmp_path / "ours", parts, quant_method="awq", bits=4, group_size=32, zero_point=True))
    assert torch.equal(decoded(tmp_path / "theirs"), ours)


def test_fp8_tiles_element_by_element(tmp_path: Path) -> None:
    """The last tile of either axis is short, as in DeepSeek-V3."""
    codes = weights(200, 300).clamp(-448, 448).to(torch.float8_e4m3fn)
    scales = torch.rand(2, 3, generator=torch.Generator().manual_seed(1))
    parts = {"weight": codes, "weight_scale_inv": scales}
    found = decoded(folder(tmp_path, parts, quant_method="fp8", weight_block_size=[128, 128]))
    for i, j in ((0, 0), (127, 128), (128, 127), (199, 299), (130, 256)):
        assert found[i, j] == codes[i, j].float() * scales[i // 128, j // 128]
    tiles = scales.double().repeat_interleave(128, 0)[:200].repeat_interleave(128, 1)[:, :300]
    assert torch.equal(found, (codes.double() * tiles).float())


@pytest.mark.parametrize("kind", ["float", "ue8m0", "bytes", "tensor"])
def test_fp8_as_transformers_has_it(kind: str, tmp_path: Path) -> None:
    theirs = library("transformers.integrations.finegrained_fp8")
    tile = None if kind == "tensor" else [8, 32]
    settings = SimpleNamespace(weight_block_size=tile, scale_fmt="float" if kind in ("float", "tensor") else "ue8m0")
    made = theirs.Fp8Quantize(SimpleNamespace(quantization_config=settings)).convert({"m.weight": weights()})
    codes, scales = made["m.weight"], made["m.weight_scale_inv"]
    if kind == "bytes":
        scales = scales.view(torch.uint8)
    packing.write(tmp_path, {**made, "m.weight_scale_inv": scales}, {"quant_method": "fp8", "weight_block_size": tile})
    expected = theirs.Fp8Dequantize(None)._dequantize_one(codes, scales, torch.float32)
    assert torch.equal(decoded(tmp_path), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("double", [False, True], ids=["single", "double"])
@pytest.mark.parametrize("kind", ["nf4", "fp4"])
@pytest.mark.parametrize(("block", "shape"), [(64, (24, 128)), (128, (7, 33)), (64, (3, 5))], ids=str)
def test_bitsandbytes_4_bit(kind: str, double: bool, dtype: torch.dtype, block: int, shape: tuple[int, int]) -> None:
    functional = library("bitsandbytes.functional")
    x = weights(*shape).to(dtype)
    codes, kept = functional.quantize_4bit(x, blocksize=block, quant_type=kind, compress_statistics=double)
    parts = {"weight": codes} | {f"weight.{part}": tensor for part, tensor in kept.as_dict(packed=True).items()}
    with TemporaryDirectory() as place:
        found = decoded(folder(Path(place), parts, quant_method="bitsandbytes", load_in_4bit=True))
    with torch.compiler.set_stance("force_eager"):  # else it compiles for seconds
        expected = functional.dequantize_4bit(codes, kept)
    assert (found.shape, found.dtype) == (shape, dtype)
    assert torch.equal(found, expected)


@pytest.mark.parametrize("kind", ["nf4", "fp4"])
def test_bitsandbytes_4_bit_where_blocks_run_across_rows(kind: str, tmp_path: Path) -> None:
    """Its kernel for CPUs begins a block with each row, which its quantization and its other kernels do not.

    A fault of 0.50: what is decoded is two to three times as far from the weights as it was when quantized.
    """
    functional = library("bitsandbytes.functional")
    default = library("bitsandbytes.backends.default.ops")
    x = weights(32, 32)
    codes, kept = functional.quantize_4bit(x, quant_type=kind)
    parts = {"weight": codes} | {f"weight.{part}": tensor for part, tensor in kept.as_dict(packed=True).items()}
    found = decoded(folder(tmp_path, parts, quant_method="bitsandbytes", load_in_4bit=True))
    with torch.compiler.set_stance("force_eager"):
        general = default._dequantize_4bit_compute(codes.flatten(), kept.absmax, kept.code, 64, (32, 32), x.dtype)
    assert torch.equal(found, general)
    theirs = functional.dequantize_4bit(codes, kept)
    if not torch.equal(theirs, general):  # depends on the CPU
        assert (theirs - x).norm() > 1.5 * (found - x).norm()


def test_bitsandbytes_4_bit_codes_stored_as_floats(tmp_path: Path) -> None:
    """As sharded training wants it: `bnb_4bit_quant_storage`."""
    functional = library("bitsandbytes.functional")
    codes, kept = functional.quantize_4bit(weights(24, 128), quant_type="nf4", quant_storage=torch.bfloat16)
    parts = {"weight": codes} | {f"weight.{part}": tensor for part, tensor in kept.as_dict(packed=True).items()}
    found = decoded(folder(tmp_path, parts, quant_method="bitsandbytes", load_in_4bit=True))
    assert torch.equal(found, functional.dequantize_4bit(codes.view(torch.uint8).view(-1, 1), kept))


def test_bitsandbytes_8_bit(tmp_path: Path) -> None:
    functional = library("bitsandbytes.functional")
    codes, absmax, _ = functional.int8_vectorwise_quant(weights().half())
    parts = {"weight": codes, "SCB": absmax, "weight_format": torch.tensor(0, dtype=torch.uint8)}
    found = decoded(folder(tmp_path, parts, quant_method="bitsandbytes", load_in_8bit=True))
    assert torch.equal(found, functional.int8_vectorwise_dequant(codes, absmax))


def test_bitsandbytes_8_bit_tiles_of_a_gpu_are_refused(tmp_path: Path) -> None:
    parts = {"weight": torch.zeros(4, 4).char(), "SCB": torch.ones(4), "weight_format": torch.tensor(2).byte()}
    with pytest.raises(BadModel, match="in the order of a GPU's tiles; save it again by bitsandbytes"):
        decoded(folder(tmp_path, parts, quant_method="bitsandbytes", load_in_8bit=True))


INT = {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "channel", "dynamic": False}
FLOAT = INT | {"type": "float"}
GROUPS = {"strategy": "group", "group_size": 32}
SCHEMES = {
    **{f"int{bits}": ("pack-quantized", INT | GROUPS | {"num_bits": bits}) for bits in range(2, 9)},
    "int4 asymmetric": ("pack-quantized", INT | GROUPS | {"num_bits": 4, "symmetric": False}),
    "int3 asymmetric rows": ("pack-quantized", INT | {"num_bits": 3, "symmetric": False}),
    "int4 rows": ("pack-quantized", INT | {"num_bits": 4}),
    "int8 rows": ("int-quantized", INT),
    "int8 asymmetric tensor": ("int-quantized", INT | {"strategy": "tensor", "symmetric": False}),
    "int8 naive": ("naive-quantized", INT | GROUPS),
    "fp8 rows": ("float-quantized", FLOAT),
    "fp8 tensor": ("float-quantized", FLOAT | {"strategy": "tensor"}),
    "fp8 tiles": ("float-quantized", FLOAT | {"strategy": "block", "block_structure": [16, 40]}),
    "mxfp8": ("mxfp8-quantized", FLOAT | GROUPS | {"scale_dtype": "torch.uint8"}),
    "mxfp4": ("mxfp4-pack-quantized", FLOAT | GROUPS | {"num_bits": 4}),
    "nvfp4": ("nvfp4-pack-quantized", FLOAT | {"num_bits": 4, "strategy": "tensor_group", "group_size": 16}),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("name", SCHEMES)
def test_compressed_tensors(name: str, dtype: torch.dtype, tmp_path: Path) -> None:
    ct, compressors = library("compressed_tensors.quantization"), library("compressed_tensors.compressors")
    packing_name, how = SCHEMES[name]
    scheme = ct.QuantizationScheme(targets=["Linear"], weights=ct.QuantizationArgs(**how), format=packing_name)
    compressor = compressors.BaseCompressor.get_value_from_registry(packing_name)
    loose = {"weight": weights().to(dtype)} | scales_for(name, how, dtype)
    parts = compressor.compress(loose, scheme)
    quantization = {"format": packing_name, "config_groups": {"a": scheme.model_dump(mode="json")}}
    found = decoded(folder(tmp_path, parts, quant_method="compressed-tensors", **quantization))
    expected = compressor.decompress(parts, scheme)["weight"]
    # Theirs rounds four-bit floats to bfloat16, whatever the model has; ours are exact.
    assert torch.equal(found.to(expected.dtype), expected)


def scales_for(name: str, how: Mapping, dtype: torch.dtype) -> dict[str, Tensor]:
    """Any scales will do: what they clip is codes too."""
    g = torch.Generator().manual_seed(5)
    counts = {"group": (OUT, IN // how.get("group_size", IN)), "channel": (OUT, 1), "tensor": (1,), "block": (2, 3)}
    shape = counts.get(how["strategy"], (OUT, IN // 16))
    scale = torch.rand(shape, generator=g) / 4 + 0.01
    if name.startswith("mx"):
        return {"weight_scale": torch.exp2(torch.randint(-4, 2, shape, generator=g)).to(dtype)}
    if name == "nvfp4":
        return {
            "weight_scale": (scale * 100).to(torch.float8_e4m3fn).to(dtype),
            "weight_global_scale": torch.tensor([60.0]),
        }
    half = 2 ** (how["num_bits"] - 1)
    zeros = torch.randint(-half, half, shape, generator=g).char()
    return {"weight_scale": scale.to(dtype)} | ({} if how["symmetric"] else {"weight_zero_point": zeros})


def test_compressed_integers_element_by_element(tmp_path: Path) -> None:
    """Without the library: a code is its value plus half the range, and zero points are packed down the rows."""
    rng = np.random.default_rng(0)
    codes, zeros = rng.integers(-8, 8, size=(OUT, IN)), rng.integers(-8, 8, size=(OUT, 3))
    scales = torch.rand(OUT, 3, generator=torch.Generator().manual_seed(1)).bfloat16()
    parts = {
        "weight_packed": packing.pack_down((codes + 8).T, 4).T,
        "weight_zero_point": packing.pack_down(zeros + 8, 4),
        "weight_scale": scales,
        "weight_shape": torch.tensor([OUT, IN]),
    }
    how = INT | {"num_bits": 4, "strategy": "group", "group_size": 32, "symmetric": False}
    groups = {"a": {"targets": ["re:.*"], "weights": how}}
    said = {"quant_method": "compressed-tensors", "format": "pack-quantized", "config_groups": groups}
    found = decoded(folder(tmp_path, parts, **said))
    for o in range(OUT):
        for i in range(IN):
            level = torch.tensor(float(codes[o, i] - zeros[o, i // 32])).bfloat16()
            assert found[o, i] == level * scales[o, i // 32]


@pytest.mark.parametrize("order", ["by activation", "none"])
def test_compressed_columns_in_the_order_of_activations(order: str, tmp_path: Path) -> None:
    """Older folders have `weight_g_idx`: the group of each column, or -1 for the usual order."""
    codes = torch.randint(-8, 8, (OUT, IN), generator=torch.Generator().manual_seed(2)).char()
    scales = torch.rand(OUT, 3, generator=torch.Generator().manual_seed(1))
    groups = torch.arange(IN) // 32
    if order == "by activation":
        groups = groups[torch.randperm(IN, generator=torch.Generator().manual_seed(0))]
    parts = {"weight": codes, "weight_scale": scales}
    parts["weight_g_idx"] = groups.int() if order == "by activation" else torch.full((IN,), -1).int()
    said = {"a": {"targets": ["Linear"], "weights": INT | {"strategy": "group", "group_size": 32}}}
    found = decoded(
        folder(tmp_path, parts, quant_method="compressed-tensors", format="naive-quantized", config_groups=said)
    )
    assert torch.equal(found, codes.float() * torch.stack([scales[:, group] for group in groups], 1))


def test_codes_that_do_not_fit_their_scales_are_named(tmp_path: Path) -> None:
    parts = {"weight": torch.zeros(4, 6).char(), "SCB": torch.ones(5)}
    with pytest.raises(BadModel, match=r"m.weight: bitsandbytes 8-bit codes that do not fit .* SCB \[5\]"):
        decoded(folder(tmp_path, parts, quant_method="bitsandbytes", load_in_8bit=True))


def test_parts_in_different_shards_find_each_other(tmp_path: Path) -> None:
    g = torch.Generator().manual_seed(0)
    tensors = {f"{m}.weight": torch.randint(-9, 9, (4, 4), generator=g).char() for m in "abc"}
    tensors |= {f"{m}.SCB": torch.rand(4, generator=g) for m in "abc"} | {"n.weight": torch.rand(4, generator=g)}
    said = {"quant_method": "bitsandbytes", "load_in_8bit": True}
    one = dict(decoded_state(packing.write(tmp_path / "one", tensors, said)))
    four = dict(decoded_state(packing.write(tmp_path / "four", tensors, said, shards=4)))
    assert one.keys() == four.keys() == {"a.weight", "b.weight", "c.weight", "n.weight"}
    assert all(torch.equal(one[name], four[name]) for name in one)
