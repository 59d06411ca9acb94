"""Weights measured where they lie in a checkpoint: the numbers of the whole matrix, in a bounded memory."""

import json
import os
import struct
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from stored_models import anonymous, watched
from torch import Tensor

from qbench.capture import shards, streamed
from qbench.capture.shards import checkpoint
from qbench.capture.streamed import SPARE, Streamed, feed
from qbench.metrics.shape import ShapeSums, swept
from qbench.models.folder import BadModel
from qbench.quant import native
from qbench.quant.blocks import NonFinite
from qbench.quant.quantizer import build
from qbench.quant.smooth import Calibration
from qbench.quant.sums import ErrorSums, Table

WAYS = {
    "run": (
        "int4/token",
        "int8/channel",
        "int4.asym/block:32",
        "mxfp4",
        "lloyd4/block:64",
        "int4/channel/percentile:99",
    ),
    "rotated": ("int4/block:32+hadamard:32", "int4/token+rht:0"),
    "aligned": ("e4m3/tile:128x128", "int4/tile:16x16", "int4/block:24@0"),
    "smooth": ("int8/token+smooth:0.5",),
    "range": ("int8/tensor", "int4.asym/tensor", "int4/tensor/rms", "nvfp4"),
    "scales": ("nf4/block:64/scale:double", "int4/tensor+hadamard", "nvfp4+hadamard:16", "int8.asym/tensor/rtz"),
    "whole": ("int4/token/sr:0", "kmeans4/tensor", "int8/tensor/percentile:99.9"),
}


def folder(path: Path, config: Mapping[str, object], tensors: Mapping[str, Tensor]) -> Path:
    path.mkdir(exist_ok=True)
    (path / "config.json").write_text(json.dumps(config))
    save_file(dict(tensors), path / "model.safetensors")
    return path


def heavy(*shape: int) -> Tensor:
    g = torch.Generator().manual_seed(1)
    return torch.randn(shape, generator=g) * torch.randn(shape[-1], generator=g).exp()


@pytest.fixture
def short_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """A matrix of 192,000 values comes in three runs, the last of them short."""
    for module in (shards, streamed):
        monkeypatch.setattr(module, "RUN", 2**16)


def expect_same(found: Streamed, whole: tuple[Table, ShapeSums]) -> None:
    table, shape = whole
    # A kurtosis is said as its difference from 3, in float32 sums: near 0 it has nine digits less.
    assert found.shapes.values() == pytest.approx(shape.values(), rel=1e-5, abs=1e-7)
    assert dict(found.shapes.batches) == dict(shape.batches)
    assert list(found.errors) == list(table)
    for name, sums in table.items():
        for field in fields(ErrorSums):
            ours, theirs = getattr(found.errors[name], field.name), getattr(sums, field.name)
            if isinstance(theirs, Tensor):
                torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=0, msg=f"{name}: {field.name}")
            else:
                assert ours == pytest.approx(theirs, rel=1e-6), f"{name}: {field.name}"


@pytest.mark.usefixtures("short_runs")
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_runs_of_rows_give_the_numbers_of_the_whole(tmp_path: Path, way: str, dtype: torch.dtype) -> None:
    x = heavy(2000, 96).to(dtype)
    found = checkpoint(folder(tmp_path, {"model_type": "unheard of"}, {"w": x}))
    expect_same(streamed.streamed(found.matrices["w"], WAYS[way]), swept(x, WAYS[way], 0))


@pytest.mark.usefixtures("short_runs")
def test_a_scale_that_underflows_is_counted_once_for_the_matrix(tmp_path: Path) -> None:
    names = ("int4/tensor/scale:fp16", "int4/tensor/scale:fp16/rtz", "int4/token/scale:fp16")
    x = heavy(2000, 96) * 1e-9
    x[:700] = 0  # all of the first run
    found = streamed.streamed(checkpoint(folder(tmp_path, {}, {"w": x})).matrices["w"], names)
    expect_same(found, swept(x, names, 0))
    assert [sums.underflowed_scales for sums in found.errors.values()] == [1, 1, 1300]


def test_medians_are_those_of_the_rows_that_a_sweep_of_the_whole_takes(tmp_path: Path) -> None:
    x = heavy(12_000, 96)  # more than 2^20 values: every other row
    x[1::2] *= torch.arange(96).exp2().clamp(max=2**20)
    found = checkpoint(folder(tmp_path, {}, {"w": x}))
    expect_same(streamed.streamed(found.matrices["w"], ["int4/token"]), swept(x, ["int4/token"], 0))


@pytest.mark.usefixtures("short_runs")
def test_quantizers_that_were_calibrated_elsewhere(tmp_path: Path) -> None:
    x = heavy(2000, 96)
    smooth = build("int8/token+smooth:0.5", calibration=Calibration(torch.arange(1.0, 97.0)))
    per_tensor = build("int8/tensor+smooth:0.5", calibration=Calibration(torch.arange(1.0, 97.0)))
    found = checkpoint(folder(tmp_path, {}, {"w": x}))
    expect_same(streamed.streamed(found.matrices["w"], [smooth, per_tensor]), swept(x, [smooth, per_tensor], 0))


@pytest.mark.usefixtures("short_runs")
def test_without_a_compiler_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    x = heavy(2000, 96)
    names = (*WAYS["range"][:2], "nvfp4", "int4/token")
    whole = swept(x, names, 0)
    monkeypatch.setattr(native, "kernel", lambda: None)
    found = checkpoint(folder(tmp_path, {}, {"w": x}))
    expect_same(streamed.streamed(found.matrices["w"], names), whole)


@pytest.mark.usefixtures("short_runs")
@pytest.mark.parametrize("stored", [torch.bfloat16, torch.float16, torch.float8_e4m3fn, torch.float8_e5m2], ids=str)
def test_measured_as_a_model_in_float32_has_it(tmp_path: Path, stored: torch.dtype) -> None:
    x = heavy(2000, 96).clamp(-400, 400).to(stored)
    found = checkpoint(folder(tmp_path, {}, {"w": x})).matrices["w"]
    names = ("int8/channel", "int4/tensor")
    expect_same(streamed.streamed(found, names, dtype=torch.float32), swept(x.float(), names, 0))
    if stored.itemsize == 1:
        expect_same(streamed.streamed(found, names), swept(x.float(), names, 0))


@pytest.mark.usefixtures("short_runs")
def test_a_matrix_kept_the_other_way_round_is_measured_as_out_by_in(tmp_path: Path) -> None:
    x = heavy(2000, 96)
    config = {"model_type": "gpt2", "n_layer": 1}
    found = checkpoint(
        folder(tmp_path, config, {"h.0.attn.c_attn.weight": x.T.contiguous(), "wte.weight": heavy(9, 4)})
    )
    assert {name: m.shape for name, m in found.matrices.items()} == {"blocks.0.attn.qkv": (2000, 96), "embed": (9, 4)}
    expect_same(streamed.streamed(found.matrices["blocks.0.attn.qkv"], ["int8/channel"]), swept(x, ["int8/channel"], 0))


def test_every_expert_of_a_stack_is_a_matrix(tmp_path: Path) -> None:
    x = heavy(3, 40, 32)
    config = {"model_type": "mixtral", "num_hidden_layers": 1, "num_local_experts": 3}
    found = checkpoint(folder(tmp_path, config, {"model.layers.0.mlp.experts.gate_up_proj": x}))
    assert list(found.matrices) == [f"blocks.0.mlp.experts.{i}.gate_up" for i in range(3)]
    assert torch.equal(found.matrices["blocks.0.mlp.experts.2.gate_up"].view(), x[2])
    unknown = checkpoint(folder(tmp_path, {}, {"experts": x, "conv": heavy(2, 3, 4)}))
    assert (list(unknown.matrices), dict(unknown.others)) == ([f"experts.{i}" for i in range(3)], {"conv": "3-D"})


def test_what_is_no_matrix_is_listed_with_the_reason(tmp_path: Path) -> None:
    q = "model.layers.0.self_attn.q_proj.weight"
    k = "model.layers.0.self_attn.k_proj.weight"
    tensors = {
        "model.norm.weight": torch.ones(8),
        "model.layers.0.self_attn.v_proj.weight": torch.zeros(8, 4, dtype=torch.int32),
        q: heavy(8, 8),
        k: heavy(8, 8).to(torch.float8_e4m3fn),
        f"{k}_scale_inv": torch.ones(1, 1),
        "model.rotary.table": heavy(8, 8),
    }
    found = checkpoint(folder(tmp_path, {"model_type": "llama", "num_hidden_layers": 1}, tensors))
    assert list(found.matrices) == ["blocks.0.attn.q"]
    assert dict(found.others) == {
        "model.norm.weight": "1-D",
        "model.layers.0.self_attn.v_proj.weight": "I32: codes, not values",
        k: "codes that belong to scales: quantized elsewhere",
        f"{k}_scale_inv": "in no named place",
        "model.rotary.table": "in no named place",
    }


def test_matrices_come_in_the_order_of_the_files(tmp_path: Path) -> None:
    found = checkpoint(folder(tmp_path, {}, {"z": heavy(4, 4), "a": heavy(4, 4), "m": heavy(4, 4).double()}))
    seen: list[str] = []
    feed(found, ["a", "z", "m"], ["int4/token"], lambda name, one: seen.append(name))
    assert seen == list(found.matrices) == sorted(seen, key=lambda name: found.matrices[name].offset)
    with pytest.raises(BadModel, match=r"no matrix q; it has m, a, z|no matrix q"):
        feed(found, ["q"], ["int4/token"], lambda name, one: None)


def test_a_matrix_that_begins_at_an_odd_byte(tmp_path: Path) -> None:
    x = heavy(6, 5)
    header = json.dumps({"w": {"dtype": "F32", "shape": [6, 5], "data_offsets": [0, 120]}}).encode()
    header += b" " * (1 - len(header) % 2)
    (tmp_path / "config.json").write_text("{}")
    raw = struct.pack("<Q", len(header)) + header + x.numpy().tobytes()
    (tmp_path / "model.safetensors").write_bytes(raw)
    matrix = checkpoint(tmp_path).matrices["w"]
    assert matrix.offset % 2 == 1
    assert torch.equal(matrix.view(), x)


@pytest.mark.usefixtures("short_runs")
def test_bad_numbers_are_counted_in_the_whole_matrix_and_named(tmp_path: Path) -> None:
    x = heavy(2000, 96)
    x[3, 3], x[4, 3], x[1999, 95], x[1000, 1] = torch.nan, torch.nan, torch.inf, -torch.inf
    config = {"model_type": "llama", "num_hidden_layers": 1}
    found = checkpoint(folder(tmp_path, config, {"model.layers.0.mlp.up_proj.weight": x}))
    with pytest.raises(NonFinite, match=r"^blocks\.0\.mlp\.up: 4 of 192000 values are NaN or infinite$"):
        feed(found, found.matrices, ["int4/token"], lambda name, one: None)


@pytest.mark.usefixtures("short_runs")
def test_what_needs_the_matrix_whole_is_left_out_where_it_does_not_fit(tmp_path: Path) -> None:
    x = heavy(2000, 96)
    matrix = checkpoint(folder(tmp_path, {}, {"w": x})).matrices["w"]
    found = streamed.streamed(matrix, ["kmeans4/tensor", "int4/token"], memory=25 * 10**6)
    assert list(found.errors) == ["int4/token"]
    assert found.left_out == {"kmeans4/tensor": "needs the matrix whole: about 14 MB of memory, where 5 are allowed"}


def test_damaged_files_and_pickles_are_refused(tmp_path: Path) -> None:
    path = folder(tmp_path / "cut", {}, {"w": heavy(64, 64)})
    whole = (path / "model.safetensors").read_bytes()
    (path / "model.safetensors").write_bytes(whole[:-100])
    with pytest.raises(BadModel, match=r"header promises \d+; the file was cut short"):
        checkpoint(path)
    (path / "model.safetensors").write_bytes(whole.replace(b'"F32"', b'"F31"'))
    with pytest.raises(BadModel, match="w has the unknown type F31"):
        checkpoint(path)
    (path / "model.safetensors").rename(path / "pytorch_model.bin")
    with pytest.raises(BadModel, match="is a pickle"):
        checkpoint(path)
    with pytest.raises(BadModel, match="none of its 1 tensors is a weight matrix"):
        checkpoint(folder(tmp_path / "gains", {}, {"w": torch.ones(4)}))


def test_the_watch_sees_memory_and_no_mapped_file(tmp_path: Path) -> None:
    matrix = checkpoint(folder(tmp_path, {}, {"w": torch.ones(8192, 1024)})).matrices["w"]
    before = anonymous()
    with watched() as peak:
        total = sum(float(run.sum()) for run in matrix.runs())
    assert (total, peak.bytes - before) == (2**23, pytest.approx(0, abs=8e6))
    with watched() as peak:
        copy = matrix.view().clone()
    assert peak.bytes - before > 0.9 * copy.nbytes


@pytest.mark.slow
def test_a_gigabyte_in_twice_its_largest_tensor_and_a_hundred_megabytes(tmp_path: Path) -> None:
    script = "import sys; from stored_models import streaming; streaming(sys.argv[1], layers=2)"
    command = [sys.executable, "-c", script, str(tmp_path)]
    there = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(command, env=there, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["bytes"] > 10**9
    assert found["largest"] == 2**27
    assert (found["matrices"], found["left_out"]) == (17, 0)
    assert found["peak"] <= 2 * found["largest"] + SPARE
    assert found["allowance"] == 2 * found["largest"] + SPARE
