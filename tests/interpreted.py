"""The shared pass of a GPU, sent the way a CUDA tensor goes, against the plain path; for TRITON_INTERPRET=1 only.

test_quant_sweep_gpu.py runs this file: Triton reads the variable when it is imported.
"""

from dataclasses import fields

import pytest
import torch
from torch import Tensor

from qbench.metrics import shape as shapes
from qbench.quant import gpu, gpu_pass
from qbench.quant import sweep as sweeping
from qbench.quant.blocks import NonFinite
from qbench.quant.moments import Moments, moments
from qbench.quant.plain import Source
from qbench.quant.quantizer import build
from qbench.quant.sums import Rows, Table
from qbench.quant.sweep import swept_by

NAMES = [f"int{b}/{g}" for b in (2, 3, 8) for g in ("tensor", "token", "block:16", "block:32", "block:64", "block:128")]
COUNTS = ("n", "saturated", "zeroed", "nonzero", "underflowed_scales", "scales", "levels", "bits")
pytestmark = pytest.mark.filterwarnings(
    "ignore"
)  # numpy's: the interpreter divides by zero scales before it drops them


def heavy(*size: int) -> Tensor:
    x = torch.randn(size, generator=torch.Generator().manual_seed(0)) ** 3
    x[x.abs() < 1e-3] = 0
    return x


def close(a: Tensor | float, b: Tensor | float, what: str, atol: float = 0) -> None:
    torch.testing.assert_close(a, b, rtol=1e-5, atol=atol, msg=lambda m: f"{what}: {m}")


def same(table: Table, x: Tensor, axis: int) -> None:
    source = Source(x, axis)
    for name, found in table.items():
        right = source.sums(build(name, axis))
        what = f"{name} of {tuple(x.shape)} along {axis}"
        close(found.signal_C, right.signal_C, what)
        close(found.error_C, right.error_C, what)
        close(found.max_error, right.max_error, what)
        counts = [(getattr(sums, count) for count in COUNTS) for sums in (found, right)]
        assert list(counts[0]) == list(counts[1]), what


def same_moments(found: Moments, right: Moments) -> None:
    for name in ("mean", "m2", "m3", "m4"):
        a, b = getattr(found, name), getattr(right, name)
        close(a, b, name, 1e-6 * float(b.abs().mean()))


@pytest.mark.parametrize(
    ("x", "axis"),
    [
        *((heavy(*size), -1) for size in ((70, 300), (1, 1), (5, 1), (1, 129), (3, 33, 48), (7,))),
        (torch.zeros(5, 40), -1),
        (heavy(33, 17), 0),
        (heavy(70, 300), 0),
        (heavy(33, 130).half(), -1),  # not bfloat16, to which the interpreter truncates
        (heavy(33, 130).half(), 0),
    ],
    ids=lambda x: f"{str(x.dtype)[6:]}-{tuple(x.shape)}" if isinstance(x, Tensor) else str(x),
)
def test_everything_is_measured_as_one_by_one(x: Tensor, axis: int) -> None:
    seen: list[Rows] = []
    table = swept_by(gpu_pass, x, NAMES, axis, seen.append)
    assert not table.plain
    assert list(table) == NAMES
    same(table, x, axis)
    matrix = x.double().reshape(-1, (x.shape or (1,))[-1])
    assert table.columns is not None
    same_moments(table.columns, moments(matrix, 0))
    same_moments(seen[0].moments, moments(matrix, 1))
    assert torch.equal(seen[0].peak, matrix.abs().amax(1).float())


def test_codes_are_counted_in_the_first_rows_only() -> None:
    x = heavy(40, 4096)
    x[:16] = x[:16].sign()
    table = swept_by(gpu_pass, x, ["int8/token", "int8/tensor"])
    assert table["int8/token"].levels == 3
    same(table, x, -1)


def test_scales_that_underflow_are_counted() -> None:
    x = heavy(40, 160)
    x[3:7] *= 1e-38
    x[9, 32:64] *= 1e-38
    table = swept_by(gpu_pass, x, NAMES)
    assert table["int8/token"].underflowed_scales
    assert table["int8/block:32"].underflowed_scales > 4
    same(table, x, -1)


def test_buffers_can_be_used_again_as_in_a_graph() -> None:
    job = gpu.Job(heavy(70, 300), [build("int4/token").spec])
    out = job.buffers()
    job.launch(out)
    first = out.fetched()
    out.zero_()
    job.launch(out)
    again = out.fetched()
    assert all(torch.equal(getattr(first, f.name), getattr(again, f.name)) for f in fields(gpu.Buffers))


def test_the_table_says_what_was_not_measured_together_and_why() -> None:
    x = heavy(16, 64)
    table = swept_by(gpu_pass, x, ["int4/token", "mxfp4", "int4/tile:16x16", "int4/token/sr:1", "int4/block:8"])
    assert table.plain == {
        "mxfp4": "levels of e2m1, on a GPU",
        "int4/tile:16x16": "granularity tile:16x16",
        "int4/token/sr:1": "rounding sr:1",
        "int4/block:8": "blocks are not of (16, 32, 64, 128) values",
    }
    same(table, x, -1)


@pytest.mark.parametrize(
    ("x", "reason"),
    [
        (heavy(16, 64).double(), "float64"),
        (heavy(16, 64).T, "not contiguous"),
        (heavy(16, 64) * 1e20, "squares leave the range of float32"),
        ((heavy(16, 64) * 2000).clamp(-3e4, 3e4).half(), "levels may leave the range of float16"),
    ],
    ids=lambda part: part if isinstance(part, str) else "",
)
def test_an_unfit_tensor_goes_the_plain_way(x: Tensor, reason: str) -> None:
    table = swept_by(gpu_pass, x, ["int4/token"], see=lambda _rows: None)
    assert table.plain == {"int4/token": reason}
    assert table.columns is None
    same(table, x, -1)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_nan_and_infinity_are_counted(bad: float) -> None:
    x = heavy(40, 200)
    x[33, 150] = x[2, 3] = bad
    with pytest.raises(NonFinite, match="2 of 8000 values are NaN or infinite"):
        swept_by(gpu_pass, x, NAMES)


def test_results_come_by_one_transfer(monkeypatch: pytest.MonkeyPatch) -> None:
    transfers: list[int] = []
    cpu = Tensor.cpu

    def counted(x: Tensor) -> Tensor:
        transfers.append(x.numel())
        return cpu(x)

    monkeypatch.setattr(gpu.Job, "launch", lambda _job, _out: monkeypatch.setattr(Tensor, "cpu", counted))
    swept_by(gpu_pass, heavy(16, 64), NAMES, see=lambda _rows: None)
    assert len(transfers) == 1


def test_shape_metrics_need_no_format(monkeypatch: pytest.MonkeyPatch) -> None:
    x = heavy(3, 33, 48)
    right = shapes.shape(x.double())
    monkeypatch.setattr(sweeping, "_one_pass", lambda _device: gpu_pass)
    assert shapes.shape(x) == pytest.approx(right, rel=1e-5, abs=1e-5)
