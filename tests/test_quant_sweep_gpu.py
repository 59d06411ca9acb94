"""The Triton kernels and the way to them: interpreted, compiled for a GPU, and on one where there is one."""

import os
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest
import torch

from qbench.quant import gpu_pass
from qbench.quant.catalog import QUANTIZERS
from qbench.quant.grid import grid_of
from qbench.quant.quantizer import build
from qbench.quant.spec import QuantizerSpec
from qbench.quant.sweep import sweep, swept_by

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
SHARED = [row.spec for row in QUANTIZERS.values() if gpu_pass.obstacle(row.spec) is None]


def test_the_triton_kernels_measure_the_same_under_the_interpreter() -> None:
    pytest.importorskip("triton")
    script = Path(__file__).with_name("interpreted.py")
    environment = os.environ | {"TRITON_INTERPRET": "1"}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", str(script)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-3000:]


def test_without_triton_the_table_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_pass.gpu, "triton", None)
    assert swept_by(gpu_pass, torch.ones(2, 3), ["int4/token"]).plain == {"int4/token": "no Triton"}


@pytest.mark.parametrize("spec", SHARED, ids=str)
def test_what_is_measured_together_never_saturates(spec: QuantizerSpec) -> None:
    assert len(grid_of(spec).levels) < gpu_pass.gpu.CODES
    mantissa = 1 + torch.arange(2**16) / 2**16
    for power in (-119, 0, 39):
        peaks = (mantissa * 2.0**power)[:, None]
        x = peaks if spec.granularity == "token" else peaks.expand(-1, 2).contiguous()
        assert build(spec).saturated(x) == 0


def test_the_triton_kernels_compile_for_a_gpu_with_wide_loads() -> None:
    triton = pytest.importorskip("triton")
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from qbench.quant import gpu

    types = {"x": "*fp32", "peak": "*fp32", "row_peak": "*fp32", "row_sum": "*fp64", "column_sum": "*fp64"}
    types |= dict.fromkeys(("rows", "width", "samples"), "i32") | {"largest": "*fp32", "seen": "*u8"}
    types |= dict.fromkeys(("signal", "error", "row_powers", "column_powers"), "*fp64")
    types |= dict.fromkeys(("nonzero", "bad", "underflowed"), "*i64")
    constants = {"BLOCKS": (-1, 0, 32), "TOPS": (7.0, 7.0, 7.0), "BY_ROW": False, "MOMENTS": True}
    constants |= {"ROWS": gpu.ROWS, "COLUMNS": gpu.COLUMNS, "CODES": gpu.CODES}
    for kernel in (gpu.ranges, gpu.losses):
        names = kernel.arg_names
        signature = {name: types.get(name, "constexpr") for name in names}
        aligned = {(i,): [["tt.divisibility", 16]] for i, n in enumerate(names) if signature[n] != "constexpr"}
        values = {(names.index(n),): value for n, value in constants.items() if n in names}
        source = ASTSource(fn=kernel, signature=signature, constexprs=values, attrs=aligned)
        assembly = triton.compile(source, target=GPUTarget("cuda", 90, 32), options=gpu.OPTIONS).asm["ptx"]
        assert "v4.b32" in assembly, "16 bytes at a time"
        assert "st.local" not in assembly, "nothing is spilled"
        assert "fma.rn.f32" not in assembly, "products are rounded, as on the CPU"


@pytest.mark.gpu
@needs_gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("axis", [-1, 0])
def test_a_gpu_finds_what_the_cpu_finds(dtype: torch.dtype, axis: int) -> None:
    x = (torch.randn(70, 300, generator=torch.Generator().manual_seed(0)) ** 3).to(dtype)
    found = sweep(x.cuda(), SHARED, axis)
    assert not found.plain
    for name, right in sweep(x, SHARED, axis).items():
        for field in fields(right):
            a, b = getattr(found[name], field.name), getattr(right, field.name)
            torch.testing.assert_close(a, b, rtol=1e-5, atol=0, msg=lambda m, n=name, f=field.name: f"{n} {f}: {m}")


@pytest.mark.gpu
@needs_gpu
def test_a_graph_holds_the_kernels() -> None:
    job = gpu_pass.gpu.Job(torch.randn(70, 300, device="cuda"), SHARED)
    out = job.buffers()
    job.launch(out)  # compiles
    first = out.fetched()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):  # fails where anything waits for the host
        out.zero_()
        job.launch(out)
    graph.replay()
    torch.testing.assert_close(out.fetched().error, first.error, rtol=1e-12, atol=0)
