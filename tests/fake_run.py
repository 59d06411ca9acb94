"""Made-up runs with the shape of real ones: numbers near those of a small residual and a residual-free decoder."""

import hashlib
import json
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from qbench.results.record import Attempt, Closing, Record
from qbench.results.run import Run

ROOT = Path(__file__).parents[1]
SUITE_TEXT = (ROOT / "suites" / "quickstart.yaml").read_text()
EFFECTS: list[dict[str, Any]] = yaml.safe_load(SUITE_TEXT)["effects"]

QUANTIZERS = {
    **{
        f"int{b}/{g}": b + extra
        for b in (3, 4, 6, 8)
        for g, extra in (("tensor", 0.0), ("token", 0.5), ("block:32", 1.0))
    },
    "mxfp4": 4.25,
    "lloyd4/block:64": 4.5,
    "int4/tensor+hadamard": 4.0,
}
TREATMENTS = {
    "boundaries": [*(f"int{b}/tensor" for b in (3, 4, 6, 8)), "int4/token", "int4/block:32", "int4/tensor+hadamard"],
    "interior": ["int3/tensor", "int4/tensor", "int4/token"],
    "middle": ["int3/tensor", "int4/tensor"],
    "linear": ["int3/tensor", "int4/tensor", "int8/tensor", "int4/token", "mxfp4"],
    "weights": ["int4/token"],
}
BLOCK = ("attn.in", "attn.context", "attn.out", "mid", "mlp.in", "mlp.pre", "mlp.hidden", "mlp.out", "out")
KURTOSIS = {
    "mlp.hidden": (19.5, 4.9),
    "attn.context": (2.5, 0.1),
    "mlp.out": (1.3, 0.1),
    "out": (0.2, 0.06),
    "mlp.pre": (1.4, 0.8),
}
COST = {
    "boundaries": (0.123, 0.037),
    "interior": (0.09, 0.022),
    "middle": (0.013, 0.003),
    "linear": (0.06, 0.1),
    "weights": (0.02, 0.02),
}


class Builder:
    """Cells and their records, as a finished run holds them."""

    def __init__(self) -> None:
        self.cells: dict[str, Attempt] = {}

    def add(self, spec: dict[str, Any], records: list[dict[str, Any]], **closing: Any) -> None:
        cell = hashlib.sha256(json.dumps(spec, sort_keys=True).encode()).hexdigest()[:12]
        last = Closing(
            cell=cell,
            question=cell[::-1],
            spec=spec,
            records=len(records),
            seconds=0.25,
            **{"status": "measured", **closing},
        )
        self.cells[cell] = Attempt(last, tuple(Record(cell=cell, **record) for record in records))

    def run(self) -> Run:
        return Run(folder=Path("results/quickstart"), cells=self.cells, manifest=manifest())


def model(arch: str) -> dict[str, Any]:
    free = arch.startswith("residual-free")
    plain = arch.endswith("plain")
    return {
        "arch": arch,
        "layers": 6,
        "width": 64,
        "heads": 4,
        "context": 64,
        "wiring": "residual-free" if free else "residual",
        "init": "fan-in" if plain else "orthogonal" if free else "gpt2",
        "temperature": "inv-sqrt-layer" if free and not plain else "const",
    }


ARMS: dict[str, tuple[str, dict[str, Any], float]] = {
    "residual": ("residual", {"lr": 0.02, "steps": 500}, 1.651),
    "residual-free": ("residual-free", {"lr": 0.01, "steps": 500}, 1.871),
    "residual (equal loss)": ("residual", {"lr": 0.02, "steps": 340}, 1.844),
    "residual-free (no recipe)": ("residual-free-plain", {"lr": 0.02, "steps": 500}, 3.017),
}


def sites(free: bool) -> list[str]:
    names = [name for name in BLOCK if not (free and name in ("attn.out", "mlp.out"))]
    return ["embed", *(f"blocks.{n}.{name}" for n in range(6) for name in names), "final", "logits"]


def quickstart(seeds: tuple[int, ...] = (0, 1, 2), names: Mapping[str, str] | None = None) -> Run:
    """A whole quickstart, about 8000 records; `names` renames arms."""
    run = Builder()
    rng = np.random.default_rng(0)
    for name, (arch, training, loss) in ARMS.items():
        for seed in seeds if "no recipe" not in name else seeds[:1]:
            spec = {
                "suite": "quickstart",
                "version": 1,
                "arm": (names or {}).get(name, name),
                "model": model(arch),
                "training": {"optimizer": "muon", "batch": 8, "shape_steps": [0, 50, 150, 300], **training},
                "seed": seed,
                "data": {"name": "stdlib", "digest": "sha256:9f31c0aa77"},
                "device": "cpu",
            }
            add_model(run, spec, loss + rng.normal(0, 0.012), rng)
    add_calibration(run, rng)
    return run.run()


def add_model(run: Builder, spec: dict[str, Any], loss: float, rng: np.random.Generator) -> None:
    free = spec["model"]["wiring"] == "residual-free"
    kurtosis = {site: kurtosis_of(site, free, rng) for site in sites(free)}
    warnings = ("stuck at unigram: loss 3.017 nats/token, 3.009 for token frequencies alone",) if loss > 2.9 else ()
    run.add({**spec, "measurement": {"what": "training"}}, list(training(spec, loss, kurtosis)), warnings=warnings)
    base = {"windows": 16, "split": "test"}
    for kind in ("activation", "gradient"):
        noisy = kurtosis if kind == "activation" else {s: 4 * abs(k) + (17 if free else 4) for s, k in kurtosis.items()}
        places = [s for s in sites(free) if kind == "activation" or (s.endswith(".out") and "attn" not in s)]
        run.add(
            {**spec, "measurement": {"what": "shape", "kind": kind, "sites": places, **base}},
            [shape(s, kind, noisy[s]) for s in places],
        )
        for quantizer in QUANTIZERS if kind == "activation" else ("int4/tensor", "int4/token", "int8/tensor"):
            measurement = {"what": "error", "kind": kind, "quantizer": quantizer, "sites": places, **base}
            run.add({**spec, "measurement": measurement}, [error(s, kind, quantizer, noisy[s], rng) for s in places])
    for treatment in treatments():
        measurement = {"what": "loss", "windows": 128, "split": "test", "treatment": treatment}
        run.add({**spec, "measurement": measurement}, [loss_record(treatment, loss, free, rng)])


def kurtosis_of(site: str, free: bool, rng: np.random.Generator) -> float:
    name = site.split(".", 2)[-1]
    depth = 0.6 + 0.16 * int(site.split(".")[1]) if site.startswith("blocks") else 1.0
    return KURTOSIS.get(name, (0.15, 0.03))[free] * depth * float(rng.lognormal(0, 0.12)) + float(rng.normal(0, 0.02))


def crest(kurtosis: float) -> float:
    return 13.4 + 5.2 * math.log((kurtosis + 3) / 3)


def shape(site: str, kind: str, kurtosis: float) -> dict[str, Any]:
    values = {
        "rms": 1.0,
        "excess_kurtosis/tensor": kurtosis,
        "excess_kurtosis/token": 0.6 * kurtosis,
        "excess_kurtosis/channel": 0.5 * kurtosis,
        "crest_db": crest(kurtosis),
        "gaussian/excess_kurtosis/tensor": -1e-4,
        "gaussian/sd/excess_kurtosis/tensor": 0.019,
        "gaussian/crest_db": 13.4,
    }
    return {"kind": kind, "site": site, "values": values}


def sqnr(quantizer: str, kurtosis: float) -> float:
    bits = int(quantizer[3]) if quantizer.startswith("int") else 4
    full = 20 * math.log10(2 ** (bits - 1) - 1) + 10 * math.log10(12)
    share = (
        0.35
        if "token" in quantizer
        else 0.15
        if "block" in quantizer or "+" in quantizer or "/" not in quantizer
        else 1.0
    )
    relief = 0.0 if share == 1.0 else 4.6 if share == 0.35 else 6.0
    return full - 13.4 + relief - share * (crest(kurtosis) - 13.4)


def error(site: str, kind: str, quantizer: str, kurtosis: float, rng: np.random.Generator) -> dict[str, Any]:
    db = -sqnr(quantizer, kurtosis) + float(rng.normal(0, 0.2))
    values = {
        "error_db": db,
        "error_db/channel": db + 0.4,
        "relative_error": 10 ** (db / 20),
        "shape_loss_db": db + sqnr(quantizer, 0.0),
        "zeroed": 0.1,
        "levels": 15.0,
    }
    return {
        "kind": kind,
        "site": site,
        "quantizer": quantizer,
        "bits_per_value": QUANTIZERS[quantizer],
        "values": values,
    }


def treatments() -> Iterator[dict[str, Any]]:
    yield {"name": "unquantized", "scope": "", "assign": {}}
    for scope, quantizers in TREATMENTS.items():
        for quantizer in quantizers:
            yield {"name": f"{quantizer} @ {scope}", "scope": scope, "assign": {f"activation:{scope}": quantizer}}
    yield {"name": "W4A8", "scope": "", "assign": {"weight:weights": "int4/channel", "activation:linear": "int8/token"}}


def loss_record(treatment: dict[str, Any], loss: float, free: bool, rng: np.random.Generator) -> dict[str, Any]:
    if not treatment["assign"]:
        values = {"loss": loss, "bits_per_byte": loss / math.log(2), "floor/window": 0.031, "floor/numerical": 2.1e-6}
        return {"values": {**values, "error_rate": 0.42}, "n": 128, "intervals": {"loss": (loss - 0.06, loss + 0.06)}}
    scope = treatment["scope"]
    quantizer = treatment["name"].partition(" @ ")[0] if scope else ""
    bits = int(quantizer[3]) if quantizer.startswith("int") else 6 if not scope else 4
    gentler = 1.0 if "/tensor" in quantizer and "+" not in quantizer else 0.25
    increase = COST.get(scope, (0.01, 0.012))[free] * 5.2 ** (4 - bits) * gentler * float(rng.lognormal(0, 0.15))
    increase *= 0.02 if loss > 2.9 else 1.0
    values = {
        "loss": loss + increase,
        "loss_increase": increase,
        "floor/window": 0.002,
        "sites_touched": 6.0,
        "levels": 15.0,
    }
    return {
        "scope": scope,
        "quantizer": quantizer,
        "kind": "activation" if scope else "",
        "bits_per_value": QUANTIZERS.get(quantizer, 5.3),
        "values": values,
        "n": 128,
        "intervals": {"loss_increase": (increase - 0.004, increase + 0.004)},
    }


def training(spec: dict[str, Any], loss: float, kurtosis: Mapping[str, float]) -> Iterator[dict[str, Any]]:
    steps = spec["training"]["steps"]
    for step in range(0, steps + 1, 50):
        now = loss + (5.5 - loss) * math.exp(-4 * step / steps)
        yield {"step": step, "values": {"validation_loss": now, "train_loss": now - 0.01}}
    for step in (*spec["training"]["shape_steps"], steps):
        grown = 1 - math.exp(-3 * step / steps)
        for site, final in kurtosis.items():
            yield {
                "step": step,
                "site": site,
                "kind": "activation",
                "values": {"excess_kurtosis/tensor": final * grown},
            }
    values = {"loss": loss, "unigram_entropy": 3.009, "cpu_seconds": 19.0, "largest_gradient_norm": 8.4}
    yield {"values": {**values, "parameters": 329000.0, "training_tokens": 256000.0}}


def add_calibration(run: Builder, rng: np.random.Generator) -> None:
    known = {
        "gaussian": 0.01,
        "laplace": 2.97,
        "uniform": -1.2,
        "student-t": 4.4,
        "hot-channel": 69.7,
        "sink-token": 900.0,
    }
    spec = {
        "suite": "quickstart",
        "version": 1,
        "arm": "calibration",
        "model": {"arch": "calibration", "rows": 2048, "width": 96},
        "training": None,
        "seed": 0,
        "data": {"name": "synthetic", "digest": ""},
        "device": "cpu",
    }
    places = list(known)
    run.add(
        {**spec, "measurement": {"what": "shape", "kind": "activation", "sites": places}},
        [shape(s, "activation", k) for s, k in known.items()],
    )
    for quantizer in QUANTIZERS:
        records = [error(s, "activation", quantizer, k, rng) for s, k in known.items()]
        run.add(
            {**spec, "measurement": {"what": "error", "kind": "activation", "sites": places, "quantizer": quantizer}},
            records,
        )


def manifest() -> dict[str, Any]:
    session = {
        "suite": SUITE_TEXT,
        "options": {"workers": 2},
        "seeds": [0, 1, 2],
        "data": {"stdlib": "sha256:9f31c0aa77"},
        "models": {},
        "device": "cpu",
        "gpus": [],
        "threads": 1,
        "versions": {"python": "3.11.7", "qbench-suite": "0.1.0", "torch": "2.13.0"},
        "revisions": {"qbench": {"commit": "0123456789abcdef0123456789abcdef01234567", "dirty": True}, "suite": None},
        "machine": {"cpu": "AMD EPYC 9V74", "cores": 2, "system": "Linux", "architecture": "x86_64"},
        "started": "2026-11-21T07:30:00+00:00",
        "finished": "2026-11-21T07:34:10+00:00",
        "cells": {"measured": 600},
        "cost": {"cpu_seconds": 251.2, "wall_seconds": 151.4, "peak_rss_bytes": 734003200},
    }
    return {"schema": 1, "sessions": [session]}


def keep(run: Run, wanted: Callable[[Closing], bool]) -> Run:
    """The same run with only the cells that `wanted` accepts."""
    return replace(run, cells={name: one for name, one in run.cells.items() if wanted(one.closing)})


def failing(run: Run, hit: Callable[[Closing], bool], reason: str) -> Run:
    """The same run with the cells that `hit` accepts failed; what they had measured before is still in the file."""
    cells = {
        name: Attempt(replace(one.closing, status="failed", error=reason), one.records) if hit(one.closing) else one
        for name, one in run.cells.items()
    }
    return replace(run, cells=cells)
