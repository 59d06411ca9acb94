"""Checkpoints of a given size, written without a model; and how much memory something takes beside mapped files."""

import json
import struct
import threading
import time
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from math import prod
from pathlib import Path

import torch

Shapes = Mapping[str, tuple[int, ...]]


def llama(layers: int, width: int, hidden: int, vocabulary: int) -> tuple[dict[str, object], Shapes]:
    """The config of a decoder and the shapes of its tensors."""
    config: dict[str, object] = {"model_type": "llama", "num_hidden_layers": layers, "tie_word_embeddings": False}
    square, up, down, norm = (width, width), (hidden, width), (width, hidden), (width,)
    attention = {f"self_attn.{name}_proj.weight": square for name in "qkvo"}
    mlp = {"mlp.gate_proj.weight": up, "mlp.up_proj.weight": up, "mlp.down_proj.weight": down}
    norms = {"input_layernorm.weight": norm, "post_attention_layernorm.weight": norm}
    blocks = {f"model.layers.{i}.{n}": s for i in range(layers) for n, s in {**attention, **mlp, **norms}.items()}
    ends = {"model.embed_tokens.weight": (vocabulary, width), "lm_head.weight": (vocabulary, width)}
    return config, {**ends, **blocks, "model.norm.weight": norm}


def write_llama(folder: Path, shards: int, **sizes: int) -> int:
    """A bf16 checkpoint of heavy-tailed numbers in several shards; gives back its bytes.

    The numbers are one block over and over: drawing a gigabyte of them would take longer than all that is tested.
    """
    config, shapes = llama(**sizes)
    (folder / "config.json").write_text(json.dumps(config))
    x = torch.randn(2**22 + 8191, generator=torch.Generator().manual_seed(0))
    block = (x * x.roll(1).exp() * 0.02).bfloat16().view(torch.uint8).numpy().tobytes()
    names = list(shapes)
    files = {f"model-{i + 1:05}-of-{shards:05}.safetensors": names[i::shards] for i in range(shards)}
    weight_map = {name: file for file, inside in files.items() for name in inside}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return sum(_write(folder / file, {name: shapes[name] for name in inside}, block) for file, inside in files.items())


def _write(path: Path, shapes: Shapes, block: bytes) -> int:
    entries: dict[str, object] = {}
    start = 0
    for name, shape in shapes.items():
        end = start + 2 * prod(shape)
        entries[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [start, end]}
        start = end
    header = json.dumps(entries).encode()
    header += b" " * (-len(header) % 8)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(header)) + header)
        for at in range(0, start, len(block)):
            file.write(block[: start - at])
    return start


def anonymous() -> int:
    """Bytes of memory of this process that no file holds; smaps_rollup has it too, after a walk of all pages."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("RssAnon:"))


class Peak:
    """The most that was there while it was watched."""

    def __init__(self) -> None:
        self.bytes = anonymous()

    def watch(self, done: threading.Event, seconds: float) -> None:
        while not done.is_set():
            self.bytes = max(self.bytes, anonymous())
            time.sleep(seconds)


@contextmanager
def watched(seconds: float = 0.005) -> Generator[Peak, None, None]:
    """Look every few milliseconds at the memory of this process."""
    peak, done = Peak(), threading.Event()
    watcher = threading.Thread(target=peak.watch, args=(done, seconds))
    watcher.start()
    try:
        yield peak
    finally:
        done.set()
        watcher.join()
        peak.bytes = max(peak.bytes, anonymous())


def streaming(path: str, layers: int) -> None:
    """Write a checkpoint of 0.4 GB for each layer and 0.25 GB, measure all of it, print what that took, as JSON."""
    from qbench.capture.shards import checkpoint
    from qbench.capture.streamed import Streamed, allowance, feed
    from qbench.quant import native

    torch.set_num_threads(1)
    native.kernel()  # the compiler's memory is not ours
    size = write_llama(Path(path), shards=3, layers=layers, width=4096, hidden=11008, vocabulary=16384)
    before, found = anonymous(), checkpoint(path)
    seen: list[Streamed] = []
    start = time.perf_counter()
    with watched() as peak:
        feed(found, found.matrices, ["int8/channel", "int4/tensor", "nvfp4"], lambda _, one: seen.append(one))
        seconds = time.perf_counter() - start
        one_by_one = ["int4/tensor+hadamard", "nf4/block:64/scale:double"]
        feed(found, ["logits"], one_by_one, lambda _, one: seen.append(one))
    numbers = {"bytes": size, "largest": found.largest, "allowance": allowance(found), "matrices": len(seen)}
    left_out = sum(len(one.left_out) for one in seen)
    print(json.dumps({**numbers, "left_out": left_out, "peak": peak.bytes - before, "seconds": seconds}))
