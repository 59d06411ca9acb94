"""A made-up study: seven architectures by three or four optimizers, with every kind of record that a page may show."""

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import yaml
from fake_run import Builder, add_calibration, error, manifest, shape

from qbench.results.run import Run

ARCHITECTURES = ("residual", "residual-free", "residual-orthogonal", "residual-free-gpt2", "osp", "op", "sas-p")
OPTIMIZERS = {"adamw": (0.001, 0.003, 0.006), "muon": (0.005, 0.01, 0.02, 0.04), "soap": (0.001, 0.003, 0.006)}
FREE = ("residual-free", "residual-free-gpt2", "sas-p")
LOSS = {"adamw": 1.49, "muon": 1.21, "soap": 1.25, "shampoo": 1.31}
WORSE = {"residual": 0, "residual-free": 0.15, "residual-orthogonal": 0.01, "residual-free-gpt2": 0.6, "osp": 0.02}
TAKEN = {"adamw": 0.003, "muon": 0.02, "soap": 0.003, "shampoo": 0.003}
LAYERS, STEPS = 6, 1000
QUANTIZERS = {"int3/tensor": 3.0, "int4/tensor": 4.0, "int8/tensor": 8.0, "int4/token": 4.5, "int4/block:32": 5.0}
SCOPES = {"boundaries": 1.0, "interior": 0.8, "middle": 0.1, "linear": 0.5}
PLACES = ("attn.in", "attn.context", "mlp.in", "mlp.hidden", "out")

SUITE = {
    "suite": "study-lm",
    "question": "Is it the residual connection, the optimizer, or the quantizer?",
    "note": "Equal steps is not equal loss.",
    "effects": [
        {
            "claim": "With {optimizer}, int4 per-tensor boundaries cost more loss with residual connections",
            "between": ["residual + {optimizer}", "residual-free + {optimizer}"],
            "each": {"optimizer": ["adamw", "muon", "soap", "shampoo"]},
            "measure": {"treatment": "int4/tensor @ boundaries", "metric": "loss_increase"},
            "compare": "ratio",
            "thesis": "above 1",
        },
        {
            "claim": "With {optimizer}, int4 per-tensor linear inputs cost more loss with residual connections",
            "between": ["residual + {optimizer}", "residual-free + {optimizer}"],
            "each": {"optimizer": ["adamw", "muon", "soap"]},
            "measure": {"treatment": "int4/tensor @ linear", "metric": "loss_increase"},
            "compare": "ratio",
            "thesis": "above 1",
        },
        {
            "claim": "Boundaries are heavier-tailed with residual connections ({optimizer})",
            "between": ["residual + {optimizer}", "residual-free + {optimizer}"],
            "each": {"optimizer": ["adamw", "muon", "soap"]},
            "measure": {"kind": "activation", "sites": ["interior"], "metric": "excess_kurtosis/tensor"},
            "compare": "difference",
            "thesis": "above 0",
        },
        {
            "claim": "With {optimizer}, leaving the skip out costs nothing in full precision",
            "between": ["residual-free + {optimizer}", "residual + {optimizer}"],
            "each": {"optimizer": ["adamw", "muon", "soap"]},
            "measure": {"treatment": "unquantized", "metric": "loss"},
            "compare": "difference",
            "thesis": "below 0",
        },
        {
            "claim": "Muon does not lower the boundary kurtosis of {arch}",
            "between": ["{arch} + adamw", "{arch} + muon"],
            "each": {"arch": ["residual", "residual-free"]},
            "measure": {"kind": "activation", "sites": ["interior"], "metric": "excess_kurtosis/tensor"},
            "compare": "difference",
            "thesis": "below 0",
        },
    ],
}


class Made:
    """One model: what its numbers are drawn around."""

    def __init__(self, arch: str, training: Mapping[str, Any], seed: int) -> None:
        self.arch, self.training, self.seed = arch, training, seed
        self.free = arch in FREE
        self.random = np.random.default_rng([seed, *map(ord, json.dumps([arch, dict(training)]))])
        self.steps = int(training["steps"])
        loss = LOSS[training["optimizer"]] + WORSE.get(arch, 0.08) + 0.45 * (STEPS / self.steps - 1) ** 0.7
        self.loss = loss + 0.1 * bool(training.get("quantized")) * (1 if self.free else 4) + self.near(0.006)

    def near(self, spread: float) -> float:
        return float(self.random.normal(0, spread))

    def times(self, spread: float) -> float:
        return float(self.random.lognormal(0, spread))

    def kurtosis(self, place: str, layer: int) -> float:
        adamw = self.training["optimizer"] == "adamw"
        known = {"mlp.hidden": (22.0, 5.0), "attn.context": (3.0, 0.1), "out": (1.8 if adamw else 0.2, -0.02)}
        base = known.get(place, (0.3, 0.1))
        return base[self.free] * (0.6 + 0.15 * layer) * self.times(0.1) + self.near(0.02)

    def increase(self, scope: str, quantizer: str) -> float:
        bits = int(quantizer[3])
        gain = {"boundaries": 0.3, "interior": 0.3, "middle": 0.15, "linear": 1.8}[scope] if self.free else 1.0
        fine = 1.0 if quantizer.endswith("/tensor") else 0.2
        late = (self.loss - LOSS[self.training["optimizer"]]) * -1.2
        return 0.15 * SCOPES[scope] * gain * fine * 5.0 ** (4 - bits) * math.exp(late) * self.times(0.12)


def arms() -> Iterator[tuple[str, str, dict[str, Any], tuple[int, ...]]]:
    """Name, architecture, training and seeds."""
    every = dict.fromkeys(OPTIMIZERS, ARCHITECTURES) | {"shampoo": ARCHITECTURES[:2]}
    for optimizer, archs in every.items():
        common = {"optimizer": optimizer, "batch": 8, "lr": TAKEN[optimizer]}
        for arch in archs:
            yield f"{arch} + {optimizer}", arch, {**common, "steps": STEPS}, (0, 1, 2)
        if optimizer != "shampoo":
            for steps, word in ((700, "shorter"), (500, "shortest")):
                yield f"residual + {optimizer}, {word}", "residual", {**common, "steps": steps}, (0, 1, 2)
    for arch in ARCHITECTURES[:2]:
        inside = {"quantized": {"gradient:boundaries": "int4/tensor"}}
        common = {"optimizer": "muon", "batch": 8, "lr": 0.02, "steps": STEPS}
        yield f"{arch} + muon, int4 gradients", arch, {**common, **inside}, (0, 1, 2)


@cache
def study() -> Run:
    """The whole study, some ten thousand records."""
    run = Builder()
    for name, arch, training, seeds in arms():
        for seed in seeds:
            spec = {
                "suite": "study-lm",
                "version": 1,
                "arm": name,
                "model": {
                    "arch": arch,
                    "layers": LAYERS,
                    "width": 96,
                    "heads": 4,
                    "context": 128,
                    "wiring": "parallel" if arch == "sas-p" else "residual-free" if arch in FREE else "residual",
                },
                "training": training,
                "seed": seed,
                "data": {"name": "stdlib", "digest": "sha256:9f31"},
                "device": "cpu",
            }
            made = Made(arch, training, seed)
            if seed == 0 and training["steps"] == STEPS and training["optimizer"] in OPTIMIZERS:
                add_trials(run, spec, made)
            add(run, spec, made)
    add_stacks(run)
    add_calibration(run, np.random.default_rng(0))
    told = manifest()
    told["sessions"][0] |= {"suite": yaml.safe_dump(SUITE, allow_unicode=True), "asked": [*run.cells, "0" * 16]}
    return replace(run.run(), manifest=told)


def add_trials(run: Builder, spec: dict[str, Any], made: Made) -> None:
    rates = OPTIMIZERS[spec["training"]["optimizer"]]
    best = rates[-1] if spec["arm"] == "residual-free-gpt2 + adamw" else TAKEN[spec["training"]["optimizer"]]
    for rate in rates if not spec["training"].get("quantized") else ():
        loss = {"loss": made.loss + 0.1 * math.log(rate / best) ** 2}
        diverged = made.free and rate == 0.04
        trial = {**spec, "training": spec["training"] | {"lr": rate}, "measurement": {"what": "trial"}}
        run.add(trial, [{"values": {"lr": rate, **({} if diverged else loss)}}])


def add(run: Builder, spec: dict[str, Any], made: Made) -> None:
    sites = {f"blocks.{n}.{place}": made.kurtosis(place, n) for n in range(LAYERS) for place in PLACES}
    watched = {**spec, "training": spec["training"] | {"shape_steps": [0, 100, 400]}}
    run.add({**watched, "measurement": {"what": "training"}}, list(training(made, sites)))
    for kind in ("activation", "gradient"):
        shapes = [shape(site, kind, k if kind == "activation" else 4 + 4 * made.free) for site, k in sites.items()]
        run.add({**spec, "measurement": {"what": "shape", "kind": kind}}, shapes)
    for quantizer in QUANTIZERS:
        errors = [error(site, "activation", "int4/tensor", k, made.random) for site, k in sites.items()]
        for one in errors:
            one["quantizer"] = quantizer
        asked = {"what": "error", "kind": "activation", "quantizer": quantizer}
        run.add({**spec, "measurement": asked}, errors)
    for record, treatment in losses(made):
        run.add({**spec, "measurement": {"what": "loss", "treatment": treatment}}, [record])
    if made.steps == STEPS and not made.training.get("quantized"):
        run.add({**spec, "measurement": {"what": "noise"}}, list(noise(made)))
        run.add({**spec, "measurement": {"what": "adds"}}, list(adds(made)))
        for quantizer in ("int4/tensor",):
            asked = {"what": "flow", "treatment": {"name": f"{quantizer} @ linear", "scope": "linear"}}
            run.add({**spec, "measurement": asked}, list(flow(made, quantizer)))


def training(made: Made, sites: Mapping[str, float]) -> Iterator[dict[str, Any]]:
    for step in range(0, made.steps + 1, 100):
        yield {"step": step, "values": {"validation_loss": made.loss + 4 * math.exp(-5 * step / made.steps)}}
    for step in (0, 100, 400, made.steps):
        for site, final in sites.items():
            grown = final * (1 - math.exp(-3 * step / made.steps))
            yield {"step": step, "site": site, "kind": "activation", "values": {"excess_kurtosis/tensor": grown}}
    yield {"values": {"loss": made.loss, "cpu_seconds": 100.0}}


def losses(made: Made) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    plain = {"loss": made.loss, "floor/window": 0.031, "floor/numerical": 2e-6}
    yield {"values": plain, "n": 64, "intervals": {"loss": (made.loss - 0.06, made.loss + 0.06)}}, {
        "name": "unquantized", "scope": "", "assign": {}
    }  # fmt: skip
    for scope in SCOPES:
        for quantizer, bits in QUANTIZERS.items():
            cost = made.increase(scope, quantizer)
            values = {"loss": made.loss + cost, "loss_increase": cost, "floor/window": 0.002}
            name, where = f"{quantizer} @ {scope}", {"scope": scope, "quantizer": quantizer, "kind": "activation"}
            yield {"values": values, "bits_per_value": bits, "n": 64, **where}, {
                "name": name, "scope": scope, "assign": {f"activation:{scope}": quantizer}
            }  # fmt: skip


def noise(made: Made) -> Iterator[dict[str, Any]]:
    for scope, size in SCOPES.items():
        value = {"noise/sensitivity": 2 * size * (1 + made.free) * made.times(0.1), "noise/snr_db": 20.0}
        yield {
            "kind": "activation",
            "scope": scope,
            "values": {**value, "noise/increase": 0.02, "noise/exponent": 1.02},
        }
    for layer in range(LAYERS):
        value = {"noise/sensitivity": (1 + layer) * 0.1 * made.times(0.1), "noise/snr_db": 20.0}
        yield {"kind": "activation", "site": f"blocks.{layer}.out", "values": {**value, "noise/increase": 0.01}}


def adds(made: Made) -> Iterator[dict[str, Any]]:
    if made.free:
        return
    for layer in range(LAYERS):
        for place in ("mid", "out"):
            independent = made.kurtosis("out", layer)
            values = {
                "variance_ratio": 0.4 / (1 + layer) * made.times(0.05),
                "correlation": 0.1 + made.near(0.02),
                "c31": 0.2 + made.near(0.02),
                "c22": 0.1 + made.near(0.01),
                "c13": made.near(0.01),
                "kurtosis/stream": independent,
                "kurtosis/branch": 3.0 * made.times(0.1),
                "kurtosis/sum": independent + 0.7,
                "kurtosis/predicted": independent + 0.7 + 1e-9,
                "kurtosis/independent": independent,
            }
            yield {"site": f"blocks.{layer}.{place}", "values": {f"add/{k}/tensor": v for k, v in values.items()}}


def flow(made: Made, quantizer: str) -> Iterator[dict[str, Any]]:
    for layer in range(LAYERS):
        gain = (1.3 if made.free else 0.9) * made.times(0.05)
        inherited = 0.01 * gain**layer * (layer > 0)
        values = {
            "flow/inherited": inherited,
            "flow/introduced": 0.02,
            "flow/cross": 0.0,
            "flow/error": inherited + 0.02,
        }
        gains = {"flow/gain": gain} if layer else {}
        about = {"scope": "linear", "quantizer": quantizer, "kind": "activation"}
        yield {"site": f"blocks.{layer}", "values": {**values, **gains}, **about}
        matrix = {"flow/gain": gain, "flow/gain/spectral": 1.01, "flow/gain/alignment": gain / 1.01}
        yield {"site": f"blocks.{layer}.mlp.out", "values": matrix, **about}


def add_stacks(run: Builder) -> None:
    for name, wiring, branch in (
        ("residual, rotation", "residual", "rotation"),
        ("dense, rotation", "dense", "rotation"),
        ("residual, cubic", "residual", "cubic"),
    ):
        for seed in (0, 1, 2):
            random = np.random.default_rng(seed)
            model = {"arch": "stack", "wiring": wiring, "branch": branch, "input": "laplace", "width": 256, "depth": 12}
            records: list[dict[str, Any]] = []
            for layer in range(13):
                known = 3.0 / 1.1 ** (2 * layer) if wiring == "residual" else 3.0 if not layer else 0.035
                found = known * (1 if branch == "rotation" else 1 + layer)
                values = {
                    "excess_kurtosis/tensor": found + float(random.normal(0, 0.01)),
                    "excess_kurtosis/channel": found,
                }
                closed = {"theory/kurtosis/tensor": known, "theory/kurtosis/channel": known}
                records.append(
                    {"site": f"layer.{layer}", "values": {**values, **(closed if branch == "rotation" else {})}}
                )
            spec = {"suite": "study-lm", "version": 1, "arm": name, "model": model, "training": None, "seed": seed}
            run.add({**spec, "measurement": {"what": "theory"}}, records)
