"""Tokens per second of qbench's training step beside a plain nanoGPT-style loop: the same torch, the same batches.

    python benchmarks/train.py --json results/benchmarks/train-cpu.json

The plain loop is what one would write by hand: nn.Linear, nn.RMSNorm or nanoGPT's nn.LayerNorm, rotary positions, fused
attention, fused AdamW with clipping and a cosine. It has no named places, no optimizer routing, and looks at its loss
as often as ours does.
On a CPU process time of one thread is compared, step by step in turn; on a GPU a 124M GPT in bfloat16, compiled.
"""

import argparse
import json
import math
import statistics
from collections.abc import Callable
from itertools import cycle
from pathlib import Path
from time import perf_counter, process_time

import torch
import torch.nn.functional as F
from sweep import machine
from torch import Tensor, nn

from qbench.models.catalog import model_spec
from qbench.models.spec import ModelSpec
from qbench.models.transformer import build
from qbench.train.fit import learning_rate_factor
from qbench.train.optimizer import OPTIMIZERS
from qbench.train.spec import TrainingSpec
from qbench.train.throughput import operations_per_token, stated_peak
from qbench.train.trainer import Trainer

SIZES = {
    "quick": {"layers": 6, "width": 64, "heads": 4, "context": 64},
    "cpu": {"layers": 6, "width": 96, "heads": 4, "context": 128},
}
GPT2 = {"layers": 12, "width": 768, "heads": 12, "context": 1024, "vocabulary": 50304}
NORMS = {"rmsnorm": nn.RMSNorm, "layernorm": nn.LayerNorm}  # that of Llama, that of GPT-2
WARM = 3  # steps that nobody counts

Row = dict[str, str | int | float]


class PlainAttention(nn.Module):
    def __init__(self, spec: ModelSpec) -> None:
        super().__init__()
        self.heads = spec.heads
        self.qkv = nn.Linear(spec.width, 3 * spec.width, bias=False)
        self.proj = nn.Linear(spec.width, spec.width, bias=False)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        b, t, d = x.shape
        q, k, v = (y.view(b, t, self.heads, d // self.heads) for y in self.qkv(x).split(d, dim=2))
        q, k = turned(q, cos, sin), turned(k, cos, sin)
        q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.proj(y.transpose(1, 2).contiguous().view(b, t, d))


def turned(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    a, b = x.chunk(2, dim=-1)
    return torch.cat([a * cos + b * sin, b * cos - a * sin], dim=-1).to(x.dtype)


class PlainBlock(nn.Module):
    def __init__(self, spec: ModelSpec) -> None:
        super().__init__()
        self.norm1, self.norm2 = (NORMS[spec.norm](spec.width, eps=1e-6) for _ in range(2))
        self.attention = PlainAttention(spec)
        self.fc = nn.Linear(spec.width, 4 * spec.width, bias=False)
        self.proj = nn.Linear(4 * spec.width, spec.width, bias=False)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        x = x + self.attention(self.norm1(x), cos, sin)
        return x + self.proj(F.gelu(self.fc(self.norm2(x))))


class PlainGPT(nn.Module):
    cos: Tensor
    sin: Tensor

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__()
        self.embed = nn.Embedding(spec.vocabulary, spec.width)
        self.blocks = nn.ModuleList([PlainBlock(spec) for _ in range(spec.layers)])
        self.norm = NORMS[spec.norm](spec.width, eps=1e-6)
        self.head = nn.Linear(spec.width, spec.vocabulary, bias=False)
        half = spec.width // spec.heads // 2
        angle = torch.outer(torch.arange(spec.context), 10_000.0 ** (-torch.arange(half) / half))[:, None]
        self.register_buffer("cos", angle.cos(), persistent=False)
        self.register_buffer("sin", angle.sin(), persistent=False)
        for name, p in self.named_parameters():
            if p.ndim == 2:
                nn.init.normal_(p, std=0.02 / (math.sqrt(2 * spec.layers) if "proj" in name else 1.0))

    def forward(self, tokens: Tensor, targets: Tensor) -> Tensor:
        x = self.embed(tokens)
        for block in self.blocks:
            x = block(x, self.cos[: x.shape[1]], self.sin[: x.shape[1]])
        logits = self.head(self.norm(x))
        return F.cross_entropy(logits.view(-1, logits.shape[-1]), targets.reshape(-1))


def plain_step(spec: ModelSpec, training: TrainingSpec, device: str) -> Callable[[Tensor], float]:
    """One turn of the loop, nanoGPT's way: schedule, forward, backward, clip, AdamW."""
    torch.manual_seed(0)
    model = PlainGPT(spec).to(device)
    decay = [p for p in model.parameters() if p.ndim == 2]
    rest = [p for p in model.parameters() if p.ndim < 2]
    groups = [{"params": decay, "weight_decay": training.weight_decay}, {"params": rest, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=training.lr, betas=(0.9, 0.95), fused=True)
    run = torch.compile(model) if training.compiled else model
    done = 0

    def step(batch: Tensor) -> float:
        nonlocal done
        for group in optimizer.param_groups:
            group["lr"] = training.lr * learning_rate_factor(done, training)
        batch = batch.to(device)
        with torch.autocast(device, torch.bfloat16, enabled=training.precision == "bfloat16"):
            loss = run(batch[:, :-1], batch[:, 1:])
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), training.clip)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        done += 1
        return loss.item()

    return step


def our_step(spec: ModelSpec, training: TrainingSpec, device: str) -> Callable[[Tensor], float]:
    trainer = Trainer(build(spec, 0).to(device), training)
    return lambda batch: trainer.step(batch, learning_rate_factor(trainer.steps, training))[0]


def seconds(step: Callable[[Tensor], float], batch: Tensor, clock: Callable[[], float]) -> float:
    began = clock()
    step(batch)  # gives a number, so it has waited for the device
    return clock() - began


def compare(name: str, spec: ModelSpec, training: TrainingSpec, device: str) -> list[Row]:
    """Both loops on the same batches, step by step in turn; how fast each is, and how many times faster ours."""
    ours, plain = our_step(spec, training, device), plain_step(spec, training, device)
    found = in_turn({"qbench": ours, "plain": plain}, spec, training, device)
    ratios = [p / q for q, p in zip(found["qbench"], found["plain"], strict=True)]
    model = build(spec, 0).to(device)
    peak = stated_peak(torch.device(device), training.precision)
    rows: list[Row] = []
    for label, times in found.items():
        rate = training.batch * spec.context / statistics.median(times)
        operations = rate * operations_per_token(model)
        share = {} if peak is None else {"mfu": round(operations / peak[0], 4)}
        speed: Row = {"tokens_per_second": round(rate), "flops": float(f"{operations:.4g}")}
        rows.append({"size": name, "norm": spec.norm, "loop": label, **speed})
        rows[-1] |= share
        told = f"{share['mfu']:.1%} of the peak {peak[1]}" if peak else "no peak is stated for this device"
        print(f"{name}, {spec.norm}: {label:6} {rate:8.0f} tokens/s, {operations:.3g} operations/s; {told}")
    low, middle, high = statistics.quantiles(ratios, n=4)
    print(
        f"{name}, {spec.norm}: qbench is {middle:.3f} times as fast "
        f"(middle half of {len(ratios)} pairs {low:.3f} to {high:.3f})"
    )
    ratio = {"times_as_fast": round(middle, 3), "low": round(low, 3), "high": round(high, 3), "pairs": len(ratios)}
    return [*rows, {"size": name, "norm": spec.norm, "loop": "qbench / plain", **ratio}]


def optimizers(name: str, spec: ModelSpec, steps: int, device: str) -> list[Row]:
    """Milliseconds of a training step with each optimizer, means: roots and bases are renewed every tenth step."""
    trainings = {one: TrainingSpec(steps=steps, optimizer=one) for one in OPTIMIZERS}  # type: ignore[arg-type]
    loops = {one: our_step(spec, training, device) for one, training in trainings.items()}
    found = in_turn(loops, spec, TrainingSpec(steps=steps), device)
    rows: list[Row] = [
        {"size": name, "optimizer": one, "milliseconds": round(1000 * statistics.fmean(times), 1)}
        for one, times in found.items()
    ]
    print(f"{name}: ms per step: " + ", ".join(f"{row['optimizer']} {row['milliseconds']}" for row in rows))
    return rows


def in_turn(
    loops: dict[str, Callable[[Tensor], float]], spec: ModelSpec, training: TrainingSpec, device: str
) -> dict[str, list[float]]:
    """Seconds of each step of each loop, on the same batches, in alternating order; on a CPU process time."""
    clock = process_time if device == "cpu" else perf_counter
    generator = torch.Generator().manual_seed(0)
    shape = (training.batch, spec.context + 1)
    batches = cycle([torch.randint(spec.vocabulary, shape, generator=generator) for _ in range(4)])
    found: dict[str, list[float]] = {label: [] for label in loops}
    for turn in range(training.steps):
        batch = next(batches)
        for label in loops if turn % 2 else reversed(loops):
            found[label].append(seconds(loops[label], batch, clock))
    return {label: times[WARM:] for label, times in found.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=63, help=f"of each loop; the first {WARM} are not counted")
    parser.add_argument("--json", type=Path, help="where the numbers go")
    options = parser.parse_args()
    rows: list[Row] = []
    if torch.cuda.is_available():
        big = TrainingSpec(steps=options.steps, batch=32, precision="bfloat16", compiled=True)
        rows += compare("124M", model_spec("residual", **GPT2), big, "cuda")
        where: Row = {"gpu": torch.cuda.get_device_name(), "torch": torch.__version__}
    else:
        torch.set_num_threads(1)
        where = dict(machine())
        for name, sizes in SIZES.items():
            for norm in NORMS:
                spec = model_spec("residual", **sizes, norm=norm)
                rows += compare(name, spec, TrainingSpec(steps=options.steps), "cpu")
            rows += optimizers(name, model_spec("residual", **sizes), options.steps // 2, "cpu")
    if options.json:
        lines = ",\n  ".join(json.dumps(row) for row in rows)
        options.json.write_text(f'{{"machine": {json.dumps(where)},\n "rows": [\n  {lines}\n ]}}\n')


if __name__ == "__main__":
    main()
