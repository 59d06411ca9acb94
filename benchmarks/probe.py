"""What probing a pretrained model costs, in forward passes of it: qbench, and what one would write instead.

    python benchmarks/probe.py                                        # CPU, one thread, about ten minutes
    python benchmarks/probe.py --json results/benchmarks/probe-cpu.json
    python benchmarks/probe.py --models llama                         # one of them

A *forward* is the model of transformers giving logits for the same windows in the same batches. Everything runs side
by side in one process; seconds are CPU seconds of this process, best of several. Memory is the high-water mark of the
process beyond what it held before.
"""

import argparse
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from functools import cached_property, partial
from math import inf
from pathlib import Path

os.environ.setdefault("TORCHAO_FORCE_SKIP_LOADING_SO_FILES", "1")

import numpy as np
import torch
from sweep import TWELVE, best, composition, extra_memory, machine
from torch import Tensor
from torch.nn.functional import cross_entropy, kl_div, log_softmax

from qbench.capture.place import Place
from qbench.capture.places import matrices, places, select
from qbench.capture.read import activations, watching
from qbench.capture.write import quantized
from qbench.data.passages import Windows
from qbench.evaluate.likelihood import BATCH
from qbench.evaluate.reference import Reference
from qbench.models.hub import HubModel, load
from qbench.quant.quantizer import build
from qbench.suite.judge import BATCH as CAPTURED
from qbench.suite.judges import Texts
from qbench.suite.pretrained import TOGETHER
from qbench.suite.tally import Tally

BABYLLAMA = Path(os.environ.get("QBENCH_BABYLLAMA", Path(__file__).parents[2] / "shared/data/models/babyllama-105"))
SIZES = {"llama": (8, 256), "babyllama": (32, 256), "gpt2": (8, 256)}  # windows, context
# Weights, inputs of linear layers.
TREATMENTS = (
    ("int8/channel", ""),
    ("int4/block:32", ""),
    ("nf4/block:64", ""),
    ("mxfp4", ""),
    ("", "int8/token"),
    ("int8/channel", "int8/token"),
    ("int4/block:32", "int4/token"),
    ("mxfp4", "mxfp4"),
)
Row = dict[str, float | int | str]


def llama() -> HubModel:
    """58 million random parameters, 32.8 of them in the embedding and the head."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=32_000,
        hidden_size=512,
        intermediate_size=1376,
        num_hidden_layers=8,
        num_attention_heads=8,
        max_position_embeddings=512,
    )
    return HubModel(LlamaForCausalLM(config), "causal-lm")


def gpt2() -> HubModel:
    """39 million random parameters; the head is the embedding and takes two thirds of a forward pass."""
    from transformers import GPT2Config, GPT2LMHeadModel

    return HubModel(GPT2LMHeadModel(GPT2Config(n_layer=4, n_embd=512, n_head=8, n_positions=512)), "causal-lm")


def babyllama() -> HubModel:
    """0.9 million trained parameters, width 128, 105 tokens: overheads show."""
    model = load(BABYLLAMA)
    assert isinstance(model, HubModel)
    return model


MODELS: Mapping[str, Callable[[], HubModel]] = {"llama": llama, "gpt2": gpt2, "babyllama": babyllama}


@dataclass(frozen=True)
class Subject:
    """A model and random windows for it."""

    name: str
    model: HubModel
    windows: Windows

    @property
    def batches(self) -> tuple[Tensor, ...]:
        return self.windows.tokens.split(BATCH)

    @cached_property
    def linear(self) -> Mapping[str, Place]:
        there = places(self.model)
        return {site: there[site] for site in select(self.model, "activation", "linear")}

    @torch.no_grad()
    def forward(self) -> None:
        for part in self.batches:
            self.model.hf(input_ids=part[:, :-1])

    @torch.no_grad()
    def hidden(self) -> None:
        for part in self.batches:
            self.model.hidden(part[:, :-1])

    def treatment(self, weights: str, inputs: str) -> AbstractContextManager[object]:
        there = matrices(self.model)
        names = select(self.model, "weight", "weights") if weights else ()
        of = {site: (there[site], build(weights, channel_axis=0)) for site in names}
        return quantized({site: (place, build(inputs)) for site, place in self.linear.items()} if inputs else {}, of)


def subject(name: str) -> Subject:
    torch.manual_seed(0)
    model, (count, context) = MODELS[name](), SIZES[name]
    tokens = torch.randint(5, model.vocabulary or 0, (count, context + 1))
    first = torch.zeros(count, dtype=torch.int64)
    return Subject(name, model, Windows(tokens, first, np.full(count, 4.0 * context), ("random",) * count))


def probe(at: Subject, *, shape: bool) -> None:
    """Errors of twelve formats, and shapes, at the inputs of all linear layers."""
    tally = Tally("activation", TWELVE, shape=shape)
    inputs = [part[:, :-1] for part in at.windows.tokens.split(CAPTURED)]
    activations(at.model.hidden, at.linear, inputs, tally.visit)
    for site in at.linear:
        for quantizer in TWELVE:
            tally.error_values(site, quantizer)
        if shape:
            tally.shapes[site].values()


def hooked(at: Subject) -> None:
    """The same by hooks and torchao, every tensor once; the sums of each are kept."""
    measure, kept = composition(TWELVE), list[list[Tensor]]()

    def see(_site: str, x: Tensor) -> None:
        kept.append(measure(x.flatten(0, -2)))

    with torch.no_grad(), watching(at.linear, see):
        for part in at.windows.tokens.split(CAPTURED):
            at.model.hf(input_ids=part[:, :-1])


def costs(at: Subject) -> None:
    """Loss, divergence and all that comes with it, of eight treatments against the model itself."""
    judge = Texts(at.windows)
    reference = judge.reference(at.model)
    every = [partial(at.treatment, *names) for names in TREATMENTS]
    for start in range(0, len(every), TOGETHER):
        judge.together(at.model, every[start : start + TOGETHER], reference)


def one_by_one(at: Subject) -> None:
    judge = Texts(at.windows)
    reference: Reference = judge.reference(at.model)
    for names in TREATMENTS:
        with at.treatment(*names):
            judge.against(at.model, reference)


@torch.no_grad()
def two_models(at: Subject) -> None:
    """The same treatments, loss and divergence from all logits of a batch, of both models, as one would write it."""
    for names in TREATMENTS:
        for part in at.batches:
            base = log_softmax(at.model.hf(input_ids=part[:, :-1]).logits.float(), -1)
            with at.treatment(*names):
                logits = at.model.hf(input_ids=part[:, :-1]).logits.float()
            kl_div(log_softmax(logits, -1), base, log_target=True, reduction="none").sum(-1).mean()
            cross_entropy(logits.flatten(0, 1), part[:, 1:].flatten())


def unquantized(at: Subject) -> None:
    judge = Texts(at.windows)
    judge.floor(at.model, judge.plain(at.model))


def measure(at: Subject) -> Iterator[Row]:
    """In turns, so that all meet the same machine; what takes minutes once or twice."""
    measured: dict[str, tuple[Callable[[], object], int]] = {
        "forward": (at.forward, 6),
        "hidden states": (at.hidden, 3),
        "12 formats at linear inputs": (partial(probe, at, shape=False), 4),
        "12 formats and shapes at linear inputs": (partial(probe, at, shape=True), 4),
        "8 treatments": (partial(costs, at), 2),
        "8 treatments, one by one": (partial(one_by_one, at), 1),
        "loss and numerical floor": (partial(unquantized, at), 1),
        "hooks and torchao: 12 formats and moments": (partial(hooked, at), 1),
        "two models: 8 treatments": (partial(two_models, at), 1),
    }
    at.forward()
    seconds, memory = dict.fromkeys(measured, inf), dict.fromkeys(measured, 2**62)
    for turn in range(max(times for _, times in measured.values())):
        for what, (run, times) in measured.items():
            if turn < times:

                def timed(what: str = what, run: Callable[[], object] = run) -> None:
                    seconds[what] = min(seconds[what], best(run, 1))

                memory[what] = min(memory[what], extra_memory(timed))
    for what in measured:
        yield _row(at, what, (seconds[what], seconds["forward"]), memory[what])


def bounds(at: Subject) -> Row:
    """The two things that memory is compared with: a batch of the widest site, and a piece of logits, both float32."""
    widest = 0

    def see(_site: str, x: Tensor) -> None:
        nonlocal widest
        widest = max(widest, x.shape[-1])

    with torch.no_grad(), ExitStack() as stack:
        stack.enter_context(watching(at.linear, see))
        at.model.hidden(at.windows.tokens[:1, :-1])
    rows = min(BATCH, len(at.windows)) * at.windows.context
    parameters = sum(parameter.numel() for parameter in at.model.parameters())
    return {
        "model": at.name,
        "what": "sizes",
        "parameters": parameters,
        "model_mb": _mb(4 * parameters),
        "site_mb": _mb(4 * rows * widest),
        "piece_mb": _mb(4 * 2**24),
        "all_logits_mb": _mb(4 * at.windows.tokens[:, 1:].numel() * (at.model.vocabulary or 0)),
        "windows": len(at.windows),
        "context": at.windows.context,
    }


def _row(at: Subject, what: str, times: tuple[float, float], memory: int) -> Row:
    seconds, forward = times
    row: Row = {
        "model": at.name,
        "what": what,
        "seconds": round(seconds, 4),
        "forwards": round(seconds / forward, 3),
        "memory_mb": _mb(memory),
    }
    cost = f"{seconds:9.3f} s {seconds / forward:8.2f} forwards {memory / 2**20:8.0f} MB"
    print(f"{at.name:10} {what:42} {cost}", flush=True)
    return row


def _mb(size: int) -> float:
    return round(size / 2**20, 1)


def main(names: Sequence[str], out: Path | None) -> None:
    torch.set_num_threads(1)
    for name in names:
        if name == "babyllama" and not BABYLLAMA.exists():
            print(f"{BABYLLAMA} is not here; QBENCH_BABYLLAMA says where it is")
            continue
        at = subject(name)
        rows = [bounds(at), *measure(at)]
        if out is not None:
            store(rows, out)


def store(rows: Sequence[Row], out: Path) -> None:
    """In place of what is there of the same model."""
    known: list[Row] = json.loads(out.read_text())["rows"] if out.exists() else []
    names = {row["model"] for row in rows}
    every = [*(row for row in known if row["model"] not in names), *rows]
    out.parent.mkdir(parents=True, exist_ok=True)
    lines = ",\n  ".join(json.dumps(row) for row in every)
    out.write_text(f'{{"machine": {json.dumps(machine())},\n "rows": [\n  {lines}\n ]}}\n')


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=tuple(MODELS), default=tuple(MODELS))
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    main(options.models, options.json)
