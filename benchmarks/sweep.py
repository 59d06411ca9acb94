"""What measuring many formats costs, as a multiple of reading the tensor once: qbench, torchao and bitsandbytes.

    python benchmarks/sweep.py                    # CPU, one thread, about five minutes
    python benchmarks/sweep.py --device cuda      # needs a GPU: the Triton kernels against a copy
    python benchmarks/sweep.py --draw             # only redraw the picture from the stored numbers

Everything runs side by side in one process; seconds are CPU seconds of this process (wall seconds on a GPU), best of
several. Only integer formats exist in torchao in the same definition, so its compositions leave the others out.
"""

import argparse
import ctypes
import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

os.environ.setdefault("TORCHAO_FORCE_SKIP_LOADING_SO_FILES", "1")

import torch
from torch import Tensor

from qbench.quant.plain import Source
from qbench.quant.quantizer import build
from qbench.quant.spelling import parse
from qbench.quant.sweep import sweep

RESULTS = Path(__file__).parents[1] / "results" / "benchmarks"
PICTURE = Path(__file__).parents[1] / "docs" / "performance.svg"
WIDTH = 4096
GRANULARITIES = ("tensor", "token", "block:32")
TWELVE = [f"int{bits}/{g}" for g in GRANULARITIES for bits in (3, 4, 6, 8)]
FORMATS = {
    1: ["int4/block:32"],
    4: ["int4/tensor", "int4/token", "int4/block:32", "int8/token"],
    12: TWELVE,
    40: [f"int{bits}/{g}" for g in (*GRANULARITIES, "block:64", "block:128") for bits in range(2, 9)]
    + ["mxfp4", "nvfp4", "nf4/block:64", "e4m3/token", "lloyd4/block:64"],
}
Row = dict[str, float | int | str]


def best(run: Callable[[], object], repeats: int) -> float:
    """CPU seconds."""
    times: list[float] = []
    for _ in range(repeats):
        start = time.process_time()
        run()
        times.append(time.process_time() - start)
    return min(times)


def extra_memory(run: Callable[[], object]) -> int:
    """Bytes of this process at their highest while `run` runs, beyond what there was before."""
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # start the high-water mark anew
    before = _status("VmRSS")
    run()
    return _status("VmHWM") - before


def _status(key: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(key))


def composition(names: Sequence[str]) -> Callable[[Tensor], list[Tensor]]:
    """What a user would write with torchao for the same numbers."""
    from torchao.quantization import (
        MappingType,
        PerGroup,
        PerTensor,
        PerToken,
        choose_qparams_affine,
        dequantize_affine,
        quantize_affine,
    )
    from torchao.quantization.utils import get_block_size

    parts: list[tuple[object, int]] = []
    for name in names:
        spec = parse(name)
        kind = {"tensor": PerTensor, "token": PerToken}.get(spec.granularity)
        parts.append((kind() if kind else PerGroup(spec.block or 0), 2 ** (spec.bits - 1) - 1))

    def measure(x: Tensor) -> list[Tensor]:
        wide = x.float()
        mean = wide.mean(0)
        deviation = wide - mean
        found = [mean, *(deviation.pow(k).sum(0) for k in (2, 3, 4)), wide.abs().amax(-1)]
        rows = wide - wide.mean(-1, keepdim=True)
        found += [rows.pow(k).sum(-1) for k in (2, 3, 4)]
        for granularity, top in parts:
            size = get_block_size(x.shape, granularity)
            scale, zero = choose_qparams_affine(x, MappingType.SYMMETRIC, size, torch.int8, -top, top)
            codes = quantize_affine(x, size, scale, zero, torch.int8, -top, top)
            y = dequantize_affine(codes, size, scale, zero, torch.int8, -top, top, output_dtype=x.dtype)
            error = y.float() - wide
            found += [
                error.square().sum(0),
                error.abs().amax(),
                ((y == 0) & (x != 0)).sum(),
                (codes.abs() == top).sum(),
            ]
        return found

    return measure


def blockwise(x: Tensor) -> Tensor:
    """NF4 by bitsandbytes, and the squared error."""
    from bitsandbytes.functional import dequantize_4bit, quantize_4bit

    codes, state = quantize_4bit(x, blocksize=64, quant_type="nf4")
    return (dequantize_4bit(codes, state).float() - x.float()).square().sum(0)


def plainly(x: Tensor, names: Sequence[str]) -> None:
    source = Source(x, -1)
    for name in names:
        source.sums(build(name))


def measure(dtype: torch.dtype, power: int) -> Iterator[Row]:
    values = 2**power
    x = torch.randn(values // WIDTH, WIDTH, generator=torch.Generator().manual_seed(0)).to(dtype)
    repeats = 9 if power <= 24 else 4
    read = best(lambda: x.view(torch.float32).sum(), 2 * repeats)
    yield _row(x, "read", 0, read, read)
    yield _row(x, "copy", 0, best(partial(torch.empty_like(x).copy_, x), repeats), read)
    for count, names in FORMATS.items():

        def run(names: Sequence[str] = names) -> None:
            sweep(x, names, see=lambda _rows: None)

        sweep(x[:32], names)
        memory = extra_memory(run)
        yield _row(x, "qbench", count, best(run, repeats), read, memory)
    for what, count, run in _others(x, power):
        memory = extra_memory(lambda r=run: r(x))  # and compiles what is compiled
        yield _row(x, what, count, best(lambda r=run: r(x), 3 if power <= 22 else 1), read, memory)


def _others(x: Tensor, power: int) -> Iterator[tuple[str, int, Callable[[Tensor], object]]]:
    """What is slow enough to be run only where it does not take minutes."""
    counts = (1, 4, 12, 40) if power <= 22 else (12,) if power in (24, 26) else ()
    for count in counts if x.dtype == torch.float32 or power <= 22 else ():
        names = FORMATS[count]
        yield "qbench, one by one", count, lambda part, names=names: plainly(part, names)
        integers = [name for name in names if name.startswith("int")]
        yield "torchao", count, composition(integers)
        if count == 12:
            compiled = torch.compile(composition(integers), dynamic=False)
            yield "torchao, compiled", count, compiled
    if power <= 24 and x.dtype == torch.float32:
        yield "qbench, nf4 alone", 1, lambda part: sweep(part, ["nf4/block:64"])
        yield "bitsandbytes, nf4 alone", 1, blockwise


def _row(  # noqa: PLR0913, PLR0917
    x: Tensor, what: str, formats: int, seconds: float, read: float, memory: int | None = None
) -> Row:
    row: Row = {
        "dtype": str(x.dtype).removeprefix("torch."),
        "values": x.numel(),
        "what": what,
        "formats": formats,
        "seconds": round(seconds, 7),
        "reads": round(seconds / read, 3),
    }
    if memory is not None:
        row["memory_mb"] = round(memory / 2**20, 1)
    power = x.numel().bit_length() - 1
    per = f" = {seconds / read / formats:7.2f} for each format" if formats else ""
    memory_text = "" if memory is None else f"  {memory / 2**20:7.0f} MB"
    cost = f"{seconds * 1e3:10.2f} ms {seconds / read:9.2f} reads{per}{memory_text}"
    print(f"{row['dtype']:8} 2^{power}  {what:24} {formats:2}  {cost}", flush=True)
    return row


def machine() -> dict[str, str | int]:
    cpu = next(
        line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line
    )
    family = next(
        line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "cpu family" in line
    )
    return {"cpu": cpu, "family": int(family), "threads": torch.get_num_threads(), "torch": torch.__version__}


def on_gpu() -> None:
    """Triton kernels against a copy, as shares of bandwidth and of what the multiprocessors can issue."""
    from qbench.quant import gpu

    device = torch.device("cuda")
    properties = torch.cuda.get_device_properties(device)
    rows: list[Row] = []
    for dtype in (torch.float32, torch.bfloat16):
        for power in range(20, 29, 2):
            x = torch.randn(2**power // WIDTH, WIDTH, device=device).to(dtype)
            y = torch.empty_like(x)
            copy = _cuda_seconds(lambda x=x, y=y: y.copy_(x))
            rows.append({"dtype": str(dtype), "values": 2**power, "what": "copy", "formats": 0, "seconds": copy})
            for count in (1, 12):
                specs = [parse(name) for name in FORMATS[count]]
                job = gpu.Job(x, specs)
                out = job.buffers()
                seconds = _cuda_seconds(lambda job=job, out=out: (out.zero_(), job.launch(out)))
                bandwidth = copy / seconds  # a copy moves the tensor twice, and so do the two kernels
                # Instructions for each value, of each format and of the moments (PTX of sm_90); 128 lanes a cycle.
                cycles = 2**power * (20 * count + 50) / 128 / properties.multi_processor_count
                issue = cycles / (getattr(properties, "clock_rate", 1.98e6) * 1e3) / seconds
                rows.append(
                    {"dtype": str(dtype), "values": 2**power, "what": "qbench", "formats": count, "seconds": seconds,
                     "share_of_bandwidth": bandwidth, "share_of_issue": issue}
                )  # fmt: skip
                shares = f"{bandwidth:.0%} of copy bandwidth, {issue:.0%} of issue"
                print(f"{dtype} 2^{power} {count:2} formats {seconds * 1e3:8.3f} ms, {shares}")
            if power <= 26:
                eager = composition(TWELVE)
                print(f"  torchao, 12 formats: {_cuda_seconds(lambda x=x, e=eager: e(x), 3) * 1e3:.1f} ms")
    text = json.dumps({"machine": {"gpu": properties.name, "torch": torch.__version__}, "rows": rows}, indent=1)
    (RESULTS / "sweep-gpu.json").write_text(text + "\n")


def _cuda_seconds(run: Callable[[], object], repeats: int = 20) -> float:
    run()
    times: list[float] = []
    for _ in range(repeats):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        run()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end) / 1e3)
    return min(times)


COLORS = {
    "qbench": "#0072b2",
    "torchao, compiled": "#e69f00",
    "qbench, one by one": "#009e73",
    "torchao": "#d55e00",
}


def draw(rows: Sequence[Row]) -> None:
    """Reads against formats at 2^22 values, and against the size of the tensor for twelve formats."""
    import matplotlib as mpl

    mpl.use("svg")
    mpl.rcParams["svg.hashsalt"] = "qbench"
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(9, 3.6), sharey=True)
    kept = [row for row in rows if row["dtype"] == "float32" and row["what"] in COLORS]
    for what, color in COLORS.items():
        for axis, key, chosen in (
            (axes[0], "formats", [r for r in kept if r["what"] == what and r["values"] == 2**22]),
            (axes[1], "values", [r for r in kept if r["what"] == what and r["formats"] == 12]),
        ):
            axis.loglog([r[key] for r in chosen], [r["reads"] for r in chosen], "o-", color=color, label=what, ms=4)
    axes[0].set(xlabel="formats, on $2^{22}$ values", ylabel="time, in reads of the tensor", xticks=list(FORMATS))
    axes[0].set_xticklabels([str(count) for count in FORMATS])
    axes[0].minorticks_off()
    axes[1].set_xscale("log", base=2)
    axes[1].set(xlabel="values, twelve formats")
    axes[0].legend(frameon=False, fontsize=8, loc="upper left")
    for axis in axes:
        axis.grid(alpha=0.25)
        axis.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    figure.savefig(PICTURE, metadata={"Date": None})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--draw", action="store_true")
    options = parser.parse_args()
    stored = RESULTS / "sweep-cpu.json"
    if options.device == "cuda":
        on_gpu()
        return
    if not options.draw:
        torch.set_num_threads(1)
        rows = [row for power in (20, 22, 24, 26, 28) for row in measure(torch.float32, power)]
        rows += [row for power in (22, 26) for row in measure(torch.bfloat16, power)]
        RESULTS.mkdir(parents=True, exist_ok=True)
        lines = ",\n  ".join(json.dumps(row) for row in rows)
        stored.write_text(f'{{"machine": {json.dumps(machine())},\n "rows": [\n  {lines}\n ]}}\n')
    draw(json.loads(stored.read_text())["rows"])


if __name__ == "__main__":
    main()
