"""What a quantized checkpoint says about itself, and the model that it becomes; torchao and bitsandbytes as oracles."""

import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import packing
import pytest
import torch
from libraries import library
from random_models import folder as random_folder
from random_models import inputs
from safetensors.torch import save_file
from torch import Tensor

from qbench.models.decode import decoded_state
from qbench.models.finished import METHODS, Finished, finished
from qbench.models.finished_load import load_finished
from qbench.models.folder import AUTO, BadModel, MissingPackage, layout, look
from qbench.quant.spelling import parse

CAUSAL = AUTO["causal-lm"]
EIGHT = {"quant_method": "bitsandbytes", "load_in_8bit": True}


def read(path: Path) -> Finished:
    folder = look(path)
    found = finished(folder.config, layout(folder))
    assert found is not None
    return found


def gptq_parts(out: int = 64, wide: int = 256, groups: int = 2, bits: int = 4) -> dict[str, Tensor]:
    codes = np.random.default_rng(0).integers(0, 2**bits, size=(wide, out))
    parts = packing.gptq(codes, np.full((groups, out), 2 ** (bits - 1)), bits)
    return parts | {"scales": torch.ones(groups, out).half(), "g_idx": (torch.arange(wide) * groups // wide).int()}


def gptq_folder(place: Path, said: Mapping = {}, **parts: Tensor) -> Path:
    tensors = {f"model.layers.0.mlp.up_proj.{part}": tensor for part, tensor in (gptq_parts() | parts).items()}
    tensors["lm_head.weight"] = torch.ones(4, 64)
    quantization = {"quant_method": "gptq", "bits": 4, "group_size": 128, "sym": True, "desc_act": False}
    return packing.write(place, tensors, quantization | dict(said))


def test_a_plain_model_is_not_finished(tmp_path: Path) -> None:
    folder = look(packing.write(tmp_path, {"m.weight": torch.ones(2, 2)}, None))
    assert finished(folder.config, layout(folder)) is None
    with pytest.raises(BadModel, match="no quantization_config"):
        list(decoded_state(folder))
    with pytest.raises(BadModel, match="it is a plain model"):
        load_finished(folder, CAUSAL)


def test_it_is_read_without_torch(tmp_path: Path) -> None:
    path = gptq_folder(tmp_path)
    code = (
        "import sys; from qbench.models.folder import look, layout; from qbench.models.finished import finished;"
        f"f = look({str(path)!r}); print(finished(f.config, layout(f)).groups[0].format, 'torch' in sys.modules)"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert said == "int4.full/block:128/scale:fp16 False\n"


def test_bits_are_counted_from_the_files(tmp_path: Path) -> None:
    """256 x 64 codes of 4 bits, two groups of 64 half floats and 64 4-bit zero points, and 256 int32 of g_idx."""
    found = read(gptq_folder(tmp_path))
    (group,) = found.groups
    assert group.stored_bits == (256 * 64 * 4 + 2 * 64 * (16 + 4) + 256 * 32) / (256 * 64)
    assert (group.bits, group.group, group.symmetric, group.scale) == (4, "block:128", True, "F16")
    assert group.weights == ("model.layers.0.mlp.up_proj.weight",)
    assert found.left == ("lm_head.weight",)
    assert found.decodable


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ({}, "int4.full/block:128/scale:fp16"),
        ({"sym": False}, "int4.asym/block:128/scale:fp16"),
        ({"bits": 2}, "int4.full/block:128/scale:fp16"),  # gptqmodel's `dynamic` may overrule it: shapes decide
        ({"group_size": 64}, "int4.full/block:128/scale:fp16"),
    ],
)
def test_gptq_is_spelled_as_a_quantizer(said: Mapping, expected: str, tmp_path: Path) -> None:
    (group,) = read(gptq_folder(tmp_path, said)).groups
    assert group.format == str(parse(expected)) == expected
    assert group.ours


def test_the_last_group_of_a_row_may_be_short(tmp_path: Path) -> None:
    (group,) = read(gptq_folder(tmp_path, {"group_size": 192})).groups
    assert group.format == "int4.full/block:192/scale:fp16"


def test_columns_in_another_order_are_no_quantizer_of_ours(tmp_path: Path) -> None:
    (group,) = read(gptq_folder(tmp_path, {"desc_act": True})).groups
    assert not group.ours
    assert group.format == "int4.full codes, block:128, F16 scales, columns in the order of their activations"


def test_awq_with_one_group_a_row(tmp_path: Path) -> None:
    codes = np.zeros((64, 16), dtype=int)
    parts = {"qweight": packing.awq(codes), "qzeros": packing.awq(codes[:1]), "scales": torch.ones(1, 16).half()}
    said = {"quant_method": "awq", "bits": 4, "group_size": -1, "modules_to_not_convert": ["visual"]}
    found = read(packing.write(tmp_path, {f"m.{part}": tensor for part, tensor in parts.items()}, said))
    assert [group.format for group in found.groups] == ["int4.asym/channel/scale:fp16"]
    assert found.groups[0].stored_bits == 4 + (16 + 4) / 64
    assert found.spared == ("visual",)
    assert str(parse(found.groups[0].format)) == found.groups[0].format


WEIGHTS = {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "channel"}
TOKENS = {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "token", "dynamic": True}


def compressed(place: Path, groups: Mapping, **said: object) -> Path:
    tensors = {f"model.layers.0.{m}.weight": torch.zeros(8, 64).char() for m in ("up_proj", "down_proj")}
    tensors |= {f"model.layers.0.{m}.weight_scale": torch.ones(8, 1).bfloat16() for m in ("up_proj", "down_proj")}
    tensors |= {"model.layers.0.up_proj.input_scale": torch.ones(1), "model.layers.0.attn.k_scale": torch.ones(1)}
    tensors |= {"model.embed_tokens.weight": torch.zeros(9, 8)}
    quantization = {"quant_method": "compressed-tensors", "format": "int-quantized", "config_groups": groups, **said}
    return packing.write(place, tensors, quantization)


def test_schemes_by_name_by_pattern_and_by_class(tmp_path: Path) -> None:
    groups = {
        "embeddings": {"targets": ["Embedding"], "weights": WEIGHTS | {"symmetric": False}},
        "everything": {"targets": ["Linear"], "weights": WEIGHTS},
        "down": {"targets": ["re:.*down"], "weights": WEIGHTS, "input_activations": TOKENS},
    }
    eight = {"num_bits": 8, "type": "float", "strategy": "tensor", "dynamic": False}
    found = read(compressed(tmp_path, groups, ignore=["lm_head"], kv_cache_scheme=eight))
    assert found.cache == "e4m3/tensor with a stored scale"
    assert {g.weights: (g.format, g.activations) for g in found.groups} == {
        ("model.layers.0.up_proj.weight",): ("int8.middle/channel/scale:bf16", ""),
        ("model.layers.0.down_proj.weight",): ("int8.middle/channel/scale:bf16", "int8.middle/token"),
    }
    assert found.spared == ("lm_head",)
    assert set(found.runtime) == {"model.layers.0.up_proj.input_scale", "model.layers.0.attn.k_scale"}
    assert found.left == ("model.embed_tokens.weight",)
    assert {name for name, _ in decoded_state(tmp_path)} == {*found.weights, "model.embed_tokens.weight"}


def test_scales_of_activations_that_are_stored_are_said_to_be(tmp_path: Path) -> None:
    groups = {"a": {"targets": ["Linear"], "weights": WEIGHTS, "input_activations": WEIGHTS | {"strategy": "tensor"}}}
    (group,) = read(compressed(tmp_path, groups)).groups
    assert group.activations == "int8.middle/tensor with a stored scale"


def test_codes_that_no_scheme_targets_are_an_error(tmp_path: Path) -> None:
    groups = {"a": {"targets": ["re:.*gate"], "weights": WEIGHTS}}
    with pytest.raises(BadModel, match=r"_proj has codes, but no group .* targets are \['re:.\*gate'\]"):
        read(compressed(tmp_path, groups))


def test_what_is_not_decoded_is_left_to_transformers(plain: Path, tmp_path: Path) -> None:
    """BitNet's ternary weights, four to a byte, which it unpacks without a package of its own."""
    packer = library("transformers.integrations.bitnet")
    tensors = packing.state(plain)
    for name in [name for name in tensors if ".layers." in name and tensors[name].ndim == 2]:
        tensors[name] = packer.pack_weights(tensors[name].sign())
        tensors[name.removesuffix("weight") + "weight_scale"] = torch.ones(1)
    path = packing.write(tmp_path, tensors, {"quant_method": "bitnet"}, **packing.config(plain))
    assert not read(path).decodable
    assert torch.equal(logits(loaded(path)), logits(theirs(path)))


REFUSED = {
    "rotations": ({"transform_config": {"config_groups": {"u": {}}}}, "rotates activations"),
    "packing": ({"format": "mxfp6-pack-quantized"}, "the packing mxfp6-pack-quantized is not decoded here"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_decoded_names_its_package(case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said, words = REFUSED[case]
    path = compressed(tmp_path, {"a": {"targets": ["Linear"], "weights": WEIGHTS}}, **said)
    assert words in read(path).refusal
    monkeypatch.setattr("qbench.models.finished_load.find_spec", lambda _: None)
    with pytest.raises(MissingPackage, match=f"{words}.* with compressed-tensors; pip install compressed-tensors"):
        load_finished(look(path), CAUSAL)
    with pytest.raises(BadModel, match=words):
        list(decoded_state(path))


@pytest.mark.parametrize("method", [name for name, row in METHODS.items() if row.read is None])
def test_methods_that_only_their_package_reads(method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = packing.write(tmp_path, {"m.codes": torch.zeros(4).char()}, {"quant_method": method})
    found = read(path)
    assert (found.method, found.groups, found.decodable) == (method, (), False)
    monkeypatch.setattr("qbench.models.finished_load.find_spec", lambda _: None)
    with pytest.raises(MissingPackage, match=f"pip install {' '.join(METHODS[method].packages)}$"):
        load_finished(look(path), CAUSAL)


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ({"quant_method": "magic"}, "has the quant_method 'magic'; known: compressed-tensors, gptq"),
        ({"quant_method": "awq", "version": "gemv"}, "only the gemm version of awq"),
        ({"checkpoint_format": "marlin"}, "only the formats gptq and gptq_v2 are decoded here, not marlin"),
        ({"quant_method": "compressed-tensors"}, "no tensor of its files has the names that compressed-tensors"),
    ],
)
def test_mistakes_are_one_line(said: Mapping, words: str, tmp_path: Path) -> None:
    path = gptq_folder(tmp_path, said)
    with pytest.raises(BadModel, match=words):
        list(decoded_state(path))


def test_missing_parts_are_named(tmp_path: Path) -> None:
    tensors = {f"m.{part}": tensor for part, tensor in gptq_parts().items() if part != "scales"}
    with pytest.raises(BadModel, match=r"model.safetensors: m has g_idx, qweight, qzeros and no scales"):
        read(packing.write(tmp_path, tensors, {"quant_method": "gptq", "bits": 4}))


@pytest.mark.parametrize("groups", [{"a": {"targets": ["Linear"], "weights": {"strategy": "channel"}}}, ["W8A8"], 5])
def test_a_config_without_the_keys_of_its_method(groups: object, tmp_path: Path) -> None:
    with pytest.raises(BadModel, match=r"quantization_config of compressed-tensors cannot be read|no group of"):
        read(compressed(tmp_path, groups))  # pyright: ignore[reportArgumentType]


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return random_folder("llama", tmp_path_factory.mktemp("plain"))


def saved(plain: Path, place: Path, config: object, **keywords: object) -> Path:
    """What transformers writes when it has quantized the model."""
    transformers = library("transformers")
    model = transformers.AutoModelForCausalLM.from_pretrained(
        plain, quantization_config=config, dtype=torch.float32, device_map="cpu"
    )
    model.save_pretrained(place, **keywords)
    return place


def loaded(path: Path) -> torch.nn.Module:
    return load_finished(look(path), CAUSAL, dtype=torch.float32).eval()


def theirs(path: Path) -> torch.nn.Module:
    transformers = library("transformers")
    return transformers.AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32, device_map="cpu")


@torch.no_grad()
def logits(model: torch.nn.Module, family: str = "llama") -> Tensor:
    with torch.compiler.set_stance("force_eager"):
        return model(inputs(family)).logits


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """64 and 128 wide: bitsandbytes 0.50 decodes wrongly on a CPU where its blocks run across rows."""
    transformers = library("transformers")
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
    place = tmp_path_factory.mktemp("wide")
    torch.manual_seed(0)
    transformers.LlamaForCausalLM(transformers.LlamaConfig(vocab_size=97, **sizes)).save_pretrained(place)
    return place


@pytest.mark.parametrize("double", [False, True], ids=["single", "double"])
@pytest.mark.parametrize("kind", ["nf4", "fp4"])
def test_bitsandbytes_4_bit_gives_the_logits_of_transformers(
    kind: str, double: bool, wide: Path, tmp_path: Path
) -> None:
    library("bitsandbytes")
    config = library("transformers").BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type=kind, bnb_4bit_use_double_quant=double
    )
    path = saved(wide, tmp_path, config)
    found = read(path)
    expected = {"nf4": "nf4", "fp4": "bnbfp4"}[kind] + "/block:64" + ("/scale:double" if double else "")
    assert [group.format for group in found.groups] == [expected]
    assert str(parse(expected)) == expected
    assert "lm_head.weight" in found.left
    # In eval mode and on a CPU with bfloat16 their layers round to it, and repack their codes for good.
    assert torch.equal(logits(loaded(path)), logits(theirs(path).train()))


def test_bitsandbytes_8_bit_gives_the_logits_of_its_dequantized_weights(wide: Path, tmp_path: Path) -> None:
    library("bitsandbytes")
    path = saved(wide, tmp_path, library("transformers").BitsAndBytesConfig(load_in_8bit=True))
    (group,) = read(path).groups
    assert (group.format, group.activations) == ("int8/channel", "int8/token, outlier channels in 16 bits")
    assert torch.equal(logits(loaded(path)), logits(theirs(path).dequantize(torch.float32)))


@pytest.mark.parametrize("shards", [1, 7])
@pytest.mark.parametrize(
    ("config", "arguments", "expected"),
    [
        ("Int8WeightOnlyConfig", {"version": 2}, "int8.full/channel"),
        ("Float8WeightOnlyConfig", {}, "e4m3/channel"),
        ("IntxWeightOnlyConfig", {"weight_dtype": torch.int4}, "int4.full/block:16"),
    ],
)
def test_torchao_gives_the_logits_of_transformers(
    config: str, arguments: Mapping, expected: str, shards: int, plain: Path
) -> None:
    ao, transformers = library("torchao.quantization"), library("transformers")
    settings = dict(arguments) | ({"granularity": ao.PerGroup(16)} if "weight_dtype" in arguments else {})
    place = plain.parent / f"{config}-{shards}"
    path = saved(
        plain, place, transformers.TorchAoConfig(getattr(ao, config)(**settings)), max_shard_size=60_000 // shards
    )
    assert len(look(path).shards) >= min(shards, 2)
    assert {group.format for group in read(path).groups} == {expected}
    assert str(parse(expected)) == expected
    # Their int8 kernel multiplies by the scales after the sum.
    assert torch.allclose(logits(loaded(path)), logits(theirs(path)), atol=1e-5, rtol=0)
    state = dict(decoded_state(path))
    for name, parameter in theirs(path).named_parameters():
        if hasattr(parameter, "qdata"):
            assert torch.equal(state[name], parameter.dequantize())


def test_compressed_tensors_give_the_logits_of_transformers(plain: Path, tmp_path: Path) -> None:
    """Symmetric: transformers 5.23 cannot load the packed zero points that compressed-tensors 0.20 writes."""
    ct, compressors = library("compressed_tensors.quantization"), library("compressed_tensors.compressors")
    model = theirs(plain)
    four = ct.QuantizationArgs(num_bits=4, strategy="group", group_size=16)
    eight = ct.QuantizationArgs(num_bits=8, strategy="channel")
    groups = {
        "four": ct.QuantizationScheme(targets=["re:.*mlp.*"], weights=four),
        "eight": ct.QuantizationScheme(targets=["re:.*self_attn.*"], weights=eight),
    }
    ct.apply_quantization_config(model, ct.QuantizationConfig(config_groups=groups, ignore=["lm_head"]))
    for module in model.modules():
        if scheme := getattr(module, "quantization_scheme", None):
            weight = module.weight.data
            rows = weight.unflatten(1, (-1, 16)) if scheme.weights.num_bits == 4 else weight[:, None]
            low, high = rows.amin(-1), rows.amax(-1)
            module.weight_scale.data.copy_(ct.utils.calculate_qparams(low, high, scheme.weights)[0])
    compressor = compressors.ModelCompressor.from_pretrained_model(model)
    compressor.compress_model(model)
    model.save_pretrained(tmp_path)
    compressor.update_config(tmp_path)
    assert {(g.format, len(g.weights)) for g in read(tmp_path).groups} == {
        ("int4.middle/block:16", 6),
        ("int8.middle/channel", 8),
    }
    assert torch.equal(logits(loaded(tmp_path)), logits(theirs(tmp_path)))


def quantized_by_hand(plain: Path, place: Path) -> tuple[Path, dict[str, Tensor]]:
    """The matrices of a plain folder's blocks in float8 under tiles of 8 x 16; and what they should decode to."""
    kept = packing.state(plain)
    tensors: dict[str, Tensor] = {}
    for name, weight in kept.items():
        tensors[name] = weight
        if ".layers." in name and weight.ndim == 2:
            tiles = torch.full((-(-weight.shape[0] // 8), -(-weight.shape[1] // 16)), 0.25)
            tensors |= {name: (weight * 4).to(torch.float8_e4m3fn), f"{name}_scale_inv": tiles}
            kept[name] = tensors[name].float() / 4
    config = packing.config(plain)
    return packing.write(place, tensors, {"quant_method": "fp8", "weight_block_size": [8, 16]}, **config), kept


@pytest.mark.parametrize("family", ["llama", "llama-tied", "mixtral"])
def test_a_finished_model_is_the_plain_model_of_its_decoded_weights(family: str, tmp_path: Path) -> None:
    """Experts too, which files have one by one and the model stacked; and a head that is the embedding."""
    path, kept = quantized_by_hand(random_folder(family, tmp_path), tmp_path / "fp8")
    base = packing.write(tmp_path / "decoded", kept, None, **packing.config(tmp_path / family))
    assert torch.equal(logits(loaded(path), family), logits(theirs(base), family))
    before = logits(theirs(tmp_path / family), family)
    assert not torch.equal(logits(theirs(base), family), before)
    half = load_finished(look(path), CAUSAL, dtype="bfloat16")
    assert {parameter.dtype for parameter in half.parameters()} == {torch.bfloat16}


def test_weights_that_gpt2_keeps_the_other_way_round(tmp_path: Path) -> None:
    """Quantized, they are [out, in] as everywhere; one projection is square, so that no shape tells."""
    library("bitsandbytes")
    transformers = library("transformers")
    still = {"embd_pdrop": 0.0, "attn_pdrop": 0.0, "resid_pdrop": 0.0}
    config = transformers.GPT2Config(vocab_size=97, n_embd=64, n_head=4, n_layer=2, n_positions=32, **still)
    torch.manual_seed(0)
    transformers.GPT2LMHeadModel(config).save_pretrained(tmp_path / "base")
    path = saved(tmp_path / "base", tmp_path / "4-bit", transformers.BitsAndBytesConfig(load_in_4bit=True))
    ours, other = loaded(path), theirs(path).train()
    assert torch.allclose(logits(ours, "gpt2"), logits(other, "gpt2"), atol=1e-5, rtol=0)


def test_tensors_that_the_model_lacks_or_does_not_know(plain: Path, tmp_path: Path) -> None:
    path, kept = quantized_by_hand(plain, tmp_path / "whole")
    tensors, config = packing.state(path), packing.config(path)
    without = {name: tensor for name, tensor in tensors.items() if name != "model.norm.weight"}
    with pytest.raises(BadModel, match=r"1 tensors are missing .* would be random: model.norm.weight"):
        loaded(packing.write(tmp_path / "without", without, None, **config))
    more = tensors | {"model.layers.0.extra.weight": torch.ones(2, 2)}
    with pytest.raises(BadModel, match=r"1 tensors are unexpected .* does not have: model.layers.0.extra.weight"):
        loaded(packing.write(tmp_path / "more", more, None, **config))
    other = config | {"intermediate_size": 40}
    with pytest.raises(BadModel, match=r"proj.weight is \[.*48.*\] when decoded, and \[.*40.*\] by config.json"):
        loaded(packing.write(tmp_path / "other", tensors, None, **other))
    assert kept


def test_small_floats_without_scales_are_no_weights(tmp_path: Path) -> None:
    """As stacked experts have them, whose scales have another name."""
    codes = torch.ones(2, 2).to(torch.float8_e4m3fn)
    tensors = {"m.weight": codes, "m.weight_scale_inv": torch.ones(1, 1), "experts.down_proj": codes.clone()}
    said = {"quant_method": "fp8", "weight_block_size": [128, 128]}
    assert read(packing.write(tmp_path, tensors, said)).refusal == (
        "1 tensors are codes to which no scales were found: experts.down_proj"
    )


def test_torchao_layers_that_scale_their_inputs_are_not_plain_weights(tmp_path: Path) -> None:
    entry = {"_type": "Int4Tensor", "_data": {"block_size": [1, 4], "shape": [4, 8]}}
    entry["_tensor_data_names"] = ["qdata", "scale", "zero_point", "act_pre_scale"]
    tensors = {"m._weight_qdata": torch.zeros(4, 4).char(), "m._weight_scale": torch.ones(2, 4).bfloat16()}
    tensors |= {"m._weight_zero_point": torch.zeros(2, 4).bfloat16(), "m._weight_act_pre_scale": torch.ones(8)}
    path = packing.write(tmp_path, tensors, {"quant_method": "torchao", "quant_type": {"default": {}}})
    save_file(tensors, path / "model.safetensors", {"m.weight": json.dumps(entry), "tensor_names": '["m.weight"]'})
    found = read(path)
    assert "1 layers scale their inputs when the model runs" in found.refusal
    (group,) = found.groups
    assert (group.format, group.bits, group.values) == ("int4.full/block:4/scale:bf16", 4, 32)


def test_torchao_without_a_description_in_its_shards(tmp_path: Path) -> None:
    tensors = {"m._weight_qdata": torch.zeros(4, 4).char(), "m._weight_scale": torch.ones(4, 1)}
    said = {"quant_method": "torchao", "quant_type": {"default": json.loads("{}")}}
    with pytest.raises(BadModel, match="quantized by torchao, but no shard says how"):
        read(packing.write(tmp_path, tensors, said))
