"""The compiled kernel: fused or plain, with and without vector units, with and without a compiler, long and wide."""

import ctypes
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from qbench.metrics import shape as shapes
from qbench.quant import fused, native
from qbench.quant.catalog import QUANTIZERS
from qbench.quant.moments import moments
from qbench.quant.plain import Source
from qbench.quant.quantizer import build
from qbench.quant.sums import Rows
from qbench.quant.sweep import sweep

TWELVE = [f"int{bits}/{granularity}" for granularity in ("tensor", "token", "block:32") for bits in (3, 4, 6, 8)]
needs_kernel = pytest.mark.skipif(native.kernel() is None, reason="no compiler")


def skewed(*size: int, seed: int = 0) -> Tensor:
    return torch.randn(size, generator=torch.Generator().manual_seed(seed)).exp() + torch.arange(size[-1])


@pytest.fixture
def forget() -> Iterator[None]:
    native.kernel.cache_clear()
    yield
    native.kernel.cache_clear()


@needs_kernel
def test_the_table_says_what_was_not_fused_and_why() -> None:
    names = [name for name, row in QUANTIZERS.items() if row.spec.rht is None]
    table = sweep(skewed(16, 256), names)
    assert list(table) == [str(build(name).spec) for name in dict.fromkeys(names)]
    assert {table.plain[str(row.spec)] for row in QUANTIZERS.values() if row.spec.wrapped and row.spec.rht is None} == {
        "values are transformed first"
    }
    assert table.plain["int4/tile:16x16"] == "granularity tile:16x16"
    assert not table.plain.keys() & set(TWELVE)
    assert not table.plain.keys() & {"mxfp4", "mxfp8e4m3.rceil", "nvfp4", "nf4/block:64", "lloyd8/tensor"}
    assert len(table.plain) < len(table) / 2
    assert sweep(skewed(16, 256).double(), ["mxfp4"]).plain == {"mxfp4": "float64"}


@needs_kernel
@pytest.mark.parametrize("flags", [("-march=native",), ("-mno-avx512f",)], ids=["native", "portable"])
def test_every_way_to_compile_it_gives_the_same_numbers(
    flags: tuple[str, ...], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    if flags != ("-march=native",):
        monkeypatch.setattr(native, "FLAGS", ("-O0", *native.FLAGS[1:]))  # compiles in a fraction of the time
    library = native.load(native.build(flags))
    monkeypatch.setattr(native, "kernel", lambda: library)
    x = skewed(70, 300)
    names = [name for name, row in QUANTIZERS.items() if fused.obstacle(row.spec) is None]
    source = Source(x, -1)
    for name, sums in sweep(x, names).items():
        plain = source.sums(build(name))
        torch.testing.assert_close(sums.error_C, plain.error_C, rtol=1e-5, atol=0, msg=lambda m, n=name: f"{n} {m}")
        assert (sums.levels, sums.saturated) == (plain.levels, plain.saturated), name


@needs_kernel
@pytest.mark.parametrize("size", [(5, 33, 48), (3, 200, 7), (1, 1, 300), (2, 40, 5000)], ids=str)
@pytest.mark.parametrize("run", [2**22, 512], ids=["one run", "short runs"])
def test_moments_are_those_of_float64(size: tuple[int, ...], run: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fused, "RUN", run)
    x = skewed(*size)
    seen: list[Rows] = []
    table = sweep(x, [], see=seen.append)
    rows = moments(x.double().flatten(0, 1), -1)
    columns = moments(x.double().flatten(0, 1), 0)
    assert table.columns is not None
    for name in ("mean", "m2", "m3", "m4"):
        whole = torch.cat([getattr(part.moments, name) for part in seen])
        scale = 1e-5 * getattr(rows, name).abs().mean().item()
        torch.testing.assert_close(whole, getattr(rows, name), rtol=1e-5, atol=scale)
        scale = 1e-5 * getattr(columns, name).abs().mean().item()
        torch.testing.assert_close(getattr(table.columns, name), getattr(columns, name), rtol=1e-5, atol=scale)
    assert torch.equal(torch.cat([part.peak for part in seen]), x.abs().amax(-1).flatten())
    found = shapes.shape(x)
    assert found == pytest.approx(shapes.shape(x.double()), rel=1e-5, abs=1e-5)


@needs_kernel
def test_a_jump_in_the_data_does_not_spoil_the_fourth_moment() -> None:
    x = torch.randn(512, 64, generator=torch.Generator().manual_seed(0))
    x[:32] = 0  # so that the first rows say nothing of where the rest lies
    x[32:] += 1000
    assert shapes.shape(x[32:]) == pytest.approx(shapes.shape(x[32:].double()), rel=1e-4, abs=1e-4)
    assert shapes.shape(x) == pytest.approx(shapes.shape(x.double()), rel=1e-4, abs=1e-4)


def test_without_a_compiler_it_says_so_once_and_measures_all_the_same(
    forget: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    x = skewed(64, 96)
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.warns(RuntimeWarning, match="no C\\+\\+ compiler"):
        table = sweep(x, TWELVE)
    assert table.plain == dict.fromkeys(TWELVE, "no compiled kernel")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        again = sweep(x, TWELVE)
    assert again["int4/token"].error == table["int4/token"].error == Source(x, -1).sums(build("int4/token")).error


def test_a_compiler_that_fails_is_quoted(forget: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    compiler = tmp_path / "cc"
    compiler.write_text("#!/bin/sh\necho 'sweep.cpp: error: out of luck' >&2\nexit 1\n")
    compiler.chmod(0o755)
    monkeypatch.setenv("CXX", str(compiler))
    monkeypatch.setenv("QBENCH_KERNELS", str(tmp_path / "kernels"))
    with pytest.raises(native.NoKernel, match="out of luck"):
        native.build()
    assert not list((tmp_path / "kernels").glob("*.so"))


@needs_kernel
def test_a_compiled_kernel_is_found_again(monkeypatch: pytest.MonkeyPatch) -> None:
    library = native.build()
    monkeypatch.setattr(subprocess, "run", _only_the_version)
    assert native.build() == library


def _only_the_version(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
    assert command[1:] == ["--version"]
    done = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    return subprocess.CompletedProcess(command, 0, done.communicate()[0], "")


@needs_kernel
def test_memory_does_not_grow_with_the_tensor() -> None:
    program = """
import ctypes, torch
from pathlib import Path
from qbench.quant.sweep import sweep
names = [f"int{b}/{g}" for g in ("tensor", "token", "block:32") for b in (3, 4, 6, 8)]
names += ["mxfp4", "nvfp4", "nf4/block:64"]
def status(key):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if key in line)
x = torch.randn(2**13, 2**12)
sweep(x[:32], names, see=lambda rows: None)
Path("/proc/self/clear_refs").write_text("5")
before = status("VmRSS")
sweep(x, names, see=lambda rows: None)
print((status("VmHWM") - before) / 1024)
"""
    if not Path("/proc/self/clear_refs").exists():
        pytest.skip("needs Linux")
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert float(done.stdout) < 64


@pytest.mark.parametrize("fields", [native.Job, native.Format, native.Scan])
def test_structures_are_laid_out_as_c_does(fields: type[ctypes.Structure]) -> None:
    library = native.kernel()
    if library is None:
        pytest.skip("no compiler")
    which = [native.Job, native.Format, native.Scan].index(fields)
    assert library.qbench_size(which) == ctypes.sizeof(fields)
