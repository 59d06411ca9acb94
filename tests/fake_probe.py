"""A made-up probe of a model from elsewhere: numbers near those of a real one, and as large as a test wants it."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml
from fake_run import Builder

from qbench.results.run import Run

ROOT = Path(__file__).parents[1]
MODEL = {
    "arch": "pretrained",
    "name": "tiny-llama",
    "digest": "0123456789abcdef",
    "tokenizer": "fedcba",
    "model_type": "llama",
    "task": "causal-lm",
    "layers": 4,
    "context": 256,
    "vocabulary": 97,
    "parameters": 1_000_000,
    "dtype": "bfloat16",
    "attention": "sdpa",
}
# KLD, loss increase, half its interval, bytes; those of int6 are what the files below make them.
COSTS: dict[str, tuple[dict[str, str], float, float, float, float]] = {
    "int8/channel @ weights": ({"weight:weights": "int8/channel"}, 0.0005, -0.0002, 0.0008, 1.01e6),
    "int6/block:32 @ weights": ({"weight:weights": "int6/block:32"}, 0.006, 0.004, 0.002, 0.87e6),
    "int4/block:32 @ weights": ({"weight:weights": "int4/block:32"}, 0.04, 0.02, 0.004, 0.64e6),
    "int2/block:32 @ weights": ({"weight:weights": "int2/block:32"}, 2.4, 1.2, 0.1, 0.40e6),
    "W8A8": ({"weight:weights": "int8/channel", "activation:linear": "int8/token"}, 0.002, 0.0004, 0.001, 1.01e6),
    "KV8": ({"activation:kv": "int8/token"}, 0.0004, 0.0001, 0.0005, 0.0),
    "K8V4": ({"activation:keys": "int8/token", "activation:values": "int4/token"}, 0.03, 0.01, 0.004, 0.0),
    "int4/token @ boundaries": ({"activation:boundaries": "int4/token"}, 0.2, 0.05, 0.01, 0.0),
}
SLICES = {"prose.txt": 0.9, "code.py": 1.3, "position:0-127": 1.1, "position:128-255": 0.9}
MATRICES = ("attn.q", "attn.k", "attn.v", "attn.out", "mlp.pre", "mlp.up", "mlp.out")
PLACES = ("attn.in", "attn.k", "attn.v", "attn.context", "mlp.in", "mlp.hidden", "out")


def probe(**changed: Any) -> Run:
    """Everything that a probe of a language model measures. `layers` and `quantizers` make it as large as wanted."""
    layers = changed.pop("layers", 4)
    quantizers: Sequence[str] = changed.pop("quantizers", ("int8/channel", "int4/block:32"))
    builder = Builder()
    spec = _spec({**MODEL, "layers": layers, **changed})
    _files(builder, spec)
    _losses(builder, spec)
    _tensors(builder, spec, layers, quantizers)
    _outliers(builder, spec, layers)
    _sensitivity(builder, spec, layers)
    _kernels(builder, spec)
    return run(builder, "deploy-lm")


def compared() -> Run:
    """A checkpoint that somebody quantized, beside its base."""
    builder = Builder()
    base = _spec(MODEL, arm="base")
    made = {"name": "tiny-w4", "digest": "beef", "quantized": "gptq", "reference_model_digest": MODEL["digest"]}
    candidate = _spec({**MODEL, **made}, arm="candidate")
    _files(builder, base)
    _files(builder, candidate, shrunk=True)
    _loss(builder, base, "unquantized", {}, {"loss": 3.0, "perplexity": 20.1, "floor/numerical": 2e-7})
    _loss(builder, candidate, "unquantized", {}, values(0.1, 0.02, 0.004))
    return run(builder, "compare")


def weights_only() -> Run:
    builder = Builder()
    spec = _spec(MODEL)
    _files(builder, spec)
    _tensors(builder, spec, 4, ("int8/channel", "int4/block:32"), kinds=("weight",))
    return run(builder, "weights")


def images() -> Run:
    builder = Builder()
    spec = _spec({**MODEL, "name": "tiny-vit", "task": "image-classification", "model_type": "vit"}, name="digits")
    _files(builder, spec)
    _loss(builder, spec, "unquantized", {}, {"loss": 0.2, "error_rate": 0.066, "floor/numerical": 0.0})
    for name, (assign, kld, increase, reach, size) in list(COSTS.items())[:5]:
        costs = values(kld, increase, reach, size)
        _loss(builder, spec, name, assign, {k: v for k, v in costs.items() if not k.startswith("perplexity")})
    return run(builder, "deploy-vision")


def run(builder: Builder, suite: str) -> Run:
    text = (ROOT / "suites" / f"{suite}.yaml").read_text()
    session = {"suite": text, "options": {"profile": None}, "versions": {"torch": "2.13"}, "started": "2026-01-01"}
    assert yaml.safe_load(text)["suite"] == suite
    return replace(builder.run(), folder=Path("results/probe"), manifest={"sessions": [session]})


def values(kld: float, increase: float, reach: float, size: float = 0.0) -> dict[str, float]:
    found = {
        **{"loss": 3.0 + increase, "loss_increase": increase, "perplexity": 20.1, "perplexity_ratio": 1 + increase},
        **{"kld": kld, "kld/max": 9 * kld, "kld/p99": 4 * kld, "kld/median": kld / 2, "delta_p/rms": kld**0.5 / 3},
        **{"top1_changed": min(0.9, kld**0.5 / 2), "flips": min(0.4, kld**0.5 / 4), "error_rate": 0.6},
        **{"floor/window": reach / 2, "sites_touched": 28.0, "kld/worst_slice": 1.3 * kld},
    }
    return found | ({"bytes/model": size, "bits_per_value/model": size * 8e-6} if size else {})


def _spec(model: Mapping[str, Any], arm: str = "model", name: str = "text:val.txt") -> dict[str, Any]:
    shared = {"suite": "deploy-lm", "version": 1, "seed": 0, "training": None, "device": "cpu", "torch": "2.13"}
    return {**shared, "arm": arm, "model": dict(model), "data": {"name": name, "digest": "da7a"}}


def _add(builder: Builder, spec: Mapping[str, Any], measurement: dict[str, Any], records: list[dict[str, Any]]) -> None:
    builder.add({**spec, "measurement": measurement}, records)


def _files(builder: Builder, spec: Mapping[str, Any], *, shrunk: bool = False) -> None:
    rows = [(f"blocks.*.{name}", "linear", 138_918, 4.5 if shrunk else 32.0) for name in MATRICES]
    rows += [("embed", "embedding", 26_573, 32.0), ("model.norm", "norms", 1_000, 32.0)]
    records = [
        {"site": site, "scope": group, "n": 4, "values": {**_stored(parameters, bits), "tied": float(site == "embed")}}
        for site, group, parameters, bits in rows
    ]
    whole = sum(r["values"]["bytes/stored"] for r in records)
    parameters = sum(r["values"]["parameters"] for r in records)
    total = {"bytes/stored": whole, "parameters": parameters, "bits_per_parameter": 8 * whole / parameters}
    packed = {"kind": "weight", "scope": "packed", "quantizer": "int4/block:32", "bits_per_value": 4.5, "n": 28}
    packed |= {"values": {"bytes/stored": 547_000.0, "parameters": 972_426.0}}
    _add(builder, spec, {"what": "model"}, [*records, {"values": total, "n": 30}, *[packed] * shrunk])


def _stored(parameters: int, bits: float) -> dict[str, float]:
    return {"bytes/stored": parameters * bits / 8, "parameters": float(parameters), "bits_per_parameter": bits}


def _losses(builder: Builder, spec: Mapping[str, Any]) -> None:
    _loss(builder, spec, "unquantized", {}, {"loss": 3.0, "perplexity": 20.1, "floor/numerical": 2e-7})
    for name, (assign, kld, increase, reach, size) in COSTS.items():
        _loss(builder, spec, name, assign, values(kld, increase, reach, size))


def _loss(
    builder: Builder, spec: Mapping[str, Any], name: str, assign: dict[str, str], found: dict[str, float]
) -> None:
    treatment = {"name": name, "scope": name.partition(" @ ")[2], "assign": assign}
    passage = {"windows": 64, "split": "all", "passage": {"context": 256, "bos": "auto"}}
    bits = next((int(q[3]) + 0.25 for q in assign.values() if q.startswith("int")), None)
    reach = 2 * found.get("floor/window", 0.0)
    ends = {n: (found[n] - reach, found[n] + reach) for n in ("loss_increase",) if n in found}
    ends |= {"kld": (0.95 * found["kld"], 1.05 * found["kld"])} if "kld" in found else {}
    whole = {"values": found, "bits_per_value": bits, "intervals": ends, "n": 64}
    parts = [{"slice": s, "values": {"kld": f * found["kld"]}} for s, f in SLICES.items()] if "kld" in found else []
    _add(builder, spec, {"what": "loss", **passage, "treatment": treatment}, [whole, *parts])


def _tensors(
    builder: Builder,
    spec: Mapping[str, Any],
    layers: int,
    quantizers: Sequence[str],
    kinds: Sequence[str] = ("weight", "activation"),
) -> None:
    for kind in kinds:
        sites = [f"blocks.{i}.{name}" for i in range(layers) for name in (MATRICES if kind == "weight" else PLACES)]
        shape = [{"site": s, "values": {"excess_kurtosis/tensor": 0.5, "crest_db": 13.0}} for s in sites]
        _add(builder, spec, {"what": "shape", "kind": kind}, shape)
        for quantizer in quantizers:
            errors = [
                {"site": s, "bits_per_value": 4.5, "values": {"error_db": -20.0 - i % 7, "shape_loss_db": float(i % 9)}}
                for i, s in enumerate(sites)
            ]
            _add(builder, spec, {"what": "error", "kind": kind, "quantizer": quantizer}, errors)


def _outliers(builder: Builder, spec: Mapping[str, Any], layers: int) -> None:
    records: list[dict[str, Any]] = []
    for i in range(layers):
        site = f"blocks.{i}.out"
        found = {"hot_channel_energy": 0.2, "hot_channel_peak": 12.0 + i, "massive": 2.0 * (i == 2)}
        found |= {"massive_channels": 1.0, "massive_largest": 900.0 * (i == 2), "sinks": 1.0, "sinks_elsewhere": 0.0}
        found |= {"first_token_norm": 14.0, "energy_apart": 0.3}
        records.append({"site": site, "values": {f"outliers/{name}": value for name, value in found.items()}})
        records.append({"site": site, "slice": "channel:17", "values": {"outliers/channel_peak": 12.0}})
    _add(builder, spec, {"what": "outliers", "kind": "activation"}, records)


def _sensitivity(builder: Builder, spec: Mapping[str, Any], layers: int) -> None:
    records: list[dict[str, Any]] = []
    for i in range(layers):
        qkv = " ".join(f"model.layers.{i}.self_attn.{name}_proj" for name in "qkv")
        exact = {"loss_increase": 0.02 / (i + 1), "floor/window": 0.002 if i < 2 else 0.01} if i < 3 else {}
        estimate = {"loss_increase/first_order": 0.01 / (i + 1), "loss_increase/fisher": 0.001 / (i + 1)}
        records.append({"site": f"blocks.{i}.attn.in", "scope": qkv, "values": {**estimate, **exact}})
    records.append({"values": {"rank_correlation/first_order": 0.8, "rank_correlation/fisher": 0.6}})
    options = {"name": "int4/channel", "weights": "int4/channel"}
    rows = [{**record, "quantizer": "int4/channel"} for record in records]
    _add(builder, spec, {"what": "sensitivity", "options": options}, rows)


def _kernels(builder: Builder, spec: Mapping[str, Any]) -> None:
    found = {
        **{"loss": 3.01, "loss_increase": 0.01, "kld": 0.05, "simulation_gap": 0.001, "simulation_gap/kld": 0.0005},
        **{"bytes/disk": 1.1e6, "bytes/disk/unquantized": 4e6, "bytes/memory": 1.2e6, "latency_ms": 40.0},
        **{"latency_ms/unquantized": 42.0, "latency/batch": 4.0, "latency/length": 256.0, "latency/threads": 1.0},
        **{"simulation_gap/flagged": 1.0, "sites_touched": 28.0, "layers_left": 1.0, "bits_per_value/quantized": 4.5},
    }
    asked = {"what": "kernel", "options": {"name": "bitsandbytes/nf4"}}
    record = {"values": found, "quantizer": "bitsandbytes/nf4", "n": 64}
    builder.add({**spec, "measurement": asked}, [record], warnings=("bitsandbytes/nf4 differs: known reason",))
    other = {"what": "kernel", "options": {"name": "torchao/float8-dynamic"}}
    builder.add({**spec, "measurement": other}, [], status="unsupported", error="needs a GPU of sm_89")
