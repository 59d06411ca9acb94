"""The bytes of a model by kind, against counts by hand."""

import json
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from qbench.capture.families import weight_site
from qbench.models.bytes import GROUPS, Bytes, Part, Stored, parts, table
from qbench.models.folder import layout, look
from qbench.quant.catalog import quantizer_spec
from qbench.quant.spec import bits_per_value

WIDTH, HIDDEN, WORDS = 64, 96, 100
CONFIG = {"model_type": "llama", "num_hidden_layers": 2, "tie_word_embeddings": False}


def decoder(path: Path, *, tied: bool = False) -> tuple[Part, ...]:
    """Two blocks in bf16: per block q [64, 64], up [96, 64] and a gain of 64; an embedding and a head of [100, 64]."""
    shapes = {"model.embed_tokens.weight": (WORDS, WIDTH), "model.norm.weight": (WIDTH,)}
    shapes |= {} if tied else {"lm_head.weight": (WORDS, WIDTH)}
    for i in range(2):
        inside = {"self_attn.q_proj.weight": (WIDTH, WIDTH), "mlp.up_proj.weight": (HIDDEN, WIDTH)}
        inside |= {"input_layernorm.weight": (WIDTH,), "self_attn.q_proj.bias": (WIDTH,)}
        shapes |= {f"model.layers.{i}.{name}": shape for name, shape in inside.items()}
    config = {**CONFIG, "tie_word_embeddings": tied}
    (path / "config.json").write_text(json.dumps(config))
    save_file({name: torch.ones(shape).bfloat16() for name, shape in shapes.items()}, path / "model.safetensors")
    folder = look(path)
    return parts(layout(folder).values(), lambda name: weight_site(name, folder.config))


def lines(found: Bytes) -> Mapping[str, tuple[int, float, float]]:
    return {row.what: (row.parameters, row.before, row.after) for row in found.rows}


def test_every_kind_of_tensor_is_counted(tmp_path: Path) -> None:
    found = table(decoder(tmp_path))
    assert lines(found) == {
        "blocks.*.attn.q": (8192, 16384, 16384),
        "blocks.*.mlp.up": (12288, 24576, 24576),
        "logits": (6400, 12800, 12800),
        "embed": (6400, 12800, 12800),
        "model.layers.*.input_layernorm.weight": (128, 256, 256),
        "model.norm.weight": (64, 128, 128),
        "model.layers.*.self_attn.q_proj.bias": (128, 256, 256),
    }
    assert [row.group for row in found.rows] == ["linear", "linear", "head", "embedding", "norms", "norms", "biases"]
    assert (found.parameters, found.before, found.bits_per_parameter) == (33600, 67200, 16)


def test_a_treatment_shrinks_what_it_names_and_the_rest_says_why(tmp_path: Path) -> None:
    model = decoder(tmp_path)
    spec = quantizer_spec("int4/block:32/scale:bf16")
    treated = {p.site: Stored(bits_per_value(spec, p.shape, 0), spec.bits) for p in model if p.group == "linear"}
    found = table(model, treated)
    assert set(treated.values()) == {Stored(4.5, 4)}
    # 20480 values in 4 bits, 640 scales of two bytes; head and embedding, gains and biases as they were
    assert found.after == 20480 / 2 + 640 * 2 + 2 * 12800 + 256 + 128 + 256
    assert found.bits_per_parameter == pytest.approx(8 * found.after / 33600)
    assert [(row.what, row.after) for row in found.unshrunk[:3]] == [
        ("logits", 12800),
        ("embed", 12800),
        ("scales and zero points", 1280),
    ]
    why = {row.group: row.why for row in found.unshrunk}
    assert "look up" in why["embedding"]
    assert "every logit" in why["head"]
    assert "one number for each channel" in why["norms"]
    assert why["scales"] == "came with the treatment: 0.5 bits for each value treated"
    assert "linear" not in why


def test_blocks_that_a_treatment_leaves_out_are_a_row_of_their_own(tmp_path: Path) -> None:
    found = table(decoder(tmp_path), {"blocks.1.attn.q": Stored(8, 8)})
    rows = [(row.tensors, row.before, row.after, row.why) for row in found.rows if row.what == "blocks.*.attn.q"]
    assert rows == [(1, 8192, 4096, ""), (1, 8192, 8192, "a matrix that the treatment leaves out")]


def test_a_tied_head_is_counted_once_and_named(tmp_path: Path) -> None:
    model = decoder(tmp_path, tied=True)
    found = table(model, tied=True)
    assert found.parameters == 33600 - 6400
    assert [row.why for row in found.rows if row.what == "embed"] == [
        "left out of the treatment: it is the head too (tied), and its error goes into every logit"
    ]
    copied = table([*model, Part("lm_head.weight", (WORDS, WIDTH), 12800)], tied=True)
    assert [row.why for row in copied.rows if row.group == "head"] == [
        "a copy of the embedding, which is the head (tied): it need not be stored"
    ]


def test_experts_of_a_stack_are_treated_one_by_one() -> None:
    stack = Part("layers.0.experts.down_proj", (4, 8, 16), 4 * 128 * 2, "blocks.0.mlp.experts.*.out")
    treated = {f"blocks.0.mlp.experts.{i}.out": Stored(4.25, 4) for i in (0, 2, 3)}
    found = table([stack], treated)
    assert [(row.group, row.parameters, row.before, row.after) for row in found.rows] == [
        ("experts", 384, 768, 192),
        ("experts", 128, 256, 256),
        ("scales", 0, 0, 12),
    ]
    assert found.parameters == 512


def test_a_treatment_that_saves_nothing_says_so() -> None:
    fp8 = Part("q", (8, 8), 64, "blocks.0.attn.q")
    (row, _) = table([fp8], {"blocks.0.attn.q": Stored(8.5, 8)}).rows
    assert row.why == "treated, and no smaller: 8.5 bits for what has 8"
    assert (row.bits_before, row.bits_after) == (8, 8)


def test_a_site_that_is_not_there_is_a_mistake() -> None:
    with pytest.raises(KeyError, match=r"no matrix blocks\.9\.attn\.q; the model has blocks\.0\.attn\.q"):
        table([Part("q", (8, 8), 64, "blocks.0.attn.q")], {"blocks.9.attn.q": Stored(4, 4)})


@pytest.mark.parametrize(
    ("name", "shape", "group"),
    [
        ("h.3.ln_1.weight", (8,), "norms"),
        ("bert.embeddings.LayerNorm.weight", (8,), "norms"),
        ("bert.embeddings.LayerNorm.bias", (8,), "biases"),
        ("model.layers.0.self_attn.q_norm.weight", (8,), "norms"),
        ("transformer.wpe.weight", (8, 8), "embedding"),
        ("vit.embeddings.cls_token", (1, 1, 8), "embedding"),
        ("vit.embeddings.patch_embeddings.projection.weight", (8, 3, 4, 4), "other"),
        ("cls.predictions.decoder.weight", (8, 8), "head"),
        ("something.weight", (8, 8), "linear"),
        ("something.experts.gate", (2, 8, 8), "experts"),
        ("rotary.inv_freq", (8,), "other"),
        ("encoder.layer.1.layer_scale1.lambda1", (8,), "norms"),
    ],
)
def test_a_tensor_without_a_site_is_told_by_its_name(name: str, shape: tuple[int, ...], group: str) -> None:
    assert Part(name, shape, 1).group == group
    assert group in GROUPS


def test_nothing_weighs_nothing() -> None:
    assert (table([]).bits_per_parameter, table([]).rows) == (0.0, ())
